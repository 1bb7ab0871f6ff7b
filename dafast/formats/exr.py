"""OpenEXR: a map as the float32 channel Z, with ZIP compression and attributes in its header."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import whole_file
from ._text import TAG, from_text, to_text

_MAGIC = b"\x76\x2f\x31\x01\x02\0\0\0"
_ZIP = 3
_LINES = 16
"""Rows of a block with this compression."""
_HEAD = 1 << 20
"""Bytes that a header may have."""


def write_exr(path: Path, values: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Writes a map.

    The attributes ``kind``, ``unit``, ``minimum``, ``maximum``, ``cameraSource`` and ``intrinsics``
    (a 3 x 3 matrix) have the facts of these meanings, and ``dafast`` all of them as JSON.

    Args:
        path: The file.
        values: (H, W) float32.
        facts: See `dafast.formats`.
    """
    height, width = values.shape
    header = _MAGIC + b"".join(_attributes(height, width, facts)) + b"\0"
    starts = range(0, height, _LINES)
    with whole_file(path) as file:
        file.write(header)
        table = file.tell()
        file.write(bytes(8 * len(starts)))
        offsets = []
        for row in starts:
            offsets.append(file.tell())
            block = _compress(np.ascontiguousarray(values[row : row + _LINES], "<f4"))
            file.write(struct.pack("<ii", row, len(block)) + block)
        file.seek(table)
        file.write(struct.pack(f"<{len(offsets)}Q", *offsets))


def _compress(rows: np.ndarray) -> bytes:
    """A block: even bytes before odd ones, differences, zlib; as it is where that is longer."""
    raw = rows.view(np.uint8).ravel()
    halves = np.concatenate([raw[0::2], raw[1::2]])
    halves[1:] -= halves[:-1] - np.uint8(128)
    packed = zlib.compress(halves.tobytes(), 4)
    return packed if len(packed) < raw.nbytes else raw.tobytes()


def _attributes(height: int, width: int, facts: Mapping[str, Any]) -> Iterator[bytes]:
    def attribute(name: str, kind: str, value: bytes) -> bytes:
        return b"%s\0%s\0%s%s" % (
            name.encode(),
            kind.encode(),
            struct.pack("<i", len(value)),
            value,
        )

    def text(name: str, value: str) -> bytes:
        return attribute(name, "string", value.encode())

    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    yield attribute("channels", "chlist", b"Z\0" + struct.pack("<iB3xii", 2, 0, 1, 1) + b"\0")
    yield attribute("compression", "compression", bytes([_ZIP]))
    yield attribute("dataWindow", "box2i", window)
    yield attribute("displayWindow", "box2i", window)
    yield attribute("lineOrder", "lineOrder", b"\0")
    yield attribute("pixelAspectRatio", "float", struct.pack("<f", 1))
    yield attribute("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0))
    yield attribute("screenWindowWidth", "float", struct.pack("<f", 1))
    for name, key in (("kind", "kind"), ("unit", "unit"), ("cameraSource", "camera_source")):
        if key in facts:
            yield text(name, facts[key])
    for name, key in (("minimum", "min"), ("maximum", "max")):
        if key in facts:
            yield attribute(name, "float", struct.pack("<f", facts[key]))
    if facts.get("intrinsics"):
        fx, fy, cx, cy = facts["intrinsics"]
        matrix = struct.pack("<9f", fx, 0, cx, 0, fy, cy, 0, 0, 1)
        yield attribute("intrinsics", "m33f", matrix)
    yield text(TAG, to_text(facts))


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in the header, if the file has its last block."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if not head.startswith(_MAGIC):
            return None
        place, found = len(_MAGIC), {}
        while head[place] != 0:
            end = head.index(b"\0", place)
            start = head.index(b"\0", end + 1) + 1  # after the type
            (length,) = struct.unpack_from("<i", head, start)
            found[head[place:end]] = head[start + 4 : start + 4 + length]
            place = start + 4 + length
        rows = struct.unpack("<4i", found[b"dataWindow"])[3] + 1
        if TAG.encode() not in found or not _has_end(file, place + 1, -(-rows // _LINES)):
            return None
    return from_text(found[TAG.encode()].decode())


def _has_end(file: BinaryIO, table: int, blocks: int) -> bool:
    size = file.seek(0, 2)
    file.seek(table + 8 * (blocks - 1))
    (last,) = struct.unpack("<Q", file.read(8))
    file.seek(last + 4)
    (length,) = struct.unpack("<i", file.read(4))
    return size >= last + 8 + length
