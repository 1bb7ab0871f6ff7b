"""The order of the training data and the loader that follows it.

The training stream is endless: position p is sample `permutation(seed, p // N)[p % N]`, disturbed
by a generator seeded with (seed, p): its crop here, its colours in the training step, with numbers
that are drawn here. A step is `batch_size` consecutive positions, of which each
rank takes its contiguous share. Nothing here has state, so a run resumes exactly from its position
alone, and the number of workers and ranks changes nothing in what a step sees.

A student has two such streams, of labeled and of unlabeled images, and takes a share of each in
every step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dafast.data.colours import draw_colours
from dafast.data.cutmix import cutmix_region
from dafast.data.shards import ShardDataset, ShardError
from dafast.data.transforms import TrainTransform, sample_generator
from dafast.distributed import World
from dafast.profiling import annotate
from dafast.training.config import TrainConfig, UnlabeledSection

# Streams of random numbers that share the run's seed stay apart through these.
_ORDER, _SHAPE, _UNLABELED = 1, 2, 3
_VIEW, _CUTMIX = 1, 2  # of an unlabeled sample


class Request(NamedTuple):
    """One sample of a batch.

    Attributes:
        sample: Its number in the data set.
        position: Its place in the stream.
        shape: Height and width it is wanted in.
        unlabeled: From which stream.
        partner: It is only there for the last unlabeled sample of a rank to be mixed with.
    """

    sample: int
    position: int
    shape: tuple[int, int]
    unlabeled: bool = False
    partner: bool = False


class UnlabeledBatch(NamedTuple):
    """The unlabeled images of a rank in a step; the partner of sample i is i + 1, modulo n.

    Attributes:
        image: (n, 3, H, W) uint8, what a teacher sees.
        colours: (n, DRAWS) float64, what decides over their colours, which the student sees
            disturbed (`dafast.data.colours`).
        disparity: (n, H, W) float32, a teacher's labels; 0 where they come from the loop.
        mask: (n, H, W) bool, where those are valid.
        region: (b, H, W) bool, CutMix's M: True where a sample stays itself. b is n, or n - 1
            where another rank has the partner of the last.
    """

    image: Tensor
    colours: Tensor
    disparity: Tensor
    mask: Tensor
    region: Tensor


class Batch(NamedTuple):
    """What a rank sees in a step.

    Attributes:
        image: (B, 3, H, W) uint8; colours are changed, and values normalised, on the device.
        colours: (B, DRAWS) float64, what decides over the colours (`dafast.data.colours`).
        disparity: (B, H, W) float32.
        mask: (B, H, W) bool.
        keys: Names of the samples, for messages.
        skipped: Labeled samples that could not be read: "key: reason".
        unlabeled: The unlabeled images, where there are any.
        unlabeled_skipped: As `skipped`, of those.
    """

    image: Tensor
    colours: Tensor
    disparity: Tensor
    mask: Tensor
    keys: list[str]
    skipped: list[str]
    unlabeled: UnlabeledBatch | None = None
    unlabeled_skipped: Sequence[str] = ()


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
        unlabeled: The unlabeled stream: an order of its own, and where the step is in parts, the
            partner of a part's last sample behind its own. So what is mixed with what does not
            depend on the number of parts.
        accumulate: Parts of a rank's share of a step, each of which is a batch.
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
        unlabeled: bool = False,
        accumulate: int = 1,
    ) -> None:
        if batch_size % (world_size * accumulate):
            raise ValueError(
                f"batch_size {batch_size} does not divide by {world_size} processes x {accumulate}"
            )
        self.length, self.batch_size, self.shapes, self.seed = length, batch_size, shapes, seed
        self.rank, self.world_size = rank, world_size
        self.start_step, self.stop_step = start_step, stop_step
        self.start_position = start_step * batch_size if start_position is None else start_position
        self.unlabeled, self.accumulate = unlabeled, accumulate

    def shape(self, step: int) -> tuple[int, int]:
        """The shape of a step's images."""
        draw = np.random.default_rng([self.seed, _SHAPE, step]).integers(len(self.shapes))
        return self.shapes[int(draw)]

    def __iter__(self) -> Iterator[list[Request]]:
        parts = self.world_size * self.accumulate
        share = self.batch_size // parts
        own = range(self.rank * self.accumulate, (self.rank + 1) * self.accumulate)
        epoch, order = -1, np.empty(0, np.int64)
        steps = range(self.start_step, self.stop_step)
        for step, part in ((step, part) for step in steps for part in own):
            shape = self.shape(step)
            first = self.start_position + (step - self.start_step) * self.batch_size
            places = list(range(part * share, (part + 1) * share))
            if self.unlabeled and parts > 1:
                places.append((part + 1) * share % self.batch_size)
            batch = []
            for i, place in enumerate(places):
                position = first + place
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = epoch_order(self.length, self.seed, epoch, int(self.unlabeled))
                sample = int(order[position % self.length])
                batch.append(Request(sample, position, shape, self.unlabeled, i >= share))
            yield batch

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.accumulate


