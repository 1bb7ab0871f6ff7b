"""Scale and shift that bring one map to another: by least squares, medians, or robustly.

Evaluation aligns predictions to the truth with them, prediction aligns maps to known points, tiles
to the whole picture, and views of a panorama to each other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

CUTOFF = 3.0
"""Standard deviations from which `robust_scale_shift` takes a residual for an outlier."""

_ALL_PAIRS = 200  # points of which every pair gives a slope
_SURE_ERRORS = 2.0  # standard errors by which a scale differs from 0 that counts as determined
_SURE_SPREAD = 0.01  # the least spread of the fitted values, as a fraction of y


def work_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point type that a device computes in."""
    return torch.float32 if device.type == "mps" else torch.float64


def weighted_mean(x: Tensor, weight: Tensor, total: Tensor) -> Tensor:
    """Mean over each image's pixels with a weight (bool, or at least 0), (B, 1, 1)."""
    return torch.where(weight != 0, x * weight, 0).sum((-2, -1), keepdim=True) / total


def masked_median(x: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """Lower median over each image's valid pixels, (B, 1, 1), as `torch.median` has it."""
    ordered = torch.where(mask, x, torch.inf).flatten(1).sort(1).values
    return ordered.gather(1, (count.flatten(1).long() - 1) // 2)[..., None]


def least_squares(x: Tensor, y: Tensor, weight: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift that bring x nearest to y. A constant x has scale 0: the best constant.

    Args:
        x: (B, H, W).
        y: (B, H, W).
        weight: (B, H, W): the valid pixels, bool, or weights of at least 0.
        total: Their sum, (B, 1, 1), above 0.

    Returns:
        Both (B, 1, 1).
    """
    x_mean, y_mean = weighted_mean(x, weight, total), weighted_mean(y, weight, total)
    variance = weighted_mean((x - x_mean) ** 2, weight, total)
    covariance = weighted_mean((x - x_mean) * (y - y_mean), weight, total)
    # Rounding leaves a constant a variance that is not quite 0.
    rounding = (16 * torch.finfo(x.dtype).eps) ** 2 * weighted_mean(x**2, weight, total)
    flat = variance <= rounding
    scale = torch.where(flat, 0, covariance / torch.where(flat, 1, variance))
    return scale, y_mean - scale * x_mean


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where the denominator is 0."""
    zero = denominator == 0
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))


class RobustFit(NamedTuple):
    """A scale and a shift, and what they were fitted to.

    Attributes:
        scale: Factor of x; 0 if x is constant.
        shift: What is added.
        inliers: (N,) bool, the pairs that count.
        is_sure: Whether the pairs determine the scale: it differs from 0 by two standard errors,
            and the fitted values differ by a per cent of y.
    """

    scale: float
    shift: float
    inliers: Tensor
    is_sure: bool


def robust_scale_shift(x: Tensor, y: Tensor, weight: Tensor | None = None) -> RobustFit:
    """Scale and shift that bring most of x to y; up to a quarter of the pairs may be wrong.

    The median slope of pairs of points is a start: of all pairs of a few points, else of pairs half
    of the range apart in order of x (Theil's complete and incomplete method). Then least squares
    are repeated on the pairs whose residual is within `CUTOFF` standard deviations, which the
    median residual estimates.

    Args:
        x: (N,), finite, N > 0.
        y: (N,), finite.
        weight: (N,), above 0: residuals are multiplied by it.

    Returns:
        The fit, computed in `work_dtype`. Of a single pair, or a constant x, the scale is 0 and the
        shift the median of y.
    """
    rounding = max(torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps)
    dtype = work_dtype(x.device)
    x, y = x.to(dtype), y.to(dtype)
    weight = torch.ones_like(x) if weight is None else weight.to(dtype)
    first, second = _pairs(x)
    run = x[second] - x[first]
    rises = run > 16 * rounding * x.abs().max()
    everything = torch.ones_like(x, dtype=torch.bool)
    if not rises.any():
        return RobustFit(0.0, float(y.median()), everything, False)
    scale = ((y[second] - y[first])[rises] / run[rises]).median()
    shift = (y - scale * x).median()
    inliers = everything
    # A line passes through two points exactly: their residuals say nothing.
    middle = min(len(x), (len(x) + 3) // 2)
    for step in range(20):
        residual = (y - scale * x - shift).abs() * weight
        # Of an exact fit only rounding is left.
        exact = 64 * rounding * (y.abs() * weight).max()
        limit = (CUTOFF * SIGMA * residual.kthvalue(middle).values).maximum(exact)
        found = residual <= limit
        if step and torch.equal(found, inliers):
            break
        inliers = found
        squares = (weight**2 * inliers)[None, None]
        scale, shift = least_squares(x[None, None], y[None, None], squares, squares.sum())
        scale, shift = scale.reshape(()), shift.reshape(())
    sure = _is_sure(x, y, weight**2 * inliers, scale, shift)
    return RobustFit(float(scale), float(shift), inliers, sure)


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of pairs of points (pairs,), of which the second has the larger x."""
    order = x.argsort(stable=True)
    if len(x) <= _ALL_PAIRS:
        first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
        return order[first], order[second]
    half = len(x) // 2
    return order[: len(x) - half], order[half:]


def _is_sure(x: Tensor, y: Tensor, squares: Tensor, scale: Tensor, shift: Tensor) -> bool:
    """Whether pairs with these squared weights determine a scale."""
    count, total = int((squares > 0).sum()), squares.sum()
    spread = scale.abs() * ((x - (x * squares).sum() / total) ** 2 * squares).sum().sqrt()
    sigma = (((y - scale * x - shift) ** 2 * squares).sum() / max(1, count - 2)).sqrt()
    size = (y**2 * squares).sum().sqrt()
    return bool(spread > (_SURE_ERRORS * sigma).maximum(_SURE_SPREAD * size))
