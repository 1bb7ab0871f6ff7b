"""Fitting an affine-invariant prediction to the truth, and baselines that see no image."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def _solve(columns: list[Array], target: Array, mask: Array) -> Array:
    """Least-squares combination of the columns that fits ``target`` where ``mask``."""
    if not mask.any():
        raise ValueError("no valid pixel to align to")
    design = np.stack([c[mask] for c in columns], axis=1).astype(np.float64)
    weights, *_ = np.linalg.lstsq(design, target[mask].astype(np.float64), rcond=None)
    return np.sum([w * c for w, c in zip(weights, columns, strict=True)], axis=0)


def align_disparity(prediction: Array, disparity: Array, mask: Array) -> Array:
    """Scale and shift of the prediction by least squares in disparity space.

    Args:
        prediction: (H, W), any affine of disparity.
        disparity: True disparity (H, W), 1/m.
        mask: Valid pixels (H, W), bool.

    Returns:
        scale * prediction + shift, (H, W) float64. A constant prediction gives the constant fit.

    Raises:
        ValueError: If no pixel is valid.
    """
    prediction = prediction.astype(np.float64)
    return _solve([prediction, np.ones_like(prediction)], disparity, mask)


def constant_baseline(disparity: Array, mask: Array) -> Array:
    """The constant that fits ``disparity`` best, (H, W)."""
    return _solve([np.ones(disparity.shape)], disparity, mask)


def plane_baseline(disparity: Array, mask: Array) -> Array:
    """The plane a*x + b*y + c in image coordinates that fits ``disparity`` best, (H, W)."""
    rows, columns = np.mgrid[0 : disparity.shape[0], 0 : disparity.shape[1]].astype(np.float64)
    x = columns / disparity.shape[1]
    return _solve([x, rows / disparity.shape[0], np.ones_like(x)], disparity, mask)
