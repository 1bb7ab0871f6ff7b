"""``dafast label``: shards of images in, shards with a teacher's labels out."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cluster import add_cluster, cluster_runner, place_for_workers
from ._common import (
    CommandError,
    add_device,
    add_max_tokens,
    add_model,
    add_workers,
    name_failures,
    note_or_match,
    positive,
)
from ._log import tell

if TYPE_CHECKING:
    import numpy as np

    from ..data.jobs import Runner

DESCRIPTION = "labels.json"
"""File next to the labeled shards that says which teacher made them."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "label",
        help="label shards of images with a teacher",
        description="Writes for each shard of images a shard of the same name with the images, "
        "the teacher's disparity (16 bit, at the teacher's resolution) and its scale and offset.",
        epilog="A shard appears under its name when it is complete. Running the command again, or "
        "several times at once on one file system, skips shards that exist or that another "
        "process is writing. Under torchrun (torchrun --no-python --nproc-per-node 8 dafast label "
        "...) each process takes its share; with --cluster Ray distributes the shards. "
        "An image that cannot be labeled is left out and "
        "named in SHARD.failures.jsonl; the exit code is then 1.",
    )
    add_model(parser)
    parser.add_argument(
        "--in", dest="inputs", required=True, metavar="SHARDS", help="folder, file, pattern, URL"
    )
    parser.add_argument("--out", required=True, metavar="DIR|URL", help="where to write")
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="shorter side in pixels that the network sees (default: the model's own)",
    )
    parser.add_argument(
        "--batch-tokens",
        type=positive,
        metavar="N",
        help="images run together up to this many tokens (default: that of infer, 8192 on a CPU "
        "and by its free memory on a GPU)",
    )
    add_max_tokens(parser)
    add_workers(parser, "threads that decode and compress", 2)
    add_device(parser)
    add_cluster(parser)
    parser.set_defaults(function=label)


class Teacher:
    """The model that labels: in this process, or in an actor on a cluster.

    Args:
        args: Of the command.

    Attributes:
        facts: ``"labels"``, what the labels depend on, and ``"unit"`` of the disparity.

    Raises:
        CommandError: If the model cannot label.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from ..models.digest import digest_model
        from ..models.inference import check_options
        from ._model import load_relative_model

        self._model = model = load_relative_model(args, "label")
        if model.config.quantity != "disparity":
            raise CommandError(
                f"{args.model} predicts {model.config.quantity}, and labels are disparity: choose "
                "a model of V1 or V2, or nano (`dafast models` lists what each predicts)"
            )
        self._limits = {
            "size": args.size,
            "max_batch_tokens": args.batch_tokens,
            "max_tokens": args.max_tokens,
        }
        check_options(model.config, **self._limits)
        labels = {
            "model": model.config.name,
            "weights": digest_model(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "size": args.size or model.config.image_size,
            "max_tokens": args.max_tokens,
        }
        self.facts = {
            "labels": labels,
            "unit": "1/metre" if model.config.calibration else "relative",
        }

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Maps of images, at the network's resolution."""
        from ..models.inference import predict_native

        return predict_native(self._model, images, **self._limits)


def label(args: argparse.Namespace) -> int:
    """Runs ``dafast label``."""
    from ..data.jobs import InOrder
    from ..data.remote import place_of, plain_name, same_place
    from ..data.tars import expand_shards

    shards, out = expand_shards(args.inputs), place_of(args.out)
    twice = [name for name, count in Counter(map(plain_name, shards)).items() if count > 1]
    if twice:
        raise CommandError(f"--in has more than one shard called {twice[0]}; label them separately")
    if same_place(out) in {same_place(shard.parent) for shard in shards}:
        raise CommandError(f"--out {out} is the folder of the images; choose another")
    if args.cluster:
        shards, out = [place_for_workers(shard) for shard in shards], place_for_workers(out)
        with cluster_runner(args, "label", Teacher) as cluster:
            return _label_with(cluster, cluster.facts(), shards, out)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    teacher = Teacher(args)
    return _label_with(InOrder(teacher, args.workers), teacher.facts, shards[rank::size], out)


def _label_with(runner: Runner, facts: dict[str, Any], shards: Sequence[Path], out: Path) -> int:
    from ..data.labeling import label_with
    from ..data.remote import is_remote
    from ..geometry import MAX_TOKENS

    if not is_remote(out):
        out.mkdir(parents=True, exist_ok=True)
    note_or_match(out / DESCRIPTION, "labels", facts["labels"], {"max_tokens": MAX_TOKENS})
    began = time.perf_counter()
    report = label_with(
        runner, shards, out, unit=facts["unit"], say=lambda line: tell(f"label: {line}")
    )
    parts = [f"{report.shards} shards with {report.images} images written to {out}"]
    if report.kept:
        parts.append(f"{report.kept} already there")
    if report.busy:
        parts.append(f"{report.busy} being written by another process")
    if report.failures:
        parts.append(f"{len(report.failures)} failures")
    print(f"{', '.join(parts)} ({time.perf_counter() - began:.1f} s)")
    name_failures(report.failures, f"{out}/*.failures.jsonl")
    return 1 if report.failures else 0
