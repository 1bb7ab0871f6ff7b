"""The maps of a video in one NPZ file, written in constant memory."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import whole_file
from ..formats._text import TAG, to_text


class RawValues:
    """Appends maps to a file, from which `write` makes the NPZ.

    Args:
        path: The file of the maps; the times of the frames are in ``.times`` next to it.
        shape: Height and width of a map.
        count: Frames that are kept of an earlier run.
    """

    def __init__(self, path: Path, shape: tuple[int, int], count: int = 0) -> None:
        self.path, self.times, self.shape = path, path.with_suffix(".times"), shape
        self._files: list[BinaryIO] = []
        for name, size in ((self.path, 4 * shape[0] * shape[1]), (self.times, 8)):
            file = open(name, "r+b" if count else "wb")  # noqa: SIM115
            file.truncate(count * size)
            file.seek(0, 2)
            self._files.append(file)

    def add(self, values: np.ndarray, seconds: float) -> None:
        """Appends a map, (H, W) float32."""
        self._files[0].write(np.ascontiguousarray(values, "<f4").data)
        self._files[1].write(np.array(seconds, "<f8").tobytes())

    def flush(self) -> None:
        """Hands everything to the system."""
        for file in self._files:
            file.flush()

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()

    def write(self, out: Path, name: str, facts: Mapping[str, Any]) -> None:
        """Writes an NPZ with the maps (N, H, W), the ``time`` (N,) in seconds, and the facts."""
        count = self.times.stat().st_size // 8
        note = np.array(to_text(facts))
        with whole_file(out) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            for key, path, shape in (
                (name, self.path, (count, *self.shape)),
                ("time", self.times, (count,)),
            ):
                # ZipInfo has a fixed date: another run writes the same file.
                with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as entry:
                    kind = "<f4" if key == name else "<f8"
                    header = {"descr": kind, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(entry, header)
                    with path.open("rb") as values:
                        shutil.copyfileobj(values, entry, 1 << 20)
            with archive.open(zipfile.ZipInfo(f"{TAG}.npy"), "w") as entry:
                np.lib.format.write_array(entry, note, allow_pickle=False)
