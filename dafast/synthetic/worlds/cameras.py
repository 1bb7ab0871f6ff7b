"""Places where a camera could be in a world."""

from __future__ import annotations

import numpy as np

from dafast.synthetic.meshes import F32
from dafast.synthetic.render import Hits
from dafast.synthetic.scene import View
from dafast.synthetic.worlds.world import GameWorld

_BODY = 0.3  # metres around the camera that are free


def _sphere(n: int) -> F32:
    """Directions spread evenly over the sphere, (n, 3)."""
    z = 1 - (2 * np.arange(n) + 1) / n
    a = np.pi * (1 + 5**0.5) * np.arange(n)
    r = np.sqrt(1 - z * z)
    return np.stack([r * np.cos(a), r * np.sin(a), z], 1).astype(np.float32)


_AROUND = _sphere(64)


def _height(rng: np.random.Generator) -> float:
    """Height above the ground, metres: by eye, on a tripod or table, held up, on the ground."""
    k = rng.random()
    if k < 0.5:
        return float(np.clip(rng.normal(1.6, 0.15), 1.2, 2.0))
    if k < 0.8:
        return float(rng.uniform(0.6, 1.3))
    if k < 0.93:
        return float(rng.uniform(2.0, 5.0))
    return float(rng.uniform(0.2, 0.6))


def stand(world: GameWorld, rng: np.random.Generator) -> F32 | None:
    """A place for a camera, float32 (3,), or None if this try found none.

    The place is above a surface on which one can stand, inside the world and with free space
    around.
    """
    faces, chance = world.floors
    if not len(faces):
        return None
    face = faces[min(int(np.searchsorted(chance, rng.random())), len(faces) - 1)]
    a, b, c = world.vertices[world.faces[face]]
    u, v = rng.random(2)
    if u + v > 1:
        u, v = 1 - u, 1 - v
    ground = a + (b - a) * u + (c - a) * v
    height = _height(rng)
    eye = (ground + np.array([0, 0, height])).astype(np.float32)
    seen = world.intersect(np.repeat(eye[None], len(_AROUND), 0), _AROUND)
    hit = np.isfinite(seen.depth)
    if world.closed and hit.mean() < 0.98:
        return None  # it sees the void
    turned = np.einsum("ij,ij->i", world.normals[seen.face], _AROUND) > 0.05
    behind = hit & turned & ~world.cutout[seen.face] & ~world.liquid[seen.face]
    if world.closed and behind.mean() > 0.04:
        return None  # it sees the backs of surfaces, so it is inside something
    if seen.depth.min() < min(_BODY, 0.7 * height):
        return None
    down = world.intersect(eye[None], np.array([[0, 0, -1]], np.float32))
    if abs(float(down.depth[0]) - height) > 0.05 * height + 0.02:
        return None  # something, as water, lies between
    return eye


def aim(world: GameWorld, eye: F32, rng: np.random.Generator) -> View:
    """A direction and an angle of view: mostly level, sometimes steep, rarely tilted."""
    yaw = rng.uniform(0, 2 * np.pi)
    k = rng.random()
    if k < 0.8:
        pitch = rng.normal(-4, 9)
    elif k < 0.93:
        pitch = rng.uniform(-65, -15)
    else:
        pitch = rng.uniform(10, 50)
    a, p = yaw, np.radians(pitch)
    forward = np.array([np.cos(a) * np.cos(p), np.sin(a) * np.cos(p), np.sin(p)])
    fov = float(np.clip(rng.normal(58, 15), 30, 100))
    roll = float(rng.normal(0, 20 if rng.random() < 0.04 else 2.5))
    return View(eye, (eye + forward).astype(np.float32), fov, roll)


def depth_of(world: GameWorld, hits: Hits) -> F32:
    """Depth of hits, inf where the sky is seen, (N,)."""
    return np.where(np.isfinite(hits.depth) & ~world.sky[hits.face], hits.depth, np.inf).astype(
        np.float32
    )
