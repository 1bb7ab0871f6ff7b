"""`dafast.images`: what is read, what is refused with which remedy, and what gives a warning."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dafast import picture_values
from dafast.images import ImageError, as_pixels, from_pil, load_image

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _no_earlier_warning(monkeypatch):
    monkeypatch.setattr(picture_values, "_warned", set())


def write_tiff(path, array, *, photometric=1, planar=1, extra=()):
    """A little-endian TIFF of one strip, with any dtype and number of bands."""
    array = np.asarray(array)
    height, width = array.shape[-2:] if planar == 2 else array.shape[:2]
    bands = 1 if array.ndim == 2 else array.shape[0 if planar == 2 else 2]
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    form = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    bits = [8 * array.itemsize] * bands
    entries, tail = [], b""
    strips = bands if planar == 2 else 1
    size = len(data) // strips
    for tag, values in sorted(
        [(256, [width]), (257, [height]), (258, bits), (259, [1]), (262, [photometric]),
         (273, [8 + i * size for i in range(strips)]), (277, [bands]), (278, [height]),
         (279, [size] * strips), (284, [planar]), (339, [form] * bands), *extra]
    ):  # fmt: skip
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            place = 8 + len(data) + len(tail)
            tail += packed
            packed = struct.pack("<I", place)
        entries.append(struct.pack("<HHI", tag, 4, len(values)) + packed)
    start = 8 + len(data) + len(tail)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + data + tail + directory)
    return path


# ------------------------------------------------------------------------------- float pictures


@pytest.mark.parametrize(
    ("low", "high", "remedy"),
    [
        (-0.2, 1.2, r"np\.clip\(image, 0, 1\)"),
        (0.0, 1.1, r"np\.clip\(image, 0, 1\)"),
        (-1.0, 1.0, r"\(image \+ 1\) / 2"),
        (-2.1, 2.6, r"image \* std \+ mean"),
        (0.0, 255.0, r"8 bits: divide by 255\)"),
        (-12.0, 270.0, r"np\.clip\(image / 255, 0, 1\)"),
        (3.0, 1023.0, r"10 bits: divide by 1023\)"),
        (0.0, 4095.0, r"12 bits: divide by 4095\)"),
        (0.0, 65535.0, r"16 bits: divide by 65535\)"),
        (0.0, 2.5, r"image\.max\(\) - image\.min\(\)"),
        (-900.0, 1e6, r"image\.max\(\) - image\.min\(\)"),
    ],
)
def test_remedy_for_floats_out_of_range(low, high, remedy, rng):
    array = rng.uniform(low, high, (9, 11, 3)).astype(np.float32)
    array.flat[0], array.flat[1] = low, high
    with pytest.raises(ImageError, match=remedy):
        as_pixels(array, "image")
    with pytest.raises(ImageError, match=remedy):
        from_pil(Image.fromarray(_gray(array)))


def _gray(array):
    """The extremes of a picture in one channel."""
    gray = array[..., 0].copy()
    gray.flat[0], gray.flat[1] = array.min(), array.max()
    return gray


def test_who_obeys_a_remedy_gets_an_accepted_picture(rng):
    photo = rng.random((30, 40, 3)).astype(np.float32)
    overshoot = (photo - 0.5) * 1.4 + 0.5
    for array, obey in (
        (overshoot, lambda image: np.clip(image, 0, 1)),
        (photo * 2 - 1, lambda image: (image + 1) / 2),
        (photo * 1023, lambda image: image / 1023),
    ):
        with pytest.raises(ImageError):
            as_pixels(array, "image")
        pixels = as_pixels(obey(array), "image")
        assert pixels.max() - pixels.min() > 0.9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(bad, rng, tmp_path):
    array = rng.random((5, 8, 3)).astype(np.float32)
    array.flat[rng.choice(array.size, 7, replace=False)] = bad
    with pytest.raises(ImageError, match=r"7 of 120 values are NaN.*nan_to_num"):
        as_pixels(array, "image")
    gray = rng.random((5, 8)).astype(np.float32)
    gray[1, 2] = bad
    with pytest.raises(ImageError, match=r"a\.tif: 1 of 40 values are NaN"):
        load_image(write_tiff(tmp_path / "a.tif", gray))


@pytest.mark.parametrize(
    ("dtype", "top", "message"),
    [
        (np.int64, 255, r"image\.astype\(np\.uint8\)"),
        (np.int32, 60000, r"image\.astype\(np\.uint16\)"),
        (np.uint32, 10**6, r"scale its values, 0\.\.1000000"),
        (np.complex64, 1, "use uint8, uint16 or floating point"),
    ],
)
def test_other_dtypes_say_how_to_convert(dtype, top, message):
    array = np.zeros((4, 5, 3), dtype)
    array[0, 0, 0] = top
    with pytest.raises(ImageError, match=f"dtype {np.dtype(dtype)}; .*{message}"):
        as_pixels(array, "image")


# --------------------------------------------------------------------------- slivers of a range


def _sliver(rng, low, high, shape=(20, 30)):
    values = rng.integers(low, high + 1, shape)
    values.flat[0], values.flat[1] = low, high
    return values


@pytest.mark.parametrize(
    ("low", "high", "advice"),
    [
        (51000, 51892, "stretch them"),
        (0, 200, "8 bits, multiply them by 65535 / 255"),
        (3, 1023, "10 bits, multiply them by 65535 / 1023"),
        (0, 4095, "12 bits, multiply them by 65535 / 4095"),
    ],
)
@pytest.mark.parametrize("kind", ["array", "png", "int16", "int32", "uint32", "pil"])
def test_a_sliver_of_16_bits_gives_one_warning(kind, low, high, advice, rng, tmp_path, notices):
    values = _sliver(rng, low, high)
    if kind == "int16" and high > 32767:
        values = values // 2
    path = tmp_path / "a.tif"
    if kind == "array":
        source = values.astype(np.uint16)
    elif kind == "pil":
        source = Image.fromarray(values.astype(np.uint16))
    elif kind == "png":
        source = tmp_path / "a.png"
        Image.fromarray(values.astype(np.uint16)).save(source)
    else:
        source = write_tiff(path, values.astype(kind))
    for _ in range(3):
        pixels = as_pixels(source, "image")
    np.testing.assert_allclose(pixels[0].numpy(), values / 65535, atol=1e-6)  # not stretched
    assert len(notices.messages) == 1
    assert advice in notices.messages[0]
    assert ("a." if isinstance(source, Path) else "image:") in notices.messages[0]


def test_a_sliver_in_a_16_bit_file_of_three_bands(rng, tmp_path, notices):
    """Pillow hands these out in 8 bits."""
    write_tiff(
        tmp_path / "a.tif", _sliver(rng, 0, 4095, (9, 8, 3)).astype(np.uint16), photometric=2
    )
    assert load_image(tmp_path / "a.tif").max() == 15
    write_tiff(
        tmp_path / "b.tif", _sliver(rng, 0, 65535, (9, 8, 3)).astype(np.uint16), photometric=2
    )
    load_image(tmp_path / "b.tif")
    assert len(notices.messages) == 1 and "a.tif" in notices.messages[0]
    assert "12 bits" in notices.messages[0]


def test_a_sliver_of_floats_and_no_warning_for_others(rng, notices):
    as_pixels(rng.integers(0, 40, (9, 8, 3), dtype=np.uint8), "dark")  # 8 bits: a dark photo
    as_pixels(np.full((9, 8, 3), 700, np.uint16), "flat")
    as_pixels(_sliver(rng, 0, 4200, (9, 8, 3)).astype(np.uint16), "more than 1/16")
    assert notices.messages == []
    as_pixels(rng.random((9, 8, 3)).astype(np.float32) / 255, "twice")
    assert "divided by 255 twice" in notices.text


@pytest.mark.parametrize("bands", [1, 3])
def test_16_bit_png(bands, rng, tmp_path, notices):
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "a.png"), _sliver(rng, 0, 1023, (9, 8, bands)).astype(np.uint16))
    load_image(tmp_path / "a.png")
    assert len(notices.messages) == 1 and "10 bits" in notices.messages[0]


# ---------------------------------------------------------------------------- pages and formats


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_several_pages_give_one_warning(suffix, rng, tmp_path, notices):
    pages = [Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]
    path = tmp_path / f"many.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    for _ in range(2):
        pixels = load_image(path)
    if suffix != "gif":
        np.testing.assert_array_equal(pixels, np.asarray(pages[0]))
    assert len(notices.messages) == 1
    assert str(path) in notices.messages[0] and "3 pages or frames" in notices.messages[0]


def test_a_thumbnail_before_the_picture(rng, tmp_path, notices):
    tifffile = pytest.importorskip("tifffile")
    photo = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(photo[::10, ::10], subfiletype=1)
        file.write(photo)
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif"), photo)
    assert "page 2, the first at full size" in notices.text


def test_white_is_zero(rng, tmp_path):
    """Pillow inverts these only up to 8 bits."""
    gray = rng.integers(0, 65536, (9, 8), dtype=np.uint16)
    deep = load_image(write_tiff(tmp_path / "a.tif", gray, photometric=0))
    np.testing.assert_allclose(deep[..., 0], 1 - gray / 65535, atol=1e-6)
    shallow = load_image(
        write_tiff(tmp_path / "b.tif", (gray >> 8).astype(np.uint8), photometric=0)
    )
    np.testing.assert_array_equal(shallow[..., 0], 255 - (gray >> 8))
    floats = (gray / 65535).astype(np.float32)
    floats = load_image(write_tiff(tmp_path / "c.tif", floats, photometric=0))
    np.testing.assert_allclose(floats[..., 0], 1 - gray / 65535, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), {"photometric": 2}, "3 bands of float32.*tifffile"),
        (np.zeros((4, 5), np.float64), {}, "one band of float64.*tifffile"),
        (np.zeros((4, 5, 5), np.uint8), {}, "5 bands of uint8.*choose three bands"),
        (np.zeros((3, 4, 5), np.uint16), {"photometric": 2, "planar": 2}, "separate planes"),
        (np.zeros((4, 5), np.int8), {}, "signed 8-bit"),
        (np.full((4, 5), -700, np.int16), {}, "add 32768"),
        (np.zeros((4, 5, 3), np.uint8), {"extra": [(50706, [1])], "photometric": 2}, "raw file"),
        (
            np.zeros((4, 5, 3), np.uint8),
            {"extra": [(254, [1]), (330, [8])], "photometric": 2},
            "raw file",
        ),
    ],
    ids=["float rgb", "float64", "five bands", "planes", "int8", "negative", "dng", "nef"],
)
def test_tiffs_that_are_not_read_say_what_they_are(array, options, message, tmp_path):
    with pytest.raises(ImageError, match=rf"a\.tif: .*{message}"):
        load_image(write_tiff(tmp_path / "a.tif", array, **options))


@pytest.mark.parametrize("keep", [10, 100, 400])
def test_truncated_tiff(keep, rng, tmp_path, recwarn):
    path = tmp_path / "a.tif"
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ImageError, match=r"a\.tif: cannot be read.*truncated"):
        load_image(path)
    assert not recwarn.list


@pytest.mark.parametrize("bands", [1, 3])
def test_jpeg_2000_of_16_bits(bands, rng, tmp_path):
    cv2 = pytest.importorskip("cv2")
    deep = rng.integers(0, 65536, (32, 40, bands), dtype=np.uint16)
    path = tmp_path / "a.jp2"
    quality = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    if not cv2.imwrite(str(path), deep, quality):
        pytest.skip("this OpenCV writes no JPEG 2000")
    if bands == 1:
        np.testing.assert_allclose(load_image(path)[..., 0], deep[..., 0] / 65535, atol=1e-4)
        return
    for source in (path, Image.open(path)):
        with pytest.raises(
            ImageError, match=r"a\.jp2: a JPEG 2000 of 16 bits.*white becomes black"
        ):
            as_pixels(source, "image")
    cv2.imwrite(str(path), (deep >> 8).astype(np.uint8), quality)
    np.testing.assert_array_equal(load_image(path)[..., ::-1], deep >> 8)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"v/1\x01\x02\0\0\0", "OpenEXR picture; .*array"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "Radiance HDR picture; .*array"),
        (b"#?RGBE\n", "Radiance HDR picture; .*array"),
        (b"PF\n4 4\n-1.0\n", "PFM picture"),
        (b"\x93NUMPY\x01\0", r"numpy array; pass np\.load\(path\)"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0", "a video; save its frames"),
        (b"\0\0\0\x14ftypqt  ", "a video"),
        (b"\x1aE\xdf\xa3\x01\0", "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"G" + bytes(187) + b"G" + bytes(187) + b"G", "a video"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF picture"),
        (b"%PDF-1.7\n", "PDF document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG drawing"),
        (b"PK\x03\x04", "ZIP archive"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"II*\0\x10\0\0\0CR\x02\0", "raw file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"a.jpg\nb.jpg\n", "it looks like text"),
        (bytes(range(64)), "no image format that Pillow knows"),
    ],
)
def test_other_files_say_what_they_are(head, message, tmp_path):
    path = tmp_path / "picture.bin"
    path.write_bytes(head)
    with pytest.raises(ImageError, match=rf"picture\.bin: .*{message}"):
        load_image(path)


def test_numpy_file(rng, tmp_path):
    np.save(tmp_path / "a.npy", rng.random((4, 5, 3)))
    with pytest.raises(ImageError, match=r"np\.load"):
        load_image(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "RGBa", "La",
     "I", "F", "I;16", "I;16L", "I;16B", "I;16N"],
)  # fmt: skip
def test_every_mode_of_pillow(mode):
    array = from_pil(Image.new(mode, (5, 4)))
    assert array.shape == (4, 5, 3) and array.dtype in (np.uint8, np.float32)


def test_premultiplied_gray(rng):
    """Mode La: gray times alpha. Laid over white it is what LA gives."""
    values = rng.integers(0, 256, (6, 7, 2), dtype=np.uint8)
    image = Image.fromarray(values, "LA")
    expected = from_pil(image).astype(int)
    assert np.abs(from_pil(image.convert("La")).astype(int) - expected).max() <= 2


# ----------------------------------------------------------------------------- sizes and sources


def test_more_pixels_than_pillow_allows(tmp_path, monkeypatch):
    """With a lower limit, which is twice MAX_IMAGE_PIXELS; half of it gives no warning."""
    path = tmp_path / "a.png"
    Image.new("L", (50, 40)).save(path)

    def read(limit, variable=None):
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("error")
            patch.setattr("PIL.Image.MAX_IMAGE_PIXELS", limit)
            patch.delenv("DAFAST_MAX_PIXELS", raising=False)
            if variable is not None:
                patch.setenv("DAFAST_MAX_PIXELS", variable)
            try:
                return str(load_image(path).shape)
            except ImageError as error:
                return str(error)

    assert read(1001) == "(40, 50, 3)"
    refused = read(999)
    assert "a.png: " in refused and "Pillow's limit" in refused and "DOS" not in refused
    assert "DAFAST_MAX_PIXELS=0" in refused and "PIL.Image.MAX_IMAGE_PIXELS = None" in refused
    for value, good in (("0", True), ("2000", True), ("1999", True), ("1990", False)):
        assert (read(999, value) == "(40, 50, 3)") == good, value
    assert "must be a number" in read(10**9, "many")


def test_an_error_text_is_never_empty(rng, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)

    def fail(error):
        def load(self):
            raise error

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)

    for error, text in ((MemoryError(), "out of memory"), (OSError(), "OSError")):
        fail(error)
        with pytest.raises(ImageError, match=rf"a\.png: cannot be read as an image \({text}\)"):
            load_image(path)
        with Image.open(path) as image, pytest.raises(ImageError, match=rf"\({text}\)"):
            as_pixels(image, "image")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_read(rng, tmp_path):
    photo = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    for content in (buffer.getvalue(), b"v/1\x01", b"II*\0\x08\0\0\0"):
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
        writer.start()
        if content[:4] == b"\x89PNG":
            np.testing.assert_array_equal(load_image(tmp_path / "pipe"), photo)
        else:
            with pytest.raises(ImageError, match=r"OpenEXR|truncated TIFF"):
                load_image(tmp_path / "pipe")
        writer.join()
        (tmp_path / "pipe").unlink()


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    for name, message in (
        ("link.png", "is a link to .*gone.png, which does not exist"),
        ("gone.png", "does not exist"),
        (".", "is a folder"),
    ):
        with pytest.raises(ImageError, match=message):
            load_image(tmp_path / name)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((2, 3, 4, 5), r"pass list\(batch\)"), ((40, 50, 3), r"image\.permute\(2, 0, 1\)")],
)
def test_tensors_of_other_layouts(shape, hint):
    with pytest.raises(ImageError, match=hint):
        as_pixels(torch.zeros(shape), "image")


def test_half_precision_tensors(rng):
    photo = torch.from_numpy(rng.random((3, 5, 6)))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(as_pixels(photo.to(dtype), "image"), photo.to(dtype).float())


@pytest.mark.parametrize(
    ("scale", "shift", "remedy"),
    [
        (1, -0.5, "image + 0.5"),
        (255, -128, "(image + 128) / 255"),
        (65535, -32768, "(image + 32768) / 65535"),
    ],
)
def test_remedies_for_signed_values(scale, shift, remedy):
    image = np.linspace(0, 1, 6 * 8 * 3, dtype=np.float32).reshape(6, 8, 3) * scale + shift
    with pytest.raises(ImageError) as error:
        as_pixels(image, "image")
    assert remedy in str(error.value)


def test_a_marker_of_missing_pixels_is_named():
    image = np.full((6, 8), 0.5, np.float32)
    image[2] = -9999
    with pytest.raises(ImageError, match="-9999 probably marks missing pixels"):
        as_pixels(image, "image")


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (torch.zeros(3, 6, 8).to_sparse(), "to_dense"),
        (torch.empty(3, 6, 8, device="meta"), "on meta"),
        (np.zeros((3, 6, 8), np.uint8), "transpose"),
        (np.zeros((1, 6, 8, 3), np.uint8), "list"),
    ],
)
def test_layouts_that_are_no_picture(image, hint):
    with pytest.raises(ImageError, match=hint):
        as_pixels(image, "image")


def test_a_thumbnail_without_its_mark_is_not_used(tmp_path, seed):
    pages = [Image.fromarray(np.full((h, 2 * h, 3), h, np.uint8)) for h in (6, 24, 24)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert load_image(tmp_path / "pages.tif").shape == (24, 48, 3)
