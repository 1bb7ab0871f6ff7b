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
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dafast.data.decode import DECODE_ERRORS, decode_image
from dafast.data.jobs import InOrder, Outcome, Predict, Progress, Runner, ShardJob
from dafast.data.png16 import encode_png16
from dafast.data.remote import plain_name
from dafast.data.shards import SampleError, ShardDataset
from dafast.data.writing import add_sample
from dafast.files import explain_kind

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
    """Labels shards in order, in this process.

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
    return label_with(InOrder(predict, workers), shards, out, unit=unit, say=say)


def label_with(
    runner: Runner,
    shards: Sequence[Path],
    out: Path,
    *,
    unit: str = "relative",
    say: Callable[[str], None] = lambda line: None,
) -> LabelReport:
    """Labels shards with a runner that has the teacher; the rest as `label_shards`."""
    report, progress = LabelReport(), Progress(len(shards), say)
    failures: dict[int, list[tuple[str, str]]] = {}
    for number, outcome in runner.run(LabelJob(out, unit), shards):
        progress.add(outcome)
        failures[number] = outcome.failures
        report.kept += outcome.state == "kept"
        report.busy += outcome.state == "busy"
    report.shards, report.images = progress.written, progress.images
    report.failures = [each for number in sorted(failures) for each in failures[number]]
    return report


@dataclass
class LabelJob(ShardJob):
    """Makes a labeled shard of each shard.

    Attributes:
        out: Folder or URL of the labeled shards.
        unit: Of the disparity.
    """

    out: Path
    unit: str

    def target(self, source: Path) -> Path:
        """The labeled shard."""
        return self.out / plain_name(source)

    def write(self, source: Path, file: BinaryIO, predict: Predict, pool: Executor) -> Outcome:
        """Writes one labeled shard; at most two chunks of images are in memory."""
        data = ShardDataset(source, labels="none")
        outcome = Outcome(source.name)

        def read(first: int) -> list[tuple[int, bytes, Future]]:
            entries = []
            for index in range(first, min(first + CHUNK, len(data))):
                raw = data.image_file(index)
                entries.append((index, raw, pool.submit(decode_image, raw)))
            return entries

        with contextlib.closing(data), tarfile.open(fileobj=file, mode="w") as tar:
            ahead = read(0)
            for first in range(0, len(data), CHUNK):
                chunk, ahead = ahead, read(first + CHUNK)  # decoded while this one is predicted
                readable: list[tuple[int, bytes, np.ndarray]] = []
                for index, raw, future in chunk:
                    try:
                        readable.append((index, raw, future.result()))
                    except DECODE_ERRORS as error:
                        outcome.failures.append((data.name(index), explain_kind(error)))
                maps = predict([image for _, _, image in readable])
                labels = pool.map(encode_label, maps)
                for (index, raw, _), label in zip(readable, labels, strict=True):
                    try:
                        members = self._members(data, index, raw, label)
                    except SampleError as error:
                        outcome.failures.append((data.name(index), str(error)))
                        continue
                    add_sample(tar, data.key(index), members)
                    outcome.images += 1
        return outcome

    def _members(
        self, data: ShardDataset, index: int, raw: bytes, label: Label | None
    ) -> dict[str, bytes]:
        """The files of a labeled sample; a SampleError if it cannot have a label."""
        meta = data.meta(index)
        if label is None:
            raise SampleError("the teacher predicted NaN or infinity; try --dtype float32")
        png, numbers = label
        known = {k: v for k, v in meta.items() if not k.startswith("disparity_")}
        text = json.dumps({**known, **numbers, "disparity_unit": self.unit})
        return {_suffix(raw): raw, "disparity.png": png, "json": text.encode()}


def _suffix(image: bytes) -> str:
    if image.startswith(b"\x89PNG"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else "jpg"


Label = tuple[bytes, dict[str, Any]]
"""A map as a PNG, and the meaning of its values."""


def encode_label(disparity: np.ndarray) -> Label | None:
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
