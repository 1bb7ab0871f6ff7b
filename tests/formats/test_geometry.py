"""A rendered plane and box come back as their own geometry."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import plyfile
import pytest
import trimesh

from dafast.camera import Intrinsics
from dafast.formats.facts import read_facts
from dafast.surface import mesh_of, normals_of
from tests.formats.scenes import CAMERA, SHAPE, metric, plane_and_box, rays

MILLIMETRE = 1e-3


def angles(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Angles between unit vectors in degrees."""
    return np.degrees(np.arccos(np.clip((found * expected).sum(axis=-1), -1, 1)))


def inside(surface: np.ndarray) -> np.ndarray:
    """Pixels with two neighbours of their own surface on one side, along rows and columns."""

    def along(values):
        padded = np.pad(values, ((0, 0), (2, 2)), constant_values=-1)
        width = values.shape[1]
        same = [padded[:, i : i + width] == values for i in range(5)]
        return (same[0] & same[1]) | (same[3] & same[4])

    return along(surface) & along(surface.T).T


def test_points_and_normals_in_a_ply(rng, tmp_path):
    scene = plane_and_box(rng)
    assert len(np.unique(scene.surface)) >= 2
    metric(scene.depth, rng).save(tmp_path / "a.ply")
    vertices = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"]
    points = np.stack([vertices[n] for n in ("x", "y", "z")], axis=1).astype(np.float64)
    planes = scene.planes[scene.surface].reshape(-1, 4)
    away = np.abs((points * planes[:, :3]).sum(axis=1) - planes[:, 3])
    assert away.max() < MILLIMETRE
    normals = np.stack([vertices[n] for n in ("nx", "ny", "nz")], axis=1)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    good = inside(scene.surface)
    assert good.mean() > 0.9
    assert angles(normals.reshape(*SHAPE, 3), scene.normals)[good].max() < 1


def test_the_surface_of_a_glb_has_no_sheets(rng, tmp_path):
    scene = plane_and_box(rng)
    metric(scene.depth, rng).save(tmp_path / "a.glb")
    (mesh,) = trimesh.load(tmp_path / "a.glb", process=False).geometry.values()
    corners = mesh.triangles * (1, -1, -1)
    # Every face lies on the plane or on the box, also in its middle.
    for points in (corners.reshape(-1, 3), corners.mean(axis=1)):
        away = np.abs(points @ scene.planes[:, :3].T - scene.planes[:, 3]).min(axis=1)
        # A triangle over the rim between two sides of the box cuts it off.
        assert (away < MILLIMETRE).mean() > 0.97
        assert away.max() < 0.05
    behind = scene.surface == 0
    edges = (behind[1:] != behind[:-1]).sum() + (behind[:, 1:] != behind[:, :-1]).sum()
    assert edges > 50
    sheets = mesh_of(scene.depth, np.zeros((*SHAPE, 3), np.uint8), CAMERA, edge_threshold=1e9)
    assert len(sheets.faces) - len(mesh.faces) >= edges
    assert len(sheets.faces) == 2 * (SHAPE[0] - 1) * (SHAPE[1] - 1)
    # Faces look at the camera.
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normals * corners[:, 0]).sum(axis=1) < 0).all()


def test_normals_do_not_depend_on_the_rows_that_are_asked_for(rng):
    depth = plane_and_box(rng).depth
    depth[rng.random(SHAPE) < 0.02] = np.nan
    whole = normals_of(depth, CAMERA)
    assert (whole[np.isnan(depth)] == 0).all()
    first = int(rng.integers(0, 60))
    part = normals_of(depth, CAMERA, first, first + 17)
    np.testing.assert_array_equal(part, whole[first : first + 17])


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (2, 2)])
def test_normals_of_tiny_maps(shape, rng):
    normals = normals_of(np.full(shape, 2.0, np.float32), Intrinsics(50, 50, 0.5, 0.5))
    assert normals.shape == (*shape, 3)
    np.testing.assert_allclose(normals, np.broadcast_to((0, 0, -1), normals.shape), atol=1e-6)


def test_a_large_map_is_sampled(rng):
    depth = (2 / (rays() @ (0.1, 0.2, 1.0))).astype(np.float32)
    mesh = mesh_of(depth, np.zeros((*SHAPE, 3), np.uint8), CAMERA, max_vertices=2000)
    assert 1000 < len(mesh.vertices) <= 2000
    away = mesh.vertices @ (0.1, 0.2, 1.0) - 2
    assert np.abs(away).max() < MILLIMETRE
    # The corners of the picture are among the samples.
    np.testing.assert_allclose(mesh.uv.min(0), 0.5 / np.array(SHAPE[::-1]), atol=1e-6)
    np.testing.assert_allclose(mesh.uv.max(0), 1 - 0.5 / np.array(SHAPE[::-1]), atol=1e-6)
    expected = np.array([0.1, 0.2, 1.0]) / -math.sqrt(1.05)
    assert angles(mesh.normals, expected).max() < 1


def test_unknown_depth_and_sky_have_no_surface(rng):
    scene = plane_and_box(rng)
    depth = scene.depth.copy()
    depth[:5] = np.nan
    sky = np.zeros(SHAPE, bool)
    sky[5:9] = True
    result = metric(depth, rng, sky=sky)
    assert len(result.point_cloud().points) == (SHAPE[0] - 9) * SHAPE[1]
    assert (result.normals()[:9] == 0).all() and (result.normals()[9:] != 0).any(axis=2).all()
    # v of the tenth row's pixels and below.
    assert result.mesh().uv[:, 1].min() > 9 / SHAPE[0]


def test_a_photo_of_nothing_but_sky(rng, tmp_path):
    result = metric(plane_and_box(rng).depth, rng, sky=np.ones(SHAPE, bool))
    result.save(tmp_path / "a.glb")
    assert not trimesh.load(tmp_path / "a.glb").geometry
    assert read_facts(tmp_path / "a.glb")["unit"] == "m"
    result.save(tmp_path / "a.ply")
    assert len(plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"]["x"]) == 0


def test_a_mesh_for_trimesh(rng):
    result = metric(plane_and_box(rng).depth, rng)
    mesh = result.mesh()
    found = mesh.to_trimesh()
    np.testing.assert_array_equal(found.vertices, mesh.vertices.astype(np.float64))
    np.testing.assert_array_equal(found.faces, mesh.faces)
    np.testing.assert_array_equal(np.asarray(found.visual.material.image), result.image)


def test_bad_arguments(rng):
    result = metric(plane_and_box(rng).depth, rng)
    with pytest.raises(ValueError, match="edge_threshold=0"):
        result.mesh(edge_threshold=0)
    with pytest.raises(ValueError, match="max_vertices=3"):
        result.mesh(max_vertices=3)
    without = dataclasses.replace(result, intrinsics=None, camera_source="none")
    for method in (without.mesh, without.normals, without.point_cloud):
        with pytest.raises(ValueError, match=r"a photo.jpg: 3D needs a camera.*intrinsics="):
            method()
