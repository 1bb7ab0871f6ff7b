"""``dafast run``: photos in, depth pictures out."""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..palettes import PALETTES
from ._common import CommandError, add_device, add_fit, add_model, positive

if TYPE_CHECKING:
    from ..models import DepthAnything


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "run",
        help="predict the depth of photos",
        description="Predicts the disparity of photos (bright, and the palette's far end, is "
        "near). Writes for each photo NAME_depth.png (16 bit, scaled from its minimum to its "
        "maximum), NAME_color.png and the files that the options add. NAME is the photo's own "
        "name, made longer where two photos share it.",
        epilog="A photo that cannot be read or written never stops the others: the summary names "
        "it, and the exit code is 1. Running the same command again keeps finished pictures. A "
        "picture of the same name from another photo, model or palette is kept and reported as a "
        "failure unless --overwrite is given.",
    )
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO|FOLDER|GLOB", help="files, folders, quoted patterns"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    add_model(parser, "nano")
    parser.add_argument(
        "--palette",
        default="Spectral_r",
        choices=PALETTES,
        help="colours of NAME_color.png (default: %(default)s)",
    )
    parser.add_argument(
        "--npy", action="store_true", help="also write NAME.npy: the disparity in float32"
    )
    parser.add_argument(
        "--side-by-side",
        action="store_true",
        help="also write NAME_side.png: the photo next to the colours",
    )
    parser.add_argument("--recursive", action="store_true", help="also read subfolders")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_fit(parser)
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="shorter side in pixels that the network sees (default: the model's own)",
    )
    add_device(parser)
    parser.set_defaults(function=run)


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


@dataclass
class _Counts:
    written: int = 0
    kept: int = 0


def _read_heif() -> None:
    """Lets Pillow open HEIC and HEIF photos, where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:  # `load_image` says so of each such photo
        return
    register_heif_opener()


def run(args: argparse.Namespace) -> int:
    """Runs ``dafast run``."""
    from tqdm import tqdm

    from ..models.inference import check_options
    from ._model import digest_model, load_relative_model
    from .files import find_photos, result_names

    _read_heif()
    photos, problems = find_photos(args.photos, args.out, args.recursive)
    if photos:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=args.out):
                pass  # fails now and not after the first prediction
        except OSError as error:
            raise CommandError(f"--out {args.out}: cannot be written to ({error})") from error
    failures = list(problems)
    counts = _Counts()
    model: DepthAnything | None = None
    start = time.perf_counter()
    interrupted = False
    if photos:
        model = load_relative_model(args.model, args.device, args.dtype, "run")
        settings = {
            "model": model.config.name,
            "weights": digest_model(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "fit": args.fit,
            "size": args.size or model.config.image_size,
        }
        check_options(model.config, size=args.size, fit=args.fit)  # a bad --size ends it here
        names = result_names(photos)
        sources = {p.resolve() for p in photos}
        # Bar on a terminal; elsewhere (a log) a line for each photo.
        terminal = sys.stderr.isatty()
        bar = tqdm(total=len(photos), unit="photo", disable=not terminal, leave=False)
        try:
            for photo, name in zip(photos, names, strict=True):
                bar.set_postfix_str(photo.name)
                began = time.perf_counter()
                try:
                    wrote = _one(model, photo, name, settings, sources, args)
                except Exception as error:  # one photo never stops the rest
                    if args.traceback:
                        raise
                    reason = _reason(error, photo)
                    failures.append((str(photo), reason))
                    if not terminal:
                        print(f"{photo}: FAILED", flush=True)
                else:
                    counts.written += wrote
                    counts.kept += not wrote
                    if not terminal:
                        what = f"{time.perf_counter() - began:.2f} s" if wrote else "is there"
                        print(f"{photo} -> {args.out / name}_*.png  {what}", flush=True)
                bar.update()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            bar.close()
    left = len(photos) - counts.written - counts.kept - (len(failures) - len(problems))
    _summary(args, counts, failures, time.perf_counter() - start, left if interrupted else None)
    if interrupted:
        return 130
    return 1 if failures else 0


def _one(
    model: DepthAnything,
    photo: Path,
    name: str,
    settings: dict[str, Any],
    sources: set[Path],
    args: argparse.Namespace,
) -> bool:
    """Handles one photo; False if all its results are there already."""
    import numpy as np

    from ..images import load_image
    from .files import write_atomically
    from .outputs import ResultExistsError, missing_outputs, plan_outputs

    if not photo.is_file():
        load_image(photo)  # raises, saying what it is instead
    outputs = plan_outputs(args.out, name, {**settings, "photo": _digest_file(photo)}, args)
    for output in outputs:
        if output.path.resolve() in sources:
            raise ResultExistsError(
                f"{output.path} is itself one of the photos; choose another --out"
            )
    if not args.overwrite:
        outputs = missing_outputs(outputs)
    if not outputs:
        return False
    image = load_image(photo)
    disparity = model.infer(image, fit=args.fit, size=args.size)
    if not np.isfinite(disparity).all():
        raise ValueError(
            f"the model gave NaN or infinity in {settings['dtype']}; try --dtype float32"
        )
    for output in outputs:
        write_atomically(
            output.path, functools.partial(output.write, photo=image, disparity=disparity)
        )
    return True


def _reason(error: Exception, photo: Path) -> str:
    """The message of an error on one line, without the photo's name, which stands before it."""
    from .outputs import ResultExistsError

    text = " ".join(str(error).split()).removeprefix(f"{photo}: ")
    if isinstance(error, ResultExistsError):
        return f"{text}; --overwrite replaces it" if "--out" not in text else text
    if isinstance(error, OSError | ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}"


def _summary(
    args: argparse.Namespace,
    counts: _Counts,
    failures: list[tuple[str, str]],
    seconds: float,
    left: int | None,
) -> None:
    """Prints what was done; ``left`` counts the photos that an interruption left."""
    parts = [f"{counts.written} written to {os.fspath(args.out)}{os.sep}"]
    if counts.kept:
        parts.append(f"{counts.kept} already there")
    if failures:
        parts.append(f"{len(failures)} failed")
    if left is not None:
        parts.append(f"interrupted with {left} left")
    print(f"{', '.join(parts)} ({seconds:.1f} s)")
    for name, reason in failures:
        print(f"  FAILED {name}: {reason}")
