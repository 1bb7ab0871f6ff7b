"""`infer`: every kind of image, batching, errors."""

import dataclasses
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dafast
from dafast import devices, images
from dafast.images import ImageError, from_pil, load_image
from dafast.models import inference
from dafast.ops import preprocess
from tests.tiny import tiny

ROOT = Path(__file__).resolve().parents[2]
TINY = tiny(image_size=56, grid_size=4)


@pytest.fixture
def model(seed):
    torch.manual_seed(seed)
    return dafast.DepthAnything(TINY).eval()


def _photo(seed, shape=(60, 83, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_every_kind_of_the_same_image_gives_the_same_map(model, seed, tmp_path):
    photo = _photo(seed)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    expected = model.infer(photo)
    assert expected.shape == photo.shape[:2] and expected.dtype == np.float32
    for same in (
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        Image.fromarray(photo),
        torch.from_numpy(photo).permute(2, 0, 1),
        photo[:, ::-1][:, ::-1],  # negative strides
        photo.astype(np.float32) / 255,
        photo.astype(np.float64) / 255,
        photo.astype(np.uint16) * 257,
        torch.from_numpy(photo).permute(2, 0, 1) / 255,
    ):
        np.testing.assert_allclose(model.infer(same), expected, atol=2e-5)


def test_map_is_what_the_network_says(model, seed):
    """Where nothing needs resizing or padding `infer` is the forward."""
    photo = torch.from_numpy(_photo(seed, (56, 84, 3)))
    x, _ = preprocess(photo, size=56)
    with torch.no_grad():
        expected = model(x)[0].numpy()
    np.testing.assert_allclose(model.infer(photo.numpy()), expected, atol=1e-6)


@pytest.mark.slow
def test_list_of_mixed_sizes_equals_one_by_one(model, seed):
    shapes = [(60, 83), (83, 60), (60, 83), (200, 120), (1, 1), (60, 83), (31, 500)]
    photos = [_photo(seed + i, (*s, 3)) for i, s in enumerate(shapes)]
    for budget in (1, 60, 10**6):
        maps = model.infer(photos, max_batch_tokens=budget)
        assert isinstance(maps, list) and [m.shape for m in maps] == shapes
        for photo, got in zip(photos, maps, strict=True):
            np.testing.assert_allclose(got, model.infer(photo), atol=1e-5)
    assert model.infer([]) == []
    assert len(model.infer([photos[0]])) == 1


@pytest.mark.slow
def test_photos_of_many_sizes_do_not_pile_up(model):
    read = 0

    def photos():
        nonlocal read
        for i in range(40):
            read += 1
            yield np.zeros((56, 56 + 14 * i, 3), np.uint8)  # 17 tokens and more: no two alike

    class Photos(list):
        def __iter__(self):
            return photos()

    options = inference.InferenceOptions(size=56, max_batch_tokens=40)
    with torch.no_grad():
        results = inference.Predictor(model, options).run(Photos([None] * 40))
        first = next(results).position
        assert read < 10
        assert sorted([first, *(done.position for done in results)]) == list(range(40))


def test_return_tensors(model, seed):
    out = model.infer(_photo(seed), return_tensors=True)
    assert isinstance(out, torch.Tensor) and out.dtype == torch.float32 and out.shape == (60, 83)


@pytest.mark.parametrize("fit", ["pad", "official"])
@pytest.mark.parametrize("padding", ["replicate", "reflect", "constant"])
def test_options(model, seed, fit, padding):
    out = model.infer(_photo(seed), fit=fit, padding=padding, size=70)
    assert out.shape == (60, 83) and np.isfinite(out).all()


def test_size_is_the_models_own(model, seed):
    np.testing.assert_array_equal(model.infer(_photo(seed)), model.infer(_photo(seed), size=56))
    assert not np.array_equal(model.infer(_photo(seed)), model.infer(_photo(seed), size=112))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, seed, tmp_path):
    """Each way a camera can be held, undone by Pillow's own table of transpositions."""
    upright = _photo(seed, (20, 30, 3))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
        if orientation in (6, 8):  # rotations are not their own inverse
            stored = Image.fromarray(upright).transpose(
                Image.Transpose.ROTATE_90 if orientation == 6 else Image.Transpose.ROTATE_270
            )
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "photo.png"), upright)


