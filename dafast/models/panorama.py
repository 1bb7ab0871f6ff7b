"""Panoramas: equirectangular photos in perspective views, and back.

Twelve views, one along each corner of an icosahedron, overlap their neighbours. The network gives a
map of each, up to a scale (of depth) or a scale and a shift (of disparity). The overlaps determine
them, all at once by robust least squares: in every direction the distance is one. The distances
are blended with weights that fall to 0 at the borders of the views.

A pixel in row r and column c of (H, W) is at the longitude ((c + 0.5) / W - 0.5) * 360 degrees,
which grows to the right, and at the latitude (0.5 - (r + 0.5) / H) * 180 degrees. The middle of the
photo is forward: x is right, y down, z forward, as with other photos.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..camera import focal_factor, intrinsics_from_fov
from ..images import ImageError
from ..ops import Geometry
from ..panorama import directions_of
from .inference import InferenceOptions, predict_maps
from .network import DepthNetwork

FOV = 95.0
"""Field of view of the views in degrees, horizontal and vertical."""

_HALF = math.tan(math.radians(FOV / 2))
_DIRECTIONS = 6000  # in which the views are compared
_ROWS = 64  # of the result that are blended at a time
_ROUNDS = 12  # of reweighting
_PULL = 1e-3  # of the scales towards their mean, and of the shifts to 0


def check_panorama(shape: tuple[int, ...]) -> None:
    """Raises an ImageError unless a photo of this shape can show all directions."""
    height, width = shape[:2]
    if height < 16 or abs(width - 2 * height) > 0.02 * width:
        raise ImageError(
            f"a panorama is equirectangular, twice as wide as high (360 by 180 degrees); the photo "
            f"has {width}x{height} pixels"
        )


def views() -> np.ndarray:
    """Rotations of the views (12, 3, 3) float64; their rows are right, down and forward."""
    latitude = math.atan(0.5)
    forward = [(0.0, -1.0, 0.0), (0.0, 1.0, 0.0)]
    for i in range(10):
        longitude, up = math.radians(36 * i), latitude * (1 if i % 2 else -1)
        level = math.cos(up)
        forward.append((level * math.sin(longitude), math.sin(up), level * math.cos(longitude)))
    rotations = []
    for f in np.array(forward):
        right = np.cross((0, 1, 0), f) if abs(f[1]) < 0.99 else np.array((1.0, 0, 0))
        right /= np.linalg.norm(right)
        rotations.append((right, np.cross(f, right), f))
    return np.array(rotations)


def predict_panorama(model: DepthNetwork, photo: np.ndarray, options: InferenceOptions) -> Tensor:
    """Predicts the distance of everything around the camera.

    Args:
        model: Any model.
        photo: (H, W, 3) RGB, uint8, or float32 in 0..1: equirectangular, W = 2 H.
        options: Those of each view.

    Returns:
        (H, W) float32 on the CPU: the distance from the camera, of a model of depth or metres; the
        inverse distance, up to a scale, of a model of disparity. 0 where disparity is not positive.

    Raises:
        ImageError: If the photo is not twice as wide as high.
    """
    check_panorama(photo.shape)
    height, width = photo.shape[:2]
    side = max(64, min(round(width / math.pi), 3 * options.size_for(model.config)))
    rotations = torch.from_numpy(views()).float()
    maps = []
    for rotation in rotations:
        geometries: dict[int, Geometry] = {}
        view = _render(photo, rotation, side)
        out = predict_maps(model, [view], options, native=True, geometries=geometries)[0].cpu()
        if (focal := model.config.focal_length) is not None:
            out = out * focal_factor(focal, intrinsics_from_fov(FOV, side, side), geometries[0])
        maps.append(out)
    disparity = model.config.quantity == "disparity"
    aligned_corners = model.config.output_align_corners
    if not disparity:
        maps = [out.clamp(min=1e-6).log() for out in maps]
    rays = _sphere(_DIRECTIONS)
    seen = [_sample(m, r, rays, aligned_corners) for m, r in zip(maps, rotations, strict=True)]
    values, stretch, weights = (
        torch.stack(column).double().numpy() for column in zip(*seen, strict=True)
    )
    solve = _solve_disparity if disparity else _solve_depth
    scales, shifts = solve(values, stretch, weights)
    result = torch.empty(height, width)
    for first in range(0, height, _ROWS):
        rows = range(first, min(height, first + _ROWS))
        part = torch.from_numpy(directions_of(rows, height, width)).float()
        total, count = torch.zeros(part.shape[:2]), torch.zeros(part.shape[:2])
        for k, (out, rotation) in enumerate(zip(maps, rotations, strict=True)):
            value, stretched, weight = _sample(out, rotation, part, aligned_corners)
            if disparity:
                value = (float(scales[k]) * value + float(shifts[k])) / stretched
            else:
                value = value + stretched.log() + float(shifts[k])
            total += weight * value
            count += weight
        blended = total / count
        result[rows.start : rows.stop] = blended.clamp(min=0) if disparity else blended.exp()
    return result


def _render(photo: np.ndarray, rotation: Tensor, side: int) -> np.ndarray:
    """The photo as a pinhole camera sees it, (side, side, 3)."""
    place = (torch.arange(side) + 0.5) / side * 2 - 1
    x, y = torch.meshgrid(place * _HALF, place * _HALF, indexing="xy")
    world = torch.stack([x, y, torch.ones_like(x)], -1) @ rotation
    height, width = photo.shape[:2]
    level = torch.hypot(world[..., 0], world[..., 2])
    column = (torch.atan2(world[..., 0], world[..., 2]) / (2 * math.pi) + 0.5) * width - 0.5
    row = (torch.atan2(world[..., 1], level) / math.pi + 0.5) * height - 0.5
    row = row.clamp(0, height - 1)
    left, top = column.floor(), row.floor()
    across, down = (column - left)[..., None], (row - top)[..., None]
    columns = [(left.long() + i).remainder(width).numpy() for i in (0, 1)]
    rows = [(top.long() + i).clamp(max=height - 1).numpy() for i in (0, 1)]
    out = torch.zeros(side, side, 3)
    for i in (0, 1):
        for j in (0, 1):
            weight = (down if i else 1 - down) * (across if j else 1 - across)
            out += weight * torch.from_numpy(photo[rows[i], columns[j]]).float()
    if photo.dtype == np.uint8:
        return out.round_().clamp_(0, 255).byte().numpy()
    return out.numpy()


def _sphere(count: int) -> Tensor:
    """Directions (count, 3), evenly over the sphere (a Fibonacci lattice)."""
    k = torch.arange(count) + 0.5
    y = 1 - 2 * k / count
    angle = k * (math.pi * (3 - math.sqrt(5)))
    level = (1 - y**2).sqrt()
    return torch.stack([level * angle.cos(), y, level * angle.sin()], 1)


def _sample(
    native: Tensor, rotation: Tensor, rays: Tensor, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples a view in directions (..., 3).

    Returns:
        The values of its map, the distance over the depth there, and weights: 1 in the middle of
        the view, 0 at its border and outside.
    """
    camera = rays @ rotation.T
    ahead = camera[..., 2] > 0.1
    z = torch.where(ahead, camera[..., 2], 1)
    x, y = camera[..., 0] / z, camera[..., 1] / z
    place = torch.stack([x, y], -1) / _HALF
    inside = (1 - place.abs()).clamp(min=0).prod(-1)
    weight = torch.where(ahead, inside, 0) ** 2
    grid = place.clamp(-1, 1).reshape(1, 1, -1, 2)
    value = F.grid_sample(
        native[None, None], grid, padding_mode="border", align_corners=align_corners
    )
    return value.reshape(x.shape), (1 + x**2 + y**2).sqrt(), weight


