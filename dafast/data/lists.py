"""Lists of pictures with depth or disparity: the one reader of training, packing and evaluation.

`LAYOUT` and docs/data.md list the columns.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dafast._warnings import DataWarning, warn
from dafast.data.maps import own_number, read_stored, within
from dafast.data.sources import Item, SourceError, labeled_item
from dafast.files import explain

LAYOUT = """\
  a .csv (or .txt) file whose first line names its columns, a .json file with a list of objects, or
  a .jsonl file with an object a line; one row a picture, file names relative to the list's folder:
    image      the picture
    depth      its depth: .npy, or a picture with one channel (PNG of 8 or 16 bits, TIFF, PFM), or
    disparity  its disparity in the same formats: in any unit for training, in 1/metre for
               evaluation, or in pixels where focal and baseline are given
    mask       optional: .npy or picture, 0 where the map does not count
    scale      optional: what stored values are multiplied by (0.001 for millimetres), 1 by default
    unit       optional, of depth after scaling: m (the default), cm or mm
    invalid    optional: the stored value, before scaling, that means "unknown"; 0 by default, none
               for disparity without focal. NaN and depth that is not positive are unknown too
    min_depth, max_depth    optional, in metres: nearer and farther depth is unknown (infinite depth
               is sky); for evaluation max_depth is the cap
    focal, baseline    optional, of disparity in pixels: focal length in pixels, baseline in metres
    offset     optional: what is added to disparity, 0 by default
    sharp      optional: 1 where evaluation can measure boundaries
"""

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001}
_POSITIVE = ("scale", "min_depth", "max_depth", "focal", "baseline")
_NUMBERS = (*_POSITIVE, "invalid", "offset", "sharp")
COLUMNS = ("image", "depth", "disparity", "mask", "unit", *_NUMBERS)
_FILE_COLUMNS = ("image", "depth", "disparity", "mask", "label")  # the last: lists with classes

MEDIAN_DEPTH = (0.01, 200.0)
"""A map whose median depth is outside of this, in metres, is probably in another unit."""


@dataclass(frozen=True)
class ListedPicture:
    """One row of a list.

    Attributes:
        name: The picture as the row names it.
        image: The picture.
        map: Its depth or disparity.
        is_depth: Which of the two.
        mask: File that says where the map counts; None without one.
        scale: What stored values are multiplied by, the unit of depth included.
        invalid: The stored value that means "unknown"; None without one.
        min_depth: Nearer depth is unknown, metres.
        max_depth: Farther depth is unknown, or the cap of evaluation, metres.
        stereo: Focal length times baseline; 0 where disparity is not in pixels.
        offset: What is added to disparity.
        sharp: Whether boundaries can be measured.
        check_unit: Takes the name and a map in metres, and warns of an implausible unit.
    """

    name: str
    image: Path
    map: Path
    is_depth: bool
    mask: Path | None
    scale: float
    invalid: float | None
    min_depth: float
    max_depth: float
    stereo: float
    offset: float
    sharp: bool
    check_unit: Callable[[str, np.ndarray], None]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the map."""
        return (self.map, self.mask) if self.mask else (self.map,)

    @property
    def disparity_unit(self) -> str:
        """The unit of `disparity`: "1/metre", or "" where the list does not say it."""
        return "1/metre" if self.is_depth or self.stereo else ""

    def disparity(self) -> tuple[np.ndarray, np.ndarray]:
        """The label for training: disparity (H, W) float64, and the mask of where it is known.

        Raises:
            SourceError: If a file cannot be used; the message names it.
            OSError: If a file cannot be opened.
        """
        values, known = self._stored()
        known &= self._within_limits(values, self.max_depth)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.is_depth:
                disparity = 1.0 / self._scaled(values)
            else:
                disparity = self._scaled(values) / (self.stereo or 1.0)
            if self.disparity_unit:
                self.check_unit(self.name, 1.0 / disparity[known])
        return disparity, known

    def depth(self) -> np.ndarray:
        """The truth for evaluation: depth in metres, float32 (H, W), NaN where it is unknown.

        `max_depth` is not applied: a protocol may count what is beyond the cap.

        Raises:
            SourceError: If a file cannot be used; the message names it.
            OSError: If a file cannot be opened.
        """
        values, known = self._stored()
        known &= np.isfinite(values) & (values > 0) & self._within_limits(values, math.inf)
        scaled = np.where(known, self._scaled(values), 1.0)
        if self.is_depth:
            depth = scaled
        else:
            known &= scaled > 0
            depth = (self.stereo or 1.0) / np.where(known, scaled, 1.0)
        self.check_unit(self.name, depth[known])
        return np.where(known, depth, np.nan).astype(np.float32)

    def _stored(self) -> tuple[np.ndarray, np.ndarray]:
        """The map as it is stored, and where its values and the mask say that it is known."""
        values = read_stored(self.map)
        known = ~np.isnan(values)
        if self.invalid is not None:
            fraction = math.isfinite(self.invalid) and not self.invalid.is_integer()
            if values.dtype.kind in "iu" and fraction:
                raise SourceError(
                    f"{self.map}: invalid = {self.invalid:g}, but the file holds integers; invalid "
                    "is compared with the stored values, before scale"
                )
            known &= values != own_number(self.invalid, values.dtype)
        if self.mask:
            mask = read_stored(self.mask, palette=True)
            if mask.shape != values.shape:
                raise SourceError(
                    f"{self.mask}: the mask is {mask.shape}, the map {values.shape} (rows, columns)"
                )
            known &= mask != 0
        if self.is_depth or self.stereo:
            known &= values > 0
        return values, known

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float64) * self.scale + self.offset

    def _within_limits(self, values: np.ndarray, max_depth: float) -> np.ndarray:
        if self.is_depth:
            return within(values, self.scale, self.min_depth, max_depth)
        inside = np.ones(values.shape, bool)
        if self.min_depth:
            inside &= values <= self._stored_disparity(self.min_depth, values.dtype)
        if math.isfinite(max_depth):
            far = self._scaled(values) == 0  # infinitely far: sky
            inside &= far | (values >= self._stored_disparity(max_depth, values.dtype))
        return inside

    def _stored_disparity(self, depth: float, dtype: np.dtype) -> float:
        return own_number(((self.stereo or 1.0) / depth - self.offset) / self.scale, dtype)


