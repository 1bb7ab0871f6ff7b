"""PNG: pictures of 8 bits, and maps of 16 bits."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import whole_file
from ._text import TAG, from_text, to_text

if TYPE_CHECKING:
    from PIL.Image import Image

Facts = Mapping[str, Any]

_START = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_LONGEST = 1 << 20
"""Bytes that the text of facts may have."""


def write_png(path: Path, image: Image, facts: Facts) -> None:
    """Writes a picture; the facts are in the text chunk ``dafast``, before the pixels."""
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text(TAG, to_text(facts))
    with whole_file(path) as file:
        # Level 6 takes three times as long for a few per cent.
        image.save(file, format="PNG", pnginfo=info, compress_level=3)


Strips = Iterable[tuple[slice, np.ndarray]]
"""Rows of a picture, and their values."""


def write_gray16(path: Path, shape: tuple[int, int], strips: Strips, facts: Facts) -> None:
    """Writes a map of 16 bits.

    Args:
        path: The file.
        shape: Its height and width.
        strips: All rows, uint16.
        facts: See `dafast.formats`.
    """
    import PIL.Image

    values = np.empty(shape, np.uint16)
    for rows, part in strips:
        values[rows] = part
    write_png(path, PIL.Image.fromarray(values), facts)


def write_pixels(path: Path, shape: tuple[int, ...], strips: Strips, facts: Facts) -> None:
    """Writes a picture of 8 bits.

    Args:
        path: The file.
        shape: (H, W) for a gray one, (H, W, 3) for RGB.
        strips: All rows, uint8.
        facts: See `dafast.formats`.
    """
    import PIL.Image

    image = PIL.Image.new("RGB" if len(shape) == 3 else "L", (shape[1], shape[0]))
    for rows, part in strips:
        image.paste(PIL.Image.fromarray(part), (0, rows.start))
    write_png(path, image, facts)


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a PNG; only the part before the pixels is read, and the file may be cut off."""
    with path.open("rb") as file:
        if file.read(8) != _START:
            return None
        while True:
            length, kind = struct.unpack(">I4s", file.read(8))
            if kind == b"tEXt" and length <= _LONGEST:
                key, _, text = file.read(length).partition(b"\0")
                if key == TAG.encode():
                    return from_text(text.decode("latin-1"))
                length = 0
            if kind in (b"IDAT", b"IEND"):
                return None
            file.seek(length + 4, 1)  # and the checksum


def is_whole(path: Path) -> bool:
    """Whether a PNG ends as it should."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_END)))
        return file.read() == _END
