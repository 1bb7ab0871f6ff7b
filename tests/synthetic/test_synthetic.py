"""Synthetic scenes: exact depth, determinism, every kind."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")

from dafast.synthetic import CLASSES, HELD_OUT_SEED, KINDS, plane_fit, render_scene
from dafast.synthetic import meshes as ms
from dafast.synthetic.render import Tracer, camera_from, trace
from dafast.synthetic.scene import Scene, View, of_class
from dafast.synthetic.textures import SKIMAGE_PHOTOS, TextureBank, bank_for, list_photos

SMALL = (64, 48)


def depth_of(
    meshes: list[ms.TriangleMesh], view: View, size: tuple[int, int]
) -> tuple[np.ndarray, object]:
    scene = Scene(np.random.default_rng(0), bank_for(None))
    for mesh in meshes:
        scene.add(mesh, 0)
    camera = camera_from(view, size)
    return trace(Tracer(scene.geometry()), camera).depth.reshape(size[::-1]), camera


def test_plane_depth_is_z_depth_not_ray_length() -> None:
    """A wall straight ahead has the same depth everywhere, at the corners too."""
    view = View(np.zeros(3, np.float32), np.array([0, 1, 0], np.float32), 90.0)
    depth, _ = depth_of([ms.quad(100, 100).move(0, 7, 0)], view, (96, 64))
    np.testing.assert_allclose(depth, 7.0, rtol=1e-5)


def test_ground_plane_depth_matches_the_closed_form() -> None:
    """A rolled camera pitched 30 degrees down, 2 m over the floor: depth = h / (down . ray)."""
    pitch = np.radians(30)
    target = np.array([0, np.cos(pitch), 2 - np.sin(pitch)], np.float32)
    view = View(np.array([0, 0, 2], np.float32), target, 70.0, roll=12.0)
    depth, camera = depth_of([ms.floor(2000)], view, (80, 60))
    x = (np.arange(80) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(60) + 0.5 - camera.cy) / camera.fy
    a = np.radians(12.0)
    # in camera axes the world's down is: rolled (0, cos p) and forward sin p
    down = np.array([np.sin(a) * np.cos(pitch), np.cos(a) * np.cos(pitch), np.sin(pitch)])
    rate_a = down[0] * x[None] + down[1] * y[:, None] + down[2]
    rate_b = -down[0] * x[None] + down[1] * y[:, None] + down[2]
    errors = []
    for rate in (rate_a, rate_b):  # the sense of the roll is a convention, not a matter of depth
        seen = rate > 0.01
        errors.append(np.abs(depth[seen] * rate[seen] / 2 - 1).max())
    assert min(errors) < 1e-4
    assert camera.fx == pytest.approx(40 / np.tan(np.radians(35)))


def test_sphere_depth_matches_the_closed_form() -> None:
    """A finely divided sphere on the optical axis, against the quadratic equation."""
    view = View(np.zeros(3, np.float32), np.array([0, 1, 0], np.float32), 50.0)
    depth, camera = depth_of([ms.sphere(1.0, segments=400).move(0, 4, 0)], view, (81, 81))
    x = (np.arange(81) + 0.5 - camera.cx) / camera.fx
    rr = 1 + x[None] ** 2 + x[:, None] ** 2  # squared length of the rays
    inside = 16 - rr * 15  # discriminant of |t d|^2 - 8 t + 15 = 0
    exact = (4 - np.sqrt(np.maximum(inside, 0))) / rr
    sure = inside > 0.3
    np.testing.assert_allclose(depth[sure], exact[sure], rtol=3e-4)
    assert np.isinf(depth[inside < -0.3]).all()


@pytest.mark.slow
def test_sky_has_infinite_depth_and_disparity_zero() -> None:
    sample = next(s for s in (render_scene(k, size=SMALL, kind="street") for k in range(20))
                  if np.isinf(s.depth).any())  # fmt: skip
    sky = np.isinf(sample.depth)
    assert (sample.disparity[sky] == 0).all()
    assert (sample.disparity[~sky] > 0).all()
    assert (sample.objects[sky] == 0).all()
    assert (sample.objects[~sky] > 0).all()
    assert ((sample.classes == CLASSES.index("sky")) == sky).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_renders(kind: str) -> None:
    s = render_scene(1, size=SMALL, kind=kind)
    assert s.kind == kind
    assert s.seed == 1
    assert s.image.shape == (48, 64, 3)
    assert s.image.dtype == np.uint8
    assert s.depth.shape == s.objects.shape == (48, 64)
    assert s.depth.dtype == np.float32
    assert s.objects.dtype == np.int16
    assert s.classes.shape == (48, 64)
    assert s.classes.dtype == np.uint8
    assert s.classes.max() < len(CLASSES)
    assert not np.isnan(s.depth).any()
    assert (s.depth > 0).all()
    assert np.isfinite(s.disparity).all()
    assert s.image.std() > 3


@pytest.mark.slow
def test_sizes_and_kinds_vary_by_seed() -> None:
    samples = [render_scene(s) for s in range(12)]
    assert len({s.depth.shape for s in samples}) > 1
    assert len({s.kind for s in samples}) > 3
    assert len({s.image.tobytes() for s in samples}) == 12
    assert np.median([plane_fit(s.disparity) for s in samples]) < 0.9


def test_the_innermost_class_wins() -> None:
    """A shelf is furniture and what stands in it is not; unnamed parts are things."""
    scene = Scene(np.random.default_rng(0), bank_for(None))
    box = ms.box(1, 1, 1)

    @of_class("furniture")
    def shelf(scene: Scene) -> None:
        scene.add(box, 0)
        with scene.of_class("plant"):
            scene.add(box, 0)
        scene.add(box, 0, of="person")
        scene.add(box, 0)

    scene.add(box, 0)
    shelf(scene)
    scene.add(box, 0)
    per_box = scene.geometry().classes.reshape(6, -1)
    assert (per_box == per_box[:, :1]).all()
    names = [CLASSES[c] for c in per_box[:, 0]]
    assert names == ["thing", "furniture", "plant", "person", "furniture", "thing"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("room", {"wall", "furniture"}),
        ("street", {"ground", "building", "sky"}),
        ("forest", {"plant", "ground"}),
        ("people", {"person", "ground"}),
        ("heads", {"person"}),
        ("animals", {"thing", "ground"}),
        ("macro", {"thing", "plant"}),
        ("stream", {"ground", "thing"}),
    ],
)
@pytest.mark.slow
def test_scenes_show_the_classes_that_they_are_of(kind: str, expected: set[str]) -> None:
    """Over a few scenes of a kind, not in each: a camera may look past anything."""
    seen = [np.unique(render_scene(s, size=SMALL, kind=kind).classes) for s in range(5)]
    assert expected <= {CLASSES[c] for c in np.concatenate(seen)}


DIGEST = """
import hashlib
from dafast.synthetic import render_scene
for seed, kind in {scenes}:
    s = render_scene(seed, size=(64, 48), kind=kind)
    data = b"".join(a.tobytes() for a in (s.image, s.depth, s.objects, s.classes))
    print(seed, hashlib.sha256(data).hexdigest())
