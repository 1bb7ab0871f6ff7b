"""Weights in memory once: mapped files are released, and modules can give up their weights."""

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dafast import DepthAnything
from dafast.models.mapped_memory import mapped_memory, release_pages
from dafast.models.saving import save_pretrained
from dafast.ops.linear_packed import why_slow_packed
from tests.models.packed import SMALL, make, ready

on_linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    text = Path("/proc/self/smaps").read_text()
    found = re.search(
        rf"{re.escape(str(path))}\n.*?^Rss: +(\d+) kB", text, re.DOTALL | re.MULTILINE
    )
    assert found is not None
    return 1024 * int(found[1])


@on_linux
def test_released_pages_are_read_again(tmp_path, seed):
    path = (tmp_path / "weights.safetensors").resolve()
    values = {name: torch.randn(300_000) for name in ("a", "b", "c")}
    save_file(values, path)
    with safe_open(path, framework="pt") as file:
        read = {name: file.get_tensor(name) for name in values}
    mapped = mapped_memory([path])
    assert mapped
    for _ in range(100):  # a system short of memory drops pages at any time
        for name, tensor in read.items():
            assert torch.equal(tensor, values[name])
        before = resident(path)
        if before >= 3 * 1_200_000:
            break
    assert before >= 3 * 1_200_000
    for tensor in read.values():
        release_pages(tensor, mapped)
    assert resident(path) <= before - 3 * 1_200_000
    for name, tensor in read.items():
        assert torch.equal(tensor, values[name])


@on_linux
def test_other_memory_is_never_released(tmp_path, seed):
    path = (tmp_path / "weights.safetensors").resolve()
    save_file({"a": torch.randn(100_000)}, path)
    with safe_open(path, framework="pt") as file:
        mapped_tensor = file.get_tensor("a")
    mapped = mapped_memory([path])
    own = torch.randn(100_000)
    expected = own.clone()
    release_pages(own, mapped)
    release_pages(mapped_tensor[::2], mapped)
    assert torch.equal(own, expected)
    assert mapped_memory([tmp_path / "another"]) == []


def saved(tmp_path: Path) -> tuple[Path, DepthAnything]:
    model = make(SMALL)
    ready(model)
    save_pretrained(model, tmp_path)
    return tmp_path, model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_freed_weights_give_the_same_maps(dtype, tmp_path, seed):
    folder, _ = saved(tmp_path)
    model = DepthAnything.from_pretrained(folder, device="cpu", dtype=dtype)
    kept = copy.deepcopy(model)
    expected_memory = not why_slow_packed(model.dtype)
    model.prepare_inference(keep_weights=False)
    for side in (56, 70):  # the second call checks that nothing has changed
        photo = np.random.default_rng(seed).integers(0, 256, (side, 84, 3), dtype=np.uint8)
        np.testing.assert_array_equal(model.infer(photo, size=56), kept.infer(photo, size=56))
    on_meta = {name for name, weight in model.named_parameters() if weight.is_meta}
    assert bool(on_meta) == expected_memory
    if expected_memory:
        elements = sum(weight.numel() for weight in model.parameters())
        freed = sum(weight.numel() for weight in model.parameters() if weight.is_meta)
        assert freed >= 0.8 * elements
        assert not any("norm" in name or "pos_embed" in name for name in on_meta)


@pytest.mark.skipif(bool(why_slow_packed(torch.float32)), reason="oneDNN multiplies here")
def test_a_change_after_weights_were_freed_is_an_error(tmp_path, seed):
    folder, original = saved(tmp_path)
    model = DepthAnything.from_pretrained(folder, device="cpu", dtype="float32")
    photo = np.random.default_rng(seed).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    expected = original.infer(photo, size=56)
    model.prepare_inference(keep_weights=False)
    with torch.no_grad():
        model.pretrained.norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match="freed after packing"):
        model.infer(photo, size=56)
    with pytest.raises(RuntimeError, match="freed after packing"):
        model.optimize(int8=False)
    model.load_state_dict(original.state_dict(), assign=True)  # weights with memory
    np.testing.assert_array_equal(model.infer(photo, size=56), expected)


PHOTO = np.full((56, 84, 3), 128, np.uint8)


def _in_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        model.infer(PHOTO, size=56)


def _with_a_hook(model):
    model.depth_head.register_forward_hook(lambda *_: None)
    model.infer(PHOTO, size=56)


USES = {
    "gradients": lambda model: model(torch.zeros(1, 3, 56, 84)),
    "autocast": _in_autocast,
    "hook": _with_a_hook,
    "features": lambda model: model.get_intermediate_layers(torch.zeros(1, 3, 56, 84)),
    "state_dict": lambda model: model.state_dict(),
    "pickle": pickle.dumps,
    "move": lambda model: model.to(torch.float64),
    "copy": lambda model: copy.deepcopy(model)(torch.zeros(1, 3, 56, 84)),
    "load": lambda model: model.load_state_dict(make(SMALL).state_dict()),
}


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@pytest.mark.skipif(bool(why_slow_packed(torch.float32)), reason="oneDNN multiplies here")
@pytest.mark.parametrize("use", USES)
def test_a_use_of_freed_weights_is_an_error(use, seed):
    """Not a map of memory that nothing has written, or a file without weights."""
    model = make(SMALL)
    ready(model)
    model.prepare_inference(keep_weights=False)
    with pytest.raises(RuntimeError, match=r"freed after packing.*load"):
        USES[use](model)


@pytest.mark.skipif(bool(why_slow_packed(torch.float32)), reason="oneDNN multiplies here")
def test_freed_weights_that_are_not_finite_give_the_warning(seed, notices):
    model = make(SMALL)
    ready(model)
    with torch.no_grad():
        model.depth_head.scratch.output_conv1.weight[0, 0] = torch.nan
    model.prepare_inference(keep_weights=False)
    assert not np.isfinite(model.infer(PHOTO, size=56)).all()
    (message,) = notices.messages
    assert "weights hold NaN or overflow in float32" in message


def test_two_threads_free_the_weights_once(seed):
    model = make(SMALL)
    ready(model)
    expected = copy.deepcopy(model).infer(PHOTO, size=56)

    def predict(_: int) -> np.ndarray:
        model.prepare_inference(keep_weights=False)
        return model.infer(PHOTO, size=56)

    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(predict, range(2)):
            np.testing.assert_array_equal(got, expected)


def test_a_model_that_was_optimized_keeps_its_weights(seed):
    model = make(SMALL)
    ready(model)
    model.optimize()
    model.prepare_inference(keep_weights=False)
    assert not any(weight.is_meta for weight in model.parameters())
