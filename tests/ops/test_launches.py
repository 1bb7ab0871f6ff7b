"""How a kernel finds its compiled code again, and on what it could be launched; without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="the kernels are launched with Triton")

from dafast.kernels import runtime  # noqa: E402

from dafast.ops import _triton  # noqa: E402


class Jitted:
    """Stands for what `triton.jit` makes; `searched` has the launches that Triton looked up."""

    params = tuple(
        SimpleNamespace(name=name, do_not_specialize=name == "rows", default=default)
        for name, default in (("x", None), ("rows", None), ("scale", None), ("BLOCK", 64))
    )
    note = "of the kernel"

    def __init__(self) -> None:
        self.searched: list[tuple[Any, ...]] = []
        self.replayed: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> Any:
            self.searched.append((grid, args, options))
            return SimpleNamespace(
                run=lambda *given: self.replayed.append(given), function="code", packed_metadata="m"
            )

        return launch


@pytest.fixture
def jitted(monkeypatch: pytest.MonkeyPatch) -> Jitted:
    driver = SimpleNamespace(
        get_current_stream=lambda device: f"stream {device}",
        get_current_target=lambda: SimpleNamespace(backend="cuda", arch=90),
        utils=SimpleNamespace(get_device_properties=lambda device: {"multiprocessor_count": 132}),
    )
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=driver))
    monkeypatch.setattr(runtime, "_several_gpus", lambda: False)
    return Jitted()


def test_a_known_launch_is_replayed_without_a_search(jitted: Jitted) -> None:
    kernel, x = runtime.Kernel(jitted), torch.zeros(16)
    kernel[3,](x, 7, 0.5, num_warps=4)
    assert jitted.searched == [((3,), (x, 7, 0.5), {"num_warps": 4})] and not jitted.replayed
    other = torch.ones(16)
    kernel[5, 2](other, 8, 0.25, num_warps=4)  # the same code serves other numbers
    assert len(jitted.searched) == 1
    expected = (5, 2, 1, "stream 0", "code", "m", None, None, None, other, 8, 0.25, 64)
    assert jitted.replayed == [expected]
    assert kernel.note == "of the kernel"


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(16, dtype=torch.bfloat16), 7, 0.5),
        (torch.zeros(17)[1:], 7, 0.5),  # another alignment
        (torch.zeros(16), 2**31, 0.5),  # needs 64 bits
        (torch.zeros(16), 7, True),
    ],
)
def test_what_the_code_depends_on_is_searched_for(jitted: Jitted, arguments: Any) -> None:
    kernel = runtime.Kernel(jitted)
    kernel[1,](torch.zeros(16), 7, 0.5, num_warps=4)
    for options in ({"num_warps": 4}, {"num_warps": 8}, {"BLOCK": 32}):
        kernel[1,](*arguments, **options)
    assert len(jitted.searched) == 4 and not jitted.replayed
    kernel[1,](*arguments, BLOCK=32)
    assert jitted.replayed[0][-1] == 32


def test_a_profiler_sees_every_launch(jitted: Jitted, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x = runtime.Kernel(jitted), torch.zeros(16)
    kernel[1,](x, 7, 0.5)
    monkeypatch.setattr(triton.knobs.runtime.launch_enter_hook, "calls", [lambda _: None])
    kernel[1,](x, 7, 0.5)
    assert len(jitted.searched) == 2 and not jitted.replayed


def test_the_memory_of_launches_is_bounded(jitted: Jitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_MAX_LAUNCHES", 4)
    kernel, x = runtime.Kernel(jitted), torch.zeros(16)
    for warps in range(9):
        kernel[1,](x, 7, 0.5, num_warps=warps)
        assert 1 <= len(kernel._launches) <= 4
    kernel[1,](x, 7, 0.5, num_warps=8)
    assert len(jitted.searched) == 9 and len(jitted.replayed) == 1


def test_kernels_are_wrapped_only_where_they_are_compiled_for_nvidia(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton, "jit", lambda fn, **options: Jitted())
    monkeypatch.setattr(runtime, "INTERPRET", True)
    assert isinstance(runtime.kernel(len), Jitted)
    monkeypatch.setattr(runtime, "INTERPRET", False)
    wrapped = runtime.kernel(do_not_specialize=["rows"])(len)
    assert isinstance(wrapped, runtime.Kernel)
    assert wrapped._specialized == [True, False, True, True]


def test_the_driver_says_the_target(jitted: Jitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "INTERPRET", False)
    caches = runtime._target_of, runtime._processors_of
    for cache in caches:
        cache.cache_clear()
    try:
        assert runtime.target() == ("cuda", 90) and runtime.processors() == 132
        with runtime.assume_target("hip", "gfx942"):
            assert runtime.target() == ("hip", "gfx942")
    finally:
        for cache in caches:
            cache.cache_clear()
    monkeypatch.setattr(runtime, "INTERPRET", True)
    assert runtime.target() == ("interpreter", 0) and runtime.processors() == 0


def test_gpus_that_triton_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    _triton._gpu_reason.cache_clear()
    try:
        device = torch.device("cuda", 0)
        why = "needs compute capability 8.0; the GPU has 7.5"
        assert _triton.why_not(device) == why
        _triton._gpu_reason.cache_clear()
        capability = (8, 0)
        assert _triton.why_not(device) == ""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert _triton.why_missing() == ""
    finally:
        _triton._gpu_reason.cache_clear()
    assert "the tensors are on mps" in _triton.why_not(torch.device("mps"))


@pytest.mark.parametrize("found", ["cpu", "cuda", None])
def test_compiled_kernels_need_a_driver_for_the_cpu(
    found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Driver:
        def get_active_torch_device(self) -> torch.device:
            if found is None:
                raise RuntimeError("0 active drivers")
            return torch.device(found)

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=Driver()))
    why = _triton.why_not(torch.device("cpu"))
    assert (why == "") == (found == "cpu")
    assert found == "cpu" or "TRITON_INTERPRET=1" in why


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "_import_reason", lambda: "no triton; pip install 'x'")
    assert _triton.why_not(torch.device("cpu")) == "no triton; pip install 'x'"
