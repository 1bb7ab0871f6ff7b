"""``dafast eval``: the scores of a model as a table."""

from __future__ import annotations

import argparse
import dataclasses
import json

from ..distributed import distributed_session
from ..evaluation.benchmarks import Result
from ..evaluation.benchmarks import evaluate as run_benchmarks
from ..evaluation.metrics import METRICS
from . import CommandError
from .files import write_atomically


def format_table(results: list[Result], markdown: bool = False) -> str:
    """Formats results with one row for each data set and predictor."""
    metrics = [*METRICS]
    if any("boundary_f1" in r.metrics for r in results):
        metrics.append("boundary_f1")
    header = ["data", "predictor", "images", *metrics]
    rows = [
        [
            *(r.data, r.predictor, str(r.count)),
            *(f"{r.metrics[m]:.4f}" if m in r.metrics else "-" for m in metrics),
        ]
        for r in results
    ]
    return table(header, rows, markdown)


def table(header: list[str], rows: list[list[str]], markdown: bool = False) -> str:
    """Lays out rows of cells; the first two columns are names, the others numbers."""
    if markdown:
        lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, *rows]
    )


def evaluate(args: argparse.Namespace) -> int:
    """Runs ``dafast eval``, as one process or under torchrun as one of many."""
    from .. import DepthAnything
    from ..models.segmentation import is_segmentation

    if args.json and args.json.is_dir():
        raise CommandError(f"--json {args.json} is a folder; name a file")
    if is_segmentation(args.model):
        from .segmentation import evaluate_segmentation

        return evaluate_segmentation(args)
    for name in ("size", "scales", "window", "stride"):
        if getattr(args, name):
            raise CommandError(f"--{name} is for segmentation models; {args.model} is none")
    with distributed_session() as world:
        device = args.device
        if world.size > 1 and device == "auto":
            device = str(world.device)
        model = DepthAnything.from_pretrained(args.model, device=device, dtype=args.dtype)
        results = run_benchmarks(
            model,
            args.data,
            protocol=args.protocol,
            alignment=args.align,
            cache=args.cache,
            fit=args.fit,
            flip=args.flip,
        )
        if not world.is_main:
            return 0
    print(format_table(results, args.md))
    if args.json:
        entries = []
        for entry in map(dataclasses.asdict, results):
            scores = entry.pop("metrics")
            entries.append({**entry, **scores})
        text = json.dumps(entries, indent=2) + "\n"
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.json, lambda file: file.write(text.encode()))
    return 0
