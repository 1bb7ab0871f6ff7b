"""Maps of Quake 3: BSP files of version 46, with lightmaps."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dafast.synthetic.meshes import F32, I32, cross
from dafast.synthetic.worlds.atlas import Atlas
from dafast.synthetic.worlds.packs import Pack
from dafast.synthetic.worlds.shader_scripts import SurfaceShader
from dafast.synthetic.worlds.world import GameWorld

#: Metres per unit: a player of these games has the eyes 50 to 56 units above the ground.
METRES = 0.03
TEXTURE_SIDE = 256
_LIGHTMAP_SIDE = 128
_STEPS = 5  # segments of a curved patch
_SKY, _NODRAW, _HINT, _SKIP = 0x4, 0x80, 0x100, 0x200
_LUMPS = 17

_VERTEX = np.dtype(
    [("at", "<f4", 3), ("uv", "<f4", 2), ("light_uv", "<f4", 2), ("normal", "<f4", 3),
     ("colour", "u1", 4)]
)  # fmt: skip
_FACE = np.dtype(
    [("shader", "<i4"), ("fog", "<i4"), ("type", "<i4"), ("vertex", "<i4"), ("vertices", "<i4"),
     ("index", "<i4"), ("indices", "<i4"), ("lightmap", "<i4"), ("rest", "<i4", 16),
     ("size", "<i4", 2)]
)  # fmt: skip
_SHADER = np.dtype([("name", "S64"), ("flags", "<i4"), ("contents", "<i4")])
_MODEL = np.dtype([("box", "<f4", 6), ("face", "<i4"), ("faces", "<i4"), ("brushes", "<i4", 2)])


class _Lumps:
    """The tables of a file."""

    def __init__(self, data: bytes, name: str) -> None:
        if len(data) < 8 + 8 * _LUMPS or data[:4] != b"IBSP":
            raise ValueError(f"{name} is not a BSP file")
        version = struct.unpack_from("<i", data, 4)[0]
        if version != 46:
            raise ValueError(f"{name} is a BSP file of version {version}; only 46 can be read")
        spans = [struct.unpack_from("<ii", data, 8 + 8 * k) for k in range(_LUMPS)]
        if any(s < 0 or n < 0 or s + n > len(data) for s, n in spans):
            raise ValueError(f"{name} is cut short")

        def table(lump: int, kind: np.dtype | str) -> NDArray:
            start, size = spans[lump]
            kind = np.dtype(kind)
            return np.frombuffer(data, kind, size // kind.itemsize, start)

        start, size = spans[0]
        self.entities = data[start : start + size].decode("latin-1")
        self.shaders = table(1, _SHADER)
        self.models = table(7, _MODEL)
        self.vertices = table(10, _VERTEX)
        self.indices = table(11, "<i4")
        self.faces = table(13, _FACE)
        self.lightmaps = table(14, "u1")
        side = _LIGHTMAP_SIDE
        count = len(self.lightmaps) // (side * side * 3)
        self.lightmaps = self.lightmaps[: count * side * side * 3].reshape(count, side, side, 3)


def entities(text: str) -> list[dict[str, str]]:
    """The entities of a map: their keys and values."""
    return [
        dict(re.findall(r'"([^"]*)"\s+"([^"]*)"', block))
        for block in re.findall(r"\{([^{}]*)\}", text)
    ]


def _triangles(corners: NDArray, indices: I32) -> tuple[NDArray, I32]:
    """Triangles that turn counter-clockwise around the normals of their vertices."""
    f = indices.reshape(-1, 3).astype(np.int32)
    a, b, c = (corners["at"][f[:, k]] for k in range(3))
    n = corners["normal"][f].sum(1)
    wrong = np.einsum("ij,ij->i", cross(b - a, c - a), n) < 0
    f[wrong] = f[wrong][:, ::-1]
    return corners, f


def _curve(control: NDArray, size: NDArray) -> tuple[NDArray, I32]:
    """A curved surface of (height, width) control points as triangles."""
    w, h = int(size[0]), int(size[1])
    t = np.linspace(0, 1, _STEPS + 1)
    basis = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t * t], 1)
    flat = np.concatenate(
        [control[k].astype(np.float64).reshape(len(control), -1) for k in _VERTEX.names or ()], 1
    ).reshape(h, w, -1)
    parts: list[NDArray] = []
    faces: list[NDArray] = []
    n = _STEPS + 1
    i = np.arange(n * n).reshape(n, n)
    a, b, c, d = i[:-1, :-1].ravel(), i[:-1, 1:].ravel(), i[1:, :-1].ravel(), i[1:, 1:].ravel()
    grid = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])
    for y in range(0, h - 2, 2):
        for x in range(0, w - 2, 2):
            patch = flat[y : y + 3, x : x + 3]
            faces.append(grid + len(parts) * n * n)
            parts.append(np.einsum("ij,kl,jlc->ikc", basis, basis, patch).reshape(n * n, -1))
    if not parts:
        return control[:0], np.zeros((0, 3), np.int32)
    points = np.concatenate(parts)
    out = np.zeros(len(points), _VERTEX)
    column = 0
    for key in _VERTEX.names or ():
        width = out[key].shape[1]
        out[key] = points[:, column : column + width]
        column += width
    return _triangles(out, np.concatenate(faces))


def _placed(lumps: _Lumps) -> list[tuple[int, int, F32]]:
    """Ranges of faces that are drawn, and where: the map, and its doors and lifts."""
    ranges = []
    offsets = {0: np.zeros(3, np.float32)}
    for entity in entities(lumps.entities):
        model = entity.get("model", "")
        kind = entity.get("classname", "")
        if model.startswith("*") and model[1:].isdigit() and not kind.startswith("trigger"):
            origin = (entity.get("origin", "0 0 0").split() + ["0"] * 3)[:3]
            offsets[int(model[1:])] = np.array([float(x) for x in origin], np.float32)
    for number, offset in sorted(offsets.items()):
        if number < len(lumps.models):
            m = lumps.models[number]
            ranges.append((int(m["face"]), int(m["face"] + m["faces"]), offset))
    return ranges


def find_picture(pack: Pack, stem: str) -> Image.Image | None:
    """A picture by its name without suffix; None if it cannot be read."""
    for suffix in (".tga", ".jpg", ".png"):
        if stem + suffix in pack:
            try:
                picture = Image.open(io.BytesIO(pack.read(stem + suffix)))
                picture.draft("RGB", (TEXTURE_SIDE, TEXTURE_SIDE))
                picture.load()
            except (OSError, ValueError, SyntaxError, IndexError, Image.DecompressionBombError):
                continue
            return picture
    return None


def _first_picture(pack: Pack, stems: list[str]) -> Image.Image:
    """The first picture that exists; otherwise another surface of the game."""
    names = [*stems]
    others = pack.surfaces
    if others:
        k = zlib.crc32(stems[0].encode())
        names += [others[(k + i) % len(others)].rsplit(".", 1)[0] for i in range(8)]
    grey = Image.new("RGB", (4, 4), (128, 124, 118))
    return next(filter(None, (find_picture(pack, name) for name in names)), grey)


def _lightmaps(pack: Pack, map_name: str, lumps: _Lumps) -> Atlas | None:
    """Lightmaps of the file, or those in the folder with the map's name."""
    pictures = [Image.fromarray(page) for page in lumps.lightmaps]
    if not pictures:
        top = int(lumps.faces["lightmap"].max(initial=-1))
        blank = Image.new("RGB", (4, 4), (64, 64, 64))
        found = [find_picture(pack, f"{map_name}/lm_{k:04d}") for k in range(top + 1)]
        if not any(found):
            return None
        pictures = [p or blank for p in found]
    return Atlas(pictures, most=1024, mipmaps=False)


