"""Decodes the pictures of data sets; an error always says what is wrong."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dafast.files import explain
from dafast.images import ImageError, register_heif, set_pixel_limit, why_too_large
from dafast.picture_formats import describe_file, is_heif, pillow_error

DECODE_ERRORS = (OSError, ValueError, SyntaxError)
"""Errors of a damaged picture. `MemoryError` is not one of them: the file may be good."""

_ORIENTATION = 0x0112  # EXIF tag

# Pillow warns at half of the size that it refuses. A filter for one call is not safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class PictureError(ValueError):
    """A picture that cannot be decoded; the message says why."""


@contextlib.contextmanager
def open_picture(file: bytes | Path) -> Iterator[Image.Image]:
    """An open and decoded picture.

    Args:
        file: Its content, or its path, which errors then name.

    Raises:
        PictureError: If it is damaged or not a picture.
        OSError: If the file cannot be opened.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened:
        head = b""
        try:
            head = opened.read(512)
            if is_heif(head):
                register_heif()
            set_pixel_limit()
            picture = Image.open(opened)
            if reason := pillow_error(picture, head, opened):
                raise PictureError(reason)
            picture.load()
        except (MemoryError, ImageError):
            raise
        except Exception as error:  # decoders raise many kinds
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk
            where = "" if isinstance(file, bytes) else f"{file}: "
            if isinstance(error, UnidentifiedImageError) or is_heif(head):
                reason = f"it is {describe_file(opened)}"
            elif isinstance(error, Image.DecompressionBombError):
                reason = why_too_large(error)
            else:
                reason = explain(error)
            raise PictureError(f"{where}cannot be read as a picture ({reason})") from error
        yield picture


def decode_image(data: bytes) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 RGB; raises `PictureError`."""
    with open_picture(data) as picture:
        return np.asarray(picture.convert("RGB"))


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation of an open picture; 1, upright, also where the EXIF is damaged."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds; the pixels are good
        return 1
