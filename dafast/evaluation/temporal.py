"""Temporal errors of depth in videos: TAE, and flicker where the optical flow is known.

Source of TAE: "Video Depth Anything" (arXiv 2501.12375, section 4.1) and the benchmark code of
https://github.com/DepthAnything/Video-Depth-Anything, benchmark/eval/eval_tae.py at 4f5ae23.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..video.flow import warp

Floats = NDArray[np.floating]


def temporal_alignment_error(
    depth: Floats,
    poses: Floats,
    intrinsics: tuple[float, float, float, float],
    mask: NDArray[np.bool_] | None = None,
) -> float:
    """Temporal alignment error (TAE) of a video's depth, in percent.

    Each map is projected into the next frame and into the one before, to the nearest pixel. The
    error of a pair is the mean of |other - projected| / other over the pixels where both have
    depth; a pair that shares none counts as 0. Of several points that meet in a pixel the last
    one in reading order counts. TAE is the mean over all pairs and both directions.

    Args:
        depth: Depth in metres, (N, H, W), aligned to the truth once for the whole video; not above
            0 where unknown.
        poses: Camera to world, (N, 4, 4), metres; axes right, down, forward.
        intrinsics: fx, fy, cx, cy in pixels, with pixel centres at (column + 0.5, row + 0.5).
        mask: Pixels that count where they are projected to, bool (N, H, W), for example those that
            do not move; by default all.

    Returns:
        The error; NaN for fewer than two frames.

    Raises:
        ValueError: The shapes do not fit.
    """
    n = len(depth)
    wrong_mask = mask is not None and mask.shape != depth.shape
    if depth.ndim != 3 or poses.shape != (n, 4, 4) or wrong_mask:
        shapes = depth.shape, poses.shape, None if mask is None else mask.shape
        raise ValueError(
            f"depth (N, H, W), poses (N, 4, 4) and mask (N, H, W) must fit; got {shapes}"
        )
    if n < 2:
        return float("nan")
    total = 0.0
    for k in range(n - 1):
        for one, other in ((k, k + 1), (k + 1, k)):
            motion = np.linalg.inv(poses[other].astype(np.float64)) @ poses[one]
            counted = np.ones(depth.shape[1:], bool) if mask is None else mask[other]
            total += _projection_error(depth[one], depth[other], motion, intrinsics, counted)
    return 100 * total / (2 * (n - 1))


def _projection_error(
    depth: Floats,
    other: Floats,
    motion: Floats,
    intrinsics: tuple[float, float, float, float],
    mask: NDArray[np.bool_],
) -> float:
    """Mean relative error of a map that is moved into another camera, (H, W) each."""
    height, width = depth.shape
    fx, fy, cx, cy = intrinsics
    row, column = np.mgrid[:height, :width]
    z = depth.astype(np.float64)
    points = np.stack([(column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z, z], -1)
    x, y, z = np.moveaxis(points.reshape(-1, 3) @ motion[:3, :3].T + motion[:3, 3], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        column, row = np.rint(x * fx / z + cx - 0.5), np.rint(y * fy / z + cy - 0.5)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    projected = np.zeros((height, width))
    projected[row[inside].astype(int), column[inside].astype(int)] = z[inside]
    valid = (projected > 0) & (other > 0) & mask
    if not valid.any():
        return 0.0
    truth = other[valid].astype(np.float64)
    return float(np.mean(np.abs(truth - projected[valid]) / truth))


def known_flow_flicker(
    disparity: Floats, flow: NDArray[np.float32], visible: NDArray[np.bool_]
) -> float:
    """The flicker number (`dafast.video.flicker`) of a video whose optical flow is known.

    Args:
        disparity: (N, H, W), in any scale.
        flow: From each frame to the next, (N - 1, H, W, 2).
        visible: Whether the next frame shows the point of a pixel, bool (N - 1, H, W).

    Returns:
        Mean absolute change of disparity along the flow, over all pixels that stay visible, in
        percent of the range of disparity (2nd to 98th percentile, mean over the frames); NaN if
        there are none.

    Raises:
        MissingPackageError: OpenCV is not installed.
    """
    changes = []
    for k, (step, stays) in enumerate(zip(flow, visible, strict=True)):
        later = warp(np.asarray(disparity[k + 1], np.float32), step)
        change = np.abs(later - disparity[k])[stays]
        change = change[np.isfinite(change)]
        if change.size:
            changes.append(float(change.mean()))
    low, high = np.percentile(disparity, (2, 98), axis=(1, 2))
    span = float(np.mean(high - low))
    return 100 * float(np.mean(changes)) / span if changes and span > 0 else float("nan")
