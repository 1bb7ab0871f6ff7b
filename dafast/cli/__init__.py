"""The command ``dafast``.

Nothing but the standard library is imported until a command runs, so that ``dafast --help``
answers at once. Exit codes: 0 done, 1 something failed, 2 a mistake in the command line, 130
interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .._version import __version__
from ..palettes import PALETTES

DESCRIPTION = "Depth Anything, fast and trainable: depth from one photo."


class CommandError(Exception):
    """Ends the command with this message and exit code 1, without a traceback."""


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


def _metres(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a positive depth")
    return value


def _add_min_depth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-depth",
        type=_metres,
        metavar="METRES",
        help="depth below it is unknown, in a list's rows without a min_depth of their own, or in "
        "a labeled data set, in its unit (default: all depth counts)",
    )


def _add_run(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "run",
        help="predict the depth of photos",
        description="Predicts the disparity of photos (bright, and the palette's far end, is "
        "near) and writes for each NAME_depth.png (16 bit, its own minimum to maximum), "
        "NAME_color.png and what the options add. NAME is the photo's own name, made longer "
        "where two photos share it.",
        epilog="A photo that cannot be read or written never stops the others: it is named in "
        "the summary, and the exit code is 1. Running the same command again leaves finished "
        "pictures alone; a picture in the way that came from another photo, model or palette is "
        "kept and reported as a failure unless --overwrite is given.",
    )
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO|FOLDER|GLOB", help="files, folders, quoted patterns"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument(
        "--model", default="nano", help="preset, hub id, file or folder (default: %(default)s)"
    )
    parser.add_argument(
        "--palette", default="Spectral_r", choices=PALETTES, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--npy", action="store_true", help="also NAME.npy: the disparity itself, float32"
    )
    parser.add_argument(
        "--side-by-side", action="store_true", help="also NAME_side.png: photo and colours"
    )
    parser.add_argument("--recursive", action="store_true", help="look into subfolders too")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--fit",
        default="pad",
        choices=("pad", "official"),
        help="how a photo becomes the network's input (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=_positive,
        metavar="N",
        help="shorter side in pixels that the network sees (default: the model's own)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    parser.set_defaults(function=_run)


def _run(args: argparse.Namespace) -> int:
    from .run import run

    return run(args)


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what is installed, what is missing and what that costs",
        description="Prints versions, devices, the backends that are on, and what each missing "
        "part costs.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for a bug report")
    parser.set_defaults(function=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import doctor

    return doctor(as_json=args.json)


def _add_synth(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "synth",
        help="render synthetic scenes with exact depth",
        description="Writes WebDataset shards of procedurally generated scenes: pictures and "
        "their exact depth. The same seed gives the same scenes.",
    )
    parser.add_argument("--scenes", type=_positive, required=True, metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=_positive,
        default=os.cpu_count() or 1,
        help="processes, each on a shard of its own (default: one per processor, %(default)s)",
    )
    parser.add_argument(
        "--shard-size",
        type=_positive,
        default=100,
        metavar="N",
        help="scenes in a shard (default: %(default)s); the scenes do not depend on it",
    )
    parser.add_argument(
        "--textures", type=Path, metavar="DIR", help="photographs to take textures from"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="kinds of scenes that take turns, such as room street (default: all, by weight)",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=_positive,
        metavar=("WIDTH", "HEIGHT"),
        help="of every picture (default: one of four sizes around 320x240)",
    )
    parser.set_defaults(function=_synth)


def _synth(args: argparse.Namespace) -> int:
    from ..synthetic import write_shards

    write_shards(
        args.out,
        args.scenes,
        seed=args.seed,
        workers=args.workers,
        shard_size=args.shard_size,
        textures=args.textures,
        kinds=args.kinds,
        size=args.size and tuple(args.size),
    )
    return 0


def _add_data(commands: argparse._SubParsersAction) -> None:
    from ..data.readers import NAMES, PICTURE_NAMES  # names alone

    names = ", ".join((*NAMES, *PICTURE_NAMES))
    parser = commands.add_parser("data", help="bring data sets into shards")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = parts.add_parser(
        "pack",
        help="pack pictures, pictures with depth, or a known data set into shards",
        description="Writes WebDataset shards of the pictures in a folder, of a list (.csv, "
        ".json, .jsonl) with the columns image, depth or disparity, and optionally mask, scale, "
        f"invalid and min_depth, or of a data set as it is published: {names}. A shard appears "
        "under its name when it is whole; a second run goes on.",
        epilog="A picture that cannot be read is left out and named in SHARD.failures.jsonl; the "
        "exit code is then 1. One whose label has no valid pixel is left out and named too. "
        "manifest.json has the samples and the checksum of every shard, and what tells whether the "
        "files it was packed from have changed since: then the command says so and stops.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"of the data set: {names}")
    parser.add_argument("source", metavar="PATH", help="folder, list")
    parser.add_argument("--out", required=True, metavar="DIR|URL", help="where to write")
    parser.add_argument(
        "--size",
        type=_positive,
        metavar="N",
        help="scale pictures down to this shorter side (default: as they are)",
    )
    _add_min_depth(parser)
    parser.add_argument(
        "--shard-size",
        type=_positive,
        default=1000,
        metavar="N",
        help="pictures in a shard (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=os.cpu_count() or 1,
        help="threads, each on a shard of its own (default: one per processor, %(default)s)",
    )
    parser.set_defaults(function=_data_pack)
    parser = parts.add_parser(
        "check",
        help="read a data set, name what is damaged, show a sheet of it",
        description="Reads every picture and label of a data set as it is published, of a list "
        "as `pack` takes it, or of shards (a folder, a pattern, a URL), validates them, and draws "
        "a sheet: picture, disparity (warm is near, gray has no label), mask.",
        epilog="What cannot be read is counted, named and skipped. The exit code is 1 if that is "
        "more than --max-bad of the set, or all of it.",
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help=f"of the data set, or shards: {names}, shards, synthetic (shards too)",
    )
    parser.add_argument(
        "source", metavar="PATH", help="its folder, or a list; of shards also a URL"
    )
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="PNG",
        help="where the sheet goes (default: NAME-check.png, or the list's name)",
    )
    parser.add_argument(
        "--shown", type=_positive, default=16, metavar="N", help="on it (default: %(default)s)"
    )
    parser.add_argument(
        "--limit",
        type=_positive,
        metavar="N",
        help="read so many, evenly spread over the set (default: all)",
    )
    _add_min_depth(parser)
    parser.add_argument(
        "--max-bad",
        type=_share,
        default=0.01,
        metavar="SHARE",
        help="share that may be damaged, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=os.cpu_count() or 1,
        help="threads (default: one per processor, %(default)s)",
    )
    parser.set_defaults(function=_data_check)
    parser = parts.add_parser(
        "sky",
        help="find the sky of pictures in shards",
        description="Writes beside each shard NAME.tar the masks of its sky, NAME.sky.tar, found "
        "by a SegFormer that was trained on ADE20K. Training takes them up: sky without a label "
        "gets disparity 0 (the setting data.sky).",
        epilog="Needs pip install 'dafast[sky]'. Masks that are there are left alone; a killed run "
        "loses the shard in work. Under torchrun each process takes its share of the shards.",
    )
    parser.add_argument("shards", metavar="SHARDS", help="folder, file, pattern or URL")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="SegFormer: hub id or folder (default: nvidia/segformer-b5-finetuned-ade-640-640)",
    )
    parser.add_argument(
        "--size",
        type=_positive,
        metavar="N",
        help="shorter side in pixels that it sees (default: 640)",
    )
    parser.add_argument(
        "--batch",
        type=_positive,
        default=8,
        metavar="N",
        help="pictures of one shape run together (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=2,
        help="threads that decode and compress (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    parser.set_defaults(function=_data_sky)


def _data_pack(args: argparse.Namespace) -> int:
    from .data import data_pack

    return data_pack(args)


def _data_check(args: argparse.Namespace) -> int:
    from .data import data_check

    return data_check(args)


def _data_sky(args: argparse.Namespace) -> int:
    from .data import data_sky

    return data_sky(args)


def _add_label(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "label",
        help="label shards of images with a teacher",
        description="Writes for each shard of images one of the same name with the images, the "
        "teacher's disparity (16 bit, at the teacher's resolution) and its scale and offset.",
        epilog="A shard appears under its name when it is whole; running the command again, or "
        "several times at once on one file system, skips what is there or in work. Under torchrun "
        "(torchrun --no-python --nproc-per-node 8 dafast label ...) each process takes its share. "
        "An image that cannot be labeled is left out and named in SHARD.failures.jsonl; the exit "
        "code is then 1.",
    )
    parser.add_argument("--model", required=True, help="preset, hub id, file or folder")
    parser.add_argument(
        "--in", dest="inputs", required=True, metavar="SHARDS", help="folder, file, pattern, URL"
    )
    parser.add_argument("--out", required=True, metavar="DIR|URL", help="where to write")
    parser.add_argument(
        "--size",
        type=_positive,
        metavar="N",
        help="shorter side in pixels that the network sees (default: the model's own)",
    )
    parser.add_argument(
        "--batch-tokens",
        type=_positive,
        metavar="N",
        help="images run together up to this many tokens (default: that of infer, 8192)",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=2,
        help="threads that decode and compress (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    parser.set_defaults(function=_label)


def _label(args: argparse.Namespace) -> int:
    from .label import label

    return label(args)


def _add_eval(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "eval",
        help="score a model against measured depth or class maps, beside baselines",
        description="AbsRel, delta_1 and the rest after alignment to the truth, beside the best "
        "constant and the best plane. Under torchrun the images are shared among the processes.",
    )
    parser.add_argument(
        "--model", default="nano", help="preset, hub id, file or folder (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=["builtin"],
        metavar="NAME[=PATH]",
        help="builtin (real photos), synthetic, kitti=FOLDER, nyuv2=FOLDER, list=FILE.csv, ... "
        "(default: builtin); docs/evaluation.md has all of them",
    )
    parser.add_argument(
        "--protocol",
        default="paper",
        metavar="NAME",
        help="paper (Depth Anything), midas or moge (default: %(default)s)",
    )
    parser.add_argument(
        "--align",
        metavar="NAME",
        help="scale_shift, scale, median, robust, depth_scale_shift or none, in place of the "
        "protocol's (scale_shift)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep predictions there, and use those that are there",
    )
    parser.add_argument(
        "--fit",
        default="pad",
        choices=("pad", "official"),
        help="how a photo becomes the network's input (default: %(default)s)",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="predict the mirror image of each photo too, and average",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--md", action="store_true", help="print the table as Markdown")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    group = parser.add_argument_group(
        "segmentation models",
        "a folder that train.py exported with [segmentation]; scored by mean intersection over "
        "union on cityscapes=FOLDER, ade20k=FOLDER, list=FILE.csv, synthetic: docs/segmentation.md",
    )
    group.add_argument(
        "--size",
        type=_positive,
        metavar="N",
        help="shorter side in pixels that scale 1 stands for (default: the encoder's own)",
    )
    group.add_argument(
        "--scales",
        type=float,
        nargs="+",
        metavar="S",
        help="views of each photo, averaged (default: 1)",
    )
    group.add_argument(
        "--window",
        type=_positive,
        metavar="N",
        help="slide a window of N pixels over each view (default: the whole view at once)",
    )
    group.add_argument(
        "--stride", type=_positive, metavar="N", help="between windows (default: 2/3 of one)"
    )
    parser.set_defaults(function=_eval)


def _eval(args: argparse.Namespace) -> int:
    from .evaluate import evaluate

    return evaluate(args)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="dafast", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"dafast {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_run, _add_doctor, _add_synth, _add_data, _add_label, _add_eval):
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        argv: Arguments after the program's name; those of the process by default.
    """
    args = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name need not be text that the terminal or the log can show.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = args.function(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("dafast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`). Python would complain again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.traceback:
            raise
        if isinstance(error, CommandError | OSError | ValueError | TypeError):
            print(f"dafast: error: {error}", file=sys.stderr)
        else:
            print(
                f"dafast: error: {type(error).__name__}: {error}\n"
                "dafast: `dafast --traceback ...` shows where it came from",
                file=sys.stderr,
            )
        return 1
