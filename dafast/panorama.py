"""The geometry of equirectangular photos."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def directions_of(rows: Sequence[int], height: int, width: int) -> np.ndarray:
    """Unit vectors of the pixels in some rows of an equirectangular photo.

    Args:
        rows: The rows.
        height: Height of the photo in pixels.
        width: Its width.

    Returns:
        (rows, width, 3) float64: x right, y down, z forward; the middle of the photo is forward.
    """
    longitude = ((np.arange(width) + 0.5) / width - 0.5) * 2 * math.pi
    latitude = (0.5 - (np.asarray(rows) + 0.5) / height)[:, None] * math.pi
    level = np.cos(latitude)
    parts = [
        level * np.sin(longitude),
        -np.sin(latitude) + 0 * longitude,
        level * np.cos(longitude),
    ]
    return np.stack(parts, axis=-1)
