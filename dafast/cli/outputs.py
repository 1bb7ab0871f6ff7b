"""Results of ``dafast run``: writes them, and finds those that exist already."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from ..geometry import MAX_TOKENS
from ..palettes import colorize

TAG = "dafast"
"""Key of the PNG text chunk that says how a picture was made."""

_ROWS = 16
"""Rows that are converted at a time: the float64 values of a large map would be large."""

_EXTENT = ("disparity_min", "disparity_max")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_LONGEST_MARK = 1 << 20


class ResultExistsError(Exception):
    """A file that this run may not replace is in the way."""


@dataclass(frozen=True)
class Prediction:
    """The map of a photo.

    Attributes:
        disparity: (H, W) float32.
        photo: (H, W, 3), uint8 or float32 in 0..1; None where no result shows it.
        facts: Facts that the PNG files note, next to the settings.
    """

    disparity: np.ndarray
    photo: np.ndarray | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Output:
    """One file to write for a photo.

    Attributes:
        path: Its path.
        settings: What it was made from and how; kept in the file where its format can.
        write: Writes it to an open file.
        wanted: Whether the options ask for it; otherwise it is replaced only if it exists.
        shows_photo: Whether it needs the photo.
    """

    path: Path
    settings: dict[str, Any]
    write: Callable[[BinaryIO, Prediction], None]
    wanted: bool = True
    shows_photo: bool = False


def _strips(height: int) -> Iterator[slice]:
    for start in range(0, height, _ROWS):
        yield slice(start, start + _ROWS)


def _normaliser(disparity: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Maps values of a map to 0..1, by its minimum and maximum; a constant map to 0."""
    low, high = float(disparity.min()), float(disparity.max())
    if high <= low:
        return lambda values: np.zeros(values.shape)
    return lambda values: (values.astype(np.float64) - low) / (high - low)


def _save_png(image: Image.Image, file: BinaryIO, made: Prediction, settings: Any) -> None:
    # With the range the 16-bit picture gives back the disparity that it was made from.
    extent = dict(
        zip(_EXTENT, (float(made.disparity.min()), float(made.disparity.max())), strict=True)
    )
    info = PngImagePlugin.PngInfo()
    info.add_text(TAG, json.dumps({**settings, **extent, **made.facts}, sort_keys=True))
    # Level 6 takes three times as long for a few per cent.
    image.save(file, format="PNG", pnginfo=info, compress_level=3)


def _write_depth(file: BinaryIO, made: Prediction, settings: dict[str, Any]) -> None:
    normalise = _normaliser(made.disparity)
    values = np.empty(made.disparity.shape, np.uint16)
    for rows in _strips(len(values)):
        values[rows] = (normalise(made.disparity[rows]) * 65535).round()
    _save_png(Image.fromarray(values), file, made, settings)


def _write_color(file: BinaryIO, made: Prediction, settings: dict[str, Any]) -> None:
    """Writes the colours, to the right of the photo where there is one."""
    height, width = made.disparity.shape
    left = 0 if made.photo is None else width
    normalise = _normaliser(made.disparity)
    image = Image.new("RGB", (left + width, height))
    for rows in _strips(height):
        if made.photo is not None:
            photo = made.photo[rows]
            if photo.dtype != np.uint8:
                photo = (np.clip(photo, 0, 1) * 255).round().astype(np.uint8)
            image.paste(Image.fromarray(photo), (0, rows.start))
        colors = colorize(normalise(made.disparity[rows]), settings["palette"])
        image.paste(Image.fromarray(colors), (left, rows.start))
    _save_png(image, file, made, settings)


def _write_array(file: BinaryIO, made: Prediction) -> None:
    np.save(file, made.disparity.astype(np.float32, copy=False), allow_pickle=False)


