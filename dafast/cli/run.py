"""``dafast run``: photos in, maps, pictures and scenes out.

Peak memory, in addition to the model: 11 bytes a pixel of an 8-bit photo, as in `infer`, and 17
with ``side``, ``ply`` and ``normals``; ``glb`` takes 0.2 GB more for its million of vertices.
On a GPU it is 3 bytes a pixel more, and 3 for the next photo, which is decoded ahead.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._camera import add_camera
from ._common import (
    CommandError,
    add_device,
    add_fit,
    add_max_tokens,
    add_model,
    depth,
    make_folder,
    named_path,
    positive,
)
from ._model import is_exported
from ._startup import end_quickly, preload_torch

if TYPE_CHECKING:
    from ..distributed import Processes
    from .photos import Found
    from .run_photos import Counts

FORMATS = (
    *("png16", "color", "gray", "side", "exr", "npz", "npy", "tiff", "pfm", "ply", "glb"),
    *("normals", "classes", "overlay"),
)
"""The names that ``--formats`` takes; the last two are those of segmentation models."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "run",
        help="predict the depth of photos",
        description="Predicts the depth of photos. Writes for each photo NAME_depth.png and "
        "NAME_color.png, or the files that --formats names. The maps of a relative model hold "
        "disparity (large is near), those of a metric model metres; docs/output.md describes the "
        "files. A segmentation model gives NAME_classes.png and NAME_overlay.png. NAME is the "
        "photo's own name, made longer by its suffix or its folders where two photos share it.",
        epilog="A photo that cannot be read or written never stops the others: the summary names "
        "it, and the exit code is 1. Folders that cannot be read, links to folders and links to "
        "missing files are named in the same way; hidden files do not count, and results of "
        "earlier runs are counted and left out. Running the same command again keeps finished "
        "pictures. A picture of the same name from another photo, model or palette is kept and "
        "reported as a failure unless --overwrite is given.",
    )
    parser.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO|FOLDER|GLOB|@LIST|-",
        help="files, folders, quoted patterns, @FILE with one of them on each line, - for a list "
        "on standard input",
    )
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="DIR", help="where to write"
    )
    add_model(parser, "nano")
    parser.add_argument(
        "--formats",
        type=_formats,
        metavar="NAME,...",
        help=f"files to write: {', '.join(FORMATS)} (default: png16,color; of a segmentation model "
        "classes,overlay)",
    )
    parser.add_argument("--npy", action="store_true", help="adds npy to the formats")
    parser.add_argument("--side-by-side", action="store_true", help="adds side to the formats")
    parser.add_argument(
        "--palette",
        type=_palette,
        metavar="NAME",
        help="colours: Spectral_r, inferno, magma, plasma, viridis, turbo, gray, or a name of "
        "matplotlib or cmap, if one of them is installed (default: Spectral_r)",
    )
    parser.add_argument(
        "--common-range",
        action="store_true",
        help="scale png16, color, gray and side by one range of disparity for all photos, as for a "
        "sequence",
    )
    parser.add_argument(
        "--depth-scale",
        type=depth,
        metavar="STEPS",
        help="steps per metre in NAME_depth.png of a metric model; depth above 65535 steps becomes "
        "0, and is counted (default: 1000, millimetres)",
    )
    parser.add_argument(
        "--edge-threshold",
        type=depth,
        metavar="FRACTION",
        help="glb: leave out triangles whose depth differs by more than this fraction (default: "
        "0.05)",
    )
    add_camera(parser)
    _add_large(parser)
    parser.add_argument("--recursive", action="store_true", help="also read subfolders")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing files, and with them the other results of an earlier run",
    )
    add_fit(parser)
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="shorter side in pixels that the network sees, the longer one with "
        "--fit upper_bound (default: the model's own)",
    )
    add_max_tokens(parser)
    add_device(parser)
    parser.set_defaults(function=run)


def _add_large(parser: argparse.ArgumentParser) -> None:
    """Adds ``--tile``, ``--guided`` and ``--panorama``."""
    parser.add_argument(
        "--tile",
        type=_tile,
        metavar="auto|N",
        help="predict large photos in overlapping tiles, of N pixels a side or of a size that "
        "suits the photo: more detail, and more time (default: one pass)",
    )
    parser.add_argument(
        "--guided",
        action="store_true",
        help="enlarge the maps along the edges of the photo: sharper borders of objects",
    )
    parser.add_argument(
        "--panorama",
        action="store_true",
        help="the photos are equirectangular, 360 by 180 degrees: the maps hold the distance from "
        "the camera, and ply and glb surround it",
    )


def _tile(text: str) -> int | str:
    """Parses "auto" or a number of pixels."""
    return text if text == "auto" else positive(text)


