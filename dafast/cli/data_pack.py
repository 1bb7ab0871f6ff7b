"""``dafast data pack``: pictures, pictures with depth, or a known data set into shards."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ._cluster import add_cluster, cluster_runner, place_for_workers
from ._common import CommandError, add_min_depth, add_workers, name_failures, positive
from ._data_sets import ALL_NAMES, NO_DEPTH, PICTURE_NAMES, check_name
from ._log import tell

if TYPE_CHECKING:
    from ..data.jobs import Runner
    from ..data.sources import Item


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    names = ", ".join(ALL_NAMES)
    parser = commands.add_parser(
        "pack",
        help="pack pictures, pictures with depth, or a known data set into shards",
        description="Writes WebDataset shards of the pictures in a folder, of a list (.csv, "
        ".json, .jsonl) with the columns image, depth or disparity, and optionally mask, scale, "
        "unit, invalid, min_depth and others (docs/data.md), or of a data set as it is published: "
        f"{names}. A shard appears under its name when it is complete; a second run continues the "
        "first.",
        epilog="A picture that cannot be read is left out and named in SHARD.failures.jsonl; the "
        "exit code is then 1. A picture whose label has no valid pixel is left out and named too. "
        "manifest.json lists the samples and the checksum of every shard, and records the state of "
        "the source files: if they have changed since, the command says so and stops.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"of the data set: {names}")
    parser.add_argument("source", metavar="PATH", help="folder, list")
    parser.add_argument("--out", required=True, metavar="DIR|URL", help="where to write")
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="scale pictures down to this shorter side (default: keep their size)",
    )
    add_min_depth(parser)
    parser.add_argument(
        "--shard-size",
        type=positive,
        default=1000,
        metavar="N",
        help="pictures in a shard (default: %(default)s)",
    )
    add_workers(parser, "threads; each writes its own shard")
    add_cluster(parser, models=False)
    parser.set_defaults(function=data_pack)


def data_pack(args: argparse.Namespace) -> int:
    """Runs ``dafast data pack``."""
    from ..data.pack import Threads, pack_with
    from ..data.remote import is_url, place_of
    from ..data.sources import Unlabeled

    if is_url(args.source):
        raise CommandError(f"{args.source}: a data set is packed from a local disk, not a URL")
    source, out = Path(args.source), place_of(args.out)
    description = {"source": source.name, "size": args.size or 0}
    if args.name:
        description["reader"] = args.name
    if args.min_depth:
        description["min_depth"] = args.min_depth
    if args.cluster:
        source, out = source.absolute(), place_for_workers(out)
    with contextlib.ExitStack() as stack:
        runner: Runner = Threads(args.workers)
        if args.cluster:
            runner = stack.enter_context(cluster_runner(args, "data pack"))
        items = _items(args.name, source, args.size, args.min_depth)
        samples, failures = pack_with(
            runner,
            items,
            out,
            description,
            shard_size=args.shard_size,
            workers=args.workers,
            say=lambda line: tell(f"pack: {line}"),
        )
    # Only the text of a failure of an earlier run is known.
    corrupt = [pair for pair in failures if not pair[1].startswith(f"{Unlabeled.__name__}:")]
    bare = len(failures) - len(corrupt)
    left_out = f", {len(failures)} left out" if failures else ""
    without = f" ({bare} of them without a label)" if bare else ""
    print(f"{samples} samples of {len(items)} in {out}{left_out}{without}")
    name_failures(corrupt, f"{out}/*.failures.jsonl")
    return 1 if corrupt else 0


def _items(
    name: str | None, source: Path, size: int | None, min_depth: float | None
) -> Sequence[Item]:
    """The pictures of a data set, a list or a folder."""
    from ..data.lists import list_source
    from ..data.readers import get_picture_reader, get_reader
    from ..data.sources import folder_source

    check_name(name, source)
    labeled = name not in PICTURE_NAMES and (name or not source.is_dir())
    if min_depth and not labeled:
        raise CommandError(NO_DEPTH)
    if name in PICTURE_NAMES:
        return get_picture_reader(name).items(source, size or 0)
    if labeled and size:
        raise CommandError(
            "--size is for a folder of pictures, or a data set without labels; labels keep the "
            "size of their pictures"
        )
    if name:
        return get_reader(name).items(source, min_depth or 0.0)
    if labeled:
        return list_source(source, min_depth or 0.0)
    return folder_source(source, size or 0)
