"""A plane and a box with exact depth, from rays and equations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dafast.camera import Intrinsics
from dafast.result import DepthResult

CAMERA = Intrinsics(180.0, 190.0, 77.3, 61.8)
SHAPE = (120, 160)


@dataclass(frozen=True)
class Scene:
    """What the camera sees.

    Attributes:
        depth: (H, W) float32, metres.
        normals: (H, W, 3), those of the surfaces.
        surface: (H, W), number of the surface: 0 is the plane behind, 1.. the sides of the box.
        planes: (N, 4): normal and offset of each surface, normal . point = offset.
    """

    depth: np.ndarray
    normals: np.ndarray
    surface: np.ndarray
    planes: np.ndarray


def rays(shape: tuple[int, int] = SHAPE, camera: Intrinsics = CAMERA) -> np.ndarray:
    """The points at depth 1, (H, W, 3)."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    across, down = (columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy
    return np.stack([across, down, np.ones(shape)], axis=2)


def plane_and_box(rng: np.random.Generator) -> Scene:
    """A box, turned at random, in front of a plane that is also turned."""
    towards = np.array([*rng.uniform(-0.4, 0.4, 2), -1])
    towards /= np.linalg.norm(towards)
    planes = [[*towards, towards[2] * rng.uniform(5.5, 7)]]
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    centre, half = np.array([*rng.uniform(-0.3, 0.3, 2), 2.5]), rng.uniform(0.3, 0.6, 3)
    direction = rays()
    depth = planes[0][3] / (direction @ towards)
    surface = np.zeros(SHAPE, int)
    # The ray through a box: from the last entry of its three slabs to the first exit.
    speed, start = direction @ turn, -centre @ turn
    first, second = ((side * half - start) / speed for side in (-1, 1))
    enter, leave = np.minimum(first, second), np.maximum(first, second)
    hit = enter.max(axis=2) < leave.min(axis=2)
    axis = enter.argmax(axis=2)
    for number in range(3):
        sign = -np.sign(centre @ turn[:, number])
        normal = turn[:, number] * sign
        planes.append([*normal, normal @ centre + half[number]])
        mine = hit & (axis == number)
        depth[mine], surface[mine] = enter.max(axis=2)[mine], number + 1
    table = np.array(planes)
    return Scene(depth.astype(np.float32), table[surface][..., :3], surface, table)


def metric(depth: np.ndarray, rng: np.random.Generator, **changes: object) -> DepthResult:
    """A result in metres with a random photo."""
    image = rng.integers(0, 256, (*depth.shape, 3), dtype=np.uint8)
    fields = dict(kind="depth", unit="m", image=image, intrinsics=CAMERA, camera_source="given")
    return DepthResult(depth, **{**fields, "name": "a photo.jpg", "model": "tiny", **changes})


def relative(rng: np.random.Generator, shape: tuple[int, int] = SHAPE) -> DepthResult:
    """A relative disparity without a photo."""
    values = rng.gamma(2, 20, shape).astype(np.float32)
    return DepthResult(values, intrinsics=CAMERA, camera_source="assumed")