def _formats(text: str) -> tuple[str, ...]:
    """Parses the names of formats."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'no name'}; choose from {', '.join(FORMATS)}"
        )
    return tuple(dict.fromkeys(names))


def _palette(text: str) -> str:
    """Parses the name of a palette."""
    from ..palettes import check_palette

    try:
        check_palette(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def run(args: argparse.Namespace) -> int:
    """Runs ``dafast run``, in one process or under torchrun in many."""
    if args.is_process:  # not if a program calls `main`: it may have files of its own
        end_quickly()
    if not is_exported(args.model):
        preload_torch()
    from .run_photos import Counts

    with _session() as world:
        found = world.broadcast(_find(args) if world.is_main else None)
        if isinstance(found, CommandError):
            raise found
        if not found.photos:
            if not world.is_main:
                return 0
            _summary(args, found, Counts(), 0.0)
            return 1
        return _run(args, found, world)


@contextmanager
def _session() -> Iterator[Processes]:
    """The processes of torchrun, or this one."""
    from ..distributed import Processes, distributed_session

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        with distributed_session() as world:
            yield world
    else:
        yield Processes(0, 1)


def _find(args: argparse.Namespace) -> Found | CommandError:
    """The photos; makes the folder of the results. An error is returned, for all processes."""
    from .photos import find_photos

    try:
        found = find_photos(args.photos, args.recursive)
        if found.photos:
            make_folder(args.out)
    except CommandError as error:
        return error
    return found


def _run(args: argparse.Namespace, found: Found, world: Processes) -> int:
    """Handles this process's share of the photos, and sums up those of all processes."""
    from .predictors import open_predictor
    from .run_photos import Counts, PhotoRun

    start = time.perf_counter()
    predictor = open_predictor(args)
    share = found.photos[world.rank :: world.size]
    formats = _chosen(args, predictor.formats, predictor.default)
    photos = PhotoRun(predictor, share, found.photos, formats, args)
    interrupted = False
    try:
        if args.common_range:
            photos.find_range(world)
        photos.run()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        photos.close()
    counts, count = photos.counts, len(share)
    if not interrupted:
        counts, count = sum(world.gather(counts), Counts()), len(found.photos)
    if not (world.is_main or interrupted):
        return 0  # torchrun ends all processes at the first error, also one before its summary
    left = count - counts.written - counts.kept - len(counts.failures)
    seconds = time.perf_counter() - start
    _summary(args, found, counts, seconds, left if interrupted else None)
    if interrupted:
        return 130
    return 1 if counts.failures or found.problems else 0


def _chosen(args: argparse.Namespace, formats: Iterable[str], default: Sequence[str]) -> list[str]:
    """Names of the formats that the options ask for."""
    names = list(args.formats or default)
    names += ["npy"] * args.npy + ["side"] * args.side_by_side
    wrong = [name for name in names if name not in formats]
    if wrong:
        others = [name for name in formats if name != "facts"]
        raise CommandError(
            f"{args.model}: this kind of model has no {', '.join(wrong)}; --formats takes "
            f"{', '.join(others)}"
        )
    return list(dict.fromkeys(names))


def _span(values: Sequence[float]) -> str:
    """The smallest and the largest of some values."""
    low, high = (f"{pick(values):.1f}" for pick in (min, max))
    return low if low == high else f"{low}..{high}"


_CAMERAS = {
    "given": "from --intrinsics",
    "fov": "from --fov",
    "exif": "from EXIF data",
    "assumed": "assumed (28 mm on 35 mm film; --fov or --intrinsics says better)",
    "none": "unknown",
}


def _summary(
    args: argparse.Namespace,
    found: Found,
    progress: Counts,
    seconds: float,
    left: int | None = None,
) -> None:
    """Prints the summary; ``left`` counts the photos that an interruption left."""
    from .run_photos import shown

    failures = found.problems + progress.failures
    parts = [f"{progress.written} written to {os.fspath(args.out)}{os.sep}"]
    if progress.kept:
        parts.append(f"{progress.kept} already there")
    if found.results:
        what = "result of an earlier run" if found.results == 1 else "results of earlier runs"
        parts.append(f"{found.results} {what} left out")
    if failures:
        parts.append(f"{len(failures)} failed")
    if left is not None:
        parts.append(f"interrupted with {left} left")
    print(f"{', '.join(parts)} ({seconds:.1f} s)")
    if progress.cameras:
        sources = [
            f"{len(focals)} {_CAMERAS[source]}, fx {_span(focals)}"
            for source, focals in sorted(progress.cameras.items())
        ]
        print(f"  camera: {'; '.join(sources)}")
    for name, reason in failures:
        print(f"  FAILED {shown(name)}: {reason}")
    for warning in progress.warnings:
        print(f"  warning: {warning}")
