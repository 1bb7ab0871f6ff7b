"""The scale and shift between two disparity maps of one scene, robustly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

POINTS = 1024
"""Pixels that a fit uses; more make it slower and not visibly better."""

MIN_QUALITY = 0.3
"""The least quality of a fit that is used: 0 explains nothing, 1 everything."""

_MIN_POINTS = 16
_SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
_TUKEY = 4.685  # standard deviations from which a residual has no weight
_LEAST_SIGMA = 0.02  # of a residual, as a fraction of the spread of the values: most may be sky
_ROUNDS = 6
_CONVERGED = 1e-4  # change of a round, as a fraction of the slope and of the spread


@dataclass(frozen=True)
class ScaleFit:
    """A map's affine relation to a reference: ``scale * values + shift`` is near the reference.

    Attributes:
        scale: Above 0.
        shift: In units of the reference.
        quality: 1 minus the spread of the residuals over the spread of the values.
    """

    scale: float
    shift: float
    quality: float


def fit_scale_shift(
    reference: np.ndarray, values: np.ndarray, weight: np.ndarray, count: np.ndarray
) -> ScaleFit | None:
    """Fits one map to another, both noisy, so that errors do not shrink the scale.

    Ordinary least squares shrinks the scale a little in every fit, and a chain of fits to zero.
    This is a Deming regression: it knows that a pixel of the reference is the mean of ``count``
    maps, so that its noise has 1 / ``count`` of the variance. Tukey's biweight removes outliers;
    the start is the median slope between pairs of pixels, which tolerates a quarter of outliers.

    Args:
        reference: Float array of any shape; pixels that are not finite do not count.
        values: The map, same shape.
        weight: Weight of each pixel, at least 0, same shape.
        count: How many maps each pixel of the reference is the mean of, at least 1, same shape.

    Returns:
        The fit, or None if it fails: too few pixels, a constant map, unrelated maps.
    """
    x, y, n = _sample(reference, values, weight, count)
    if len(x) < _MIN_POINTS:
        return None
    slope = _median_slope(x, y)
    spread = float(y.std())
    if slope <= 0 or spread <= 1e-6 * float(np.abs(y).max()):
        return None
    offset = float(np.median(y - slope * x))
    sigma = 0.0
    for _ in range(_ROUNDS):
        residual = y - slope * x - offset
        sigma = max(_SIGMA * float(np.median(np.abs(residual))), _LEAST_SIGMA * spread)
        w = np.clip(1 - (residual / (_TUKEY * sigma)) ** 2, 0, None) ** 2
        step = _deming(slope * x, y, w, n)
        if step is None:
            return None
        moved = max(abs(step[0] - 1), abs(step[1] - offset) / spread)
        slope, offset = slope * step[0], step[1]
        if moved < _CONVERGED:
            break
    quality = 1 - sigma / spread
    if quality < MIN_QUALITY:
        return None
    return ScaleFit(1 / slope, -offset / slope, quality)


def _sample(
    reference: np.ndarray, values: np.ndarray, weight: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`POINTS` pixels spread over the picture, each as often as its weight says: float64."""
    x, y = np.ravel(reference), np.ravel(values)
    w = np.where(np.isfinite(x) & np.isfinite(y), np.ravel(weight), 0).astype(np.float64)
    total = np.cumsum(w)
    if not total.size or total[-1] <= 0 or np.count_nonzero(w) < _MIN_POINTS:
        return np.empty(0), np.empty(0), np.empty(0)
    places = (np.arange(min(POINTS, w.size)) + 0.5) * (total[-1] / min(POINTS, w.size))
    chosen = np.searchsorted(total, places, side="right").clip(max=w.size - 1)
    return x[chosen].astype(np.float64), y[chosen].astype(np.float64), np.ravel(count)[chosen]


def _median_slope(x: np.ndarray, y: np.ndarray) -> float:
    """The median of the slopes between pixels half of the range of ranks apart."""
    order = np.argsort(x, kind="stable")
    half = len(x) // 2
    dx = x[order[half : 2 * half]] - x[order[:half]]
    dy = y[order[half : 2 * half]] - y[order[:half]]
    apart = dx > 0
    if not apart.any():
        return 0.0
    slopes, lengths = dy[apart] / dx[apart], dx[apart]
    rank = np.argsort(slopes, kind="stable")
    total = np.cumsum(lengths[rank])
    return float(slopes[rank[np.searchsorted(total, total[-1] / 2)]])


def _deming(
    u: np.ndarray, y: np.ndarray, w: np.ndarray, count: np.ndarray
) -> tuple[float, float] | None:
    """Slope near 1 and intercept of y over u, whose noise has 1 / count of y's variance."""
    total = w.sum()
    if total <= 0:
        return None
    u_mean, y_mean = float((w * u).sum() / total), float((w * y).sum() / total)
    du, dy = u - u_mean, y - y_mean
    suu, syy, suy = (float((w * a).sum()) for a in (du * du, dy * dy, du * dy))
    if suu <= 0 or suy <= 0:
        return None
    delta = float(total / (w / count).sum())
    gap = delta * suu - syy
    slope = 2 * delta * suy / (gap + np.hypot(gap, 2 * np.sqrt(delta) * suy))
    return slope, y_mean - slope * u_mean
