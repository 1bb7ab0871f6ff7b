"""Worlds: a tiny map that this file writes, imported and rendered."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")

from dafast.synthetic import HELD_OUT_SEED, write_shards
from dafast.synthetic.scene import CLASSES
from dafast.synthetic.worlds import Library
from dafast.synthetic.worlds.bsp import METRES, entities
from dafast.synthetic.worlds.shader_scripts import parse

X, Y, Z = 400.0, 300.0, 240.0  # half the room's length and width, and its height, in units
SMALL = (48, 36)

SCRIPT = """
textures/grate // a comment
{
    surfaceparm trans
    /* another { comment */
    {
        map textures/grate.tga
        alphaFunc GE128
        rgbGen identity
    }
    {
        map $lightmap
        blendFunc filter
    }
}
textures/glass
{
    {
        map textures/wall.tga
        blendFunc add
    }
}
textures/above
{
    surfaceparm sky
    surfaceparm noimpact
}
textures/floor
{
    qer_editorimage textures/wall.tga
    {
        map $lightmap
    }
    {
        map textures/floor.tga
        blendFunc GL_DST_COLOR GL_ZERO
    }
}
"""


def vertex(at, uv, light_uv, normal, colour=(255, 255, 255, 255)) -> bytes:
    return struct.pack("<3f2f2f3f4B", *at, *uv, *light_uv, *normal, *colour)


def face(shader, kind, first, count, index, indices, lightmap, size=(0, 0)) -> bytes:
    return struct.pack(
        "<8i4i3f6f3f2i", shader, -1, kind, first, count, index, indices, lightmap,
        0, 0, 128, 128, *[0.0] * 12, *size,
    )  # fmt: skip


def quad(corners: list, normal: tuple) -> bytes:
    uv = [(0, 0), (4, 0), (4, 4), (0, 4)]
    light = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98)]
    return b"".join(vertex(c, a, b, normal) for c, a, b in zip(corners, uv, light, strict=True))


def bsp() -> bytes:
    """A room with sky above, a grate across it at x = 200, and a curved step at the other end."""
    shaders = ["wall", "floor", "above", "grate", "glass"]
    table = b"".join(
        struct.pack("<64sii", f"textures/{s}".encode() + b"\0junk", 0, 1) for s in shaders
    )
    a, b, c, d = (-X, -Y), (X, -Y), (X, Y), (-X, Y)
    up = lambda p, z: (*p, z)  # noqa: E731
    quads = [
        (1, [up(a, 0), up(b, 0), up(c, 0), up(d, 0)], (0, 0, 1)),
        (2, [up(a, Z), up(b, Z), up(c, Z), up(d, Z)], (0, 0, -1)),
        (0, [up(a, 0), up(b, 0), up(b, Z), up(a, Z)], (0, 1, 0)),
        (0, [up(d, 0), up(c, 0), up(c, Z), up(d, Z)], (0, -1, 0)),
        (0, [up(a, 0), up(d, 0), up(d, Z), up(a, Z)], (1, 0, 0)),
        (0, [up(b, 0), up(c, 0), up(c, Z), up(b, Z)], (-1, 0, 0)),
        (3, [(200, -Y, 0), (200, Y, 0), (200, Y, Z), (200, -Y, Z)], (-1, 0, 0)),
        (4, [(100, -Y, 0), (100, Y, 0), (100, Y, Z), (100, -Y, Z)], (-1, 0, 0)),
    ]
    vertices, faces = b"", b""
    for k, (shader, corners, normal) in enumerate(quads):
        vertices += quad(corners, normal)
        faces += face(shader, 1, 4 * k, 4, 0, 6, 0)
    first = 4 * len(quads)
    for row, y in enumerate((-100, 0, 100)):
        for x, z in ((-380, 0), (-380, 80), (-300, 80)):
            vertices += vertex((x, y, z), (x / 64, y / 64), (0.5, row / 2), (0, 0, 1))
    faces += face(0, 2, first, 9, 0, 0, 0, (3, 3))
    light = np.full((5, 128, 128, 3), 40, np.uint8)  # of five pages only the first is used
    light[:, :, 64:] = 200
    indices = struct.pack("<6i", 0, 1, 2, 0, 2, 3)
    model = struct.pack("<6f4i", -X, -Y, 0, X, Y, Z, 0, len(quads) + 1, 0, 0)
    lumps = {
        0: b'{\n"classname" "worldspawn"\n}\n', 1: table, 7: model, 10: vertices, 11: indices,
        13: faces, 14: light.tobytes(),
    }  # fmt: skip
    head, body = b"IBSP" + struct.pack("<i", 46), b""
    for k in range(17):
        data = lumps.get(k, b"")
        head += struct.pack("<ii", 8 + 17 * 8 + len(body), len(data))
        body += data
    return head + body


def tga(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TGA")
    return file.getvalue()


def pk3(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    wall = rng.integers(60, 200, (64, 64, 3), np.uint8)
    grate = np.full((16, 16, 4), 255, np.uint8)
    grate[:, 8:, 3] = 0
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scripts/all.shader", SCRIPT)
        archive.writestr("Textures/Wall.tga", tga(wall))
        archive.writestr("textures/floor.tga", tga(wall[::-1].copy()))
        archive.writestr("textures/grate.tga", tga(grate))
        for name in names:
            archive.writestr(f"maps/{name}.bsp", bsp())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds")
    pk3(root / "usr" / "game" / "base" / "pak0.pk3", ["room"])
    return root


@pytest.fixture(scope="module")
def worlds(folder: Path) -> Library:
    return Library(folder)


def shoot(world, eye, direction):
    """The first hit of a ray, in units of the map."""
    hits = world.intersect(
        np.array([eye], np.float32) * np.float32(METRES), np.array([direction], np.float32)
    )
    return float(hits.depth[0]) / METRES, int(hits.face[0])


def test_the_geometry_is_that_of_the_map(worlds: Library) -> None:
    assert worlds.names == ["game/room"]
    world = worlds.world("game/room")
    assert world is not None
    centre = (-100.0, 3.0, 101.0)
    for direction, distance in (
        ((0, 0, -1), 101), ((0, 0, 1), Z - 101), ((0, 1, 0), Y - 3), ((0, -1, 0), Y + 3)
    ):  # fmt: skip
        depth, face = shoot(world, centre, direction)
        assert depth == pytest.approx(distance, rel=1e-4)
        assert world.normals[face] == pytest.approx(-np.array(direction), abs=1e-5)
        assert world.sky[face] == (direction == (0, 0, 1))
    # The curve is the quadratic one of its three rows of control points.
    t = np.linspace(0, 1, 6)
    arc = np.stack([-380 + 80 * t**2, 160 * t - 80 * t**2], 1)
    for x, z in arc[1:-1]:
        depth, _ = shoot(world, (x, 7.0, 200.0), (0, 0, -1))
        assert depth == pytest.approx(200 - z, abs=0.05)


def test_rays_pass_through_the_holes_of_a_grate_and_through_glass(worlds: Library) -> None:
    world = worlds.world("game/room")
    assert world is not None
    # The grate's texture repeats four times over 600 units, and its right half is transparent.
    bar, hole = -Y + 37.0, -Y + 75 + 37.0
    assert shoot(world, (0.0, bar, 60.0), (1, 0, 0))[0] == pytest.approx(200, rel=1e-3)
    assert shoot(world, (0.0, hole, 60.0), (1, 0, 0))[0] == pytest.approx(X, rel=1e-3)


def test_lightmaps_light_the_walls(worlds: Library) -> None:
    from dafast.synthetic.worlds.view import _baked

    world = worlds.world("game/room")
    assert world is not None
    eye = np.array([[-100, 0, 100]] * 2, np.float32) * np.float32(METRES)
    to = np.array([[-250, Y, 0], [250, Y, 0]], np.float32)  # the dark and the bright half
    light = _baked(world, world.intersect(eye, to), np.arange(2))
    assert light[0] == pytest.approx(40 / 255 * 2, abs=0.01)
    assert light[1] == pytest.approx(200 / 255 * 2, abs=0.01)


def test_shader_scripts() -> None:
    shaders = parse(SCRIPT)
    assert set(shaders) == {f"textures/{n}" for n in ("grate", "glass", "above", "floor")}
    grate, glass = shaders["textures/grate"], shaders["textures/glass"]
    assert grate.alpha_test and grate.opaque and grate.parameters == {"trans"}
    assert not glass.opaque and not glass.alpha_test
    assert shaders["textures/above"].parameters == {"sky", "noimpact"}
    floor = shaders["textures/floor"]
    assert floor.opaque and floor.images[:2] == ["textures/floor", "textures/wall"]
    text = '{ "classname" "func_door" "model" "*1" }{"origin" "1 2 3"}'
    assert entities(text) == [{"classname": "func_door", "model": "*1"}, {"origin": "1 2 3"}]


def test_pictures_are_the_same_for_a_seed_and_have_the_depth_of_the_map(folder: Path) -> None:
    first, again = (Library(folder).render(5, size=SMALL) for _ in range(2))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.depth, again.depth)
    assert first.kind == "game/room" and first.image.shape == (36, 48, 3)
    seen = [Library(folder).render(seed, size=SMALL) for seed in (6, 7)]
    assert not np.array_equal(seen[0].depth, seen[1].depth)
    longest = float(np.linalg.norm([2 * X, 2 * Y, Z])) * METRES
    for sample in [first, *seen]:
        some = sample.depth[np.isfinite(sample.depth)]
        assert some.min() > 0.05 and some.max() < longest
        assert ((sample.classes == CLASSES.index("sky")) == np.isinf(sample.depth)).all()
        assert sample.image.std() > 5


def test_shards(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path, 2, seed=5, workers=1, size=SMALL, worlds=folder, progress=False)
    with tarfile.open(tmp_path / "synthetic-000000.tar") as tar:
        meta = json.load(tar.extractfile("00000001.json"))
        code = np.asarray(Image.open(tar.extractfile("00000001.disparity.png")))
    assert (meta["seed"], meta["kind"]) == (6, "game/room")
    sample = Library(folder).render(6, size=SMALL)
    assert np.abs(code / 65535 * meta["disparity_max"] - sample.disparity).max() < 1e-3
    with pytest.raises(ValueError, match="made with worlds"):
        write_shards(tmp_path, 2, seed=5, workers=1, size=SMALL, progress=False)
    with pytest.raises(ValueError, match="kinds or worlds"):
        write_shards(tmp_path, 2, worlds=folder, kinds=["room"])


TRACK = """AC3Db
MATERIAL "" rgb 1 1 1 amb 1 1 1 emis 0 0 0 spec 0 0 0 shi 0 trans 0
OBJECT world
kids 2
OBJECT group
name "near"
loc 0 1 0
kids 1
OBJECT poly
name "fence"
loc 0 0 -5
texture "fence.png" base
texture "shadow.png" tiled
numvert 4
-8 0 0 0 0 1
8 0 0 0 0 1
-8 4 0 0 0 1
8 4 0 0 0 1
numsurf 1
SURF 0x24
mat 0
refs 4
0 0 0 0 0
1 1 0 0 0
2 0 1 0 0
3 1 1 0 0
kids 0
OBJECT poly
name "ground"
texture "ground.png"
numvert 4
-50 0 -50
50 0 -50
50 0 50
-50 0 50
numsurf 1
SURF 0x10
mat 0
refs 4
0 0 0
1 40 0
2 40 40
3 0 40
kids 0
"""


def test_tracks(tmp_path: Path) -> None:
    from dafast.synthetic.worlds.ac3d import find_tracks, read_track

    folder = tmp_path / "road" / "oval"
    folder.mkdir(parents=True)
    path = folder / "oval.acc"
    path.write_text(TRACK)
    fence = np.full((16, 16, 4), 255, np.uint8)
    fence[:, 8:, 3] = 0
    Image.fromarray(fence).save(folder / "fence.png")
    (tmp_path / "data" / "textures").mkdir(parents=True)
    ground = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(ground).save(tmp_path / "data" / "textures" / "ground.png")
    assert list(find_tracks(tmp_path)) == [("torcs/oval", path)]
    world = read_track("torcs/oval", path)
    eye = np.array([[-4, 0, 2], [4, 0, 2], [4, 0, 2], [4, 0, 2]], np.float32)
    to = np.array([[0, 1, 0], [0, 1, 0], [0, 0, -1], [0, 1, -0.1]], np.float32)
    hits = world.intersect(eye, to)  # the fence, its hole, the ground, the ground behind the hole
    assert hits.depth[[0, 2, 3]] == pytest.approx([5, 2, 20], rel=1e-3)
    assert np.isinf(hits.depth[1])
    assert world.normals[hits.face[2]] == pytest.approx([0, 0, 1])
    assert world.textures.mean.std(1).max() > 0.001  # the ground is not grey
    path.write_text(TRACK + " " * 200_000)
    sample = Library(tmp_path).render(3, size=SMALL)
    assert sample.kind == "torcs/oval" and np.isfinite(sample.depth).any()
    for text, said in ((TRACK[:500], "damaged"), ("solid", "no AC3D|not an AC3D")):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_track("torcs/oval", path)


def test_every_tenth_world_is_held_out(tmp_path: Path) -> None:
    names = [f"m{k:02d}" for k in range(20)]
    pk3(tmp_path / "game" / "pak.pk3", names)
    worlds = Library(tmp_path)
    assert len(worlds.names) == 20 and len(worlds.held_out()) == 2
    training = {worlds._order(seed)[0] for seed in range(0, 50 * 40, 50)}
    held_out = {worlds._order(HELD_OUT_SEED + k)[0] for k in range(0, 50 * 40, 50)}
    assert held_out == set(worlds.held_out())
    assert training == set(worlds.names) - held_out


def test_errors_name_the_folder_and_the_remedy(tmp_path: Path, capsys) -> None:
    with pytest.raises(FileNotFoundError, match="missing folder of worlds"):
        Library(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no pk3 archive with a map.*unpack_worlds\.sh"):
        Library(tmp_path)
    (tmp_path / "a.pk3").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.pk3 is not a pk3 archive"):
        Library(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.pk3", "w") as archive:
        archive.writestr("maps/short.bsp", bsp()[:220_000])
        archive.writestr("maps/other.bsp", b"IBSP" + struct.pack("<i", 47) + bytes(200_000))
    with pytest.raises(ValueError, match="no world of the folder has a place"):
        Library(tmp_path).render(0, size=SMALL)
    said = capsys.readouterr().err
    assert "short.bsp is cut short" in said and "version 47" in said


def test_clips_of_worlds_are_refused(folder: Path, tmp_path: Path, capsys) -> None:
    from dafast.cli import main

    out = ["--scenes", "1", "--out", str(tmp_path / "clips")]
    assert main(["synth", *out, "--worlds", str(folder), "--clip", "3"]) != 0
    assert "leave out --worlds" in capsys.readouterr().err