def _exif(*entries):
    """An EXIF block as in a file: (tag, TIFF type, count, four bytes), unchecked."""
    block = struct.pack(">2sHLH", b"MM", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        block += struct.pack(">HHL4s", tag, kind, count, value)
    return b"Exif\0\0" + block + bytes(4)


TURNED = (0x0112, 3, 1, b"\0\6\0\0")  # held upright: the sensor's right side is the top


@pytest.mark.parametrize(
    "malformed",
    [
        (0x0100, 2, 4, b"abc\0"),  # ImageWidth as text
        (0x0102, 11, 1, struct.pack(">f", 8.5)),  # BitsPerSample as a float
        (0x0128, 2, 2, b"2\0\0\0"),  # ResolutionUnit as text
        (0x014A, 2, 4, b"abc\0"),  # SubIFD as text
    ],
    ids=lambda entry: f"{entry[0]:#06x}",
)
def test_a_malformed_tag_beside_the_orientation(malformed, seed, tmp_path):
    stored = Image.fromarray(_photo(seed, (20, 30, 3)))
    path = tmp_path / "photo.jpg"
    stored.save(path, exif=_exif(*sorted((malformed, TURNED))))
    with Image.open(path) as image:
        expected = np.rot90(np.asarray(image), -1)
        np.testing.assert_array_equal(images.as_pixels(image, "image").numpy(), expected)
    np.testing.assert_array_equal(load_image(path), expected)


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0nonsense"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_turns_nothing(block, seed, tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(_photo(seed, (20, 30, 3))).save(path, exif=block)
    assert load_image(path).shape == (20, 30, 3)


def test_a_turned_tiff_is_turned_once(seed, tmp_path):
    """Pillow itself turns this format, when it is read."""
    photo = _photo(seed, (20, 30, 3))
    Image.fromarray(photo).save(tmp_path / "photo.tif", tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(load_image(tmp_path / "photo.tif"), np.rot90(photo, -1))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from Linux's /proc")
@pytest.mark.slow
def test_memory_of_reading_a_turned_photo(tmp_path):
    """At most the 11 bytes a pixel that the module states."""
    photos = [tmp_path / "small.jpg", tmp_path / "large.jpg"]
    for path, size in zip(photos, ((64, 48), (4000, 3000)), strict=True):
        Image.new("RGB", size, "teal").save(path, exif=_exif(TURNED))
    code = """if True:
        import pathlib, re, sys
        from dafast.images import load_image
        peaks = []
        for path in sys.argv[1:]:
            photo = load_image(path)
            status = pathlib.Path("/proc/self/status").read_text()
            peaks.append(int(re.search("VmHWM:[^0-9]*([0-9]+)", status)[1]))
        print((peaks[1] - peaks[0]) * 1024 / (photo.shape[0] * photo.shape[1]))
    """
    command = [sys.executable, "-c", code, *map(str, photos)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert 3 < float(done.stdout) <= 11


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_pil_modes(model, mode, seed):
    photo = Image.fromarray(_photo(seed))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.float32) / 255)
    else:
        image = photo.convert(mode)
    assert image.mode == mode
    array = from_pil(image)
    assert array.shape == (60, 83, 3) and array.dtype in (np.uint8, np.float32)
    if mode in ("I;16", "F"):
        gray = np.asarray(photo.convert("L")) / 255
        np.testing.assert_allclose(array[..., 1], gray, atol=1e-5)
    assert model.infer(image).shape == (60, 83)


def test_sixteen_bit_file(seed, tmp_path):
    gray = np.random.default_rng(seed).integers(0, 65536, (9, 11), dtype=np.uint16)
    Image.fromarray(gray).save(tmp_path / "deep.png")
    np.testing.assert_allclose(load_image(tmp_path / "deep.png")[..., 0], gray / 65535, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 70000]], np.int32), r"0\.\.65535; .*0\.\.70000 \(scale them to 0\.\.65535"),
        (np.array([[0, 200]], np.float32), r"0\.\.1; .*0\.\.200 \(values of 8 bits: divide by 255"),
    ],
)
def test_file_with_values_out_of_range(values, message, tmp_path):
    Image.fromarray(values).save(tmp_path / "deep.tif")
    with pytest.raises(ImageError, match=rf"deep\.tif: .*{message}"):
        load_image(tmp_path / "deep.tif")


