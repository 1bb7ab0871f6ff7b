"""Views of one thing from near: a face, a person, a plant, a car, a cup on a table."""

from __future__ import annotations

import numpy as np

from dafast.synthetic import things
from dafast.synthetic.meshes import F32, rotation
from dafast.synthetic.render import SceneCamera, camera_from
from dafast.synthetic.scene import Scene, SceneMesh, View
from dafast.synthetic.textures import TextureBank
from dafast.synthetic.worlds.cameras import depth_of, stand
from dafast.synthetic.worlds.furnish import fits, furnish
from dafast.synthetic.worlds.models import Cast, CutoutTracer
from dafast.synthetic.worlds.targets import Target, draw_target
from dafast.synthetic.worlds.world import GameWorld

_TRIES, _VIEWS = 16, 5
_COVERED = (0.2, 0.85)  # of the picture
_NEAREST = 0.2  # metres
_AIR = 0.15  # metres around the camera that are free
_AROUND = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)


def _place(world: GameWorld, rng: np.random.Generator, target: Target, lift: float) -> F32 | None:
    """Ground where a target fits; None if this try found none."""
    eye = stand(world, rng)
    if eye is None:
        return None
    down = world.intersect(eye[None], np.array([[0, 0, -1]], np.float32))
    ground = (eye - np.array([0, 0, down.depth[0]])).astype(np.float32)
    radius = min(target.radius, 2.5)
    free = fits(world, ground, target.height + lift, radius, target.open_air)
    return ground if free else None


def _build(
    w: Scene, target: Target, place: F32, yaw: float, lift: float
) -> tuple[SceneMesh, F32, bool]:
    """Adds the target, on a table if it is lifted.

    Returns:
        The geometry; the points that the camera looks at, float32 (N, 3); whether they are a head.
    """
    before = 0
    if lift:
        with w.at(*map(float, place), yaw=yaw):
            side = 2 * target.radius + w.u(0.1, 0.8)
            things.table(w, side, side * w.u(0.7, 1.0), lift)
        before = len(w.geometry().vertices)
    base = place + np.array([0, 0, lift])
    with w.at(*map(float, base), yaw=yaw):
        head = target.build(w)
    geometry = w.geometry()
    if head is None:
        return geometry, geometry.vertices[before:], False
    return geometry, head @ rotation(yaw).T + base, True


def _frame(
    w: Scene, target: Target, points: F32, head: bool, yaw: float, floor: float
) -> tuple[View, float]:
    """A camera above ``floor`` that shows the points large, and its distance from their middle."""
    low, high = points.min(0), points.max(0)
    middle, half = (low + high) / 2, float(np.linalg.norm(high - low)) / 2
    k = w.rng.random()
    if not head:
        half *= w.u(0.35, 0.95)
        middle = middle + w.rng.uniform(-0.35, 0.35, 3) * (high - low) * w.u(0, 1)
    elif k < 0.7 or not target.whole:  # a face, or head and shoulders
        half *= w.u(0.8, 1.4) if k < 0.25 else w.u(1.4, 2.3)
        middle = middle - np.array([0, 0, w.u(0, 0.6) * half])
    else:  # the upper body, or all of it
        half = max(target.height, target.radius) * (w.u(0.2, 0.35) if k < 0.8 else w.u(0.35, 0.6))
        middle = np.array([*middle[:2], max(high[2] - half, floor + 0.3 * half)])
    fov = w.u(35, 70)
    distance = max(half / np.tan(np.radians(0.5 * fov)) * w.u(0.95, 1.7), 0.35)
    spread = 2.6 if not head or w.chance(0.2) else 0.55
    # A target with yaw 0 looks along -y.
    a = yaw - np.pi / 2 + float(np.clip(w.rng.normal(0, spread), -3.1, 3.1))
    p = np.radians(float(np.clip(w.rng.normal(8, 14), -25, 60)))
    away = np.array([np.cos(a) * np.cos(p), np.sin(a) * np.cos(p), np.sin(p)])
    eye = middle + away * distance
    eye[2] = max(eye[2], floor + 0.12)
    aside = np.array([-np.sin(a), np.cos(a), 0]) * w.rng.normal(0, 0.25) * half
    aim = middle + aside + np.array([0, 0, w.rng.normal(0, 0.15) * half])
    return View(eye.astype(np.float32), aim.astype(np.float32), fov, w.rng.normal(0, 4)), distance


def _clear(world: GameWorld, eye: F32, target: F32) -> bool:
    """Whether the world leaves air around the camera and does not hide the target."""
    away = (eye - target)[None].astype(np.float32)
    if world.intersect(target[None].astype(np.float32), away).depth[0] < 1.02:
        return False
    return bool(world.intersect(np.repeat(eye[None], 6, 0), _AROUND).depth.min() > _AIR)


def _shown(world: GameWorld, w: Scene, geometry: SceneMesh, camera: SceneCamera) -> float | None:
    """The median depth of the scene's objects in a small picture, metres.

    None if they fill too little or too much of it, or are too near.
    """
    rays = camera.rays()
    eyes = np.broadcast_to(camera.eye, rays.shape).astype(np.float32)
    mine = CutoutTracer(w, geometry).intersect(eyes, rays).depth
    front = np.isfinite(mine) & (mine < depth_of(world, world.intersect(eyes, rays)))
    if not _COVERED[0] < front.mean() < _COVERED[1]:
        return None
    near, middle = np.percentile(mine[front], [2, 50])
    return float(middle) if near > _NEAREST else None


def close_view(
    world: GameWorld,
    cast: Cast,
    rng: np.random.Generator,
    bank: TextureBank,
    size: tuple[int, int],
) -> tuple[Scene, SceneMesh, float] | None:
    """A scene with something near that fills much of the picture.

    Args:
        world: the background.
        cast: models that it may show.
        rng: the source of randomness.
        bank: the textures.
        size: (width, height) of the picture in pixels.

    Returns:
        The scene with its camera, its geometry, and the depth of what it shows in metres; None if
        the world has no place for it.
    """
    for _ in range(_TRIES):
        scene = Scene(rng, bank)
        target = draw_target(scene, cast)
        lift = scene.u(0.35, 0.9) if target.lifted and scene.chance(0.7) else 0.0
        places = (_place(world, rng, target, lift) for _ in range(6))
        place = next((p for p in places if p is not None), None)
        if place is None:
            continue
        yaw = scene.u(0, 2 * np.pi)
        geometry, points, head = _build(scene, target, place, yaw, lift)
        for _ in range(_VIEWS):
            view, distance = _frame(scene, target, points, head, yaw, float(place[2]))
            small = camera_from(view, (max(size[0] // 8, 8), max(size[1] // 8, 8)))
            if not _clear(world, small.eye, view.target):
                continue
            depth = _shown(world, scene, geometry, small)
            if depth is not None:
                scene.view = view
                behind = distance + target.radius + 0.8
                if scene.chance(0.5):
                    most = int(scene.rng.choice([1, 2, 4]))
                    furnish(scene, world, cast, small, most, (behind, behind + 15))
                return scene, scene.geometry(), depth
    return None
