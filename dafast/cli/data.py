"""``dafast data``: data sets on disk to shards, a look at them, and their sky."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..data.check import check, sheet
from ..data.pack import pack
from ..data.readers import NAMES, PICTURE_NAMES, get_picture_reader, get_reader
from ..data.remote import is_url, place_of
from ..data.shards import ShardDataset
from ..data.sources import (
    Item,
    Unlabeled,
    folder_source,
    list_source,
    name_coarse,
    shard_source,
)
from ..data.tars import expand_shards
from . import CommandError

SKY_DESCRIPTION = "sky.json"
"""File beside the masks of sky that says which network they are from."""

SHARDS = ("shards", "synthetic")
"""Names of `check` for shards of any set; what `dafast synth` writes is one."""

_NO_DEPTH = "--min-depth is for pictures with depth: a list, or a labeled data set"
_SHOWN = 20  # failures listed in the summary


def data_pack(args: argparse.Namespace) -> int:
    """Runs ``dafast data pack``."""
    if is_url(args.source):
        raise CommandError(f"{args.source}: data sets are packed from this machine's disks")
    source, out = Path(args.source), place_of(args.out)
    items = _items(args.name, source, args.size, args.min_depth)
    description = {"source": source.name, "size": args.size or 0}
    if args.name:
        description["reader"] = args.name
    if args.min_depth:
        description["min_depth"] = args.min_depth
    samples, failures = pack(
        items,
        out,
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
    print(f"{samples} samples of {len(items)} in {out}{left_out}{without}")
    _name_failures(corrupt, f"{out}/*.failures.jsonl")
    return 1 if corrupt else 0


def _check_name(name: str | None, source: Path, others: tuple[str, ...] = ()) -> None:
    """Tells what data sets there are where a name is none of theirs, or stands without a path; and
    that a path is none."""
    known = (*NAMES, *PICTURE_NAMES, *others)
    if name and name not in known:
        raise CommandError(f"no data set {name!r}; there are: {', '.join(known)}")
    if not name and str(source) in known and not source.exists():
        raise CommandError(f"{source}: where is it? Give the path after the name")
    if not source.exists():
        a_name = not name and str(source) == source.stem  # what a mistyped data set looks like
        others_are = f", and no data set; there are: {', '.join(known)}" if a_name else ""
        raise CommandError(f"{source}: no such file or folder{others_are}")


def _items(
    name: str | None, source: Path, size: int | None, min_depth: float | None
) -> Sequence[Item]:
    _check_name(name, source)
    labeled = name not in PICTURE_NAMES and (name or not source.is_dir())
    if min_depth and not labeled:
        raise CommandError(_NO_DEPTH)
    if name in PICTURE_NAMES:
        return get_picture_reader(name).items(source, size or 0)
    if labeled and size:
        raise CommandError(
            "--size is for a folder of pictures, or a data set without labels; labels fit their "
            "pictures"
        )
    if name:
        return get_reader(name).items(source, min_depth or 0.0)
    if labeled:
        return list_source(source, min_depth or 0.0)
    return folder_source(source, size or 0)


def _name_failures(failures: Sequence[tuple[str, str]], elsewhere: str) -> None:
    for name, reason in failures[:_SHOWN]:
        print(f"  FAILED {name}: {reason}")
    if len(failures) > _SHOWN:
        print(f"  ... and {len(failures) - _SHOWN} more, in {elsewhere}")


def data_check(args: argparse.Namespace) -> int:
    """Runs ``dafast data check``."""
    items: Sequence[Item]
    source = Path(args.source)
    if is_url(args.source) and args.name not in SHARDS:
        raise CommandError(
            f"{args.source}: of URLs shards alone are read: dafast data check shards {args.source}"
        )
    if not is_url(args.source):
        _check_name(args.name, source, SHARDS)
    labeled = args.name not in PICTURE_NAMES
    if args.min_depth and (args.name in SHARDS or not labeled):
        raise CommandError(_NO_DEPTH)
    if args.name in SHARDS:
        items = shard_source(ShardDataset(args.source, labels="none"))
        count = sum(item.read is not None for item in items)
        labeled = count > 0
        if 0 < count < len(items):
            print(f"shards: {count} labeled, {len(items) - count} not labeled")
        else:
            print(f"shards: {'labeled' if labeled else 'not labeled'}")
    elif args.name in PICTURE_NAMES:
        pictures = get_picture_reader(args.name)
        items = pictures.items(source)
        print(f"{pictures.name}: pictures without labels")
        print(f"licence: {pictures.licence}; published: {pictures.published}")
    elif args.name:
        reader = get_reader(args.name)
        items = reader.items(source, args.min_depth or 0.0)
        print(f"{reader.name}: {reader.units}; invalid: {reader.invalid}")
        print(f"licence: {reader.licence}; published: {reader.published}")
    elif source.is_dir():
        known = (*NAMES, *PICTURE_NAMES, *SHARDS)
        raise CommandError(f"{source}: whose folder is it? One of {', '.join(known)}")
    else:
        items = list_source(source, args.min_depth or 0.0)
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
    for name, reason in report.unlabeled[:_SHOWN]:
        print(f"  left out {name}: {reason}")
    if len(report.unlabeled) > _SHOWN:
        print(f"  ... and {len(report.unlabeled) - _SHOWN} more without a label")
    if report.coarse:
        print(f"warning: {name_coarse(report.coarse)}")
    if report.shown:
        path = args.sheet or Path(f"{args.name or source.stem}-check.png")
        sheet(report.shown).save(path, "PNG")
        print(f"sheet: {path}")
    share = len(report.corrupt) / report.total
    if share > args.max_bad:
        print(f"dafast: {share:.1%} damaged, --max-bad is {args.max_bad:.1%}", file=sys.stderr)
    return 1 if share > args.max_bad or not good else 0


def data_sky(args: argparse.Namespace) -> int:
    """Runs ``dafast data sky``."""
    from ..data.sky import MODEL, SIDE, SkyFinder, write_sky
    from ..runtime import resolve_device, resolve_dtype
    from ._model import own_device
    from .files import note_or_match

    shards = expand_shards(args.shards)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = resolve_device(own_device(args.device))
    dtype = resolve_dtype(args.dtype, device)
    model, side = args.model or MODEL, args.size or SIDE
    find = SkyFinder.from_pretrained(model, device, dtype, side, args.batch)
    for folder in sorted({shard.parent for shard in shards}, key=str):
        note_or_match(folder / SKY_DESCRIPTION, "masks of sky", {"model": model, "size": side})
    report = write_sky(
        find,
        shards[rank::size],
        workers=args.workers,
        say=lambda line: print(f"sky: {line}", file=sys.stderr, flush=True),
    )
    print(
        f"masks of {report.written} shards written: {report.with_sky} of {report.pictures} "
        "pictures have sky"
        + (f"; {report.kept} shards left as they are" if report.kept else "")
        + (f"; {len(report.failures)} failures" if report.failures else "")
    )
    _name_failures(report.failures, "*.sky.failures.jsonl beside the shards")
    return 1 if report.failures else 0
