"""Errors of depth maps against the truth, image by image."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..alignment import work_dtype

MIN_DEPTH = 1e-3
"""Truth at or below this many metres is not counted."""

METRICS = ("abs_rel", "delta_1", "delta_2", "delta_3", "rmse", "rmse_log", "log10", "silog")
"""What `depth_errors` measures, in the order of tables."""

BOUNDARY_THRESHOLDS = tuple(np.linspace(1.05, 1.25, 10).tolist())
"""Ratios of neighbouring depths that make a boundary, in `boundary_f1`."""


def valid_depth(depth: np.ndarray, max_depth: float) -> np.ndarray:
    """Pixels (H, W), bool, whose true depth is between `MIN_DEPTH` and ``max_depth`` metres."""
    return np.isfinite(depth) & (depth > MIN_DEPTH) & (depth < max_depth)


def depth_errors(predicted: Tensor, depth: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Standard errors of depth maps (Eigen et al., NIPS 2014), each image by itself.

    With p the prediction, d the truth and r = ln p - ln d, over the valid pixels of an image:
    ``abs_rel`` = mean |p - d| / d, ``delta_1`` to ``delta_3`` = share of pixels with
    max(p/d, d/p) < 1.25^k, ``rmse`` = sqrt(mean (p - d)^2), ``rmse_log`` = sqrt(mean r^2),
    ``log10`` = mean |log10 p - log10 d|, and ``silog`` = 100 * sqrt(mean r^2 - (mean r)^2), as
    KITTI's benchmark has it.

    Args:
        predicted: Depth (B, H, W), metres, positive where ``mask``.
        depth: True depth (B, H, W), metres, positive where ``mask``; anything elsewhere.
        mask: Pixels that count (B, H, W), bool.

    Returns:
        One value for each image, (B,), float64 (float32 on MPS), for each of `METRICS`.

    Raises:
        ValueError: If the shapes differ or an image has no pixel that counts.
    """
    if predicted.ndim != 3 or not predicted.shape == depth.shape == mask.shape:
        shapes = [tuple(t.shape) for t in (predicted, depth, mask)]
        raise ValueError(f"predicted, depth and mask must share one shape (B, H, W); got {shapes}")
    count = mask.sum((-2, -1))
    if not count.all():
        raise ValueError("no valid pixel to measure")
    dtype = work_dtype(predicted.device)
    p = torch.where(mask, predicted.to(dtype), 1)  # no error where nothing counts
    d = torch.where(mask, depth.to(dtype), 1)

    def mean(x: Tensor) -> Tensor:
        return torch.where(mask, x, 0).sum((-2, -1)) / count

    ratio = torch.maximum(p / d, d / p)
    r = (p / d).log()
    # The variance from the deviations: the difference of two means could come out negative.
    variance = mean((r - mean(r)[:, None, None]) ** 2)
    return {
        "abs_rel": mean((p - d).abs() / d),
        **{f"delta_{k}": mean((ratio < 1.25**k).to(dtype)) for k in (1, 2, 3)},
        "rmse": mean((p - d) ** 2).sqrt(),
        "rmse_log": mean(r**2).sqrt(),
        "log10": mean(r.abs()) / math.log(10),
        "silog": 100 * variance.sqrt(),
    }


def boundary_f1(predicted: Tensor, depth: Tensor, mask: Tensor) -> Tensor:
    """Scale-invariant boundary F1 of depth maps, as Depth Pro defines it.

    Source: arXiv 2410.02073, "Evaluation metrics for sharp boundaries", and its published code.

    Two neighbouring pixels are a boundary at threshold t if the ratio of their depths is above t.
    For the four directions (which neighbour is in front, left, right, above or below) precision
    and recall of the predicted boundaries are taken, 0 for a direction that has none; F1 comes
    from their means over the directions, and the score is the average of F1 over ten thresholds
    from 1.05 to 1.25, weighted by the threshold. So a perfect prediction scores 1 only where the
    truth has boundaries in all four directions at all thresholds. Pairs with an invalid pixel do
    not count, which is our addition (the paper's data are dense). It is meaningful only for data
    whose truth is sharp and dense.

    Args:
        predicted: Depth (B, H, W), positive.
        depth: True depth (B, H, W), positive where ``mask``; anything elsewhere.
        mask: Pixels that count (B, H, W), bool.

    Returns:
        0 to 1 for each image, (B,), in float64 (float32 on MPS).
    """
    dtype = work_dtype(predicted.device)
    p = torch.where(mask, predicted.to(dtype), 1)
    d = torch.where(mask, depth.to(dtype), 1)

    def ratios(x: Tensor) -> list[Tensor]:
        across, down = x[..., 1:] / x[..., :-1], x[..., 1:, :] / x[..., :-1, :]
        return [across, 1 / across, down, 1 / down]

    across, down = mask[..., 1:] & mask[..., :-1], mask[..., 1:, :] & mask[..., :-1, :]
    pairs = list(zip(ratios(p), ratios(d), [across, across, down, down], strict=True))
    score = torch.zeros(p.shape[0], dtype=dtype, device=p.device)
    for threshold in BOUNDARY_THRESHOLDS:
        precision, recall = torch.zeros_like(score), torch.zeros_like(score)
        for predicted_ratio, true_ratio, valid in pairs:
            found = (predicted_ratio > threshold) & valid
            true = (true_ratio > threshold) & valid
            hits = (found & true).sum((-2, -1)).to(dtype)
            precision += hits / found.sum((-2, -1)).clamp(min=1) / 4
            recall += hits / true.sum((-2, -1)).clamp(min=1) / 4
        total = precision + recall
        f1 = 2 * precision * recall / torch.where(total == 0, 1, total)
        score += f1 * threshold / sum(BOUNDARY_THRESHOLDS)
    return score


def depth_metrics(
    aligned: np.ndarray, depth: np.ndarray, mask: np.ndarray, *, max_depth: float
) -> dict[str, float]:
    """`depth_errors` of one aligned disparity map.

    The disparity is clamped to at least 1 / ``max_depth`` and inverted.

    Args:
        aligned: Predicted disparity (H, W) in 1/m, after alignment.
        depth: True depth (H, W) in metres.
        mask: Pixels that count, bool.
        max_depth: Cap in metres.

    Returns:
        The value for each of `METRICS`.

    Raises:
        ValueError: If no pixel counts.
    """
    predicted = 1 / np.maximum(aligned.astype(np.float64), 1 / max_depth)
    tensors = [torch.from_numpy(np.ascontiguousarray(a))[None] for a in (predicted, depth, mask)]
    return {name: float(value) for name, value in depth_errors(*tensors).items()}
