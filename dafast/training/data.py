"""The order of the training data and the loader that follows it.

The training stream is endless: position p is sample `permutation(seed, p // N)[p % N]`, disturbed
by a generator seeded with (seed, p). A step is `batch_size` consecutive positions, of which each
rank takes its contiguous share. Nothing here has state, so a run resumes exactly from its position
alone, and the number of workers and ranks changes nothing in what a step sees.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dafast.data.shards import ShardDataset
from dafast.data.transforms import TrainTransform, sample_generator

# Streams of random numbers that share the run's seed stay apart through these.
_ORDER, _SHAPE = 1, 2


class Request(NamedTuple):
    """One sample of a batch: which, at which position of the stream, in which shape."""

    sample: int
    position: int
    shape: tuple[int, int]


class Batch(NamedTuple):
    """What a rank sees in a step.

    Attributes:
        image: (B, 3, H, W) uint8, normalised on the device.
        disparity: (B, H, W) float32.
        mask: (B, H, W) bool.
        keys: Names of the samples, for messages.
        skipped: Samples that could not be read: "key: reason".
    """

    image: Tensor
    disparity: Tensor
    mask: Tensor
    keys: list[str]
    skipped: list[str]


class StreamSampler(Sampler[list[Request]]):
    """Yields the batches of one rank from a position of the stream on.

    Args:
        length: Samples in the data set.
        batch_size: Samples in a step over all ranks; must divide by `world_size`.
        shapes: Shapes to draw from, one per step.
        seed: The run's seed.
        rank: This process.
        world_size: Number of processes.
        start_step: First step to yield.
        start_position: Position of its first sample; `start_step * batch_size` by default.
        stop_step: Step to stop before.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        shapes: tuple[tuple[int, int], ...],
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        start_position: int | None = None,
        stop_step: int = 2**62,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} does not divide by {world_size} processes")
        self.length, self.batch_size, self.shapes, self.seed = length, batch_size, shapes, seed
        self.rank, self.world_size = rank, world_size
        self.start_step, self.stop_step = start_step, stop_step
        self.start_position = start_step * batch_size if start_position is None else start_position

    def shape(self, step: int) -> tuple[int, int]:
        """The shape of a step's images."""
        draw = np.random.default_rng([self.seed, _SHAPE, step]).integers(len(self.shapes))
        return self.shapes[int(draw)]

    def __iter__(self) -> Iterator[list[Request]]:
        share = self.batch_size // self.world_size
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start_step, self.stop_step):
            shape = self.shape(step)
            first = self.start_position + (step - self.start_step) * self.batch_size
            first += self.rank * share
            batch = []
            for position in range(first, first + share):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = epoch_order(self.length, self.seed, epoch)
                batch.append(Request(int(order[position % self.length]), position, shape))
            yield batch

    def __len__(self) -> int:
        return self.stop_step - self.start_step


def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the samples in an epoch: a permutation, a pure function of seed and epoch."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(length)


class TrainingData(Dataset[Any]):
    """Answers `Request`s: reads the sample and transforms it as its position says."""

    def __init__(self, shards: ShardDataset, transform: TrainTransform, seed: int) -> None:
        self.shards, self.transform, self.seed = shards, transform, seed

    def __getitem__(self, request: Request) -> tuple:
        sample = self.shards[request.sample]
        rng = sample_generator(self.seed, request.position)
        arrays = self.transform(sample.image, sample.disparity, sample.mask, request.shape, rng)
        return (*arrays, sample.key, sample.skipped)


def collate(samples: list[tuple]) -> Batch:
    """Stacks the samples of a batch."""
    images, disparities, masks, keys, skipped = zip(*samples, strict=True)
    return Batch(
        # Channels stay last in memory: (B, H, W, 3) seen as (B, 3, H, W).
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack(disparities)),
        torch.from_numpy(np.stack(masks)),
        list(keys),
        [reason for reasons in skipped for reason in reasons],
    )


def make_loader(
    data: TrainingData, sampler: StreamSampler, workers: int, prefetch: int, pin_memory: bool
) -> DataLoader[Batch]:
    """The loader of a rank's batches."""
    return DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        # Its own generator: otherwise the loader takes a number from the global one at every start,
        # and a resumed run would differ from an uninterrupted one.
        generator=torch.Generator(),
        worker_init_fn=_ignore_signals,
    )


def _ignore_signals(worker: int) -> None:
    """Leaves Ctrl-C and SIGTERM, which reach the whole process group, to the training process.

    A worker that died of one would take down the process that is about to save a checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
