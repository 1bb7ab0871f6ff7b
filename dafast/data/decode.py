"""Decodes the pictures of data sets; an error always says what is wrong."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dafast.files import explain, file_kind

DECODE_ERRORS = (OSError, ValueError, SyntaxError)
"""Errors of a damaged picture. `MemoryError` is not one of them: the file may be good."""

_ORIENTATION = 0x0112  # EXIF tag


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
            picture = Image.open(opened)
            picture.load()
        except MemoryError:
            raise
        except Exception as error:  # decoders raise many kinds
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk
            where = "" if isinstance(file, bytes) else f"{file}: "
            raise PictureError(
                f"{where}cannot be read as a picture ({_why(error, head)})"
            ) from error
        yield picture


def _why(error: Exception, head: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is {file_kind(head) or 'of no format that Pillow reads'}"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, the limit of Pillow; "
            "make it smaller"
        )
    return explain(error)


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
