"""Semantic segmentation: its data, its model, its step, its evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dafast._warnings import WeightsWarning, warn
from dafast.data.colours import draw_colours
from dafast.data.segmentation import IGNORE, READERS, SegmentationDataset
from dafast.data.sources import SourceError
from dafast.data.transforms import TrainTransform, sample_generator
from dafast.distributed import World
from dafast.evaluation.segmentation import confusion_matrix, summarize
from dafast.models.checkpoint import CheckpointError
from dafast.models.depth_anything import DepthAnything
from dafast.models.segmentation import SegmentationModel, is_segmentation
from dafast.models.segmentation_inference import probabilities
from dafast.profiling import annotate
from dafast.training.config import ConfigError, TrainConfig
from dafast.training.data import Request
from dafast.training.starts import UNUSED_UNIT, build_model
from dafast.training.task import Step, Task, autocast


class SegmentationBatch(NamedTuple):
    """The samples of one rank in a step.

    Attributes:
        image: (B, 3, H, W) uint8; colours are changed, and values normalised, on the device.
        colours: (B, DRAWS) float64, numbers that determine the colours (`dafast.data.colours`).
        classes: (B, H, W) uint8, class indices or `IGNORE`.
        keys: Names of the samples, for messages.
        skipped: Samples that could not be read: "key: reason".
        unlabeled_skipped: Always empty.
    """

    image: Tensor
    colours: Tensor
    classes: Tensor
    keys: list[str]
    skipped: list[str]
    unlabeled_skipped: Sequence[str] = ()


class SegmentationItem(NamedTuple):
    """A sample, ready to be stacked."""

    key: str
    skipped: tuple[str, ...]
    image: np.ndarray
    colours: np.ndarray
    classes: np.ndarray


def collate(samples: list[SegmentationItem]) -> SegmentationBatch:
    """Stacks the samples of a batch."""
    return SegmentationBatch(
        # Channels stay last in memory: (B, H, W, 3) seen as (B, 3, H, W).
        torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack([s.colours for s in samples])),
        torch.from_numpy(np.stack([s.classes for s in samples])),
        [s.key for s in samples],
        [reason for s in samples for reason in s.skipped],
    )


class SegmentationTrainingData:
    """Answers `Request`s as `dafast.training.data.TrainingData` does, with class maps.

    Args:
        samples: The photos.
        transform: What is done to them; class maps go through it as labels do, picked, not mixed.
        seed: The run's seed.
    """

    collate = staticmethod(collate)
    unlabeled = None

    def __init__(self, samples: SegmentationDataset, transform: TrainTransform, seed: int) -> None:
        self.labeled, self.transform, self.seed = samples, transform, seed

    @classmethod
    def open(cls, config: TrainConfig) -> SegmentationTrainingData:
        """Opens the photos that a configuration names.

        Raises:
            ConfigError: If they cannot be used.
        """
        samples = open_samples(config, "data.path", config.data.path, training=True)
        samples.max_bad_fraction = config.data.max_bad_fraction
        return cls(samples, TrainTransform(config.augment), config.seed)

    @annotate("sample")
    def __getitem__(self, request: Request) -> SegmentationItem:
        sample = self.labeled[request.sample]
        rng = sample_generator(self.seed, request.position)
        counted = sample.classes != IGNORE
        image, classes, counted = self.transform(
            sample.image, sample.classes, counted, request.shape, rng
        )
        # What lies outside the photo, where a transform shows that, does not count either.
        classes = np.where(counted, classes, IGNORE).astype(np.uint8)
        return SegmentationItem(sample.key, sample.skipped, image, draw_colours(rng), classes)


def open_samples(
    config: TrainConfig, key: str, path: str, *, training: bool
) -> SegmentationDataset:
    """The data set of a configuration, at one of its paths.

    Raises:
        ConfigError: If it cannot be used; the message names the setting.
    """
    try:
        return READERS[config.segmentation.data](Path(path).expanduser(), training)
    except SourceError as error:
        raise ConfigError(f"{key}: {error}") from error


def build_segmentation_model(
    classes: tuple[str, ...], config: TrainConfig, device: torch.device
) -> SegmentationModel:
    """Puts the configured head on the configured encoder, ready to be trained.

    `model.init` may be a segmentation model: the head then starts from its head where kind and
    classes are the same, else random.

    Raises:
        ConfigError: If it cannot start from that.
    """
    trained, start = None, None
    if is_segmentation(config.model.init):
        try:
            trained = SegmentationModel.from_pretrained(
                config.model.init, device="cpu", dtype="float32"
            )
        except CheckpointError as error:
            raise ConfigError(f"model.init: {error}") from error
        start = DepthAnything(trained.config.encoder)
        start.pretrained = trained.pretrained
    depth = build_model(config.model, device, config.channels_last, start)
    depth.config = dataclasses.replace(depth.config, image_size=config.data.image_size)
    model = SegmentationModel.from_depth(depth, classes, config.segmentation.head)
    if trained is not None:
        if (trained.config.head, trained.config.classes) == (model.config.head, tuple(classes)):
            model.head.load_state_dict(trained.head.state_dict())
        else:
            warn(
                WeightsWarning,
                f"model.init: {config.model.init} has another head or other classes; the head "
                "starts random",
            )
    if config.segmentation.head == "dpt":
        # As in the depth decoder: it has weights and never a gradient, which DDP would wait for.
        model.head.get_submodule(UNUSED_UNIT).requires_grad_(False)
    if config.channels_last:
        model.head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dist.is_initialized() and model.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model.head)
    return model.train()


class SegmentationStep(Step):
    """Loss of a batch: change colours, normalise, predict, cross entropy of the pixels that count.

    Args:
        network: The model, or its wrapper (DDP, torch.compile), which predicts.
        model: The model itself.
        config: The run.
        dtype: Of autocast.
    """

    def __init__(
        self, network: nn.Module, model: SegmentationModel, config: TrainConfig, dtype: torch.dtype
    ) -> None:
        encoder = model.config.encoder
        super().__init__(network, config.augment, model.device, dtype, encoder.mean, encoder.std)

    def begin(self, batches: Sequence[SegmentationBatch]) -> list[float]:
        """The weight of each piece in the loss of a step: its fraction of the pixels that count.

        So the loss is the mean over the pixels of the whole step, in all pieces and processes (of
        which the mean will be taken). BatchNorm still normalises by the statistics of a piece.
        """
        counts = [int((batch.classes != IGNORE).sum()) for batch in batches]
        total, processes = torch.tensor([float(sum(counts))], device=self.device), 1
        if dist.is_initialized():
            dist.all_reduce(total)
            processes = dist.get_world_size()
        return [count * processes / max(1.0, float(total)) for count in counts]

    @annotate("segmentation_step")
    def forward(self, batch: SegmentationBatch) -> dict[str, Tensor]:
        """Returns `loss`, and the fraction of correct pixels as `accuracy`.

        A batch in which no pixel counts gives 0 and no gradient.
        """
        image = self.seen(batch)
        truth = self.to_device(batch.classes)[0].long()
        with autocast(self.device, self.dtype):
            logits = self.network(image)
        counted = truth != IGNORE
        count = counted.sum().clamp(min=1)
        loss = F.cross_entropy(logits.float(), truth, ignore_index=IGNORE, reduction="sum") / count
        hits = ((logits.argmax(1) == truth) & counted).sum() / count
        return {"loss": loss, "accuracy": hits.detach()}


def open_segmentation_evaluation(
    config: TrainConfig,
) -> Callable[[SegmentationModel], dict[str, float]]:
    """Opens the held-out photos of a run.

    Returns:
        A function of the model that gives `loss` (cross entropy), `miou`, `pixel_accuracy` and
        `mean_accuracy` on `data.eval_samples` photos of `data.eval_path`, evenly spread.

    Raises:
        ConfigError: If they cannot be used.
    """
    samples = open_samples(config, "data.eval_path", config.data.eval_path, training=False)
    samples.max_bad_fraction = config.data.max_bad_fraction
    count = min(config.data.eval_samples or len(samples), len(samples))
    chosen = np.linspace(0, len(samples) - 1, count).round().astype(int).tolist()

    @torch.no_grad()
    def evaluate(model: SegmentationModel) -> dict[str, float]:
        was_training = model.training
        model.eval()
        names = model.config.classes
        if tuple(samples.classes) != tuple(names):
            raise ConfigError(
                f"data.eval_path has other classes than data.path: {', '.join(samples.classes)} "
                f"instead of {', '.join(names)}; they must be the same, in the same order"
            )
        matrix = torch.zeros((len(names), len(names)), dtype=torch.int64)
        losses = []
        for index in chosen:
            sample = samples[index]
            chances = probabilities(model, torch.from_numpy(sample.image)).cpu()
            truth = torch.from_numpy(sample.classes)
            matrix += confusion_matrix(chances.argmax(0), truth, len(names))
            if (truth != IGNORE).any():
                logs = chances.clamp(min=1e-12).log()[None]
                losses.append(float(F.nll_loss(logs, truth[None].long(), ignore_index=IGNORE)))
        model.train(was_training)
        result = summarize(matrix, names, "held-out", model.config.name, len(chosen))
        return {
            "loss": float(np.mean(losses)),
            "miou": result.miou,
            "pixel_accuracy": result.pixel_accuracy,
            "mean_accuracy": result.mean_accuracy,
        }

    return evaluate


def _check(config: TrainConfig) -> Iterator[str]:
    if config.metric.max_depth:
        yield "metric.max_depth and segmentation.data exclude each other: a run learns one of them"
    if config.unlabeled.path:
        yield "segmentation.data and unlabeled.path exclude each other: a student learns depth"
    if config.gradient_matching:
        yield "gradient_matching does not work with segmentation.data"
    if config.data.hold_out:
        yield (
            "data.hold_out does not divide lists of segmentation.data: name a second list in "
            "data.eval_path"
        )


def _data(config: TrainConfig, world: World) -> tuple[TrainConfig, SegmentationTrainingData]:
    return config, SegmentationTrainingData.open(config)  # lists of class maps are read as they are


def _model(
    config: TrainConfig, data: SegmentationTrainingData, device: torch.device
) -> SegmentationModel:
    return build_segmentation_model(data.labeled.classes, config, device)


def _step(
    network: nn.Module, model: SegmentationModel, config: TrainConfig, dtype: torch.dtype
) -> Step:
    return SegmentationStep(network, model, config, dtype).to(model.device)


def _identity(config: TrainConfig) -> dict[str, str]:
    return {
        "model.preset": config.model.preset,
        "learns": "classes",
        "segmentation.head": config.segmentation.head,
    }


TASK = Task(_check, _data, _model, _step, open_segmentation_evaluation, _identity)