def plan_outputs(
    out: Path,
    name: str,
    settings: dict[str, Any],
    palette: str,
    side_by_side: bool = False,
    npy: bool = False,
) -> list[Output]:
    """Lists the files of one photo, also those that are not asked for.

    Args:
        out: Folder of the results.
        name: The photo's name among the results.
        settings: The photo, the model and its options.
        palette: Colours.
        side_by_side: Whether the photo next to the colours is asked for.
        npy: Whether the array is asked for.
    """
    colored = {**settings, "palette": palette}

    def depth(file: BinaryIO, made: Prediction) -> None:
        _write_depth(file, made, settings)

    def color(file: BinaryIO, made: Prediction) -> None:
        _write_color(file, Prediction(made.disparity, None, made.facts), colored)

    def side(file: BinaryIO, made: Prediction) -> None:
        _write_color(file, made, colored)

    return [
        Output(out / f"{name}_depth.png", settings, depth),
        Output(out / f"{name}_color.png", colored, color),
        Output(out / f"{name}_side.png", colored, side, side_by_side, shows_photo=True),
        Output(out / f"{name}.npy", settings, _write_array, npy),
    ]


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings in a PNG that `dafast run` wrote, or None if it did not write this file.

    Only the part before the pixels is read.
    """
    try:
        with path.open("rb") as file:
            if file.read(8) != _PNG_START:
                return None
            while True:
                length, kind = struct.unpack(">I4s", file.read(8))
                if kind == b"tEXt" and length <= _LONGEST_MARK:
                    key, _, text = file.read(length).partition(b"\0")
                    if key == TAG.encode():
                        settings = json.loads(text)
                        break
                    length = 0
                if kind in (b"IDAT", b"IEND"):
                    return None
                file.seek(length + 4, 1)  # and the checksum
    except (OSError, ValueError, struct.error):  # damaged, or not ours
        return None
    return settings if isinstance(settings, dict) and "disparity_min" in settings else None


def _is_whole(path: Path) -> bool:
    """Whether a PNG ends as it should."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_PNG_END)))
        return file.read() == _PNG_END


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of the settings in which a result differs from what this run would write."""
    # Where the token limit made a photo smaller, `size` is what the network saw.
    asked = {"max_tokens": MAX_TOKENS, **found, "size": found.get("asked_size", found.get("size"))}
    return sorted(key for key, value in wanted.items() if asked.get(key) != value)


def missing_outputs(outputs: list[Output]) -> list[Output]:
    """Returns the wanted outputs that are not there yet.

    Raises:
        ResultExistsError: If a file is in the way that is not what this run would write.
    """
    wanted = [output for output in outputs if output.wanted]
    missing = [output for output in wanted if not output.path.exists()]
    for output in wanted:
        if output in missing or output.path.suffix == ".npy":
            continue
        whole = _is_whole(output.path)  # raises an error for a file that cannot be read
        found = read_settings(output.path)
        if found is None or not whole:
            raise ResultExistsError(f"{output.path} exists and is not from dafast")
        if different := _differences(found, output.settings):
            raise ResultExistsError(
                f"{output.path} exists, but with different {' and '.join(different)}"
            )
    depth, array = outputs[0], outputs[-1]
    if array.wanted and array not in missing:  # it says nothing about itself
        if depth in missing:
            raise ResultExistsError(f"{array.path} exists without {depth.path.name}")
        if not _is_array_of(array.path, depth.path):
            raise ResultExistsError(f"{array.path} exists and does not belong to {depth.path.name}")
    return missing


def replaced_outputs(outputs: list[Output]) -> list[Output]:
    """Returns what ``--overwrite`` writes: what is wanted, and our other results of this photo."""
    depth = outputs[0]
    return [
        output
        for output in outputs
        if output.wanted
        or (output.path.suffix == ".npy" and _is_array_of(output.path, depth.path))
        or (output.path.suffix == ".png" and read_settings(output.path) is not None)
    ]


def strays(outputs: list[Output]) -> list[Path]:
    """Files that look like results of a photo next to its new ones, and are not."""
    depth, side, array = outputs[0], outputs[2], outputs[3]
    found = []
    if not side.wanted and (settings := read_settings(side.path)):
        map_of = read_settings(depth.path) or {}
        if any(settings.get(key) != map_of.get(key) for key in (*depth.settings, *_EXTENT)):
            found.append(side.path)
    if not array.wanted and array.path.exists() and not _is_array_of(array.path, depth.path):
        found.append(array.path)
    return found


def _is_array_of(array: Path, depth: Path) -> bool:
    """Whether a .npy has the range that is noted in the depth picture next to it."""
    settings = read_settings(depth)
    if settings is None:
        return False
    try:
        values = np.load(array, mmap_mode="r", allow_pickle=False)
        extent = (float(values.min()), float(values.max()))
    except Exception:  # not an array, or damaged
        return False
    return extent == tuple(settings.get(key) for key in _EXTENT)
