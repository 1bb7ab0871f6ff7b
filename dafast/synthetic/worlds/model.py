"""A model of a game: a person, a car, a plant or a thing, with its textures and poses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dafast.synthetic.meshes import F32, I32
from dafast.synthetic.textures import SIZE
from dafast.synthetic.worlds.packs import LARGEST, DamagedFileError

_MOST_PICTURES = 16  # the bank keeps those of 16 models, more than a scene shows


@dataclass(frozen=True)
class GameModel:
    """Triangles that stand on z = 0 around the z axis, in metres, facing -y.

    Attributes:
        name: as ``openarena/models/players/sarge``.
        of: its class, one of ``CLASSES``.
        poses: float32 (K, V, 3), vertices in each of K poses.
        faces: int32 (F, 3).
        uv: float32 (V, 2), texture coordinates; v points down in the picture.
        texture: int32 (F,), row of ``pictures``.
        pictures: uint8 (256, 256, 4), RGBA.
        faces_of_head: int32, the faces of the head, none if it is unknown.
    """

    name: str
    of: str
    poses: F32
    faces: I32
    uv: F32
    texture: I32
    pictures: tuple[NDArray[np.uint8], ...]
    faces_of_head: I32 = field(default_factory=lambda: np.zeros(0, np.int32))

    def extent(self, pose: int) -> tuple[float, float]:
        """Height and radius around the z axis in a pose, metres."""
        v = self.poses[pose]
        return float(v[:, 2].max()), float(np.sqrt((v[:, :2] ** 2).sum(1).max()))


def picture_of(picture: Image.Image, *, holes: bool) -> NDArray[np.uint8]:
    """A picture as a texture of a model, uint8 (256, 256, 4).

    Args:
        picture: of any mode and size.
        holes: whether its alpha channel cuts holes; otherwise it is opaque.
    """
    rgba = np.array(picture.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    if not holes:
        rgba[..., 3] = 255
        return rgba
    clear = rgba[..., 3] < 128
    if clear.any() and not clear.all():
        # What holes are filled with bleeds into their borders.
        rgba[clear, :3] = rgba[~clear, :3].mean(0).astype(np.uint8)
    return rgba


def build_model(
    name: str,
    of: str,
    poses: F32,
    faces: I32,
    uv: F32,
    texture: I32,
    pictures: list[NDArray[np.uint8]],
    faces_of_head: I32 | None = None,
) -> GameModel:
    """A model from triangles anywhere: stands it on the ground and brings uv near 0..1.

    Raises:
        DamagedFileError: it has numbers that are not finite, or too large.
        ValueError: it has no triangle, or too many pictures.
    """
    if not len(faces):
        raise ValueError(f"{name} has no surface")
    if not (np.abs(poses) < LARGEST).all() or not (np.abs(uv) < LARGEST).all():
        raise DamagedFileError(f"{name} is damaged: it has a number that is too large")
    if len(pictures) > _MOST_PICTURES:
        raise ValueError(f"{name} has {len(pictures)} pictures, more than {_MOST_PICTURES}")
    poses = poses.astype(np.float32)
    low, high = poses.min(1, keepdims=True), poses.max(1, keepdims=True)
    middle = (low + high) / 2
    middle[..., 2] = low[..., 2]
    poses = poses - middle
    # The texture bank mirrors outside 0..1, so every face is moved there by whole numbers.
    moved = np.floor(uv[faces].mean(1) + 1e-4).astype(np.int32)
    keys = np.concatenate([faces.reshape(-1, 1), np.repeat(moved, 3, 0)], 1)
    unique, index = np.unique(keys, axis=0, return_inverse=True)
    old, moved = unique[:, 0], unique[:, 1:]
    return GameModel(
        name, of, np.ascontiguousarray(poses[:, old]),
        index.reshape(-1, 3).astype(np.int32), (uv[old] - moved).astype(np.float32),
        texture.astype(np.int32), tuple(pictures),
        np.zeros(0, np.int32) if faces_of_head is None else faces_of_head,
    )  # fmt: skip
