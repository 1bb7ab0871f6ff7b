"""Labeled images in WebDataset tar shards, with random access.

A shard is a plain tar. Per sample, under one key:

    KEY.jpg             RGB image (.jpeg and .png are read too)
    KEY.disparity.png   16-bit: round(disparity / disparity_max * 65535); 0 is sky, a valid label
    KEY.json            {"disparity_max": ..., "seed": ..., "kind": ..., ...}
    KEY.mask.png        optional, 8-bit, nonzero = valid; absent = every pixel is valid

Unlabeled samples have the image alone. A teacher's labels (`dafast label`) need not have the
image's resolution and do not start at 0: their JSON has `disparity_scale`, `disparity_offset`
(disparity = offset + scale * value) and `disparity_size` [rows, columns].

The headers are scanned once; after that a sample is three `pread`s at known offsets, in any order
and from any number of worker processes (`pread` has no shared file position to fight over).
"""

from __future__ import annotations

import glob
import io
import json
import logging
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

logger = logging.getLogger(__name__)

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png")
# Columns of the index: what a sample is made of.
_IMAGE, _DISPARITY, _META, _MASK = range(4)
_COLUMN = {
    **dict.fromkeys(_IMAGE_SUFFIXES, _IMAGE),
    "disparity.png": _DISPARITY,
    "json": _META,
    "mask.png": _MASK,
}
_LABEL = {_DISPARITY: "disparity.png", _META: "json"}
_MAX_OPEN_SHARDS = 64


class ShardError(RuntimeError):
    """The shards as a whole cannot be used; the message names the file and the remedy."""


class SampleError(RuntimeError):
    """One sample cannot be read; the message names the shard and the key."""


class Sample(NamedTuple):
    """One labeled image.

    Attributes:
        key: `shard name/sample key`, as messages and logs name it.
        image: (H, W, 3) uint8 RGB.
        disparity: (H, W) float32; in [0, 1] per map, or physical, as the data set was told. A
            teacher's may have another resolution; where there is none it is a single 0.
        mask: bool, of the disparity's shape: True where the label is valid.
        skipped: Samples that could not be read and that this one stands in for: "key: reason".
    """

    key: str
    image: np.ndarray
    disparity: np.ndarray
    mask: np.ndarray
    skipped: tuple[str, ...] = ()


def expand_shards(
    path_or_glob: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], key: str = ""
) -> list[Path]:
    """Lists the tar files of a folder, a file, a glob pattern, or a sequence of these, sorted.

    ``key`` is the setting that the path came from, for messages.
    """
    if not isinstance(path_or_glob, (str, os.PathLike)):
        return [shard for item in path_or_glob for shard in expand_shards(item, key)]
    text = os.fspath(path_or_glob)
    path = Path(text).expanduser()
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if not shards:
            raise ShardError(
                f"no shards (*.tar) in the folder {path}. "
                f"Make some with `dafast synth --scenes N --out {path}`, or name another folder."
            )
        return shards
    if path.is_file():
        return [path]
    if glob.has_magic(text):
        # `folder/*` also finds the JSON file that describes a synthetic set.
        shards = sorted(Path(m) for m in glob.glob(str(path)) if not m.endswith(".json"))
        if not shards:
            raise ShardError(
                f"no file matches the pattern {text!r}. Check the path (quote the pattern)."
            )
        return shards
    raise ShardError(
        f"no such folder or file: {path}. Make shards with `dafast synth --scenes N --out {path}`, "
        f"or {f'set {key} to where they are' if key else 'name another folder'}."
    )


