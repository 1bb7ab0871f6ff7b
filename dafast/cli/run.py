"""``dafast run``: photos in, depth pictures out.

Peak memory, in addition to the model: 11 bytes a pixel of an 8-bit photo, as in `infer`, and 17
with ``--side-by-side``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..palettes import PALETTES
from ._common import (
    CommandError,
    add_device,
    add_fit,
    add_max_tokens,
    add_model,
    named_path,
    positive,
)
from ._log import is_quiet
from ._process import interrupted

if TYPE_CHECKING:
    import numpy as np

    from ..models import DepthAnything
    from .photos import Found, Photo


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "run",
        help="predict the depth of photos",
        description="Predicts the disparity of photos (bright, and the palette's far end, is "
        "near). Writes for each photo NAME_depth.png (16 bit, scaled from its minimum to its "
        "maximum), NAME_color.png and the files that the options add. NAME is the photo's own "
        "name, made longer by its suffix or its folders where two photos share it.",
        epilog="A photo that cannot be read or written never stops the others: the summary names "
        "it, and the exit code is 1. Folders that cannot be read, links to folders and links to "
        "missing files are named in the same way; hidden files do not count, and results of "
        "earlier runs are counted and left out. Running the same command again keeps finished "
        "pictures. A picture of the same name from another photo, model or palette is kept and "
        "reported as a failure unless --overwrite is given.",
    )
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO|FOLDER|GLOB", help="files, folders, quoted patterns"
    )
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="DIR", help="where to write"
    )
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
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing files, and with them NAME.npy and NAME_side.png of an earlier run",
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


def run(args: argparse.Namespace) -> int:
    """Runs ``dafast run``."""
    from ..files import explain
    from .photos import find_photos

    found = find_photos(args.photos, args.recursive)
    if not found.photos:
        _summary(args, found, _Counts(), 0.0)
        return 1
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.out):
            pass  # fails now and not after the first prediction
    except OSError as error:
        reason = error.strerror or explain(error)
        raise CommandError(f"--out {args.out}: cannot be written to ({reason})") from error
    start = time.perf_counter()
    model, settings = _load(args)
    progress = _Counts()
    interrupted = False
    try:
        _predict(model, found.photos, settings, args, progress)
    except KeyboardInterrupt:
        interrupted = True
    left = len(found.photos) - progress.written - progress.kept - len(progress.failures)
    _summary(args, found, progress, time.perf_counter() - start, left if interrupted else None)
    if interrupted:
        return 130
    return 1 if progress.failures or found.problems else 0


@dataclass
class _Counts:
    """Counts of the photos that have been handled so far."""

    written: int = 0
    kept: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def _load(args: argparse.Namespace) -> tuple[DepthAnything, dict[str, Any]]:
    """The model, and the settings that results depend on."""
    from ..models.inference import check_options
    from ._model import digest_model, load_relative_model

    model = load_relative_model(args, "run")
    # A bad option ends the command before any photo.
    check_options(model.config, size=args.size, fit=args.fit, max_tokens=args.max_tokens)
    return model, {
        "model": model.config.name,
        "weights": digest_model(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "fit": args.fit or model.config.fit,
        "size": args.size or model.config.image_size,
        "max_tokens": args.max_tokens,
    }


def _predict(
    model: DepthAnything,
    photos: Sequence[Photo],
    settings: dict[str, Any],
    args: argparse.Namespace,
    progress: _Counts,
) -> None:
    """Handles all photos, with a bar on a terminal and elsewhere (a log) a line for each."""
    from tqdm import tqdm

    # No photo is overwritten, nor the file that a link among them points to.
    sources = {_entry(photo.path) for photo in photos}
    sources |= {os.path.realpath(photo.path) for photo in photos}
    terminal, hidden = sys.stderr.isatty(), is_quiet()
    off = hidden or not terminal
    with tqdm(total=len(photos), unit="photo", disable=off, leave=False) as bar:
        for photo in photos:
            bar.set_postfix_str(_shown(photo.path.name))
            began = time.perf_counter()
            try:
                wrote = _one(model, photo, settings, sources, args, progress)
            except Exception as error:  # one photo never stops the rest
                if interrupted():
                    raise KeyboardInterrupt from error
                if args.traceback:
                    raise
                progress.failures.append((str(photo.path), _reason(error, photo.path)))
                if not terminal:
                    print(f"{_shown(photo.path)}: FAILED", flush=True)
            else:
                progress.written += wrote
                progress.kept += not wrote
                if not terminal and not hidden:
                    what = f"{time.perf_counter() - began:.2f} s" if wrote else "exists"
                    results = f"{_shown(args.out / photo.result)}_*.png"
                    print(f"{_shown(photo.path)} -> {results}  {what}", flush=True)
            bar.update()
            if interrupted():  # and a library swallowed it
                raise KeyboardInterrupt


def _shown(name: object) -> str:
    """A name without the characters that would change the line or the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def _entry(path: Path) -> str:
    """The entry of a folder that a path names: links among its folders resolved, not itself."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _one(
    model: DepthAnything,
    photo: Photo,
    settings: dict[str, Any],
    sources: set[str],
    args: argparse.Namespace,
    progress: _Counts,
) -> bool:
    """Handles one photo; False if all its results are there already."""
    import numpy as np

    from ..files import whole_file
    from ..images import is_pipe, load_image, read_image
    from .outputs import (
        Prediction,
        ResultExistsError,
        missing_outputs,
        plan_outputs,
        replaced_outputs,
        strays,
    )

    # A pipe can be read only once.
    data = photo.path.read_bytes() if is_pipe(photo.path) else None
    if data is None and not photo.path.is_file():
        load_image(photo.path)  # raises, and says what it is instead
    digest = _digest(photo.path) if data is None else hashlib.sha256(data).hexdigest()[:32]
    plan = plan_outputs(
        args.out,
        photo.result,
        {**settings, "photo": digest},
        args.palette,
        side_by_side=args.side_by_side,
        npy=args.npy,
    )
    for output in plan:
        if output.wanted and output.path.is_dir():
            raise ResultExistsError(f"{output.path} is a folder; remove it or choose another --out")
        if output.wanted and _entry(output.path) in sources:
            raise ResultExistsError(
                f"{output.path} is itself one of the photos; choose another --out"
            )
    outputs = replaced_outputs(plan) if args.overwrite else missing_outputs(plan)
    outputs = [output for output in outputs if _entry(output.path) not in sources]
    if outputs:
        image: Any = photo.path
        if data is not None:
            image = read_image(io.BytesIO(data), str(photo.path))
        elif any(output.shows_photo for output in outputs):
            image = load_image(photo.path)
        disparity = model.infer(image, fit=args.fit, size=args.size, max_tokens=args.max_tokens)
        if model.config.quantity == "depth":
            disparity = 1 / disparity
        _check_finite(disparity, settings["dtype"])
        if not any(output.shows_photo for output in outputs):
            image = None
        facts = {"photo_name": photo.name, **_true_size(model, disparity.shape, settings)}
        made = Prediction(disparity, np.asarray(image) if image is not None else None, facts)
        del image, disparity
        for output in outputs:
            with whole_file(output.path) as file:
                output.write(file, made)
    for path in strays(plan):
        progress.warnings.append(
            f"{path} is not of the same prediction as {plan[0].path.name}; remove it, or replace "
            "it with --overwrite and the option that writes it"
        )
    return bool(outputs)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _check_finite(disparity: np.ndarray, dtype: str) -> None:
    import numpy as np

    if not np.isfinite(disparity).all():
        remedy = "its weights may be damaged" if dtype == "float32" else "try --dtype float32"
        raise ValueError(f"the model gave NaN or infinity in {dtype}; {remedy}")


def _true_size(
    model: DepthAnything, shape: tuple[int, ...], settings: dict[str, Any]
) -> dict[str, int]:
    """The size that the network saw, where the token limit made it smaller than asked."""
    from ..geometry import plan_geometry

    asked = settings["size"]
    options = dict(size=asked, multiple=model.config.patch_size, fit=settings["fit"])
    free = plan_geometry(*shape, **options, max_tokens=2**62)
    cut = plan_geometry(*shape, **options, max_tokens=settings["max_tokens"], warn=False)
    side = max if settings["fit"] == "upper_bound" else min
    return {} if cut == free else {"size": side(cut.resized), "asked_size": asked}


def _reason(error: Exception, photo: Path) -> str:
    """The message of an error on one line, without the photo's name, which stands before it."""
    from ..files import explain, file_kind, one_line
    from ..images import PHOTO_SUFFIXES, ImageError
    from .outputs import ResultExistsError

    text = explain(error).removeprefix(f"{one_line(str(photo))}: ")
    if isinstance(error, OSError) and error.filename and Path(error.filename) == photo:
        text = error.strerror or text
    if isinstance(error, ResultExistsError):
        return f"{text}; --overwrite replaces it" if "--out" not in text else text
    named_as_photo = photo.suffix.lower() in PHOTO_SUFFIXES
    if isinstance(error, ImageError) and photo.is_file() and not named_as_photo:
        with photo.open("rb") as file:
            if file_kind(file.read(512)) in ("a text file", "a JSON file"):
                text += "; for a list of photos: xargs -d '\\n' dafast run --out DIR < LIST"
    if isinstance(error, OSError | ValueError | MemoryError):
        return text
    return f"{type(error).__name__}: {text}"


def _summary(
    args: argparse.Namespace,
    found: Found,
    progress: _Counts,
    seconds: float,
    left: int | None = None,
) -> None:
    """Prints what was done; ``left`` counts the photos that an interruption left."""
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
    for name, reason in failures:
        print(f"  FAILED {_shown(name)}: {reason}")
    for warning in progress.warnings:
        print(f"  warning: {warning}")
