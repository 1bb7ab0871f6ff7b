"""``dafast data check``: reads a data set, lists damaged samples and draws a sheet."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ._common import (
    SHOWN,
    CommandError,
    add_min_depth,
    add_workers,
    fraction,
    named_path,
    positive,
)
from ._data_sets import ALL_NAMES, NO_DEPTH, PICTURE_NAMES, check_name

if TYPE_CHECKING:
    from ..data.sources import Item

SHARDS = ("shards", "synthetic")
"""Names for shards of any set; what `dafast synth` writes is one."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    names = ", ".join(ALL_NAMES)
    parser = commands.add_parser(
        "check",
        help="read a data set, name damaged files, draw a sheet of samples",
        description="Reads and validates every picture and label of a data set as it is "
        "published, of a list as `pack` takes it, or of shards (a folder, a pattern, a URL), and "
        "draws a sheet: picture, disparity (warm is near, gray has no label), mask.",
        epilog="A picture that cannot be read is counted, named and skipped. The exit code is 1 if "
        "more than --max-bad of the set is damaged, or all of it.",
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help=f"of the data set, or shards: {names}, shards, synthetic (shards too)",
    )
    parser.add_argument(
        "source", metavar="PATH", help="its folder, or a list; for shards also a URL"
    )
    parser.add_argument(
        "--sheet",
        type=named_path,
        metavar="PNG",
        help="file of the sheet (default: NAME-check.png, or the list's name)",
    )
    parser.add_argument(
        "--shown",
        type=positive,
        default=16,
        metavar="N",
        help="samples on the sheet (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="read N samples, evenly spread over the set (default: all)",
    )
    add_min_depth(parser)
    parser.add_argument(
        "--max-bad",
        type=fraction,
        default=0.01,
        metavar="FRACTION",
        help="largest tolerated fraction of damaged samples, 0 to 1 (default: %(default)s)",
    )
    add_workers(parser, "threads")
    parser.set_defaults(function=data_check)


def data_check(args: argparse.Namespace) -> int:
    """Runs ``dafast data check``."""
    from ..data.check import check, draw_sheet
    from ..data.sources import name_coarse
    from ..files import whole_file

    items, labeled = _open(args)
    print(f"{len(items)} pictures in {args.source}")
    report = check(items, shown=args.shown, limit=args.limit, workers=args.workers)
    good = report.total - len(report.corrupt) - len(report.unlabeled)
    summary = f"{report.total} read: {good} good, {len(report.corrupt)} damaged"
    if labeled and report.bare:
        summary += f", {report.bare} not labeled"
    if labeled:
        summary += f", {len(report.unlabeled)} without a label"
        summary += f"; {report.valid_share:.1%} of the pixels valid"
    print(summary)
    for name, reason in report.corrupt:
        print(f"  FAILED {name}: {reason}")
    for name, reason in report.unlabeled[:SHOWN]:
        print(f"  left out {name}: {reason}")
    if len(report.unlabeled) > SHOWN:
        print(f"  ... and {len(report.unlabeled) - SHOWN} more without a label")
    if report.coarse:
        print(f"warning: {name_coarse(report.coarse)}")
    if report.shown:
        path = args.sheet or Path(f"{args.name or Path(args.source).stem}-check.png")
        with whole_file(path) as file:
            draw_sheet(report.shown).save(file, "PNG")
        print(f"sheet: {path}")
    damaged = len(report.corrupt) / report.total
    if damaged > args.max_bad:
        print(f"dafast: {damaged:.1%} damaged, --max-bad is {args.max_bad:.1%}", file=sys.stderr)
    return 1 if damaged > args.max_bad or not good else 0


def _open(args: argparse.Namespace) -> tuple[Sequence[Item], bool]:
    """The samples, and whether they have labels; prints the facts of the set."""
    from ..data.lists import list_source
    from ..data.readers import get_picture_reader, get_reader
    from ..data.remote import is_url
    from ..data.shards import ShardDataset
    from ..data.sources import shard_source

    source = Path(args.source)
    if is_url(args.source) and args.name not in SHARDS:
        raise CommandError(
            f"{args.source}: only shards are read from URLs: dafast data check shards {args.source}"
        )
    if not is_url(args.source):
        check_name(args.name, source, SHARDS)
    labeled = args.name not in PICTURE_NAMES
    if args.min_depth and (args.name in SHARDS or not labeled):
        raise CommandError(NO_DEPTH)
    if args.name in SHARDS:
        items = shard_source(ShardDataset(args.source, labels="none"))
        count = sum(item.read is not None for item in items)
        if 0 < count < len(items):
            print(f"shards: {count} labeled, {len(items) - count} not labeled")
        else:
            print(f"shards: {'labeled' if count else 'not labeled'}")
        return items, count > 0
    if args.name in PICTURE_NAMES:
        pictures = get_picture_reader(args.name)
        found = pictures.items(source)
        print(f"{pictures.name}: pictures without labels")
        print(f"license: {pictures.license}; published: {pictures.published}")
        return found, False
    if args.name:
        reader = get_reader(args.name)
        samples = reader.items(source, args.min_depth or 0.0)
        print(f"{reader.name}: {reader.units}; invalid: {reader.invalid}")
        print(f"license: {reader.license}; published: {reader.published}")
        return samples, True
    if source.is_dir():
        raise CommandError(
            f"{source} is a folder: put the name of its data set before it, one of "
            f"{', '.join((*ALL_NAMES, *SHARDS))}"
        )
    return list_source(source, args.min_depth or 0.0), True
