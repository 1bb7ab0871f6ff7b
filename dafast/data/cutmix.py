"""CutMix: which part of an image another one covers (Depth Anything, Eqs. 5-8)."""

from __future__ import annotations

import math

import numpy as np


def cutmix_region(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: float = 0.3,
) -> np.ndarray:
    """Draws M: True where an image stays itself, False in the box that its partner covers.

    The box is UniMatch's: its area a uniform share of the image, its aspect (height to width) in
    [aspect, 1/aspect], here log-uniform, so that tall and wide boxes are equally likely. A box that
    would not fit gets another aspect at the same area.

    Args:
        shape: Height and width.
        rng: Random generator; the number of draws does not depend on the options.
        probability: Probability that there is a box.
        area: Range of the box's share of the image.
        aspect: Smallest aspect, in (0, 1].

    Returns:
        (H, W) bool; all True where the image is not mixed.
    """
    height, width = shape
    chance, share, bend, y, x = rng.random(5)
    region = np.ones(shape, bool)
    if chance >= probability:
        return region
    pixels = (area[0] + (area[1] - area[0]) * share) * height * width
    ratio = math.exp((2.0 * bend - 1.0) * math.log(aspect))
    box_height = min(height, max(math.sqrt(pixels * ratio), pixels / width))
    rows = max(1, round(box_height))
    columns = min(width, max(1, round(pixels / box_height)))
    top, left = int(y * (height - rows + 1)), int(x * (width - columns + 1))
    region[top : top + rows, left : left + columns] = False
    return region
