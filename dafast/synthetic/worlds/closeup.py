"""Views of one thing from near: a face, a person, a plant, a car, a cup on a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dafast.synthetic import living, machines, outdoors, things
from dafast.synthetic.meshes import F32, rotation
from dafast.synthetic.render import SceneCamera, camera_from
from dafast.synthetic.scene import Scene, SceneMesh, View
from dafast.synthetic.textures import TextureBank
from dafast.synthetic.worlds.cameras import depth_of, stand
from dafast.synthetic.worlds.furnish import Subject, fits, furnish, subject_of
from dafast.synthetic.worlds.models import CutoutTracer, ModelLibrary
from dafast.synthetic.worlds.world import GameWorld

_TRIES, _VIEWS = 16, 5
_MODELS = 0.75  # share of the close views that show a model of a game
_COVERED = (0.2, 0.85)  # of the picture
_NEAREST = 0.2  # metres
_AIR = 0.15  # metres around the camera that are free
_AROUND = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)


@dataclass(frozen=True)
class _Target:
    """What the camera looks at.

    Attributes:
        subject: what stands there.
        front: whether it has a front, towards -y, that is mostly turned to the camera.
        head: the vertices of its head, float32 (N, 3), as it is built; none if it has none.
        stand: height of the table or block below it, metres; 0 without one.
    """

    subject: Subject
    front: bool
    head: F32 | None
    stand: float


def _small(build: Callable[[Scene], None]) -> Subject:
    return Subject(build, 0.4, 0.3, False)


def _procedural(w: Scene) -> tuple[Subject, float | None]:
    """A procedural subject, and the height of its head if it has one, metres."""
    k = w.rng.random()
    if k < 0.35:
        tall = w.u(1.2, 1.95)
        return Subject(lambda s: living.person(s, tall), tall, 0.4, False), 1.64 / 1.75 * tall
    if k < 0.55:
        tall = w.u(0.3, 1.4)
        return Subject(lambda s: living.plant(s, tall), tall, 0.4, False), None
    if k < 0.8:
        return _small(things.small_thing), None
    if k < 0.9:
        return Subject(machines.clutter, 1.0, 0.6, False), None
    return Subject(outdoors.car, 1.6, 2.3, True), None


def _target(w: Scene, models: ModelLibrary) -> _Target:
    """A random target."""
    model = models.draw(w.rng) if w.chance(_MODELS) else None
    if model is None:
        subject, high = _procedural(w)
        head = None
        if high is not None:
            head = np.array([[0.1, 0.1, high - 0.13], [-0.1, -0.1, high + 0.13]], np.float32)
    else:
        subject, pose, scale = subject_of(w, model)
        head = None
        if len(model.faces_of_head):
            head = model.poses[pose][model.faces[model.faces_of_head]].reshape(-1, 3) * scale
    lift = 0.0
    if max(subject.height, 2 * subject.radius) < 1.3 and w.chance(0.7):
        lift = w.u(0.35, 0.9)
    return _Target(subject, head is not None, head, lift)


def _place(world: GameWorld, rng: np.random.Generator, target: _Target) -> F32 | None:
    """Ground where a target fits; None if this try found none."""
    eye = stand(world, rng)
    if eye is None:
        return None
    down = world.intersect(eye[None], np.array([[0, 0, -1]], np.float32))
    ground = (eye - np.array([0, 0, down.depth[0]])).astype(np.float32)
    s = target.subject
    room = Subject(s.build, s.height + target.stand, min(s.radius, 2.5), s.open_air)
    return ground if fits(world, ground, room) else None


def _build(w: Scene, target: _Target, place: F32, yaw: float) -> tuple[SceneMesh, F32]:
    """Adds the target; returns the geometry and the points that the camera looks at, (N, 3)."""
    with w.at(*map(float, place), yaw=yaw):
        if target.stand:
            side = 2 * target.subject.radius + w.u(0.1, 0.8)
            things.table(w, side, side * w.u(0.7, 1.0), target.stand)
    before = len(w.geometry().vertices) if target.stand else 0
    with w.at(float(place[0]), float(place[1]), float(place[2]) + target.stand, yaw=yaw):
        target.subject.build(w)
    geometry = w.geometry()
    if target.head is None:
        return geometry, geometry.vertices[before:]
    return geometry, target.head @ rotation(yaw).T + place + np.array([0, 0, target.stand])


def _frame(w: Scene, target: _Target, points: F32, yaw: float, place: F32) -> tuple[View, float]:
    """A camera that shows the points large, and its distance from their middle."""
    low, high = points.min(0), points.max(0)
    middle, half = (low + high) / 2, float(np.linalg.norm(high - low)) / 2
    if target.head is not None:
        k = w.rng.random()  # a face, head and shoulders, the upper body, all of it
        if k < 0.7:
            half *= w.u(0.8, 1.4) if k < 0.25 else w.u(1.4, 2.4)
            middle = middle - np.array([0, 0, w.u(0, 0.6) * half])
        else:
            half = target.subject.height * (w.u(0.2, 0.35) if k < 0.85 else w.u(0.35, 0.55))
            middle = np.array([*middle[:2], max(high[2] - half, place[2] + 0.3 * half)])
    else:
        half *= w.u(0.35, 0.95)
        middle = middle + w.rng.uniform(-0.35, 0.35, 3) * (high - low) * w.u(0, 1)
    fov = w.u(35, 70)
    distance = max(half / np.tan(np.radians(0.5 * fov)) * w.u(0.95, 1.7), 0.35)
    spread = 2.6 if not target.front or w.chance(0.2) else 0.55
    # A subject with yaw 0 looks along -y.
    a = yaw - np.pi / 2 + float(np.clip(w.rng.normal(0, spread), -3.1, 3.1))
    p = np.radians(float(np.clip(w.rng.normal(8, 14), -25, 60)))
    away = np.array([np.cos(a) * np.cos(p), np.sin(a) * np.cos(p), np.sin(p)])
    eye = middle + away * distance
    eye[2] = max(eye[2], place[2] + 0.12)
    aside = np.array([-np.sin(a), np.cos(a), 0]) * w.rng.normal(0, 0.25) * half
    aim = middle + aside + np.array([0, 0, w.rng.normal(0, 0.15) * half])
    return View(eye.astype(np.float32), aim.astype(np.float32), fov, w.rng.normal(0, 4)), distance


def _clear(world: GameWorld, eye: F32, target: F32) -> bool:
    """Whether the world leaves air around the camera and does not hide the target."""
    away = (eye - target)[None].astype(np.float32)
    if world.intersect(target[None].astype(np.float32), away).depth[0] < 1.02:
        return False
    return bool(world.intersect(np.repeat(eye[None], 6, 0), _AROUND).depth.min() > _AIR)


def _shown(world: GameWorld, w: Scene, geometry: SceneMesh, camera: SceneCamera) -> bool:
    """Whether the scene's objects fill enough of a small picture and are not too near."""
    rays = camera.rays()
    eyes = np.broadcast_to(camera.eye, rays.shape).astype(np.float32)
    mine = CutoutTracer(w, geometry).intersect(eyes, rays).depth
    front = np.isfinite(mine) & (mine < depth_of(world, world.intersect(eyes, rays)))
    return bool(
        _COVERED[0] < front.mean() < _COVERED[1] and np.percentile(mine[front], 2) > _NEAREST
    )


