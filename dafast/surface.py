"""Surfaces from depth maps: normals, and meshes without faces across depth edges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .camera import Intrinsics, check_intrinsics
from .optional import MissingPackageError, why_no_module

if TYPE_CHECKING:
    import trimesh

EDGE_THRESHOLD = 0.05
MAX_VERTICES = 1_000_000

_ROWS = 16
"""Rows of normals at a time: the float64 values of a large map would be large."""


def normals_of(
    depth: np.ndarray, intrinsics: Intrinsics, first: int = 0, last: int | None = None
) -> np.ndarray:
    """Normals of the surface that a depth map shows.

    In the image of a plane the inverse depth is linear, so its slope gives the normal. Of the two
    sides of a pixel the slope comes from that whose next pixels continue it better: pixels next to
    an edge get the normal of their own surface.

    Args:
        depth: (H, W) along the optical axis; not finite or not positive where it is unknown.
        intrinsics: The camera.
        first: First row of the result.
        last: Row after the last one; by default all rows.

    Returns:
        (last - first, W, 3) float32 unit vectors that point to the camera: x right, y down, z
        forward. Zero where the depth is unknown.
    """
    height, width = depth.shape
    last = height if last is None else last
    top, bottom = max(0, first - 2), min(height, last + 2)
    part = depth[top:bottom].astype(np.float64)
    known = np.isfinite(part) & (part > 0)
    inverse = np.divide(1, part, out=np.full(part.shape, np.nan), where=known)
    across = _slope(inverse)[first - top : last - top]
    down = _slope(inverse.T).T[first - top : last - top]
    inverse = inverse[first - top : last - top]
    u = np.arange(width) + 0.5 - intrinsics.cx
    v = np.arange(first, last)[:, None] + 0.5 - intrinsics.cy
    normals = np.stack(
        [across * -intrinsics.fx, down * -intrinsics.fy, across * u + down * v - inverse], axis=2
    )
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    good = np.isfinite(length) & (length > 0)
    return np.divide(normals, length, out=np.zeros(normals.shape), where=good).astype(np.float32)


def _slope(values: np.ndarray) -> np.ndarray:
    """Slope along rows, each pixel from the side that continues it better; 0 if nothing is known.

    Args:
        values: (H, W) float64, NaN where unknown.
    """
    width = values.shape[1]
    padded = np.pad(values, ((0, 0), (2, 2)), constant_values=np.nan)
    before2, before, after, after2 = (padded[:, i : i + width] for i in (0, 1, 3, 4))
    left, right = values - before, after - values
    # How far the next difference is from this one; unknown is worse than anything known.
    worst = np.finfo(np.float64).max
    left_error = np.nan_to_num(np.abs(left - (before - before2)), nan=worst)
    right_error = np.nan_to_num(np.abs(right - (after2 - after)), nan=worst)
    both_near = (left_error == worst) & (right_error == worst)
    # Without second neighbours the smaller difference is the more likely one.
    near_left = np.nan_to_num(np.abs(left), nan=worst) <= np.nan_to_num(np.abs(right), nan=worst)
    use_left = np.where(both_near, near_left, left_error <= right_error)
    slope = np.where(use_left, left, right)
    slope = np.where(np.isnan(slope), np.where(use_left, right, left), slope)
    return np.nan_to_num(slope)


@dataclass(frozen=True, eq=False)
class Mesh:
    """A textured surface, as the camera saw it.

    Attributes:
        vertices: (N, 3) float32: x right, y down, z forward from the camera.
        faces: (M, 3) int32, indices of vertices, counterclockwise as the camera sees them.
        uv: (N, 2) float32, places in the texture in 0..1 from its top left corner.
        normals: (N, 3) float32 unit vectors that point to the camera.
        texture: (H, W, 3) uint8, RGB.
        unit: ``"m"``, or ``""`` for an unknown scale.
        intrinsics: The camera; None for a panorama.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    normals: np.ndarray
    texture: np.ndarray = field(repr=False)
    unit: str
    intrinsics: Intrinsics | None

    def to_trimesh(self) -> trimesh.Trimesh:
        """The mesh for trimesh, with its texture; the axes stay.

        Raises:
            MissingPackageError: If trimesh is not installed.
        """
        if why := why_no_module("trimesh"):
            raise MissingPackageError(f"to_trimesh needs trimesh ({why}): pip install dafast[mesh]")
        import trimesh
        from PIL import Image

        # trimesh counts v from the bottom.
        visual = trimesh.visual.TextureVisuals(
            uv=self.uv * (1, -1) + (0, 1), image=Image.fromarray(self.texture)
        )
        return trimesh.Trimesh(
            self.vertices, self.faces, vertex_normals=self.normals, visual=visual, process=False
        )


