"""Any data with depth or disparity, named file by file in a CSV or JSON list."""

from __future__ import annotations

import csv
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..samples import EvaluationSample, Samples
from ._files import missing, read_image, read_npy

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001}
NUMBERS = ("scale", "focal", "baseline", "offset", "max_depth")
FIELDS = ("image", "depth", "disparity", "mask", "unit", "sharp", *NUMBERS)

LAYOUT = """\
  a CSV file whose first line names its columns, or a JSON file with a list of objects, with
    image      file of the photo; names are relative to the list's folder
    depth      file of its depth, or
    disparity  file of its disparity, 1/m, or pixels where focal and baseline are given;
               .npy, or a picture with one channel (PNG of 8 or 16 bits, TIFF, PFM); values that
               are 0, negative, infinite or NaN are unknown
    mask       optional: .npy or picture, 0 where the truth does not count
    scale      optional: what stored values are multiplied by (1/256 for KITTI's PNG files)
    unit       optional, of depth after scaling: m (default), cm or mm
    focal, baseline, offset    optional, of stereo disparity in pixels: focal length in pixels,
               baseline in metres, and what is added to the disparity (default 0)
    max_depth  optional: cap in metres; without it the largest true depth of the image
    sharp      optional: 1 where boundaries can be measured
"""


def listed(path: Path) -> Samples:
    """The photos of a list; see `LAYOUT`.

    Args:
        path: A .csv or .json file.

    Raises:
        DataMissingError: If the file is not there.
        ValueError: If the list is not as in `LAYOUT`; the message names the entry.
    """
    if not path.is_file():
        raise missing(path, "is not a file", LAYOUT)
    try:
        if path.suffix.lower() == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected:\n{LAYOUT}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: no list of entries; expected:\n{LAYOUT}")
    return Samples([_check(path, i, row) for i, row in enumerate(rows, 1)], partial(_load, path))


def _check(path: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    where = f"{path}, entry {number}"
    row = {k: v for k, v in row.items() if v not in ("", None)}
    unknown = [k for k in row if k not in FIELDS]
    if unknown:
        hint = "a list with labels of classes is for segmentation models; " * ("label" in unknown)
        raise ValueError(
            f"{where}: unknown {', '.join(map(str, unknown))}; {hint}expected:\n{LAYOUT}"
        )
    if "image" not in row or ("depth" in row) == ("disparity" in row):
        raise ValueError(f"{where}: an image, and either a depth or a disparity, are needed")
    if ("focal" in row) != ("baseline" in row) or ("focal" in row and "depth" in row):
        raise ValueError(f"{where}: focal and baseline go together, with a disparity in pixels")
    if row.get("unit", "m") not in UNITS or ("unit" in row and "disparity" in row):
        raise ValueError(f"{where}: unit is one of {', '.join(UNITS)}, and goes with depth")
    try:
        numbers = {k: float(row[k]) for k in NUMBERS if k in row}
        sharp = bool(int(row.get("sharp", 0)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: not a number ({error})") from error
    for k, v in numbers.items():
        if not math.isfinite(v) or (v <= 0 and k != "offset"):
            raise ValueError(f"{where}: {k} is {v:g}; a positive number is needed")
    for kind in ("image", "depth", "disparity", "mask"):
        if kind in row and not (path.parent / row[kind]).is_file():
            raise ValueError(f"{where}: no file {path.parent / row[kind]}")
    return {**row, **numbers, "sharp": sharp}


def _read_map(path: Path) -> np.ndarray:
    from PIL import Image

    if path.suffix.lower() == ".npy":
        array = read_npy(path)
    else:
        with Image.open(path) as image:
            try:
                array = np.asarray(image)
            except (OSError, ValueError, SyntaxError) as error:  # which do not know the file
                raise ValueError(f"{path}: cannot be read ({error})") from error
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: one channel of numbers is expected, not {array.shape}")
    return array


def _load(path: Path, row: dict[str, Any]) -> EvaluationSample:
    values = _read_map(path.parent / (row.get("depth") or row["disparity"])).astype(np.float64)
    known = np.isfinite(values) & (values > 0)
    if "mask" in row:
        mask = _read_map(path.parent / row["mask"])
        if mask.shape != values.shape:
            raise ValueError(f"{path.parent / row['mask']}: {mask.shape}, not {values.shape}")
        known &= mask != 0
    values = np.where(known, values * row.get("scale", 1.0), 1.0)
    if "depth" in row:
        depth = values * UNITS[row.get("unit", "m")]
    else:
        shifted = values + row.get("offset", 0.0)
        known &= shifted > 0
        depth = row.get("focal", 1.0) * row.get("baseline", 1.0) / np.where(known, shifted, 1.0)
    return EvaluationSample(
        row["image"],
        read_image(path.parent / row["image"]),
        np.where(known, depth, np.nan).astype(np.float32),
        row.get("max_depth", math.inf),
        sharp=row["sharp"],
    )
