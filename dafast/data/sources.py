"""Pictures on disk, with or without depth, as the samples of shards.

A source lists its items without opening them; `Item.load` returns the files of one sample as in
`dafast.data.shards`. Here are folders of photographs and shards; `dafast.data.lists` has
lists of pictures with depth or disparity, `dafast.data.readers` the published data sets.
"""

from __future__ import annotations

import copy
import io
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from PIL import Image, ImageOps

from dafast.data.decode import decode_image, open_picture, orientation
from dafast.data.png16 import encode_png16
from dafast.data.shards import (
    SampleError,
    ShardDataset,
    minmax,
)
from dafast.images import PHOTO_SUFFIXES, find_pictures, register_heif

_JPEG_QUALITY = 95

COARSE = 0.005
"""A label is coarse if half a step of its 16 bits is more than this fraction of its median.

A step is 1/65535 of the map's largest disparity: one pixel that is much too near costs all others
their precision.
"""


class SourceError(ValueError):
    """A source or one of its items cannot be read; the message names it and the remedy."""


class Unlabeled(SourceError):  # noqa: N818 (failures show this name)
    """An item without a valid pixel in its label: it is left out and named, but not damaged."""


class Labeled(NamedTuple):
    """One labeled picture.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        disparity: (H, W) float32 in [0, 1], min to max of the map; 0 where invalid.
        mask: (H, W) bool, True where the label is valid.
        half_step: Half a step of 16 bits, the largest error of the disparity in a shard, as a
            fraction of the map's median; 0 if it is not above `COARSE`.
    """

    image: np.ndarray
    disparity: np.ndarray
    mask: np.ndarray
    half_step: float = 0.0


@dataclass(frozen=True)
class Item:
    """One future sample.

    Attributes:
        name: Its name in messages; the same source gives the same names in the same order.
        load: Returns its files by suffix; raises `SourceError` or one of `DECODE_ERRORS`.
        read: Returns the same as arrays if it is labeled; raises the same.
        described: Everything else that determines it, to recognise shards of another one.
        files: The files that it is read from, to recognise shards of files that have changed.
    """

    name: str
    load: Callable[[], dict[str, bytes]]
    read: Callable[[], Labeled] | None = None
    described: str = ""
    files: tuple[Path, ...] = ()


class Pictures(Sequence[Item]):
    """Unlabeled pictures by name. There may be millions: items are created on access.

    Args:
        names: Their names.
        read: Returns the content of a picture by its name; raises `SourceError` or `OSError`.
        file: Returns the file that contains it, by its name.
        size: Pictures whose shorter side is longer than this are scaled down to it; 0 keeps them.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[str], bytes],
        file: Callable[[str], Path],
        size: int = 0,
    ) -> None:
        self._names, self._read, self._file, self._size = names, read, file, size

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Item | Pictures:
        if isinstance(index, slice):
            return Pictures(self._names[index], self._read, self._file, self._size)
        name = self._names[index]

        def load() -> dict[str, bytes]:
            meta = json.dumps({"source": name}).encode()
            return {**image_members(self._read(name), self._size), "json": meta}

        return Item(name, load, files=(self._file(name),))


def labeled_item(
    name: str,
    image: Path,
    label: Callable[[], tuple[np.ndarray, np.ndarray]],
    described: str = "",
    disparity_unit: str = "",
    files: Sequence[Path] = (),
) -> Item:
    """An item of a picture and its label.

    Args:
        name: The item's name.
        image: The picture.
        label: Returns disparity (H, W), in any unit, and the mask (H, W) of known pixels. Disparity
            that is not finite is unknown in any case.
        described: As in `Item`.
        disparity_unit: Unit that the shard stores: "1/metre" or "relative"; "" if it is not known.
        files: Those of the label.
    """

    def parts() -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
        disparity, known = label()
        if known.shape != disparity.shape:
            raise SourceError(f"the mask is {_size(known)}, the label {_size(disparity)}")
        known = known & np.isfinite(disparity)
        if not known.any():
            raise Unlabeled("no pixel of the label is valid")
        if float(disparity[known].min()) < 0:
            raise SourceError(f"disparity {float(disparity[known].min()):g} is negative")
        file = image.read_bytes()
        with open_picture(file) as picture:
            if orientation(picture) not in (0, 1):
                raise SourceError(
                    f"{image} has an EXIF orientation that turns it, and its label is not turned: "
                    "store the picture upright, as the label is"
                )
            if (picture.height, picture.width) != disparity.shape:
                raise SourceError(
                    f"the picture is {picture.height} x {picture.width}, its label "
                    f"{_size(disparity)}"
                )
            return _image_members(picture, file, 0), disparity, known

    def load() -> dict[str, bytes]:
        members, disparity, known = parts()
        meta = {"source": name} | ({"disparity_unit": disparity_unit} if disparity_unit else {})
        return {**members, **label_members(disparity, known, meta)}

    def read() -> Labeled:
        members, disparity, known = parts()
        image = decode_image(members["jpg"])
        return Labeled(image, minmax(disparity, known), known, half_step(disparity, known))

    return Item(name, load, read, described, (image, *files))


def half_step(disparity: np.ndarray, mask: np.ndarray) -> float:
    """How coarse a map is in 16 bits: `Labeled.half_step`.

    Disparity 0, which is exact, does not count. The median of a large map is that of every n-th
    pixel.
    """
    valid = disparity[mask & (disparity > 0)]
    if not valid.size:
        return 0.0
    share = float(valid.max() / np.median(valid[:: 1 + valid.size // 65536])) / 2 / 65535
    return share if share > COARSE else 0.0


def name_coarse(coarse: Sequence[tuple[str, float]]) -> str:
    """A line about coarse labels, given as (name, half a step), with the remedy."""
    name, share = max(coarse, key=lambda pair: pair[1])
    return (
        f"{len(coarse)} with a coarse label: something in it is so near that half a step of 16 "
        f"bits is more than {COARSE:.1%} of the median disparity ({name}: {share:.1%}). If that is "
        "not true depth, make it unknown: min_depth (a list's column, or --min-depth), or the mask"
    )


def _size(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape))


def folder_source(folder: Path, size: int = 0) -> Pictures:
    """The pictures of a folder and its subfolders, in order of name; hidden ones are left out.

    Args:
        folder: The folder.
        size: Pictures whose shorter side is longer than this are scaled down to it; 0 keeps them.

    Raises:
        SourceError: If there is no such folder, no picture in it, or a part of it that cannot be
            read or followed.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    paths, problems = find_pictures(folder)
    if problems:
        named = "; ".join(f"{path}: {reason}" for path, reason in problems[:3])
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SourceError(f"{folder} cannot be read completely: {named}{more}")
    if not paths:
        raise SourceError(f"{folder}: no pictures ({', '.join(sorted(PHOTO_SUFFIXES))})")
    if any(path.suffix.lower() in (".heic", ".heif") for path in paths):
        register_heif()
    names = [path.relative_to(folder).as_posix() for path in paths]
    return Pictures(names, lambda name: (folder / name).read_bytes(), folder.joinpath, size)


