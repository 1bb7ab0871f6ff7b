"""Writes a teacher's labels for shards of images.

Each shard of images becomes one of the same name: images as they were, and per image

    KEY.disparity.png   16-bit, at the teacher's resolution
    KEY.json            {"disparity_scale": ..., "disparity_offset": ..., "disparity_size": ...,
                         "disparity_unit": "relative", or "1/metre" of a calibrated teacher}

with disparity = offset + scale * value. A shard is written under a temporary name that is locked
while a process writes it, and renamed when it is complete. So a killed run loses only the shard
that it was writing, a second run skips existing shards, and no two processes write the same one. At
most two chunks of images are in memory. A shard behind a URL is fetched whole while the previous
one is labeled. If it cannot be fetched or uploaded, it is reported and the run continues.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dafast.data.decode import DECODE_ERRORS, decode_image
from dafast.data.png16 import encode_png16
from dafast.data.remote import Fetcher, ShardError, exists, name_of, plain_name
from dafast.data.shards import SampleError, ShardDataset
from dafast.data.writing import add_sample, claim, read_failures, write_failures
from dafast.files import explain_kind

Predict = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
"""Images (H, W, 3) uint8 to disparity maps (h, w) float32, in any resolution."""

CHUNK = 32
"""Number of images that are decoded, predicted and encoded together."""


@dataclass
class LabelReport:
    """Result of `label_shards`.

    Attributes:
        shards: Number of shards written.
        images: Number of images labeled.
        kept: Number of shards that existed already.
        busy: Number of shards that another process was writing.
        failures: ("shard/key" or "shard", reason), also of shards that existed already.
    """

    shards: int = 0
    images: int = 0
    kept: int = 0
    busy: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


def label_shards(
    predict: Predict,
    shards: Sequence[Path],
    out: Path,
    *,
    workers: int = 2,
    unit: str = "relative",
    say: Callable[[str], None] = lambda line: None,
) -> LabelReport:
    """Labels shards in order.

    Args:
        predict: The teacher.
        shards: The shards of images; their names must differ.
        out: Existing folder for the labeled shards, or a URL.
        workers: Number of threads that decode and encode.
        unit: Of the disparity: "relative" or "1/metre".
        say: Takes a line after each shard: throughput and time left.

    Returns:
        The result. A shard that cannot be read is a failure and does not stop the others.
    """
    report, began = LabelReport(), time.monotonic()

    def missing(shard: Path) -> bool:
        return not exists(out / plain_name(shard))

    with ThreadPoolExecutor(workers) as pool, Fetcher(shards, missing) as fetcher:
        for number, shard in enumerate(shards, 1):
            target = out / plain_name(shard)
            try:
                with claim(target) as file:
                    if file is not None:
                        with fetcher.local(number - 1) as local:
                            images, failures = _label_shard(predict, local, file, pool, unit)
                        write_failures(target, failures)
                if file is None:
                    there = exists(target)
                    report.kept, report.busy = report.kept + there, report.busy + (not there)
            except ShardError as error:
                report.failures.append((name_of(shard), str(error)))
                continue
            if file is not None:
                report.shards, report.images = report.shards + 1, report.images + images
                rate = report.images / max(time.monotonic() - began, 1e-9)
                left = (len(shards) - number) * report.images / report.shards
                say(
                    f"{name_of(shard)}  {number}/{len(shards)} shards, {rate:.2f} images/s, "
                    f"{left / max(rate, 1e-9) / 60:.1f} min left"
                )
            report.failures += read_failures(target)
    return report


def _label_shard(
    predict: Predict, shard: Path, file: BinaryIO, pool: ThreadPoolExecutor, unit: str
) -> tuple[int, list[tuple[str, str]]]:
    """Writes one labeled shard; returns the number of images in it, and the failures."""
    data = ShardDataset(shard, labels="none")
    failures: list[tuple[str, str]] = []
    done = 0

    def read(first: int) -> list[tuple[int, bytes, Future]]:
        entries = []
        for index in range(first, min(first + CHUNK, len(data))):
            raw = data.image_file(index)
            entries.append((index, raw, pool.submit(decode_image, raw)))
        return entries

    with contextlib.closing(data), tarfile.open(fileobj=file, mode="w") as tar:
        ahead = read(0)
        for first in range(0, len(data), CHUNK):
            chunk, ahead = ahead, read(first + CHUNK)  # decoded while this chunk is predicted
            readable: list[tuple[int, bytes, np.ndarray]] = []
            for index, raw, future in chunk:
                try:
                    readable.append((index, raw, future.result()))
                except DECODE_ERRORS as error:
                    failures.append((data.name(index), explain_kind(error)))
            maps = predict([image for _, _, image in readable])
            labels = pool.map(encode_label, maps)
            for (index, raw, _), label in zip(readable, labels, strict=True):
                try:
                    meta = data.meta(index)
                except SampleError as error:
                    failures.append((data.name(index), str(error)))
                    continue
                if label is None:
                    reason = "the teacher predicted NaN or infinity; try --dtype float32"
                    failures.append((data.name(index), reason))
                    continue
                png, numbers = label
                known = {k: v for k, v in meta.items() if not k.startswith("disparity_")}
                members = {_suffix(raw): raw, "disparity.png": png}
                members["json"] = json.dumps({**known, **numbers, "disparity_unit": unit}).encode()
                add_sample(tar, data.key(index), members)
                done += 1
    return done, failures


def _suffix(image: bytes) -> str:
    if image.startswith(b"\x89PNG"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else "jpg"


def encode_label(disparity: np.ndarray) -> tuple[bytes, dict[str, Any]] | None:
    """Encodes a map as a 16-bit PNG with the meaning of its values; None if it is not finite.

    The values read back are off by at most half a step: (max - min) / 65535 / 2.
    """
    if not np.isfinite(disparity).all():
        return None
    low, high = float(disparity.min()), float(disparity.max())
    scale = (high - low) / 65535.0
    code = np.zeros(disparity.shape, np.uint16)
    if scale > 0:
        code = np.rint((disparity.astype(np.float64) - low) / scale).astype(np.uint16)
    numbers = {
        "disparity_scale": scale,
        "disparity_offset": low,
        "disparity_size": list(disparity.shape),
    }
    return encode_png16(code), numbers
