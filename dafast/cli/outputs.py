"""Results of ``dafast run``: how they are written, and which of them are there already."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from ..palettes import colorize

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
    except Exception:  # not a PNG, not ours, damaged
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
    """Whether a .npy has the range that stands in the depth picture next to it.

    It does not if --overwrite without --npy has replaced only the picture.
    """
    try:
        values = np.load(array, mmap_mode="r", allow_pickle=False)
        extent = (float(values.min()), float(values.max()))
    except Exception:  # not an array, damaged
        return False
    return extent == (settings.get("disparity_min"), settings.get("disparity_max"))
