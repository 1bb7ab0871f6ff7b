"""A photo as a camera next to its own sees it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import check_count
from ..ops import forward_warp

CLIPPED = 0.005
"""Fraction of the pixels at each end of the range that `nearness` clips."""

EDGE = 1 / 500
"""Part of the width by which near surfaces grow over the background. The pixels along an edge mix
the colours of both sides; without this they would stay behind as an outline of the object."""


class Camera(NamedTuple):
    """A camera next to the one that took the photo.

    Attributes:
        right: Pixels by which the nearest surface (nearness 1) moves to the left of the farthest
            (nearness 0): the camera is that far to the right.
        down: The same downwards.
        forward: How far the camera is in front: 0.1 magnifies the nearest surface by 1 / 0.9
            relative to the farthest.
    """

    right: float = 0.0
    down: float = 0.0
    forward: float = 0.0


def nearness(disparity: np.ndarray) -> np.ndarray:
    """Disparity scaled to 0 (far) .. 1 (near).

    Args:
        disparity: (H, W); of depth its inverse (`dafast.DepthResult.to_disparity`). Pixels that are
            not finite are taken as far.

    Returns:
        (H, W) float32. The largest and the smallest half per cent of the pixels are clipped to 1
        and 0. A constant map gives 0.
    """
    known = np.isfinite(disparity)
    if not known.any():
        return np.zeros(disparity.shape, np.float32)
    values = disparity[known]
    low, high = np.quantile(values, [CLIPPED, 1 - CLIPPED])
    if high <= low:  # all but a few pixels are equal
        low, high = values.min(), values.max()
    if high <= low:
        return np.zeros(disparity.shape, np.float32)
    scaled = np.where(known, disparity, low) - low
    return np.clip(scaled / (high - low), 0, 1).astype(np.float32)


def check_convergence(convergence: float) -> None:
    """Raises a ValueError unless convergence is a nearness."""
    if not 0 <= convergence <= 1:
        raise ValueError(f"convergence={convergence}: a nearness is needed, 0 (far) to 1 (near)")


def render_view(
    photo: np.ndarray,
    near: np.ndarray,
    camera: Camera,
    *,
    convergence: float = 0.5,
    edge: int | None = None,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Renders a photo as another camera sees it.

    Pixels move by their nearness minus ``convergence``, times the camera's movement; see
    `dafast.ops.forward_warp` for the depth test and the filling. The movement is limited to a
    stretch that leaves no cracks; a camera at the photo's own place returns the photo.

    Args:
        photo: (H, W, 3) uint8.
        near: (H, W), as `nearness` gives it.
        camera: The camera, relative to the one that took the photo.
        convergence: The nearness that does not move.
        edge: Pixels by which near surfaces grow over the background; by default 1/500 of the
            width.
        device: Where to compute.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: If the sizes differ, or convergence is not in 0..1.
    """
    check_convergence(convergence)
    if edge is not None:
        check_count("edge", edge, 0, "a number of pixels is needed")
    if photo.dtype != np.uint8 or photo.shape != (*near.shape, 3):
        raise ValueError(
            f"the photo has the shape {photo.shape} and the dtype {photo.dtype}, its map the shape "
            f"{near.shape}; (H, W, 3) uint8 and (H, W) of one size are needed"
        )
    if camera == Camera():
        return photo.copy()
    height, width = near.shape
    edge = round(width * EDGE) if edge is None else edge
    image = (
        torch.from_numpy(np.require(photo, requirements="W"))
        .to(device)
        .permute(2, 0, 1)[None]
        .float()
    )
    order = torch.from_numpy(np.ascontiguousarray(near, np.float32)).to(device)[None, None]
    if edge:
        order = F.max_pool2d(order, 2 * edge + 1, stride=1, padding=edge)
    order = order - convergence
    flow = _flow(order[0, 0], camera)
    # In pixels of movement, in which the depth test tells surfaces apart.
    reach = max(abs(camera.right), abs(camera.down), abs(camera.forward) * max(height, width) / 2)
    with torch.no_grad():
        out, _ = forward_warp(image, flow[None], order * reach)
    return out[0].permute(1, 2, 0).round_().clamp_(0, 255).byte().cpu().numpy()


def _flow(relative: Tensor, camera: Camera) -> Tensor:
    """The movement of each pixel (2, H, W) with this nearness relative to the convergence."""
    height, width = relative.shape
    x = torch.arange(width, device=relative.device) - (width - 1) / 2
    y = torch.arange(height, device=relative.device)[:, None] - (height - 1) / 2
    grown = 1 / (1 - camera.forward * relative) - 1
    return torch.stack([x * grown - camera.right * relative, y * grown - camera.down * relative])
