"""Finds and reads pictures: files, PIL images, arrays and tensors become RGB pixels or an error."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .optional import why_no_module

if TYPE_CHECKING:
    from PIL.Image import Image

PHOTO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm"),
        *("png", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
"""Suffixes of the files in a folder that count as pictures, in lower case."""


class ImageError(ValueError):
    """An image that cannot be read or used; the message names it and what is wrong."""


def find_pictures(
    folder: Path, recursive: bool = True
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Lists the pictures of a folder, by their suffix; hidden files and folders do not count.

    A link to a picture is a picture. Links to folders are not followed.

    Args:
        folder: The folder.
        recursive: Whether to look into subfolders.

    Returns:
        The pictures in order of name; and the entries that may be or hold pictures and cannot be
        read or followed, with the reason.
    """
    found: list[Path] = []
    problems: list[tuple[Path, str]] = []
    folders = [folder]
    while folders:
        current = folders.pop()
        try:
            entries = sorted(current.iterdir())
        except OSError as error:
            problems.append((current, error.strerror or str(error)))
            continue
        for path in entries:
            if path.name.startswith("."):
                continue
            picture = path.suffix.lower() in PHOTO_SUFFIXES
            try:
                if path.is_dir():
                    if recursive and path.is_symlink():
                        problems.append((path, _LINKED))
                    elif recursive:
                        folders.append(path)
                elif path.is_file():
                    found += [path] * picture
                elif picture or (recursive and path.is_symlink()):
                    problems.append((path, why_no_file(path)))
            except OSError as error:
                if picture or recursive:
                    problems.append((path, error.strerror or str(error)))
    return sorted(found), problems


_LINKED = "a link to a folder, which is not followed; name the folder itself to read it too"


def why_no_file(path: Path) -> str:
    """Says of a path that is no file what it is instead."""
    if path.is_dir():
        return "is a folder"
    if path.is_symlink():
        return f"is a link to {os.readlink(path)}, which does not exist"
    return "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"


