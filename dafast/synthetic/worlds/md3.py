"""Models of Quake 3: MD3 files, and players of three of them."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dafast.synthetic.meshes import F32, I32
from dafast.synthetic.worlds.bsp import METRES, find_picture
from dafast.synthetic.worlds.model import GameModel, build_model, picture_of
from dafast.synthetic.worlds.packs import DamagedFileError, Pack
from dafast.synthetic.worlds.shader_scripts import SurfaceShader, stem

_POSES = 16
_MOST_SURFACES, _HEADER = 1024, 108  # of a file; bytes of a surface's header
_LYING = 2  # of the poses: falling or lying
_TAG = np.dtype([("name", "S64"), ("at", "<f4", 3), ("axes", "<f4", (3, 3))])
_VERTEX = np.dtype([("at", "<i2", 3), ("normal", "<i2")])
#: Parts of names of effects, of markers that are not drawn, and of models that are not closed.
_LEFT_OUT = ("flash", "gib", "_dmg", "weaphits", "null", "teamfx", "shotorg", "marker",
             "_hand", "shield", "sphere", "portal", "players", "_barrel", "sky")  # fmt: skip
#: Words of names.
_CLASSES = {
    "plant": ("tree", "grass", "plant", "bush", "flower", "fern", "cactus"),
    "vehicle": ("spiderbot", "plane", "car", "truck", "vehicle", "ship", "tank"),
    "person": ("statue",),
}


@dataclass(frozen=True)
class _Md3Surface:
    """Triangles with one picture.

    Attributes:
        name: as in .skin files, lower case.
        shader: of the file itself.
        poses: (frames, V, 3), units.
        faces, uv: as in `GameModel`.
    """

    name: str
    shader: str
    poses: F32
    faces: I32
    uv: F32


@dataclass(frozen=True)
class _Part:
    """A file: its surfaces, and where other parts are joined to it, by name and frame."""

    surfaces: list[_Md3Surface]
    tags: dict[str, NDArray]
    frames: int


def _name(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("latin-1").lower().replace("\\", "/")


def read_part(data: bytes, name: str) -> _Part:
    """Reads an MD3 file.

    Raises:
        DamagedFileError: it is damaged or no MD3 file.
    """
    if data[:4] != b"IDP3":
        raise DamagedFileError(f"{name} is damaged: it is no MD3 file")
    try:
        frames, tags, count = struct.unpack_from("<3i", data, 76)
        at_tags, start = struct.unpack_from("<2i", data, 96)
        if frames < 1 or tags < 0 or not 0 <= count <= _MOST_SURFACES:
            raise ValueError("a number is impossible")
        table = np.frombuffer(data, _TAG, frames * tags, at_tags).reshape(frames, tags)
        surfaces = []
        for _ in range(count):
            size, _, vertices, triangles = struct.unpack_from("<4i", data, start + 72)
            at_faces, at_shaders, at_uv, at_vertices, end = struct.unpack_from(
                "<5i", data, start + 88
            )
            if size < 1 or min(vertices, triangles) < 0 or end < _HEADER:
                raise ValueError("a number is impossible")
            faces = np.frombuffer(data, "<i4", 3 * triangles, start + at_faces).reshape(-1, 3)
            uv = np.frombuffer(data, "<f4", 2 * vertices, start + at_uv).reshape(-1, 2)
            at = np.frombuffer(data, _VERTEX, size * vertices, start + at_vertices)["at"]
            if len(faces) and (faces.min() < 0 or faces.max() >= vertices):
                raise ValueError("a face has no vertex")
            shader = data[start + at_shaders : start + at_shaders + 64]
            surfaces.append(
                _Md3Surface(
                    _name(data[start + 4 : start + 68]), _name(shader),
                    at.reshape(size, vertices, 3).astype(np.float32) / 64, faces, uv,
                )
            )  # fmt: skip
            start += end
    except (struct.error, ValueError, IndexError) as error:
        raise DamagedFileError(f"{name} is damaged") from error
    names = [_name(t) for t in table["name"][0]] if tags else []
    return _Part(surfaces, {n: table[:, k] for k, n in enumerate(names)}, frames)


class _Builder:
    """Collects surfaces with their pictures."""

    def __init__(self, pack: Pack, shaders: dict[str, SurfaceShader]) -> None:
        self.pack, self.shaders = pack, shaders
        self.pictures: list[NDArray[np.uint8]] = []
        self.rows: dict[str, int] = {}
        self.poses: list[F32] = []
        self.faces: list[I32] = []
        self.uv: list[F32] = []
        self.texture: list[I32] = []
        self.count = 0

    def _row(self, shader: str) -> int:
        """The row of a shader's picture; -1 if one sees through it or has no picture of it."""
        if shader not in self.rows:
            look = self.shaders.get(stem(shader)) or SurfaceShader(images=[stem(shader)])
            picture = None
            if look.opaque and shader not in ("", "nodraw"):
                found = (find_picture(self.pack, name) for name in look.images)
                picture = next((p for p in found if p is not None), None)
            if picture is not None:
                holes = look.alpha_test and "A" in picture.getbands()
                self.pictures.append(picture_of(picture, holes=holes))
            self.rows[shader] = -1 if picture is None else len(self.pictures) - 1
        return self.rows[shader]

    def add(self, surface: _Md3Surface, shader: str, poses: F32) -> None:
        """Adds a surface in (K, V, 3) poses, if it can be drawn."""
        row = self._row(shader)
        if row < 0 or not len(surface.faces):
            return
        self.poses.append(poses)
        self.faces.append(surface.faces + np.int32(self.count))
        self.uv.append(surface.uv)
        self.texture.append(np.full(len(surface.faces), row, np.int32))
        self.count += poses.shape[1]

    def model(self, name: str, of: str, first_of_head: int | None = None) -> GameModel:
        """The model, turned from +x to -y."""
        if not self.faces:
            raise ValueError(f"{name} has no surface")
        p = np.concatenate(self.poses, 1) * np.float32(METRES)
        faces = np.concatenate(self.faces)
        head = None if first_of_head is None else np.arange(first_of_head, len(faces))
        return build_model(
            name, of, np.stack([p[..., 1], -p[..., 0], p[..., 2]], -1), faces,
            np.concatenate(self.uv), np.concatenate(self.texture), self.pictures,
            None if head is None else head.astype(np.int32),
        )  # fmt: skip


