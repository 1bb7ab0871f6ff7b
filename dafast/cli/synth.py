"""``dafast synth``: synthetic scenes with exact depth, as shards."""

from __future__ import annotations

import argparse

from ._common import CommandError, add_workers, named_path, positive

SHARD_SIZE = 100


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "synth",
        help="render synthetic scenes with exact depth",
        description="Writes WebDataset shards of procedurally generated scenes, or of worlds of "
        "games: pictures and their exact depth; or clips (--clip). The same seed gives the same "
        "scenes.",
    )
    parser.add_argument("--scenes", type=positive, required=True, metavar="N")
    parser.add_argument("--out", type=named_path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    add_workers(parser, "processes; each writes its own shard")
    parser.add_argument(
        "--shard-size",
        type=positive,
        default=SHARD_SIZE,
        metavar="N",
        help="scenes in a shard (default: %(default)s); the scenes do not depend on it",
    )
    parser.add_argument(
        "--textures", type=named_path, metavar="DIR", help="photographs to take textures from"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="kinds of scenes that take turns, for example room street (default: all, by weight)",
    )
    parser.add_argument(
        "--worlds",
        type=named_path,
        metavar="DIR",
        help="show the worlds of games in this folder instead of procedural scenes (docs/nano.md)",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=positive,
        metavar=("WIDTH", "HEIGHT"),
        help="of every picture (default: one of four sizes around 320x240)",
    )
    parser.add_argument(
        "--clip",
        type=positive,
        metavar="FRAMES",
        help="write clips of this many frames instead of shards: one folder for each scene, with "
        "depth, camera poses and optical flow (docs/video.md)",
    )
    parser.add_argument(
        "--motions",
        nargs="+",
        metavar="MOTION",
        help="movements of the camera that take turns, with --clip: still, pan, dolly, handheld "
        "(default: all, at random)",
    )
    parser.set_defaults(function=synth)


def synth(args: argparse.Namespace) -> int:
    """Runs ``dafast synth``."""
    from ..synthetic import write_clips, write_shards

    if args.clip:
        if args.shard_size != SHARD_SIZE:
            raise CommandError("--shard-size is for shards; --clip writes a folder for each clip")
        if args.worlds:
            raise CommandError("--clip renders procedural scenes only: leave out --worlds")
        write_clips(
            args.out,
            args.scenes,
            args.clip,
            seed=args.seed,
            workers=args.workers,
            textures=args.textures,
            kinds=args.kinds,
            motions=args.motions,
            size=args.size and tuple(args.size),
            progress=not args.quiet,
        )
        return 0
    if args.motions:
        raise CommandError("--motions needs --clip: a single picture has no movement")
    write_shards(
        args.out,
        args.scenes,
        seed=args.seed,
        workers=args.workers,
        shard_size=args.shard_size,
        textures=args.textures,
        kinds=args.kinds,
        worlds=args.worlds,
        size=args.size and tuple(args.size),
        progress=not args.quiet,
    )
    return 0
