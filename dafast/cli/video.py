"""``dafast video``: a video in, a video of its depth out."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ._camera import add_camera
from ._common import (
    CommandError,
    add_device,
    add_fit,
    add_max_tokens,
    add_model,
    depth,
    named_path,
    positive,
)

LAYOUTS = ("depth", "color", "side", "overlay", "sbs")
CODECS = ("h264", "hevc10", "ffv1")
FRAME_FORMATS = ("png16", "exr", "npz")
MODES = ("range", "flow", "off")
"""Those of `dafast.video`, which the parser must know without an import of torch."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "video",
        help="predict the depth of a video",
        description="Predicts the depth of a video. Keeps its times, sound and subtitles, and "
        "steadies the depth over time. docs/video.md describes the options.",
        epilog="Needs the extra dafast[video]. Ctrl-C leaves a playable file; --resume continues "
        "where it ended. A damaged video gives what could be read, and the exit code is 1.",
    )
    parser.add_argument(
        "source",
        metavar="IN",
        help="a video file, an animated GIF or WebP, a folder of numbered pictures, the number of "
        "a webcam, or - for standard input",
    )
    parser.add_argument(
        "--out", type=named_path, metavar="FILE", help="the video, .mp4, .mov or .mkv"
    )
    add_model(parser, "nano")
    parser.add_argument(
        "--layout",
        default="depth",
        choices=LAYOUTS,
        help="gray depth, colours, the frame next to colours (side), colours over the frame "
        "(overlay), or a stereo picture side by side (sbs) (default: %(default)s)",
    )
    parser.add_argument(
        "--codec",
        default="h264",
        choices=CODECS,
        help="h264 (8 bits, plays everywhere), hevc10 (10 bits) or ffv1 (lossless, 16 bits of gray "
        "depth, .mkv) (default: %(default)s)",
    )
    parser.add_argument(
        "--frames",
        nargs=2,
        metavar=("FORMAT", "DIR"),
        help=f"also write each map to a file: {', '.join(FRAME_FORMATS)}",
    )
    parser.add_argument(
        "--raw", type=named_path, metavar="FILE.npz", help="also write all maps in float32"
    )
    parser.add_argument("--palette", default="Spectral_r", metavar="NAME", help="as in dafast run")
    parser.add_argument(
        "--depth-scale",
        type=depth,
        default=1000.0,
        metavar="STEPS",
        help="steps per metre of --frames png16 with a metric model (default: %(default)g)",
    )
    _add_steadiness(parser)
    _add_selection(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on where an interrupted run of this command ended"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument(
        "--divergence",
        type=float,
        default=2.5,
        metavar="PERCENT",
        help="sbs: parallax between the nearest and the farthest surface, in per cent of the width "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--convergence",
        type=float,
        default=0.5,
        metavar="NEARNESS",
        help="sbs: what is on the screen: 0 the farthest, 1 the nearest surface (default: "
        "%(default)s)",
    )
    add_camera(parser)
    add_fit(parser)
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="shorter side in pixels that the network sees (default: the model's own)",
    )
    add_max_tokens(parser)
    add_device(parser)
    parser.set_defaults(function=video)


def _add_steadiness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stabilize",
        choices=MODES,
        help="bring all frames of a shot to one scale and shift, by what did not move (range) and "
        "also by what moved (flow, needs OpenCV); off leaves each frame as it is (default: range; "
        "a metric model keeps its metres, and only the display range is smoothed)",
    )
    parser.add_argument(
        "--lookahead",
        type=int,
        default=8,
        metavar="N",
        help="frames that the display range knows in advance (default: %(default)s)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="print how much the depth flickers, before and after --stabilize (needs OpenCV)",
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fps",
        type=float,
        metavar="N",
        help="take at most N frames per second; the rate of a folder (default: all; 30)",
    )
    parser.add_argument(
        "--every", type=positive, default=1, metavar="N", help="take each Nth frame"
    )
    parser.add_argument(
        "--start", type=_seconds, default=0.0, metavar="TIME", help="seconds, or H:M:S"
    )
    parser.add_argument("--end", type=_seconds, metavar="TIME", help="seconds, or H:M:S")


def _seconds(text: str) -> float:
    """Parses 75, 75.5, 1:15 or 0:01:15.5."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or any(not 0 <= part < float("inf") for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; give seconds, or H:M:S")
    total = 0.0
    for part in parts:
        total = 60 * total + part
    return total


def video(args: argparse.Namespace) -> int:
    """Runs ``dafast video``."""
    from ..video.threads import share_heap
    from .video_run import VideoRun

    _check_outputs(args)
    share_heap()
    start = time.perf_counter()
    with VideoRun(args) as run:
        if run.is_finished:
            print(f"{run.outputs.main} is already complete")
            return 0
        interrupted = run.convert()
        return run.summary(time.perf_counter() - start, interrupted)


def _check_outputs(args: argparse.Namespace) -> None:
    """Checks the requested outputs before anything is loaded."""
    if not (args.out or args.frames or args.raw or args.measure):
        raise CommandError("nothing to write: give --out, --frames, --raw or --measure")
    if args.lookahead < 0:
        raise CommandError(f"--lookahead {args.lookahead}: 0 or more")
    if args.frames is not None:
        kind, folder = args.frames
        if kind not in FRAME_FORMATS:
            raise CommandError(f"--frames {kind}: choose from {', '.join(FRAME_FORMATS)}")
        args.frames = (kind, named_path(folder))
    if args.raw is not None and args.raw.suffix.lower() != ".npz":
        raise CommandError(f"--raw {args.raw}: the file must end in .npz")
    if args.resume and args.overwrite:
        raise CommandError("--resume continues, and --overwrite starts again: give one of them")
    if args.resume and args.measure:
        raise CommandError("--measure needs all frames: leave out --resume")
    for name, path in (("--out", args.out), ("--raw", args.raw)):
        if path is None:
            continue
        if path.is_dir():
            raise CommandError(f"{name} {path} is a folder; name a file")
        source = Path(args.source)
        if path.exists() and source.exists() and path.samefile(source):
            raise CommandError(f"{name} {path} is the source itself; choose another name")
        if path.exists() and not (args.overwrite or args.resume):
            raise CommandError(
                f"{name} {path} exists; --overwrite replaces it, and --resume continues with an "
                "interrupted run"
            )
