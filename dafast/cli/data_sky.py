"""``dafast data sky``: masks of the sky of pictures in shards."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ._cluster import add_cluster, cluster_runner, place_for_workers
from ._common import add_device, add_workers, name_failures, note_or_match, positive
from ._log import tell

if TYPE_CHECKING:
    import numpy as np

    from ..data.jobs import Runner

DESCRIPTION = "sky.json"
"""File next to the masks of sky that says which network made them."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "sky",
        help="find the sky of pictures in shards",
        description="Writes next to each shard NAME.tar the masks of its sky, NAME.sky.tar, found "
        "by a SegFormer that was trained on ADE20K. Training reads them: sky without a label "
        "gets disparity 0 (the setting data.sky).",
        epilog="Needs pip install 'dafast[sky]'. Existing masks are kept; a killed run "
        "loses the shard that it was writing. Under torchrun each process takes its share of the "
        "shards.",
    )
    parser.add_argument("shards", metavar="SHARDS", help="folder, file, pattern or URL")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="SegFormer: hub id or folder (default: nvidia/segformer-b5-finetuned-ade-640-640)",
    )
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="shorter side in pixels that the network sees (default: 640)",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=8,
        metavar="N",
        help="pictures of one shape run together (default: %(default)s)",
    )
    add_workers(parser, "threads that decode and compress", 2)
    add_device(parser)
    add_cluster(parser)
    parser.set_defaults(function=data_sky)


class Finder:
    """The network that finds sky: in this process, or in an actor on a cluster.

    Args:
        args: Of the command.

    Attributes:
        facts: The floating-point type of the network.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from ..data.sky import MODEL, SIDE, SkyFinder
        from ..devices import resolve_device, resolve_dtype
        from ._model import own_device

        device = resolve_device(own_device(args.device))
        dtype = resolve_dtype(args.dtype, device)
        self._find = SkyFinder.from_pretrained(
            args.model or MODEL, device, dtype, args.size or SIDE, args.batch
        )
        self.facts = {"dtype": str(dtype).removeprefix("torch.")}

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Masks of images."""
        return self._find(images)


def data_sky(args: argparse.Namespace) -> int:
    """Runs ``dafast data sky``."""
    from ..data.jobs import InOrder
    from ..data.tars import expand_shards

    shards = expand_shards(args.shards)
    if args.cluster:
        shards = [place_for_workers(shard) for shard in shards]
        with cluster_runner(args, "data sky", Finder) as cluster:
            cluster.facts()  # raises if the network cannot be loaded
            return _find_with(cluster, args, shards, shards)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return _find_with(InOrder(Finder(args), args.workers), args, shards, shards[rank::size])


def _find_with(
    runner: Runner, args: argparse.Namespace, shards: Sequence[Path], share: Sequence[Path]
) -> int:
    from ..data.sky import MODEL, SIDE, write_sky_with

    settings = {"model": args.model or MODEL, "size": args.size or SIDE}
    for folder in sorted({shard.parent for shard in shards}, key=str):
        note_or_match(folder / DESCRIPTION, "masks of sky", settings)
    report = write_sky_with(runner, share, say=lambda line: tell(f"sky: {line}"))
    print(
        f"masks of {report.written} shards written: {report.with_sky} of {report.pictures} "
        "pictures have sky"
        + (f"; {report.kept} shards left as they are" if report.kept else "")
        + (f"; {len(report.failures)} failures" if report.failures else "")
    )
    name_failures(report.failures, "*.sky.failures.jsonl next to the shards")
    return 1 if report.failures else 0
