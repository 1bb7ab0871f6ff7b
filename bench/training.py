"""Times a training step on a CPU: `python bench/training.py`.

Each implementation trains in its own process, in turn: forward, loss, backward, clipping and AdamW
on the same random weights, images and labels.

    dafast            as `dafast train`: its model, loss and optimizer
    dafast, BASELINE  the same from another checkout (`--baseline FOLDER`)
    transformers      DepthAnythingForDepthEstimation, the loss in plain PyTorch, torch.optim.AdamW

A loss of the first step that differs from that of the first implementation gets no figure.
Processor time is that of all threads; it depends less on other work on the machine.

`--nano` instead times `dafast train --config nano-teacher` on a few rendered scenes, here and in
the baseline, in images a second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# A process of the baseline has another checkout on its path.
sys.path.insert(0, os.environ.get("DAFAST_BENCH_ROOT", str(Path(__file__).resolve().parent.parent)))

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


def _step(name: str, options: argparse.Namespace) -> Callable[[], float]:
    """The step of an implementation; it returns the loss."""
    from dafast import DepthAnything
    from dafast.ops.affine_invariant_loss import affine_invariant_loss_reference

    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch, options.size, options.size)
    images = torch.randn(shape[0], 3, *shape[1:], generator=generator)
    target = torch.rand(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) > 0.1
    if name == "transformers":
        from transformers import DepthAnythingForDepthEstimation

        hf = DepthAnythingForDepthEstimation.from_pretrained(options.work + "/transformers").train()
        optimizer: Any = torch.optim.AdamW(hf.parameters(), lr=1e-5)
        model: torch.nn.Module = hf

        def loss_of(x: torch.Tensor) -> torch.Tensor:
            return affine_invariant_loss_reference(hf(x).predicted_depth.float(), target, mask)
    else:
        from dafast import devices
        from dafast.losses import AffineInvariantLoss
        from dafast.training.config import OptimSection
        from dafast.training.optimizers import build_optimizer
        from dafast.training.starts import prepare_model

        # As `dafast train`; a baseline may be older.
        getattr(devices, "keep_freed_memory", lambda: None)()
        ours = DepthAnything.from_pretrained(options.work + "/dafast", dtype=torch.float32)
        model = ours = prepare_model(ours, torch.device("cpu"), channels_last=True)
        images = images.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(ours, OptimSection())
        loss = AffineInvariantLoss()

        def loss_of(x: torch.Tensor) -> torch.Tensor:
            return loss(ours(x).float(), target, mask)

    half = options.dtype == "bfloat16"

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss_of(images)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def work(options: argparse.Namespace) -> None:
    """One implementation: takes a step for each line on stdin, and prints a line of JSON."""
    torch.set_num_threads(options.threads)
    step = _step(options.name, options)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        loss = step()
        values = (time.perf_counter() - start, time.process_time() - cpu, loss)
        print("step", *values, flush=True)


class Worker:
    """An implementation in its own process."""

    def __init__(self, name: str, root: Path, folder: Path, options: argparse.Namespace) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads),
                       "DAFAST_BENCH_ROOT": str(root), "HF_HUB_OFFLINE": "1"}  # fmt: skip
        command = [sys.executable, __file__, "--work", str(folder), "--name", name]
        for key in ("batch", "size", "threads", "seed", "dtype"):
            command += [f"--{key}", str(getattr(options, key))]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self) -> tuple[float, float, float]:
        """Takes a step; returns its seconds, processor time and loss.

        Raises:
            RuntimeError: If the process has ended.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except OSError as error:
            raise RuntimeError("the process died; its message is above") from error
        for line in self._process.stdout:
            if line.startswith("step "):
                seconds, cpu, loss = map(float, line.split()[1:])
                return seconds, cpu, loss
        raise RuntimeError("the process died; its message is above")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps of all implementations in turn; one record each."""
    from dafast import DepthAnything
    from dafast.models.saving import save_pretrained

    peers = [("dafast", "dafast", ROOT), ("transformers", "transformers", ROOT)]
    if options.baseline:
        peers.insert(1, (f"dafast, {options.baseline}", "dafast", options.baseline))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(options.seed)
        model = DepthAnything(options.model)
        save_pretrained(model, folder / "dafast")
        save_pretrained(model, folder / "transformers", layout="transformers")
        records, workers = [], []
        expected: float | None = None
        try:
            for label, kind, root in peers:
                record: dict[str, Any] = {
                    "model": options.model, "batch": options.batch, "size": options.size,
                    "dtype": options.dtype, "peer": label,
                }  # fmt: skip
                records.append(record)
                worker = Worker(kind, root, folder, options)
                try:
                    *_, loss = worker.step()
                    expected = loss if expected is None else expected
                    if not abs(loss - expected) <= 1e-2 * abs(expected):
                        raise RuntimeError(f"its loss is {loss:.4f}, not {expected:.4f}")
                    workers.append((worker, record, []))
                except RuntimeError as error:
                    record["why"] = str(error)
                    worker.close()
            for _ in range(options.rounds):
                for worker, _, steps in workers:
                    steps.append(worker.step())
        finally:
            for worker, *_ in workers:
                worker.close()
    for _, record, steps in workers:
        seconds, cpu, _ = zip(*steps, strict=True)
        record.update(ms=1e3 * statistics.median(seconds), cpu_ms=1e3 * statistics.median(cpu))
    return records


def measure_nano(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Images a second of `dafast train --config nano-teacher`, in turn; one record each."""
    roots = [ROOT, *([options.baseline] if options.baseline else [])]
    speeds: dict[Path, list[float]] = {root: [] for root in roots}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _dafast(ROOT, "synth", "--scenes", "96", "--out", str(folder / "scenes"), "--quiet")
        for number in range(options.rounds):
            for i, root in enumerate(roots):
                out = folder / f"run-{number}-{i}"
                _dafast(root, "train", "--config", "nano-teacher", "--steps", "12",
                        "--optim.warmup-steps", "1", "--data.path", str(folder / "scenes"),
                        "--data.eval-path", "", "--threads", str(options.threads),
                        "--out", str(out))  # fmt: skip
                lines = (out / "metrics.jsonl").read_text().splitlines()
                found = [json.loads(line)["images_per_second"] for line in lines]
                speeds[root].append(statistics.median(found[2:]))
    return [
        {"model": "nano", "peer": "dafast" if root == ROOT else f"dafast, {root}",
         "images_per_second": statistics.median(values)}
        for root, values in speeds.items()
    ]  # fmt: skip


