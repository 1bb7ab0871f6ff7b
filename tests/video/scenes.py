"""Small scenes for tests: a textured picture and its disparity."""

from __future__ import annotations

import numpy as np
from PIL import Image


def smooth(rng: np.random.Generator, height: int, width: int, cells: int = 5) -> np.ndarray:
    """A smooth random map, 0 to about 1, float32 (height, width)."""
    small = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture, float (height, width, 3) of 0 to 255, and its disparity, float32."""
    disparity = 1 + 3 * smooth(rng, height, width)
    disparity[height // 4 : height // 2, width // 4 : width // 2] += 2
    picture = 30 + 130 * smooth(rng, height, width, 12)[..., None] * rng.uniform(0.4, 1, 3)
    return np.clip(picture + rng.random((height, width, 3)) * 60, 0, 255), disparity


def filmed(rng: np.random.Generator, picture: np.ndarray, noise: float = 3.0) -> np.ndarray:
    """A frame of a picture with a camera's noise, uint8."""
    noisy = picture + rng.normal(0, noise, picture.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
