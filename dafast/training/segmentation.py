"""Training a segmentation model: its data, its step, its look at held-out photos."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dafast.data.colours import change_colours, draw_colours
from dafast.data.segmentation import IGNORE, READERS, SegmentationDataset
from dafast.data.sources import SourceError
from dafast.data.transforms import AugmentConfig, TrainTransform, sample_generator
from dafast.evaluation.segmentation import confusion_matrix, summarize
from dafast.models.checkpoint import CheckpointError
from dafast.models.depth_anything import DepthAnything
from dafast.models.segmentation import SegmentationModel, is_segmentation
from dafast.models.segmentation_inference import probabilities
from dafast.profiling import annotate
from dafast.training.config import ConfigError, TrainConfig, image_size
from dafast.training.data import Request
from dafast.training.steps import Normalise, autocast, build_model

logger = logging.getLogger(__name__)


class SegmentationBatch(NamedTuple):
    """What a rank sees in a step.

    Attributes:
        image: (B, 3, H, W) uint8; colours are changed, and values normalised, on the device.
        colours: (B, DRAWS) float64, what decides over the colours (`dafast.data.colours`).
        classes: (B, H, W) uint8, class indices or `IGNORE`.
        keys: Names of the samples, for messages.
        skipped: Samples that could not be read: "key: reason".
    """

    image: Tensor
    colours: Tensor
    classes: Tensor
    keys: list[str]
    skipped: list[str]


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
        self.shards, self.transform, self.seed = samples, transform, seed

    @classmethod
    def open(cls, config: TrainConfig) -> SegmentationTrainingData:
        """Opens the photos that a configuration names.

        Raises:
            ConfigError: If they cannot be used.
        """
        samples = open_samples(config, "data.path", config.data.path, training=True)
        samples.max_bad_fraction = config.data.max_bad_fraction
        return cls(samples, TrainTransform(config.augment), config.seed)

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.shards)

    @annotate("sample")
    def __getitem__(self, request: Request) -> SegmentationItem:
        sample = self.shards[request.sample]
        rng = sample_generator(self.seed, request.position)
        counted = sample.classes != IGNORE
        image, classes, counted = self.transform(
            sample.image, sample.classes, counted, request.shape, rng
        )
        # What lies outside of the photo, where a transform shows that, does not count either.
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
    """Puts the head that a configuration names on the encoder that it names, ready to be trained.

    `model.init` may be a segmentation model: then the head starts from its own where it is of the
    same kind and the classes are the same, else random.

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
    depth.config = dataclasses.replace(depth.config, image_size=image_size(config))
    model = SegmentationModel.from_depth(depth, classes, config.segmentation.head)
    if trained is not None:
        if (trained.config.head, trained.config.classes) == (model.config.head, tuple(classes)):
            model.head.load_state_dict(trained.head.state_dict())
        else:
            logger.warning(
                "model.init: %s has another head or other classes; the head starts random",
                config.model.init,
            )
    if config.segmentation.head == "dpt":
        # As of the depth decoder: it has weights and never a gradient, which DDP would wait for.
        unused = "head.scratch.refinenet4.resConfUnit1"
        model.get_submodule(unused).requires_grad_(False)
    if config.channels_last:
        model.head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dist.is_initialized() and model.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model.head)
    return model.train()


class SegmentationStep(nn.Module):
    """Loss of a batch: change colours, normalise, predict, cross entropy of what counts.

    Args:
        network: What predicts (the model, or what wraps it: DDP, torch.compile).
        model: The model itself.
        augment: How colours are changed.
        dtype: Of autocast.
    """

    def __init__(
        self,
        network: nn.Module,
        model: SegmentationModel,
        augment: AugmentConfig,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.augment = augment
        self.network, self.dtype, self.device = network, dtype, model.device
        encoder = model.config.encoder
        self.normalise = Normalise(encoder.mean, encoder.std)

    def begin(self, batches: Sequence[SegmentationBatch]) -> list[float]:
        """The share of each piece of a step in its loss: that of the pixels that count.

        So the loss is the mean over the pixels of the whole step, in all pieces and processes (of
        which the mean will be taken). BatchNorm normalises by the statistics of a piece all the
        same.
        """
        counts = [int((batch.classes != IGNORE).sum()) for batch in batches]
        total, processes = torch.tensor([float(sum(counts))], device=self.device), 1
        if dist.is_initialized():
            dist.all_reduce(total)
            processes = dist.get_world_size()
        return [count * processes / max(1.0, float(total)) for count in counts]

    @annotate("segmentation_step")
    def forward(self, batch: SegmentationBatch) -> dict[str, Tensor]:
        """Returns `loss`, and the share of the pixels that are right as `accuracy`.

        A batch in which no pixel counts gives 0 and no gradient.
        """
        image = batch.image.to(self.device, non_blocking=True)
        image = self.normalise(change_colours(image, self.augment, batch.colours))
        truth = batch.classes.to(self.device, non_blocking=True).long()
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
    """What a run's model is told of held-out photos.

    Returns:
        Takes the model and gives `loss` (cross entropy), `miou`, `pixel_accuracy` and
        `mean_accuracy` of `data.eval_samples` photos of `data.eval_path`, evenly spread.

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
            shares = probabilities(model, torch.from_numpy(sample.image)).cpu()
            truth = torch.from_numpy(sample.classes)
            matrix += confusion_matrix(shares.argmax(0), truth, len(names))
            if (truth != IGNORE).any():
                chances = shares.clamp(min=1e-12).log()[None]
                losses.append(float(F.nll_loss(chances, truth[None].long(), ignore_index=IGNORE)))
        model.train(was_training)
        result = summarize(matrix, names, "held-out", model.config.name, len(chosen))
        return {
            "loss": float(np.mean(losses)),
            "miou": result.miou,
            "pixel_accuracy": result.pixel_accuracy,
            "mean_accuracy": result.mean_accuracy,
        }

    return evaluate
