"""Coloured points in space from depth in metres and a pinhole camera, and files of them."""

from __future__ import annotations

from collections.abc import Sequence
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
from .files import whole_file

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

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


@dataclass(frozen=True)
class PointCloud:
    """The points in space that a camera saw.

    Attributes:
        points: (N, 3) float32, metres: x right, y down, z forward from the camera.
        colors: (N, 3) uint8, RGB.
        depth: (H, W) float32, metres: the map of the points.
        intrinsics: The camera.
    """

    points: np.ndarray
    colors: np.ndarray
    depth: np.ndarray
    intrinsics: Intrinsics

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
        vertices = np.empty(len(self.points), _VERTEX)
        vertices["xyz"], vertices["rgb"] = self.points, self.colors
        header = (
            "ply\nformat binary_little_endian 1.0\ncomment metres: x right, y down, z forward\n"
            f"element vertex {len(vertices)}\n"
            "property float x\nproperty float y\nproperty float z\n"
            "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
        )
        with whole_file(path) as file:
            file.write(header.encode("ascii"))
            file.write(vertices.data)


def point_cloud(
    depth: np.ndarray, image: np.ndarray, intrinsics: Sequence[float] | np.ndarray
) -> PointCloud:
    """Unprojects a depth map.

    A warning is logged if the focal length is under a tenth of the picture's size, the field of
    view is under 5 degrees, or the centre is outside the picture.

    Args:
        depth: (H, W), metres along the optical axis. Pixels that are not finite or not positive
            give no point.
        image: (H, W, 3) RGB, uint8, or floating point in 0..1.
        intrinsics: The camera, as for `check_intrinsics`.

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
    warn_of_camera(camera, *depth.shape)
    if image.dtype != np.uint8:
        image = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    known = np.isfinite(depth) & (depth > 0)
    rows, columns = np.nonzero(known)
    z = depth[known].astype(np.float64)
    x = (columns + 0.5 - camera.cx) / camera.fx * z
    y = (rows + 0.5 - camera.cy) / camera.fy * z
    points = np.stack([x, y, z], axis=1).astype(np.float32)
    return PointCloud(points, image[known], depth.astype(np.float32), camera)
