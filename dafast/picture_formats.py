"""Recognises picture files that Pillow does not know, and those that it reads wrongly."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from ._warnings import filtered
from .optional import why_no_module

if TYPE_CHECKING:
    from PIL.Image import Image

SUBFILE_TYPE = 254
"""TIFF tag whose lowest bit marks a thumbnail."""
_WIDTH, _HEIGHT, _BITS, _SAMPLES, _PLANAR, _SUBFILES = 256, 257, 258, 277, 284, 330
_SAMPLE_FORMAT, _DNG_VERSION = 339, 50706

_PIXELS = "pass its pixels as an array in RGB (floating point in 0..1), or convert it to PNG"
_HDR = f"read it with OpenCV or imageio, map its values to 0..1, and {_PIXELS}"
_VIDEO = "a video; save its frames as pictures first, e.g. ffmpeg -i FILE frame_%06d.png"
_ARCHIVE = "unpack it first"
_RAW = "a camera's raw file; convert it to JPEG or PNG, or read it with rawpy and pass the array"

# Offset, first bytes and description of each kind of file.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"v/1\x01", f"an OpenEXR picture; {_HDR}"),
    (0, b"#?RADIANCE", f"a Radiance HDR picture; {_HDR}"),
    (0, b"#?RGBE", f"a Radiance HDR picture; {_HDR}"),
    (0, b"PF\n", f"a PFM picture; {_HDR}"),
    (0, b"PF ", f"a PFM picture; {_HDR}"),
    (0, b"\x93NUMPY", "a numpy array; pass np.load(path), as an RGB array (H, W, 3)"),
    (0, b"\xff\x0a", f"a JPEG XL picture; {_PIXELS}"),
    (4, b"JXL ", f"a JPEG XL picture; {_PIXELS}"),
    (4, b"ftypcrx", _RAW),
    (8, b"CR\x02", _RAW),
    (0, b"FUJIFILMCCD-RAW", _RAW),
    (0, b"IIU\0", _RAW),
    (0, b"IIRO", _RAW),
    (4, b"ftyp", _VIDEO),
    (4, b"moov", _VIDEO),
    (4, b"mdat", _VIDEO),
    (0, b"\x1aE\xdf\xa3", _VIDEO),
    (8, b"AVI ", _VIDEO),
    (0, b"FLV\x01", _VIDEO),
    (0, b"\0\0\x01\xba", _VIDEO),
    (0, b"\0\0\x01\xb3", _VIDEO),
    (0, b"0&\xb2u\x8ef\xcf\x11", _VIDEO),
    (0, b"OggS", _VIDEO),
    (0, b"%PDF", "a PDF document; export its pages as pictures first"),
    (0, b"PK\x03\x04", f"a ZIP archive (or .npz); {_ARCHIVE}"),
    (0, b"\x1f\x8b", f"a gzip archive; {_ARCHIVE}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7-Zip archive; {_ARCHIVE}"),
    (0, b"Rar!", f"a RAR archive; {_ARCHIVE}"),
    (257, b"ustar", f"a tar archive; {_ARCHIVE}"),
    (0, b"\x89HDF", "an HDF5 file; read the picture with h5py and pass the array"),
    (0, b"MATLAB 5.0", "a MATLAB file; read the picture with scipy.io and pass the array"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file: run git lfs pull"),
    (0, b"SIMPLE  =", f"a FITS picture of a kind that Pillow does not read; {_PIXELS}"),
)


def is_heif(head: bytes) -> bool:
    """Whether a file that begins like this is a HEIC or HEIF photo."""
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def register_heif() -> str:
    """Lets Pillow open HEIC and HEIF photos, with the package pillow-heif.

    Returns:
        The reason why it cannot, or "".
    """
    why = why_no_module("pillow_heif")
    if not why:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return why


def describe_file(file: BinaryIO) -> str:
    """Describes a file that Pillow does not know, with the remedy."""
    file.seek(0)
    head = file.read(512)
    if not head:
        return "an empty file"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, as a failed download leaves it"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "an SVG drawing; export it as PNG"
    if is_heif(head):
        if why := why_no_module("pillow_heif"):
            return (
                "a HEIC or HEIF photo, which Pillow does not read by itself: convert it to JPEG, "
                f"or pip install 'dafast[heif]' ({why})"
            )
        return "a damaged HEIC or HEIF photo"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        from PIL import features

        if features.check("avif"):
            return "a damaged AVIF picture"
        return "an AVIF picture, which needs Pillow 11.3 or later with AVIF support"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and head[8:11] != b"CR\x02":
        return _describe_tiff(file)
    if head[:1] == head[188:189] == head[376:377] == b"G":  # packets of an MPEG stream
        return _VIDEO
    for offset, signature, what in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return what
    if not any(byte < 9 or 13 < byte < 32 for byte in head):
        return "no image format that Pillow knows; it looks like text"
    return "no image format that Pillow knows"


def _describe_tiff(file: BinaryIO) -> str:
    """Describes a TIFF that Pillow does not open, from its tags."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        file.seek(0)
        start = file.read(16)
        # BigTIFF has the number 43, and a longer header.
        tags = ImageFileDirectory_v2(start if 43 in start[2:4] else start[:8])
        file.seek(tags.next)
        with filtered("error"):  # Pillow only warns of a truncated file
            tags.load(file)
        bits, bands = tags.get(_BITS, (1,)), tags.get(_SAMPLES, 1)
        kind = {2: "int", 3: "float"}.get(tags.get(_SAMPLE_FORMAT, (1,))[0], "uint")
        if _WIDTH not in tags or _HEIGHT not in tags:
            return "a damaged or truncated TIFF"
    except Exception:
        return "a damaged or truncated TIFF"
    if _DNG_VERSION in tags:
        return _RAW
    many = f"{bands} bands" if bands != 1 else "one band"
    choose = "choose three bands " if bands > 4 else ""
    return (
        f"a TIFF with {many} of {kind}{max(bits)}, which Pillow does not read; read it with "
        f"tifffile, {choose}and {_PIXELS}"
    )