def test_transparency_lies_over_white(model):
    rgba = np.zeros((40, 50, 4), np.uint8)
    rgba[:20, :, 3] = 255
    array = from_pil(Image.fromarray(rgba))
    assert (array[:20] == 0).all() and (array[20:] == 255).all()
    np.testing.assert_allclose(model.infer(rgba), model.infer(array), atol=1e-5)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    assert (from_pil(palette) == 255).all()


def test_gray_and_alpha_arrays(model, seed):
    gray = _photo(seed, (40, 50))
    same = np.repeat(gray[..., None], 3, 2)
    opaque = np.concatenate([same, np.full((40, 50, 1), 255, np.uint8)], 2)
    expected = model.infer(same)
    for array in (gray, gray[..., None], opaque, torch.from_numpy(gray)[None]):
        np.testing.assert_allclose(model.infer(array), expected, atol=1e-5)


def test_extreme_shapes(model):
    assert model.infer(np.zeros((1, 1, 3), np.uint8)).shape == (1, 1)
    assert model.infer(np.zeros((40, 800, 3), np.uint8)).shape == (40, 800)
    assert model.infer(np.zeros((1, 3000), np.uint8), max_tokens=100).shape == (1, 3000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read.*an empty file"),
        (b"not an image at all", "cannot be read.*no image format that Pillow knows"),
        (b"\n<!DOCTYPE html><html></html>", "an HTML page"),
        *(
            (b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic", "HEIC.*JPEG.*dafast\\[heif\\]")
            for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
        ),
        (None, "does not exist"),
    ],
)
def test_bad_files_are_named(model, tmp_path, content, message):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as error:
        model.infer(path)
    assert "bad.jpg" in str(error.value)


def test_truncated_jpeg_is_an_error(model, seed, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(_photo(seed, (200, 200, 3))).save(buffer, "JPEG")
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ImageError, match=r"half\.jpg"):
        model.infer(tmp_path / "half.jpg")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5, 7), np.uint8), "1 to 4 channels"),
        (np.zeros((0, 5, 3), np.uint8), "not empty"),
        (np.full((5, 5, 3), 200.0), "0..1"),
        (np.full((5, 5, 3), np.nan), "75 of 75 values are NaN"),
        (np.zeros((5, 5, 3), np.int64), "dtype int64"),
        (torch.zeros(5, 5), r"\(C, H, W\)"),
        (42, "int is not an image"),
    ],
)
def test_bad_arrays_say_why(model, image, message):
    with pytest.raises(ImageError, match=message):
        model.infer(image)
    with pytest.raises(ImageError, match="image 1"):
        model.infer([np.zeros((5, 5, 3), np.uint8), image])


def test_bad_options(model):
    unread = [None]  # options are checked before any photo is looked at
    for options in (
        {"fit": "crop"},
        *({"size": size} for size in (3, 0, -5, "a", 56.5)),
        *({"max_tokens": count} for count in (0, -1, "many", None)),
        *({"max_batch_tokens": count} for count in (0, -1, "many", 1e9)),
        {"padding": "edge"},
    ):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            model.infer(unread, **options)


