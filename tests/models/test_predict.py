"""`DepthAnything.predict`: inputs, meaning, cameras."""

from __future__ import annotations

import http.server
import io
import math
import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import dafast
from dafast.camera import ASSUMED_35MM, Intrinsics, choose_camera, intrinsics_from_35mm
from dafast.images import ImageError
from dafast.result import DepthResult
from tests.tiny import TINY, tiny

METRIC = tiny(max_depth=10.0)
DA3 = dict(output="exp", sky_head=True, fit="upper_bound")
BY_FOCAL = tiny(**DA3, kind="metric", focal_length=300.0)
FOCAL, ORIENTATION = 0xA405, 0x0112
EXIF_IFD = 0x8769


def build(config) -> dafast.DepthAnything:
    model = dafast.DepthAnything(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
        for name, parameter in model.named_parameters():
            if name.endswith("output_conv2.2.bias"):
                parameter.fill_(1.0)
    return model


def photo(path, rng, size=(40, 30), focal=None, orientation=None):
    """Writes a JPEG of (width, height) with EXIF data."""
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    exif = Image.Exif()
    if focal is not None:
        exif.get_ifd(EXIF_IFD)[FOCAL] = focal
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.save(path, exif=exif)
    return path


def test_the_map_is_that_of_infer(rng, tmp_path):
    path = photo(tmp_path / "a.jpg", rng)
    model = build(TINY)
    options = dict(size=42, flip=True)
    result = model.predict(path, **options)
    np.testing.assert_array_equal(result.values, model.infer(path, **options))
    assert result.numpy() is result.values
    assert (result.kind, result.unit, result.near_is_large) == ("disparity", "", True)
    assert (result.name, result.model, result.sky) == (str(path), "tiny", None)
    np.testing.assert_array_equal(result.image, dafast.images.load_image(path))
    assert model.predict(path, keep_image=False).image is None
    model = build(METRIC)
    result = model.predict(path)
    np.testing.assert_array_equal(result.values, model.infer_metric(path))
    assert (result.kind, result.unit, result.near_is_large) == ("depth", "m", False)


def test_depth_anything_3(rng, tmp_path):
    path = photo(tmp_path / "a.jpg", rng)
    model = build(tiny(**DA3, kind="depth"))
    result = model.predict(path)
    np.testing.assert_array_equal(result.values, model.infer(path))
    np.testing.assert_array_equal(result.sky, model.infer_sky(path))
    assert (result.kind, result.unit) == ("depth", "") and result.sky.dtype == bool
    model = build(BY_FOCAL)
    with pytest.raises(ValueError, match=r"a.jpg.*needs the camera's focal length"):
        model.predict(path)
    with_focal = photo(tmp_path / "b.jpg", rng, focal=35)
    for source in (with_focal, with_focal.read_bytes(), Image.open(with_focal)):
        result = model.predict(source)
        assert result.camera_source == "exif"
        np.testing.assert_array_equal(result.values, model.infer_metric(with_focal))
    for camera in (dict(fov=50), dict(intrinsics=(40, 44, 20, 15))):
        result = model.predict(path, **camera)
        expected = model.infer_metric(path, **camera)
        np.testing.assert_array_equal(result.values, expected.depth)
        assert result.intrinsics == expected.intrinsics


@pytest.fixture
def server(rng, tmp_path, monkeypatch):
    """Serves the file a.png; gives its URL."""
    monkeypatch.setenv("no_proxy", "*")
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_every_kind_of_input(rng, tmp_path, server):
    path = tmp_path / "a.png"
    data = path.read_bytes()
    pixels = dafast.images.load_image(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    model = build(TINY)
    expected = model.infer(path)
    with path.open("rb") as file:
        inputs = [
            *(path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file),
            *(f"{server}/a.png", Image.open(path), pixels, tensor, pixels / np.float32(255)),
        ]
        results = model.predict(inputs, flip=False)
    assert isinstance(results, list) and len(results) == len(inputs)
    for result, given in zip(results, inputs, strict=True):
        np.testing.assert_allclose(result.values, expected, rtol=1e-4, err_msg=str(type(given)))
    assert [r.name for r in results[:3]] == [str(path), str(path), ""]
    assert results[6].name == str(path) and results[7].name == f"{server}/a.png"
    # What can be read once is read once, also where the network sees it twice.
    twice = model.predict(io.BytesIO(data), flip=True)
    np.testing.assert_allclose(twice.values, model.infer(path, flip=True), rtol=1e-4)
    np.testing.assert_array_equal(model.infer(io.BytesIO(data)), expected)
    assert model.predict([]) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_pipe_is_read_once(rng, tmp_path):
    path = photo(tmp_path / "a.jpg", rng, focal=30)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(path.read_bytes()))
    writer.start()
    result = build(tiny(**DA3, kind="depth")).predict(tmp_path / "pipe", flip=True)
    writer.join()
    assert result.camera_source == "exif" and result.sky is not None


def test_inputs_that_are_none(rng, tmp_path, server):
    model = build(TINY)
    photo(tmp_path / "a.jpg", rng)
    with open(tmp_path / "a.jpg", "rb") as closed:
        pass
    text = io.TextIOWrapper(io.BytesIO((tmp_path / "a.jpg").read_bytes()), encoding="utf-8")
    for bad, message in (
        (b"text", r"image: cannot be read as an image"),
        (io.StringIO("text"), "image: the file is open in text mode; open it with mode 'rb'"),
        ("ftp://host/a.png", "ftp://host/a.png: a URL must begin with http:// or https://"),
        (closed, r"a.jpg: cannot be read \(.*closed"),
        (text, "the file is open in text mode"),
        (f"{server}/missing.png", "missing.png: the server answers 404"),
        ("http://127.0.0.1:1/a.png", r"127.0.0.1:1/a.png: cannot be downloaded \(\[Errno"),
        ("http://[/a.png", r"cannot be downloaded"),
        (torch.zeros(2, 3, 8, 8), r"pass list\(batch\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"pass list\(batch\)"),
        (7, "int is not an image; pass a path, a URL, bytes"),
    ):
        with pytest.raises(ImageError, match=message):
            model.predict(bad)
    batch = torch.rand(2, 3, 20, 30)
    results = model.predict(list(batch))
    np.testing.assert_allclose(results[1].values, model.infer(batch[1]), rtol=1e-4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_in_all_orientations(orientation, rng, tmp_path):
    """The diagonal of the film is that of the photo, upright or turned."""
    path = photo(tmp_path / "a.jpg", rng, (44, 30), focal=27, orientation=orientation)
    result = build(TINY).predict(path)
    height, width = result.values.shape
    assert (height, width) == ((30, 44) if orientation < 5 else (44, 30))
    focal = 27 / math.hypot(36, 24) * math.hypot(30, 44)
    assert result.camera_source == "exif"
    np.testing.assert_allclose(result.intrinsics, (focal, focal, width / 2, height / 2))


def test_where_the_camera_comes_from(rng, tmp_path):
    model, path = build(TINY), photo(tmp_path / "a.jpg", rng, focal=50)
    plain = photo(tmp_path / "b.jpg", rng)
    matrix = [[40, 0, 21], [0, 44, 14], [0, 0, 1]]
    assert model.predict(path).intrinsics == intrinsics_from_35mm(50, 30, 40)
    given = model.predict(path, intrinsics=matrix)
    assert (given.intrinsics, given.camera_source) == (Intrinsics(40, 44, 21, 14), "given")
    by_angle = model.predict([path, plain], fov=90)
    assert {r.camera_source for r in by_angle} == {"fov"}
    np.testing.assert_allclose(by_angle[0].intrinsics, (20, 20, 20, 15))
    assumed = model.predict(plain)
    assert assumed.camera_source == "assumed"
    assert assumed.intrinsics == intrinsics_from_35mm(ASSUMED_35MM, 30, 40)


def test_cameras_that_are_none_are_refused(rng, tmp_path, notices):
    model, path = build(TINY), photo(tmp_path / "a.jpg", rng)
    with pytest.raises(ValueError, match="the matrix is transposed"):
        model.predict(path, intrinsics=np.transpose([[40, 0, 21], [0, 44, 14], [0, 0, 1]]))
    with pytest.raises(ValueError, match="pass one of them"):
        model.predict(path, intrinsics=(40, 44, 21, 14), fov=60)
    with pytest.raises(ValueError, match="fov is the horizontal angle"):
        model.predict(path, fov=200)
    assert notices.messages == []
    size = int(rng.integers(50, 100)), int(rng.integers(50, 100))
    for camera, message in (
        (dict(intrinsics=(4.2, 4.2, 20, 20)), "is it in millimetres"),
        (dict(fov=math.radians(60)), "was it given in radians"),
        (dict(intrinsics=(400, 400, 600, 20)), "is outside the picture"),
    ):
        notices.clear()
        choose_camera(*size, **camera)
        assert message in notices.text


def test_a_result_says_what_it_is(rng):
    values = rng.uniform(1, 5, (6, 9)).astype(np.float32)
    result = DepthResult(values, kind="depth", unit="m", name="x.jpg")
    assert "depth" in repr(result) and " m, 6x9, 'x.jpg', camera none" in repr(result)
    for wrong in (
        dict(kind="distance"),
        dict(kind="disparity", unit="m"),
        dict(camera_source="guessed"),
        dict(sky=np.zeros((3, 3), bool)),
        dict(image=np.zeros((6, 9), np.uint8)),
    ):
        with pytest.raises(ValueError):
            DepthResult(values, **wrong)
    with pytest.raises(ValueError, match="float32"):
        DepthResult(values.astype(np.float64))


def test_scaling_and_colours(rng):
    values = rng.uniform(1, 5, (40, 9)).astype(np.float32)
    values[3, 4] = np.nan
    result = DepthResult(values, kind="depth", unit="m")
    low, high = np.nanmin(values), np.nanmax(values)
    np.testing.assert_allclose(result.normalized(), (values - low) / (high - low), atol=1e-6)
    assert np.nanmax(result.normalized(0, 3)) == 1
    # The nearest pixel has the last colour, the farthest the first, unknown ones are black.
    near, far = np.nanargmin(values), np.nanargmax(values)
    shades = result.colored("gray").reshape(-1, 3)
    assert (shades[near] == 255).all() and (shades[far] == 0).all()
    colors = result.colored("turbo").reshape(-1, 3)
    assert (colors.reshape(40, 9, 3)[3, 4] == 0).all()
    inverse = DepthResult((1 / values).astype(np.float32), unit="1/m")
    np.testing.assert_array_equal(inverse.colored("turbo").reshape(-1, 3), colors)
    flat = DepthResult(np.full((3, 3), 2, np.float32))
    with pytest.raises(ValueError, match="no palette None"):
        result.colored(None)
    infinite = np.append(values, np.float32([[np.inf] * 9]), axis=0)
    assert DepthResult(infinite, kind="depth", unit="m").range == (low, high)
    assert DepthResult(infinite[-1:]).range[0] != np.inf
    assert (flat.normalized() == 0).all() and np.ptp(flat.colored(), axis=(0, 1)).max() == 0


def test_depth_and_disparity(rng):
    values = rng.uniform(1, 5, (6, 9)).astype(np.float32)
    metres = DepthResult(values, kind="depth", unit="m")
    back = metres.to_disparity().to_depth()
    assert (back.kind, back.unit) == ("depth", "m")
    np.testing.assert_allclose(back.values, values, rtol=1e-6)
    relative = DepthResult(values).to_depth(ratio=4)
    assert (relative.kind, relative.unit) == ("depth", "")
    np.testing.assert_allclose(relative.range, (1, 4), rtol=1e-6)
    assert relative.values.argmin() == values.argmax()
    for ratio in (1, 0, math.inf, math.nan):
        with pytest.raises(ValueError, match="ratio="):
            DepthResult(values).to_depth(ratio)
