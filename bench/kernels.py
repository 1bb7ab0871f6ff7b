"""Times every op with every backend that this machine has: `python bench/kernels.py`.

A backend whose result or gradient differs from the reference gets no figure. Figures are medians;
the backends run in turn. `--static` needs no GPU: it compiles the Triton kernels for an
architecture and reports their registers, instructions and traffic.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from rich.table import Table

from bench.registry import CASES, SMALL_CASES, STATIC_CASES, Case
from bench.timing import machine, measure, peaks
from dafast.ops import OPS

WITHOUT_PRODUCTS = (
    "affine_invariant_loss",
    "feature_alignment_loss",
    "add_layer_norm",
    "bias_gelu",
    "bias_relu_add",
    "quantize_fp8",
    "add_layer_norm_fp8",
)
WITHOUT_E4M3 = ("sm_80", "sm_86", "gfx942")
LOOP_KINDS = ("matrix", "exp", "float", "convert", "integer", "shuffle", "shared", "load", "store",
              "barrier", "spill", "other")  # fmt: skip


def timed(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measures the cases; returns the machine, its peaks and all records.

    ``--json`` is written after every case, so that an interrupted run keeps its records.
    """
    records: list[dict[str, Any]] = []
    report = {"machine": machine(device), "peaks": peaks(device), "records": records}
    for case in SMALL_CASES if options.small else CASES:
        if options.op and case.op not in options.op:
            continue
        if case.gpu_only and device.type != "cuda":
            continue
        for dtype in case.dtypes:
            print(case.name(dtype), file=sys.stderr, flush=True)
            for backward in (False, True) if case.differentiable else (False,):
                records += measure(
                    case, dtype, device, backward=backward, rounds=max(2, options.rounds),
                    seed=options.seed, leave_out=options.leave_out or (),
                )  # fmt: skip
            if options.json:
                options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _share(record: dict[str, Any], at_best: dict[str, float]) -> str:
    """Per cent of the device's measured peak, of memory or matrix units, the higher one."""
    shares = []
    if "gbytes" in record and "copy_gbytes" in at_best:
        shares.append(record["gbytes"] / at_best["copy_gbytes"])
    if "gflops" in record and (peak := at_best.get(f"matmul_{record['dtype']}_gflops")):
        shares.append(record["gflops"] / peak)
    return f"{100 * max(shares):.0f}%" if shares else ""