"""


@pytest.mark.slow
def test_same_seed_same_bytes_in_another_process_and_order() -> None:
    scenes = [(5, None), (2**31 + 3, None), (11, "macro"), (12, "heads")]
    here = {}
    for seed, kind in scenes:
        s = render_scene(seed, size=SMALL, kind=kind)
        data = b"".join(a.tobytes() for a in (s.image, s.depth, s.objects, s.classes))
        here[str(seed)] = hashlib.sha256(data).hexdigest()
    code = DIGEST.format(scenes=scenes[::-1])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    there = dict(line.split() for line in out.stdout.splitlines())
    assert there == here


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="unknown kind 'moon'"):
        render_scene(0, kind="moon")
    with pytest.raises(ValueError, match="negative"):
        render_scene(-1)
    with pytest.raises(ValueError, match="at least 8"):
        render_scene(0, size=(4, 100))
    assert HELD_OUT_SEED == 2**31


@pytest.mark.slow
def test_texture_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        render_scene(0, size=SMALL, textures=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no pictures"):
        render_scene(0, size=SMALL, textures=tmp_path)
    (tmp_path / "deep").mkdir()
    rng = np.random.default_rng(0)
    for name in ("b.png", "deep/a.jpg", "motorcycle_left.png"):
        Image.fromarray(rng.integers(0, 255, (40, 90, 3), np.uint8)).save(tmp_path / name)
    assert [p.name for p in list_photos(tmp_path)] == ["b.png", "a.jpg"]
    assert render_scene(3, size=SMALL, textures=tmp_path).image.shape == (48, 64, 3)
    bank = TextureBank(tmp_path)
    for _ in range(60):
        bank.pick(rng, "photo")
    (tmp_path / "deep/a.jpg").write_bytes(b"not a picture")
    broken = TextureBank(tmp_path)
    with pytest.raises(OSError, match=r"a\.jpg cannot be read"):
        broken._make(broken.by_name["photo"][-1])


def test_stereo_test_images_are_never_textures() -> None:
    assert not any("motorcycle" in name for name in SKIMAGE_PHOTOS)


def test_plane_fit() -> None:
    y, x = np.mgrid[0:30, 0:40]
    assert plane_fit((0.1 * x - 0.3 * y + 2).astype(np.float32)) == pytest.approx(1.0, abs=1e-6)
    assert plane_fit(np.ones((8, 8), np.float32)) == 1.0
    assert plane_fit(((x // 4 + y // 4) % 2).astype(np.float32)) < 0.1
