"""One picture of a world with its depth, from a seed."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from dafast.synthetic.lens import focused
from dafast.synthetic.meshes import F32
from dafast.synthetic.render import (
    Hits,
    SceneCamera,
    Tracer,
    camera_from,
    develop,
    shade,
    sky_colour,
)
from dafast.synthetic.sample import SyntheticSample, draw_size, plane_fit, worthwhile
from dafast.synthetic.scene import CLASSES, Scene, SceneMesh, View
from dafast.synthetic.scenes_outdoor import sky
from dafast.synthetic.textures import bank_for
from dafast.synthetic.worlds.cameras import aim, depth_of, stand
from dafast.synthetic.worlds.closeup import close_view
from dafast.synthetic.worlds.furnish import furnish, light_objects
from dafast.synthetic.worlds.models import Cast, CutoutTracer
from dafast.synthetic.worlds.world import B1, GameWorld

_PLACES, _DIRECTIONS = 60, 4
_CLOSE = 0.25  # share of pictures that show something from near
_SHALLOW = 0.35  # share of these whose background is out of focus


def _first_view(world: GameWorld, rng: np.random.Generator, size: tuple[int, int]) -> View | None:
    """A view that is worth a picture."""
    small = (max(size[0] // 10, 8), max(size[1] // 10, 8))
    for _ in range(_PLACES):
        eye = stand(world, rng)
        if eye is None:
            continue
        for _ in range(_DIRECTIONS):
            view = aim(world, eye, rng)
            depth = depth_of(world, _trace(world, camera_from(view, small)))
            depth = depth.reshape(small[1], small[0])
            # A view of only a floor or a wall teaches little: few of these views are enough.
            if worthwhile(depth) and (plane_fit(1 / depth) < 0.85 or rng.random() < 0.3):
                return view
    return None


def _trace(world: GameWorld, camera: SceneCamera) -> Hits:
    rays = camera.rays()
    return world.intersect(np.broadcast_to(camera.eye, rays.shape).astype(np.float32), rays)


def render_view(
    world: GameWorld,
    cast: Cast,
    seed: int,
    *,
    size: tuple[int, int] | None = None,
    textures: str | None = None,
) -> SyntheticSample | None:
    """Renders the picture of a seed; the same arguments give the same result in any process.

    Args:
        world: the world.
        cast: models that are shown in it, often from near.
        seed: a non-negative integer.
        size: (width, height) in pixels; None draws one of four sizes around 320x240.
        textures: a folder of further photographs, for the objects.

    Returns:
        The picture, or None if the world has no place for a camera that is worth it.
    """
    rng = np.random.default_rng([20261130, seed])
    size = size or draw_size(rng)
    bank = bank_for(textures)
    near = rng.random() < _CLOSE
    for _ in range(4):
        close = close_view(world, cast, rng, bank, size) if near else None
        if close is not None:
            scene, geometry, focus = close
            sample = _render(scene, world, geometry, size, seed, focus)
        else:
            view = _first_view(world, rng, size)
            if view is None:
                return None
            scene = Scene(rng, bank)
            scene.view = view
            sample = _render(scene, world, _objects(scene, world, cast, size), size, seed, None)
        if _legible(sample.image):
            break
    return sample


def _legible(image: NDArray[np.uint8]) -> bool:
    """Whether a picture is neither black nor white for the most part, nor all of one colour."""
    grey = image[::4, ::4].mean(-1)
    return bool((grey < 14).mean() < 0.5 and (grey > 250).mean() < 0.5 and grey.std() > 10)


def _render(
    scene: Scene,
    world: GameWorld,
    geometry: SceneMesh | None,
    size: tuple[int, int],
    seed: int,
    focus: float | None,
) -> SyntheticSample:
    """The picture of a scene's camera; with a focus, in metres, the rest may be blurred."""
    camera = camera_from(scene.view, size)
    hits = _trace(world, camera)
    linear, depth = _world_light(scene, world, camera, hits)
    classes = _classes(world, hits, depth)
    objects = (depth < np.inf).astype(np.int16)
    if geometry is not None:
        tracer = CutoutTracer(scene, geometry)
        mine = tracer.intersect(np.broadcast_to(camera.eye, (len(depth), 3)).copy(), camera.rays())
        front = np.isfinite(mine.depth) & (mine.depth < depth)
        _shadow(scene, tracer, camera, linear, depth, front)
        if front.any():
            shown = dataclasses.replace(mine, depth=np.where(front, mine.depth, np.inf))
            linear[front] = shade(scene, geometry, tracer, camera, shown)[front]
            depth[front] = mine.depth[front]
            classes[front] = geometry.classes[mine.face[front]]
            objects[front] = 1 + geometry.object[mine.face[front]]
    shape = size[1], size[0]
    if focus is not None and scene.chance(_SHALLOW):
        blur = scene.u(0.004, 0.02) * max(size)
        linear = focused(linear.reshape(*shape, 3), depth.reshape(shape), focus, blur)
        linear = linear.reshape(-1, 3)
    return SyntheticSample(
        develop(scene.rng, linear, size), depth.reshape(shape), objects.reshape(shape),
        classes.reshape(shape), world.name, camera.fx, camera.fy, camera.cx, camera.cy, seed,
    )  # fmt: skip