def _console() -> Console:
    """A console that is wide enough for the tables if the output is a file or a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=170)


def print_timed(report: dict[str, Any]) -> None:
    """Prints the records of `timed` as a table, and below it why others were not timed."""
    about = {**report["machine"], **{k: f"{v:.0f}" for k, v in report["peaks"].items()}}
    table = Table(title="  ".join(f"{k} {v}" for k, v in about.items()))
    for column in ("op", "case", "dtype", "pass", "backend", "ms", "quartiles", "ratio", "GFLOP/s",
                   "GB/s", "of peak", "MB"):  # fmt: skip
        table.add_column(column, overflow="fold")
    before = None
    for r in (record for record in report["records"] if "ms" in record):
        head = (r["op"], r["case"], r["dtype"], r["pass"])
        figures = (
            f"{r['ms']:.3f}", f"{r['ms_low']:.3f}..{r['ms_high']:.3f}", f"{r.get('ratio', 0):.3f}"
        )  # fmt: skip
        rates = [f"{r[key]:.1f}" if key in r else "" for key in ("gflops", "gbytes")]
        memory = f"{r['peak_bytes'] / 1e6:.1f}" if "peak_bytes" in r else ""
        if before is not None and head != before:
            table.add_section()
        shown = head if head != before else ("", "", "", "")
        table.add_row(*shown, r["backend"], *figures, *rates, _share(r, report["peaks"]), memory)
        before = head
    console = _console()
    console.print(table)
    for reason in dict.fromkeys(r["why"] for r in report["records"] if "ms" not in r):
        console.print(f"not timed: {reason}", soft_wrap=True, markup=False, highlight=False)


def _static_choice(options: argparse.Namespace) -> Iterator[tuple[Case, torch.dtype, str]]:
    """The cases, dtypes and precisions of float32 products that ``--static`` inspects."""
    sampled = set()
    for case in STATIC_CASES:
        if (options.op and case.op not in options.op) or (options.sample and case.op in sampled):
            continue
        if case.e4m3 and options.arch in WITHOUT_E4M3:
            continue
        sampled.add(case.op)
        for dtype in case.dtypes:
            if options.dtype and str(dtype).removeprefix("torch.") not in options.dtype:
                continue
            products = dtype == torch.float32 and case.op not in WITHOUT_PRODUCTS
            for precision in ("highest", "high") if products else ("highest",):
                yield case, dtype, precision


def static(options: argparse.Namespace) -> dict[str, Any]:
    """Compiles the cases for one architecture and prints their kernels one by one.

    ``--json`` is written after every case, so that an interrupted run keeps its records.
    """
    # Imported here: they need Triton, without its interpreter.
    os.environ.pop("TRITON_INTERPRET", None)
    from bench import static, traffic

    about = machine(torch.device("cpu"))
    records: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "arch": options.arch, "card": static.CARDS[options.arch].name,
        **{k: about[k] for k in ("triton", "torch", "date") if k in about}, "records": records,
    }  # fmt: skip
    console = _console()
    console.print(
        f"Compiled for {report['arch']} by Triton {report['triton']}. The bound follows from "
        f"the data sheet of {report['card']}; it is not a measurement."
    )
    choice = list(_static_choice(options))
    counted = set()
    with traffic.Counter(options.arch) if not options.no_traffic else nullcontext() as counter:
        for i, (case, dtype, precision) in enumerate(choice):
            print(f"{i + 1}/{len(choice)} {case.name(dtype)}", file=sys.stderr, flush=True)
            torch.set_float32_matmul_precision(precision)
            record = {**static.inspect(case, dtype, options.arch), "precision": precision}
            torch.set_float32_matmul_precision("highest")
            # Interpreting is slow: count the first case of every op, and all small ones.
            if counter and precision == "highest" and (case.op not in counted or case.flops < 3e7):
                record["traffic"] = counter.count(case.name(dtype))
                record["eager_operations"] = static.eager_operations(case, dtype)
                counted.add(case.op)
            records.append(record)
            _print_static(console, record)
            if options.json:
                options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _title(r: dict[str, Any]) -> str:
    tf32 = " as TF32" if r["precision"] == "high" else ""
    return f"{r['op']}  {r['case']}  {r['dtype']}{tf32}"


def _print_static(console: Console, r: dict[str, Any]) -> None:
    """Prints a record of `static`: its launches and their total."""
    table = Table(title=_title(r), title_justify="left")
    for column in ("kernel", "grid", "warps", "stages", "registers", "spills", "shared",
                   "occupancy", "main loop", "overlap", "MB read", "MB written"):  # fmt: skip
        table.add_column(column, overflow="fold")
    traffic = r.get("traffic", [{}] * len(r["launches"]))
    for launch, moved in zip(r["launches"], traffic, strict=True):
        loop = launch["loop"]
        mix = "  ".join(f"{k} {loop[k]}" for k in LOOP_KINDS if loop.get(k))
        name = launch["kernel"].removeprefix(f"_{r['op']}").strip("_")
        over = f"{launch['overlap']} of {loop['exp']}" if launch["overlap"] else ""
        table.add_row(
            name, "x".join(map(str, launch["grid"])),
            str(launch["num_warps"]), str(launch["num_stages"]), str(launch["registers"]),
            str(launch["spills"]), str(launch["shared"]), f"{launch['occupancy']:.0%}", mix, over,
            *(f"{moved[key] / 1e6:.2f}" if moved else "" for key in ("read", "written")),
        )  # fmt: skip
    console.print(table)
    summary = f"{len(r['launches'])} launches"
    if "eager_operations" in r:
        summary += f", the eager reference dispatches {r['eager_operations']} operations"
    summary += f"; the forward must move {r['bytes'] / 1e6:.2f} MB"
    console.print(f"{summary}; bound {r['forward_bound_us']:.1f} us\n")


def plot(report: dict[str, Any], path: Path) -> None:
    """Draws the times of `timed`: one panel per op, case and pass."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in report["records"]:
        if "ms" in record:
            key = (record["op"], record["case"], record["dtype"], record["pass"])
            panels.setdefault(key, []).append(record)
    if not panels:
        raise SystemExit("nothing to plot: no implementation got a figure")
    columns = 2
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(13, 1.9 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (key, records) in zip(axes.flat, panels.items(), strict=False):
        names = [record["backend"] for record in records]
        values = [record["ms"] for record in records]
        spread = [
            [r["ms"] - r["ms_low"] for r in records], [r["ms_high"] - r["ms"] for r in records],
        ]  # fmt: skip
        axis.barh(names, values, xerr=spread, color="#4878a8")
        axis.invert_yaxis()
        axis.set_title(" ".join(key), fontsize=8)
        axis.set_xlabel("ms", fontsize=8)
        axis.tick_params(labelsize=8)
    about = report["machine"]
    figure.suptitle(f"{about['device']}, torch {about['torch']}, {about['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns the report that it prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", action="append", choices=sorted(OPS), help="only this op")
    parser.add_argument(
        "--rounds", type=int, default=15, help="rounds of each backend (at least 2)"
    )
    parser.add_argument("--leave-out", action="append", metavar="BACKEND",
                        help="skip this one, e.g. 'reference compiled'")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="tiny inputs, to test the script")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parser.add_argument("--plot", type=Path, help="also plot the times to this file")
    parser.add_argument(
        "--static", action="store_true", help="compile and inspect the kernels; time nothing"
    )
    parser.add_argument(
        "--arch", default="sm_90", help="architecture that --static compiles for",
        choices=("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942"),
    )  # fmt: skip
    parser.add_argument("--dtype", action="append", help="with --static: only this dtype")
    parser.add_argument("--sample", action="store_true",
                        help="with --static: only the first case of every op")  # fmt: skip
    parser.add_argument("--no-traffic", action="store_true",
                        help="with --static: do not count bytes (minutes)")  # fmt: skip
    options = parser.parse_args(argv)
    if "reference" in (options.leave_out or ()):
        parser.error("--leave-out reference: the others are compared with it")
    if options.static:
        report = static(options)
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Convolutions in full float32, as matrix products are: cuDNN's default is TF32.
        torch.backends.cudnn.allow_tf32 = torch.get_float32_matmul_precision() != "highest"
        report = timed(options, device)
        print_timed(report)
        if options.plot:
            plot(report, options.plot)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
