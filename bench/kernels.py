"""Times every op with every backend that this machine has: `python bench/kernels.py`.

The backends of a case run in turn, round after round, so that a machine that slows down slows
all of them; figures are medians. An op whose result differs from the reference gets no figure.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from rich.table import Table

from bench.registry import CASES, SMALL_CASES, Case
from dafast.ops import OPS, BackendError, use_backend


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _runs(case: Case, arguments: tuple[Any, ...], backward: bool) -> Callable[[], Any]:
    """A function that runs the op once, with its backward if asked for."""
    if not backward:

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return case.call(*arguments)

        return forward
    leaves = [arguments[i].detach().requires_grad_() for i in case.differentiable]
    full = list(arguments)
    for i, leaf in zip(case.differentiable, leaves, strict=True):
        full[i] = leaf

    def both() -> tuple[torch.Tensor, ...]:
        out = case.call(*full)
        return torch.autograd.grad(out.sum() if out.ndim else out, leaves)

    return both


def _error(case: Case, arguments: tuple[Any, ...], backend: str) -> float:
    """Largest error over max |reference|, where the reference computes in float32."""
    exact = tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
                  for a in arguments)  # fmt: skip
    with torch.no_grad():
        with use_backend("reference"):
            expected = case.call(*exact).double()
        with use_backend(backend):
            got = case.call(*arguments).double()
    return ((got - expected).abs().max() / expected.abs().max()).item()


def measure(
    case: Case, dtype: torch.dtype, device: torch.device, *, backward: bool, rounds: int, seed: int
) -> list[dict[str, Any]]:
    """Times one case with every backend that can serve it.

    Returns:
        One record per backend, the reference first: median and quartiles in milliseconds, the
        rate reached, the ratio to the reference, or why there is no figure.
    """
    arguments = case.make(seed, dtype, device)
    records: dict[str, dict[str, Any]] = {}
    runs = {}
    for backend in reversed(OPS[case.op].backends):
        record = {
            "op": case.op, "case": case.label, "dtype": str(dtype).removeprefix("torch."),
            "pass": "forward+backward" if backward else "forward", "backend": backend,
        }  # fmt: skip
        records[backend] = record
        try:
            record["error"] = _error(case, arguments, backend)
            if record["error"] > case.tolerance[dtype]:
                record["why"] = f"differs from the reference by {record['error']:.1e}"
                continue
            run = _runs(case, arguments, backward)
            with use_backend(backend):
                run()
        except BackendError as error:
            record["why"] = str(error)
            continue
        runs[backend] = run
    times: dict[str, list[float]] = {backend: [] for backend in runs}
    for _ in range(rounds):
        for backend, run in runs.items():
            with use_backend(backend):
                _synchronize(device)
                start = time.perf_counter()
                run()
                _synchronize(device)
                times[backend].append(time.perf_counter() - start)
    for backend, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        record = records[backend]
        record.update(ms=1e3 * median, ms_low=1e3 * low, ms_high=1e3 * high)
        if not backward:
            record["gflops"] = case.flops / median / 1e9
            record["gbytes"] = case.bytes(arguments[0].element_size()) / median / 1e9
    if "ms" in records["reference"]:
        for record in records.values():
            if "ms" in record:
                record["ratio"] = record["ms"] / records["reference"]["ms"]
    return list(records.values())


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    return {
        "device": name or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Command line; returns the records that it prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", action="append", choices=sorted(OPS), help="only this op")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each backend (at least 2)")
    parser.add_argument("--small", action="store_true", help="tiny inputs, to try the script")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the records to this file")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    records = []
    for case in SMALL_CASES if options.small else CASES:
        if options.op and case.op not in options.op:
            continue
        for dtype in case.dtypes:
            for backward in (False, True) if case.differentiable else (False,):
                records += measure(
                    case, dtype, device, backward=backward, rounds=max(2, options.rounds),
                    seed=options.seed,
                )  # fmt: skip
    about = machine(device)
    table = Table(title="  ".join(f"{k} {v}" for k, v in about.items()))
    for column in ("op", "case", "dtype", "pass", "backend", "ms", "quartiles", "ratio", "GFLOP/s",
                   "GB/s"):  # fmt: skip
        table.add_column(column)
    for r in records:
        figures = (
            [f"{r['ms']:.2f}", f"{r['ms_low']:.2f}..{r['ms_high']:.2f}", f"{r['ratio']:.2f}"]
            if "ms" in r
            else [r["why"], "", ""]
        )
        rates = [f"{r[key]:.1f}" if key in r else "" for key in ("gflops", "gbytes")]
        table.add_row(r["op"], r["case"], r["dtype"], r["pass"], r["backend"], *figures, *rates)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "records": records}, indent=1))
    return records


if __name__ == "__main__":
    main()