def find_md3(pack: Pack) -> Iterator[tuple[str, str]]:
    """The models of a game that stand alone: names of MD3 files, and their classes."""
    for file in pack.all_names("models/", ".md3"):
        if not any(word in file for word in _LEFT_OUT):
            found = re.split("[^a-z]+", file)
            found += [word.removesuffix("s") for word in found]
            matching = (c for c, words in _CLASSES.items() if {*found} & {*words})
            yield file, next(matching, "thing")


def read_md3(pack: Pack, file: str, of: str, shaders: dict[str, SurfaceShader]) -> GameModel:
    """Imports a model of a class, in at most four frames.

    Raises:
        DamagedFileError: the file is damaged.
        ValueError: nothing of it can be drawn.
    """
    part = read_part(pack.read(file), file)
    skin = _skin(pack, file[:-4] + "_0.skin") or _skin(pack, file[:-4] + "_default.skin")
    builder = _Builder(pack, shaders)
    frames = np.unique(np.linspace(0, max(part.frames - 1, 0), 4).astype(int))
    for surface in part.surfaces:
        shader = skin.get(surface.name, surface.shader)
        builder.add(surface, shader, surface.poses[np.minimum(frames, len(surface.poses) - 1)])
    return builder.model(f"{pack.name}/{file}", of)


def _skin(pack: Pack, file: str) -> dict[str, str]:
    """Shaders of surfaces by name, from a .skin file; empty if it is missing."""
    if file not in pack:
        return {}
    pairs = (line.split(",", 1) for line in pack.read(file).decode("latin-1").lower().splitlines())
    return {p[0].strip(): p[1].strip().strip('"') for p in pairs if len(p) == 2}


