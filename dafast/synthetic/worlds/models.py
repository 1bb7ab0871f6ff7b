"""The models of a folder, and how a scene shows them."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from dafast.synthetic.meshes import F32, TriangleMesh
from dafast.synthetic.render import Hits, Tracer
from dafast.synthetic.scene import Scene, SceneMesh
from dafast.synthetic.textures import SIZE
from dafast.synthetic.worlds.cars import find_cars, read_car
from dafast.synthetic.worlds.md3 import find_md3, find_players, read_md3, read_player
from dafast.synthetic.worlds.model import GameModel
from dafast.synthetic.worlds.packs import DamagedFileError, Pack
from dafast.synthetic.worlds.shader_scripts import SurfaceShader
from dafast.synthetic.worlds.world import B1

_KEPT = 60  # models in memory; about 1 MB each
_SMALLEST, _LARGEST = 0.12, 9.0  # metres
#: How many models of each class a visit shows; also their share of the models in pictures.
_CAST = {"person": 13, "vehicle": 4, "plant": 6, "thing": 9}

Shaders = Callable[[Pack], dict[str, SurfaceShader]]


class ModelLibrary:
    """The models of a folder; a model is imported when it is needed.

    Attributes:
        kinds: the names of the models by class and kind. A player with many skins is one kind, so
            that it is not seen more often than others.
    """

    def __init__(self, folder: Path, packs: list[Pack], shaders: Shaders) -> None:
        """Lists the models.

        Args:
            folder: is searched for cars.
            packs: are searched for models of Quake 3.
            shaders: gives the shaders of a pack.
        """
        self.kinds: dict[str, dict[str, list[str]]] = {}
        self._readers: dict[str, Callable[[], GameModel]] = {}
        self._loaded: OrderedDict[str, GameModel | None] = OrderedDict()
        for pack in packs:
            for player, skin in find_players(pack):
                self._list("person", f"{pack.name}/{player}", f"_{skin}",
                           partial(_player, pack, player, skin, shaders))  # fmt: skip
            for file, of in find_md3(pack):
                self._list(of, f"{pack.name}/{file}", "", partial(_thing, pack, file, of, shaders))
        for path in find_cars(folder):
            name = f"torcs/{path.stem}"
            self._list("vehicle", name, "", partial(read_car, name, path))

    def _list(self, of: str, kind: str, variant: str, reader: Callable[[], GameModel]) -> None:
        if kind + variant in self._readers:  # two folders have the same game
            return
        self.kinds.setdefault(of, {}).setdefault(kind, []).append(kind + variant)
        self._readers[kind + variant] = reader

    @property
    def names(self) -> list[str]:
        """All models, sorted."""
        return sorted(self._readers)

    def model(self, name: str) -> GameModel | None:
        """A model by its name; None if it cannot be imported, or is a speck or a hall."""
        if name not in self._loaded:
            try:
                model: GameModel | None = self._readers[name]()
            except DamagedFileError as error:
                print(f"synth: {name} left out: {error}", file=sys.stderr)
                model = None
            except ValueError:  # many are effects that one sees through
                model = None
            if model is not None:
                height, radius = model.extent(len(model.poses) - 1)
                if not _SMALLEST < max(height, 2 * radius) < _LARGEST:
                    model = None
            self._loaded[name] = model
            if len(self._loaded) > _KEPT:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def cast(self, visit: int) -> Cast:
        """The models of a visit; the same for the same number."""
        rng = np.random.default_rng([20261130, 2, visit])
        chosen = {}
        for of in sorted(self.kinds):
            kinds = self.kinds[of]
            turn = rng.permutation(sorted(kinds))[: _CAST[of]]
            chosen[of] = [kinds[k][int(rng.integers(len(kinds[k])))] for k in turn]
        return Cast(self, chosen)


class Cast:
    """The few models that the pictures of one visit show, so that they are imported once."""

    def __init__(self, models: ModelLibrary, names: dict[str, list[str]]) -> None:
        """Args: where they are from, and their names by class."""
        self._models, self.names = models, names

    def draw(self, rng: np.random.Generator) -> GameModel | None:
        """A random model, or None if there are no models."""
        classes = sorted(self.names)
        if not classes:
            return None
        weights = np.array([_CAST[c] for c in classes], float)
        for _ in range(8):
            names = self.names[classes[int(rng.choice(len(classes), p=weights / weights.sum()))]]
            model = self._models.model(names[int(rng.integers(len(names)))])
            if model is not None:
                return model
        return None


def _player(pack: Pack, folder: str, skin: str, shaders: Shaders) -> GameModel:
    return read_player(pack, folder, skin, shaders(pack))


def _thing(pack: Pack, file: str, of: str, shaders: Shaders) -> GameModel:
    return read_md3(pack, file, of, shaders(pack))


def add_model(scene: Scene, model: GameModel, pose: int) -> None:
    """Adds a model to a scene, with colours a little different from its textures'."""
    gain = scene.u(0.6, 1.15) * scene.rng.uniform(0.85, 1.15, 3)
    grey = scene.u(0, 0.7) if scene.chance(0.4) else 0.0
    mix = np.eye(3) * (1 - grey) + grey / 3
    if scene.chance(0.1):
        mix = mix[:, scene.rng.permutation(3)]
    look = {
        "matrix": (gain[:, None] * mix).astype(np.float32),
        "offset": np.full(3, scene.u(0, 0.02), np.float32),
        "dirt": scene.u(0, 0.4) if scene.chance(0.3) else 0.0,
    } | scene.gloss(0.7 if model.of == "vehicle" else 0.25)
    rows = [scene.bank.borrow(picture) for picture in model.pictures]
    materials = np.array([scene.material(row=row, **look) for row in rows], np.int32)
    mesh = TriangleMesh(model.poses[pose], model.faces, model.uv)
    scene.add(mesh, materials[model.texture], of=model.of)