def _objects(scene: Scene, world: GameWorld, cast: Cast, size: tuple[int, int]) -> SceneMesh | None:
    """Objects in front of the camera; None if there are none or they would hide too much."""
    near = scene.chance(0.4)  # many things close to the camera, as in a room that is lived in
    most = scene.n(5, 12) if near else int(scene.rng.choice([0, 1, 2, 4, 6]))
    small = camera_from(scene.view, (max(size[0] // 8, 8), max(size[1] // 8, 8)))
    if not most or not furnish(scene, world, cast, small, most, (0.8, 4.5 if near else 25.0)):
        return None
    geometry = scene.geometry()
    rays = small.rays()
    depth = depth_of(world, _trace(world, small))
    mine = CutoutTracer(scene, geometry).intersect(
        np.broadcast_to(small.eye, rays.shape).astype(np.float32), rays
    )
    joint = np.minimum(depth, mine.depth).reshape(small.height, small.width)
    return geometry if worthwhile(joint) and (mine.depth < depth).mean() < 0.6 else None


def _classes(world: GameWorld, hits: Hits, depth: F32) -> NDArray[np.uint8]:
    level = world.normals[hits.face, 2] > 0.7
    found = np.where(level, CLASSES.index("ground"), CLASSES.index("wall"))
    return np.where(np.isfinite(depth), found, CLASSES.index("sky")).astype(np.uint8)


def _world_light(
    scene: Scene, world: GameWorld, camera: SceneCamera, hits: Hits
) -> tuple[F32, F32]:
    """Linear radiance (N, 3) and depth (N,) of a world; the sky has infinite depth."""
    depth = depth_of(world, hits)
    rays = camera.rays()
    length = np.sqrt(np.einsum("ij,ij->i", rays, rays))
    out = np.empty((len(rays), 3), np.float32)
    rows = np.flatnonzero(np.isfinite(depth))
    level = np.full(3, 0.3, np.float32)
    sun = None
    if not world.closed:
        d = np.array([scene.rng.normal(), scene.rng.normal(), scene.u(0.3, 2.5)], np.float32)
        sun = d / np.linalg.norm(d)
    if len(rows):
        out[rows], level = _surfaces(scene, world, camera, hits, rows, rays, length, sun)
    miss = ~np.isfinite(depth)
    if miss.any():
        sky(scene)
        bright = np.percentile(out[rows].mean(1), 80) if len(rows) else 0.3
        gain = np.float32(max(float(bright), 0.05) * scene.lu(0.8, 3))
        out[miss] = sky_colour(scene, rays[miss] / length[miss][:, None]) * gain
    light_objects(scene, level, sun)
    if scene.chance(0.15):
        density, shade_of = scene.lu(0.002, 0.03), out[rows].mean(0) * scene.u(0.7, 1.6)
        k = 1 - np.exp(-density * depth[rows] * length[rows])[:, None]
        out[rows] = out[rows] * (1 - k) + shade_of * k
    return out, depth


def _surfaces(
    scene: Scene,
    world: GameWorld,
    camera: SceneCamera,
    hits: Hits,
    rows: NDArray[np.integer],
    rays: F32,
    length: F32,
    sun: F32 | None,
) -> tuple[F32, F32]:
    """Linear radiance of the hits ``rows`` (M, 3), and the light there (3,)."""
    face = hits.face[rows]
    dist = hits.depth[rows] * length[rows]
    normal = world.normals[face]
    cos = np.abs(np.einsum("ij,ij->i", normal, rays[rows])) / length[rows]
    footprint = dist / camera.fx / np.sqrt(np.maximum(cos, 0.05)) * world.density[face]
    uv = world.interpolate(world.uv, hits, rows)
    colour = world.textures.sample(world.texture[face], uv, footprint)[:, :3]
    if scene.chance(0.5):  # other colours of the same textures
        tint = np.exp(scene.rng.normal(0, scene.u(0.05, 0.2), world.textures.mean.shape))
        colour = colour * tint.astype(np.float32)[world.texture[face]]
    light = _baked(world, hits, rows)
    if sun is not None:
        where = camera.eye + rays[rows] * hits.depth[rows, None]
        light = light * _sunshine(scene, world, sun, where, face)
    mean = light.mean(0)
    floor, power = scene.u(0.0, 0.5), scene.u(0.6, 1.1)
    grey = np.float32(scene.u(0.2, 0.95))  # lamps of games have stronger colours than real ones
    light = light * (1 - grey) + light.mean(1, keepdims=True) * grey
    light = (light * (1 - floor) + mean.mean() * floor) ** np.float32(power)
    if scene.chance(0.5):
        grey = np.float32(scene.u(0.0, 0.6))
        colour = colour * (1 - grey) + colour.mean(1, keepdims=True) * grey
    light[world.glow[face]] = np.maximum(light[world.glow[face]], scene.u(0.8, 2.0))
    radiance = (colour * light) ** 2  # textures and light are gamma coded
    if scene.chance(0.1):  # a flash
        near = scene.u(1.0, 3.0)
        radiance += (colour**2) * (cos * scene.u(0.3, 1.5) * near**2 / (near**2 + dist**2))[:, None]
    if scene.chance(0.3):  # a soft shape by the direction of the light
        d = scene.rng.standard_normal(3).astype(np.float32)
        radiance *= (1 + scene.u(0.1, 0.5) * normal @ (d / np.linalg.norm(d)))[:, None]
    return radiance.astype(np.float32), (np.percentile(light, 35, axis=0) ** 2).astype(np.float32)


def _baked(world: GameWorld, hits: Hits, rows: NDArray[np.integer]) -> F32:
    """Baked light, gamma coded, 1 for a bright surface, (M, 3)."""
    light = world.interpolate(world.light, hits, rows)
    page = world.lightmap[hits.face[rows]]
    some = np.flatnonzero(page >= 0)
    if world.lightmaps is not None and len(some):
        uv = world.interpolate(world.light_uv, hits, rows[some])
        light[some] = world.lightmaps.sample(page[some], uv)[:, :3]
    return light * np.float32(2)


def _sunshine(scene: Scene, world: GameWorld, sun: F32, where: F32, face: NDArray[np.int32]) -> F32:
    """Light of sun and sky, gamma coded, (M, 1); both sides of thin things are lit."""
    ambient, strength = scene.u(0.25, 0.9), scene.u(0.2, 1.6)
    facing = np.abs(world.normals[face] @ sun)
    start = (where + sun * np.float32(0.05)).astype(np.float32)
    above = world.intersect(start, np.repeat(sun[None].astype(np.float32), len(start), 0))
    lit = ~np.isfinite(above.depth)
    return np.sqrt(ambient + strength * facing * lit).astype(np.float32)[:, None]


def _shadow(
    scene: Scene, tracer: Tracer, camera: SceneCamera, linear: F32, depth: F32, front: B1
) -> None:
    """Darkens the world where the objects block the lamp."""
    lamp = scene.lights[0].direction
    assert lamp is not None, "light_objects gives a direction"
    rows = np.flatnonzero(np.isfinite(depth) & ~front)
    where = camera.eye + camera.rays()[rows] * depth[rows, None]
    where = (where + lamp * 0.01).astype(np.float32)
    dark = tracer.occluded(where, np.repeat(lamp[None].astype(np.float32), len(rows), 0))
    linear[rows[dark]] *= scene.u(0.3, 0.8)
