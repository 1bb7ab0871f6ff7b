"""Models in worlds: files that this test writes, imported, placed and shown from near."""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")

from dafast.synthetic import textures
from dafast.synthetic.scene import CLASSES, Scene
from dafast.synthetic.textures import SIZE, TextureBank, bank_for
from dafast.synthetic.worlds import Library
from dafast.synthetic.worlds.ac3d import find_tracks
from dafast.synthetic.worlds.bsp import METRES
from dafast.synthetic.worlds.cars import find_cars, read_car
from dafast.synthetic.worlds.closeup import close_view
from dafast.synthetic.worlds.md3 import read_part
from dafast.synthetic.worlds.model import build_model
from dafast.synthetic.worlds.models import CutoutTracer, add_model
from dafast.synthetic.worlds.packs import DamagedFileError
from tests.synthetic.test_worlds import SMALL, pk3, tga


def md3(name: str, shader: str, sizes: list[float], tags: dict[str, list] | None = None) -> bytes:
    """A cuboid of (2, 2, size) units on z = 0, one frame for each size, with tags."""
    frames, tags = len(sizes), tags or {}
    corners = np.array([[x, y, z] for z in (0, 1) for y in (-1, 1) for x in (-1, 1)], float)
    quads = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    faces = np.array([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))], "<i4")
    points = b""
    for size in sizes:
        for corner in corners * [1, 1, size]:
            points += struct.pack("<4h", *np.round(corner * 64).astype(int), 0)
    uv = np.linspace(0.1, 0.9, 16, dtype="<f4").tobytes()
    body = faces.tobytes() + struct.pack("<64si", shader.encode(), 0) + uv + points
    at = np.cumsum([108, faces.nbytes, 68, len(uv), len(points)])
    surface = struct.pack("<4s64s5i5i", b"IDP3", name.encode(), 0, frames, 1, 8, len(faces), *at)
    table = b"".join(
        struct.pack("<64s12f", tag.encode(), *values[frame])
        for frame in range(frames) for tag, values in tags.items()
    )  # fmt: skip
    end = 108 + len(table) + len(surface + body)
    head = struct.pack("<4si64s9i", b"IDP3", 15, b"", 0, frames, len(tags), 1, 0, 108, 108,
                       108 + len(table), end)  # fmt: skip
    return head + table + surface + body


def player_files() -> dict[str, bytes]:
    """Legs 30 units high, a torso of 20 on them, turned by a quarter, and a head of 8 on that."""
    waist = [0, 0, 30, 0, 2, 0, -2, 0, 0, 0, 0, 2]  # axes of length 2, which games ignore
    neck = [3, 0, 20, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    animations = b"".join(b"%d 2 0 15\n" % min(k, 7) for k in range(25))
    folder = "models/players/ann"
    files = {
        f"{folder}/lower.md3": md3("l_legs", "", [30.0] * 9, {"tag_torso": [waist] * 9}),
        f"{folder}/upper.md3": md3("u_torso", "", [20.0] * 9, {"tag_head": [neck] * 9}),
        f"{folder}/head.md3": md3("h_head", "", [8.0]),
        f"{folder}/animation.cfg": b"sex f\n" + animations,
        f"{folder}/skin.tga": tga(np.full((8, 8, 3), 160, np.uint8)),
    }  # fmt: skip
    for part, surface in (("lower", "l_legs"), ("upper", "u_torso"), ("head", "h_head")):
        files[f"{folder}/{part}_red.skin"] = f"{surface},{folder}/skin.tga\ntag_x,\n".encode()
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    pack = root / "game" / "base" / "pak0.pk3"
    pk3(pack, ["room"])
    with zipfile.ZipFile(pack, "a") as archive:
        for name, data in player_files().items():
            archive.writestr(name, data)
        archive.writestr("models/items/grate.md3", md3("x", "textures/grate", [10.0, 20.0]))
        archive.writestr("models/items/glass.md3", md3("x", "textures/glass", [10.0]))
        archive.writestr("models/items/huge.md3", md3("x", "textures/wall", [500.0]))
        archive.writestr("models/items/cut.md3", md3("x", "textures/wall", [10.0])[:400])
    return root


@pytest.fixture(scope="module")
def worlds(folder: Path) -> Library:
    return Library(folder)


def test_a_player_is_joined_from_its_parts(worlds: Library) -> None:
    model = worlds.models.model("game/models/players/ann_red")
    assert model is not None and model.of == "person" and len(model.poses) == 16
    assert model.extent(0)[0] == pytest.approx(58 * METRES, rel=1e-3)
    assert model.poses[:, :, 2].min() == pytest.approx(0, abs=1e-6)
    head = model.poses[0][model.faces[model.faces_of_head]].reshape(-1, 3)
    assert head[:, 2].min() == pytest.approx(50 * METRES, rel=1e-3)
    # The torso looks to +y of the file, which is +x of a model that faces -y.
    assert head[:, 0].mean() - model.poses[0, :8, 0].mean() == pytest.approx(3 * METRES, rel=1e-2)
    assert [p.shape for p in model.pictures] == [(SIZE, SIZE, 4)]


def test_models_that_cannot_be_shown_are_left_out(worlds: Library, capsys) -> None:
    models = worlds.models
    assert sorted(models.kinds) == ["person", "thing"]
    assert models.model("game/models/items/glass.md3") is None  # one sees through it
    assert models.model("game/models/items/huge.md3") is None
    assert models.model("game/models/items/cut.md3") is None
    assert "cut.md3 is damaged" in capsys.readouterr().err
    cast = models.cast(3)
    drawn = [cast.draw(np.random.default_rng(k)) for k in range(40)]
    assert {m.name.rsplit("/", 1)[1] for m in drawn if m} == {"ann_red", "grate.md3"}
    assert cast.names == models.cast(3).names


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0), (76, 0), (76, -1), (80, -1), (84, 2**30), (180, 0), (188, -1), (192, -1), (212, 0)],
    ids=["magic", "no frames", "frames", "tags", "surfaces", "no poses", "vertices", "triangles",
         "end"],
)  # fmt: skip
def test_damaged_models_are_named(offset: int, value: int) -> None:
    data = bytearray(md3("x", "", [10.0]))
    read_part(bytes(data), "a.md3")
    struct.pack_into("<i", data, offset, value)
    with pytest.raises(DamagedFileError, match=r"a\.md3 is damaged"):
        read_part(bytes(data), "a.md3")


