"""Short clips of the synthetic scenes, with exact depth, poses and optical flow."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dafast._version import __version__
from dafast.files import explain, explain_kind, remove_leftovers, write_file
from dafast.optional import MissingPackageError
from dafast.synthetic.clip_files import TRUTH, Clip, write_clip
from dafast.synthetic.render import (
    Hits,
    SceneCamera,
    Tracer,
    camera_from,
    develop,
    require_embree,
    shade,
    trace,
)
from dafast.synthetic.sample import HELD_OUT_SEED, KINDS, build_scene
from dafast.synthetic.scene import CLASSES, Scene, SceneMesh
from dafast.synthetic.shards import FileProgress, write_all
from dafast.synthetic.textures import texture_digest

MOTIONS = ("still", "pan", "dolly", "handheld")
"""How the camera of a clip moves. In a ``still`` clip an object moves, if one is suitable."""

DESCRIPTION = "clips.json"
"""File next to the clips with everything that, with its number, determines a clip."""

_STREAM = 20261130  # the clips' own random numbers
_THINGS = ("furniture", "thing", "plant", "person", "vehicle")  # classes of what may move
_THING_SIZE = (0.004, 0.2)  # fraction of the picture that a moving object has
_REACHED = 1 - 1e-3  # fraction of the way to a point that must be free for it to be visible


@dataclass(frozen=True)
class _Waves:
    """Smooth movement along three axes from 0: sums of waves, one row for each axis."""

    amplitude: NDArray[np.float64]  # (3, k)
    period: NDArray[np.float64]  # (3, k), frames
    phase: NDArray[np.float64]  # (3, k), radians

    def at(self, frame: int) -> NDArray[np.float64]:
        """Where it is in a frame, (3,); 0 in the first."""
        angle = 2 * np.pi * frame / self.period + self.phase
        return np.sum(self.amplitude * (np.sin(angle) - np.sin(self.phase)), axis=1)


def _waves(rng: np.random.Generator, size: Sequence[float], period: tuple[float, float]) -> _Waves:
    """Two waves for each axis; ``size`` is the largest amplitude of each."""
    amplitude = np.asarray(size, float)[:, None] * rng.uniform(0.4, 1.0, (3, 2)) * [0.7, 0.3]
    phase = rng.uniform(0, 2 * np.pi, (3, 2))
    return _Waves(amplitude, rng.uniform(*period, (3, 2)) * [1.0, 0.37], phase)


def _camera_motion(rng: np.random.Generator, motion: str, reach: float) -> tuple[_Waves, _Waves]:
    """Movement of the eye in metres and turns in degrees (up, right, roll), in the camera's axes.

    Args:
        reach: how far the eye may move, metres.
    """
    sizes: dict[str, tuple[list[float], list[float], tuple[float, float]]] = {
        "still": ([0, 0, 0], [0, 0, 0], (60, 90)),
        "pan": ([0, 0, 0], [2, 12, 0], (50, 100)),
        "dolly": ([0.5 * reach, 0.1 * reach, 0.5 * reach], [1, 2, 0], (50, 100)),
        "handheld": ([0.06 * reach] * 3, [1, 1, 0.6], (20, 45)),
    }
    eye, turn, period = sizes[motion]
    return _waves(rng, eye, period), _waves(rng, turn, period)


def _moved(
    camera: SceneCamera, offset: NDArray[np.float64], turn: NDArray[np.float64]
) -> SceneCamera:
    """A camera moved and turned in its own axes; the turn is about x, y and z, in degrees."""
    base = camera.rotation.astype(np.float64)
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation = (base @ about_y @ about_x @ about_z).astype(np.float32)
    return replace(camera, rotation=rotation, eye=(camera.eye + base @ offset).astype(np.float32))


@dataclass(frozen=True)
class _Moving:
    """An object that moves through a scene.

    Attributes:
        number: of the object; -1 for none.
        waves: its movement in the axes of the first camera, metres.
        axes: these axes in the world, columns.
    """

    number: int
    waves: _Waves
    axes: NDArray[np.float64]

    def geometry(self, g: SceneMesh, frame: int) -> SceneMesh:
        """The scene in a frame."""
        if self.number < 0:
            return g
        own = np.unique(g.faces[g.object == self.number])
        vertices = g.vertices.copy()
        vertices[own] += (self.axes @ self.waves.at(frame)).astype(np.float32)
        return replace(g, vertices=vertices)


def _choose_moving(
    rng: np.random.Generator, g: SceneMesh, camera: SceneCamera, hits: Hits, wanted: bool
) -> _Moving:
    """A visible object of suitable size, or none."""
    axes = camera.rotation.astype(np.float64)
    hit = np.isfinite(hits.depth)
    face = hits.face[hit]
    things = np.isin(g.classes, [CLASSES.index(name) for name in _THINGS])
    numbers, counts = np.unique(g.object[face], return_counts=True)
    low, high = (fraction * len(hit) for fraction in _THING_SIZE)
    suitable = numbers[(counts >= low) & (counts <= high)]
    suitable = np.setdiff1d(suitable, g.object[~things])
    drawn = rng.random()
    if not wanted or not len(suitable):
        return _Moving(-1, _waves(rng, [0, 0, 0], (30, 60)), axes)
    number = int(suitable[int(drawn * len(suitable))])
    depth = float(np.median(hits.depth[hit][g.object[face] == number]))
    return _Moving(number, _waves(rng, [0.25 * depth, 0, 0.1 * depth], (30, 60)), axes)


def render_clip(
    seed: int,
    frames: int,
    *,
    size: tuple[int, int] | None = None,
    kind: str | None = None,
    motion: str | None = None,
    textures: str | Path | None = None,
) -> Clip:
    """Render a clip of the scene of a seed; the same arguments give the same clip.

    The first frame shows the scene of ``render_scene(seed)``, as another camera would take it.
    More frames continue the same movement.

    Args:
        seed: a non-negative integer; see ``HELD_OUT_SEED``.
        frames: how many, at least 1.
        size: (width, height) in pixels; None draws one of four sizes around 320x240.
        kind: one of ``KINDS``; None draws one.
        motion: one of ``MOTIONS``; None draws one.
        textures: a folder of further photographs.

    Raises:
        ImportError: embreex or scikit-image is missing (install ``dafast[synth]``).
        ValueError: an unknown kind or motion, a negative seed, no frames or a size below 8 pixels.
        FileNotFoundError: the texture folder is missing or holds no picture.
    """
    if frames < 1:
        raise ValueError(f"a clip has at least 1 frame, got {frames}")
    if motion is not None and motion not in MOTIONS:
        raise ValueError(f"unknown motion {motion!r}; one of {', '.join(MOTIONS)}")
    scene, g, tracer, size, kind = build_scene(
        seed, size=size, kind=kind, textures=textures, near=False
    )
    rng = np.random.default_rng([_STREAM, seed])
    drawn = MOTIONS[int(rng.integers(len(MOTIONS)))]
    motion = motion or drawn
    base = camera_from(scene.view, size)
    hits = trace(tracer, base)
    seen = hits.depth[np.isfinite(hits.depth)]
    reach = float(min(0.2 * np.median(seen), 0.5 * np.percentile(seen, 1)))
    eye, turn = _camera_motion(rng, motion, reach)
    moving = _choose_moving(rng, g, base, hits, motion == "still" or rng.random() < 0.3)
    views = [
        _view(g, tracer, moving, k, _moved(base, eye.at(k), turn.at(k))) for k in range(frames)
    ]
    steps = [_flow(a, b) for a, b in itertools.pairwise(views)]
    shape = base.height, base.width
    return Clip(
        name=f"seed-{seed}",
        frames=np.stack([_picture(scene, view, seed, k) for k, view in enumerate(views)]),
        depth=np.stack([view.hits.depth.reshape(shape) for view in views]),
        flow=np.array([flow for flow, _ in steps], np.float32).reshape(-1, *shape, 2),
        visible=np.array([visible for _, visible in steps], bool).reshape(-1, *shape),
        moving=np.stack([view.of_object(moving.number).reshape(shape) for view in views]),
        poses=np.stack([view.pose() for view in views]),
        fx=base.fx, fy=base.fy, cx=base.cx, cy=base.cy,
        seed=seed, kind=kind, motion=motion,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _View:
    """The view of one frame's camera."""

    geometry: SceneMesh
    tracer: Tracer
    camera: SceneCamera
    hits: Hits

    def pose(self) -> NDArray[np.float64]:
        """Camera to world, (4, 4)."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self.camera.rotation, self.camera.eye
        return pose

    def of_object(self, number: int) -> NDArray[np.bool_]:
        """Pixels that show an object, (H * W,)."""
        return np.isfinite(self.hits.depth) & (self.geometry.object[self.hits.face] == number)


def _view(g: SceneMesh, tracer: Tracer, moving: _Moving, frame: int, camera: SceneCamera) -> _View:
    now = moving.geometry(g, frame)
    if now is not g:
        tracer = Tracer(now)
    return _View(now, tracer, camera, trace(tracer, camera))


def _picture(scene: Scene, view: _View, seed: int, frame: int) -> NDArray[np.uint8]:
    """The frame as the clip's camera takes it; only the grain differs from frame to frame."""
    scene.rng = np.random.default_rng([_STREAM, seed, 1])
    noise, camera = (np.random.default_rng([_STREAM, seed, k]) for k in (2, 3))
    grain = np.random.default_rng([_STREAM, seed, 4, frame])
    light = shade(scene, view.geometry, view.tracer, view.camera, view.hits, noise)
    return develop(camera, light, (view.camera.width, view.camera.height), grain)


