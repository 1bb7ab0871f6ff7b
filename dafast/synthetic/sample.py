"""One synthetic image with its depth, from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dafast.synthetic import scenes_indoor, scenes_near, scenes_outdoor
from dafast.synthetic.lens import focused
from dafast.synthetic.meshes import F32
from dafast.synthetic.render import Hits, SceneCamera, Tracer, camera_from, develop, shade, trace
from dafast.synthetic.scene import CLASSES, Scene, SceneMesh
from dafast.synthetic.textures import bank_for

#: Training uses seeds below this one, held-out evaluation seeds from it upward.
HELD_OUT_SEED = 2**31

_BUILDERS = scenes_indoor.BUILDERS | scenes_outdoor.BUILDERS | scenes_near.BUILDERS
#: Weights of the kinds among held-out scenes and in clips. They never change, so that figures
#: stay comparable.
_WEIGHTS = {
    "room": 16, "tabletop": 13, "workshop": 13, "street": 11, "random": 10, "plants": 9,
    "landscape": 7, "people": 6, "corridor": 4, "topdown": 4, "portrait": 4, "upward": 3,
    "forest": 4,
}  # fmt: skip
#: Weights of the kinds that only training draws unasked, on the scale of the above: a near thing
#: fills the picture, or rocks do.
_NEAR_WEIGHTS = {"heads": 9, "animals": 9, "macro": 10, "stream": 4}
#: The kinds of scenes.
KINDS: tuple[str, ...] = (*_WEIGHTS, *_NEAR_WEIGHTS)
NEAR_KINDS = tuple(_NEAR_WEIGHTS)
_CLOSE = ("heads", "animals", "macro")

_SIZES = ((320, 240), (240, 320), (320, 180), (256, 256))
_SIZE_P = (0.4, 0.2, 0.2, 0.2)
_TRIES = 8


@dataclass(frozen=True)
class SyntheticSample:
    """A rendered image and its exact depth.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        depth: float32 (H, W), metres along the optical axis; inf for sky.
        objects: int16 (H, W), the number of the object seen, 0 for sky.
        classes: uint8 (H, W), what is seen: index into ``CLASSES``.
        kind: one of ``KINDS``, or the name of the world that is seen.
        fx, fy, cx, cy: intrinsics in pixels; pixel centres are at (column + 0.5, row + 0.5).
        seed: the seed of the scene.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    objects: NDArray[np.int16]
    classes: NDArray[np.uint8]
    kind: str
    fx: float
    fy: float
    cx: float
    cy: float
    seed: int

    @property
    def disparity(self) -> NDArray[np.float32]:
        """1 / depth in 1/m, float32 (H, W), exactly 0 for sky."""
        return (1.0 / self.depth).astype(np.float32)


def render_scene(
    seed: int,
    *,
    size: tuple[int, int] | None = None,
    kind: str | None = None,
    textures: str | Path | None = None,
) -> SyntheticSample:
    """Render the scene of a seed; the same arguments give the same result in any process.

    Args:
        seed: a non-negative integer; see ``HELD_OUT_SEED``.
        size: (width, height) in pixels; None draws one of four sizes around 320x240.
        kind: one of ``KINDS``; None draws one, for held-out seeds never "heads", "animals",
            "macro" or "stream": held-out scenes are the same as before these kinds existed.
        textures: a folder of further photographs, searched recursively.

    Raises:
        ImportError: embreex or scikit-image is missing (install ``dafast[synth]``).
        ValueError: an unknown kind, a negative seed or a size below 8 pixels.
        FileNotFoundError: the texture folder is missing or holds no picture.
    """
    built = build_scene(seed, size=size, kind=kind, textures=textures)
    scene, geometry, tracer, size, kind = built
    camera = camera_from(scene.view, size)
    hits = trace(tracer, camera)
    light = shade(scene, geometry, tracer, camera, hits)
    if kind in _CLOSE and scene.chance(0.35):
        light = _focus(scene, light, hits.depth, size)
    image = develop(scene.rng, light, size)
    return SyntheticSample(
        image,
        *_labels(geometry, camera, hits),
        kind,
        camera.fx,
        camera.fy,
        camera.cx,
        camera.cy,
        seed,
    )


