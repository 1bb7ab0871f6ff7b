"""Disparity maps that look like those of photos, for the affine-invariant loss.

Noise puts nearly every pixel into a bin of its own. Real maps are smooth, share few leading bits,
and have many equal values: zeros where ReLU cuts a prediction off, the sky, steps of a 16-bit file.
"""

from __future__ import annotations

import torch
from torch import Tensor


def depth_like(generator: torch.Generator, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Draws slopes with a disc in front of them; about half of the pixels are zero.

    Args:
        generator: Source of the random numbers.
        shape: (B, H, W).

    Returns:
        Prediction, with noise above zero, and target, in steps of 1 / 65535; float32.
    """
    batch, height, width = shape
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)
    slope, tilt, radius = torch.rand(3, batch, 1, 1, generator=generator)
    disparity = (0.1 + slope) * y + 0.3 * tilt * x
    disparity = disparity + 0.5 * (y.square() + x.square() < 0.25 * radius.square())
    target = (disparity.relu() * 65535).round() / 65535
    noise = 0.01 * torch.randn(shape, generator=generator)
    return (disparity + noise).relu(), target
