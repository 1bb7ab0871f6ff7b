"""A scene under construction: placed meshes, materials, lights, sky and the camera."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dafast.synthetic.meshes import F32, I32, TriangleMesh, rotation
from dafast.synthetic.textures import TextureBank

#: Classes of surfaces; the index is the number in class maps. Ground includes water; wall includes
#: ceilings, doors, windows and pictures; the rest are things.
CLASSES = (
    "sky", "ground", "wall", "building", "furniture", "thing", "plant", "person", "vehicle",
)  # fmt: skip

P = ParamSpec("P")


@dataclass(frozen=True)
class Material:
    """How a surface looks: albedo = colour_matrix @ texel + colour_offset, in linear light."""

    row: int
    matrix: F32  # (3, 3)
    offset: F32  # (3,)
    scale: float = 1.0  # textures per unit of uv
    shift: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0  # rotation of the texture, radians
    specular: float = 0.0
    shininess: float = 20.0
    mirror: float = 0.0  # share of the reflected environment
    emission: float = 0.0
    dirt: float = 0.0  # strength of slow brightness variation


@dataclass(frozen=True)
class Light:
    """A sun (``direction`` towards it) or a point light (``position``), linear RGB."""

    colour: F32
    direction: F32 | None = None
    position: F32 | None = None
    shadow: bool = True


@dataclass
class Environment:
    """Ambient light, sky and fog."""

    zenith: F32
    horizon: F32
    ground: F32
    ambient: float = 0.5
    cloud_row: int | None = None
    cloud: float = 0.0
    fog: float = 0.0  # 1 / m
    fog_colour: F32 = field(default_factory=lambda: np.full(3, 0.6, np.float32))


@dataclass(frozen=True)
class View:
    """Where the camera stands: eye and target in metres, fov over the longer side in degrees."""

    eye: F32
    target: F32
    fov: float
    roll: float = 0.0


@dataclass(frozen=True)
class SceneMesh:
    """All triangles of a scene, merged."""

    vertices: F32
    faces: I32
    uv: F32
    material: I32  # per face
    object: I32  # per face
    classes: I32  # per face, index into CLASSES


class Scene:
    """Collects a scene. Builders draw every choice from ``rng``.

    Attributes:
        rng: the scene's only source of randomness.
        bank: the textures.
        materials: materials by index.
        lights: at most three are used; the first two may cast shadows.
        env: ambient light and sky.
        view: the camera.
    """

    def __init__(self, rng: np.random.Generator, textures: TextureBank) -> None:
        self.rng = rng
        self.bank = textures
        self.materials: list[Material] = []
        self.lights: list[Light] = []
        self.env = Environment(
            np.ones(3, np.float32), np.ones(3, np.float32), np.ones(3, np.float32)
        )
        self.view = View(np.zeros(3, np.float32), np.array([0, 1, 0], np.float32), 60.0)
        self._matrix: F32 = np.eye(3, dtype=np.float32)
        self._offset: F32 = np.zeros(3, np.float32)
        self._scale = 1.0
        self._depth = 0
        self._object = 0
        self._class = CLASSES.index("thing")
        self._parts: list[tuple[TriangleMesh, int | NDArray[np.integer], int, int]] = []

    @contextmanager
    def at(
        self,
        x: float = 0.0,
        y: float = 0.0,
        z: float = 0.0,
        *,
        yaw: float = 0.0,
        scale: float = 1.0,
        turn: ArrayLike | None = None,
    ) -> Iterator[None]:
        """Everything added inside is placed there; the outermost group is one object."""
        saved = self._matrix, self._offset, self._scale
        local = np.asarray(turn, np.float32) if turn is not None else rotation(yaw)
        self._offset = self._matrix @ np.array([x, y, z], np.float32) + self._offset
        self._matrix = (self._matrix @ local) * np.float32(scale)
        self._scale *= scale
        if self._depth == 0:
            self._object += 1
        self._depth += 1
        try:
            yield
        finally:
            self._matrix, self._offset, self._scale = saved
            self._depth -= 1

    @contextmanager
    def of_class(self, name: str) -> Iterator[None]:
        """Everything added inside is of this class (one of ``CLASSES``); the innermost wins."""
        saved, self._class = self._class, CLASSES.index(name)
        try:
            yield
        finally:
            self._class = saved

    def add(self, mesh: TriangleMesh, material: int | NDArray[np.integer], of: str = "") -> None:
        """Add a mesh with one material, or one per face (F,), of a class if one is named."""
        if self._depth == 0:
            self._object += 1
        number = CLASSES.index(of) if of else self._class
        v = mesh.vertices @ self._matrix.T + self._offset
        self._parts.append((TriangleMesh(v, mesh.faces, mesh.uv), material, self._object, number))

    def geometry(self) -> SceneMesh:
        """Everything added so far as one mesh."""
        meshes = [p[0] for p in self._parts]
        starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
        counts = [len(m.faces) for m in meshes]
        material = np.concatenate(
            [
                np.broadcast_to(np.asarray(m, np.int32), (n,))
                for (_, m, _, _), n in zip(self._parts, counts, strict=True)
            ]
        )
        return SceneMesh(
            np.concatenate([m.vertices for m in meshes]).astype(np.float32),
            np.concatenate(
                [m.faces + np.int32(s) for m, s in zip(meshes, starts, strict=True)]
            ).astype(np.int32),
            np.concatenate([m.uv for m in meshes]).astype(np.float32),
            material,
            np.repeat(np.array([p[2] for p in self._parts], np.int32), counts),
            np.repeat(np.array([p[3] for p in self._parts], np.int32), counts),
        )

    # ---- small random helpers -------------------------------------------------------------

    def u(self, low: float, high: float) -> float:
        """Uniform in low..high."""
        return float(self.rng.uniform(low, high))

    def lu(self, low: float, high: float) -> float:
        """Log-uniform in low..high."""
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def n(self, low: int, high: int) -> int:
        """Integer in low..high, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return bool(self.rng.random() < p)

    def look(
        self,
        eye: ArrayLike,
        target: ArrayLike,
        *,
        fov: tuple[float, float] = (40.0, 90.0),
        roll: float = 3.0,
    ) -> None:
        """Place the camera; ``roll`` is the standard deviation in degrees."""
        if self.chance(0.04):
            roll = 20.0
        angle = float(self.rng.normal(0, roll))
        f = float(np.clip(self.rng.normal(sum(fov) / 2, (fov[1] - fov[0]) / 3), 35, 100))
        self.view = View(np.asarray(eye, np.float32), np.asarray(target, np.float32), f, angle)

    # ---- colours and materials --------------------------------------------------------------

    def colour(self) -> F32:
        """A random albedo, linear RGB: often dull, sometimes vivid, white, grey or black."""
        r = self.rng
        k = r.random()
        if k < 0.15:
            c = np.full(3, r.uniform(0.55, 0.95)) * r.uniform(0.93, 1.0, 3)
        elif k < 0.27:
            c = np.full(3, r.uniform(0.015, 0.12)) * r.uniform(0.8, 1.2, 3)
        elif k < 0.42:
            c = np.full(3, r.uniform(0.1, 0.6)) * r.uniform(0.9, 1.1, 3)
        else:
            saturation = r.beta(1.6, 1.8)
            hue = r.choice([r.uniform(0, 1), r.uniform(0.03, 0.14)])
            rgb = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
            c = r.uniform(0.1, 0.85) ** 1.3 * (1 - saturation * (1 - rgb))
        return np.clip(c, 0.01, 0.97).astype(np.float32)

    def material(self, **values: Any) -> int:
        """Add a Material."""
        self.materials.append(Material(**values))
        return len(self.materials) - 1

    def _placement(self, scale: float) -> dict[str, Any]:
        r = self.rng
        turn = float(r.choice([0, np.pi / 2, r.uniform(0, 6.28)], p=[0.6, 0.25, 0.15]))
        return {"scale": scale, "shift": tuple(r.uniform(0, 2, 2)), "turn": turn}

    def paint(
        self,
        *names: str,
        scale: tuple[float, float] = (0.4, 3.0),
        colours: list[F32] | None = None,
        contrast: float | None = None,
        gloss: float | None = None,
        **values: Any,
    ) -> int:
        """A pattern of the bank in two or three random colours.

        Args:
            *names: patterns to choose from; none means any pattern or photograph.
            scale: textures per metre, drawn log-uniformly from this range.
            colours: linear RGB colours to use instead of random ones.
            contrast: how far the other colours are from the first, 0..1.
            gloss: chance of a specular surface.
            **values: further fields of ``Material``.
        """
        r = self.rng
        if not names:
            if r.random() < 0.3:
                return self.photo(scale=scale, gloss=gloss, **values)
            names = (
                "cloud",
                "plain",
                "wood",
                "marble",
                "bricks",
                "checks",
                "stripes",
                "plaid",
                "speckle",
                "cells",
                "weave",
                "text",
                "collage",
                "stains",
                "scratches",
                "gradient",
                "dots",
                "cloud",
                "plain",
                "plain",
                "stains",
            )
        c0, c1, c2 = [*(colours or []), self.colour(), self.colour(), self.colour()][:3]
        k = contrast if contrast is not None else float(r.choice([r.uniform(0.1, 0.5), 1.0]))
        m = np.stack([(c1 - c0) * k, (c2 - c0) * k * r.uniform(0.2, 0.8), (c2 - c1) * k * 0.15], 1)
        if r.random() < 0.4:
            m = m[:, r.permutation(3)]
        fields = {"matrix": m.astype(np.float32), "offset": c0, **self._placement(self.lu(*scale))}
        fields |= self.gloss(0.25 if gloss is None else gloss)
        fields["dirt"] = float(r.choice([0, r.uniform(0, 0.5)]))
        return self.material(row=self.bank.pick(r, *names), **(fields | values))

    def gloss(self, p: float) -> dict[str, Any]:
        """Fields of a specular surface with probability p, else none."""
        if not self.chance(p):
            return {}
        return {
            "specular": self.u(0.1, 0.9),
            "shininess": self.lu(5, 150),
            "mirror": self.u(0, 0.25) * self.n(0, 1),
        }

    def photo(
        self,
        *,
        scale: tuple[float, float] = (0.4, 3.0),
        gloss: float | None = None,
        fit: bool = False,
        **values: Any,
    ) -> int:
        """A photograph with jittered colours; with ``fit`` it fills uv 0..1 exactly once."""
        r = self.rng
        gain = r.uniform(0.5, 1.15) * r.uniform(0.8, 1.2, 3)
        mix = np.eye(3) * (1 - (s := r.choice([0.0, r.uniform(0, 1)]))) + s / 3
        if r.random() < 0.3 and not fit:
            mix = mix[:, r.permutation(3)]
        fields: dict[str, Any] = {
            "matrix": (gain[:, None] * mix).astype(np.float32),
            "offset": np.full(3, r.uniform(0, 0.05), np.float32),
        }
        fields |= {"scale": 1.0} if fit else self._placement(self.lu(*scale))
        fields |= self.gloss(0.2 if gloss is None else gloss)
        return self.material(row=self.bank.pick(r, "photo"), **(fields | values))

    def plain(self, colour: F32 | None = None, *, gloss: float = 0.3, **values: Any) -> int:
        """A plain colour with slight noise."""
        c = self.colour() if colour is None else colour
        return self.paint(
            "plain", "cloud", colours=[c], contrast=self.u(0, 0.2), gloss=gloss, **values
        )

    def wood(self) -> int:
        """Wood, in brown tones most of the time."""
        r = self.rng
        if r.random() < 0.3:
            return self.paint("wood", scale=(0.5, 3))
        tone = np.array([1, r.uniform(0.55, 0.8), r.uniform(0.25, 0.6)], np.float32)
        c = [tone * r.uniform(0.05, 0.7) for _ in range(2)]
        return self.paint("wood", scale=(0.5, 3), colours=[x.astype(np.float32) for x in c])

    def metal(self) -> int:
        """Metal: grey or tinted, shiny, reflecting the surroundings."""
        c = np.full(3, self.lu(0.05, 0.7), np.float32)
        if self.chance(0.25):
            c = c * np.array([1, 0.8, 0.5], np.float32)
        return self.paint(
            "scratches",
            "plain",
            "stains",
            colours=[c],
            contrast=self.u(0.05, 0.4),
            gloss=0.0,
            specular=self.u(0.3, 1.5),
            shininess=self.lu(8, 120),
            mirror=self.u(0.05, 0.7),
        )

    def cloth(self) -> int:
        """Textile: woven, striped, checked, printed."""
        if self.chance(0.15):
            return self.photo(scale=(0.7, 3), gloss=0)
        return self.paint(
            "weave",
            "plaid",
            "stripes",
            "cloud",
            "dots",
            "plain",
            "cells",
            "stains",
            scale=(0.8, 6),
            gloss=0.05,
        )

    def foliage(self) -> int:
        """Leaves: green most of the time."""
        r = self.rng
        if r.random() < 0.15:
            return self.paint("cloud", "stains", "speckle", scale=(1, 6), gloss=0.3)
        g = r.uniform(0.06, 0.5)
        c = [
            np.array([g * r.uniform(0.3, 1.2), g * r.uniform(0.8, 1.3), g * r.uniform(0.1, 0.6)])
            for _ in range(2)
        ]
        return self.paint(
            "cloud",
            "stains",
            "speckle",
            "grass",
            "gradient",
            scale=(2, 12),
            gloss=0.35,
            colours=[np.clip(x, 0.01, 0.95).astype(np.float32) for x in c],
        )

    def skin(self) -> int:
        """A human skin tone."""
        c = np.array([1, self.u(0.55, 0.8), self.u(0.35, 0.65)], np.float32) * self.lu(0.08, 0.75)
        return self.plain(c.astype(np.float32), gloss=0.3)


def of_class(
    name: str,
) -> Callable[[Callable[Concatenate[Scene, P], None]], Callable[Concatenate[Scene, P], None]]:
    """Gives the parts that a builder adds this class, except those with a class of their own."""

    def wrap(
        build: Callable[Concatenate[Scene, P], None],
    ) -> Callable[Concatenate[Scene, P], None]:
        @functools.wraps(build)
        def built(scene: Scene, *args: P.args, **kwargs: P.kwargs) -> None:
            with scene.of_class(name):
                build(scene, *args, **kwargs)

        return built

    return wrap