def epoch_order(length: int, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """The order of the samples in an epoch: a permutation, a pure function of the numbers."""
    return np.random.default_rng([seed, _ORDER, epoch, stream]).permutation(length)


class LabeledItem(NamedTuple):
    """A labeled sample, ready to be stacked."""

    key: str
    skipped: tuple[str, ...]
    colours: np.ndarray
    image: np.ndarray
    disparity: np.ndarray
    mask: np.ndarray


class UnlabeledItem(NamedTuple):
    """An unlabeled sample, ready to be stacked; a mere partner has no region."""

    key: str
    skipped: tuple[str, ...]
    colours: np.ndarray
    image: np.ndarray
    disparity: np.ndarray
    mask: np.ndarray
    region: np.ndarray | None


class TrainingData(Dataset[Any]):
    """Answers `Request`s: reads the sample and transforms it as its position says.

    Args:
        shards: The labeled images.
        transform: What is done to them.
        seed: The run's seed.
        unlabeled: The unlabeled images, where there are any.
        section: What is done to those.
    """

    def __init__(
        self,
        shards: ShardDataset,
        transform: TrainTransform,
        seed: int,
        unlabeled: ShardDataset | None = None,
        section: UnlabeledSection | None = None,
    ) -> None:
        self.shards, self.transform, self.seed = shards, transform, seed
        self.unlabeled, self.section = unlabeled, section or UnlabeledSection()
        self.unlabeled_transform = TrainTransform(self.section.augment)

    @classmethod
    def open(cls, config: TrainConfig) -> TrainingData:
        """Opens the shards that a configuration names.

        Raises:
            ShardError: If they cannot be used; the message names the setting.
        """
        share, section = config.data.max_bad_fraction, config.unlabeled
        labeled = ShardDataset(
            config.data.path,
            labels="physical" if config.metric.max_depth else "minmax",
            max_bad_fraction=share,
            key="data.path",
            sky=config.data.sky,
        )
        unlabeled = None
        if section.path:
            try:
                unlabeled = ShardDataset(
                    section.path,
                    labels="none" if section.teacher else "minmax",
                    max_bad_fraction=share,
                    key="unlabeled.path",
                )
            except ShardError as error:
                hint = "" if section.teacher else " (unlabeled.teacher labels in the loop instead)"
                raise ShardError(f"unlabeled.path: {error}{hint}") from error
        return cls(labeled, TrainTransform(config.augment), config.seed, unlabeled, section)

    @property
    def size(self) -> int:
        """Number of samples, labeled and unlabeled."""
        return len(self.shards) + (len(self.unlabeled) if self.unlabeled is not None else 0)

    @staticmethod
    def collate(samples: list[LabeledItem | UnlabeledItem]) -> Batch:
        """See `collate`."""
        return collate(samples)

    @annotate("sample")
    def __getitem__(self, request: Request) -> LabeledItem | UnlabeledItem:
        if request.unlabeled:
            return self._unlabeled_item(request)
        sample = self.shards[request.sample]
        rng = sample_generator(self.seed, request.position)
        arrays = self.transform(sample.image, sample.disparity, sample.mask, request.shape, rng)
        return LabeledItem(sample.key, sample.skipped, draw_colours(rng), *arrays)

    def _unlabeled_item(self, request: Request) -> UnlabeledItem:
        assert self.unlabeled is not None
        sample, section = self.unlabeled[request.sample], self.section

        def generator(purpose: int) -> np.random.Generator:
            return sample_generator(self.seed, _UNLABELED, request.position, purpose)

        rng = generator(_VIEW)
        arrays = self.unlabeled_transform(
            sample.image, sample.disparity, sample.mask, request.shape, rng
        )
        colours = draw_colours(rng)
        region = cutmix_region(
            request.shape,
            generator(_CUTMIX),
            probability=section.cutmix,
            area=section.cutmix_area,
            aspect=section.cutmix_aspect,
        )
        mixed = None if request.partner else region
        return UnlabeledItem(sample.key, sample.skipped, colours, *arrays, mixed)


@annotate("collate")
def collate(samples: list[LabeledItem | UnlabeledItem]) -> Batch:
    """Stacks the samples of a batch."""
    labeled = [s for s in samples if isinstance(s, LabeledItem)]
    unlabeled = [s for s in samples if isinstance(s, UnlabeledItem)]

    def images(arrays: list[np.ndarray]) -> Tensor:
        # Channels stay last in memory: (B, H, W, 3) seen as (B, 3, H, W).
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def stack(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays))

    return Batch(
        images([s.image for s in labeled]),
        stack([s.colours for s in labeled]),
        stack([s.disparity for s in labeled]),
        stack([s.mask for s in labeled]),
        [s.key for s in samples],
        [reason for s in labeled for reason in s.skipped],
        UnlabeledBatch(
            images([s.image for s in unlabeled]),
            stack([s.colours for s in unlabeled]),
            stack([s.disparity for s in unlabeled]),
            stack([s.mask for s in unlabeled]),
            stack([s.region for s in unlabeled if s.region is not None]),
        )
        if unlabeled
        else None,
        [reason for s in unlabeled for reason in s.skipped],
    )


