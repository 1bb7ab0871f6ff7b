"""``dafast data sky``: masks of the sky of pictures in shards."""

from __future__ import annotations

import argparse
import os

from ._common import add_device, add_workers, name_failures, note_or_match, positive
from ._log import tell

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
    parser.set_defaults(function=data_sky)


def data_sky(args: argparse.Namespace) -> int:
    """Runs ``dafast data sky``."""
    from ..data.sky import MODEL, SIDE, SkyFinder, write_sky
    from ..data.tars import expand_shards
    from ..devices import resolve_device, resolve_dtype
    from ._model import own_device

    shards = expand_shards(args.shards)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = resolve_device(own_device(args.device))
    dtype = resolve_dtype(args.dtype, device)
    model, side = args.model or MODEL, args.size or SIDE
    find = SkyFinder.from_pretrained(model, device, dtype, side, args.batch)
    for folder in sorted({shard.parent for shard in shards}, key=str):
        note_or_match(folder / DESCRIPTION, "masks of sky", {"model": model, "size": side})
    report = write_sky(
        find,
        shards[rank::size],
        workers=args.workers,
        say=lambda line: tell(f"sky: {line}"),
    )
    print(
        f"masks of {report.written} shards written: {report.with_sky} of {report.pictures} "
        "pictures have sky"
        + (f"; {report.kept} shards left as they are" if report.kept else "")
        + (f"; {len(report.failures)} failures" if report.failures else "")
    )
    name_failures(report.failures, "*.sky.failures.jsonl next to the shards")
    return 1 if report.failures else 0
