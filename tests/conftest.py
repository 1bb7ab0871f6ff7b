"""Fixtures for all tests: fresh random inputs, from one seed that every failure prints."""

from __future__ import annotations

import functools
import gc
import os
import random
import secrets
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from dafast import DafastWarning
from tests.interpreter import patch_language_once_per_launch
from tests.notices import Notices

ROOT = Path(__file__).resolve().parents[1]

# Imports leave half a million objects that stay. Searching them for garbage would take a tenth of
# the time of all tests: no search while tests are collected, and later none of these objects.
gc.disable()

# One thread per process: the tests' networks are too small to gain from more, and pytest-xdist
# runs a process per core. The processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="seed of all random inputs, to repeat a failure"
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
    if config.option.seed is None:  # pytest-xdist hands the options to its workers after this
        config.option.seed = secrets.randbits(31)
    # Triton reads this when it is imported, so before any test does: the kernels are interpreted,
    # and only for the tests that ask for the backend "triton".
    if _why_no_gpu(config):
        os.environ.setdefault("TRITON_INTERPRET", "1")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        patch_language_once_per_launch()


@pytest.fixture
def notices(recwarn: pytest.WarningsRecorder) -> Notices:
    """Collects the warnings of dafast."""
    warnings.simplefilter("always", DafastWarning)
    return Notices(recwarn)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed}"


@pytest.fixture(scope="session")
def run_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run of pytest, fresh or that of ``--seed``, for fixtures of wider scope."""
    return request.config.option.seed


def _seed_generators(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> None:
    # A fixture of wider scope draws the same numbers whichever test needs it first.
    if fixturedef.scope != "function":
        _seed_generators(request.config.option.seed)


@pytest.fixture(autouse=True)
def seed(run_seed: int) -> int:
    """The seed of this run; every global generator starts from it in every test."""
    _seed_generators(run_seed)
    return run_seed


def _forget_choices() -> None:
    if dispatch := sys.modules.get("dafast.ops._dispatch"):
        dispatch.forget_choices()
    if camera := sys.modules.get("dafast.camera"):
        camera.warn_of_camera.cache_clear()


@pytest.fixture(autouse=True)
def _choices_of_one_test() -> Iterator[None]:
    """Ops keep their choices of backends, and a test may change the reasons for them.

    A warning of a camera comes once per process, and two tests may expect the same one.
    """
    _forget_choices()
    yield
    _forget_choices()


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """NumPy generator made from `seed`."""
    return np.random.default_rng(seed)


@pytest.fixture
def fixed_seed(seed: int) -> int:
    """Every global generator starts from 0: the test draws the same numbers in every run.

    For bounds on statistics of few random inputs, which hold for most draws but not for all.
    """
    _seed_generators(0)
    return 0


@pytest.fixture
def fixed_rng(fixed_seed: int) -> np.random.Generator:
    """NumPy generator made from `fixed_seed`."""
    return np.random.default_rng(fixed_seed)


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
    # With -m gpu the tests of parity run on a GPU, and only those: no thousand skips elsewhere.
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
    if report.failed:
        report.sections.append(("Random seed", f"repeat with --seed={item.config.option.seed}"))
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if reason := _why_no_gpu(config):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))
    if hasattr(config, "workerinput"):  # slow tests first, so that none is left at the end
        slow = {_unit(item.nodeid) for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: _unit(item.nodeid) not in slow)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@functools.cache
def _shares_fixtures(path: str) -> bool:
    return 'scope="module"' in (ROOT / path).read_text(encoding="utf-8")


def _unit(nodeid: str) -> str:
    """What one process of pytest-xdist takes at a time: a test, or a file with shared fixtures."""
    path = nodeid.partition("::")[0]
    return path if _shares_fixtures(path) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Fixtures of a module are made once: its tests run in one process, in their order."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit(nodeid)

    config.option.loadscopereorder = False  # in the order of collection
    return Scheduler(config, log)