def minmax(disparity: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Scales a disparity map to [0, 1] over its valid pixels.

    Invalid pixels become 0. A constant map, or one with no valid pixel, becomes all zeros.
    """
    valid = disparity[mask]
    if valid.size == 0:
        return np.zeros(disparity.shape, np.float32)
    low, high = float(valid.min()), float(valid.max())
    if not high > low:
        return np.zeros(disparity.shape, np.float32)
    scaled = (disparity.astype(np.float32) - np.float32(low)) * np.float32(1.0 / (high - low))
    np.clip(scaled, 0.0, 1.0, out=scaled)
    scaled[~mask] = 0.0
    return scaled


class ShardDataset(Dataset[Sample]):
    """Random access to the samples of local tar shards.

    Args:
        path_or_glob: A folder of `*.tar`, one tar, a glob pattern, or a sequence of these.
        labels: `"minmax"` gives disparity in [0, 1] per map (what training wants); `"physical"`
            gives disparity in the unit of the file, 1/metre for the synthetic set (what evaluation
            wants); `"none"` reads no label, and takes samples that have none.
        max_bad_fraction: A sample that cannot be decoded is named, counted and replaced by the
            next; once more than this share of the set has failed (in this process) reading raises.
        key: The setting that the path came from, for messages.
    """

    def __init__(
        self,
        path_or_glob: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        labels: Literal["minmax", "physical", "none"] = "minmax",
        max_bad_fraction: float = 0.01,
        key: str = "",
    ) -> None:
        if labels not in ("minmax", "physical", "none"):
            raise ValueError(f"labels must be 'minmax', 'physical' or 'none', not {labels!r}")
        self.shards = expand_shards(path_or_glob, key)
        self.labels = labels
        self.max_bad_fraction = max_bad_fraction
        self.bad: dict[int, str] = {}
        self._files: OrderedDict[int, int] = OrderedDict()
        keys: list[str] = []
        shard_of: list[int] = []
        places: list[list[tuple[int, int]]] = []
        for number, shard in enumerate(self.shards):
            for key, place in _scan(shard, labeled=labels != "none").items():
                keys.append(key)
                shard_of.append(number)
                places.append(place)
        if not keys:
            raise ShardError(
                f"no sample in {', '.join(map(str, self.shards[:3]))}: the shards are empty."
            )
        # Arrays, not lists of objects: forked workers then share the pages instead of copying them
        # one reference count at a time.
        self._keys = np.array(keys)
        self._shard_of = np.array(shard_of, np.int32)
        self._places = np.array(places, np.int64)  # (samples, 4 members, offset and size)

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        """The sample's name in messages: shard file and key."""
        return f"{self.shards[self._shard_of[index]].name}/{self._keys[index]}"

    def __getitem__(self, index: int) -> Sample:
        """Reads a sample; one that cannot be read is replaced by the next that can."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a set of {len(self)}")
        index %= len(self)
        skipped: list[str] = []
        for shift in range(len(self)):
            candidate = (index + shift) % len(self)
            if candidate in self.bad:
                skipped.append(self.bad[candidate])
                continue
            try:
                return self.read(candidate)._replace(skipped=tuple(skipped))
            except SampleError as error:
                self.bad[candidate] = str(error)
                skipped.append(str(error))
                logger.warning("skipped: %s", error)
                check_bad_share(self.bad.values(), len(self), self.max_bad_fraction)
        raise ShardError("no sample of the set can be read")

    def read(self, index: int) -> Sample:
        """Reads exactly this sample, or raises `SampleError`."""
        try:
            image = decode_image(self.image_file(index))
            if self.labels == "none":
                nothing = np.zeros((1, 1), np.float32)
                return Sample(self.name(index), image, nothing, nothing > 0)
            with Image.open(io.BytesIO(self._member(index, _DISPARITY))) as picture:
                if not picture.mode.startswith("I"):
                    raise ValueError(f"disparity.png has mode {picture.mode}, not 16-bit gray")
                disparity = np.asarray(picture)
            meta = self.meta(index)
            if list(disparity.shape) != list(meta.get("disparity_size", image.shape[:2])):
                raise ValueError(
                    f"image is {image.shape[:2]}, disparity {disparity.shape} (rows, columns)"
                )
            mask = np.ones(disparity.shape, bool)
            if self._places[index, _MASK, 0] >= 0:
                with Image.open(io.BytesIO(self._member(index, _MASK))) as picture:
                    mask = np.asarray(picture.convert("L")) > 0
                if mask.shape != disparity.shape:
                    raise ValueError(
                        f"mask is {mask.shape}, disparity {disparity.shape} (rows, columns)"
                    )
            if self.labels == "minmax":
                disparity = minmax(disparity, mask)
            else:
                if "disparity_scale" in meta:
                    unit = float(meta["disparity_scale"])
                else:
                    unit = float(meta["disparity_max"]) / 65535.0
                disparity = disparity.astype(np.float32) * np.float32(unit)
                disparity += np.float32(meta.get("disparity_offset", 0.0))
        except (*DECODE_ERRORS, KeyError) as error:
            raise SampleError(f"{self.name(index)}: {type(error).__name__}: {error}") from error
        return Sample(self.name(index), image, disparity, mask)

    def meta(self, index: int) -> dict[str, Any]:
        """The sample's JSON; empty where there is none."""
        if self._places[index, _META, 0] < 0:
            return {}
        try:
            return json.loads(self._member(index, _META))
        except ValueError as error:
            raise SampleError(f"{self.name(index)}: json: {error}") from error

    def key(self, index: int) -> str:
        """The sample's key within its shard."""
        return str(self._keys[index])

    def image_file(self, index: int) -> bytes:
        """The sample's image as it is stored."""
        return self._member(index, _IMAGE)

    def label_file(self, index: int) -> bytes:
        """The sample's disparity map as it is stored."""
        return self._member(index, _DISPARITY)

    def _member(self, index: int, column: int) -> bytes:
        offset, size = (int(value) for value in self._places[index, column])
        data = os.pread(self._descriptor(int(self._shard_of[index])), size, offset)
        if len(data) != size:
            raise OSError(
                f"{len(data)} bytes of {size} read: the shard changed since it was indexed"
            )
        return data

    def _descriptor(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= _MAX_OPEN_SHARDS:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return self._files[shard]

    def close(self) -> None:
        """Closes the open shards; reading reopens them."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        # File descriptors mean nothing in a spawned worker.
        return {**self.__dict__, "_files": OrderedDict()}


DECODE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a damaged image."""


def decode_image(data: bytes) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB; raises one of `DECODE_ERRORS`."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def check_bad_share(reasons: Any, total: int, max_bad_fraction: float) -> None:
    """Raises `ShardError` when more than the stated share of the samples could not be read."""
    reasons = list(reasons)
    if len(reasons) > max_bad_fraction * total:
        raise ShardError(
            f"{len(reasons)} of {total} samples cannot be read, more than the allowed "
            f"{max_bad_fraction:.1%}. Make these shards anew. The last: {'; '.join(reasons[-3:])}"
        )


def _scan(shard: Path, labeled: bool) -> dict[str, list[tuple[int, int]]]:
    """Reads the headers of one tar: key -> (offset, size) per column, (-1, 0) where absent."""
    samples: dict[str, list[tuple[int, int]]] = {}
    remedy = (
        "Delete it and make it anew (`dafast synth` rewrites missing shards), or copy it again."
    )
    try:
        length = shard.stat().st_size
        end = 0
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                if end > length:
                    raise ShardError(
                        f"the shard {shard} is truncated inside {member.name}. {remedy}"
                    )
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                column = _COLUMN.get(suffix.lower())
                if column is None:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                samples.setdefault(key, [(-1, 0)] * 4)[column] = (member.offset_data, member.size)
        # A cut exactly between two members leaves a tar that reads without complaint and has lost
        # samples; what is missing is the zero block that ends every archive.
        if length < end + 512:
            raise ShardError(
                f"the shard {shard} is truncated: it has no end-of-archive block. {remedy}"
            )
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(
            f"the shard {shard} is not a whole tar file ({error}). {remedy}"
        ) from error
    except OSError as error:
        raise ShardError(f"the shard {shard} cannot be read: {error.strerror or error}.") from error
    required = {_IMAGE: "jpg", **(_LABEL if labeled else {})}
    for key, place in samples.items():
        for column, suffix in required.items():
            if place[column][0] < 0:
                if column != _IMAGE and all(p[_DISPARITY][0] < 0 for p in samples.values()):
                    remedy = (
                        "It is unlabeled: `dafast label` writes shards with a teacher's labels."
                    )
                raise ShardError(f"the shard {shard} has no member {key}.{suffix}. {remedy}")
    return samples
