"""``dafast label``: shards of images in, shards with a teacher's labels out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

from ..data.labeling import label_shards
from ..data.remote import is_remote, place_of, plain_name, same_place
from ..data.tars import expand_shards
from ..models.inference import MAX_BATCH_TOKENS, check_options, predict_native
from . import CommandError
from ._model import digest_model, load_relative_model, own_device
from .files import note_or_match

DESCRIPTION = "labels.json"
"""File beside the labeled shards that says which teacher they are from."""

_SHOWN = 20  # failures listed in the summary


def label(args: argparse.Namespace) -> int:
    """Runs ``dafast label``."""
    shards, out = expand_shards(args.inputs), place_of(args.out)
    twice = [name for name, count in Counter(map(plain_name, shards)).items() if count > 1]
    if twice:
        raise CommandError(f"--in has more than one shard called {twice[0]}; label them apart")
    if same_place(out) in {same_place(shard.parent) for shard in shards}:
        raise CommandError(f"--out {out} is the folder of the images; choose another")
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model = load_relative_model(args.model, own_device(args.device), args.dtype, "label")
    tokens = args.batch_tokens or MAX_BATCH_TOKENS
    check_options(model.config, size=args.size, max_batch_tokens=tokens)
    if not is_remote(out):
        out.mkdir(parents=True, exist_ok=True)
    note_or_match(
        out / DESCRIPTION,
        "labels",
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
        out,
        workers=args.workers,
        say=lambda line: print(f"label: {line}", file=sys.stderr, flush=True),
    )
    parts = [f"{report.shards} shards with {report.images} images written to {out}"]
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
        print(f"  ... and {len(report.failures) - _SHOWN} more, in {out}/*.failures.jsonl")
    return 1 if report.failures else 0