def _solve_disparity(
    values: np.ndarray, stretch: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of each view's disparity, so that inverse distances agree.

    Minimises the weighted squares of (scale * value + shift) / stretch around its mean in each
    direction, with a mean scale of 1.
    """
    count = len(values)
    unit = np.median(np.abs(values[weights > 0])) or 1.0
    features = np.stack([values / unit / stretch, 1 / stretch], 1)  # (views, 2, directions)
    robust = np.ones_like(weights)
    solution = np.tile([1.0, 0.0], count)
    for _ in range(_ROUNDS):
        w = weights * robust
        total = np.maximum(w.sum(0), 1e-12)
        weighted = features * w[:, None]
        blocks = np.einsum("iad,ibd->iab", weighted, features)
        across = np.einsum("iad,jbd->iajb", weighted, weighted / total)
        system = -across.reshape(2 * count, 2 * count)
        for i in range(count):
            part = slice(2 * i, 2 * i + 2)
            system[part, part] += blocks[i]
        pull = _PULL * max(np.trace(system) / len(system), 1e-12)
        system += pull * np.eye(2 * count)
        target = pull * np.tile([1.0, 0.0], count)
        # The mean scale is 1: one more row and column (a Lagrange multiplier).
        border = np.tile([1.0, 0.0], count)
        whole = np.block([[system, border[:, None]], [border[None], np.zeros((1, 1))]])
        solution = np.linalg.solve(whole, np.append(target, count))[:-1]
        distance = np.einsum("iad,ia->id", features, solution.reshape(count, 2))
        robust = _robust_weights(distance, w, weights)
    scales, shifts = solution.reshape(count, 2).T
    # A view without anything in it (a clear sky) has no scale of its own.
    return np.where(scales > 0, scales / unit, 1 / unit), np.where(scales > 0, shifts, 0)


def _solve_depth(
    values: np.ndarray, stretch: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solves for the offsets of the logarithm of each view's depth that make distances agree."""
    count = len(values)
    distance = values + np.log(stretch)
    robust, shifts = np.ones_like(weights), np.zeros(count)
    for _ in range(_ROUNDS):
        w = weights * robust
        total = np.maximum(w.sum(0), 1e-12)
        system = np.diag(w.sum(1)) - (w / total) @ w.T
        means = (w * distance).sum(0) / total
        right = -(w * (distance - means)).sum(1)
        shifts = np.linalg.lstsq(system + np.ones((count, count)), right, rcond=None)[0]
        robust = _robust_weights(distance + shifts[:, None], w, weights)
    return np.ones(count), shifts


def _robust_weights(values: np.ndarray, now: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cauchy weights of the residuals around the mean in each direction."""
    means = (now * values).sum(0) / np.maximum(now.sum(0), 1e-12)
    residuals = np.abs(values - means)
    shared = (weights > 0) & ((weights > 0).sum(0) > 1)
    spread = max(1.4826 * np.median(residuals[shared]), 1e-9)
    return 1 / (1 + (residuals / (2 * spread)) ** 2)
