"""PLY: points with colours and normals, binary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import whole_file
from ._text import TAG, from_text, to_text

_FLOATS = ("x", "y", "z")
_NORMAL = ("nx", "ny", "nz")
_COLORS = ("red", "green", "blue")
_LINE = 200
"""Characters of the facts on one line: some readers limit the length of a line."""
_HEAD = 1 << 20
"""Bytes that a header may have."""


class Points(NamedTuple):
    """Points to write.

    Attributes:
        points: (N, 3) float32.
        colors: (N, 3) uint8.
        normals: (N, 3) float32, or None.
    """

    points: np.ndarray
    colors: np.ndarray
    normals: np.ndarray | None


def write_ply(
    path: Path,
    count: int,
    parts: Iterable[Points],
    unit: str = "m",
    normals: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes points, part by part.

    Args:
        path: The file.
        count: Number of points of all parts.
        parts: The points.
        unit: ``"m"``, or ``""`` for an unknown scale.
        normals: Whether the parts have normals.
        facts: See `dafast.formats`.
    """
    names = [*_FLOATS, *(_NORMAL if normals else ())]
    fields: list[Any] = [("xyz", "<f4", 3), ("n", "<f4", 3), ("rgb", "u1", 3)]
    record = np.dtype(fields if normals else [fields[0], fields[2]])
    lines = ["ply", "format binary_little_endian 1.0"]
    lines.append(f"comment {'metres' if unit == 'm' else 'no unit'}: x right, y down, z forward")
    text = "" if facts is None else to_text(facts)
    # The colon before each part keeps a space at its start.
    lines += [f"comment {TAG}:{text[i : i + _LINE]}" for i in range(0, len(text), _LINE)]
    lines.append(f"element vertex {count}")
    lines += [f"property float {name}" for name in names]
    lines += [f"property uchar {name}" for name in _COLORS]
    with whole_file(path) as file:
        file.write("\n".join([*lines, "end_header\n"]).encode("ascii"))
        for part in parts:
            vertices = np.empty(len(part.points), record)
            vertices["xyz"], vertices["rgb"] = part.points, part.colors
            if normals:
                vertices["n"] = part.normals
            file.write(vertices.data)


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in the comments, if the file has all its points."""
    with path.open("rb") as file:
        head, found, _ = file.read(_HEAD).partition(b"end_header\n")
        size = file.seek(0, 2)
    if not head.startswith(b"ply\n") or not found:
        return None
    lines = head.decode("ascii").split("\n")
    start = f"comment {TAG}:"
    text = "".join(line[len(start) :] for line in lines if line.startswith(start))
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    floats = sum(line.startswith("property float") for line in lines)
    whole = size == len(head) + len(found) + count * (4 * floats + 3)
    return from_text(text) if text and whole else None
