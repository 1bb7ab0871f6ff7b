"""``dafast data``: data sets on disk to shards, and a look at them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..data.check import check, sheet
from ..data.pack import pack
from ..data.readers import NAMES, get_reader
from ..data.sources import Item, Unlabeled, folder_source, list_source
from . import CommandError

_SHOWN = 20  # failures listed in the summary


def data_pack(args: argparse.Namespace) -> int:
    """Runs ``dafast data pack``."""
    items = _items(args)
    description = {"source": args.source.name, "size": args.size or 0}
    if args.name:
        description["reader"] = args.name
    samples, failures = pack(
        items,
        args.out,
        description,
        shard_size=args.shard_size,
        workers=args.workers,
        say=lambda line: print(f"pack: {line}", file=sys.stderr, flush=True),
    )
    # The failures of an earlier run are known by their text alone.
    corrupt = [pair for pair in failures if not pair[1].startswith(f"{Unlabeled.__name__}:")]
    bare = len(failures) - len(corrupt)
    left_out = f", {len(failures)} left out" if failures else ""
    without = f" ({bare} of them without a label)" if bare else ""
    print(f"{samples} samples of {len(items)} in {args.out}{left_out}{without}")
    for name, reason in corrupt[:_SHOWN]:
        print(f"  FAILED {name}: {reason}")
    if len(corrupt) > _SHOWN:
        print(f"  ... and {len(corrupt) - _SHOWN} more, in {args.out}/*.failures.jsonl")
    return 1 if corrupt else 0


def _items(args: argparse.Namespace) -> list[Item]:
    labeled = args.name or not args.source.is_dir()
    if labeled and args.size:
        raise CommandError("--size is for a folder of pictures; labels fit their pictures")
    if args.name:
        return get_reader(args.name).items(args.source)
    return list_source(args.source) if labeled else folder_source(args.source, args.size or 0)


def data_check(args: argparse.Namespace) -> int:
    """Runs ``dafast data check``."""
    if args.name:
        reader = get_reader(args.name)
        items = reader.items(args.source)
        print(f"{reader.name}: {reader.units}; invalid: {reader.invalid}")
        print(f"licence: {reader.licence}; published: {reader.published}")
    elif args.source.is_dir():
        raise CommandError(f"{args.source}: whose folder is it? One of {', '.join(NAMES)}")
    else:
        items = list_source(args.source)
    print(f"{len(items)} pictures in {args.source}")
    report = check(items, shown=args.shown, limit=args.limit, workers=args.workers)
    good = report.total - len(report.corrupt) - len(report.unlabeled)
    print(
        f"{report.total} read: {good} good, {len(report.corrupt)} damaged, "
        f"{len(report.unlabeled)} without a label; {report.valid_share:.1%} of the pixels valid"
    )
    for name, reason in report.corrupt:
        print(f"  FAILED {name}: {reason}")
    for name, reason in report.unlabeled[:_SHOWN]:
        print(f"  left out {name}: {reason}")
    if len(report.unlabeled) > _SHOWN:
        print(f"  ... and {len(report.unlabeled) - _SHOWN} more without a label")
    if report.shown:
        path = args.sheet or Path(f"{args.name or args.source.stem}-check.png")
        sheet(report.shown).save(path, "PNG")
        print(f"sheet: {path}")
    share = len(report.corrupt) / report.total
    if share > args.max_bad:
        print(f"dafast: {share:.1%} damaged, --max-bad is {args.max_bad:.1%}", file=sys.stderr)
    return 1 if share > args.max_bad or not good else 0
