"""Race tracks and cars of TORCS: AC3D files, with the textures in their folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dafast.synthetic.meshes import F32, I32, cross
from dafast.synthetic.worlds.atlas import Atlas
from dafast.synthetic.worlds.packs import LARGEST, DamagedFileError
from dafast.synthetic.worlds.world import GameWorld

TEXTURE_SIDE = 256
_LINES = {1, 2}  # kinds of surfaces that are lines
_STRIP = 4


@dataclass
class _Object:
    """An object of the file.

    Attributes:
        texture: file of its picture, "" without one.
        offset: where it is, relative to the object that contains it.
        vertices: (V, 3), y up.
        corners: of each triangle corner the vertex and its texture coordinates.
    """

    texture: str = ""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    vertices: list[tuple[float, float, float]] = field(default_factory=list)
    corners: list[tuple[int, float, float]] = field(default_factory=list)


def find_tracks(folder: Path) -> Iterator[tuple[str, Path]]:
    """The tracks below a folder, not its cars: name, as ``torcs/alpine-1``, and file."""
    for path in sorted(folder.rglob("*.ac*")):
        named = path.suffix in (".ac", ".acc") and path.stem == path.parent.name
        if named and path.parent.parent.name != "cars":
            yield f"torcs/{path.stem}", path


def _triangles(refs: list[tuple[int, float, float]], kind: int) -> list[tuple[int, float, float]]:
    """Corners of the triangles of a polygon or a strip."""
    out = []
    for k in range(len(refs) - 2):
        if kind == _STRIP:
            a, b, c = refs[k : k + 3]
            out += [a, c, b] if k % 2 else [a, b, c]
        else:
            out += [refs[0], refs[k + 1], refs[k + 2]]
    return out


def _objects(lines: Iterator[str]) -> Iterator[_Object]:
    """All objects of a file with their offsets added up.

    Raises:
        StopIteration, ValueError, IndexError: the file is damaged.
    """
    stack: list[tuple[int, tuple[float, float, float]]] = []
    base = (0.0, 0.0, 0.0)
    current, kind = _Object(), 0
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "OBJECT":
            current = _Object()
        elif word == "texture" and not current.texture and rest.startswith('"'):
            current.texture = rest.split('"')[1]
        elif word == "loc":
            x, y, z = (float(v) for v in rest.split()[:3])
            current.offset = (x, y, z)
        elif word == "numvert":
            for _ in range(int(rest)):
                x, y, z = (float(v) for v in next(lines).split()[:3])
                current.vertices.append((x, y, z))
        elif word == "SURF":
            kind = int(rest, 16) & 0xF
        elif word == "refs":
            refs = []
            for _ in range(int(rest)):
                number, u, v = next(lines).split()[:3]
                refs.append((int(number), float(u), float(v)))
            if kind not in _LINES:
                current.corners += _triangles(refs, kind)
        elif word == "kids":
            here = tuple(a + b for a, b in zip(base, current.offset, strict=True))
            current.offset = (here[0], here[1], here[2])
            if current.corners:
                yield current
            if count := int(rest):
                stack.append((count, base))
                base = current.offset
            else:
                while stack:
                    left, outer = stack.pop()
                    if left > 1:
                        stack.append((left - 1, outer))
                        break
                    base = outer


def _picture(path: Path, name: str) -> Image.Image:
    """A texture, of the track or of all tracks; grey if it is missing or cannot be read."""
    for folder in (path.parent, *(p / "data" / "textures" for p in path.parents)):
        try:
            with Image.open(folder / name) as picture:
                return picture.convert("RGBA")
        except (OSError, ValueError, SyntaxError, IndexError, Image.DecompressionBombError):
            continue
    return Image.new("RGBA", (4, 4), (118, 124, 110, 255))


def read_objects(path: Path) -> tuple[F32, F32, I32, list[Image.Image]]:
    """Triangles of an AC3D file.

    Returns:
        Three vertices of each triangle (3 F, 3), z up, in metres; their texture coordinates
        (3 F, 2), downwards; the picture of each triangle (F,); and the pictures.

    Raises:
        DamagedFileError: the file is damaged.
        ValueError: it is no AC3D file, or has no surface.
    """
    text = path.read_text(encoding="latin-1")
    if not text.startswith("AC3D"):
        raise ValueError(f"{path.name} is not an AC3D file")
    try:
        objects = [o for o in _objects(iter(text.splitlines())) if o.texture]
        parts = [_arrays(o) for o in objects]
    except (StopIteration, RuntimeError, ValueError, IndexError) as error:
        raise DamagedFileError(f"{path.name} is damaged") from error
    if not parts:
        raise ValueError(f"{path.name} has no surface")
    files = sorted({o.texture for o in objects})
    texture = np.repeat([files.index(o.texture) for o in objects], [len(v) // 3 for v, _ in parts])
    return (
        np.concatenate([v for v, _ in parts]),
        np.concatenate([t for _, t in parts]),
        texture.astype(np.int32),
        [_picture(path, file) for file in files],
    )


def read_track(name: str, path: Path) -> GameWorld:
    """Imports a track.

    Args:
        name: of the world.
        path: its .ac or .acc file, next to its textures.

    Raises:
        ValueError: the file is damaged, no AC3D file, or has no surface.
    """
    vertices, uv, texture, pictures = read_objects(path)
    faces = np.arange(len(vertices), dtype=np.int32).reshape(-1, 3)
    holes = np.array([(np.asarray(p)[..., 3] < 128).mean() > 0.02 for p in pictures])
    none: NDArray[np.bool_] = np.zeros(len(faces), bool)
    return GameWorld(
        name=name, vertices=vertices, faces=_upwards(vertices, faces), uv=uv,
        light_uv=np.zeros_like(uv), light=np.full_like(vertices, 0.5), texture=texture,
        lightmap=np.full(len(faces), -1, np.int32), sky=none, cutout=holes[texture], glow=none,
        liquid=none, closed=False, textures=Atlas(pictures, most=TEXTURE_SIDE), lightmaps=None,
    )  # fmt: skip


def _arrays(o: _Object) -> tuple[F32, F32]:
    """Three vertices, z up, and texture coordinates of each triangle."""
    corner = np.array([c[0] for c in o.corners])
    at = (np.array(o.vertices, np.float64) + o.offset)[corner]
    uv = np.array([c[1:] for c in o.corners])
    if not (np.abs(at) < LARGEST).all() or not (np.abs(uv) < LARGEST).all():
        raise ValueError("a number is too large")
    return (
        np.stack([at[:, 0], -at[:, 2], at[:, 1]], 1).astype(np.float32),
        (uv * [1, -1]).astype(np.float32),
    )


def _upwards(vertices: F32, faces: I32) -> I32:
    """The faces, those of the ground turned so that their normals point up."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    n = cross(b - a, c - a)
    ground = n[:, 2] < -0.7 * np.linalg.norm(n, axis=1)
    return np.where(ground[:, None], faces[:, ::-1], faces).astype(np.int32)
