"""Readers on small files in the exact formats, written with the formats' own libraries."""

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from dafast.evaluation.protocols import get_protocol
from dafast.evaluation.readers import READERS
from dafast.evaluation.readers.kitti import garg_crop, parse_split
from dafast.evaluation.samples import DataMissingError


def _image(path, rng, height=12, width=16):
    """Writes a random photo and gives its pixels as they read back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 100, "format": "JPEG"} if path.suffix.lower() == ".jpg" else {}
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, **options)
    return np.asarray(Image.open(path))


def _png16(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


def _npy(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def _same(depth, expected):
    """Whether known depths agree and unknown ones are unknown to both."""
    assert depth.dtype == np.float32
    known = np.isfinite(expected) & (expected > 0)
    assert 0 < known.sum() < known.size
    np.testing.assert_array_equal(np.isfinite(depth) & (depth > 0), known)
    np.testing.assert_allclose(depth[known], expected[known], rtol=1e-6)


@pytest.mark.parametrize("name", READERS)
def test_a_wrong_folder_is_told_the_layout(name, tmp_path):
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(DataMissingError, match="expected") as error:
        READERS[name](tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(DataMissingError, match=r"does not exist; expected:|is not a file"):
        READERS[name](tmp_path / "nowhere")


DRIVE = "2011_09_26_drive_0002_sync"


@pytest.mark.parametrize("form", ["monodepth2", "bts"])
@pytest.mark.parametrize(("raw", "depth"), [("", "val"), ("raw", "depth/train")])
def test_kitti(form, raw, depth, tmp_path, rng, notices):
    truths, images = {}, {}
    for frame in (69, 7, 100):  # the last has no improved ground truth
        stem = f"2011_09_26/{DRIVE}/image_02/data/{frame:010d}.png"
        images[frame] = _image(tmp_path / raw / stem, rng, 20, 60)
        if frame < 100:
            stored = rng.integers(1, 65536, (20, 60)) * (rng.random((20, 60)) < 0.3)
            folder = tmp_path / depth / DRIVE / "proj_depth/groundtruth/image_02"
            _png16(folder / f"{frame:010d}.png", stored)
            truths[frame] = stored / 256
    if form == "monodepth2":
        lines = [f"2011_09_26/{DRIVE} {frame} l" for frame in (69, 7, 100)]
        (tmp_path / "test_files.txt").write_text("\n".join(lines) + "\n")
    else:
        lines = [
            f"2011_09_26/{DRIVE}/image_02/data/{frame:010d}.png {truth} 721.5377"
            for frame, truth in ((69, "whatever"), (7, "whatever"), (100, "None"))
        ]
        (tmp_path / "eigen_test_files.txt").write_text("\n".join(lines))
    samples = READERS["kitti"](tmp_path)
    assert len(samples) == 2 and "652" in notices.text
    for sample, frame in zip(samples, (69, 7), strict=True):
        assert sample.name == f"{DRIVE}_image_02_{frame:010d}"
        np.testing.assert_array_equal(sample.image, images[frame])
        _same(sample.depth, truths[frame])
        mask = get_protocol("paper").mask(sample)
        top, bottom, left, right = garg_crop(20, 60)
        inside = np.zeros_like(mask)
        inside[top:bottom, left:right] = True
        np.testing.assert_array_equal(mask, inside & (truths[frame] > 1e-3) & (truths[frame] < 80))
        everything = get_protocol("moge").mask(sample)
        np.testing.assert_array_equal(everything, truths[frame] > 1e-3)


def test_kitti_cut_to_the_benchmark(tmp_path, rng):
    stem = f"{DRIVE}/image_02/data/0000000069.png"
    pixels = _image(tmp_path / "2011_09_26" / stem, rng, 375, 1242)
    stored = rng.integers(0, 65536, (375, 1242))
    _png16(tmp_path / f"val/{DRIVE}/proj_depth/groundtruth/image_02/0000000069.png", stored)
    (tmp_path / "test_files.txt").write_text(f"2011_09_26/{DRIVE} 69 l\n")
    whole, cut = (READERS[name](tmp_path)[0] for name in ("kitti", "kitti_kb"))
    np.testing.assert_array_equal(cut.image, pixels[23:, 13:1229])
    np.testing.assert_array_equal(cut.depth, whole.depth[23:, 13:1229])
    assert cut.image.shape == (352, 1216, 3) and cut.crop == garg_crop(352, 1216)
    assert (whole.crop, cut.name) == (garg_crop(375, 1242), whole.name)
    _image(tmp_path / "2011_09_26" / stem, rng, 300, 1242)
    _png16(tmp_path / f"val/{DRIVE}/proj_depth/groundtruth/image_02/0000000069.png", stored[:300])
    with pytest.raises(ValueError, match="300 x 1242 pixels; 352 x 1216 are cut out"):
        READERS["kitti_kb"](tmp_path)[0]


def test_garg_crop_is_the_published_one():
    """Garg wrote [-218:-3, 44:1180] at 370 x 1224; the fractions, cut off, give nearly that."""
    assert garg_crop(370, 1224) == (151, 366, 43, 1180)
    assert garg_crop(375, 1242) == (153, 371, 44, 1197)


def test_kitti_says_what_is_wrong(tmp_path, rng):
    split = tmp_path / "test_files.txt"
    split.write_text(f"2011_09_26/{DRIVE} 69 l\n2011_09_26 x\n")
    with pytest.raises(ValueError, match="line 2: '2011_09_26 x' is neither"):
        parse_split(split)
    split.write_text(f"2011_09_26/{DRIVE} 69 r\n")
    with pytest.raises(DataMissingError, match=r"no ground truth of the frames in test_files\.txt"):
        READERS["kitti"](tmp_path)
    truth = tmp_path / "val" / DRIVE / "proj_depth/groundtruth/image_03/0000000069.png"
    _image(truth, rng)
    with pytest.raises(DataMissingError, match=r"no image 2011_09_26/.*image_03"):
        READERS["kitti"](tmp_path)
    _image(tmp_path / "2011_09_26" / DRIVE / "image_03/data/0000000069.jpg", rng)
    with pytest.raises(ValueError, match="16-bit depth map is expected; its mode is RGB"):
        READERS["kitti"](tmp_path)[0]
    _png16(truth, np.ones((5, 7)))
    with pytest.raises(ValueError, match=r"\(5, 7\) and the image \(12, 16\)"):
        READERS["kitti"](tmp_path)[0]


def test_nyuv2(tmp_path, rng, notices):
    h5py = pytest.importorskip("h5py")
    io = pytest.importorskip("scipy.io")
    images = rng.integers(0, 256, (3, 480, 640, 3), dtype=np.uint8)
    depths = rng.uniform(0.5, 12, (3, 480, 640)).astype(np.float32)
    raw = np.where(rng.random(depths.shape) < 0.8, depths, 0)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        # MATLAB's H x W x 3 x N and H x W x N, whose axes HDF5 shows in reverse.
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = depths.transpose(0, 2, 1)
        file["rawDepths"] = raw.transpose(0, 2, 1)
    splits = {"trainNdxs": np.array([[2]], np.uint16), "testNdxs": np.array([[1], [3]], np.uint16)}
    io.savemat(tmp_path / "splits.mat", splits)
    samples = READERS["nyuv2"](tmp_path)
    assert [s.name for s in samples] == ["0001", "0003"] and "654" in notices.text
    for sample, i in zip(samples, (0, 2), strict=True):
        np.testing.assert_array_equal(sample.image, images[i])
        _same(sample.depth, raw[i])
        mask = get_protocol("paper").mask(sample)
        expected = np.zeros((480, 640), bool)
        expected[45:471, 41:601] = ((raw[i] > 1e-3) & (raw[i] < 10))[45:471, 41:601]
        np.testing.assert_array_equal(mask, expected)

    io.savemat(tmp_path / "splits.mat", {"testNdxs": np.array([[4]])})
    with pytest.raises(ValueError, match="do not fit"):
        READERS["nyuv2"](tmp_path)
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(ValueError, match="is not the labeled set"):
        READERS["nyuv2"](tmp_path)


def test_list_of_depth_maps_in_csv(tmp_path, rng):
    image = _image(tmp_path / "photos" / "a.png", rng)
    stored = rng.integers(0, 9000, (12, 16)) * (rng.random((12, 16)) < 0.8)
    _png16(tmp_path / "a_depth.png", stored)
    mask = rng.random((12, 16)) < 0.7
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "a_mask.png")
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "depth", "mask", "unit", "max_depth", "scale"])
        writer.writeheader()
        row = {"image": "photos/a.png", "depth": "a_depth.png"}
        writer.writerow({**row, "mask": "a_mask.png", "unit": "mm", "max_depth": "7.5"})
        writer.writerow({**row, "scale": "0.25", "unit": "cm"})
    first, second = READERS["list"](tmp_path / "list.csv")
    np.testing.assert_array_equal(first.image, image)
    _same(first.depth, np.where(mask, stored / 1000, 0))
    assert first.max_depth == 7.5
    _same(second.depth, stored / 400)
    assert second.max_depth == math.inf
    valid = get_protocol("paper").mask(second)
    cap = get_protocol("paper").max_depth(second, valid)
    assert cap == pytest.approx(stored.max() / 400) and not second.sharp


def test_list_of_disparities_in_json(tmp_path, rng):
    _image(tmp_path / "a.jpg", rng)
    disparity = rng.uniform(-1, 9, (12, 16)).astype(np.float32)
    disparity[0, :3] = np.nan, np.inf, 0
    _npy(tmp_path / "d.npy", disparity[..., None])
    Image.fromarray(disparity).save(tmp_path / "d.tiff")
    stereo = {"disparity": "d.npy", "focal": 700, "baseline": 0.2, "offset": -0.5}
    rows = [{"image": "a.jpg", "disparity": "d.tiff", "sharp": 1}, {"image": "a.jpg", **stereo}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    plain, pixels = READERS["list"](tmp_path / "list.json")
    with np.errstate(all="ignore"):
        _same(plain.depth, np.where(np.isfinite(disparity), 1 / disparity, -1))
        expected = np.where(disparity > 0, 140 / (disparity - 0.5), -1)
        _same(pixels.depth, np.where(np.isfinite(disparity), expected, -1))
    assert plain.sharp and not pixels.sharp


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depht": "d.npy"}, "row 1: .*unknown: depht"),
        ({"disparity": "d.npy"}, "either depth or disparity"),
        ({"unit": "feet"}, "unit is one of m, cm, mm"),
        ({"scale": "big"}, "not a number"),
        ({"max_depth": -1}, "max_depth is -1; a positive"),
        ({"focal": 5}, "focal and baseline go together"),
        ({"mask": "m.npy"}, "row 1: no file .*m.npy"),
    ],
)
def test_list_names_what_is_wrong(change, message, tmp_path, rng):
    _image(tmp_path / "a.png", rng)
    _npy(tmp_path / "d.npy", np.ones((12, 16)))
    rows = [{"image": "a.png", "depth": "d.npy", **change}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        READERS["list"](tmp_path / "list.json")


def test_list_names_the_file_that_is_damaged(tmp_path, rng):
    _image(tmp_path / "a.png", rng)
    _png16(tmp_path / "d.png", rng.integers(1, 9000, (12, 16)))
    half = (tmp_path / "d.png").read_bytes()
    (tmp_path / "d.png").write_bytes(half[: len(half) // 2])
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a.png", "depth": "d.png"}]))
    with pytest.raises(ValueError, match=r"d\.png: cannot be read"):
        READERS["list"](tmp_path / "list.json")[0]
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a.png", "label": "d.png"}]))
    with pytest.raises(ValueError, match="unknown: label; a list with labels of classes is for"):
        READERS["list"](tmp_path / "list.json")


def test_list_that_is_none(tmp_path):
    for text in ("{", "[]", '{"a": 1}', "[1]"):
        (tmp_path / "list.json").write_text(text)
        with pytest.raises(ValueError, match="expected"):
            READERS["list"](tmp_path / "list.json")


def test_sintel(tmp_path, rng, notices):
    depth = rng.uniform(1, 900, (12, 16)).astype("<f4")
    depth[0] = np.inf
    image = _image(tmp_path / "training/final/alley_1/frame_0001.png", rng)
    path = tmp_path / "training/depth/alley_1/frame_0001.dpt"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:  # as the devkit's depth_write does
        np.array(202021.25, np.float32).tofile(file)
        np.array([16, 12], np.int32).tofile(file)
        depth.tofile(file)
    (sample,) = READERS["sintel"](tmp_path)
    assert sample.name == "alley_1/frame_0001" and sample.sharp and "1064" in notices.text
    np.testing.assert_array_equal(sample.image, image)
    _same(sample.depth, depth)

    for data, message in ((b"PIEGxxxxyyyy", r"is not a \.dpt"), (path.read_bytes()[:-4], "16x12")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            READERS["sintel"](tmp_path)[0]
    (tmp_path / "training/final/alley_1/frame_0001.png").unlink()
    with pytest.raises(DataMissingError, match=r"no training/final/alley_1/frame_0001\.png"):
        READERS["sintel"](tmp_path)


def test_eth3d(tmp_path, rng, notices):
    depth = rng.uniform(1, 30, (12, 16)).astype("<f4")
    depth[rng.random(depth.shape) < 0.4] = np.inf
    image = _image(tmp_path / "pipes/images/dslr_images/DSC_0634.JPG", rng)
    path = tmp_path / "pipes/ground_truth_depth/dslr_images/DSC_0634.JPG"
    path.parent.mkdir(parents=True)
    depth.tofile(path)
    (sample,) = READERS["eth3d"](tmp_path)
    assert sample.name == "pipes/DSC_0634" and "454" in notices.text
    np.testing.assert_array_equal(sample.image, image)
    _same(sample.depth, depth)
    depth[:-1].tofile(path)
    with pytest.raises(ValueError, match=r"holds 176 floats.*16x12"):
        READERS["eth3d"](tmp_path)[0]


@pytest.mark.parametrize("base", ["", "val"])
def test_diode(base, tmp_path, rng):
    expected = {}
    for part in ("indoors", "outdoor"):
        folder = tmp_path / base / part / "scene_00019" / "scan_00183"
        name = f"00019_00183_{part}_000_010"
        image = _image(folder / f"{name}.png", rng)
        depth = rng.uniform(0.6, 300, (12, 16, 1)).astype(np.float32)
        mask = (rng.random((12, 16)) < 0.7).astype(np.float64)
        _npy(folder / f"{name}_depth.npy", depth)
        _npy(folder / f"{name}_depth_mask.npy", mask)
        expected[name] = image, np.where(mask, depth[..., 0], np.nan)
    samples = READERS["diode"](tmp_path)
    assert [s.name for s in samples] == list(expected)
    for sample in samples:
        np.testing.assert_array_equal(sample.image, expected[sample.name][0])
        _same(sample.depth, expected[sample.name][1])
    assert [s.name for s in READERS["diode_outdoor"](tmp_path)] == [samples[1].name]
    assert [s.name for s in READERS["diode_indoors"](tmp_path)] == [samples[0].name]


def _pose(rotation, translation):
    """A pose as DGP's JSON has it: a unit quaternion (w, x, y, z) and a translation."""
    return {
        "rotation": dict(zip(("qw", "qx", "qy", "qz"), map(float, rotation), strict=True)),
        "translation": dict(zip("xyz", map(float, translation), strict=True)),
    }