def shard_source(data: ShardDataset) -> list[Item]:
    """Samples of shards for `check`, each with its label if it has one.

    `data` is opened without labels, which accepts samples of both kinds.
    """
    data = copy.copy(data)
    data.labels = "minmax"
    own = threading.local()  # open files of shards are not shared among threads

    def opened() -> ShardDataset:
        if not hasattr(own, "data"):
            own.data = copy.copy(data)
        return own.data

    def item(index: int) -> Item:
        def load() -> dict[str, bytes]:
            return {"jpg": opened().image_file(index)}

        def read() -> Labeled:
            try:
                sample = opened().read(index)
            except SampleError as error:
                raise SourceError(str(error)) from error
            if not sample.mask.any():
                raise Unlabeled("no pixel of the label is valid")
            half_step = float(opened().meta(index).get("half_step", 0.0))
            return Labeled(sample.image, sample.disparity, sample.mask, half_step)

        return Item(data.name(index), load, read if data.has_label(index) else None)

    return [item(index) for index in range(len(data))]


def label_members(
    disparity: np.ndarray, mask: np.ndarray, meta: dict[str, Any]
) -> dict[str, bytes]:
    """The label's files: `disparity.png`, `json`, and `mask.png` if not all pixels are valid.

    The JSON of a coarse label has `half_step` (`Labeled`).

    Raises:
        SourceError: If a valid disparity is negative, which the format cannot hold.
    """
    valid = disparity[mask]
    if valid.size and float(valid.min()) < 0:
        raise SourceError(f"disparity {float(valid.min()):g} is negative")
    top = float(valid.max()) if valid.size else 0.0
    code = np.zeros(disparity.shape, np.uint16)
    if top > 0:
        code[mask] = np.rint(valid.astype(np.float64) / top * 65535)
    coarse = half_step(disparity, mask)
    if coarse:
        meta = {**meta, "half_step": coarse}
    members = {
        "disparity.png": encode_png16(code),
        "json": json.dumps({**meta, "disparity_max": top}).encode(),
    }
    if not mask.all():
        members["mask.png"] = _png(mask.astype(np.uint8) * 255)
    return members


def image_members(raw: bytes, size: int) -> dict[str, bytes]:
    """The picture for a shard: a plain JPEG unchanged, any other upright and as a JPEG.

    Args:
        raw: Its file.
        size: Scaled down if its shorter side is longer than this; 0 keeps it.

    Raises:
        SourceError: If its pixels are not colours.
        PictureError: If it is damaged or not a picture.
    """
    with open_picture(raw) as picture:
        return _image_members(picture, raw, size)


def _image_members(picture: Image.Image, raw: bytes, size: int) -> dict[str, bytes]:
    if picture.mode == "F" or picture.mode.startswith("I"):
        raise SourceError(f"a picture of mode {picture.mode}: convert it to 8 bits")
    upright = orientation(picture) == 1
    shorter = min(picture.size)
    fits = not size or shorter <= size
    if picture.format == "JPEG" and picture.mode == "RGB" and upright and fits:
        return {"jpg": raw}
    image = (picture if upright else ImageOps.exif_transpose(picture)).convert("RGB")
    if size and shorter > size:
        scale = size / shorter
        shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(shape, Image.Resampling.BILINEAR, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return {"jpg": buffer.getvalue()}


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
