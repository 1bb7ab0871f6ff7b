"""``dafast run``: photos in, depth pictures out."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from ..images import load_image
from ..models.inference import check_options
from ..palettes import colorize
from . import CommandError
from ._model import digest_model, load_relative_model
from .files import find_photos, result_names, write_atomically

if TYPE_CHECKING:
    from ..models import DepthAnything

TAG = "dafast"
"""Key of the PNG text chunk that says how a picture was made."""


class ResultExistsError(Exception):
    """A file that this run may not replace is in the way."""


@dataclass(frozen=True)
class Output:
    """One file to write for a photo.

    Attributes:
        path: Where.
        settings: What it was made from and how; kept in the file where its format can.
        write: Writes it to an open file, given ``photo`` and ``disparity``.
    """

    path: Path
    settings: dict[str, Any]
    write: Callable[..., None]


def normalise(disparity: np.ndarray) -> np.ndarray:
    """Maps a disparity map to 0..1 by its minimum and maximum; a constant one to 0."""
    low, high = float(disparity.min()), float(disparity.max())
    if high <= low:
        return np.zeros(disparity.shape, np.float32)
    return (disparity.astype(np.float64) - low) / (high - low)


def _png_info(settings: dict[str, Any], disparity: np.ndarray) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    # With the range the 16-bit picture gives back the disparity that it was made from.
    extent = {"disparity_min": float(disparity.min()), "disparity_max": float(disparity.max())}
    info.add_text(TAG, json.dumps({**settings, **extent}, sort_keys=True))
    return info


def _save_png(image: Image.Image, file: BinaryIO, info: PngImagePlugin.PngInfo) -> None:
    # Level 6 takes three times as long for a few per cent.
    image.save(file, format="PNG", pnginfo=info, compress_level=3)


def _photo_as_uint8(photo: np.ndarray) -> np.ndarray:
    if photo.dtype == np.uint8:
        return photo
    return (np.clip(photo, 0, 1) * 255).round().astype(np.uint8)


def plan_outputs(out: Path, name: str, settings: dict[str, Any], args: Any) -> list[Output]:
    """Lists the files to write for one photo.

    Args:
        out: Folder of the results.
        name: The photo's name among the results.
        settings: The photo, the model and its options.
        args: The command line.
    """
    colored = {**settings, "palette": args.palette}

    def depth(file: BinaryIO, photo: np.ndarray, disparity: np.ndarray) -> None:
        values = (normalise(disparity) * 65535).round().astype(np.uint16)
        _save_png(Image.fromarray(values), file, _png_info(settings, disparity))

    def color(file: BinaryIO, photo: np.ndarray, disparity: np.ndarray) -> None:
        rgb = colorize(normalise(disparity), args.palette)
        _save_png(Image.fromarray(rgb), file, _png_info(colored, disparity))

    def side(file: BinaryIO, photo: np.ndarray, disparity: np.ndarray) -> None:
        rgb = colorize(normalise(disparity), args.palette)
        both = np.concatenate([_photo_as_uint8(photo), rgb], axis=1)
        _save_png(Image.fromarray(both), file, _png_info(colored, disparity))

    def npy(file: BinaryIO, photo: np.ndarray, disparity: np.ndarray) -> None:
        np.save(file, disparity.astype(np.float32), allow_pickle=False)

    outputs = [
        Output(out / f"{name}_depth.png", settings, depth),
        Output(out / f"{name}_color.png", colored, color),
    ]
    if args.side_by_side:
        outputs.append(Output(out / f"{name}_side.png", colored, side))
    if args.npy:
        outputs.append(Output(out / f"{name}.npy", settings, npy))
    return outputs


def _read_settings(path: Path) -> dict[str, Any] | None:
    """The settings in a PNG written by `plan_outputs`, or None if they are not there."""
    try:
        with Image.open(path) as image:
            settings = json.loads(image.text[TAG])  # type: ignore[attr-defined]
    except Exception:  # not a PNG, not ours, damaged: all the same here
        return None
    return settings if isinstance(settings, dict) else None


def missing_outputs(outputs: list[Output]) -> list[Output]:
    """Returns the outputs that are not there yet.

    Raises:
        ResultExistsError: If a file is in the way that is not what this run would write.
    """
    missing = []
    present = []
    for output in outputs:
        if not output.path.exists():
            missing.append(output)
            continue
        present.append(output)
        if output.path.suffix == ".npy":  # says nothing about itself: see below
            continue
        found = _read_settings(output.path)
        if found is None:
            raise ResultExistsError(f"{output.path} is there and not from dafast")
        different = [k for k, v in output.settings.items() if found.get(k) != v]
        if different:
            raise ResultExistsError(
                f"{output.path} is there, with a different {' and '.join(sorted(different))}"
            )
    depth = outputs[0]
    for array in (o.path for o in present if o.path.suffix == ".npy"):
        if depth in missing:
            raise ResultExistsError(f"{array} is there without {depth.path.name}")
        if not _same_range(array, _read_settings(depth.path) or {}):
            raise ResultExistsError(f"{array} is there and not that of {depth.path.name}")
    return missing


def _same_range(array: Path, settings: dict[str, Any]) -> bool:
    """Whether a .npy has the range that stands in the depth picture beside it.

    It has not where --overwrite without --npy has replaced the picture alone.
    """
    try:
        values = np.load(array, mmap_mode="r", allow_pickle=False)
        extent = (float(values.min()), float(values.max()))
    except Exception:  # not an array, damaged: all the same here
        return False
    return extent == (settings.get("disparity_min"), settings.get("disparity_max"))


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

    _read_heif()
    photos, problems = find_photos(args.photos, args.out, args.recursive)
    if photos:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=args.out):
                pass  # better told now than after the first prediction
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
    """Handles one photo; False if all that is wanted is there already."""
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