_CONVERT = "convert it to PNG, or read it with another library and pass the array"


def pillow_error(image: Image, head: bytes = b"", file: BinaryIO | None = None) -> str:
    """Why the pixels that Pillow reads from an opened file would be wrong; "" if they are right.

    Args:
        image: The opened image.
        head: The first bytes of the file.
        file: The file; its position is kept. By default that of the image, if it is still open.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    raw = tags.get(SUBFILE_TYPE, 0) & 1 and _SUBFILES in tags  # DNG, NEF, ARW
    if raw or _DNG_VERSION in tags or head[8:11] == b"CR\x02":
        return f"Pillow reads only the thumbnail of {_RAW}"
    bits = max(tags.get(_BITS, (8,)))
    if bits > 8 and tags.get(_SAMPLES, 1) > 1 and tags.get(_PLANAR, 1) == 2:
        return f"a TIFF of {bits} bits with separate planes, which Pillow reads wrongly; {_CONVERT}"
    if bits == 8 and tags.get(_SAMPLE_FORMAT, (1,))[0] == 2:
        return f"a TIFF of signed 8-bit values, which Pillow reads wrongly; {_CONVERT}"
    if image.format == "JPEG2000" and len(image.getbands()) > 1:
        file = file or getattr(image, "fp", None)
        depth = 8 if file is None or file.closed else _jpeg2000_bits(file)
        if depth > 8:  # rounding makes the brightest values overflow to black
            return (
                f"a JPEG 2000 of {depth} bits in several bands, which Pillow reads wrongly "
                f"(white becomes black); {_CONVERT}"
            )
    return ""


def _jpeg2000_bits(file: BinaryIO) -> int:
    """Bits per sample from the codestream's header, of the first component; 8 if not found."""
    position = file.tell()
    file.seek(0)
    content = file.read(1 << 20)  # the header may follow a colour profile
    file.seek(position)
    start = content.find(b"\xff\x4f\xff\x51")
    fields = content[start + 4 : start + 43]
    if start < 0 or len(fields) < 39:
        return 8
    return (struct.unpack_from(">B", fields, 38)[0] & 0x7F) + 1


def png_is_deep(head: bytes) -> bool:
    """Whether a file that begins like this is a PNG of 16 bits."""
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10"
