"""The order of the training data and the loader that follows it.

The training stream is endless: position p is sample `permutation(seed, p // N)[p % N]`, augmented
by a generator seeded with (seed, p): its crop here, its colours in the training step, with numbers
that are drawn here. A step is `batch_size` consecutive positions, of which each rank takes a
contiguous part. Nothing here has state, so a run resumes exactly from its position, and a step sees
the same samples with any number of workers and ranks.

A student has two of these streams, of labeled and of unlabeled images, and takes some of each in
every step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

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
from dafast.training.config import ConfigError, TrainConfig, UnlabeledSection
from dafast.training.task import SampleSet, TrainingSet

# These separate the streams of random numbers that share the run's seed.
_ORDER, _SHAPE, _UNLABELED = 1, 2, 3
_VIEW, _CUTMIX = 1, 2  # of an unlabeled sample


class Request(NamedTuple):
    """One sample of a batch.

    Attributes:
        sample: Its number in the data set.
        position: Its place in the stream.
        shape: Height and width of the crop.
        unlabeled: Whether it is of the unlabeled stream.
        partner: Whether it only serves to be mixed with the last unlabeled sample of a rank.
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
        colours: (n, DRAWS) float64, numbers that determine their colours, which the student sees
            disturbed (`dafast.data.colours`).
        disparity: (n, H, W) float32, a teacher's labels; 0 where a teacher labels in the loop.
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
    """The samples of one rank in a step.

    Attributes:
        image: (B, 3, H, W) uint8; colours are changed, and values normalised, on the device.
        colours: (B, DRAWS) float64, numbers that determine the colours (`dafast.data.colours`).
        disparity: (B, H, W) float32.
        mask: (B, H, W) bool.
        keys: Names of the samples, for messages.
        skipped: Labeled samples that could not be read: "key: reason".
        unlabeled: The unlabeled images, if any.
        unlabeled_skipped: Unlabeled samples that could not be read, like `skipped`.
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
    """Yields the batches of one rank, starting at a position of the stream.

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
        unlabeled: Whether it is the unlabeled stream: it has an order of its own, and where a step
            has several parts, the partner of a part's last sample follows its own samples. So
            which samples are mixed does not depend on the number of parts.
        accumulate: Batches that a rank's part of a step is divided into.
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
    """An unlabeled sample, ready to be stacked; a partner has no region."""

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
        labeled: The labeled images.
        transform: What is done to them.
        seed: The run's seed.
        unlabeled: The unlabeled images, if any.
        section: What is done to the unlabeled images.
    """

    def __init__(
        self,
        labeled: ShardDataset,
        transform: TrainTransform,
        seed: int,
        unlabeled: ShardDataset | None = None,
        section: UnlabeledSection | None = None,
    ) -> None:
        self.labeled, self.transform, self.seed = labeled, transform, seed
        self.unlabeled, self.section = unlabeled, section or UnlabeledSection()
        self.unlabeled_transform = TrainTransform(self.section.augment)

    @classmethod
    def open(
        cls, config: TrainConfig, labels: Literal["minmax", "physical"] = "minmax"
    ) -> TrainingData:
        """Opens the shards that a configuration names.

        Args:
            config: The run.
            labels: How labels are read; see `ShardDataset`.

        Raises:
            ShardError: If they cannot be used; the message names the setting.
        """
        fraction, section = config.data.max_bad_fraction, config.unlabeled
        labeled = ShardDataset(
            config.data.path,
            labels=labels,
            max_bad_fraction=fraction,
            key="data.path",
            sky=config.data.sky,
        )
        unlabeled = None
        if section.path:
            try:
                unlabeled = ShardDataset(
                    section.path,
                    labels="none" if section.teacher else "minmax",
                    max_bad_fraction=fraction,
                    key="unlabeled.path",
                )
            except ShardError as error:
                hint = "" if section.teacher else " (unlabeled.teacher labels in the loop instead)"
                raise ShardError(f"unlabeled.path: {error}{hint}") from error
        return cls(labeled, TrainTransform(config.augment), config.seed, unlabeled, section)

    @staticmethod
    def collate(samples: list[LabeledItem | UnlabeledItem]) -> Batch:
        """See `collate`."""
        return collate(samples)

    @annotate("sample")
    def __getitem__(self, request: Request) -> LabeledItem | UnlabeledItem:
        if request.unlabeled:
            return self._unlabeled_item(request)
        sample = self.labeled[request.sample]
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
    """Each step's batches of all streams, concatenated."""

    def __init__(self, *streams: StreamSampler) -> None:
        self.streams = streams

    def __iter__(self) -> Iterator[list[Request]]:
        for parts in zip(*self.streams, strict=True):
            yield [request for part in parts for request in part]

    def __len__(self) -> int:
        return len(self.streams[0])


def total_steps(config: TrainConfig, data: TrainingSet) -> int:
    """Length of the run in steps.

    Raises:
        ConfigError: If `epochs` make it so short that the warm-up would never end.
    """
    if config.steps:  # `check_config` has compared them with the warm-up
        return config.steps
    samples, batch = len(data.labeled), config.batch_size
    if data.unlabeled is not None:
        samples, batch = len(data.unlabeled), batch * config.unlabeled.ratio
    total = max(1, round(config.epochs * samples / batch))
    warmup = config.optim.warmup_steps
    if warmup >= total:
        raise ConfigError(
            f"optim.warmup_steps ({warmup}) must be under the length of the run, or the warm-up "
            f"never ends: epochs = {config.epochs:g} of {samples} images, {batch} a step, are "
            f"{total} steps. Lower it (--optim.warmup-steps {total // 10}), or raise epochs"
        )
    return total


def make_loader(
    config: TrainConfig,
    data: TrainingSet,
    world: World,
    *,
    step: int,
    stop_step: int,
    position: int,
    unlabeled_position: int,
) -> DataLoader[Any]:
    """The loader of a rank's batches, starting at a step and at positions of the streams.

    A step is `config.accumulate` batches.
    """

    def stream(samples: SampleSet, ratio: int, start: int, unlabeled: bool) -> StreamSampler:
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

    streams = [stream(data.labeled, 1, position, False)]
    if data.unlabeled is not None:
        streams.append(stream(data.unlabeled, config.unlabeled.ratio, unlabeled_position, True))
    workers = config.data.workers
    return DataLoader(
        data,  # type: ignore[arg-type]  # a map-style data set whose keys are requests
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

    A worker that they ended would take down the process that is about to save a checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