def _dafast(root: Path, *arguments: str) -> None:
    # `-m` looks in the working folder first, which may be a checkout.
    environment = {**os.environ, "PYTHONPATH": str(root.resolve())}
    with tempfile.TemporaryDirectory() as empty:
        subprocess.run([sys.executable, "-m", "dafast", *arguments], env=environment, check=True,
                       stdout=subprocess.DEVNULL, cwd=empty)  # fmt: skip


def print_report(report: dict[str, Any]) -> None:
    """Prints the records as a table; ratios are to transformers."""
    table = Table(title="  ".join(f"{k} {v}" for k, v in report["machine"].items()))
    for column in ("model", "batch", "dtype", "implementation", "ms", "ratio", "processor ms",
                   "ratio", "images/s"):  # fmt: skip
        table.add_column(column, overflow="fold")
    base = next((r for r in report["records"] if r["peer"] == "transformers" and "ms" in r), None)
    for r in report["records"]:
        ratios = [f"{r[k] / base[k]:.2f}" if base and k in r else "" for k in ("ms", "cpu_ms")]
        speed = r.get("images_per_second") or (1e3 * r["batch"] / r["ms"] if "ms" in r else None)
        table.add_row(
            r["model"], f"{r['batch']}x{r['size']}" if "size" in r else "", r.get("dtype", ""),
            r["peer"], f"{r['ms']:.0f}" if "ms" in r else r.get("why", ""), ratios[0],
            f"{r['cpu_ms']:.0f}" if "cpu_ms" in r else "", ratios[1],
            f"{speed:.2f}" if speed else "",
        )  # fmt: skip
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns the report that it prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vits", help="preset; vits by default")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=266, help="side of the images in pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="bfloat16: autocast")  # fmt: skip
    parser.add_argument("--nano", action="store_true", help="time `dafast train` instead")
    parser.add_argument("--baseline", type=Path, help="another checkout of dafast")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.work:
        work(options)
        return {}
    from bench.timing import machine

    about = {**machine(torch.device("cpu")), "threads": options.threads}
    records = measure_nano(options) if options.nano else measure(options)
    report = {"machine": about, "records": records}
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
