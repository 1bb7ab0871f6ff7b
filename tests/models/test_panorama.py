"""Panoramas: a room rendered as six faces comes back, closed at its borders, as points and mesh."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dafast.images import ImageError
from dafast.models import DepthAnything
from dafast.models.panorama import _HALF, views
from dafast.panorama import PanoramaResult, directions_of
from tests.tiny import TINY, tiny

LOW, HIGH = np.array([-2.0, -1.2, -3.0]), np.array([2.0, 1.5, 3.5])
FACES = [  # right, down, forward
    np.array(axes, float)
    for axes in (
        [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
        [(0, 0, -1), (0, 1, 0), (1, 0, 0)],
        [(-1, 0, 0), (0, 1, 0), (0, 0, -1)],
        [(0, 0, 1), (0, 1, 0), (-1, 0, 0)],
        [(1, 0, 0), (0, 0, -1), (0, 1, 0)],
        [(1, 0, 0), (0, 0, 1), (0, -1, 0)],
    )
]


def room(directions):
    """Distance to the walls of a room, floor and ceiling."""
    safe = np.where(directions == 0, 1e-12, directions)
    return np.where(safe > 0, HIGH / safe, LOW / safe).min(-1)


def six_faces(height, side=256):
    """An equirectangular photo from six square pictures; its brightness is the inverse distance."""
    place = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(place, place)
    rays = np.stack([x, y, np.ones_like(x)], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    pictures = [1 / room(rays @ face) for face in FACES]
    directions = directions_of(range(height), height, 2 * height)
    photo = np.zeros((height, 2 * height), np.float32)
    seen = np.zeros(photo.shape, bool)
    for face, picture in zip(FACES, pictures, strict=True):
        u, v, z = np.moveaxis(directions @ face.T, -1, 0)
        here = (z >= np.abs(u)) & (z >= np.abs(v)) & ~seen
        column, row = (
            np.clip(((a[here] / z[here] + 1) / 2 * side - 0.5).round().astype(int), 0, side - 1)
            for a in (u, v)
        )
        photo[here] = picture[row, column]
        seen |= here
    assert seen.all()
    return np.repeat(photo[..., None], 3, 2)


class Seer(DepthAnything):
    """Reads the inverse distance that a view shows; every view has its own scale and shift."""

    def forward(self, x, *args, **kwargs):
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.config.mean, self.config.std))
        shown = (x * std + mean).mean(1).clamp(min=1e-3)
        height, width = shown.shape[-2:]
        across = ((torch.arange(width) + 0.5) / width * 2 - 1) * _HALF
        down = ((torch.arange(height) + 0.5) / height * 2 - 1) * _HALF
        inverse = shown * (1 + across**2 + down[:, None] ** 2).sqrt()
        if self.config.quantity == "disparity":
            return inverse * (0.5 + torch.rand(1)) + 0.2 * torch.rand(1)
        return (0.8 + 0.4 * torch.rand(1)) / inverse


@pytest.fixture(scope="module")
def photo():
    return six_faces(128)


@pytest.fixture(scope="module")
def truth():
    return room(directions_of(range(128), 128, 256))


def seer(**changes):
    return Seer(tiny(image_size=112, **changes)).eval()


def test_views_see_everything_and_overlap():
    directions = directions_of(range(90), 90, 180).reshape(-1, 3)
    rotations = views()
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.eye(3)[None].repeat(12, 0), atol=1e-12
    )
    assert np.allclose(np.linalg.det(rotations), 1)
    camera = np.einsum("vij,nj->vni", rotations, directions)
    ahead = camera[..., 2] > 0.1
    z = np.where(ahead, camera[..., 2], 1)
    inside = ahead & (np.abs(camera[..., :2] / z[..., None]) < _HALF).all(-1)
    assert inside.any(0).all() and (inside.sum(0) >= 2).mean() > 0.7


def test_the_room_comes_back_in_depth(photo, truth, fixed_seed):
    result = seer(kind="depth", output="exp").predict(photo)
    assert not isinstance(result, PanoramaResult)
    result = seer(kind="depth", output="exp").predict(photo, panorama=True)
    assert isinstance(result, PanoramaResult) and result.kind == "depth"
    scale = np.median(truth / result.values)
    error = np.abs(result.values * scale / truth - 1)
    assert error.mean() < 0.01 and np.quantile(error, 0.99) < 0.05


def test_metres_keep_their_mean(photo, truth, fixed_seed):
    result = seer(kind="metric", output="exp").predict(photo, panorama=True)
    assert result.unit == "m"
    assert np.median(result.values / truth) == pytest.approx(
        1, abs=0.17
    )  # of 12 scales in 0.8..1.2: five deviations of their mean


def test_the_room_comes_back_in_disparity(photo, truth, fixed_seed):
    """Each view has an unknown scale and shift; the overlaps determine them up to one scale."""
    result = seer().predict(photo, panorama=True)
    assert result.near_is_large and result.unit == ""
    inverse = 1 / truth
    scale = np.median(inverse / result.values)
    error = np.abs(result.values * scale / inverse - 1)
    assert error.mean() < 0.08, error.mean()  # 0.02 with a deviation of 0.005


def test_the_borders_continue_each_other(photo, fixed_seed):
    for changes in ({}, dict(kind="depth", output="exp")):
        values = seer(**changes).predict(photo, panorama=True).values
        across = np.abs(values[:, 0] - values[:, -1])
        steps = np.abs(np.diff(values, axis=1))
        assert (across <= np.maximum(steps.max(1), 1e-3)).all()
        assert across.mean() <= 2 * steps.mean() + 1e-3


def walls_of(points):
    """Distance of points to the nearest wall."""
    return np.minimum(np.abs(points - LOW), np.abs(points - HIGH)).min(1)


def exact(photo, truth):
    values = truth.astype(np.float32)
    return PanoramaResult(values, kind="depth", unit="m", image=photo.astype(np.float32) / 2)


def test_points_lie_on_the_walls(photo, truth, tmp_path):
    plyfile = pytest.importorskip("plyfile")
    exact(photo, truth).save(tmp_path / "x.ply")
    found = plyfile.PlyData.read(tmp_path / "x.ply")["vertex"]
    points = np.stack([found[name] for name in "xyz"], 1)
    assert len(points) == truth.size and walls_of(points).max() < 1e-5
    middle = points[64 * 256 + 128]
    assert middle[2] == pytest.approx(3.5, abs=0.01)  # forward, as in other photos
    normals = np.stack([found[name] for name in ("nx", "ny", "nz")], 1)
    assert (np.einsum("ni,ni->n", normals, points) < 0).mean() > 0.999  # towards the camera
    assert (np.abs(normals).max(1) > np.cos(np.radians(1))).mean() > 0.95


def test_the_mesh_is_closed_at_the_borders(photo, truth, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    result = exact(photo, truth)
    mesh = result.mesh(edge_threshold=0.5)
    assert mesh.vertices.shape == (128 * 257, 3) and len(mesh.faces) == 2 * 127 * 256
    assert walls_of(mesh.vertices).max() < 1e-5
    assert mesh.uv.min() > 0 and mesh.uv.max() <= 1
    result.save(tmp_path / "x.glb", edge_threshold=0.5)
    scene = trimesh.load(tmp_path / "x.glb")
    (loaded,) = scene.geometry.values()
    assert len(loaded.faces) == len(mesh.faces)
    # Seen from inside: the volume within is that of the room, the faces look inward.
    low, high = loaded.vertices.min(0), loaded.vertices.max(0)
    np.testing.assert_allclose(high - low, (HIGH - LOW), atol=0.02)
    assert (np.einsum("ni,ni->n", loaded.face_normals, loaded.triangles_center) < 0).mean() > 0.99


def test_facts_say_the_projection(photo, truth):
    result = exact(photo, truth)
    assert repr(result).startswith("DepthResult(depth 1.2") and len(repr(result)) < 100
    assert result.facts()["projection"] == "equirectangular"
    assert result.to_disparity().facts()["projection"] == "equirectangular"


def test_known_points_give_metres(photo, truth, fixed_seed):
    points = [[row, column, truth[row, column]] for row in (40, 64, 90) for column in (20, 99, 200)]
    result = seer(kind="depth", output="exp").predict(photo, panorama=True, align_to=points)
    assert result.unit == "m"
    assert np.abs(result.values / truth - 1).mean() < 0.02


@pytest.mark.slow
def test_8_bit_photos_and_lists(photo, rng):
    small = rng.integers(0, 256, (32, 64, 3), np.uint8)
    results = DepthAnything(TINY).eval().predict([small, small], panorama=True)
    np.testing.assert_array_equal(results[0].values, results[1].values)
    assert results[0].image.dtype == np.uint8 and np.isfinite(results[0].values).all()


def test_other_photos_are_refused(rng):
    model = DepthAnything(TINY).eval()
    with pytest.raises(ImageError, match="twice as wide as high"):
        model.predict(np.zeros((64, 90, 3), np.uint8), panorama=True)
    with pytest.raises(ValueError, match="leave them out"):
        model.predict(np.zeros((64, 128, 3), np.uint8), panorama=True, fov=90)
