"""``dafast label``: shards of images in, shards with a teacher's labels out."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ..data.shards import expand_shards
from ..inference import MAX_BATCH_TOKENS, check_options, predict_native
from ..training.labeling import label_shards
from . import CommandError
from ._model import digest_model, load_relative_model
from .files import write_atomically

DESCRIPTION = "labels.json"
"""File beside the labeled shards that says which teacher they are from."""

_SHOWN = 20  # failures listed in the summary


def label(args: argparse.Namespace) -> int:
    """Runs ``dafast label``."""
    shards = expand_shards(args.inputs)
    twice = [name for name, count in Counter(s.name for s in shards).items() if count > 1]
    if twice:
        raise CommandError(f"--in has more than one shard called {twice[0]}; label them apart")
    if args.out.resolve() in {shard.resolve().parent for shard in shards}:
        raise CommandError(f"--out {args.out} is the folder of the images; choose another")
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model = load_relative_model(args.model, _device(args.device), args.dtype, "label")
    tokens = args.batch_tokens or MAX_BATCH_TOKENS
    check_options(model.config, size=args.size, max_batch_tokens=tokens)
    args.out.mkdir(parents=True, exist_ok=True)
    _describe(
        args.out / DESCRIPTION,
        {
            "model": model.config.name,
            "weights": digest_model(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "size": args.size or model.config.image_size,
        },
    )
    began = time.perf_counter()
    report = label_shards(
        lambda images: predict_native(model, images, size=args.size, max_batch_tokens=tokens),
        shards[rank::size],
        args.out,
        workers=args.workers,
        say=lambda line: print(f"label: {line}", file=sys.stderr, flush=True),
    )
    parts = [f"{report.shards} shards with {report.images} images written to {args.out}"]
    if report.kept:
        parts.append(f"{report.kept} already there")
    if report.busy:
        parts.append(f"{report.busy} in work elsewhere")
    if report.failures:
        parts.append(f"{len(report.failures)} failures")
    print(f"{', '.join(parts)} ({time.perf_counter() - began:.1f} s)")
    for name, reason in report.failures[:_SHOWN]:
        print(f"  FAILED {name}: {reason}")
    if len(report.failures) > _SHOWN:
        print(f"  ... and {len(report.failures) - _SHOWN} more, in {args.out}/*.failures.jsonl")
    return 1 if report.failures else 0


def _device(name: str) -> str:
    """Under torchrun, the GPU that is this process's own."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if name == "auto" and local and torch.cuda.is_available() else name


def _describe(path: Path, wanted: dict[str, Any]) -> None:
    """Notes which teacher a folder's labels are from, or checks that it is this one.

    Raises:
        CommandError: If it is another.
    """
    if not path.exists():
        # Processes that start together write the same.
        text = json.dumps(wanted, indent=2) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
        return
    try:
        found = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise CommandError(f"{path} cannot be read ({error}): remove it") from error
    other = [f"{k} {found.get(k)}, not {v}" for k, v in wanted.items() if found.get(k) != v]
    if other:
        raise CommandError(
            f"{path}: the labels there were made with {'; '.join(other)}. Choose another --out, or "
            "remove the folder"
        )
