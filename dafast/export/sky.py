"""Fills the sky within a graph: the quantile by counting, because TensorRT has no sort."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SKY_FEWEST, SKY_FILLED, SKY_QUANTILE

_HALVINGS = 32
"""Steps that find a value up to 2**-32 of the range, less than float32 can tell apart."""


def fill_sky(depth: Tensor, sky: Tensor) -> Tensor:
    """`dafast.models.sky.fill_sky` from comparisons and sums; both are (B, H, W).

    The quantile lies between two values that follow each other in order. The first has a known
    number of values up to it: halving the range of all values finds it, and one more pass finds the
    second.
    """
    values = depth.float().flatten(1)
    in_sky = sky.float().flatten(1) >= SKY_FILLED
    most = torch.full_like(values, torch.finfo(torch.float32).max)  # Core ML takes no numbers here
    low = torch.where(in_sky, most, values).amin(1, keepdim=True)
    high = torch.where(in_sky, -most, values).amax(1, keepdim=True)
    kept = torch.where(in_sky, most, values)  # the sky comes last
    count = _count(in_sky.logical_not())
    rank = SKY_QUANTILE * (count - 1)
    before = torch.floor(rank)
    low = low - (high - low)  # fewer values than needed are up to it
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        enough = _count(kept <= middle) > before
        high, low = torch.where(enough, middle, high), torch.where(enough, low, middle)
    first = torch.where(kept <= high, kept, -most).amax(1, keepdim=True)
    upper = torch.where(kept > first, kept, most).amin(1, keepdim=True)
    second = torch.where(_count(kept <= first) > before + 1, first, upper)
    share = rank - before
    far = torch.where(share > 0, first + share * (second - first), first)
    enough = (count > SKY_FEWEST).logical_and(_count(in_sky) > SKY_FEWEST)
    filled = torch.where(in_sky.logical_and(enough), far, values)
    return filled.reshape(depth.shape).to(depth.dtype)


def _count(chosen: Tensor) -> Tensor:
    """Counts the True values of each row, (B, 1) float32, exact up to 2**24."""
    return chosen.float().sum(1, keepdim=True)