_HIDDEN = {"nodraw", "fog", "hint", "skip", "areaportal", "clusterportal"}


def read_bsp(pack: Pack, file: str, shaders: dict[str, SurfaceShader]) -> GameWorld:
    """Imports a map.

    Args:
        pack: the game's files.
        file: the map, as ``maps/oa_dm1.bsp``.
        shaders: the game's shaders.

    Raises:
        ValueError: the file is no such map, or has no surface.
    """
    lumps = _Lumps(pack.read(file), file)
    looks = [_look(s["name"], int(s["flags"]), shaders) for s in lumps.shaders]
    corners, faces, shader, lightmap = [], [], [], []
    count = 0
    for first, last, offset in _placed(lumps):
        for face in lumps.faces[first:last]:
            k = int(face["shader"])
            if not 0 <= k < len(looks) or not looks[k][1] or face["type"] not in (1, 2, 3):
                continue
            some = lumps.vertices[face["vertex"] : face["vertex"] + face["vertices"]]
            if face["type"] == 2:
                points, f = _curve(some, face["size"])
            else:
                index = lumps.indices[face["index"] : face["index"] + face["indices"]]
                if len(index) % 3 or not len(index) or index.max() >= len(some):
                    continue
                points, f = _triangles(some, index)
            if offset.any():
                points = points.copy()
                points["at"] += offset
            corners.append(points)
            faces.append(f + count)
            shader.append(np.full(len(f), k, np.int32))
            lightmap.append(np.full(len(f), face["lightmap"], np.int32))
            count += len(points)
    if not faces:
        raise ValueError(f"{file} has no surface")
    v, f = np.concatenate(corners), np.concatenate(faces)
    name = f"{pack.name}/{file.removeprefix('maps/').removesuffix('.bsp')}"
    return _assemble(
        pack, name, file.removesuffix(".bsp"), lumps, looks, v, f,
        np.concatenate(shader), np.concatenate(lightmap),
    )  # fmt: skip


