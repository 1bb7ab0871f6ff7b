"""Fitting an affine-invariant prediction to the truth, and baselines that see no image.

A relative model predicts disparity up to a scale and a shift; each benchmark fits them to the
truth, image by image, before it measures. `align` does this for a batch on the tensors' device,
each method in closed form. Moments and medians are taken in float64 (float32 on MPS, which has no
float64) over the valid pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..alignment import least_squares, masked_median, ratio, weighted_mean, work_dtype

Array = np.ndarray

ALIGNMENTS = {
    "scale_shift": "scale and shift by least squares in disparity (MiDaS, Depth Anything)",
    "scale": "only the scale, by least squares in disparity",
    "median": "only the scale: the ratio of the medians of disparity",
    "robust": "scale and shift that match median and mean absolute deviation of disparity (MiDaS)",
    "depth_scale_shift": "scale and shift by least squares in depth, after inverting",
    "none": "nothing: the prediction is disparity in 1/m already",
}
"""The methods by name."""

DEPTH_RANGE = 1000.0
"""`depth_scale_shift` inverts before it fits: there a disparity below this fraction of the largest
one (zero and negative ones too) is taken as the largest over this."""


def align(
    prediction: Tensor,
    depth: Tensor,
    mask: Tensor,
    method: str = "scale_shift",
    *,
    max_depth: float | Tensor,
) -> Tensor:
    """Fits predictions to the truth, image by image, and gives their depth.

    Clamping: the aligned disparity is raised to at least 1 / ``max_depth`` and then inverted, so
    that a disparity of 0 or less gives the cap. There is no other bound; a disparity that is
    too large gives a depth that is too small. ``depth_scale_shift`` yields depth itself, which is
    clamped to 1 / `DEPTH_RANGE` of the cap from below and the cap from above.

    Args:
        prediction: (B, H, W), any affine of disparity; it must be finite where ``mask``.
        depth: True depth (B, H, W), metres; anything where not ``mask``.
        mask: Valid pixels (B, H, W), bool.
        method: One of `ALIGNMENTS`.
        max_depth: Cap in metres, one for all or (B,).

    Returns:
        Depth in metres (B, H, W), float64 (float32 on MPS), aligned outside ``mask`` as well.

    Raises:
        ValueError: If the method is unknown, the shapes differ, an image has no valid pixel, or a
            prediction is not finite at one.
    """
    if method not in ALIGNMENTS:
        raise ValueError(f"no alignment {method!r}; there are: {', '.join(ALIGNMENTS)}")
    if prediction.ndim != 3 or not prediction.shape == depth.shape == mask.shape:
        shapes = [tuple(t.shape) for t in (prediction, depth, mask)]
        raise ValueError(f"prediction, depth and mask must share one shape (B, H, W); got {shapes}")
    count = mask.sum((-2, -1), keepdim=True)
    if not count.all():
        raise ValueError("no valid pixel to align to")
    dtype = work_dtype(prediction.device)
    p = prediction.to(dtype)
    if not torch.where(mask, p, 0).isfinite().all():
        raise ValueError("the prediction is not finite at a valid pixel; check the model's output")
    cap = torch.as_tensor(max_depth, dtype=dtype, device=p.device).reshape(-1, 1, 1)
    truth = torch.where(mask, depth.to(dtype), 1)
    target = 1 / truth

    scale: Tensor | float
    shift: Tensor | float
    if method == "scale_shift":
        scale, shift = least_squares(p, target, mask, count)
    elif method == "scale":
        scale, shift = (
            ratio(weighted_mean(p * target, mask, count), weighted_mean(p**2, mask, count)),
            0,
        )
    elif method == "median":
        scale, shift = ratio(masked_median(target, mask, count), masked_median(p, mask, count)), 0
    elif method == "robust":
        center, target_center = masked_median(p, mask, count), masked_median(target, mask, count)
        scale = ratio(
            weighted_mean((target - target_center).abs(), mask, count),
            weighted_mean((p - center).abs(), mask, count),
        )
        shift = target_center - scale * center
    elif method == "depth_scale_shift":
        largest = torch.where(mask, p, -torch.inf).amax((-2, -1), keepdim=True)
        inverse = 1 / p.maximum(torch.where(largest > 0, largest, 1) / DEPTH_RANGE)
        scale, shift = least_squares(inverse, truth, mask, count)
        return (scale * inverse + shift).maximum(cap / DEPTH_RANGE).minimum(cap)
    else:
        scale, shift = 1, 0
    return 1 / (scale * p + shift).maximum(1 / cap)


def _solve(columns: list[Array], target: Array, mask: Array) -> Array:
    """Least-squares combination of the columns that fits ``target`` where ``mask``."""
    if not mask.any():
        raise ValueError("no valid pixel to align to")
    design = np.stack([c[mask] for c in columns]).astype(np.float64)
    # The normal equations: the columns are few and of one size, and a photo has many pixels.
    weights, *_ = np.linalg.lstsq(design @ design.T, design @ target[mask], rcond=None)
    fitted = np.zeros(target.shape)
    for weight, column in zip(weights, columns, strict=True):
        fitted += weight * column
    return fitted


def align_disparity(prediction: Array, disparity: Array, mask: Array) -> Array:
    """Scale and shift of one prediction by least squares in disparity space, without a clamp.

    Args:
        prediction: (H, W), any affine of disparity.
        disparity: True disparity (H, W), 1/m.
        mask: Valid pixels (H, W), bool.

    Returns:
        scale * prediction + shift, (H, W) float64. A constant prediction gives the constant fit.

    Raises:
        ValueError: If no pixel is valid.
    """
    if not mask.any():
        raise ValueError("no valid pixel to align to")
    maps = (prediction, disparity, mask)
    p, y, m = (torch.from_numpy(np.ascontiguousarray(a))[None] for a in maps)
    scale, shift = least_squares(p.double(), y.double(), m, m.sum((-2, -1), keepdim=True))
    return (scale * p + shift)[0].numpy()


def constant_baseline(disparity: Array, mask: Array) -> Array:
    """The constant that fits ``disparity`` best, (H, W)."""
    return _solve([np.ones(disparity.shape)], disparity, mask)


def plane_baseline(disparity: Array, mask: Array) -> Array:
    """The plane a*x + b*y + c in image coordinates that fits ``disparity`` best, (H, W)."""
    height, width = disparity.shape
    x, y = np.arange(width) / width, np.arange(height)[:, None] / height
    columns = [np.broadcast_to(c, disparity.shape) for c in (x, y, np.ones(()))]
    return _solve(columns, disparity, mask)