def is_pipe(path: Path) -> bool:
    """Whether a path names a stream that can be read only once: a pipe, a terminal, ``<(...)``."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def load_image(path: str | Path) -> np.ndarray:
    """Reads an image file as RGB, turned upright as its EXIF orientation says.

    Args:
        path: Any format that Pillow reads; a pipe is read to its end.

    Returns:
        uint8 (H, W, 3), or float32 (H, W, 3) in 0..1 for a 16-bit or floating-point file.
        Transparent pixels are laid over white.

    Raises:
        ImageError: If the file is missing, corrupt or not an image.
    """
    path = Path(path)
    if is_pipe(path):
        return read_image(io.BytesIO(path.read_bytes()), str(path))
    if not path.is_file():
        raise ImageError(f"{path}: {why_no_file(path)}")
    try:
        file = path.open("rb")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"{path}: cannot be read as an image ({reason})") from error
    with file:
        return read_image(file, str(path))


def read_image(file: BinaryIO, name: str) -> np.ndarray:
    """Reads an image from an open file; otherwise as `load_image`.

    Args:
        file: Can be read from any position (`seek`).
        name: Named in errors.

    Raises:
        ImageError: If it is corrupt or not an image.
    """
    from PIL import Image, UnidentifiedImageError

    head = b""
    try:
        head = file.read(512)
        if _is_heif(head):
            register_heif()
        # No name for the stored image: where it was turned it must not outlive its copy.
        return from_pil(_upright(Image.open(file)), name)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on a corrupt file
        reason = str(error).replace(name, "the file")
        if isinstance(error, UnidentifiedImageError) or _is_heif(head):
            reason = _what_is_it(head)
        raise ImageError(f"{name}: cannot be read as an image ({reason})") from error


def register_heif() -> str:
    """Lets Pillow open HEIC and HEIF photos, with the package pillow-heif.

    Returns:
        Why it cannot, "" if it can.
    """
    why = why_no_module("pillow_heif")
    if not why:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return why


def _upright(image: Image) -> Image:
    """The image turned as its EXIF orientation says; itself where there is nothing to turn.

    `ImageOps.exif_transpose` also writes the other tags back, and fails where one is malformed.
    """
    from PIL import ExifTags
    from PIL.Image import Transpose

    image.load()  # some formats have their EXIF behind the pixels, and TIFF is turned by Pillow
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block costs its orientation, not the picture
        return image
    methods: dict[Any, Transpose] = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    method = methods.get(orientation)
    return image if method is None else image.transpose(method)


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def _what_is_it(head: bytes) -> str:
    """Says from its first bytes what a file that Pillow does not know is instead."""
    if not head:
        return "an empty file"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, as a failed download leaves it"
    if _is_heif(head):
        if why := why_no_module("pillow_heif"):
            return (
                "a HEIC or HEIF photo, which Pillow does not read by itself: convert it to JPEG, "
                f"or pip install pillow-heif ({why})"
            )
        return "a damaged HEIC or HEIF photo"
    return "no image format that Pillow knows"


def from_pil(image: Image, name: str = "image") -> np.ndarray:
    """A PIL image of any mode to RGB, as `load_image` returns it.

    Raises:
        ImageError: If its values are out of the range of its mode.
    """
    import PIL.Image

    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        # "I" holds 16 bits in 32: Pillow's way to open 16-bit files.
        top = 1 if image.mode == "F" else 65535
        _check_range(values, top, f"{name}: values of a gray image", "convert it to 8 or 16 bits")
        values /= top
        return _as_rgb(values, name)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = PIL.Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_range(values: np.ndarray, top: int, subject: str, remedy: str) -> None:
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-3 * top and high <= 1.001 * top):  # also catches NaN
        raise ImageError(
            f"{subject} must be in 0..{top} without NaN; got {low:g}..{high:g} ({remedy})"
        )


def _as_rgb(array: np.ndarray, name: str) -> np.ndarray:
    """A numpy image of any accepted kind to uint8 or float32 (H, W, 3)."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"{name}: an array must be (H, W), or (H, W, C) with 1 to 4 channels in the last "
            f"dimension, and not empty; got {array.shape}"
        )
    if not array.dtype.isnative:  # big-endian, as some files have it
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.uint16:
        array = array.astype(np.float32)
        array /= 65535
    elif np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32, copy=False)
        _check_range(array, 1, f"{name}: floating-point images", "divide by 255, or pass uint8")
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ImageError(f"{name}: dtype {array.dtype}; use uint8, uint16 or floating point")
    if array.shape[2] in (2, 4):
        white = np.float32(255 if array.dtype == np.uint8 else 1)
        alpha = array[..., -1].astype(np.float32)
        alpha /= white
        color = np.empty((*array.shape[:2], array.shape[2] - 1), array.dtype)
        for c in range(color.shape[2]):  # one at a time: floats of a large photo are large
            plane = array[..., c] * alpha + white * (1 - alpha)
            color[..., c] = plane.round() if array.dtype == np.uint8 else plane
        array = color
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return array


def as_pixels(image: Any, name: str) -> Tensor:
    """Anything that `infer` takes to uint8 (H, W, 3) or float32 (3, H, W) in 0..1."""
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 2, 3, 4):
            raise ImageError(f"{name}: a tensor must be (C, H, W); got {tuple(image.shape)}")
        if image.dtype in (torch.float16, torch.bfloat16):
            image = image.float()
        array = _as_rgb(image.detach().permute(1, 2, 0).cpu().numpy(), name)
    elif isinstance(image, str | Path):
        array = load_image(image)
    elif isinstance(image, np.ndarray):
        array = _as_rgb(image, name)
    elif hasattr(image, "convert") and hasattr(image, "getbands"):
        try:
            array = from_pil(_upright(image), name)
        except ImageError:
            raise
        except Exception as error:  # opened, but never read until now
            name = getattr(image, "filename", "") or name
            raise ImageError(f"{name}: cannot be read as an image ({error})") from error
    else:
        raise ImageError(
            f"{name}: {type(image).__name__} is not an image; pass a path, a PIL image, a numpy "
            "array (H, W, C) or a tensor (C, H, W)"
        )
    # torch wants writable memory with positive strides; Pillow's is neither for sure.
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor if tensor.dtype == torch.uint8 else tensor.permute(2, 0, 1)
