"""Errors of a depth map against the truth."""

from __future__ import annotations

import numpy as np

MIN_DEPTH = 1e-3
"""Truth at or below this many metres is not counted."""


def valid_depth(depth: np.ndarray, max_depth: float) -> np.ndarray:
    """Pixels (H, W), bool, whose true depth lies between `MIN_DEPTH` and ``max_depth`` metres."""
    return np.isfinite(depth) & (depth > MIN_DEPTH) & (depth < max_depth)


def depth_metrics(
    aligned: np.ndarray, depth: np.ndarray, mask: np.ndarray, *, max_depth: float
) -> dict[str, float]:
    """Standard errors of an aligned disparity map.

    The disparity is clamped to at least 1 / ``max_depth`` and inverted.

    Args:
        aligned: Predicted disparity (H, W) in 1/m, after alignment.
        depth: True depth (H, W) in metres.
        mask: Pixels that count, bool.
        max_depth: Cap in metres.

    Returns:
        ``abs_rel`` = mean |p - d| / d, ``delta_1`` to ``delta_3`` = share of pixels with
        max(p/d, d/p) < 1.25^k, ``rmse`` in metres, ``log10`` = mean |log10 p - log10 d|, and
        ``silog`` = 100 * std(ln p - ln d).

    Raises:
        ValueError: If no pixel counts.
    """
    if not mask.any():
        raise ValueError("no valid pixel to measure")
    truth = depth[mask].astype(np.float64)
    predicted = 1 / np.maximum(aligned[mask].astype(np.float64), 1 / max_depth)
    ratio = np.maximum(predicted / truth, truth / predicted)
    log_ratio = np.log(predicted / truth)
    return {
        "abs_rel": float(np.mean(np.abs(predicted - truth) / truth)),
        "delta_1": float(np.mean(ratio < 1.25)),
        "delta_2": float(np.mean(ratio < 1.25**2)),
        "delta_3": float(np.mean(ratio < 1.25**3)),
        "rmse": float(np.sqrt(np.mean((predicted - truth) ** 2))),
        "log10": float(np.mean(np.abs(log_ratio)) / np.log(10)),
        "silog": float(100 * np.std(log_ratio)),
    }
