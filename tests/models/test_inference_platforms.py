"""`infer` on devices without float64, and on threads and in processes."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import dafast
from tests.tiny import tiny

TINY = tiny(image_size=56, grid_size=4)


def _photo(seed, shape=(60, 83, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --------------------------------------------------------------------- devices without float64


class _NoFloat64(TorchDispatchMode):
    """Makes "meta" a device: copies from it succeed, float64 on it is refused."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves, _ = tree_flatten((args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1
        there = any(isinstance(x, torch.Tensor) and x.is_meta for x in leaves)
        target = kwargs.get("device")
        if func is torch.ops.aten._to_copy.default and there and str(target) == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if there and "aten::upsample" in func.name():  # slow: in Python, and keeps the dtype
            return args[0].new_empty((*args[0].shape[:2], *args[1]))
        out = func(*args, **kwargs)
        for x in tree_flatten(out)[0]:
            if isinstance(x, torch.Tensor) and x.is_meta:
                assert x.dtype != torch.float64, f"{func} makes float64 on the device"
        return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fit", "padding", "dtype"),
    [
        ("relative", "pad", "replicate", torch.float32),
        ("relative", "official", "replicate", torch.float16),
        ("sigmoid", "official", "replicate", torch.float32),
        ("softplus", "pad", "reflect", torch.float16),
        ("normed", "pad", "constant", torch.float32),
        ("relative", "upper_bound", "replicate", torch.float32),
    ],
)
def test_no_float64_on_the_device(kind, fit, padding, dtype, seed, monkeypatch):
    """Apple's GPUs have none."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # not "meta"
    config = dataclasses.replace(
        TINY, max_depth=None if kind == "relative" else 10.0,
        bin_centers=kind if kind in ("softplus", "normed") else "",
        position_embedding="official" if fit == "pad" else "transformers",
    )  # fmt: skip
    model = dafast.DepthAnything(config).eval().to(dtype)
    photos = [_photo(seed), _photo(seed + 1, (150, 90, 3)).astype(np.float32) / 255]
    photos += [_photo(seed, (20, 30, 3)).astype(np.uint16) * 257, _photo(seed, (60, 83, 4)) / 255.0]
    with _NoFloat64():
        model.to("meta")
        infer = model.infer if kind == "relative" else model.infer_metric
        maps = infer(photos, fit=fit, padding=padding, flip=padding == "replicate")
        assert [m.shape for m in maps] == [p.shape[:2] for p in photos]
        infer(photos[0], fit=fit, size=112, max_tokens=30, return_tensors=True)
        if kind != "relative":
            infer(photos[2], fit=fit, fov=60)


def test_the_mode_refuses_float64():
    with _NoFloat64(), pytest.raises(AssertionError, match="makes float64"):
        torch.zeros(3, dtype=torch.float32, device="meta").double()


# ---------------------------------------------------------------------- threads and processes

_SHARED = """
import os, sys
import numpy as np, torch
import dafast

torch.set_num_threads(2)
model = dafast.DepthAnything("nano").eval()
photos = [np.random.default_rng(i).integers(0, 256, (56, 70, 3), dtype=np.uint8) for i in range(6)]

class Data(torch.utils.data.Dataset):
    def __init__(self, model):
        self.model = model
    def __len__(self):
        return len(photos)
    def __getitem__(self, index):
        return self.model.infer(photos[index], size=56)

def same(maps):
    return all(np.allclose(a, b, atol=1e-5) for a, b in zip(maps, expected, strict=True))

if __name__ == "__main__":
    expected = [model.infer(photo, size=56) for photo in photos]
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        os._exit(0 if same([model.infer(photo, size=56) for photo in photos]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for how in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(
            Data(model), batch_size=None, num_workers=1, multiprocessing_context=how
        )
        assert same(list(loader)), how
    print("good")
"""


def test_threads_share_a_model(seed):
    model = dafast.DepthAnything(TINY).eval()
    photos = [_photo(seed + i) for i in range(6)]
    expected = [model.infer(photo) for photo in photos]
    maps: list[np.ndarray] = [None] * len(photos)

    def work(first):
        for i in (first, first + 3):
            maps[i] = model.infer(photos[i])

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for got, wanted in zip(maps, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_processes_share_a_model(tmp_path):
    """After `infer`, as its documentation says; in a process of its own, where it could hang."""
    (tmp_path / "shared.py").write_text(_SHARED)
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "shared.py")],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.stdout.split() == ["good"], done.stderr
