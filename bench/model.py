"""Times the whole network: `python bench/model.py`; `--peers` adds other implementations.

It runs on a GPU if there is one, otherwise on the CPU (`--device`). `--busy 1` keeps one other
process busy, `--cpus 1.5` limits the implementations as a container of 1.5 processors does.

All implementations get the same random weights and the same image and run in turn. One whose map
differs from that of our float32 modules gets no figure. One that is not installed is listed with
the reason. They come from PyPI:
`pip install transformers onnxruntime onnx onnxscript openvino nncf`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench import targets
from bench.limits import LimitError, limited
from bench.peers import PEERS, Peer, Worker
from bench.timing import machine

# Largest accepted error over the largest value of the map. In 16 bits the error is the rounding of
# 12 to 24 blocks; float32 implementations differ by the order of their sums.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "int8": 1e-1}


def prepare(
    preset: str, height: int, width: int, folder: Path, options: argparse.Namespace
) -> np.ndarray:
    """Writes a random model in both layouts, and the images; returns the maps to compare with."""
    from dafast import DepthAnything, use_backend
    from dafast.models.checkpoint import save_pretrained

    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(options.seed)
    model = DepthAnything(preset).eval()
    x = torch.randn(options.batch, 3, height, width)
    with torch.no_grad():
        # A positive map of order 1, as a trained model predicts: a map of zeros compares nothing.
        model.depth_head.scratch.output_conv2[2].weight.mul_(10)
        model.depth_head.scratch.output_conv2[2].bias.fill_(1.0)
        with use_backend("reference"):
            expected = model.to(options.device)(x.to(options.device)).cpu().numpy()
    save_pretrained(model, folder / "dafast")
    save_pretrained(model, folder / "transformers", layout="transformers")
    np.save(folder / "image.npy", x.numpy())
    return expected


def measure(
    peers: Sequence[Peer], preset: str, size: tuple[int, int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Times the peers of each dtype in turn on one model and size; one record each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = prepare(preset, *size, folder, options)
        records = []
        for dtype in dict.fromkeys(peer.dtype for peer in peers):
            same = [peer for peer in peers if peer.dtype == dtype]
            records += _measure(same, preset, folder, expected, options)
    return records


def _measure(
    peers: Sequence[Peer], preset: str, folder: Path, expected: np.ndarray,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:  # fmt: skip
    records, workers = [], {}
    try:

        def start(peer: Peer) -> Worker:
            return Worker(peer, folder, folder / "image.npy", options.threads)

        # On a CPU one after the other: exporters and compilers use all of its memory.
        started = [start(peer) for peer in peers] if options.device == "cuda" else []
        for index, peer in enumerate(peers):
            record: dict[str, Any] = {
                "model": preset, "size": list(expected.shape[1:]), "batch": len(expected),
                "peer": peer.name, "dtype": peer.dtype, "ours": peer.ours,
            }  # fmt: skip
            records.append(record)
            worker = started[index] if started else start(peer)
            try:
                output = worker.output()
                error = float(np.abs(output - expected).max() / np.abs(expected).max())
                record["error"] = error
                record["over_spread"] = float(
                    np.sqrt(np.square(output - expected).mean()) / expected.std()
                )
                if not error <= TOLERANCE[peer.dtype]:
                    raise RuntimeError(f"differs from the float32 modules by {error:.1e}")
                workers[len(records) - 1] = worker
            except (RuntimeError, ValueError) as error:  # ValueError: a map of another shape
                record["why"] = str(error)
                worker.close()
        times: dict[int, list[float]] = {index: [] for index in workers}
        limit = limited([worker.process for worker in workers.values()], options.cpus)
        with busy(options.busy), limit:
            for _ in range(options.rounds):
                for index, worker in workers.items():
                    times[index] += worker.times(2)
    finally:
        for worker in workers.values():
            worker.close()
    for index, seconds in times.items():
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        records[index].update(ms=1e3 * median, ms_low=1e3 * low, ms_high=1e3 * high)
    for record in records:
        others = [r["ms"] for r in records
                  if r["dtype"] == record["dtype"] and not r["ours"] and "ms" in r]  # fmt: skip
        if "ms" in record and others:
            record["ratio"] = record["ms"] / min(others)
    return records


def _count() -> None:
    while True:
        pass


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keeps ``processes`` other processes busy, as neighbours on the same cores."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_count, daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def _shape(record: dict[str, Any]) -> str:
    return "x".join(map(str, [record.get("batch", 1), *record["size"]]))


def print_report(report: dict[str, Any]) -> None:
    """Prints the records as a table, and below it why others were not timed."""
    about = report["machine"]
    table = Table(title="  ".join(f"{k} {v}" for k, v in about.items()))
    for column in ("model", "size", "dtype", "implementation", "ms", "quartiles", "images/s",
                   "of the fastest peer", "error", "over spread"):  # fmt: skip
        table.add_column(column, overflow="fold")
    before = None
    for r in (record for record in report["records"] if "ms" in record):
        head = (r["model"], _shape(r), r["dtype"])
        if before is not None and head != before:
            table.add_section()
        figures = (
            f"{r['ms']:.4g}", f"{r['ms_low']:.4g}..{r['ms_high']:.4g}",
            f"{1e3 * r.get('batch', 1) / r['ms']:.4g}", f"{r['ratio']:.2f}" if "ratio" in r else "",
        )  # fmt: skip
        error = f"{r['error']:.0e}" if "error" in r else ""
        spread = f"{r['over_spread']:.1e}" if "over_spread" in r else ""
        name = ("", "", "") if head == before else head
        table.add_row(*name, r["peer"], *figures, error, spread)
        before = head
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(table)
    for r in (record for record in report["records"] if "ms" not in record):
        who = f"{r['peer']}, {r['model']}, {_shape(r)}, {r['dtype']}"
        console.print(f"not timed: {who}: {r['why']}", soft_wrap=True, markup=False)


def print_targets(report: dict[str, Any]) -> None:
    """Prints the records of the single steps, and the accuracy of fewer bits."""
    table = Table(title="Single steps: the ratio to the other implementation, and its target")
    for column in ("step", "ms", "against", "ms", "ratio", "target", "met"):
        table.add_column(column, overflow="fold")
    for r in report["targets"]:
        if "why" in r:
            table.add_row(r["what"], r["why"], r["against"], "", "", f"{r['target']:.2f}", "")
            continue
        met = "yes" if r["ratio"] <= r["target"] else "no"
        table.add_row(r["what"], f"{r['ms']:.2f}", r["against"], f"{r['against_ms']:.2f}",
                      f"{r['ratio']:.3f}", f"{r['target']:.2f}", met)  # fmt: skip
    accuracy = Table(title="Accuracy of fewer bits: nano on photos with measured depth")
    for column in ("photo", "format", "relative error", "delta_1"):
        accuracy.add_column(column, overflow="fold")
    for r in report["accuracy"]:
        if "why" in r:
            accuracy.add_row(r["photo"], r["why"], "", "")
        else:
            accuracy.add_row(r["photo"], r["format"], f"{r['relative_error']:.1e}",
                             f"{r['delta_1']:.4f}")  # fmt: skip
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(table, accuracy)


def plot(report: dict[str, Any], path: Path) -> None:
    """Draws the times: one panel per model, size and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for r in report["records"]:
        if "ms" in r:
            key = (r["model"], _shape(r), r["dtype"])
            panels.setdefault(key, []).append(r)
    if not panels:
        raise SystemExit("nothing to plot: no implementation got a figure")
    figure, axes = plt.subplots(
        -(-len(panels) // 2),
        2,
        figsize=(11, 2.1 * -(-len(panels) // 2)),
        squeeze=False,
        sharex=True,
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (key, records) in zip(axes.flat, panels.items(), strict=False):
        colors = ["#d1603d" if r["ours"] else "#4878a8" for r in records]
        spread = [[r["ms"] - r["ms_low"] for r in records],
                  [r["ms_high"] - r["ms"] for r in records]]  # fmt: skip
        axis.barh([r["peer"] for r in records], [r["ms"] for r in records], xerr=spread,
                  color=colors)  # fmt: skip
        axis.invert_yaxis()
        axis.set_title(" ".join(key), fontsize=9)
        axis.set_xlabel("ms", fontsize=8)
        axis.tick_params(labelsize=8)
    about = report["machine"]
    threads = f", {about['threads']} threads" if "threads" in about else ""
    figure.suptitle(f"{about['device']}{threads}, torch {about['torch']}, {about['date']}",
                    fontsize=9)  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns the report that it prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="preset; vits by default")
    parser.add_argument("--size", action="append", type=_size,
                        help="HEIGHTxWIDTH, multiples of 14; 518x518 by default")  # fmt: skip
    parser.add_argument(
        "--dtype", action="append", choices=sorted(TOLERANCE), help="only this dtype"
    )
    parser.add_argument("--peers", action="store_true", help="also time other implementations")
    parser.add_argument("--only", action="append", metavar="NAME",
                        help="only implementations whose name contains this")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"),
                        default="cuda" if torch.cuda.is_available() else "cpu")  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, help="images in one run")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of two runs each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--busy", type=int, default=0, metavar="N",
                        help="keep N other processes busy while timing")  # fmt: skip
    parser.add_argument("--cpus", type=float, default=0.0, metavar="N", help="limit the timed "
                        "processes to N processors, as a container does; needs root")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parser.add_argument("--plot", type=Path, help="also plot the times to this file")
    options = parser.parse_args(argv)
    chosen = [
        peer for peer in PEERS
        if peer.device == options.device and (peer.ours or options.peers)
        and (not options.dtype or peer.dtype in options.dtype)
        and (not options.only or any(part in peer.name for part in options.only))
    ]  # fmt: skip
    if not chosen:
        parser.error("no implementation matches these options")
    records = []
    try:
        with limited([], options.cpus):  # before models are prepared
            pass
        for preset in options.model or ["vits"]:
            for size in options.size or [(518, 518)]:
                records += measure(chosen, preset, size, options)
    except LimitError as error:
        parser.error(str(error))
    about = machine(torch.device(options.device))
    if options.device == "cpu":
        about["threads"] = options.threads
    if options.busy:
        about["busy processes"] = options.busy
    if options.cpus:
        about["processors"] = options.cpus
    for module in ("transformers", "onnxruntime", "openvino", "nncf"):
        about[module] = _version(module) if options.peers else ""
    report = {"machine": {k: v for k, v in about.items() if v}, "records": records}
    print_report(report)
    if options.peers and not options.only and options.device == "cpu":
        torch.set_num_threads(options.threads)
        report["targets"] = list(targets.measure(max(2, options.rounds), options.seed))
        report["accuracy"] = targets.accuracy()
        print_targets(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(report, options.plot)
    return report


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()) or int(height) % 14 or int(width) % 14:
        raise argparse.ArgumentTypeError(
            f"{text!r}: HEIGHTxWIDTH with multiples of 14, for example 518x518"
        )
    return int(height), int(width)


def _version(module: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(module)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
