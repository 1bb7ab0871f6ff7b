"""PFM: a map in float32, rows from the bottom to the top. It has no place for facts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..files import whole_file

_ROWS = 256


def write_pfm(path: Path, values: np.ndarray) -> None:
    """Writes a map, (H, W); pixels without a value are infinite, as in the Middlebury data."""
    height, width = values.shape
    with whole_file(path) as file:
        file.write(b"Pf\n%d %d\n-1.0\n" % (width, height))  # negative: little-endian
        for end in range(height, 0, -_ROWS):
            rows = values[max(0, end - _ROWS) : end][::-1]
            file.write(np.where(np.isnan(rows), np.inf, rows).astype("<f4").tobytes())


def read_pfm(path: Path) -> np.ndarray:
    """Reads what `write_pfm` writes.

    Raises:
        ValueError: If the file is another one, or cut off.
    """
    with path.open("rb") as file:
        if file.readline() != b"Pf\n":
            raise ValueError(f"{path}: not a PFM file with one channel")
        width, height = map(int, file.readline().split())
        order = "<f4" if float(file.readline()) < 0 else ">f4"
        return np.frombuffer(file.read(), order).reshape(height, width)[::-1]
