"""Labeled images in WebDataset tar shards, with random access.

A shard is a plain tar. Per sample, under one key:

    KEY.jpg             RGB image (.jpeg, .webp and .png are read too, the first there is)
    KEY.disparity.png   16-bit: round(disparity / disparity_max * 65535); 0 is sky, a valid label
    KEY.json            {"disparity_max": ..., "seed": ..., "kind": ..., ...}
    KEY.mask.png        optional, 8-bit, nonzero = valid; absent = every pixel is valid

The JSON of a label that 16 bits hold coarsely has `half_step` (`dafast.data.sources.Labeled`).

Unlabeled samples have only the image. A teacher's labels (`dafast label`) need not have the
image's resolution and do not start at 0: their JSON has `disparity_scale`, `disparity_offset`
(disparity = offset + scale * value) and `disparity_size` [rows, columns].

Other members (.cls, .txt, ...) are ignored.
The JSON may say `disparity_unit`: "1/metre", or "relative" without scale and shift.

Next to a shard NAME.tar there may be NAME.sky.tar with KEY.png: where SegFormer sees sky
(`dafast data sky`), nonzero, at the image's resolution. An image without one has no sky.

The headers are scanned once; after that a sample is three reads at known offsets, in any order
and from any number of worker processes (`files.read_at` uses no shared file position). Behind
a URL a sample is one request for a part of the shard; for the scan a shard is fetched once, and
the result is kept in the user's cache.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from dafast._warnings import DataWarning, warn
from dafast.data.decode import DECODE_ERRORS, decode_image, open_picture
from dafast.data.remote import (
    RemoteError,
    ShardError,
    exists,
    is_remote,
    name_of,
    read_range,
    retried,
)
from dafast.data.tars import (
    DISPARITY,
    IMAGE,
    MASK,
    META,
    NOWHERE,
    SKY,
    SKY_SUFFIX,
    expand_shards,
    headers,
    scan_all,
    sky_path,
)
from dafast.files import explain, explain_kind, read_at

_MAX_OPEN_SHARDS = 64


class SampleError(RuntimeError):
    """One sample cannot be read; the message names the shard and the key."""


class Sample(NamedTuple):
    """One labeled image.

    Attributes:
        key: `shard name/sample key`, as messages and logs name it.
        image: (H, W, 3) uint8 RGB.
        disparity: (H, W) float32; in [0, 1] per map, or physical, as `labels` of the data set says.
            A teacher's may have another resolution; without a label it is a single 0.
        mask: bool, of the disparity's shape: True where the label is valid.
        skipped: Unreadable samples that this one replaces: "key: reason".
    """

    key: str
    image: np.ndarray
    disparity: np.ndarray
    mask: np.ndarray
    skipped: tuple[str, ...] = ()


def fill_sky(
    disparity: np.ndarray, mask: np.ndarray, sky: np.ndarray, labeled_too: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Labels sky as the farthest depth: disparity 0, and valid.

    Args:
        disparity: (H, W) float32, physical, not from minimum to maximum.
        mask: (H, W) bool, its valid pixels.
        sky: (H, W) bool.
        labeled_too: Whether the 0 replaces existing labels of sky.

    Returns:
        New disparity and mask.
    """
    zero = sky if labeled_too else sky & ~mask
    return np.where(zero, np.float32(0), disparity), mask | zero


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
    """Random access to the samples of tar shards.

    Args:
        path_or_glob: What `expand_shards` takes: a folder of `*.tar`, one tar, a pattern, a URL,
            or a sequence of these.
        labels: `"minmax"` gives disparity in [0, 1] per map (what training wants); `"physical"`
            gives disparity in the unit of the file, 1/metre for the synthetic set (what evaluation
            wants); `"none"` reads no label, and takes samples that have none.
        max_bad_fraction: Largest tolerated fraction of unreadable samples (in this process). Each
            is named and replaced by the next.
        sky: What the masks of sky, where there are any, do to labels (`fill_sky`): `"missing"`
            gives disparity 0 to sky without a label, `"all"` to all of it, `"off"` reads none.
        key: The setting with the path, for messages.
    """

    def __init__(
        self,
        path_or_glob: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        labels: Literal["minmax", "physical", "none"] = "minmax",
        max_bad_fraction: float = 0.01,
        sky: Literal["off", "missing", "all"] = "off",
        key: str = "",
    ) -> None:
        if sky not in ("off", "missing", "all"):
            raise ValueError(f"sky must be 'off', 'missing' or 'all', not {sky!r}")
        if labels not in ("minmax", "physical", "none"):
            raise ValueError(f"labels must be 'minmax', 'physical' or 'none', not {labels!r}")
        self.shards = expand_shards(path_or_glob, key)
        self._names_repeat = len(set(map(name_of, self.shards))) < len(self.shards)
        self.labels = labels
        self.sky = sky if labels != "none" else "off"
        self.max_bad_fraction = max_bad_fraction
        self.bad: dict[int, str] = {}
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._part: tuple[int, int, bytes] = (-1, 0, b"")  # of a remote shard: the last sample
        # Arrays, not lists of objects: forked workers then share the pages instead of copying them
        # one reference count at a time.
        keys: list[np.ndarray] = []
        places: list[np.ndarray] = []
        self._sky_shards: list[Path | None] = [None] * len(self.shards)
        found = scan_all(self.shards, labels != "none")
        for number, (shard, samples) in enumerate(zip(self.shards, found, strict=True)):
            masks: dict[str, tuple[int, int]] = {}
            if self.sky != "off" and exists(sky_path(shard)):
                self._sky_shards[number] = sky_path(shard)
                masks = {key: place[IMAGE] for key, place in headers(sky_path(shard)).items()}
            rows = [[*place, masks.get(key, NOWHERE)] for key, place in samples.items()]
            keys.append(np.array(list(samples), np.str_))
            places.append(np.array(rows, np.int64).reshape(-1, 5, 2))
        self._keys = np.concatenate(keys)
        self._places = np.concatenate(places)  # (samples, 5 members, offset and size)
        self._shard_of = np.repeat(np.arange(len(keys), dtype=np.int32), [len(k) for k in keys])
        if not len(self._keys):
            raise ShardError(
                f"no sample in {', '.join(map(str, self.shards[:3]))}: the shards are empty."
            )

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def labeled(self) -> bool:
        """Whether every sample has a label, even if labels are not read."""
        return bool((self._places[:, [DISPARITY, META], 0] >= 0).all())

    def has_label(self, index: int) -> bool:
        """Whether this sample has a label, or a part of one."""
        return bool(self._places[index, DISPARITY, 0] >= 0)

    def name(self, index: int) -> str:
        """The sample's name in messages: shard file and key; with the folder where names repeat."""
        shard = self.shards[self._shard_of[index]]
        return f"{shard if self._names_repeat else name_of(shard)}/{self._keys[index]}"

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
                warn(DataWarning, f"skipped: {error}")
                check_bad_share(self.bad.values(), len(self), self.max_bad_fraction)
        raise ShardError("no sample of the set can be read")

    def read(self, index: int) -> Sample:
        """Reads exactly this sample, or raises `SampleError`."""
        try:
            image = decode_image(self.image_file(index))
            if self.labels == "none":
                nothing = np.zeros((1, 1), np.float32)
                return Sample(self.name(index), image, nothing, nothing > 0)
            with open_picture(self._member(index, DISPARITY)) as picture:
                if not picture.mode.startswith("I"):
                    raise ValueError(f"disparity.png has mode {picture.mode}, not 16-bit gray")
                disparity = np.asarray(picture)
            meta = self.meta(index)
            if list(disparity.shape) != list(meta.get("disparity_size", image.shape[:2])):
                raise ValueError(
                    f"image is {image.shape[:2]}, disparity {disparity.shape} (rows, columns)"
                )
            mask = np.ones(disparity.shape, bool)
            if self._places[index, MASK, 0] >= 0:
                with open_picture(self._member(index, MASK)) as picture:
                    mask = np.asarray(picture.convert("L")) > 0
                if mask.shape != disparity.shape:
                    raise ValueError(
                        f"mask is {mask.shape}, disparity {disparity.shape} (rows, columns)"
                    )
            sky = self._sky_of(index, image.shape[:2])
            if self.labels == "physical" or sky is not None:
                if "disparity_scale" in meta:
                    unit = float(meta["disparity_scale"])
                else:
                    unit = float(meta["disparity_max"]) / 65535.0
                disparity = disparity.astype(np.float32) * np.float32(unit)
                disparity += np.float32(meta.get("disparity_offset", 0.0))
            if sky is not None:
                if sky.shape != disparity.shape:  # a teacher's labels
                    rows, columns = disparity.shape
                    sky = np.asarray(Image.fromarray(sky).resize((columns, rows)), bool)
                disparity, mask = fill_sky(disparity, mask, sky, self.sky == "all")
            if self.labels == "minmax":
                disparity = minmax(disparity, mask)
        except (*DECODE_ERRORS, KeyError) as error:
            raise SampleError(f"{self.name(index)}: {explain_kind(error)}") from error
        return Sample(self.name(index), image, disparity, mask)

    def meta(self, index: int) -> dict[str, Any]:
        """The sample's JSON; empty if it is missing."""
        if self._places[index, META, 0] < 0:
            return {}
        try:
            meta = json.loads(self._member(index, META))
        except ValueError as error:
            raise SampleError(f"{self.name(index)}: json: {explain(error)}") from error
        return meta if isinstance(meta, dict) else {"json": meta}

    def unit(self, index: int) -> str:
        """The unit of the sample's disparity: "1/metre", "relative", or "" if it is not stored.

        Raises:
            SampleError: If its JSON cannot be read.
        """
        meta = self.meta(index)
        # Shards of earlier versions of `dafast label` have no unit, but these numbers.
        return str(meta.get("disparity_unit", "relative" if "disparity_scale" in meta else ""))

    def key(self, index: int) -> str:
        """The sample's key within its shard."""
        return str(self._keys[index])

    def image_file(self, index: int) -> bytes:
        """The sample's image as it is stored."""
        return self._member(index, IMAGE)

    def _sky_of(self, index: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """Reads the mask of the sky; None without a mask."""
        if self._places[index, SKY, 0] < 0:
            return None
        with open_picture(self._member(index, SKY)) as picture:
            sky = np.asarray(picture.convert("L")) > 0
        if sky.shape != shape:
            raise ValueError(
                f"the mask of sky is {sky.shape}, the image {shape} (rows, columns): remove the "
                f"{SKY_SUFFIX[1:]} and run `dafast data sky` again"
            )
        return sky

    def label_file(self, index: int) -> bytes:
        """The sample's disparity map as it is stored."""
        return self._member(index, DISPARITY)

    def _member(self, index: int, column: int) -> bytes:
        offset, size = (int(value) for value in self._places[index, column])
        number = int(self._shard_of[index])
        shard = self._sky_shards[number] if column == SKY else self.shards[number]
        assert shard is not None
        if is_remote(shard):
            if column == SKY:
                return read_range(shard, offset, size)
            return self._remote_member(index, shard, offset, size)

        def read() -> bytes:
            try:
                return read_at(self._descriptor(shard), size, offset)
            except OSError:
                if shard in self._files:  # on a network's file system it may never be good again
                    os.close(self._files.pop(shard))
                raise

        return read_again(shard, read, size)

    def _remote_member(self, index: int, shard: Path, offset: int, size: int) -> bytes:
        """A member of a sample; one request fetches all members that will be read."""
        known, start, data = self._part
        if known != index or not start <= offset <= offset + size <= start + len(data):
            wanted = self._places[index, :SKY] if self.labels != "none" else [(offset, size)]
            there = [(int(first), int(length)) for first, length in wanted if first >= 0]
            start = min(first for first, _ in there)
            data = read_range(shard, start, max(first + length for first, length in there) - start)
            self._part = (index, start, data)
        return data[offset - start : offset - start + size]

    def _descriptor(self, shard: Path) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= _MAX_OPEN_SHARDS:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = os.open(shard, os.O_RDONLY | getattr(os, "O_BINARY", 0))
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
        return {**self.__dict__, "_files": OrderedDict(), "_part": (-1, 0, b"")}


def read_again(shard: Path, read: Callable[[], bytes], size: int) -> bytes:
    """Calls `read` for a part of a local shard that was scanned before; repeats it after failures.

    A missing shard or a failing disk is not a damaged sample: it would damage all of its samples.

    Args:
        shard: The file.
        read: Reads a part of it, opening it if need be.
        size: How many bytes that part has.

    Raises:
        ShardError: If it cannot be read, or has become shorter; the message names it.
    """
    remedy = (
        "It existed when its samples were listed: restore it, or check the disk, and run the same "
        "command again"
    )

    def there() -> bytes:
        try:
            return read()
        except FileNotFoundError:  # tried again too: a file system may come back
            raise OSError("it no longer exists") from None

    try:
        data = retried(there, f"cannot read the shard {shard}")
    except RemoteError as error:
        raise ShardError(f"{error}. {remedy}") from error
    if len(data) != size:
        raise ShardError(
            f"the shard {shard} has changed: {len(data)} bytes of {size} read. {remedy}"
        )
    return data


def check_bad_share(reasons: Any, total: int, max_bad_fraction: float) -> None:
    """Raises `ShardError` when more than the stated share of the samples could not be read."""
    reasons = list(reasons)
    if len(reasons) > max_bad_fraction * total:
        raise ShardError(
            f"{len(reasons)} of {total} samples cannot be read, more than the allowed "
            f"{max_bad_fraction:.1%}. Write these shards again. The last: {'; '.join(reasons[-3:])}"
        )
