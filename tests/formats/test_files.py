"""Files of results, read by other libraries than those that wrote them."""

from __future__ import annotations

import ast
import json
import math
import shutil
import struct
import subprocess
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import plyfile
import pytest
import tifffile
import trimesh
from PIL import Image

from dafast.camera import choose_camera
from dafast.formats.facts import read_facts
from dafast.formats.pfm import read_pfm
from dafast.known_points import align_result
from dafast.result import SUFFIXES, DepthResult
from tests.formats.scenes import CAMERA, SHAPE, metric, plane_and_box, relative


def read_npy(path: Path) -> np.ndarray:
    """NPY by its specification, without numpy's reader."""
    data = path.read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\0"
    (length,) = struct.unpack("<H", data[8:10])
    header = ast.literal_eval(data[10 : 10 + length].decode())
    assert header["descr"] == "<f4" and not header["fortran_order"]
    return np.array(struct.unpack(f"<{math.prod(header['shape'])}f", data[10 + length :])).reshape(
        header["shape"]
    )


def is_of(facts: dict, result) -> None:
    """Facts say the kind, the unit, the range and the camera."""
    low, high = float(result.values.min()), float(result.values.max())
    assert (facts["kind"], facts["unit"], facts["min"], facts["max"]) == (
        *(result.kind, result.unit),
        *(low, high),
    )
    assert facts["intrinsics"] == list(CAMERA)
    assert facts["camera_source"] == result.camera_source


@pytest.fixture(params=["metric", "relative"])
def result(request, rng):
    if request.param == "metric":
        return metric(plane_and_box(rng).depth, rng)
    return relative(rng)


def test_exr(result, tmp_path):
    result.save(tmp_path / "a.exr")
    with OpenEXR.File(str(tmp_path / "a.exr")) as file:
        header = dict(file.header())
        np.testing.assert_array_equal(file.channels()["Z"].pixels, result.values)
        assert set(file.channels()) == {"Z"}
    assert (header["kind"], header["unit"]) == (result.kind, result.unit)
    assert header["minimum"] == result.values.min() and header["maximum"] == result.values.max()
    fx, fy, cx, cy = CAMERA
    matrix = np.float32([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    np.testing.assert_array_equal(header["intrinsics"], matrix)
    is_of(json.loads(header["dafast"]), result)


@pytest.mark.parametrize("shape", [(1, 1), (16, 3), (17, 1), (1, 200), (33, 7)])
def test_exr_of_all_sizes(shape, rng, tmp_path):
    values = rng.random(shape, np.float32)
    if shape[0] == 17:
        values[3] = np.nan
    DepthResult(values).save(tmp_path / "a.exr")
    with OpenEXR.File(str(tmp_path / "a.exr")) as file:
        np.testing.assert_array_equal(file.channels()["Z"].pixels, values)


def test_tiff(result, tmp_path):
    result.save(tmp_path / "a.tiff")
    with tifffile.TiffFile(tmp_path / "a.tiff") as file:
        np.testing.assert_array_equal(file.asarray(), result.values)
        tags = file.pages[0].tags
    is_of(json.loads(tags["ImageDescription"].value), result)


def test_pfm_and_npy(result, tmp_path):
    for name in ("a.pfm", "a.npy"):
        result.save(tmp_path / name)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.pfm"), -1), result.values)
    np.testing.assert_array_equal(read_pfm(tmp_path / "a.pfm"), result.values)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), result.values)


def test_npz_has_everything(result, tmp_path):
    result.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file[result.kind], result.values)
        for name in ("kind", "unit", "camera_source", "name", "model", "near_is_large"):
            assert file[name] == getattr(result, name)
        assert (file["intrinsics"][[0, 1, 0, 1], [0, 1, 2, 2]] == CAMERA).all()
        assert ("image" in file) == (result.image is not None)
        if result.image is not None:
            np.testing.assert_array_equal(file["image"], result.image)
        is_of(json.loads(str(file["dafast"])), result)


def test_npz_has_the_alignment(rng, tmp_path):
    rows, columns = rng.permuted(np.arange(20)), rng.permuted(np.arange(20))
    plain = relative(rng)
    metres = 1 / (plain.values[rows, columns] / 100 + 0.1)
    result = align_result(plain, np.column_stack([rows, columns, metres]))
    result.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        for name in ("method", "quantity", "scale", "shift", "points", "residuals", "inliers"):
            found = getattr(result.alignment, name)
            np.testing.assert_array_equal(file[f"alignment_{name}"], found)
        assert tuple(file["alignment_notes"]) == result.alignment.notes