def _look(
    raw: bytes, flags: int, shaders: dict[str, SurfaceShader]
) -> tuple[SurfaceShader, bool, bool]:
    """A shader, whether its surfaces are imported, and whether they are sky."""
    name = raw.split(b"\0", 1)[0].decode("latin-1").lower()  # compilers leave rubbish behind it
    look = shaders.get(name) or SurfaceShader(images=[name])
    sky = bool(flags & _SKY) or "sky" in look.parameters
    hidden = bool(flags & (_NODRAW | _HINT | _SKIP)) or bool(look.parameters & _HIDDEN)
    liquid = bool(look.parameters & {"water", "slime", "lava"})
    # What one sees through (glass, beams of light, stains) is not imported, but water is.
    return look, sky or (not hidden and (look.opaque or liquid)), sky


def _assemble(
    pack: Pack,
    name: str,
    map_name: str,
    lumps: _Lumps,
    looks: list[tuple[SurfaceShader, bool, bool]],
    v: NDArray,
    f: I32,
    shader: I32,
    lightmap: I32,
) -> GameWorld:
    """The world of a map's triangles."""
    used = np.unique(shader)
    row = np.zeros(len(looks), np.int32)
    row[used] = np.arange(len(used))
    pictures = [_first_picture(pack, looks[k][0].images) for k in used]
    lightmaps = _lightmaps(pack, map_name, lumps)
    pages = 0 if lightmaps is None else len(lightmaps.start)

    per_shader = [look for look, _, _ in looks]
    cutout = np.array([look.alpha_test for look in per_shader], bool)
    liquid = np.array([bool(x.parameters & {"water", "slime", "lava"}) for x in per_shader], bool)
    glow = np.array([x.glows or "lava" in x.parameters for x in per_shader], bool)
    has_alpha = np.zeros(len(looks), bool)
    has_alpha[used] = ["A" in p.getbands() for p in pictures]
    colour = v["colour"][:, :3].astype(np.float32) / 255
    if not colour.any():
        colour[:] = 0.4
    return GameWorld(
        name=name,
        vertices=v["at"].astype(np.float32) * np.float32(METRES),
        faces=f.astype(np.int32),
        uv=v["uv"].astype(np.float32),
        light_uv=v["light_uv"].astype(np.float32),
        light=colour,
        texture=row[shader],
        lightmap=np.where((lightmap >= 0) & (lightmap < pages), lightmap, -1).astype(np.int32),
        sky=np.array([sky for _, _, sky in looks], bool)[shader],
        cutout=(cutout & has_alpha)[shader],
        glow=glow[shader],
        liquid=liquid[shader],
        closed=True,
        textures=Atlas(pictures, most=TEXTURE_SIDE),
        lightmaps=lightmaps,
    )
