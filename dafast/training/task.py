"""The parts of a task, and the base class of the steps of all tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dafast.data.colours import change_colours
from dafast.data.transforms import AugmentConfig
from dafast.distributed import World
from dafast.models.depth_anything import DepthAnything
from dafast.models.segmentation import SegmentationModel
from dafast.training.config import LEARNED_NOTHING, TrainConfig


class SampleSet(Protocol):
    """A set of samples that a training stream visits."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The sample's name in messages."""

    def read(self, index: int) -> Any:
        """Reads exactly this sample, or raises `SampleError`."""


class StepBatch(Protocol):
    """The fields of a batch that the loop reads, for any task."""

    @property
    def keys(self) -> Sequence[str]:
        """Names of the samples."""

    @property
    def skipped(self) -> Sequence[str]:
        """Labeled samples that could not be read: "key: reason"."""

    @property
    def unlabeled_skipped(self) -> Sequence[str]:
        """Unlabeled ones."""


class TrainingSet(Protocol):
    """The data of a run; answers the `Request`s of its streams with samples."""

    @property
    def labeled(self) -> SampleSet:
        """The labeled samples."""

    @property
    def unlabeled(self) -> SampleSet | None:
        """The unlabeled samples, where the run has any."""

    def __getitem__(self, request: Any) -> Any: ...

    def collate(self, samples: list[Any]) -> Any:
        """Stacks the samples of a batch."""


class Step(nn.Module):
    """Turns a batch into losses.

    Args:
        network: The model, or its wrapper (DDP, torch.compile), which predicts.
        augment: How colours are changed.
        device: Where the model is.
        dtype: Of autocast.
        mean: Per channel, of RGB in 0..1, for the normalisation.
        std: Likewise.
    """

    def __init__(
        self,
        network: nn.Module,
        augment: AugmentConfig,
        device: torch.device,
        dtype: torch.dtype,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.network, self.augment, self.dtype, self.device = network, augment, dtype, device
        self.normalise = Normalise(mean, std)

    def begin(self, batches: Sequence[Any]) -> list[float]:
        """Takes all pieces of a step before the first of them is learned from.

        Returns:
            The weight of each piece's loss in the loss of the step: equal ones, where the loss is a
            mean over images and the pieces are of one size.
        """
        return [1 / len(batches)] * len(batches)

    def to_device(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors where the model is."""
        return [tensor.to(self.device, non_blocking=True) for tensor in tensors]

    def seen(self, batch: Any) -> Tensor:
        """The network's input for a batch's labeled images, (B, 3, H, W) float32."""
        (image,) = self.to_device(batch.image)
        return self.normalise(change_colours(image, self.augment, batch.colours))


TrainedModel = DepthAnything | SegmentationModel
Data = TypeVar("Data", bound=TrainingSet)
Model = TypeVar("Model", bound=TrainedModel)


@dataclass(frozen=True)
class Task(Generic[Data, Model]):
    """A task that a run can learn. Each file of `dafast.training.tasks` has one as `TASK`.

    Attributes:
        check: Yields a message for each setting that does not work in this task.
        data: Opens the training data. Returns it with the configuration, in which a list of
            pictures is replaced by the shards that it was packed into.
        model: Builds the model, ready to be trained, on a device.
        step: Builds the step, which turns a batch into losses, from the network (the model or its
            wrapper), the model, the configuration and the dtype of autocast.
        evaluation: Opens the held-out data. Returns what scores a model on it: scores by name, with
            `loss` among them.
        identity: The settings that weights depend on: a checkpoint continues only a run in which
            they are equal.
    """

    check: Callable[[TrainConfig], Iterator[str]]
    data: Callable[[TrainConfig, World], tuple[TrainConfig, Data]]
    model: Callable[[TrainConfig, Data, torch.device], Model]
    step: Callable[[nn.Module, Model, TrainConfig, torch.dtype], Step]
    evaluation: Callable[[TrainConfig], Callable[[Model], dict[str, float]]]
    identity: Callable[[TrainConfig], dict[str, str]]


def depth_problems(config: TrainConfig) -> Iterator[str]:
    """Yields a message for each setting that does not work for depth, relative or metric."""
    learned = bool(config.model.init) or config.model.encoder_init not in LEARNED_NOTHING
    if config.model.freeze_encoder and not learned:
        yield (
            "model.freeze_encoder would keep an untrained encoder: set model.init, or "
            "model.encoder_init to dinov2 or a file"
        )
    if config.best_by == "miou":
        yield "best_by = miou is a score of segmentation (segmentation.data): use abs_rel or loss"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """The autocast context of a dtype; float32 has none."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


class Normalise(nn.Module):
    """Converts RGB of 0 to 255 to the normalised input of a network.

    Args:
        mean: Per channel, of RGB in 0..1.
        std: Likewise.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # (x / 255 - mean) / std as one multiplication and one addition.
        scale = torch.tensor([1.0 / (255.0 * s) for s in std]).view(3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), 0 to 255 in any dtype, to float32."""
        return torch.addcmul(self.shift, image.float(), self.scale)