def _flow(now: _View, later: _View) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Flow (H, W, 2) from one frame to another, and whether the other shows the point (H, W)."""
    camera, hits, g = now.camera, now.hits, later.geometry
    shape = camera.height, camera.width
    hit = np.isfinite(hits.depth)
    # Sky is infinitely far: its direction counts, as seen from the other eye.
    away = camera.rays().astype(np.float64)
    eye, other = (c.eye.astype(np.float64) for c in (camera, later.camera))
    away[hit] = away[hit] * hits.depth[hit, None] + (eye - other)
    if g is not now.geometry:
        corners = g.vertices[g.faces[hits.face[hit]]].astype(np.float64)
        before = now.geometry.vertices[g.faces[hits.face[hit]]].astype(np.float64)
        u, v = hits.u[hit, None], hits.v[hit, None]
        step = corners - before
        away[hit] += step[:, 0] * (1 - u - v) + step[:, 1] * u + step[:, 2] * v
    local = away @ later.camera.rotation.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(local[:, 2] > 0, 1 / local[:, 2], np.nan)
        x = local[:, 0] * scale * camera.fx + camera.cx - 0.5
        y = local[:, 1] * scale * camera.fy + camera.cy - 0.5
    inside = (x >= -0.5) & (x < camera.width - 0.5) & (y >= -0.5) & (y < camera.height - 0.5)
    visible = np.zeros(len(away), bool)
    chosen = np.flatnonzero(inside)
    start = np.broadcast_to(later.camera.eye, (len(chosen), 3)).astype(np.float32)
    free = np.where(hit[chosen], np.float32(_REACHED), np.float32(1e9))
    blocked = later.tracer.occluded(start, away[chosen].astype(np.float32), free)
    visible[chosen] = ~blocked
    flow = np.stack([x.reshape(shape), y.reshape(shape)], -1)
    flow -= np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), -1)
    return flow.astype(np.float32), visible.reshape(shape)


@dataclass(frozen=True)
class _ClipTask:
    """One clip of a set."""

    path: Path
    first: int
    seed: int
    frames: int
    size: tuple[int, int] | None
    kind: str | None
    motion: str | None
    textures: str | None
    count: int = 1

    def write(self) -> tuple[str, int]:
        """Renders and writes the clip."""
        seed = self.seed + self.first
        try:
            clip = render_clip(
                seed,
                self.frames,
                size=self.size,
                kind=self.kind,
                motion=self.motion,
                textures=self.textures,
            )
        except MissingPackageError:
            raise
        except Exception as error:
            raise RuntimeError(f"clip with seed {seed} failed: {explain_kind(error)}") from error
        write_clip(self.path, clip)
        return self.path.name, self.count


def write_clips(
    out: str | Path,
    clips: int,
    frames: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    size: tuple[int, int] | None = None,
    textures: str | Path | None = None,
    kinds: Sequence[str] | None = None,
    motions: Sequence[str] | None = None,
    progress: bool = True,
) -> None:
    """Render clips with the seeds seed, seed + 1, ... into folders; `clip_files` has the layout.

    A second run skips complete clips. The same arguments give the same files on the same machine
    for any number of workers.

    Args:
        out: the folder, created if missing.
        clips: how many.
        frames: of every clip.
        seed: seed of the first clip; training stays below ``HELD_OUT_SEED``.
        workers: processes; None takes one per usable core.
        size: (width, height) of every frame; None draws one per clip.
        textures: a folder of further photographs.
        kinds: the kinds of scenes that take turns; None draws among all of ``KINDS`` by weight.
        motions: the movements that take turns; None draws among all of ``MOTIONS``.
        progress: print a line per finished clip to stderr.

    Raises:
        MissingPackageError: embreex or scikit-image is missing.
        RuntimeError: a clip failed; the message names its seed.
        FileNotFoundError: ``textures`` is no folder with pictures.
        ValueError: clips or frames below 1, a negative seed, an unknown kind or motion, seeds on
            both sides of ``HELD_OUT_SEED``, or a folder that holds clips of another set.
    """
    _check_arguments(clips, frames, seed, kinds, motions)
    description = {
        "frames": frames,
        "seed": seed,
        "size": size and list(size),
        "textures": texture_digest(textures),
        "version": __version__,
        "kinds": list(kinds) if kinds else None,
        "motions": list(motions) if motions else None,
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    _check_description(folder / DESCRIPTION, description)
    texture_folder = None if textures is None else os.path.abspath(textures)
    todo = [
        _ClipTask(
            folder / f"clip-{k:06d}",
            k,
            seed,
            frames,
            size,
            kinds[(seed + k) % len(kinds)] if kinds else None,
            motions[(seed + k) % len(motions)] if motions else None,
            texture_folder,
        )
        for k in range(clips)
        if not (folder / f"clip-{k:06d}" / TRUTH).is_file()
    ]
    if todo:
        require_embree()
    write_all(todo, folder, workers, FileProgress(clips, clips - len(todo), progress, "clips"))


def _check_arguments(
    clips: int,
    frames: int,
    seed: int,
    kinds: Sequence[str] | None,
    motions: Sequence[str] | None,
) -> None:
    if clips < 1 or frames < 1 or seed < 0:
        raise ValueError(f"need clips >= 1, frames >= 1, seed >= 0: {clips}, {frames}, {seed}")
    if seed < HELD_OUT_SEED < seed + clips:
        raise ValueError(
            f"seeds {seed} to {seed + clips - 1} mix training with the held-out scenes from "
            f"{HELD_OUT_SEED} on; start lower, or at {HELD_OUT_SEED} or above for held-out ones"
        )
    for word, given, known in (("kind", kinds, KINDS), ("motion", motions, MOTIONS)):
        if unknown := sorted(set(given or ()) - set(known)):
            raise ValueError(f"unknown {word} {', '.join(unknown)}; there are: {', '.join(known)}")


def _check_description(path: Path, wanted: dict[str, Any]) -> None:
    """Writes what defines a new set, or compares it with an existing set.

    Raises:
        ValueError: the folder holds clips of another set.
    """
    if not path.exists():
        if any(path.parent.glob(f"clip-*/{TRUTH}")):
            raise ValueError(
                f"{path.parent} holds clips without {path.name}: choose another folder"
            )
        write_file(path, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({explain(error)}): remove it") from error
    other = [f"{k} {found.get(k)}, not {v}" for k, v in wanted.items() if found.get(k) != v]
    if other:
        raise ValueError(
            f"{path}: the clips there were made with {'; '.join(other)}: choose another folder or "
            "remove it"
        )
