"""The worlds of a folder."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from dafast.synthetic.sample import HELD_OUT_SEED, SyntheticSample
from dafast.synthetic.worlds.ac3d import find_tracks, read_track
from dafast.synthetic.worlds.bsp import read_bsp
from dafast.synthetic.worlds.models import ModelLibrary
from dafast.synthetic.worlds.packs import Pack, find_packs
from dafast.synthetic.worlds.shader_scripts import SurfaceShader, read_shaders
from dafast.synthetic.worlds.view import render_view
from dafast.synthetic.worlds.world import GameWorld

#: Pictures with consecutive seeds that show one world, so that it is loaded once for them.
VISIT = 50
_SMALLEST = 200_000  # bytes; smaller maps are menus and tests


class Library:
    """The worlds of a folder; a world is imported when it is needed, and the last one is kept.

    Attributes:
        names: of all worlds, sorted, as ``openarena/oa_dm1``.
        models: shown in the worlds.
        digest: changes with the worlds and the models.
    """

    def __init__(self, folder: str | Path) -> None:
        """Lists the worlds.

        Args:
            folder: is searched for pk3 archives and AC3D tracks, with its sub-folders.

        Raises:
            FileNotFoundError: the folder is missing or holds no world.
        """
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"missing folder of worlds: {root}")
        self._readers: dict[str, Callable[[], GameWorld]] = {}
        self._shaders: dict[str, dict[str, SurfaceShader]] = {}
        packs = find_packs(root)
        for pack in packs:
            for file in pack.names("maps/", ".bsp"):
                if pack.size(file) >= _SMALLEST:
                    name = f"{pack.name}/{file[5:-4]}"
                    self._readers[name] = partial(self._read_map, pack, file)
        for name, path in find_tracks(root):
            if path.stat().st_size >= _SMALLEST:
                self._readers[name] = partial(read_track, name, path)
        if not self._readers:
            raise FileNotFoundError(
                f"{root} has no pk3 archive with a map and no track: unpack the packages of the "
                "games there (scripts/unpack_worlds.sh)"
            )
        self.names = sorted(self._readers)
        self.models = ModelLibrary(root, packs, self._shaders_of)
        files = (path for path in sorted(root.rglob("*")) if path.is_file())
        sizes = [f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in files]
        self.digest = hashlib.sha256("\n".join(sizes).encode()).hexdigest()[:16]
        self._loaded: tuple[str, GameWorld | None] = "", None

    def _shaders_of(self, pack: Pack) -> dict[str, SurfaceShader]:
        if pack.name not in self._shaders:
            self._shaders[pack.name] = read_shaders(pack)
        return self._shaders[pack.name]

    def _read_map(self, pack: Pack, file: str) -> GameWorld:
        return read_bsp(pack, file, self._shaders_of(pack))

    def held_out(self) -> list[str]:
        """Every tenth world, which training seeds do not show; none of fewer than ten worlds."""
        return self.names[4::10] if len(self.names) >= 10 else []

    def world(self, name: str) -> GameWorld | None:
        """A world by its name; None if its file cannot be imported."""
        if self._loaded[0] != name:
            try:
                world: GameWorld | None = self._readers[name]()
            except ValueError as error:
                print(f"synth: {name} left out: {error}", file=sys.stderr)
                world = None
            self._loaded = name, world
        return self._loaded[1]

    def _order(self, seed: int) -> Sequence[str]:
        """The worlds that the visit of a seed tries, in this order."""
        held_out = self.held_out()
        wanted = seed >= HELD_OUT_SEED
        names = [n for n in self.names if (n in held_out) == wanted] or self.names
        visit = seed // VISIT
        cycle, place = divmod(visit, len(names))
        turn = np.random.default_rng([20261130, 1, cycle]).permutation(len(names))
        return [names[turn[(place + k) % len(names)]] for k in range(len(names))]

    def render(
        self,
        seed: int,
        *,
        size: tuple[int, int] | None = None,
        textures: str | None = None,
    ) -> SyntheticSample:
        """Renders the picture of a seed.

        Args:
            seed: determines the world and the view; seeds from `HELD_OUT_SEED` on show
                the worlds of `held_out`.
            size: (width, height) in pixels; None draws one of four sizes around 320x240.
            textures: a folder of further photographs, for the objects.

        Raises:
            ValueError: no world of the folder has a place for a camera.
        """
        cast = self.models.cast(seed // VISIT)
        for name in self._order(seed):
            world = self.world(name)
            if world is None:
                continue
            sample = render_view(world, cast, seed, size=size, textures=textures)
            if sample is not None:
                return sample
        raise ValueError("no world of the folder has a place for a camera")


@lru_cache(maxsize=1)
def open_library(folder: str) -> Library:
    """The worlds of a folder, listed once for each process."""
    return Library(folder)