def find_players(pack: Pack) -> Iterator[tuple[str, str]]:
    """Players of a game: folder, as ``models/players/sarge``, and name of a skin."""
    for file in pack.all_names("models/players/", ".skin"):
        folder, _, last = file.rpartition("/")
        if not last.startswith("head_"):
            continue
        kind = last[5:-5]
        parts = [f"{folder}/{p}.md3" for p in ("head", "upper", "lower")]
        skins = [f"{folder}/{p}_{kind}.skin" for p in ("upper", "lower")]
        if all(p in pack for p in [*parts, *skins, f"{folder}/animation.cfg"]):
            yield folder, kind


def _animations(text: str) -> list[tuple[int, int]]:
    """First frame and number of frames of each animation of a player."""
    found = []
    for line in text.splitlines():
        words = line.split("//")[0].split()
        if len(words) >= 4 and all(word.lstrip("-").isdigit() for word in words[:2]):
            found.append((int(words[0]), abs(int(words[1]))))
    return found


def _frames(animations: list[tuple[int, int]], torso: int, legs: int, seed: str) -> I32:
    """Frames of torso and legs in each pose, (K, 2)."""
    if len(animations) < 14:
        raise DamagedFileError(f"{seed} is damaged: it has too few animations")
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    both, upper, lower = animations[:6], animations[6:13], animations[13:25]
    # The file numbers the frames of the legs after those of the torso.
    skipped = lower[0][0] - upper[0][0]
    poses = []
    for k in range(_POSES):
        if k < _LYING:
            first, n = both[int(rng.integers(len(both)))]
            poses.append([first + int(rng.integers(max(n, 1)))] * 2)
            continue
        a, b = upper[int(rng.integers(len(upper)))], lower[int(rng.integers(len(lower)))]
        top, low = a[0] + int(rng.integers(max(a[1], 1))), b[0] + int(rng.integers(max(b[1], 1)))
        poses.append([top, low - skipped])
    return np.clip(poses, 0, [torso - 1, legs - 1]).astype(np.int32)


def read_player(pack: Pack, folder: str, kind: str, shaders: dict[str, SurfaceShader]) -> GameModel:
    """Imports a player: legs, torso and head, joined in 16 poses.

    Args:
        pack: the game's files.
        folder: of the player.
        kind: the skin.
        shaders: the game's shaders.

    Raises:
        DamagedFileError: a file is damaged or lacks what joins the parts.
        ValueError: nothing of it can be drawn.
    """
    files = {p: f"{folder}/{p}.md3" for p in ("lower", "upper", "head")}
    parts = {p: read_part(pack.read(file), file) for p, file in files.items()}
    animations = _animations(pack.read(f"{folder}/animation.cfg").decode("latin-1"))
    frames = _frames(animations, parts["upper"].frames, parts["lower"].frames, f"{folder}_{kind}")
    try:
        waist = parts["lower"].tags["tag_torso"][frames[:, 1]]
        neck = parts["upper"].tags["tag_head"][frames[:, 0]]
    except KeyError as error:
        raise DamagedFileError(f"{folder} is damaged: it has no {error}") from error
    still = np.zeros(_POSES, np.int32)
    builder = _Builder(pack, shaders)
    first_of_head = 0
    for part, frame, joints in (
        ("lower", frames[:, 1], []), ("upper", frames[:, 0], [waist]),
        ("head", still, [neck, waist]),
    ):  # fmt: skip
        first_of_head = sum(len(f) for f in builder.faces)
        skin = _skin(pack, f"{folder}/{part}_{kind}.skin")
        for surface in parts[part].surfaces:
            poses = surface.poses[np.minimum(frame, len(surface.poses) - 1)]
            for joint in joints:
                # Some files have axes of other lengths, which the games ignore.
                size = np.linalg.norm(joint["axes"], axis=-1, keepdims=True)
                axes = joint["axes"] / np.maximum(size, 1e-6)
                poses = poses @ axes + joint["at"][:, None]
            builder.add(surface, skin.get(surface.name, surface.shader), poses)
    return builder.model(f"{pack.name}/{folder}_{kind}", "person", first_of_head)