def read_list(path: Path) -> list[ListedPicture]:
    """Reads a list of pictures with depth or disparity.

    Args:
        path: The list, as `LAYOUT` says.

    Raises:
        SourceError: If the list cannot be read, or a row lacks or has too many columns, or has a
            value that cannot be used; the message names the row.
    """
    check_unit = _unit_check(path)
    return [_picture(path, number, row, check_unit) for number, row in _numbered(path)]


def list_source(path: Path, min_depth: float = 0.0) -> list[Item]:
    """The pictures of a list as items, to be packed or checked.

    Args:
        path: The list, as `LAYOUT` says.
        min_depth: That of rows without one of their own; 0 keeps all depth.

    Raises:
        SourceError: As `read_list`.
    """
    check_unit = _unit_check(path)
    rows = []
    for number, row in _numbered(path):
        near = row if row.get("min_depth") or not min_depth else {**row, "min_depth": min_depth}
        rows.append((row, _picture(path, number, near, check_unit)))
    return [
        labeled_item(
            picture.name,
            picture.image,
            picture.disparity,
            json.dumps(row, sort_keys=True, default=str),
            disparity_unit=picture.disparity_unit,
            files=picture.files,
        )
        for row, picture in rows
    ]


def _picture(
    path: Path, number: int, row: dict[str, Any], check_unit: Callable[[str, np.ndarray], None]
) -> ListedPicture:
    """Checks a row."""
    where = f"{path}, row {number}"
    row = {name: value for name, value in row.items() if value not in ("", None)}
    unknown = sorted(set(row) - set(COLUMNS))
    if unknown or "image" not in row or ("depth" in row) == ("disparity" in row):
        raise SourceError(
            f"{where}: image and either depth or disparity are needed; the columns are "
            f"{', '.join(COLUMNS)}" + _hint(unknown)
        )
    numbers = _check_numbers(where, row)
    is_depth = "depth" in row
    unit = str(row.get("unit", "m"))
    if unit not in UNITS or ("unit" in row and not is_depth):
        raise SourceError(f"{where}: unit is one of {', '.join(UNITS)}, and goes with depth")
    if ("focal" in row) != ("baseline" in row) or ("focal" in row and is_depth):
        raise SourceError(f"{where}: focal and baseline go together, with a disparity in pixels")
    if numbers.get("min_depth", 0.0) > numbers.get("max_depth", math.inf):
        raise SourceError(
            f"{where}: min_depth {numbers['min_depth']:g} is above max_depth "
            f"{numbers['max_depth']:g}"
        )
    stereo = numbers.get("focal", 0.0) * numbers.get("baseline", 0.0)
    if "min_depth" in row and not (is_depth or stereo):
        raise SourceError(f"{where}: min_depth is for depth, not for disparity without focal")
    return ListedPicture(
        name=row["image"],
        image=path.parent / row["image"],
        map=path.parent / row["depth" if is_depth else "disparity"],
        is_depth=is_depth,
        mask=path.parent / row["mask"] if "mask" in row else None,
        scale=numbers.get("scale", 1.0) * UNITS[unit],
        invalid=numbers.get("invalid", 0.0 if is_depth or stereo else None),
        min_depth=numbers.get("min_depth", 0.0),
        max_depth=numbers.get("max_depth", math.inf),
        stereo=stereo,
        offset=numbers.get("offset", 0.0),
        sharp=bool(numbers.get("sharp", 0.0)),
        check_unit=check_unit,
    )