class CutoutTracer(Tracer):
    """A tracer whose rays pass through the holes of borrowed textures, as those of leaves."""

    def __init__(self, scene: Scene, geometry: SceneMesh) -> None:
        """Args: the scene, and its geometry."""
        super().__init__(geometry)
        self._geometry, self._bank = geometry, scene.bank
        self._row = np.array([m.row for m in scene.materials], np.int32)[geometry.material]
        self._cut = scene.bank.holes[self._row]

    def _open(self, hits: Hits, rows: np.ndarray) -> B1:
        """Which of the hits ``rows`` are in a hole."""
        face = hits.face[rows]
        a, b, c = (self._geometry.uv[self._geometry.faces[face, k]] for k in range(3))
        u, v = hits.u[rows, None], hits.v[rows, None]
        uv = a * (1 - u - v) + b * u + c * v
        folded = np.abs(uv - 2.0 * np.floor(uv * 0.5 + 0.5))
        x, y = np.minimum((folded * SIZE).astype(np.int32), SIZE - 1).T
        return self._bank.alpha[self._row[face] - self._bank.first_borrowed, y, x] < 128

    def intersect(self, origins: F32, directions: F32) -> Hits:
        """Nearest hits of rays (N, 3), through holes."""
        hits = super().intersect(origins, directions)
        if not self._cut.any():
            return hits
        rows = np.flatnonzero(np.isfinite(hits.depth) & self._cut[hits.face])
        for _ in range(64):
            rows = rows[self._open(hits, rows)]
            if not len(rows):
                break
            reach = hits.depth[rows] * np.float32(1.0001) + np.float32(0.002)
            start = origins[rows] + directions[rows] * reach[:, None]
            more = super().intersect(
                np.ascontiguousarray(start, np.float32), np.ascontiguousarray(directions[rows])
            )
            hits.depth[rows] = more.depth + reach
            hits.face[rows], hits.u[rows], hits.v[rows] = more.face, more.u, more.v
            rows = rows[np.isfinite(more.depth) & self._cut[more.face]]
        else:
            hits.depth[rows[self._open(hits, rows)]] = np.inf
        return hits

    def occluded(self, origins: F32, directions: F32, reach: F32 | None = None) -> B1:
        """Whether a surface is on the rays; holes are none."""
        blocked = super().occluded(origins, directions, reach)
        rows = np.flatnonzero(blocked)
        if not self._cut.any() or not len(rows):
            return blocked
        hits = self.intersect(
            np.ascontiguousarray(origins[rows]), np.ascontiguousarray(directions[rows])
        )
        blocked[rows] = hits.depth < (np.inf if reach is None else reach[rows])
        return blocked
