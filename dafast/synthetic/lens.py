"""Depth of field: what a lens focused at one distance blurs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dafast.synthetic.meshes import F32

#: Radii of the blurred versions that are blended, as shares of the largest.
_LEVELS = (0.12, 0.35, 1.0)


def focused(linear: F32, depth: NDArray[np.floating], focus: float, blur: float) -> F32:
    """Radiance as a lens of finite aperture sees it.

    A point at ``depth`` becomes a disc of radius ``blur * |1 - focus / depth|``. Each of three
    blurred versions takes only pixels that are blurred themselves, so that a sharp thing has no
    halo in the blurred background; what is nearer than the focus spreads over its edge.

    Args:
        linear: linear radiance, float32 (H, W, 3).
        depth: metres along the optical axis (H, W), inf for sky.
        focus: depth of what is sharp, in metres.
        blur: radius of the disc of a point at infinity, in pixels; below half a pixel nothing
            changes.

    Returns:
        float32 (H, W, 3).
    """
    if blur < 0.5:
        return linear
    largest = 1.5 * blur
    signed = blur * (1 - focus / np.maximum(depth, 1e-3))
    front = _box(np.clip(-signed, 0, largest)[..., None].astype(np.float32), round(blur))
    radius = np.maximum(np.abs(np.clip(signed, 0, largest)), front[..., 0]).astype(np.float32)
    out, below = linear, 0.0
    for level in _LEVELS:
        r = level * largest
        weight = np.clip(radius / r, 0.02, 1)[..., None].astype(np.float32)
        total = _box(
            _box(np.concatenate([linear * weight, weight], -1), round(r / 2)), round(r / 2)
        )
        share = np.clip((radius - below) / (r - below), 0, 1)[..., None]
        out = out + share * (total[..., :3] / total[..., 3:] - out)
        below = r
    return out.astype(np.float32)


def _box(a: F32, radius: int) -> F32:
    """Means over squares of 2 * radius + 1 pixels of (H, W, C); edges repeat."""
    if radius < 1:
        return a
    n = 2 * radius + 1
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(a, pad, "edge"), axis, np.float64)
        high, low = [slice(None)] * 3, [slice(None)] * 3
        high[axis], low[axis] = slice(n, None), slice(None, -n)
        a = ((total[tuple(high)] - total[tuple(low)]) / n).astype(np.float32)
    return a
