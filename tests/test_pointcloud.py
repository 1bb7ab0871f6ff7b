"""Points in space: their geometry, their colours, their file."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

import dafast
from dafast.pointcloud import (
    Intrinsics,
    check_fov,
    check_intrinsics,
    intrinsics_from_fov,
    point_cloud,
    warn_of_camera,
)
from tests.tiny import tiny

METRIC = tiny(image_size=56, grid_size=4, max_depth=10.0)


def random_scene(rng, height=13, width=17):
    depth = rng.uniform(0.5, 80, (height, width)).astype(np.float32)
    return depth, rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def read_ply(path):
    """A reader of its own: the header's words, then packed records."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    kinds = {"float": "<f4", "uchar": "u1"}
    fields = [line.split()[1:] for line in lines if line.startswith("property")]
    count = int(next(line for line in lines if line.startswith("element vertex")).split()[2])
    vertices = np.frombuffer(body, [(name, kinds[kind]) for kind, name in fields])
    assert len(vertices) == count
    return vertices


def test_points_project_back_to_their_pixels(rng):
    depth, image = random_scene(rng)
    camera = Intrinsics(*rng.uniform(20, 60, 2), *rng.uniform(4, 9, 2))
    cloud = point_cloud(depth, image, camera)
    assert cloud.points.dtype == np.float32 and cloud.colors.dtype == np.uint8
    x, y, z = cloud.points.T.astype(np.float64)
    np.testing.assert_array_equal(cloud.points[:, 2], depth.ravel())
    rows, columns = np.mgrid[:13, :17] + 0.5
    np.testing.assert_allclose(camera.fx * x / z + camera.cx, columns.ravel(), rtol=1e-5)
    np.testing.assert_allclose(camera.fy * y / z + camera.cy, rows.ravel(), rtol=1e-5)
    np.testing.assert_array_equal(cloud.colors, image.reshape(-1, 3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_pixels_without_depth_give_no_point(bad, rng):
    depth, image = random_scene(rng)
    gone = rng.random(depth.shape) < 0.4
    depth[gone] = bad
    cloud = point_cloud(depth, image, (30, 30, 8, 6))
    np.testing.assert_array_equal(cloud.points[:, 2], depth[~gone])
    np.testing.assert_array_equal(cloud.colors, image[~gone])


def test_field_of_view_is_the_angle_between_the_borders(rng):
    fov = rng.uniform(10, 170)
    camera = intrinsics_from_fov(fov, 20, 30)
    angle = 2 * math.degrees(math.atan(15 / camera.fx))
    assert angle == pytest.approx(fov) and camera[1:] == (camera.fx, 15, 10)
    matrix = [[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]
    assert check_intrinsics(matrix) == check_intrinsics(camera) == camera


def test_the_synthetic_camera_is_this_one(rng):
    """Points lie where the renderer's own rays lead."""
    render = pytest.importorskip("dafast.synthetic.render")
    depth, image = random_scene(rng, 12, 16)
    camera = Intrinsics(*rng.uniform(10, 30, 2), *rng.uniform(5, 9, 2))
    origin = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    rays = render.SceneCamera(16, 12, *camera, *origin).rays()
    cloud = point_cloud(depth, image, camera)
    np.testing.assert_allclose(cloud.points, rays * depth.reshape(-1, 1), rtol=1e-4, atol=1e-5)


def test_file_holds_the_points(rng, tmp_path):
    depth, image = random_scene(rng)
    cloud = point_cloud(depth, image.astype(np.float32) / 255, (30, 30, 8, 6))
    (tmp_path / "a.ply").write_text("old")
    cloud.save(tmp_path / "a.ply")
    vertices = read_ply(tmp_path / "a.ply")
    for i, name in enumerate("xyz"):
        np.testing.assert_array_equal(vertices[name], cloud.points[:, i])
    for i, name in enumerate(("red", "green", "blue")):
        np.testing.assert_array_equal(vertices[name], image[..., i].ravel())
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


@pytest.mark.parametrize("bins", ["", "softplus"])
def test_from_a_photo(bins, rng, seed):
    model = dafast.DepthAnything(dataclasses.replace(METRIC, bin_centers=bins)).eval()
    photo = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    depth = model.infer_metric(photo)
    assert depth.shape == (40, 60) and depth.dtype == np.float32
    cloud = model.infer_metric(photo, fov=60)
    np.testing.assert_array_equal(cloud.depth, depth)
    assert cloud.points.shape == (2400, 3)
    np.testing.assert_array_equal(cloud.colors, photo.reshape(-1, 3))
    same = model.infer_metric(photo, intrinsics=cloud.intrinsics)
    np.testing.assert_array_equal(same.points, cloud.points)
    tensor = torch.from_numpy(photo).permute(2, 0, 1) / 255
    both = model.infer_metric([photo, tensor[:, :30]], fov=60)
    assert [len(c.points) for c in both] == [2400, 1800]
    np.testing.assert_allclose(both[0].depth, depth, rtol=1e-4)
    np.testing.assert_array_equal(both[1].colors, photo[:30].reshape(-1, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fov": 0}, "fov is the horizontal angle"),
        ({"fov": 5e-324}, "fov is the horizontal angle"),
        ({"fov": 180}, "fov is the horizontal angle"),
        ({"fov": float("nan")}, "fov is the horizontal angle"),
        ({"intrinsics": (1, 2, 3)}, "intrinsics are"),
        ({"intrinsics": (0, 2, 3, 4)}, "intrinsics are"),
        ({"intrinsics": (1, 2, 3, 4), "fov": 60}, "pass one of them"),
        ({"fov": 60, "return_tensors": True}, "leave out return_tensors"),
    ],
)
def test_cameras_that_cannot_be(options, message, seed):
    model = dafast.DepthAnything(METRIC).eval()
    with pytest.raises(ValueError, match=message):
        model.infer_metric(np.zeros((20, 20, 3), np.uint8), **options)


def test_depth_and_image_must_fit():
    with pytest.raises(ValueError, match="of one size"):
        point_cloud(np.ones((3, 4)), np.zeros((4, 3, 3), np.uint8), (1, 1, 1, 1))


GOOD = np.array([[30.0, 0, 8], [0, 31, 6], [0, 0, 1]])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (GOOD.T, "the matrix is transposed"),
        (2 * GOOD, r"last row of the matrix is not \(0, 0, 1\)"),
        ([[30, 31, 8], [30, 31, 8], [30, 31, 8]], "last row"),
        ([[30, 0, 8], [5, 31, 6], [0, 0, 1]], "below its diagonal"),
        ([[30, 4, 8], [0, 31, 6], [0, 0, 1]], "skew, which is not supported"),
        (np.where(GOOD == 8, np.nan, GOOD), "not finite"),
        (np.diag([-30.0, 30, 1]), "fx and fy above 0"),
        (np.eye(4), "intrinsics are"),
        ("30 30 8 6", "intrinsics are"),
        ({"fx": 1}, "intrinsics are"),
    ],
    ids=["transposed", "doubled", "triples", "below", "skew", "nan", "negative", "4x4", "text",
         "dict"],
)  # fmt: skip
def test_matrices_that_are_no_camera(matrix, message):
    assert check_intrinsics(GOOD) == (30, 31, 8, 6)
    assert check_intrinsics([[30, 1e-3, 8], [0, 31, 6], [0, 0, 1]]) == (30, 31, 8, 6)
    with pytest.raises(ValueError, match=message):
        check_intrinsics(matrix)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ((1.5, 1.5, 8, 6), "under a tenth of the picture.*millimetres"),
        ((30, 1.2, 8, 6), "under a tenth"),
        ((0.9, 0.9, 0.5, 0.5), "relative to the width"),
        ((30, 30, 40, 6), r"the centre \(40, 6\) is outside"),
        ((30, 30, 8, -1), "is outside"),
        ((600, 600, 8, 6), "field of view is 1.62 degrees.*radians"),
    ],
)
def test_unlikely_cameras_give_one_warning(camera, message, rng, notices):
    warn_of_camera.cache_clear()
    depth, image = random_scene(rng)  # 17 x 13
    point_cloud(depth, image, (30, 30, 8, 6))
    point_cloud(depth, image, intrinsics_from_fov(90, 13, 17))
    assert notices.messages == []
    for _ in range(3):  # the frames of a video
        point_cloud(depth, image, camera)
    assert len(notices.messages) == 1
    assert re.search(message, notices.messages[0]) and "17x13" in notices.messages[0]