def test_png_of_metres(rng, tmp_path):
    result = metric(plane_and_box(rng).depth, rng)
    values = result.values
    values[0, :4] = (70, np.nan, -1, np.inf)
    facts = result.save(tmp_path / "a.png")
    pixels = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint16 and (pixels[0, :4] == 0).all()
    assert facts["out_of_range"] == 4 and facts["unit"] == "m" and facts["depth_scale"] == 1000
    rest = np.ones(SHAPE, bool)
    rest[0, :4] = False
    np.testing.assert_allclose(pixels[rest] / 1000, values[rest], rtol=0, atol=0.5001e-3)
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.text["dafast"])["out_of_range"] == 4
    facts = result.save(tmp_path / "b.png", depth_scale=500)
    assert facts["out_of_range"] == 3  # 70 m fit
    pixels = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(pixels[rest] / 500, values[rest], rtol=0, atol=1.001e-3)


def test_png_of_disparity(rng, tmp_path):
    result = relative(rng)
    facts = result.save(tmp_path / "a.png")
    pixels = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED).astype(np.float64)
    span = facts["disparity_max"] - facts["disparity_min"]
    restored = pixels / 65535 * span + facts["disparity_min"]
    np.testing.assert_allclose(restored, result.values, rtol=0, atol=0.51 * span / 65535)
    result.save(tmp_path / "b.png", value_range=(0, 2 * facts["disparity_max"]))
    pixels = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    assert pixels.max() in (32767, 32768)


def test_ply(result, tmp_path):
    result.save(tmp_path / "a.ply")
    cloud = result.point_cloud()
    vertices = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"]
    for names, values in (
        (("x", "y", "z"), cloud.points),
        (("nx", "ny", "nz"), cloud.normals),
        (("red", "green", "blue"), cloud.colors),
    ):
        np.testing.assert_array_equal(np.stack([vertices[n] for n in names], axis=1), values)
    comments = plyfile.PlyData.read(str(tmp_path / "a.ply")).comments
    assert ("metres" in comments[0]) == (result.unit == "m")
    is_of(read_facts(tmp_path / "a.ply"), result)
    cloud.save(tmp_path / "b.ply")
    assert len(plyfile.PlyData.read(str(tmp_path / "b.ply"))["vertex"]["nx"]) == len(cloud.points)


def test_glb(result, tmp_path):
    result.save(tmp_path / "a.glb")
    mesh = result.mesh()
    (found,) = trimesh.load(tmp_path / "a.glb", process=False).geometry.values()
    # glTF has y up and z backward.
    np.testing.assert_array_equal(found.vertices * (1, -1, -1), mesh.vertices)
    np.testing.assert_array_equal(found.faces, mesh.faces)
    # trimesh counts v from the bottom.
    np.testing.assert_allclose(found.visual.uv * (1, -1) + (0, 1), mesh.uv, atol=1e-6)
    assert found.visual.material.baseColorTexture.size == SHAPE[::-1]
    is_of(read_facts(tmp_path / "a.glb"), result)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node and gltf-validator of npm")
def test_glb_by_the_validator(rng, tmp_path):
    script = (
        "require('gltf-validator').validateBytes(new Uint8Array(require('fs').readFileSync("
        "process.argv[1]))).then(r => console.log(JSON.stringify(r.issues)))"
    )
    metric(plane_and_box(rng).depth, rng).save(tmp_path / "a.glb")
    done = subprocess.run(
        ["node", "-e", script, str(tmp_path / "a.glb")], capture_output=True, text=True
    )
    if "Cannot find module" in done.stderr:
        pytest.skip("gltf-validator is not installed (npm install gltf-validator)")
    issues = json.loads(done.stdout)
    assert issues["numErrors"] == issues["numWarnings"] == 0, issues


@pytest.mark.parametrize("suffix", [".exr", ".npz", ".tiff", ".ply", ".glb"])
def test_a_file_that_is_cut_off_has_no_facts(suffix, rng, tmp_path):
    path = tmp_path / f"a{suffix}"
    metric(plane_and_box(rng).depth, rng).save(path)
    assert read_facts(path)["unit"] == "m"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - int(rng.integers(1, 200))])
    assert read_facts(path) is None
    path.write_bytes(rng.bytes(500))
    assert read_facts(path) is None


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.mp4", "png"])
def test_other_suffixes_are_refused(name, rng, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: results are saved as .png, .exr"):
        relative(rng).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 2), (5, 100)])
def test_small_and_long_maps_in_every_format(shape, rng, tmp_path):
    camera, _ = choose_camera(*shape)
    depth = rng.uniform(1, 1.01, shape).astype(np.float32)
    result = metric(depth, rng, intrinsics=camera, camera_source="assumed")
    for suffix in SUFFIXES:
        result.save(tmp_path / f"a{suffix}")
    (found,) = trimesh.load(tmp_path / "a.glb", process=False).geometry.values()
    assert len(found.vertices) == math.prod(shape)
    assert len(plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"]["x"]) == math.prod(shape)
    assert cv2.imread(str(tmp_path / "a.png"), -1).shape == shape