def _check_numbers(where: str, row: dict[str, Any]) -> dict[str, float]:
    numbers = {}
    for name in _NUMBERS:
        if name not in row:
            continue
        try:
            value = float(row[name])
        except (TypeError, ValueError) as error:
            raise SourceError(f"{where}: {name} is not a number ({explain(error)})") from error
        if name in _POSITIVE and not 0 < value < math.inf:
            raise SourceError(f"{where}: {name} is {value:g}; a positive number is needed")
        if name == "offset" and not math.isfinite(value):
            raise SourceError(f"{where}: offset is {value:g}; a number is needed")
        numbers[name] = value
    return numbers


def _hint(unknown: list[str]) -> str:
    if not unknown:
        return ""
    text = f"; unknown: {', '.join(unknown)}"
    if "label" in unknown:
        text += "; a list with labels of classes is for segmentation (segmentation.data)"
    elif any(separator in name for name in unknown for separator in ";\t "):
        text += "; columns are separated by commas"
    return text


def _unit_check(path: Path) -> Callable[[str, np.ndarray], None]:
    """A function that warns once of a list whose depth cannot be in metres."""
    warned: list[str] = []

    def check(name: str, depth: np.ndarray) -> None:
        depth = depth[:: 1 + depth.size // 65536]
        depth = depth[np.isfinite(depth)]
        if warned or not depth.size:
            return
        median, (low, high) = float(np.median(depth)), MEDIAN_DEPTH
        if not low <= median <= high:
            warned.append(name)
            warn(
                DataWarning,
                f"{path}: the median depth of {name} is {median:.3g} metres. If its file is in "
                "another unit, say so in the columns `unit` (m, cm, mm) or `scale`",
            )

    return check


def _numbered(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = read_rows(path)
    if not rows:
        raise SourceError(f"{path}: the list has no rows; expected\n{LAYOUT.rstrip()}")
    return list(enumerate(rows, 1))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a list of any kind, by column; values of columns with files are texts.

    Raises:
        SourceError: If the list cannot be read, a row has more fields than the header, or the name
            of a file is not a text.
    """
    try:
        rows = _parse(path.read_text(encoding="utf-8-sig"), path.suffix.lower())
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or explain(error)}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not a text in UTF-8; save the list in this encoding") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise SourceError(
            f"{path}: not a list of rows ({explain(error)}); expected\n{LAYOUT.rstrip()}"
        ) from error
    if rows is None:
        raise SourceError(f"{path}: a list is a .csv, .txt, .json or .jsonl file")
    for number, row in enumerate(rows, 1):
        if None in row:
            raise SourceError(
                f"{path}, row {number} has more fields than the header; quote names with commas"
            )
        for column in _FILE_COLUMNS:
            if not isinstance(row.get(column) or "", str):
                raise SourceError(
                    f"{path}, row {number}: {column} is {row[column]!r}; the name of a file is "
                    "needed, as a string"
                )
    return rows


def _parse(text: str, suffix: str) -> list[dict[Any, Any]] | None:
    if suffix in (".csv", ".txt"):
        lines = csv.reader(io.StringIO(text), skipinitialspace=True)
        cells = [[cell.strip() for cell in line] for line in lines if line]
        return _named_cells(*cells) if cells else []
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    elif suffix == ".json":
        rows = json.loads(text)
    else:
        return None
    wrong = [row for row in rows if not isinstance(row, dict)] if isinstance(rows, list) else [rows]
    if wrong:
        where = "an object is needed" if isinstance(rows, list) else "a list of objects is needed"
        raise ValueError(f"{where}; got {json.dumps(wrong[0])[:40]}")
    return rows


def _named_cells(header: list[str], *rows: list[str]) -> list[dict[Any, Any]]:
    """Rows by column; those beyond the header's last under None, as `csv.DictReader` does."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"several columns are called {', '.join(map(repr, twice))}")
    return [
        dict(itertools.zip_longest(header, row, fillvalue="" if len(row) < len(header) else None))
        for row in rows
    ]