def close_view(
    world: GameWorld,
    models: ModelLibrary,
    rng: np.random.Generator,
    bank: TextureBank,
    size: tuple[int, int],
) -> tuple[Scene, SceneMesh, float] | None:
    """A scene with something near that fills much of the picture.

    Args:
        world: the background.
        models: what is shown most of the time.
        rng: the source of randomness.
        bank: the textures.
        size: (width, height) of the picture in pixels.

    Returns:
        The scene with its camera, its geometry, and the distance of what it shows in metres; None
        if the world has no place for it.
    """
    for _ in range(_TRIES):
        scene = Scene(rng, bank)
        target = _target(scene, models)
        places = (_place(world, rng, target) for _ in range(6))
        place = next((p for p in places if p is not None), None)
        if place is None:
            continue
        yaw = scene.u(0, 2 * np.pi)
        geometry, points = _build(scene, target, place, yaw)
        for _ in range(_VIEWS):
            view, distance = _frame(scene, target, points, yaw, place)
            small = camera_from(view, (max(size[0] // 8, 8), max(size[1] // 8, 8)))
            if _clear(world, small.eye, view.target) and _shown(world, scene, geometry, small):
                scene.view = view
                behind = distance + target.subject.radius + 0.8
                if scene.chance(0.5):
                    most = int(scene.rng.choice([1, 2, 4]))
                    furnish(scene, world, models, small, most, (behind, behind + 15))
                return scene, scene.geometry(), distance
    return None
