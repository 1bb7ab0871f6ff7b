"""Depth in metres and a pinhole camera to coloured points, and a file of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import whole_file

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


class Intrinsics(NamedTuple):
    """A pinhole camera, in pixels; the pixel in row r and column c has its centre at
    (c + 0.5, r + 0.5). (In a calibration by OpenCV it is at (c, r): add 0.5 to its cx and cy.)

    Attributes:
        fx: Focal length over the width of a pixel.
        fy: Focal length over the height of a pixel.
        cx: Column of the optical axis.
        cy: Row of the optical axis.
    """

    fx: float
    fy: float
    cx: float
    cy: float


def intrinsics_from_fov(fov: float, height: int, width: int) -> Intrinsics:
    """The camera whose axis meets the middle of a picture.

    Args:
        fov: Horizontal field of view in degrees, above 0 and under 180.
        height: Of the picture, pixels.
        width: Of the picture, pixels.
    """
    if not 0 < fov < 180:
        raise ValueError(f"fov is the horizontal angle in degrees, above 0 and under 180: {fov}")
    focal = 0.5 * width / math.tan(math.radians(fov) / 2)
    return Intrinsics(focal, focal, width / 2, height / 2)


def check_intrinsics(intrinsics: Sequence[float] | np.ndarray) -> Intrinsics:
    """Reads (fx, fy, cx, cy), or a 3 x 3 matrix that holds them.

    Raises:
        ValueError: If it is neither, or the focal lengths are not positive.
    """
    values = np.asarray(intrinsics, float)
    if values.shape == (3, 3):
        values = values[[0, 1, 0, 1], [0, 1, 2, 2]]
    if values.shape != (4,) or not np.isfinite(values).all() or min(values[:2]) <= 0:
        raise ValueError(
            "intrinsics are (fx, fy, cx, cy) in pixels, or a 3 x 3 matrix, with fx and fy above 0; "
            f"got {np.asarray(intrinsics).tolist()}"
        )
    return Intrinsics(*values.tolist())


@dataclass(frozen=True)
class PointCloud:
    """What a camera saw as points in space.

    Attributes:
        points: (N, 3) float32, metres: x right, y down, z forward from the camera.
        colors: (N, 3) uint8, RGB.
        depth: (H, W) float32, metres: the map that the points were made of.
        intrinsics: The camera.
    """

    points: np.ndarray
    colors: np.ndarray
    depth: np.ndarray
    intrinsics: Intrinsics

    def save(self, path: str | Path) -> None:
        """Writes a binary PLY file, which CloudCompare, MeshLab, Open3D and Blender read.

        Raises:
            DiskFullError: If there is no room for the file; an earlier one stays.
        """
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
            file.write(vertices.tobytes())


def point_cloud(
    depth: np.ndarray, image: np.ndarray, intrinsics: Sequence[float] | np.ndarray
) -> PointCloud:
    """Unprojects a depth map.

    Args:
        depth: (H, W), metres along the optical axis. Pixels that are not finite or not positive
            give no point.
        image: (H, W, 3) uint8 RGB, or floating point in 0..1.
        intrinsics: As `check_intrinsics` takes them.

    Returns:
        One point for each pixel with depth, row by row.

    Raises:
        ValueError: If the shapes differ or the camera is none.
    """
    camera = check_intrinsics(intrinsics)
    if depth.ndim != 2 or image.shape != (*depth.shape, 3):
        raise ValueError(f"the depth map is {depth.shape}, its image {image.shape}: not one size")
    if image.dtype != np.uint8:
        image = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    known = np.isfinite(depth) & (depth > 0)
    rows, columns = np.nonzero(known)
    z = depth[known].astype(np.float64)
    x = (columns + 0.5 - camera.cx) / camera.fx * z
    y = (rows + 0.5 - camera.cy) / camera.fy * z
    points = np.stack([x, y, z], axis=1).astype(np.float32)
    return PointCloud(points, image[known], depth.astype(np.float32), camera)
