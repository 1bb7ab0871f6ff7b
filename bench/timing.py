"""Times the backends of an op in turn, after a check of their parity."""

from __future__ import annotations

import contextlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from datetime import date
from typing import Any

import torch

from bench.registry import Case
from dafast.ops import OPS, BackendError, use_backend

SDPA_VARIANTS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")

Contender = tuple[Callable[[], AbstractContextManager[Any]], Callable[..., torch.Tensor]]
"""A context that forces an implementation, and the function to call in it."""


@contextlib.contextmanager
def sdpa_variant(variant: str) -> Iterator[None]:
    """SDPA with one of its implementations, one of `SDPA_VARIANTS`."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with use_backend("sdpa"), sdpa_kernel(getattr(SDPBackend, variant)):
        yield


def _contenders(case: Case, device: torch.device) -> dict[str, Contender]:
    """Every implementation of a case on this device, the reference first."""

    def force(backend: str) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: use_backend(backend)

    found: dict[str, Contender] = {
        backend: (force(backend), case.call) for backend in reversed(OPS[case.op].backends)
    }
    if device.type == "cuda":
        torch.compiler.reset()  # otherwise a second shape is compiled with dynamic sizes
        compiled = torch.compile(case.call, dynamic=False)
        found["reference compiled"] = (force("reference"), compiled)
        if "sdpa" in found:
            for variant in SDPA_VARIANTS:
                name = "sdpa " + variant.removesuffix("_ATTENTION").lower()
                found[name] = (lambda variant=variant: sdpa_variant(variant), case.call)
    return found


def _flat(outputs: Any) -> list[torch.Tensor]:
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def largest_error(got: Any, expected: Any, outliers: float = 0.0) -> float:
    """Largest error over max |expected|, the worst of all outputs; inf if one is not finite.

    The fraction ``outliers`` of the errors is ignored if none is larger than twice the largest
    value, which is the error of a sign that rounding changed.
    """
    worst = []
    for g, e in zip(_flat(got), _flat(expected), strict=True):
        g, e = g.double().flatten(), e.double().flatten()
        if not g.isfinite().all():
            return math.inf
        largest = e.abs().max().clamp_min(1e-30)
        errors = (g - e).abs().topk(1 + int(outliers * g.numel())).values / largest
        worst.append(errors[-1 if errors[0] <= 2.1 else 0].item())
    return max(worst)


def _times(runs: dict[str, Any], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every run, in turn, so that a change of the machine's speed affects all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    if device.type == "cuda":
        from triton.testing import do_bench

        for _ in range(max(2, rounds // 5)):
            for name, (context, run) in runs.items():
                with context():
                    all_ms = do_bench(run, warmup=10, rep=40, return_mode="all")
                times[name] += [ms / 1e3 for ms in all_ms]
        return times
    for _ in range(rounds):
        for name, (context, run) in runs.items():
            with context():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return times


def _peak_memory(run: Callable[[], Any]) -> int:
    """Peak of the bytes that a run allocates, without those allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(
    case: Case, dtype: torch.dtype, device: torch.device, *, backward: bool, rounds: int, seed: int,
    leave_out: Collection[str] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Times one case with every implementation that can serve it.

    Returns:
        One record per implementation, the reference first: median and quartiles in milliseconds,
        the rate, the ratio to the reference, peak memory on a GPU; or the reason for no figure.
    """
    arguments = case.make(seed, dtype, device)
    exact = tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
                  for a in arguments)  # fmt: skip
    with use_backend("reference"):
        make = case.forward_backward if backward else case.forward
        expected = make(exact)()
    records: dict[str, dict[str, Any]] = {}
    runs: dict[str, Any] = {}
    for name, (context, call) in _contenders(case, device).items():
        if name in leave_out:
            continue
        record: dict[str, Any] = {
            "op": case.op, "case": case.label, "dtype": str(dtype).removeprefix("torch."),
            "pass": "forward+backward" if backward else "forward", "backend": name,
        }  # fmt: skip
        records[name] = record
        run = make(arguments, call)
        try:
            with context():
                record["error"] = largest_error(run(), expected, case.outliers if backward else 0.0)
                if device.type == "cuda":
                    record["peak_bytes"] = _peak_memory(run)
        except BackendError as error:
            record["why"] = str(error)
        except RuntimeError as error:  # an SDPA variant that does not support these inputs
            if not name.startswith("sdpa "):
                raise
            record["why"] = str(error).splitlines()[0]
        else:
            # Gradients sum the errors of the outputs: four times the bound of the forward.
            if not record["error"] <= case.tolerance[dtype] * (4 if backward else 1):
                record["why"] = f"differs from the reference by {record['error']:.1e}"
            else:
                runs[name] = (context, run)
    for name, values in _times(runs, rounds, device).items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        record = records[name]
        record.update(ms=1e3 * median, ms_low=1e3 * low, ms_high=1e3 * high)
        # The backward of attention is 2.5 forwards: five products instead of two.
        flops = case.flops * (3.5 if backward and case.op.startswith("flash") else 1)
        if not backward or case.op.startswith("flash"):
            record["gflops"] = flops / median / 1e9
        if not backward:
            record["gbytes"] = case.bytes(dtype.itemsize) / median / 1e9
    if "ms" in records.get("reference", {}):
        for record in records.values():
            if "ms" in record:
                record["ratio"] = record["ms"] / records["reference"]["ms"]
    return list(records.values())


def peaks(device: torch.device) -> dict[str, float]:
    """Peak rates of this device: a copy in GB/s, matrix products in GFLOP/s by dtype."""
    if device.type != "cuda":
        return {}
    from triton.testing import do_bench

    x = torch.empty(2**28, device=device)
    y = torch.empty_like(x)
    found = {"copy_gbytes": 2 * x.nbytes / do_bench(lambda: y.copy_(x), return_mode="median") / 1e6}
    n = 8192
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a = torch.randn(n, n, device=device, dtype=dtype)
        ms = do_bench(lambda a=a: a @ a, return_mode="median")
        found[f"matmul_{str(dtype).removeprefix('torch.')}_gflops"] = 2 * n**3 / ms / 1e6
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The machine and the versions of the figures."""
    about: dict[str, Any] = {}
    if device.type == "cuda":
        about["device"] = torch.cuda.get_device_name()
        about["cuda"] = torch.version.cuda or f"hip {torch.version.hip}"
        about["float32_matmul"] = torch.get_float32_matmul_precision()
    else:
        about["device"] = platform.processor() or platform.machine()
        about["capability"] = torch.backends.cpu.get_cpu_capability()
        about["threads"] = torch.get_num_threads()
    try:
        import triton

        about["triton"] = triton.__version__
    except ImportError:
        about["triton"] = "not installed"
    return {
        **about, "torch": torch.__version__, "python": platform.python_version(),
        "date": date.today().isoformat(),
    }  # fmt: skip
