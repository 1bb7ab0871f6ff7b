"""Fixtures for all tests: fresh random inputs whose seed is printed when a test fails."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="seed of the random inputs, to repeat a failure"
    )


def _gpu_is_asked_for(config: pytest.Config) -> bool:
    return "gpu" in config.option.markexpr and "not gpu" not in config.option.markexpr


def _why_no_gpu(config: pytest.Config) -> str:
    """Why the tests marked ``gpu`` do not run, an empty string if they do."""
    if not torch.cuda.is_available():
        return "needs a CUDA GPU; PyTorch sees none here"
    if not _gpu_is_asked_for(config):
        return "runs with -m gpu: in one process kernels are either compiled or interpreted"
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        return "needs compiled kernels; unset TRITON_INTERPRET"
    return ""


def pytest_configure(config: pytest.Config) -> None:
    # Triton reads this when it is imported, so before any test does: the kernels are interpreted,
    # and only for the tests that ask for the backend "triton".
    if _why_no_gpu(config):
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for every test (or that of ``--seed``), set for torch's global generator too."""
    value = request.config.getoption("--seed")
    if value is None:
        value = secrets.randbits(31)
    request.node.stash[SEED] = value
    torch.manual_seed(value)
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """NumPy generator made from `seed`."""
    return np.random.default_rng(seed)


class _MadeOn(TorchFunctionMode):
    """New tensors go to a device, random ones drawn on the CPU: the same numbers everywhere."""

    makers = frozenset(
        (torch.arange, torch.empty, torch.full, torch.ones, torch.rand, torch.randint, torch.randn,
         torch.tensor, torch.zeros)
    )  # fmt: skip

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in self.makers and kwargs.get("device") is None:
            out = out.detach().to(self.device).requires_grad_(out.requires_grad)
        return out


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # With -m gpu the tests of parity run on a GPU, and those alone: no thousand skips elsewhere.
    if "device" in metafunc.fixturenames and _gpu_is_asked_for(metafunc.config):
        metafunc.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a test of parity runs: what it makes lies there, so that it compares on one device.

    The CPU, where Triton's kernels are interpreted; with ``-m gpu`` the GPU.
    """
    name = getattr(request, "param", "cpu")
    if name == "cpu":
        yield name
        return
    callspec = getattr(request.node, "callspec", None)
    if callspec and callspec.params.get("backend") == "cpp":
        pytest.skip("the backend's kernels run on the CPU")
    # References in true float32; cuDNN convolves in TF32 by default.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with _MadeOn(name):
        yield name


@pytest.fixture
def tf32() -> Iterator[None]:
    """Products of float32 in TF32, where the device has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.failed and SEED in item.stash:
        report.sections.append(("Random seed", f"repeat with --seed={item.stash[SEED]}"))
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reason = _why_no_gpu(config)
    if not reason:
        return
    skip = pytest.mark.skip(reason=reason)
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
