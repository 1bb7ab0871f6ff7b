"""Times calls on a GPU; with ``stub`` on the CPU, where nothing is captured or compiled."""

from __future__ import annotations

import gc
import shutil
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from bench.gpu.records import Records

_R = TypeVar("_R")
_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


class Meter:
    """Measures on one device.

    Args:
        stub: Whether to run on the CPU: a graph is then a plain call, and `size` gives the small
            sizes, and the backend that a CPU has. It shows that a section runs; its times mean
            nothing.
    """

    def __init__(self, stub: bool = False) -> None:
        self.stub = stub
        self.device = torch.device("cpu" if stub else "cuda")

    def size(self, real: _R, small: _T) -> _R | _T:
        """The real size, or the small one of the stub."""
        return small if self.stub else real

    def wait(self) -> None:
        """Waits until the device has done all work."""
        if not self.stub:
            torch.cuda.synchronize()

    def time(self, run: Callable[[], Any], budget_ms: int = 150) -> dict[str, float]:
        """Times a call.

        Returns:
            ``ms``, ``ms_low``, ``ms_high``: median and quartiles of the device's time, by events,
            with an empty L2 cache; ``wall_ms``: median time from the call to the end of its work
            as the host sees it.
        """
        found = {}
        if not self.stub:
            from triton.testing import do_bench

            quartiles = do_bench(run, warmup=30, rep=budget_ms, quantiles=[0.5, 0.25, 0.75])
            found = dict(zip(("ms", "ms_low", "ms_high"), quartiles, strict=True))
        walls: list[float] = []
        while len(walls) < 3 or (len(walls) < self.size(15, 3) and sum(walls) < budget_ms):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            walls.append(1e3 * (time.perf_counter() - start))
        wall = statistics.median(walls)
        return {**(found or dict.fromkeys(("ms", "ms_low", "ms_high"), wall)), "wall_ms": wall}

    def capture(self, run: Callable[[], _T]) -> Callable[[], _T]:
        """Captures the launches of a call in a CUDA graph; returns a function that replays it."""
        if self.stub:
            return run
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        current.wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        gc.disable()  # a compiled kernel that is collected ends the capture
        try:
            with torch.cuda.graph(graph):
                out = run()
        except BaseException:
            torch.cuda.set_stream(current)  # a capture that fails may leave its own
            raise
        finally:
            gc.enable()

        def replay() -> _T:
            graph.replay()
            return out

        return replay

    def compile(self, function: _F) -> _F:
        """`torch.compile` for fixed sizes."""
        if self.stub:
            return function
        torch.compiler.reset()
        return torch.compile(function, dynamic=False)

    def kernels(self, run: Callable[[], Any]) -> dict[str, float]:
        """Microseconds of the device in one call, by kernel and kind of copy."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        times = self.size(5, 1)
        kind = ProfilerActivity.CPU if self.stub else ProfilerActivity.CUDA
        run()
        self.wait()
        with profile(activities=[kind]) as profiler:
            for _ in range(times):
                run()
            self.wait()
        where = DeviceType.CPU if self.stub else DeviceType.CUDA
        field = "self_cpu_time_total" if self.stub else "self_device_time_total"
        return {
            e.key: getattr(e, field) / times
            for e in profiler.key_averages()
            if e.device_type == where
        }

    def peak_bytes(self, run: Callable[[], Any]) -> int:
        """Peak of the allocated bytes during a call, with those allocated before; 0 on a CPU."""
        if self.stub:
            run()
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def release(self) -> None:
        """Frees the memory of objects that are no longer used."""
        if not self.stub:
            gc.collect()
            torch.cuda.empty_cache()


def cuda_tool(name: str) -> str | None:
    """The path of a program of the CUDA toolkit, on the PATH or next to the others."""
    from torch.utils.cpp_extension import CUDA_HOME

    folder = Path(CUDA_HOME or "/usr/local/cuda", "bin")
    return shutil.which(name) or shutil.which(name, path=str(folder))


def attempt(records: Records, record: dict[str, Any], run: Callable[[], dict[str, Any]]) -> None:
    """Adds a record with the figures that ``run`` returns, or with the reason for none.

    A failure of one implementation, for example without memory, costs only its own record.
    """
    try:
        figures = run()
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        figures = {"why": f"{type(error).__name__}: {lines[0][:200] if lines else ''}"}
    records.add({**record, **figures})