def test_a_field_of_view_in_radians(seed, notices):
    warn_of_camera.cache_clear()
    model = dafast.DepthAnything(METRIC).eval()
    photos = [np.zeros((20, 30, 3), np.uint8)] * 2
    model.infer_metric(photos, fov=math.pi / 3)
    (message,) = [m for m in notices.messages if m.startswith("camera of")]
    assert "1.05 degrees; was it given in radians" in message


@pytest.mark.parametrize("fov", ["wide", None, [60], -1, 200, float("nan")])
def test_a_field_of_view_that_is_no_angle(fov):
    with pytest.raises(ValueError, match="fov is the horizontal angle in degrees"):
        intrinsics_from_fov(fov, 4, 5)


@pytest.mark.parametrize("name", ["c.xyz", "c.pcd", "c.las", "c", "ply", "c.ply.gz"])
def test_other_suffixes_are_refused(name, rng, tmp_path):
    cloud = point_cloud(*random_scene(rng), (30, 30, 8, 6))
    with pytest.raises(ValueError, match=rf"{name}: point clouds are written as \.ply, not as"):
        cloud.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    cloud.save(tmp_path / "c.PLY")
    assert len(read_ply(tmp_path / "c.PLY")) == 13 * 17


def test_a_field_of_view_in_text():
    with pytest.raises(ValueError, match=r"horizontal angle in degrees.*'60'"):
        check_fov("60")
