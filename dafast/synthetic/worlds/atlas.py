"""Pictures of any size in one array, with mipmaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dafast.synthetic.meshes import F32, I32

_LEVELS = 8


def _power_of_two(n: int, most: int) -> int:
    """The power of two next to n, 4 to ``most``."""
    return int(min(max(2 ** round(np.log2(max(n, 1))), 4), most))


class Atlas:
    """Pictures as texels of one array; every side is a power of two, so that repeating is cheap.

    Attributes:
        texels: uint8 (T, 4), RGBA.
        start, width, height: int32 (N, levels): where a level of a picture begins, and its sides.
        mean: float32 (N, 3), the mean colour of each, 0..1.
    """

    def __init__(self, pictures: Sequence[Image.Image], *, most: int, mipmaps: bool = True) -> None:
        """Packs pictures.

        Args:
            pictures: of any mode.
            most: longest side; larger pictures are reduced.
            mipmaps: whether to add smaller levels.
        """
        levels = _LEVELS if mipmaps else 1
        n = len(pictures)
        self.start, self.width, self.height = (np.empty((n, levels), np.int32) for _ in range(3))
        self.mean = np.empty((n, 3), np.float32)
        parts, offset = [], 0
        for i, picture in enumerate(pictures):
            side = _power_of_two(picture.width, most), _power_of_two(picture.height, most)
            level = picture.convert("RGBA")
            if level.size != side:
                level = level.resize(side, Image.Resampling.BOX)
            self.mean[i] = np.asarray(level)[..., :3].mean((0, 1), dtype=np.float64) / 255
            for k in range(levels):
                if k:
                    half = max(level.width // 2, 1), max(level.height // 2, 1)
                    level = level.resize(half, Image.Resampling.BOX)
                self.start[i, k] = offset
                self.width[i, k], self.height[i, k] = level.size
                parts.append(np.asarray(level).reshape(-1, 4))
                offset += len(parts[-1])
        self.texels: NDArray[np.uint8] = np.concatenate(parts)
        self.width_log = np.round(np.log2(self.width)).astype(np.int32)

    def sample(self, rows: I32, uv: F32, footprint: F32 | None = None) -> F32:
        """Bilinear samples, repeated outside 0..1.

        Args:
            rows: which picture, (N,).
            uv: coordinates (N, 2), in pictures.
            footprint: size of a pixel of the rendering in these coordinates, (N,).

        Returns:
            float32 (N, 4), RGBA in 0..1.
        """
        level = np.zeros(len(rows), np.int32)
        if footprint is not None:
            size = np.maximum(self.width[rows, 0], self.height[rows, 0])
            scale = np.log2(np.maximum(footprint * size, 1e-3)) + 0.3
            level = np.clip(scale, 0, self.start.shape[1] - 1).astype(np.int32)
        w, h, base = self.width[rows, level], self.height[rows, level], self.start[rows, level]
        shift = self.width_log[rows, level]
        x, y = uv[:, 0] * w - 0.5, uv[:, 1] * h - 0.5
        left, top = np.floor(x), np.floor(y)
        fx, fy = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
        i, j = left.astype(np.int32), top.astype(np.int32)
        x0, x1 = i & (w - 1), (i + 1) & (w - 1)
        r0, r1 = base + ((j & (h - 1)) << shift), base + (((j + 1) & (h - 1)) << shift)
        t = self.texels
        upper = t[r0 + x0] * (1 - fx) + t[r0 + x1] * fx
        lower = t[r1 + x0] * (1 - fx) + t[r1 + x1] * fx
        return (upper * (1 - fy) + lower * fy) * np.float32(1 / 255)