class JointSampler(Sampler[list[Request]]):
    """Each step's batch of every stream, one behind the other."""

    def __init__(self, *streams: StreamSampler) -> None:
        self.streams = streams

    def __iter__(self) -> Iterator[list[Request]]:
        for parts in zip(*self.streams, strict=True):
            yield [request for part in parts for request in part]

    def __len__(self) -> int:
        return len(self.streams[0])


def make_loader(
    config: TrainConfig,
    data: TrainingData,
    world: World,
    *,
    step: int,
    stop_step: int,
    position: int,
    unlabeled_position: int,
) -> DataLoader[Batch]:
    """The loader of a rank's batches from a step, and positions of the streams, on.

    A step is `config.accumulate` batches.
    """

    def stream(samples: ShardDataset, ratio: int, start: int, unlabeled: bool) -> StreamSampler:
        return StreamSampler(
            len(samples),
            ratio * config.batch_size,
            config.data.shapes,
            config.seed,
            rank=world.rank,
            world_size=world.size,
            start_step=step,
            start_position=start,
            stop_step=stop_step,
            unlabeled=unlabeled,
            accumulate=config.accumulate,
        )

    streams = [stream(data.shards, 1, position, False)]
    if data.unlabeled is not None:
        streams.append(stream(data.unlabeled, config.unlabeled.ratio, unlabeled_position, True))
    workers = config.data.workers
    return DataLoader(
        data,
        batch_sampler=JointSampler(*streams),
        num_workers=workers,
        collate_fn=data.collate,
        prefetch_factor=config.data.prefetch if workers else None,
        pin_memory=world.device.type == "cuda",
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
