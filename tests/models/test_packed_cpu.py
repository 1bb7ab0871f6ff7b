"""`DepthAnything.optimize`: the same function, of the weights as they are now."""

import concurrent.futures
import copy
import dataclasses
import gc
import math
import pickle
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch

import dafast
from dafast.config import get_preset
from dafast.models.packed_cpu import OptimizedForward
from dafast.ops.linear_int8 import why_slow_int8
from dafast.ops.linear_packed import why_slow_packed
from tests.instruction_sets import instruction_set
from tests.models.packed import DTYPES, METRIC, SMALL, close, make, ready
from tests.tolerances import TOLERANCES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", [SMALL, METRIC], ids=["relative", "metric"])
@pytest.mark.parametrize("size", [(112, 112), (70, 126), (14, 14)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_same_function(config, size, batch, dtype, seed):
    model = make(config, dtype)
    ready(model)
    x = torch.randn(batch, 3, *size).to(dtype)
    with torch.no_grad():
        exact = copy.deepcopy(model).float()(x.float())
        plain = model(x)
        got = model.optimize()(x)
    assert model._optimized is not None
    if dtype == torch.float32:
        close(got, plain, dtype)
    # No further from the exact result than the modules are, and a little.
    scale = exact.abs().max()
    error = (got - exact).abs().max() / scale
    assert error <= 2 * (plain - exact).abs().max() / scale + TOLERANCES[dtype].op


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_processors_without_the_kernels_take_onednn(dtype, seed):
    """The products of ARM, and of bfloat16 without its instructions."""
    model = make(SMALL, dtype)
    ready(model)
    x = torch.randn(2, 3, 70, 42).to(dtype)
    with torch.no_grad(), instruction_set("portable"):
        exact = copy.deepcopy(model).float()(x.float())
        plain = model(x)
        got = model.optimize()(x)
    scale = exact.abs().max()
    error = (got - exact).abs().max() / scale
    assert error <= 2 * (plain - exact).abs().max() / scale + TOLERANCES[dtype].op


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["nano", "vits"])
def test_presets(preset, seed):
    model = make(get_preset(preset))
    ready(model)
    x = torch.randn(1, 3, 84, 56)
    with torch.no_grad():
        close(model.optimize()(x), copy.deepcopy(model)(x), torch.float32)


def test_list_of_images(seed):
    model = make(SMALL)
    ready(model)
    images = [torch.randn(3, 28, 42), torch.randn(3, 56, 28)]
    with torch.no_grad():
        expected = model(images)
        got = model.optimize()(images)
        assert model([]) == []
    for a, b in zip(got, expected, strict=True):
        close(a, b, torch.float32)


@pytest.mark.parametrize("optimize", [False, True])
def test_a_default_device_does_not_matter(optimize, seed):
    model = make(SMALL)
    ready(model)
    x = torch.randn(1, 3, 56, 70)
    with torch.no_grad():
        wanted = model(x)
        if optimize:
            model.optimize()
        with torch.device("meta"):
            close(model(x), wanted, torch.float32)


class _Louder(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_replaced_modules_are_not_packed(seed, caplog):
    model = make(SMALL)
    ready(model)
    x = torch.randn(1, 3, 56, 56)
    model.optimize()
    other = _Louder(128, 128)
    other.weight, other.bias = model.pretrained.blocks[0].attn.proj.parameters()
    model.pretrained.blocks[0].attn.proj = other
    with torch.no_grad(), caplog.at_level("INFO", logger="dafast"):
        assert torch.equal(model(x), copy.deepcopy(model)(x))
    assert "pretrained.blocks.0.attn.proj is _Louder, not Linear" in caplog.text


@pytest.mark.parametrize("size", [(70, 70), (252, 252), (280, 280)], ids=str)
@pytest.mark.slow
def test_no_size_is_slow_in_bfloat16(size, seed):
    """Weights laid out for maps of one size were rearranged at every call for those of others."""
    config = dataclasses.replace(SMALL, out_channels=(16, 32, 64, 384), grid_size=37)
    model = make(config, torch.bfloat16)
    ready(model)
    x = torch.randn(1, 3, *size).bfloat16()
    runs = (copy.deepcopy(model), model.optimize())
    seconds = dict.fromkeys(runs, math.inf)
    with torch.no_grad():
        for attempt in range(40):  # other work on the machine only ever adds
            for run in runs:
                start = time.process_time()
                run(x)
                seconds[run] = min(seconds[run], time.process_time() - start)
            if attempt > 3 and seconds[model] < 1.5 * min(seconds.values()) + 0.02:
                return
    raise AssertionError(f"{list(seconds.values())} s")


def test_features_hooks_of_all_modules_and_patched_ones_get_the_modules(seed):
    model = make(SMALL)
    ready(model)
    x = torch.randn(2, 3, 28, 42)
    with torch.no_grad():
        wanted = model(x, features=True)
        model.optimize()
        got = model(x, features=True)
        assert isinstance(got, tuple) and all(map(torch.equal, got, wanted))
        with pytest.raises(ValueError, match="for a tensor"):
            model([x[0]], features=True)
        seen = []
        hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
        model(x)
        hook.remove()
        assert len(seen) > 50
        fc1 = model.pretrained.blocks[0].mlp
        fc1.forward = lambda t: torch.zeros_like(t)
        assert not torch.allclose(model(x), got[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
def test_transforms_and_traces_get_the_modules(seed):
    model = make(SMALL).requires_grad_(False)
    ready(model)
    x = torch.randn(2, 1, 3, 112, 112)
    with torch.no_grad():
        model.optimize()
        expected = model(x[:, 0])
        close(torch.vmap(model)(x)[:, 0], expected, torch.float32)
        weights = {name: torch.stack([p, 1.1 * p]) for name, p in model.named_parameters()}
        maps = torch.vmap(lambda w: torch.func.functional_call(model, w, (x[0],)))(weights)
        close(maps[0], expected[:1], torch.float32)
        traced = torch.jit.trace(model, x[0], check_trace=False)
        close(traced(x[1]), expected[1:], torch.float32)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        close(compiled(x[0]), expected[:1], torch.float32)


@pytest.mark.slow
def test_many_sizes_on_threads(seed):
    model = make(SMALL).optimize()
    ready(model)
    images = [torch.randn(1, 3, 14, 14 * n) for n in range(1, 21)]  # more than are kept

    @torch.no_grad()
    def run(number):
        return [model(image) for image in images[number:] + images[:number]][len(images) - number]

    with torch.no_grad():
        expected = model(images[0])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got in pool.map(run, range(1, 9)):
            close(got, expected, torch.float32)


def test_gradients_hooks_and_autocast_get_the_modules(seed):
    model = make(SMALL)
    ready(model)
    model.optimize()
    x = torch.randn(1, 3, 28, 28)
    model(x).sum().backward()
    assert model.pretrained.blocks[0].attn.qkv.weight.grad is not None
    seen = []
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).isfinite().all()
        hook = model.depth_head.register_forward_hook(lambda *_: seen.append(1))
        model(x)
        hook.remove()
        model(x)
    assert seen == [1]


def test_copies_and_pickles_leave_the_packed_weights_behind(seed):
    model = make(SMALL)
    ready(model)
    x = torch.randn(1, 3, 28, 28)
    model.optimize()
    keys = set(make(SMALL).state_dict())
    assert set(model.state_dict()) == keys
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._optimized is None
        with torch.no_grad():
            close(twin(x), model(x), torch.float32)


@pytest.mark.slow
def test_del_frees_the_model_at_once(seed):
    """Without the garbage collector: nothing that `infer` makes is part of a reference cycle."""
    model = make(SMALL)
    ready(model)
    gc.collect()
    gc.disable()
    try:
        photos = [np.zeros((56, 70, 3), np.uint8), np.zeros((70, 56, 3), np.uint8)]
        maps = model.infer([*photos, photos[0]], flip=True)
        photos[0] = maps[0]
        packed = model._optimized
        parts = [model, model.pretrained, packed, packed.blocks[0], packed._packed, *maps]
        parts += [packed.blocks[0].rows.packed, packed._packed._parts[-1], packed.norm.weight]
        parts += [next(iter(packed.positions.values()))[1], model.depth_head.projects[0].weight]
        alive = [weakref.ref(part) for part in parts]
        del model, packed, parts, maps, photos
        assert [ref() for ref in alive if ref() is not None] == []
        photo = np.zeros((56, 70, 3), np.uint8)
        wanted = weakref.ref(photo)
        model = make(SMALL)
        model.infer([photo, photo], return_tensors=True)
        del photo
        assert wanted() is None
    finally:
        gc.enable()


def test_infer_optimizes(seed):
    model = make(SMALL)
    ready(model)
    assert model._optimized is None
    image = torch.rand(3, 40, 60)
    got = torch.from_numpy(model.infer(image))
    assert isinstance(model._optimized, OptimizedForward)
    with torch.no_grad():
        hook = model.depth_head.register_forward_hook(lambda *_: None)  # the modules
        close(got, torch.from_numpy(model.infer(image)), torch.float32)
        hook.remove()


def test_infer_checks_the_weights_once(seed, monkeypatch):
    """The check reads every value of every weight."""
    model, checks = make(SMALL), []
    image = torch.rand(3, 40, 60)
    model.infer(image)
    is_current = OptimizedForward.is_current
    monkeypatch.setattr(
        OptimizedForward, "is_current", lambda *args: checks.append(1) or is_current(*args)
    )
    model.infer(image)
    assert checks == [1]


def test_wrong_inputs_get_the_same_errors(seed):
    model = make(SMALL)
    ready(model)
    model.optimize()
    with torch.no_grad():
        for wrong in (torch.randn(1, 3, 15, 28), torch.randn(1, 3, 28, 28).double()):
            with pytest.raises(ValueError, match="the model"):
                model(wrong)


def test_where_nothing_can_be_packed_nothing_happens(caplog):
    model = dafast.DepthAnything(SMALL).double()
    with caplog.at_level("INFO", logger="dafast"):
        assert model.optimize() is model
    assert model._optimized is None
    assert "float64" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(bool(why_slow_int8()), reason=why_slow_int8() or "it is there")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8(dtype, seed):
    model = make(SMALL, dtype)
    ready(model)
    x = torch.randn(2, 3, 112, 70).to(dtype)
    with torch.no_grad():
        exact = model(x)
        got = model.optimize(int8=True)(x)
        first = model._optimized
        assert first.int8 and model.optimize()._optimized is first, "left out, it stays"
        model.infer(torch.rand(3, 40, 60))
        assert model._optimized is first
        floats = model.optimize(int8=False)(x)
    assert not torch.equal(got, floats)
    assert (got - exact).abs().max() <= 0.1 * exact.abs().max()
    close(floats, exact, dtype)


def test_int8_is_refused_without_a_kernel(monkeypatch):
    text = "no such thing here"
    monkeypatch.setattr("dafast.models.optimized_network.why_slow_int8", lambda: text)
    with pytest.raises(RuntimeError, match="no such thing here"):
        make(SMALL).optimize(int8=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts as Linux counts")
@pytest.mark.slow
def test_in_the_steady_state_no_memory_is_asked_of_the_system():
    """In a process of its own, whose malloc is as it was. The network's large maps come and go."""
    script = """
import resource, torch, dafast
from dafast.models.packed_cpu import why_not_packed
from dafast.devices import keep_freed_memory
model = dafast.DepthAnything("nano").eval()
x = torch.randn(1, 3, 336, 336)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with torch.inference_mode():
    if not why_not_packed(model):
        model.optimize()
        print(keep_freed_memory(), *[faults() for _ in range(12)])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    if not done.stdout:
        pytest.skip("nothing to pack")
    kept, *faults = done.stdout.split()
    if kept != "True":
        pytest.skip("not glibc's malloc")
    # The first calls fill the heap; now and then a thread's own stack or cache grows.
    assert sorted(map(int, faults[4:]))[4] <= 10, faults


@pytest.mark.parametrize("int8", [False, True])
def test_no_operation_runs_on_the_threads_of_pytorch(int8, seed):
    """They spin while they wait, which slows the threads that compute the rest."""
    model = make(SMALL)
    ready(model)
    if why_slow_packed(model.dtype) or (int8 and why_slow_int8()):
        pytest.skip("oneDNN multiplies here, on the threads of PyTorch")
    x = torch.randn(1, 3, 112, 126)  # with fewer tokens attention is PyTorch's
    model.optimize(int8=int8)
    with torch.inference_mode():
        model(x)  # packs, and caches the position embeddings
        with torch.profiler.profile() as seen:
            model._optimized(x)
    views = ("alias", "as_strided", "detach", "empty", "expand", "flatten", "narrow", "new_empty",
             "permute", "reshape", "select", "slice", "split", "squeeze", "to", "transpose",
             "unbind", "unflatten", "unsqueeze", "view")  # fmt: skip
    names = {e.key.removeprefix("aten::") for e in seen.key_averages() if "aten::" in e.key}
    assert names and not [name for name in names if not name.strip("_").startswith(views)]
