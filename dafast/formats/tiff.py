"""TIFF: a map in float32, with the facts in its description."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._warnings import filtered
from ..files import whole_file
from ._text import TAG, from_text, to_text

_DESCRIPTION, _OFFSETS, _COUNTS, _SOFTWARE = 270, 273, 279, 305


def write_tiff(path: Path, values: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Writes a map, (H, W) float32, with deflate compression."""
    from PIL import Image, TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[_DESCRIPTION], tags[_SOFTWARE] = to_text(facts), TAG
    with whole_file(path) as file:
        image = Image.fromarray(values)
        image.save(file, format="TIFF", compression="tiff_adobe_deflate", tiffinfo=tags)


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in the description, if the file has all its strips."""
    from PIL import Image

    with filtered("ignore"):  # Pillow warns of a file that is cut off
        image = Image.open(path, formats=["TIFF"])
    with image:
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(_SOFTWARE) != TAG:
            return None
        ends = map(sum, zip(tags[_OFFSETS], tags[_COUNTS], strict=True))
        return from_text(tags[_DESCRIPTION]) if max(ends) <= path.stat().st_size else None