def mesh_of(
    depth: np.ndarray,
    texture: np.ndarray,
    intrinsics: Intrinsics,
    *,
    unit: str = "",
    edge_threshold: float = EDGE_THRESHOLD,
    max_vertices: int = MAX_VERTICES,
) -> Mesh:
    """Joins neighbouring pixels of a depth map to a surface.

    Args:
        depth: (H, W) along the optical axis; not finite or not positive where it is unknown.
        texture: (H, W, 3) uint8.
        intrinsics: The camera.
        unit: Unit of the depth.
        edge_threshold: A triangle is left out if its farthest corner is farther than its nearest
            by more than this fraction: there the surface behind an edge begins.
        max_vertices: A larger map is sampled at every second, third, ... row and column.

    Raises:
        ValueError: If the threshold is not positive or ``max_vertices`` is under 4.
    """
    camera = check_intrinsics(intrinsics)
    height, width = depth.shape
    rows, columns = sampled_lines(height, width, max_vertices)
    z = depth[np.ix_(rows, columns)].astype(np.float64)
    faces, used = joined_faces(z, edge_threshold)
    across = np.broadcast_to(columns + 0.5, z.shape).ravel()[used]
    down = np.broadcast_to(rows[:, None] + 0.5, z.shape).ravel()[used]
    z = z.ravel()[used]
    points = [(across - camera.cx) / camera.fx * z, (down - camera.cy) / camera.fy * z, z]
    return Mesh(
        np.stack(points, axis=1).astype(np.float32),
        faces,
        np.stack([across / width, down / height], axis=1).astype(np.float32),
        _sampled_normals(depth, camera, rows, columns).reshape(-1, 3)[used],
        texture,
        unit,
        camera,
    )


def joined_faces(z: np.ndarray, edge_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Triangles between neighbouring samples of a depth map.

    Args:
        z: (H, W), not finite or not positive where it is unknown.
        edge_threshold: As for `mesh_of`.

    Returns:
        Faces (M, 3) int32, whose indices count the samples that are used, and which are (H * W,).

    Raises:
        ValueError: If the threshold is not positive.
    """
    if not edge_threshold > 0:
        raise ValueError(f"edge_threshold={edge_threshold!r}: a relative difference above 0")
    known = np.isfinite(z) & (z > 0)
    corners = np.where(known, z, np.nan).astype(np.float32)
    numbers = np.arange(z.size, dtype=np.int32).reshape(z.shape)
    upper_left, upper_right = numbers[:-1, :-1].ravel(), numbers[:-1, 1:].ravel()
    lower_left, lower_right = numbers[1:, :-1].ravel(), numbers[1:, 1:].ravel()
    faces = np.concatenate(
        [
            np.stack([upper_left, lower_left, upper_right], axis=1),
            np.stack([upper_right, lower_left, lower_right], axis=1),
        ]
    )
    of_faces = corners.ravel()[faces]
    # False with an unknown corner.
    joined = of_faces.max(axis=1) <= of_faces.min(axis=1) * (1 + edge_threshold)
    faces = faces[joined]
    used = np.zeros(z.size, bool)
    used[faces if len(faces) else known.ravel()] = True  # without a face, points remain
    place = np.cumsum(used) - 1
    return place[faces].astype(np.int32), used


def sampled_lines(height: int, width: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, evenly spaced and with the last ones, of at most ``limit`` pixels.

    Raises:
        ValueError: If the limit is under 4.
    """
    if limit < 4:
        raise ValueError(f"max_vertices={limit!r}: at least 4 make a surface")
    step = 1
    while True:
        rows, columns = (
            np.unique(np.append(np.arange(0, side, step), side - 1)) for side in (height, width)
        )
        if len(rows) * len(columns) <= limit:
            return rows, columns
        step += 1


def _sampled_normals(
    depth: np.ndarray, camera: Intrinsics, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Normals at some rows and columns, a few rows at a time."""
    found = np.empty((len(rows), len(columns), 3), np.float32)
    for start in range(0, depth.shape[0], _ROWS):
        chosen = (rows >= start) & (rows < start + _ROWS)
        if chosen.any():
            part = normals_of(depth, camera, start, min(depth.shape[0], start + _ROWS))
            found[chosen] = part[np.ix_(rows[chosen] - start, columns)]
    return found