def test_ddad(tmp_path, rng):
    transform = pytest.importorskip("scipy.spatial.transform")
    quaternions = rng.normal(size=(2, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    camera, lidar = (transform.Rotation.from_quat(q[[1, 2, 3, 0]]) for q in quaternions)
    origins = rng.normal(size=(2, 3))

    # One point on each of 30 pixels, given in the camera's frame, stored in the lidar's.
    fx, fy, cx, cy = 20.0, 22.0, 8.3, 5.7
    pixels = rng.choice(12 * 16, 30, replace=False)
    v, u = np.divmod(pixels, 16)
    z = rng.uniform(2, 60, 30)
    seen = np.stack([(u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, z], 1)
    outside = np.array([[0, 0, -5.0], [900, 0, 5.0]])
    world = camera.apply(np.concatenate([seen, outside])) + origins[0]
    points = lidar.inv().apply(world - origins[1])
    expected = np.zeros((12, 16))
    expected[v, u] = z

    scene = tmp_path / "000150"
    image = _image(scene / "rgb/CAMERA_01/1.png", rng)
    (scene / "point_cloud/LIDAR").mkdir(parents=True)
    columns = np.concatenate([points, np.ones((32, 1))], 1).astype(np.float32)
    np.savez_compressed(scene / "point_cloud/LIDAR/1.npz", data=columns)
    intrinsics = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "skew": 0.0}
    (scene / "calibration").mkdir()
    (scene / "calibration/c.json").write_text(
        json.dumps({"names": ["LIDAR", "CAMERA_01"], "intrinsics": [{}, intrinsics]})
    )
    poses = [_pose(q, t) for q, t in zip(quaternions, origins, strict=True)]
    camera_datum = {"image": {"filename": "rgb/CAMERA_01/1.png", "pose": poses[0]}}
    lidar_datum = {"point_cloud": {"filename": "point_cloud/LIDAR/1.npz", "pose": poses[1]}}
    data = [
        {"id": {"name": "CAMERA_01"}, "key": "k1", "datum": camera_datum},
        {"id": {"name": "LIDAR"}, "key": "k2", "datum": lidar_datum},
        {"id": {"name": "CAMERA_05"}, "key": "k3", "datum": camera_datum},
    ]
    samples = [{"datum_keys": ["k3", "k2", "k1"], "calibration_key": "c"}]
    (scene / "scene_abc.json").write_text(json.dumps({"data": data, "samples": samples}))
    splits = {
        "0": {"filenames": ["000000/scene_x.json"]},
        "1": {"filenames": ["000150/scene_abc.json"]},
    }
    (tmp_path / "ddad.json").write_text(json.dumps({"scene_splits": splits}))

    (sample,) = READERS["ddad"](tmp_path)
    assert sample.name == "000150/1"
    np.testing.assert_array_equal(sample.image, image)
    known = expected > 0
    np.testing.assert_array_equal(sample.depth > 0, known)
    np.testing.assert_allclose(sample.depth[known], expected[known], rtol=1e-5)


def test_vkitti2(tmp_path, rng):
    stored = rng.integers(1, 65535, (12, 16))
    stored[:3] = 65535  # the sky
    frames = tmp_path / "Scene01/clone/frames"
    image = _image(frames / "rgb/Camera_0/rgb_00007.jpg", rng)
    _png16(frames / "depth/Camera_0/depth_00007.png", stored)
    (sample,) = READERS["vkitti2"](tmp_path)
    assert sample.name == "Scene01/00007" and sample.sharp
    np.testing.assert_array_equal(sample.image, image)
    _same(sample.depth, np.where(stored < 65535, stored / 100, 0))


def test_hypersim(tmp_path, rng):
    h5py = pytest.importorskip("h5py")
    z = rng.uniform(1, 9, (768, 1024))
    rows, columns = np.mgrid[0:768, 0:1024]
    x, y = (columns - 511.5) / 886.81, (rows - 383.5) / 886.81
    distance = z * np.sqrt(x**2 + y**2 + 1)
    distance[:5] = np.nan
    images = tmp_path / "ai_001_010/images"
    image = _image(images / "scene_cam_00_final_preview/frame.0003.tonemap.jpg", rng, 768, 1024)
    folder = images / "scene_cam_00_geometry_hdf5"
    folder.mkdir(parents=True)
    with h5py.File(folder / "frame.0003.depth_meters.hdf5", "w") as file:
        file["dataset"] = distance.astype(np.float16)
    rows = [
        "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name",
        "ai_001_010,cam_00,3,True,,test",
        "ai_001_010,cam_00,4,True,,train",
        "ai_001_010,cam_00,5,False,outlier,test",
    ]
    (tmp_path / "metadata_images_split_scene_v1.csv").write_text("\n".join(rows))
    (sample,) = READERS["hypersim"](tmp_path)
    assert sample.name == "ai_001_010/cam_00/0003" and sample.sharp
    np.testing.assert_array_equal(sample.image, image)
    assert np.isnan(sample.depth[:5]).all()
    np.testing.assert_allclose(sample.depth[5:], z[5:], rtol=2**-10)  # stored in 16 bits


def test_ibims1(tmp_path, rng):
    io = pytest.importorskip("scipy.io")
    depth = rng.uniform(1, 20, (12, 16)).astype(np.float32)
    valid, opaque = rng.random((2, 12, 16)) < 0.8
    image = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    data = {
        "rgb": image,
        "depth": depth,
        "mask_invalid": valid.astype(np.uint8),
        "mask_transp": opaque.astype(np.uint8),
    }
    io.savemat(tmp_path / "corridor_01.mat", {"data": data})
    (sample,) = READERS["ibims1"](tmp_path)
    assert sample.name == "corridor_01"
    np.testing.assert_array_equal(sample.image, image)
    _same(sample.depth, np.where(valid & opaque, depth, 0))


def test_sunrgbd(tmp_path, rng):
    io = pytest.importorskip("scipy.io")
    millimetres = rng.integers(0, 8000, (12, 16)) * (rng.random((12, 16)) < 0.8)
    stored = (millimetres << 3 | millimetres >> 13) & 0xFFFF
    folder = tmp_path / "SUNRGBD/kv1/NYUdata/NYU0001"
    image = _image(folder / "image/NYU0001.jpg", rng)
    _png16(folder / "depth_bfx/NYU0001.png", stored)
    split = np.empty((1, 1), object)
    split[0, 0] = "/n/fs/sun3d/data/SUNRGBD/kv1/NYUdata/NYU0001"
    tools = tmp_path / "SUNRGBDtoolbox/traintestSUNRGBD"
    tools.mkdir(parents=True)
    io.savemat(tools / "allsplit.mat", {"alltest": split})
    (sample,) = READERS["sunrgbd"](tmp_path)
    assert sample.name == "kv1/NYUdata/NYU0001"
    np.testing.assert_array_equal(sample.image, image)
    _same(sample.depth, millimetres / 1000)