def test_too_many_tokens_are_told_once_and_of_the_photo(model, notices):
    model.infer(np.zeros((56, 70, 3), np.uint8), size=112, max_tokens=20)
    (text,) = [text for text in notices.messages if "tokens" in text]
    assert text.startswith("an image of 70x56 pixels")


def test_metric_and_relative_models_name_each_other(model):
    with pytest.raises(TypeError, match="use `infer`"):
        model.infer_metric(np.zeros((5, 5, 3), np.uint8))
    metric = dafast.DepthAnything(dataclasses.replace(TINY, max_depth=20.0)).eval()
    with pytest.raises(TypeError, match="infer_metric"):
        metric.infer(np.zeros((5, 5, 3), np.uint8))
    depth = metric.infer_metric(np.zeros((30, 40, 3), np.uint8))
    assert depth.shape == (30, 40) and (depth > 0).all() and (depth < 20).all()


def test_grad_mode_and_training_flag_are_left_alone(model, seed):
    model.infer(_photo(seed))
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


def test_tensors_can_take_part_in_training(model, seed):
    disparity = model.infer(_photo(seed), return_tensors=True)
    assert not disparity.requires_grad
    weight = torch.ones((), requires_grad=True)
    (disparity * weight).sum().backward()
    torch.testing.assert_close(weight.grad, disparity.sum())


def test_big_endian_arrays(model, seed):
    array = _photo(seed).astype(np.uint16) * 257
    np.testing.assert_array_equal(model.infer(array.astype(">u2")), model.infer(array))


