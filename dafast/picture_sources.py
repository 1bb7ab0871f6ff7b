"""Pictures that are not read by a path: bytes, open files, pipes and URLs."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._version import __version__
from .files import explain
from .picture_values import ImageError

_LARGEST = 1 << 30
"""Bytes that a picture behind a URL may have."""
_SECONDS = 60
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class EncodedPicture:
    """The content of a picture file.

    Attributes:
        data: The bytes of the file.
        name: Its name, or "".
    """

    data: bytes = field(repr=False)
    name: str = ""


@dataclass(frozen=True)
class DecodedPicture:
    """A picture as `dafast.images.as_array` returns it, with what its file says of the camera.

    Attributes:
        pixels: uint8 (H, W, 3), or float32 (H, W, 3) in 0..1.
        focal_35mm: FocalLengthIn35mmFilm of the EXIF data in millimetres, or None.
        name: Its name, or "".
    """

    pixels: Any = field(repr=False)
    focal_35mm: float | None = None
    name: str = ""


def is_pipe(path: Path) -> bool:
    """Whether a path names a pipe (``<(...)`` too), which can be read only once.

    Devices do not count: some of them never end.
    """
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except (OSError, ValueError):  # or a name with a null character
        return False


def is_web_url(image: Any) -> bool:
    """Whether an image is a text that begins like an http or https URL."""
    return isinstance(image, str) and image[:8].lower().startswith(("http://", "https://"))


def fetch_source(image: Any, name: str) -> Any:
    """Reads what can be read only once, or not by a path.

    Args:
        image: Anything that `infer` takes.
        name: The name in messages of an image without a name.

    Returns:
        An `EncodedPicture` of bytes, a file that is open for reading in binary mode, a pipe, or an
        http or https URL; anything else as it is.

    Raises:
        ImageError: If a URL cannot be downloaded or has another scheme, or an open file cannot be
            read, or is in text mode.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return EncodedPicture(bytes(image))
    if is_web_url(image):
        return EncodedPicture(_download(image), image)
    if isinstance(image, str) and _SCHEME.match(image) and not Path(image).exists():
        raise ImageError(f"{image}: a URL must begin with http:// or https://")
    if callable(getattr(image, "read", None)):
        own = getattr(image, "name", "")
        own = own if isinstance(own, str) else ""
        try:
            data = image.read()
        except UnicodeDecodeError:
            data = ""
        except (OSError, ValueError) as error:  # for example a closed file
            raise ImageError(f"{own or name}: cannot be read ({explain(error)})") from error
        if not isinstance(data, bytes):
            raise ImageError(
                f"{own or name}: the file is open in text mode; open it with mode 'rb'"
            )
        return EncodedPicture(data, own)
    if isinstance(image, str | Path) and is_pipe(Path(image)):
        return EncodedPicture(Path(image).read_bytes(), str(image))
    return image


def _download(url: str) -> bytes:
    import http.client
    import urllib.error
    import urllib.request

    try:
        # Some servers refuse urllib's own name.
        request = urllib.request.Request(url, headers={"User-Agent": f"dafast/{__version__}"})
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            data = answer.read(_LARGEST + 1)
    except urllib.error.HTTPError as error:
        raise ImageError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None)
        text = explain(reason if isinstance(reason, BaseException) else error)
        raise ImageError(f"{url}: cannot be downloaded ({text})") from error
    if len(data) > _LARGEST:
        raise ImageError(f"{url}: larger than 1 GiB; download it and pass its path")
    return data


def fetch_all(images: Sequence[Any]) -> list[Any]:
    """Reads the images that can be read only once; see `fetch_source`."""
    return [
        fetch_source(image, f"image {i}" if len(images) > 1 else "image")
        for i, image in enumerate(images)
    ]


def name_of(image: Any) -> str:
    """The name of an image: its path, its URL, or ""."""
    if isinstance(image, str | Path):
        return str(image)
    own = isinstance(image, EncodedPicture | DecodedPicture)
    name = getattr(image, "name" if own else "filename", "")
    return name if isinstance(name, str) else ""
