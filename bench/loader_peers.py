"""Compares our loader with `webdataset` pipelines on packed pictures: `bench/loader.py --peers`.

Every loader reads the same shards in random order, decodes each picture to an RGB array with
Pillow, and returns only its size, so that no time goes into transfers between processes. The
loaders run in turn; each discards the batches that its workers made ahead. Figures are medians
over the rounds. The files are in the system's cache.
"""

from __future__ import annotations

import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from dafast.data.decode import decode_image
from dafast.data.shards import ShardDataset
from dafast.data.writing import add_sample
from dafast.training.data import Request, StreamSampler

OURS = "dafast"
_SHARD = 32  # pictures in each
_BUFFER = 100  # samples that `webdataset` draws from


class Pictures:
    """The pictures as arrays, as training has them before its transforms."""

    def __init__(self, data: ShardDataset) -> None:
        self.data = data

    def __getitem__(self, request: Request) -> int:
        return decode_image(self.data.image_file(request.sample)).nbytes

    def __len__(self) -> int:
        return len(self.data)


def pictures_alone(data: ShardDataset, folder: Path, count: int) -> list[str]:
    """Shards of the first pictures of a set, without labels, as `dafast data pack` writes them."""
    shards = []
    for first in range(0, min(count, len(data)), _SHARD):
        shards.append(str(folder / f"pictures-{first:06d}.tar"))
        with tarfile.open(shards[-1], "w") as tar:
            for index in range(first, min(first + _SHARD, count, len(data))):
                add_sample(tar, f"{index:08d}", {"jpg": data.image_file(index)})
    return shards


def loaders(
    shards: Sequence[str], batch: int, workers: int, seed: int
) -> dict[str, Iterator[list[int]]]:
    """Endless batches of every loader, by name.

    Raises:
        SystemExit: If a library is missing.
    """
    try:
        import webdataset as wds
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError as error:
        raise SystemExit(
            f"bench/loader.py: --peers needs {error.name}: pip install 'dafast[test]'"
        ) from error
    options: dict[str, Any] = {
        "num_workers": workers,
        "collate_fn": list,
        "prefetch_factor": 2 if workers else None,
    }
    data = ShardDataset(shards, labels="none")
    sampler = StreamSampler(len(data), batch, ((1, 1),), seed)

    def pipeline() -> Any:
        stream = wds.WebDataset(list(shards), resampled=True, shardshuffle=False, seed=seed)
        return stream.shuffle(_BUFFER, initial=_BUFFER).decode("rgb8").map(_size)

    return {
        OURS: iter(DataLoader(Pictures(data), batch_sampler=sampler, **options)),  # type: ignore[arg-type]
        "webdataset, DataLoader": iter(DataLoader(pipeline(), batch_size=batch, **options)),
        "webdataset, torchdata's StatefulDataLoader": iter(
            StatefulDataLoader(pipeline(), batch_size=batch, **options)
        ),
    }


def _size(sample: dict[str, Any]) -> int:
    return sample["jpg"].nbytes


def rate(stream: Iterator[list[Any]], ahead: int, seconds: float) -> float:
    """Images per second of a loader, without the batches that its workers may have made ahead."""
    for _ in range(ahead):
        next(stream)
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        images += len(next(stream))
    return images / (time.perf_counter() - began)


def compare(
    shards: Sequence[str],
    batch: int,
    workers: Sequence[int],
    seconds: float,
    rounds: int,
    seed: int,
    measure: Callable[[Iterator[list[Any]], int, float], float] = rate,
) -> list[dict[str, Any]]:
    """Median and range of every loader; `ratio` is ours over it, the median over the rounds."""
    records = []
    for count in workers:
        streams = loaders(shards, batch, count, seed)
        turns: dict[str, list[float]] = {name: [] for name in streams}
        for _ in range(rounds):
            for name, stream in streams.items():
                turns[name].append(measure(stream, 1 + 2 * count, seconds))
        for name, values in turns.items():
            ratios = [ours / other for ours, other in zip(turns[OURS], values, strict=True)]
            records.append({
                "loader": name,
                "workers": count,
                "images_per_second": float(np.median(values)),
                "low": min(values),
                "high": max(values),
                "ratio": float(np.median(ratios)),
            })  # fmt: skip
    return records


def table(records: Sequence[dict[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| packed pictures | workers | images/s | from, to | dafast over it |",
        "|---|---:|---:|---:|---:|",
    ]
    for entry in records:
        lines.append(
            f"| {entry['loader']} | {entry['workers']} | {entry['images_per_second']:.0f} | "
            f"{entry['low']:.0f}, {entry['high']:.0f} | {entry['ratio']:.2f} |"
        )
    return "\n".join(lines)
