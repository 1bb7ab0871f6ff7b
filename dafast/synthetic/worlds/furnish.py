"""Procedural objects in a world: people, furniture, plants, vehicles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dafast.synthetic import living, machines, outdoors, things
from dafast.synthetic.meshes import F32
from dafast.synthetic.render import SceneCamera
from dafast.synthetic.scene import Environment, Light, Scene
from dafast.synthetic.worlds.model import GameModel
from dafast.synthetic.worlds.models import Cast, add_model
from dafast.synthetic.worlds.world import GameWorld

_MODELS = 0.4  # share of the objects that are models of games


def _laid_table(w: Scene) -> None:
    length, width, height = w.u(0.7, 1.8), w.u(0.5, 0.9), w.u(0.4, 0.78)
    things.table(w, length, width, height)
    for _ in range(w.n(1, 6)):
        x, y = w.u(-0.4, 0.4) * length, w.u(-0.4, 0.4) * width
        with w.at(x, y, height, yaw=w.u(0, 6.28)):
            things.small_thing(w)


def _seated(w: Scene) -> None:
    things.chair(w)
    living.person(w, w.u(1.5, 1.9), seated=True)


def _cupboard(w: Scene) -> None:
    things.cupboard(w, w.u(0.6, 1.6), w.u(0.6, 1.9), w.u(0.35, 0.6))


#: Builder, chance, height and radius in metres, and whether it is only placed in the open.
_OBJECTS: tuple[tuple[Callable[[Scene], None], float, float, float, bool], ...] = (
    (lambda w: living.person(w, w.u(1.1, 1.95)), 22, 1.9, 0.4, False),
    (_seated, 4, 1.4, 0.6, False),
    (things.chair, 10, 1.0, 0.45, False),
    (_laid_table, 14, 1.2, 0.9, False),
    (lambda w: living.plant(w, w.u(0.4, 1.8)), 8, 1.8, 0.5, False),
    (machines.clutter, 8, 1.0, 0.6, False),
    (lambda w: things.carton(w, 0.2, 0.9), 6, 0.9, 0.5, False),
    (lambda w: things.lump(w, w.u(0.15, 0.6)), 6, 0.8, 0.5, False),
    (machines.bike, 5, 1.1, 0.9, False),
    (lambda w: things.sofa(w, w.u(0.9, 2.2)), 5, 1.0, 1.1, False),
    (_cupboard, 5, 1.9, 0.9, False),
    (lambda w: things.shelf(w, w.u(0.6, 1.6), w.u(0.8, 2.0), 0.3), 4, 2.0, 0.9, False),
    (lambda w: things.lamp(w, w.u(1.1, 1.8)), 3, 1.8, 0.3, False),
    (things.bed, 2, 1.0, 1.2, False),
    (outdoors.car, 9, 1.6, 2.3, True),
    (lambda w: outdoors.tree(w, w.u(2.5, 7), detail=140), 9, 4.0, 1.0, True),
    (lambda w: outdoors.fence(w, w.u(2, 6)), 3, 1.0, 1.6, True),
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """Something that can stand in a world.

    Attributes:
        build: adds it to a scene, standing on z = 0.
        height, radius: metres.
        open_air: whether it is only placed in the open.
    """

    build: Callable[[Scene], None]
    height: float
    radius: float
    open_air: bool


def subject_of(scene: Scene, model: GameModel) -> tuple[Subject, int, float]:
    """A model in a random pose, a little larger or smaller than it is; the pose and the scale."""
    pose, scale = int(scene.rng.integers(len(model.poses))), scene.u(0.9, 1.1)
    height, radius = (scale * x for x in model.extent(pose))

    def build(w: Scene) -> None:
        with w.at(scale=scale):
            add_model(w, model, pose)

    large = model.of == "vehicle" or (model.of == "plant" and height > 2.5)
    return Subject(build, height, radius, large), pose, scale


def _subject(scene: Scene, cast: Cast) -> Subject:
    """A random object."""
    if scene.chance(_MODELS) and (model := cast.draw(scene.rng)) is not None:
        return subject_of(scene, model)[0]
    weights = np.array([x[1] for x in _OBJECTS], float)
    build, _, height, radius, open_air = _OBJECTS[
        int(scene.rng.choice(len(_OBJECTS), p=weights / weights.sum()))
    ]
    return Subject(build, height, radius, open_air)


def furnish(
    scene: Scene,
    world: GameWorld,
    cast: Cast,
    camera: SceneCamera,
    most: int,
    reach: tuple[float, float],
) -> int:
    """Places objects on the ground that the camera sees.

    Args:
        scene: receives them.
        world: where they are placed.
        cast: models shown among procedural objects.
        camera: a small camera; its pixels are the candidates.
        most: at most this many objects.
        reach: depth of the nearest and the farthest, metres; those within a few metres are closer
            to each other.

    Returns:
        How many were placed.
    """
    rays = camera.rays()
    hits = world.intersect(np.broadcast_to(camera.eye, rays.shape).astype(np.float32), rays)
    good = np.isfinite(hits.depth) & (hits.depth > reach[0]) & (hits.depth < reach[1])
    good &= (world.normals[hits.face, 2] > 0.9) & ~world.sky[hits.face] & ~world.liquid[hits.face]
    candidates = np.flatnonzero(good)
    if not len(candidates):
        return 0
    apart = 0.55 if reach[1] < 5 else 0.8
    placed: list[tuple[F32, float]] = []
    for _ in range(3 * most):
        if len(placed) >= most:
            break
        row = int(scene.rng.choice(candidates))
        place = (camera.eye + rays[row] * hits.depth[row]).astype(np.float32)
        subject = _subject(scene, cast)
        if hits.depth[row] < subject.radius + 0.35:
            continue
        if any(np.linalg.norm(place - p) < apart * (subject.radius + r) for p, r in placed):
            continue
        if not fits(world, place, subject.height, subject.radius, subject.open_air):
            continue
        with scene.at(*map(float, place), yaw=scene.u(0, 6.28)):
            subject.build(scene)
        placed.append((place, subject.radius))
    return len(placed)


def fits(world: GameWorld, place: F32, height: float, radius: float, open_air: bool) -> bool:
    """Whether an object fits: nothing above, around, and ground below its border."""
    a = np.arange(10) * (2 * np.pi / 10)
    around = np.stack([np.cos(a), np.sin(a), 0 * a], 1).astype(np.float32)
    up = np.array([[0, 0, 1]], np.float32)
    middle = place + up * np.float32(min(0.5, height / 2))
    sides = world.intersect(np.repeat(middle, 10, 0), around)
    if sides.depth.min() < radius:
        return False
    above = world.intersect(place + up * np.float32(0.1), up)
    if above.depth[0] < height:
        return False
    if open_air and np.isfinite(above.depth[0]) and not world.sky[above.face[0]]:
        return False
    border = (middle + around * np.float32(0.7 * radius)).astype(np.float32)
    below = world.intersect(border, np.repeat(-up, 10, 0)).depth
    return bool((np.abs(below - min(0.5, height / 2)) < 0.12).all())


def light_objects(scene: Scene, level: F32, sun: F32 | None) -> None:
    """Lights the objects as their surroundings are lit.

    Args:
        scene: receives ambient light and one lamp.
        level: linear light there, RGB.
        sun: direction towards the sun, if it shines.
    """
    c = np.maximum(np.asarray(level, np.float32), 0.02)
    scene.env = Environment(c, c * scene.u(0.6, 1.0), c * scene.u(0.3, 0.8), scene.u(0.35, 0.8))
    d = np.array([scene.rng.normal(), scene.rng.normal(), scene.u(0.8, 3)], np.float32)
    d = d / np.linalg.norm(d) if sun is None else sun
    scene.lights = [Light(c * scene.u(0.3, 0.9), direction=d.astype(np.float32))]
