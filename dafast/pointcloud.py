"""Coloured points in space from depth in metres and a pinhole camera, and files of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .camera import (
    Intrinsics,
    check_fov,
    check_intrinsics,
    intrinsics_from_35mm,
    intrinsics_from_fov,
    warn_of_camera,
)
from .formats.ply import Points, write_ply
from .surface import normals_of

__all__ = [
    "SUFFIXES",
    "Intrinsics",
    "PointCloud",
    "check_fov",
    "check_intrinsics",
    "intrinsics_from_35mm",
    "intrinsics_from_fov",
    "point_cloud",
]

SUFFIXES = (".ply",)
"""Suffixes of the files that `PointCloud.save` writes."""

_ROWS = 16
"""Rows that are unprojected at a time: the float64 values of a large map would be large."""


@dataclass(frozen=True)
class PointCloud:
    """The points in space that a camera saw.

    Attributes:
        points: (N, 3) float32, metres: x right, y down, z forward from the camera.
        colors: (N, 3) uint8, RGB.
        depth: (H, W) float32, metres: the map of the points.
        intrinsics: The camera; None for a panorama.
        normals: (N, 3) float32, unit vectors that point to the camera, or None.
        unit: ``"m"``; ``""`` for points and depth with an unknown scale.
    """

    points: np.ndarray
    colors: np.ndarray
    depth: np.ndarray
    intrinsics: Intrinsics | None
    normals: np.ndarray | None = None
    unit: str = "m"

    def save(self, path: str | Path) -> None:
        """Writes a binary PLY file, which CloudCompare, MeshLab, Open3D and Blender read.

        The file appears under its name only when it is complete.

        Args:
            path: A file name that ends in .ply.

        Raises:
            ValueError: If the suffix is another one.
            DiskFullError: If there is no room for the file.
        """
        path = Path(path)
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{path}: point clouds are written as {', '.join(SUFFIXES)}, not as "
                f"{path.suffix or 'a file without a suffix'}"
            )
        part = Points(self.points, self.colors, self.normals)
        write_ply(path, len(self.points), [part], self.unit, self.normals is not None)


def point_cloud(
    depth: np.ndarray,
    image: np.ndarray,
    intrinsics: Sequence[float] | np.ndarray,
    *,
    normals: bool = False,
    unit: str = "m",
    warn: bool = True,
) -> PointCloud:
    """Unprojects a depth map.

    A warning is given if the focal length is under a tenth of the picture's size, the field of
    view is under 5 degrees, or the centre is outside the picture.

    Args:
        depth: (H, W), metres along the optical axis. Pixels that are not finite or not positive
            give no point.
        image: (H, W, 3) RGB, uint8, or floating point in 0..1.
        intrinsics: The camera, as for `check_intrinsics`.
        normals: Whether the points get the normals of `dafast.surface.normals_of`.
        unit: Unit of the depth, ``"m"`` or ``""``.
        warn: Whether to warn of a camera that the picture is unlikely to have.

    Returns:
        One point for each pixel with depth, row by row.

    Raises:
        ValueError: If the shapes differ, or the camera is not valid.
    """
    camera = check_intrinsics(intrinsics)
    if depth.ndim != 2 or image.shape != (*depth.shape, 3):
        raise ValueError(
            f"the depth map has the shape {depth.shape}, its image {image.shape}; (H, W) and "
            "(H, W, 3) of one size are needed"
        )
    if warn:
        warn_of_camera(camera, *depth.shape)
    parts = list(cloud_parts(depth, image, camera, normals))
    points, colors = (np.concatenate([part[i] for part in parts]) for i in (0, 1))  # type: ignore[misc]
    directions = np.concatenate([part.normals for part in parts]) if normals else None  # type: ignore[misc]
    return PointCloud(points, colors, depth.astype(np.float32), camera, directions, unit)


def cloud_parts(
    depth: np.ndarray, image: np.ndarray, camera: Intrinsics, normals: bool
) -> Iterator[Points]:
    """The points of a depth map, some rows at a time; the arguments are those of `point_cloud`."""
    for first in range(0, max(1, len(depth)), _ROWS):
        rows = slice(first, first + _ROWS)
        part = depth[rows]
        known = np.isfinite(part) & (part > 0)
        down, across = np.nonzero(known)
        z = part[known].astype(np.float64)
        x = (across + 0.5 - camera.cx) / camera.fx * z
        y = (down + first + 0.5 - camera.cy) / camera.fy * z
        points = np.stack([x, y, z], axis=1).astype(np.float32)
        found = normals_of(depth, camera, first, first + len(part))[known] if normals else None
        yield Points(points, as_bytes(image[rows][known]), found)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Pixels in 0..1 as uint8; uint8 as it is."""
    if image.dtype == np.uint8:
        return image
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