def test_truncated_pil_image_is_named(model, seed, tmp_path):
    path = tmp_path / "half.jpg"
    Image.fromarray(_photo(seed, (200, 200, 3))).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"half\.jpg.*truncated"):
        model.infer([_photo(seed), image])


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("fit", ["pad", "official"])
def test_flip_is_the_mean_over_the_mirror_image(metric, fit, seed):
    config = dataclasses.replace(TINY, max_depth=10.0 if metric else None)
    model = dafast.DepthAnything(config).eval()
    infer = model.infer_metric if metric else model.infer
    photos = [_photo(seed), _photo(seed + 1, (83, 60, 3)).astype(np.float32) / 255]
    got = infer(photos, flip=True, fit=fit)
    for photo, out in zip(photos, got, strict=True):
        plain = infer(photo, fit=fit)
        mirrored = infer(photo[:, ::-1], fit=fit)[:, ::-1]
        np.testing.assert_allclose(out, (plain + mirrored) / 2, rtol=1e-4, atol=1e-5)
        assert not np.allclose(plain, mirrored, rtol=1e-4)
    turned = infer(photos[0][:, ::-1], flip=True, fit=fit)
    np.testing.assert_allclose(turned[:, ::-1], got[0], rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------- what infer says


def test_one_picture_gives_a_map_and_a_list_a_list(model, seed):
    photo = _photo(seed)
    assert isinstance(model.infer(photo), np.ndarray)
    assert isinstance(model.infer([photo]), list) and isinstance(model.infer((photo,)), list)
    assert isinstance(model.infer(photo, return_tensors=True), torch.Tensor)
    assert isinstance(model.infer([photo], return_tensors=True)[0], torch.Tensor)


@pytest.mark.slow  # unless `make lint` filled the cache
def test_types_of_infer(tmp_path, monkeypatch):
    """What a type checker sees; of other packages only the classes of pictures: it is quicker."""
    api = pytest.importorskip("mypy.api")
    for module, name in (
        ("numpy/__init__", "ndarray"), ("torch/__init__", "Tensor"), ("PIL/Image", "Image")
    ):  # fmt: skip
        stub = tmp_path / f"{module}.pyi"
        stub.parent.mkdir()
        stub.write_text(
            f"from typing import Any\nclass {name}: ...\ndef __getattr__(name: str) -> Any: ...\n"
        )
    (tmp_path / "user.py").write_text(
        "import numpy as np\n"
        "from dafast import DepthAnything\n"
        "model = DepthAnything('nano')\n"
        "reveal_type(model.infer('a.jpg'))\n"
        "reveal_type(model.infer(['a.jpg'], size=70))\n"
        "reveal_type(model.infer(np.ndarray(), return_tensors=True))\n"
        "reveal_type(model.infer(('a.jpg',), fit='pad', return_tensors=True))\n"
        "model.infer('a.jpg', siez=70)\n"
    )
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MYPYPATH", str(tmp_path))
    options = ["--no-site-packages", "--cache-dir", str(tmp_path / "cache")]
    out, errors, _ = api.run([*options, str(tmp_path / "user.py")])
    lines = [line.split(": ", 2)[-1] for line in out.splitlines() if "user.py" in line]
    assert "numpy.ndarray" in lines[0] and "list" not in lines[0], out + errors
    assert "list[numpy.ndarray" in lines[1]
    assert "Tensor" in lines[2] and "list" not in lines[2]
    assert "list[torch" in lines[3]
    assert any("error" in line and "user.py:8" in line for line in out.splitlines())


def test_functions_take_the_options_as_keywords(model, seed):
    photo = _photo(seed)
    expected = model.infer(photo, size=70, flip=True)
    for function in (dafast.inference.infer, dafast.inference.predict):
        np.testing.assert_array_equal(function(model, photo, size=70, flip=True), expected)
    with pytest.raises(TypeError, match="siez"):
        dafast.inference.infer(model, photo, siez=70)


@pytest.mark.parametrize("bins", ["", "softplus"])
def test_a_float64_model_gives_float32(bins, seed):
    config = dataclasses.replace(TINY, max_depth=10.0 if bins else None, bin_centers=bins)
    model = dafast.DepthAnything(config).double().eval()
    infer = model.infer_metric if bins else model.infer
    photo = _photo(seed)
    assert infer(photo).dtype == np.float32
    assert infer([photo], flip=True)[0].dtype == np.float32
    assert infer(photo, return_tensors=True).dtype == torch.float32
    assert inference.predict_native(model, [photo])[0].dtype == np.float32


def test_a_map_that_is_not_finite_gives_a_warning(model, seed, notices):
    """Once, with the images and the reason."""
    photos = [_photo(seed), _photo(seed + 1, (83, 60, 3))]
    model.infer(photos, flip=True)
    assert notices.messages == []
    with torch.no_grad():
        model.depth_head.scratch.output_conv2[2].bias.fill_(torch.inf)
    assert not np.isfinite(model.infer(photos)[0]).any()
    (message,) = notices.messages
    assert "the prediction of image 0, 1 is not finite" in message
    assert "the weight depth_head.scratch.output_conv2.2.bias holds NaN or infinity" in message
    assert "dtype" not in message


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float32, "overflow in float32"),
        (torch.float16, r"load the model with dtype='float32'"),
    ],
)
def test_the_reason_for_infinity_fits_the_dtype(dtype, message, model, seed, notices):
    with torch.no_grad():
        model.pretrained.patch_embed.proj.weight.fill_(6e4 if dtype == torch.float16 else 1e38)
    model.to(dtype)
    assert not np.isfinite(model.infer(_photo(seed))).all()
    (warning,) = [m for m in notices.messages if m.startswith("the prediction")]
    assert "the prediction of the image is not finite" in warning
    assert message in warning


@pytest.mark.parametrize("hardware", [False, True])
def test_a_dtype_that_is_slow_on_this_cpu_is_named_once(
    hardware, model, seed, notices, monkeypatch
):
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: hardware)
    devices.warn_if_slow.cache_clear()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for _ in range(2):
            model.to(dtype).infer(_photo(seed))
    devices.warn_if_slow.cache_clear()
    said = [m for m in notices.messages if "times as long as float32" in m]
    assert ["bfloat16" in m for m in said] == [False] + [True] * (not hardware)