def _focus(scene: Scene, light: F32, depth: F32, size: tuple[int, int]) -> F32:
    """Radiance (N, 3) with the lens focused on what is near in the middle of the picture."""
    w, h = size
    z = depth.reshape(h, w)
    middle = z[h // 4 : h - h // 4, w // 4 : w - w // 4]
    near = middle[np.isfinite(middle)]
    if not len(near):
        return light
    focus = float(np.percentile(near, scene.u(5, 40)))
    blur = scene.lu(0.006, 0.03) * max(size)
    return focused(light.reshape(h, w, 3), z, focus, blur).reshape(-1, 3)


def build_scene(
    seed: int,
    *,
    size: tuple[int, int] | None,
    kind: str | None,
    textures: str | Path | None,
    near: bool = True,
) -> tuple[Scene, SceneMesh, Tracer, tuple[int, int], str]:
    """The scene of a seed before it is rendered, with its size and kind.

    Args and errors are those of `render_scene`; without ``near``, a kind that is drawn is one of
    those of held-out scenes.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")
    if size is not None and min(size) < 8:
        raise ValueError(f"size must be (width, height) of at least 8 pixels, got {size}")
    rng = np.random.default_rng([20240119, seed])
    drawn_size = draw_size(rng)
    drawn_kind = _draw_kind(rng, near and seed < HELD_OUT_SEED)
    size, kind = size or drawn_size, kind or drawn_kind
    bank = bank_for(textures)
    for attempt in range(_TRIES):
        scene = Scene(np.random.default_rng([20240119, seed, attempt]), bank)
        _BUILDERS[kind](scene)
        geometry = scene.geometry()
        tracer = Tracer(geometry)
        small = camera_from(scene.view, (max(size[0] // 8, 8), max(size[1] // 8, 8)))
        if _acceptable(geometry, small, trace(tracer, small), close=kind in _CLOSE):
            break
    return scene, geometry, tracer, size, kind


def _draw_kind(rng: np.random.Generator, near: bool) -> str:
    """A kind by weight, among all or those of held-out scenes."""
    weights = _WEIGHTS | _NEAR_WEIGHTS if near else _WEIGHTS
    p = np.array(list(weights.values()), float)
    return list(weights)[int(rng.choice(len(p), p=p / p.sum()))]


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """One of four sizes around 320x240, (width, height)."""
    return _SIZES[int(rng.choice(len(_SIZES), p=_SIZE_P))]


def _labels(
    g: SceneMesh, camera: SceneCamera, hits: Hits
) -> tuple[NDArray[np.float32], NDArray[np.int16], NDArray[np.uint8]]:
    shape = camera.height, camera.width
    hit = np.isfinite(hits.depth)
    objects = np.where(hit, g.object[hits.face], 0).astype(np.int16)
    classes = np.where(hit, g.classes[hits.face], CLASSES.index("sky")).astype(np.uint8)
    return hits.depth.reshape(shape), objects.reshape(shape), classes.reshape(shape)


def plane_fit(disparity: NDArray[np.floating]) -> float:
    """R^2 of the best plane a*x + b*y + c through a disparity map (H, W); 1 for a constant map."""
    h, w = disparity.shape
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    d = disparity.astype(np.float64) - disparity.mean()
    total = (d**2).mean()
    if total < 1e-16:
        return 1.0
    ax, ay = (d * x).mean() / (x * x).mean(), (d * y).mean() / (y * y).mean()
    return float(1 - ((d - ax * x - ay * y) ** 2).mean() / total)


def worthwhile(depth: NDArray[np.floating], *, close: bool = False) -> bool:
    """Whether a small depth map (H, W), inf for sky, is worth a picture: see the comments.

    With ``close`` a near subject may fill much of the picture before a far background.
    """
    hit = np.isfinite(depth)
    if hit.mean() < 0.15:
        return False  # nearly all sky
    disparity = 1 / depth
    near, far = np.percentile(disparity, [97, 5])
    if far > (0.85 if close else 0.75) * near:
        return False  # nearly constant
    if plane_fit(disparity) > 0.97:
        return False  # one plane
    subject = close and (disparity > 0.4 * near).mean() > 0.12
    if near > 7 * np.median(disparity[hit]) and not subject:
        return False  # an object right in front of the camera flattens the rest
    nearest, middle = np.percentile(depth[hit], 2), np.median(depth[hit])
    inside = (depth < 0.12 * middle).mean() >= (0.85 if close else 0.4)
    return bool(nearest > (0.04 if close else 0.06) and not inside)


def _acceptable(g: SceneMesh, camera: SceneCamera, hits: Hits, *, close: bool) -> bool:
    """Whether a small rendering is worth a picture, and shows more than one object."""
    hit = np.isfinite(hits.depth)
    if not worthwhile(hits.depth.reshape(camera.height, camera.width), close=close):
        return False
    return bool(np.bincount(g.object[hits.face[hit]]).max() <= 0.95 * len(hit))
