"""JPEG: pictures of 8 bits, with facts in a comment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import whole_file
from ._text import TAG, from_text, to_text

if TYPE_CHECKING:
    from PIL.Image import Image

_MARK = f"{TAG} ".encode()


def write_jpeg(path: Path, image: Image, facts: Mapping[str, Any]) -> None:
    """Writes a picture in high quality; the facts are in a comment, before the pixels."""
    comment = _MARK + to_text(facts).encode()
    with whole_file(path) as file:
        image.save(file, format="JPEG", quality=95, subsampling=0, comment=comment)


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a JPEG; only the part before the pixels is read."""
    from PIL import Image

    with Image.open(path, formats=("JPEG",)) as image:
        comment = image.info.get("comment", b"")
    return from_text(comment[len(_MARK) :].decode()) if comment.startswith(_MARK) else None
