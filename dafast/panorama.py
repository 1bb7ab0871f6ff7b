"""Results of equirectangular photos: the distance in all directions, points and meshes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .formats import ply
from .pointcloud import PointCloud, as_bytes
from .result import DepthResult
from .surface import EDGE_THRESHOLD, MAX_VERTICES, Mesh, joined_faces, sampled_lines

_ROWS = 64
"""Rows that are unprojected at a time."""


def directions_of(rows: np.ndarray | range, height: int, width: int) -> np.ndarray:
    """Unit vectors of the pixels in some rows of an equirectangular photo.

    A pixel in row r and column c is at the longitude ((c + 0.5) / width - 0.5) * 360 degrees, which
    grows to the right, and at the latitude (0.5 - (r + 0.5) / height) * 180 degrees.

    Args:
        rows: The rows.
        height: Height of the photo in pixels.
        width: Its width.

    Returns:
        (rows, width, 3) float64: x right, y down, z forward; the middle of the photo is forward.
    """
    longitude = ((np.arange(width) + 0.5) / width - 0.5) * 2 * math.pi
    latitude = (0.5 - (np.asarray(rows) + 0.5) / height)[:, None] * math.pi
    level = np.cos(latitude)
    parts = level * np.sin(longitude), -np.sin(latitude), level * np.cos(longitude)
    return np.stack(np.broadcast_arrays(*parts), axis=-1)


@dataclass(frozen=True, eq=False, repr=False)
class PanoramaResult(DepthResult):
    """The prediction of an equirectangular photo.

    The attributes are those of `DepthResult`, with these differences: depth is the distance from
    the camera in the direction of the pixel, disparity its inverse; and there are no intrinsics,
    as the position of a pixel determines its direction.
    """

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "projection": "equirectangular"}

    def normal_strips(self) -> Iterator[tuple[slice, np.ndarray]]:
        distance = self.surface_depth()
        for first in range(0, len(distance), _ROWS):
            last = min(len(distance), first + _ROWS)
            yield slice(first, last), self._normals(distance, first, last)

    def normals(self) -> np.ndarray:
        """As `DepthResult.normals`."""
        return np.concatenate([normals for _, normals in self.normal_strips()])

    def point_cloud(self) -> PointCloud:
        """The points in space with their normals, as `DepthResult.point_cloud` gives them."""
        parts = list(self._points())
        points, colors, normals = (np.concatenate([part[i] for part in parts]) for i in range(3))
        distance = self.to_depth().values
        unit = "m" if self.is_metric else ""
        return PointCloud(points, colors, distance, None, normals, unit)

    def mesh(
        self, *, edge_threshold: float = EDGE_THRESHOLD, max_vertices: int = MAX_VERTICES
    ) -> Mesh:
        """The surface around the camera; the arguments are those of `DepthResult.mesh`."""
        distance = self.surface_depth()
        height, width = distance.shape
        rows, columns = sampled_lines(height, width, max_vertices)
        around = np.append(columns, 0)  # the first column again, where the texture ends
        sampled = distance[np.ix_(rows, around)].astype(np.float64)
        faces, used = joined_faces(sampled, edge_threshold)
        points = directions_of(rows, height, width)[:, around] * sampled[..., None]
        normals = self.normals()[np.ix_(rows, around)]
        across = np.append((columns + 0.5) / width, 1.0)
        uv = np.stack(np.broadcast_arrays(across, ((rows + 0.5) / height)[:, None]), axis=-1)
        return Mesh(
            points.reshape(-1, 3)[used].astype(np.float32),
            faces,
            uv.reshape(-1, 2)[used].astype(np.float32),
            normals.reshape(-1, 3)[used],
            as_bytes(self._pixels()),
            "m" if self.is_metric else "",
            None,
        )

    def _save_ply(self, path: Path, facts: dict[str, Any]) -> None:
        distance = self.surface_depth()
        count = int((np.isfinite(distance) & (distance > 0)).sum())
        unit = "m" if self.is_metric else ""
        ply.write_ply(path, count, self._points(), unit, normals=True, facts=facts)

    def _points(self) -> Iterator[ply.Points]:
        """The points, some rows at a time."""
        distance, pixels = self.surface_depth(), self._pixels()
        height, width = distance.shape
        for rows, normals in self.normal_strips():
            part = distance[rows]
            known = np.isfinite(part) & (part > 0)
            directions = directions_of(range(rows.start, rows.stop), height, width)
            points = (directions * part[..., None])[known].astype(np.float32)
            yield ply.Points(points, as_bytes(pixels[rows][known]), normals[known])

    def _normals(self, distance: np.ndarray, first: int, last: int) -> np.ndarray:
        """Normals of the rows [first, last), each slope from the side that is less steep."""
        height, width = distance.shape
        chosen = np.clip(np.arange(first - 1, last + 1), 0, height - 1)
        part = distance[chosen].astype(np.float64)
        part = np.where(np.isfinite(part) & (part > 0), part, np.nan)
        points = directions_of(chosen, height, width) * part[..., None]
        slopes = []
        for axis in (0, 1):
            after = np.roll(points, -1, axis) - points
            before = points - np.roll(points, 1, axis)
            steps = [np.abs(np.roll(part, shift, axis) - part) for shift in (-1, 1)]
            if axis == 0:  # the first and the last row have only one side
                steps[0][-2 if last == height else -1] = np.nan
                steps[1][1 if first == 0 else 0] = np.nan
            steps = [np.nan_to_num(step, nan=np.inf) for step in steps]
            slopes.append(np.where((steps[0] <= steps[1])[..., None], after, before)[1:-1])
        normals = np.cross(slopes[0], slopes[1])
        length = np.linalg.norm(normals, axis=2, keepdims=True)
        good = np.isfinite(length) & (length > 0)
        return np.divide(normals, length, out=np.zeros(normals.shape), where=good).astype("f4")
