"""``dafast eval``: the scores of a model as a table."""

from __future__ import annotations

import argparse
import dataclasses
import json

from ..evaluation.benchmarks import METRICS, Result
from ..evaluation.benchmarks import evaluate as run_benchmarks
from ._model import load_relative_model
from .files import write_atomically


def format_table(results: list[Result], markdown: bool = False) -> str:
    """Formats results with one row for each data set and predictor."""
    header = ["data", "predictor", "images", *METRICS]
    rows = [
        [r.data, r.predictor, str(r.count), *(f"{r.metrics[m]:.4f}" for m in METRICS)]
        for r in results
    ]
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
    """Runs ``dafast eval``."""
    model = load_relative_model(args.model, args.device, args.dtype, "eval")
    results = run_benchmarks(model, args.data)
    print(format_table(results, args.md))
    if args.json:
        text = json.dumps([dataclasses.asdict(r) for r in results], indent=2) + "\n"
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.json, lambda file: file.write(text.encode()))
    return 0