def test_damaged_archives_and_huge_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    name = "game/models/players/ann_red"
    source = folder / "game" / "base" / "pak0.pk3"
    target = tmp_path / "game" / "base" / "pak0.pk3"
    target.parent.mkdir(parents=True)
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        start = archive.getinfo("models/players/ann/lower.md3").header_offset
    data[start + 200] ^= 0xFF
    target.write_bytes(data)
    assert Library(tmp_path).models.model(name) is None
    assert f"{name} left out: models/players/ann/lower.md3" in capsys.readouterr().err
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert Library(folder).models.model(name) is None


def test_cars_are_no_worlds_and_a_game_counts_once(folder: Path, tmp_path: Path) -> None:
    for file in ("torcs/cars/red/red.acc", "torcs/tracks/road/hill/hill.acc"):
        path = tmp_path / file
        path.parent.mkdir(parents=True)
        path.write_text("AC3Db\n")
    assert [name for name, _ in find_tracks(tmp_path)] == ["torcs/hill"]
    assert [path.name for path in find_cars(tmp_path)] == ["red.acc"]
    for copy in ("a", "b"):
        shutil.copytree(folder / "game", tmp_path / copy / "game")
    library = Library(tmp_path)
    ann = "game/models/players/ann"
    assert library.models.kinds["person"] == {ann: [f"{ann}_red"]}
    (tmp_path / "torcs/cars/red/red.acc").write_text("AC3Db\n\n")
    assert Library(tmp_path).digest != library.digest


def test_rays_pass_through_the_holes_of_a_model(worlds: Library) -> None:
    model = worlds.models.model("game/models/items/grate.md3")
    assert model is not None
    assert model.poses[:, :, 2].max(1) == pytest.approx([10 * METRES, 20 * METRES], rel=1e-3)
    scene = Scene(np.random.default_rng(0), bank_for(None))
    add_model(scene, model, 1)
    geometry = scene.geometry()
    assert (geometry.classes == CLASSES.index("thing")).all()
    tracer = CutoutTracer(scene, geometry)
    side = np.linspace(-0.028, 0.028, 30, dtype=np.float32)
    eye = np.stack([side, np.full(30, -3, np.float32), side + 0.3], 1)
    to = np.tile(np.array([[0, 1, 0]], np.float32), (30, 1))
    hits = tracer.intersect(eye, to)
    opaque = super(CutoutTracer, tracer).intersect(eye, to)
    assert np.isfinite(opaque.depth).all()
    # Each hit is the first of the two walls whose texel, the left half of the picture, is opaque.
    assert (hits.depth > opaque.depth + 0.01).any()
    for depth in (*hits.depth, *opaque.depth):
        assert np.isinf(depth) or abs(abs(depth - 3) - METRES) < 1e-4
    assert (tracer.occluded(eye, to) == np.isfinite(hits.depth)).all()
    reach = np.full(30, 2.9, np.float32)
    assert not tracer.occluded(eye, to, reach).any()


