"""``dafast parallax``: one photo in, a video of a moving camera out."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from ._common import CommandError, named_path, positive
from ._log import is_quiet
from ._views import add_view_options, load_view_model, photo_and_nearness

PATHS = ("circle", "dolly", "swing")
"""`dafast.views.PATHS`, which the parser must know without an import of torch."""


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{value} seconds: above 0, and at most an hour")
    return value


def _rate(text: str) -> int:
    value = positive(text)
    if value > 1000:
        raise argparse.ArgumentTypeError(f"{value} frames a second: at most 1000")
    return value


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "parallax",
        help="make a video of a moving camera from a photo",
        description="Predicts the depth of a photo, and renders a video in which the camera moves. "
        "The path is closed, so that the video can be repeated.",
        epilog="MP4 (H.264) needs the extra dafast[video]; an animated WebP does not.",
    )
    parser.add_argument("photo", type=named_path, metavar="PHOTO", help="a picture file")
    parser.add_argument(
        "--out",
        type=named_path,
        required=True,
        metavar="FILE",
        help="the video, NAME.mp4 or NAME.webp",
    )
    parser.add_argument(
        "--path",
        default="circle",
        choices=PATHS,
        help="right, down, left and up (circle), towards the scene and back (dolly), left and "
        "right (swing) (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=4.0, metavar="S", help="length (default: %(default)g)"
    )
    parser.add_argument(
        "--fps",
        type=_rate,
        default=30,
        metavar="N",
        help="frames a second (default: 30)",
    )
    add_view_options(parser, "movement of the nearest against the farthest surface")
    parser.set_defaults(function=parallax)


def parallax(args: argparse.Namespace) -> int:
    """Runs ``dafast parallax``."""
    from ..views import camera_path, parallax_frames, save_video
    from ..views.parallax import check_video

    check_video(args.out)
    _check_free(args.out, args.photo, args.overwrite)
    model = load_view_model(args)
    pixels, near = photo_and_nearness(model, args.photo, args)
    count = max(1, round(args.seconds * args.fps))
    cameras = camera_path(args.path, count, near.shape[1], args.divergence)
    frames = parallax_frames(
        pixels, near, cameras, convergence=args.convergence, device=model.device
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_video(args.out, _with_bar(frames, count), fps=args.fps, count=count)
    print(f"{args.out}: {count} frame{'s' * (count > 1)}, {count / args.fps:g} s")
    return 0


def _check_free(out: Path, photo: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise CommandError(f"--out {out} is a folder; name a file")
    if out.exists() and photo.exists() and out.samefile(photo):
        raise CommandError(f"--out {out} is the photo itself; choose another name")
    if out.exists() and not overwrite:
        raise CommandError(f"--out {out} exists; --overwrite replaces it")


def _with_bar(frames: Iterable, count: int) -> Iterator:
    import sys

    from tqdm import tqdm

    off = is_quiet() or not sys.stderr.isatty()
    yield from tqdm(frames, total=count, unit="frame", disable=off, leave=False)
