"""Finds and reads pictures: files, PIL images, arrays and tensors become RGB pixels or an error.

Values are taken as they are: 0..255 in uint8, 0..65535 in uint16 and in files with more than 8
bits (int16, int32 and uint32 included), 0..1 in floating point. A picture of more than 8 bits that
uses at most 1/16 of its range gives one warning and is not stretched.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ._warnings import filtered
from .files import explain
from .picture_formats import (
    SUBFILE_TYPE,
    describe_file,
    is_heif,
    pillow_error,
    png_is_deep,
    register_heif,
)
from .picture_sources import DecodedPicture, EncodedPicture, fetch_source, is_pipe
from .picture_values import ImageError, as_rgb, check_range, from_array, warn_of_sliver, warn_once

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    Picture = str | Path | bytes | BinaryIO | np.ndarray | Tensor | Image
else:
    Picture = Any

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO = 0

PHOTO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm"),
        *("png", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
"""Suffixes of the files in a folder that count as pictures, in lower case."""


# ---------------------------------------------------------------------------------------- files


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
    """Describes a path that is not a file."""
    if path.is_symlink() and not path.exists():
        return f"is a link to {os.readlink(path)}, which does not exist"
    kinds = {
        "a folder": path.is_dir(),
        "a pipe": path.is_fifo(),
        "a socket": path.is_socket(),
        "a device": path.is_char_device() or path.is_block_device(),
    }
    return next((f"is {kind}" for kind, is_kind in kinds.items() if is_kind), "does not exist")


def load_image(path: str | Path) -> np.ndarray:
    """Reads an image file as RGB, upright as its EXIF orientation says.

    Pillow refuses files of more than 179 megapixels. The environment variable DAFAST_MAX_PIXELS
    sets another limit (in pixels; 0 for none), as `PIL.Image.MAX_IMAGE_PIXELS` does in Python.

    Args:
        path: A file in any format that Pillow reads, or a pipe. A file with several pages or
            frames gives a warning, and the first full page is used.

    Returns:
        uint8 (H, W, 3), or float32 (H, W, 3) in 0..1 for a gray file with 16 or 32 bits.
        Transparent pixels are laid over white.

    Raises:
        ImageError: If the file is missing, damaged, or not an image.
    """
    path = Path(path)
    if not path.is_file() and not is_pipe(path):
        raise ImageError(f"{path}: {why_no_file(path)}")
    try:
        with path.open("rb") as file:
            # Pillow seeks, which a pipe cannot.
            return read_image(io.BytesIO(file.read()) if is_pipe(path) else file, str(path))
    except OSError as error:
        reason = error.strerror or explain(error)
        raise ImageError(f"{path}: cannot be read as an image ({reason})") from error


def read_image(file: BinaryIO, name: str) -> np.ndarray:
    """Reads an image from an open file; otherwise as `load_image`.

    Args:
        file: A file that can seek.
        name: Its name in messages.

    Raises:
        ImageError: If it is damaged, or not an image.
    """
    from PIL import UnidentifiedImageError

    head = b""
    try:
        head = file.read(512)
        if is_heif(head):
            register_heif()
        # No name for the stored image: if it was turned, it must not outlive its copy.
        return from_pil(_upright(_open(file, head, name)), name, deep=png_is_deep(head))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on a damaged file
        reason = explain(error).replace(name, "the file")
        if isinstance(error, UnidentifiedImageError) or is_heif(head):
            reason = describe_file(file)
        raise ImageError(f"{name}: cannot be read as an image ({reason})") from error


def set_pixel_limit() -> None:
    """Sets Pillow's limit of pixels to DAFAST_MAX_PIXELS, if that is given.

    Raises:
        ImageError: If it is not a number of pixels.
    """
    import PIL.Image

    limit = os.environ.get("DAFAST_MAX_PIXELS", "")
    if limit:
        if not limit.isdecimal():
            raise ImageError(
                f"DAFAST_MAX_PIXELS={limit!r}: must be a number of pixels; 0: no limit"
            )
        PIL.Image.MAX_IMAGE_PIXELS = (int(limit) + 1) // 2 or None  # Pillow refuses twice that


def why_too_large(error: Exception) -> str:
    """Describes a `PIL.Image.DecompressionBombError`: the size of the picture, and the remedy."""
    import PIL.Image

    pixels = re.search(r"\((\d+) pixels\)", str(error))
    size = f"{int(pixels[1]) / 1e6:.0f} megapixels are" if pixels else "the size is"
    most = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0) / 1e6
    return (
        f"{size} above Pillow's limit of {most:.0f}, which protects against files that are made to "
        "fill the memory. If you trust the file, set the environment variable "
        "DAFAST_MAX_PIXELS=0, or in Python PIL.Image.MAX_IMAGE_PIXELS = None"
    )


def _open(file: BinaryIO, head: bytes, name: str) -> Image:
    """Opens a picture at its first full page; the pixels are not read yet."""
    import PIL.Image

    set_pixel_limit()
    try:
        # Pillow warns at half of its limit, and of damage that it then raises an error for.
        with filtered("ignore"):
            image = PIL.Image.open(file)
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {why_too_large(error)}") from error
    if reason := pillow_error(image, head, file):
        raise ImageError(f"{name}: {reason}")
    _seek_full_page(image, name)
    return image


def _seek_full_page(image: Image, name: str) -> None:
    """Chooses the first page that is not a thumbnail, and warns if there are several."""
    pages = getattr(image, "n_frames", 1)
    # The other pages of these formats are a phone's depth or gain map, and layers.
    if pages == 1 or image.format in ("MPO", "PSD"):
        return
    used = 0
    if image.format == "TIFF":
        sizes: dict[int, tuple[int, int]] = {}
        for page in range(pages):
            image.seek(page)
            if not image.tag_v2.get(SUBFILE_TYPE, 0) & 1:  # type: ignore[attr-defined]
                sizes[page] = image.size
        # Some writers leave the mark of a thumbnail out: a page of at most half the largest size.
        half = [max((size[side] for size in sizes.values()), default=0) / 2 for side in (0, 1)]
        full = (page for page, size in sizes.items() if size[0] > half[0] and size[1] > half[1])
        used = next(full, min(sizes, default=0))
    image.seek(used)
    which = "the first" if used == 0 else f"page {used + 1}, the first at full size,"
    warn_once(
        name, f"{pages} pages or frames; only {which} is used. Save each as a picture to use all"
    )


def _upright(image: Image) -> Image:
    """The image turned as its EXIF orientation says, or the image itself if it is upright.

    `ImageOps.exif_transpose` also writes the other tags back, and fails if one is malformed.
    """
    from PIL import ExifTags
    from PIL.Image import Transpose

    image.load()  # some formats have their EXIF after the pixels, and Pillow turns TIFF files
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


def from_pil(image: Image, name: str = "image", *, deep: bool = False) -> np.ndarray:
    """Converts a PIL image of any mode to RGB, as `load_image` returns it.

    Args:
        image: The image.
        name: Its name in messages.
        deep: Whether the file had more than 8 bits, if Pillow has reduced it to 8.

    Raises:
        ImageError: If its values are out of the range of its mode.
    """
    import PIL.Image

    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "I" and _is_unsigned(tags):
            values = values.view(np.uint32)  # Pillow's mode "I" is signed
        values = values.astype(np.float32)
        # "I" holds 16 bits in 32: Pillow's way to open some 16-bit files.
        top = 1 if image.mode == "F" else 65535
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts these only up to 8 bits
            np.subtract(top, values, out=values)
        check_range(values, top, name)
        values /= top
        return as_rgb(values)
    if image.mode == "La":
        image = image.convert("LA")  # Pillow converts it to nothing else
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = PIL.Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if deep or max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8:
        warn_of_sliver(float(pixels.min()), float(pixels.max()), 255, name, reduced=True)
    return pixels


def _is_unsigned(tags: Mapping[int, Any]) -> bool:
    return tags.get(_BITS_PER_SAMPLE) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,)


def focal_from_exif(image: Any) -> float | None:
    """FocalLengthIn35mmFilm of a photo's EXIF data in millimetres, if it is known.

    Args:
        image: A path, a PIL image, an `EncodedPicture` or a `DecodedPicture`; anything else has no
            EXIF data.

    Returns:
        A value above 0, or None if it is missing or the photo cannot be read.
    """
    import PIL.Image
    from PIL import ExifTags

    if isinstance(image, DecodedPicture):
        return image.focal_35mm
    try:
        if isinstance(image, str | Path | EncodedPicture):
            if not isinstance(image, EncodedPicture) and is_pipe(Path(image)):
                return None
            with _opened(image) as file:
                head = file.read(512)
                file.seek(0)
                if is_heif(head):
                    register_heif()
                with PIL.Image.open(file) as opened:
                    if not opened.getexif():
                        opened.load()  # some formats have their EXIF after the pixels
                    exif = opened.getexif()
        elif hasattr(image, "getexif"):
            exif = image.getexif()
        else:
            return None
        value = float(exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm])
    except Exception:  # not a photo, no such entry, or a damaged EXIF block
        return None
    return value if 0 < value < float("inf") else None


def _opened(image: str | Path | EncodedPicture) -> BinaryIO:
    return io.BytesIO(image.data) if isinstance(image, EncodedPicture) else open(image, "rb")


def as_array(image: Any, name: str) -> np.ndarray:
    """Anything that `infer` takes to uint8 (H, W, 3), or float32 (H, W, 3) in 0..1.

    Works without PyTorch.

    Raises:
        ImageError: If the image cannot be used; the message has its name.
    """
    if isinstance(image, DecodedPicture):
        return image.pixels
    image = fetch_source(image, name)
    torch = sys.modules.get("torch")  # without it there are no tensors
    if torch is not None and isinstance(image, torch.Tensor):
        return from_array(_array_of(image, name), name)
    if isinstance(image, EncodedPicture):
        return read_image(io.BytesIO(image.data), image.name or name)
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, np.ndarray):
        return from_array(image, name)
    if hasattr(image, "convert") and hasattr(image, "getbands"):
        file = getattr(image, "filename", "") or name
        try:
            if reason := pillow_error(image):
                raise ImageError(f"{file}: {reason}")
            return from_pil(_upright(image), name)
        except ImageError:
            raise
        except Exception as error:  # opened, but never read until now
            raise ImageError(f"{file}: cannot be read as an image ({explain(error)})") from error
    raise ImageError(
        f"{name}: {type(image).__name__} is not an image; pass a path, a URL, bytes, a "
        "file object, a PIL image, a numpy array (H, W, C) or a tensor (C, H, W), or a list "
        "of them"
    )


def _array_of(image: Tensor, name: str) -> np.ndarray:
    """A tensor (C, H, W) as an array (H, W, C)."""
    import torch

    if image.is_meta or image.is_quantized or image.layout != torch.strided:
        kind = "on meta" if image.is_meta else "quantized" if image.is_quantized else "sparse"
        how = {"sparse": "; use image.to_dense()", "quantized": "; use image.dequantize()"}
        raise ImageError(f"{name}: the tensor is {kind}{how.get(kind, ', without values')}")
    if image.ndim != 3 or image.shape[0] not in (1, 2, 3, 4):
        hint = ""
        if image.ndim == 4:
            hint = "; for a batch pass list(batch)"
        elif image.ndim == 3 and image.shape[2] in (1, 2, 3, 4):
            hint = "; use image.permute(2, 0, 1)"
        raise ImageError(f"{name}: a tensor must be (C, H, W); got {tuple(image.shape)}{hint}")
    if image.is_floating_point() and image.dtype != torch.float64:
        image = image.float()
    return image.detach().permute(1, 2, 0).cpu().numpy()


def as_pixels(image: Any, name: str) -> Tensor:
    """`as_array` as a tensor: uint8 (H, W, 3), or float32 (3, H, W) in 0..1.

    Raises:
        ImageError: If the image cannot be used; the message has its name.
    """
    import torch

    # torch needs writable memory with positive strides; Pillow's may have neither.
    tensor = torch.from_numpy(np.require(as_array(image, name), requirements=["C", "W"]))
    return tensor if tensor.dtype == torch.uint8 else tensor.permute(2, 0, 1)


def decode(image: Any, name: str = "") -> DecodedPicture:
    """Reads an image once, so that it can be checked before it is predicted.

    Args:
        image: Anything that `infer` takes.
        name: Its name in messages.

    Raises:
        ImageError: If the image cannot be used.
    """
    source = fetch_source(image, name or "image")
    return DecodedPicture(as_array(source, name or "image"), focal_from_exif(source), name)