def test_the_bank_lends_rows_to_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textures, "BORROWED", 2)
    bank = TextureBank()
    pictures = np.zeros((3, SIZE, SIZE, 4), np.uint8)
    pictures[..., 3] = 255
    pictures[1, :9, :, 3] = 0
    pictures[:, ..., 0] = np.array([10, 20, 30])[:, None, None]
    a, b = (bank.borrow(pictures[k]) for k in (0, 1))
    assert (a, b) == (bank.first_borrowed, bank.first_borrowed + 1)
    assert bank.holes[[a, b]].tolist() == [False, True]
    assert bank.borrow(pictures[0]) == a
    assert bank.borrow(pictures[2]) == b  # the least recently used makes way
    assert bank.texels[b * textures.STRIDE].tolist() == [30, 0, 0] and not bank.holes[b]
    assert max(bank.by_name["photo"]) < bank.first_borrowed


CAR = """AC3Db
OBJECT world
kids 1
OBJECT poly
texture "paint.rgb" base
numvert 4
-2 0 -0.8
2 0 -0.8
2 1 0.8
-2 1 0.8
numsurf 1
SURF 0x20
mat 0
refs 4
0 0 0
1 1 0
2 1 1
3 0 1
kids 0
"""
WHEELS = """<params><section name="Front Axle"><attnum name="xpos" val="1.2"/></section>
<section name="Front Right Wheel"><attnum name="ypos" val="-0.7"/>
<attnum name="rim diameter" val="16"/><attnum name="tire width" val="200"/>
<attnum name="tire height-width ratio" val="0.5"/></section></params>"""


def test_cars_stand_on_their_wheels(tmp_path: Path) -> None:
    path = tmp_path / "cars" / "red" / "red.acc"
    path.parent.mkdir(parents=True)
    path.write_text(CAR)
    assert list(find_cars(tmp_path)) == [path]
    plain = read_car("torcs/red", path)
    assert plain.of == "vehicle" and len(plain.faces) == 2
    path.with_suffix(".xml").write_text(WHEELS)
    car = read_car("torcs/red", path)
    height, radius = car.extent(0)
    assert height == pytest.approx(1.1) and 2 < radius < 2.2
    wheels = car.poses[0][np.unique(car.faces[car.texture == 1])]
    assert wheels[:, 1].mean() == pytest.approx(-1.2, abs=0.05)  # in front
    assert wheels[:, 2].min() == pytest.approx(0, abs=1e-4)
    assert wheels[:, 2].max() == pytest.approx(2 * (8 * 0.0254 + 0.1), abs=0.01)
    assert np.abs(wheels[:, 0]).max() == pytest.approx(0.8, abs=1e-3)
    for damaged in ('<?xml version="1.0" encoding="moon"?><params/>', WHEELS.replace("1.2", "far")):
        path.with_suffix(".xml").write_text(damaged)
        assert len(read_car("torcs/red", path).faces) == 2  # without wheels
    path.write_text(CAR.replace("2 1 0.8", "2 1e39 0.8", 1))
    with pytest.raises(DamagedFileError, match=r"red\.acc is damaged"):
        read_car("torcs/red", path)


@pytest.mark.parametrize("wrong", ["uv", "pictures", "faces"])
def test_models_have_limits(wrong: str) -> None:
    uv = np.full((3, 2), 1e30 if wrong == "uv" else 0.5, np.float32)
    faces = np.zeros((0, 3) if wrong == "faces" else (1, 3), np.int32)
    pictures = [np.zeros((SIZE, SIZE, 4), np.uint8)] * (17 if wrong == "pictures" else 1)
    says = {"uv": "too large", "pictures": "17 pictures", "faces": "no surface"}
    with pytest.raises(ValueError, match=says[wrong]):
        build_model("a", "thing", np.ones((1, 3, 3), np.float32), faces, uv,
                    np.zeros(len(faces), np.int32), pictures)  # fmt: skip


@pytest.mark.slow
def test_close_views_fill_the_picture(worlds: Library) -> None:
    world = worlds.world("game/room")
    assert world is not None
    shown = 0
    for seed in range(2):
        rng = np.random.default_rng([seed, 1])
        found = close_view(world, worlds.models.cast(0), rng, bank_for(None), SMALL)
        if found is None:
            continue
        scene, geometry, focus = found
        shown += 1
        assert 0.2 < focus < 12 and 35 <= scene.view.fov <= 70
        assert len(geometry.faces) and np.isfinite(geometry.vertices).all()
    assert shown


@pytest.mark.slow
def test_pictures_with_models_are_the_same_for_a_seed(folder: Path, worlds: Library) -> None:
    near = [k for k in range(40) if np.random.default_rng([20261130, k]).random() < 0.25][:3]
    seen = [worlds.render(seed, size=SMALL) for seed in near]
    again = Library(folder).render(near[-1], size=SMALL)
    assert np.array_equal(seen[-1].image, again.image)
    assert np.array_equal(seen[-1].classes, again.classes)
    # An object, numbered from 2, covers more than a tenth of the picture.
    assert sum((s.objects > 1).mean() > 0.1 for s in seen) >= 2
    assert all(np.isfinite(s.depth[s.objects > 1]).all() for s in seen)
