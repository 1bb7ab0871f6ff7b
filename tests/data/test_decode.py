"""A picture that cannot be decoded is named, and the error says what is wrong."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from dafast.data.decode import DECODE_ERRORS, PictureError, decode_image, open_picture
from dafast.data.sources import folder_source
from dafast.evaluation.readers._files import read_stored_image


def jpeg(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "error", [struct.error(), KeyError(), EOFError(), RuntimeError(), OSError()]
)
def test_whatever_a_decoder_raises_is_a_picture_error(
    error: Exception, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise error

    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(rng))
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(DECODE_ERRORS, match=rf"as a picture \({type(error).__name__}\)"):
        decode_image(path.read_bytes())
    with pytest.raises(PictureError, match=rf"a\.jpg: cannot .*\({type(error).__name__}\)"):
        read_stored_image(path)


def test_lack_of_memory_is_no_damage(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(MemoryError):
        decode_image(jpeg(rng))
    assert not issubclass(MemoryError, DECODE_ERRORS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is an empty file"),
        (b"<!DOCTYPE html><p>404", "it is an HTML page"),
        (b"a,b\n1,2\n", "it is .*looks like text"),
        (b"\x76\x2f\x31\x01" + bytes(600), "it is an OpenEXR picture"),
        (b"#?RADIANCE\n", "it is a Radiance HDR picture"),
        (b"\x93NUMPY" + bytes(600), "it is a numpy array"),
        (bytes(4) + b"ftypisom" + bytes(600), "it is a video"),
        (b"\x1a\x45\xdf\xa3" + bytes(600), "it is a video"),
        (bytes(range(255, 0, -1)) * 3, "it is no image format"),
    ],
)
def test_what_is_no_picture_is_said(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=rf"^cannot be read as a picture \({message}"):
        decode_image(content)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PictureError, match=rf"^cannot be read as a picture \({message}"):
        folder_source(tmp_path)[0].load()


def test_a_truncated_picture_says_so(rng: np.random.Generator) -> None:
    with pytest.raises(PictureError, match="truncated"):
        decode_image(jpeg(rng)[:-200])


def test_too_many_pixels_have_a_remedy(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PictureError, match=r"limit of 0, .*DAFAST_MAX_PIXELS=0"):
        decode_image(jpeg(rng))
    monkeypatch.setenv("DAFAST_MAX_PIXELS", "0")
    assert decode_image(jpeg(rng)).shape == (20, 30, 3)


def test_errors_of_the_disk_stay(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_picture(tmp_path / "gone.png"):
        pass
    with pytest.raises(IsADirectoryError), open_picture(tmp_path):
        pass
