"""Relative disparity: a teacher learns from labeled images, a student from unlabeled ones too."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dafast.config import PRESETS
from dafast.data.colours import change_colours
from dafast.data.shards import ShardDataset
from dafast.distributed import World
from dafast.evaluation.alignment import align_disparity, constant_baseline, plane_baseline
from dafast.evaluation.metrics import depth_metrics
from dafast.losses import AffineInvariantLoss, FeatureAlignmentLoss, GradientMatchingLoss
from dafast.models.checkpoint import CheckpointError
from dafast.models.depth_anything import DepthAnything
from dafast.models.vision_transformer import VisionTransformer
from dafast.ops import affine_invariant_loss, use_backend
from dafast.profiling import annotate
from dafast.training.config import ConfigError, TrainConfig, UnlabeledSection
from dafast.training.data import Batch, TrainingData
from dafast.training.own_pictures import pack_lists
from dafast.training.starts import build_model, start_encoder
from dafast.training.task import Normalise, Step, Task, autocast, depth_problems
from dafast.training.units import warn_of_no_scored_depth


class LabeledStep(Step):
    """Loss of a batch of labeled images: change colours, normalise, predict, compare.

    Args:
        network: The model, or its wrapper (DDP, torch.compile), which predicts.
        model: The model itself.
        config: The run.
        dtype: Of autocast.
    """

    def __init__(
        self, network: nn.Module, model: DepthAnything, config: TrainConfig, dtype: torch.dtype
    ) -> None:
        mean, std = model.config.mean, model.config.std
        super().__init__(network, config.augment, model.device, dtype, mean, std)
        self.depth_loss = AffineInvariantLoss()
        self.gradient_loss = GradientMatchingLoss()
        self.gradient_weight = config.gradient_matching
        self.reference = config.losses == "reference"

    def losses(self) -> contextlib.AbstractContextManager:
        """A context in which the losses use the implementation that the configuration names."""
        return use_backend("reference") if self.reference else contextlib.nullcontext()

    def compare(
        self,
        name: str,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor,
        regions: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The parts of the loss of disparity maps (B, H, W), weighted: their sum is the loss."""
        parts = {name: self.depth_loss(prediction, target, mask, regions)}
        if self.gradient_weight:
            matching = self.gradient_loss(prediction, target, mask, regions)
            parts[f"{name}_gradient"] = self.gradient_weight * matching
        return parts

    @annotate("labeled_step")
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the parts of the loss by name; `loss` is their total."""
        disparity, mask = self.to_device(batch.disparity, batch.mask)
        image = self.seen(batch)
        with autocast(self.device, self.dtype):
            prediction = self.network(image)
        with self.losses():
            parts = self.compare("labeled", prediction.float(), disparity, mask)
        return {"loss": sum(parts.values(), prediction.new_zeros(())), **parts}


class StudentStep(LabeledStep):
    """Loss of a batch of labeled and unlabeled images (Depth Anything, stage 2).

    The student sees the labeled images as they are and the unlabeled ones disturbed and mixed, in
    one pass. The loss is the plain average of its parts: `labeled`; `unlabeled`, against the
    teacher's maps of the clean images, the two parts of a mixed image separately; and, with
    `unlabeled.align`, `alignment` of the features of unlabeled images with those of a frozen
    encoder. A gradient-matching term is added to the part that it belongs to.
    """

    def __init__(
        self, network: nn.Module, model: DepthAnything, config: TrainConfig, dtype: torch.dtype
    ) -> None:
        super().__init__(network, model, config, dtype)
        section = self.section = config.unlabeled
        self.teacher = load_teacher(section, model.device, dtype) if section.teacher else None
        if self.teacher is not None:
            self.teacher_normalise = Normalise(self.teacher.config.mean, self.teacher.config.std)
        self.encoder = load_frozen_encoder(section, model, dtype) if section.align else None
        self.alignment_loss = FeatureAlignmentLoss(section.align_margin, section.align_reduction)

    @annotate("student_step")
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the parts of the loss by name; `loss` is their total."""
        given = batch.unlabeled
        assert given is not None
        image = self.seen(batch)
        disparity, mask = self.to_device(batch.disparity, batch.mask)
        clean, label, valid, region = self.to_device(
            given.image, given.disparity, given.mask, given.region
        )
        strong = change_colours(clean, self.section.augment, given.colours)
        count = len(region)
        partner = torch.arange(1, count + 1, device=self.device) % len(clean)

        def mix(values: Tensor) -> Tensor:
            """u_ab = u_a * M + u_b * (1 - M), of images or maps."""
            own_pixels = region if values.ndim == 3 else region[:, None]
            return torch.where(own_pixels, values[:count], values[partner])

        mixed = self.normalise(mix(strong))
        both = torch.cat([image, mixed])
        with autocast(self.device, self.dtype):
            prediction, features = self.network(both, features=True)
        prediction = prediction.float()
        if self.teacher is not None:
            label, valid = self.teacher_labels(clean)
        frozen = None
        if self.encoder is not None:
            seen = mixed if self.section.align_view == "student" else self.normalise(mix(clean))
            with torch.no_grad():
                frozen = self.encoder(seen.to(self.dtype))

        labeled = len(image)
        with self.losses():
            parts = {
                **self.compare("labeled", prediction[:labeled], disparity, mask),
                **self.compare(
                    "unlabeled",
                    prediction[labeled:],
                    mix(label),
                    mix(valid),
                    region if self.section.cutmix else None,
                ),
            }
            if frozen is not None:
                parts["alignment"] = self.alignment_loss(features[labeled:], frozen)
        averaged = 2 if frozen is None else 3
        return {"loss": sum(parts.values(), prediction.new_zeros(())) / averaged, **parts}

    @torch.no_grad()
    def teacher_labels(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's disparity of clean images, valid everywhere."""
        assert self.teacher is not None
        label = self.teacher(self.teacher_normalise(clean).to(self.dtype)).float()
        return label, torch.ones_like(label, dtype=torch.bool)


def load_teacher(
    section: UnlabeledSection, device: torch.device, dtype: torch.dtype
) -> DepthAnything:
    """The frozen model that labels in the loop."""
    try:
        teacher = DepthAnything.from_pretrained(section.teacher, device=device, dtype=dtype)
    except CheckpointError as error:
        raise ConfigError(f"unlabeled.teacher: {error}") from error
    if teacher.config.quantity != "disparity":
        what = "metres" if teacher.config.is_metric else "depth"
        raise ConfigError(
            f"unlabeled.teacher: {section.teacher} predicts {what}; a model of relative disparity "
            "is needed"
        )
    return teacher.eval().requires_grad_(False)


def load_frozen_encoder(
    section: UnlabeledSection, model: DepthAnything, dtype: torch.dtype
) -> VisionTransformer:
    """The frozen encoder that the student's features stay near.

    Called before a checkpoint is loaded into `model`: `start` is what that started from.
    """
    if section.align == "start":
        encoder = copy.deepcopy(model.pretrained)
    else:
        other = DepthAnything(model.config)
        start_encoder(other, section.align, "unlabeled.align")
        encoder = other.pretrained
    return encoder.to(model.device, dtype).eval().requires_grad_(False)


def periodic_evaluation(
    model: DepthAnything,
    data: ShardDataset,
    samples: int,
    max_depth: float,
) -> dict[str, float]:
    """Evaluates on held-out samples.

    Each image goes through `infer`, as in `dafast eval`. After least-squares alignment in disparity
    per image: AbsRel and delta_1, for the prediction and for the best constant and the best plane,
    the scores that a useful model must beat.

    Args:
        model: In any mode, which it has again afterwards.
        data: With physical labels.
        samples: How many, evenly spread; 0 is all.
        max_depth: Farther pixels do not count.

    Returns:
        `loss`, and `abs_rel`, `delta_1` and the same with the prefixes `constant_` and `plane_`;
        only `loss` where no pixel has a depth that counts.
    """
    was_training = model.training
    model.eval()
    count = min(samples or len(data), len(data))
    losses: list[float] = []
    scores: dict[str, list[float]] = {}
    for index in np.linspace(0, len(data) - 1, count).round().astype(int):
        sample = data[int(index)]
        prediction = torch.from_numpy(model.infer(sample.image))
        disparity = torch.from_numpy(sample.disparity)
        mask = torch.from_numpy(sample.mask)
        losses.append(float(affine_invariant_loss(prediction[None], disparity[None], mask[None])))
        with np.errstate(divide="ignore"):
            depth = 1.0 / sample.disparity
        # Sky has disparity 0: it takes part in the alignment's loss above, but has no depth to
        # score.
        scored = sample.mask & (depth > 1e-3) & (depth < max_depth)
        if np.count_nonzero(scored) < 10:
            continue
        aligned = {
            "": align_disparity(prediction.numpy(), sample.disparity, scored),
            "constant_": constant_baseline(sample.disparity, scored),
            "plane_": plane_baseline(sample.disparity, scored),
        }
        for prefix, values in aligned.items():
            metrics = depth_metrics(values, depth, scored, max_depth=max_depth)
            for name in ("abs_rel", "delta_1"):
                scores.setdefault(prefix + name, []).append(metrics[name])
    model.train(was_training)
    return {
        "loss": float(np.mean(losses)),
        **{name: float(np.mean(v)) for name, v in scores.items()},
    }


def _check(config: TrainConfig) -> Iterator[str]:
    if PRESETS[config.model.preset].is_metric:
        yield (
            f"model.preset: {config.model.preset} is metric; this run trains relative disparity. "
            "Set metric.max_depth to train metres"
        )
    if PRESETS[config.model.preset].quantity == "depth":
        yield (
            f"model.preset: {config.model.preset} predicts depth; this run trains disparity. Its "
            f"weights are a start: model.preset = 'v2-vitl', model.init = '{config.model.preset}'"
        )
    yield from depth_problems(config)


def _data(config: TrainConfig, world: World) -> tuple[TrainConfig, TrainingData]:
    config = pack_lists(config, world)
    return config, TrainingData.open(config, labels="minmax")


def _model(config: TrainConfig, data: TrainingData, device: torch.device) -> DepthAnything:
    model = build_model(config.model, device, config.channels_last)
    if model.config.is_metric:
        raise ConfigError(
            f"model.init: {config.model.init} predicts metres; this run trains relative disparity. "
            "Set metric.max_depth to train metres"
        )
    model.config = dataclasses.replace(model.config, image_size=config.data.image_size)
    return model


def _step(
    network: nn.Module, model: DepthAnything, config: TrainConfig, dtype: torch.dtype
) -> Step:
    kind = StudentStep if config.unlabeled.path else LabeledStep
    return kind(network, model, config, dtype).to(model.device)


def _evaluation(config: TrainConfig) -> Callable[[DepthAnything], dict[str, float]]:
    held_out = ShardDataset(config.data.eval_path, labels="physical", key="data.eval_path")
    samples, max_depth = config.data.eval_samples, config.data.eval_max_depth
    warn_of_no_scored_depth(held_out, max_depth, config.best_by)
    return lambda model: periodic_evaluation(model, held_out, samples, max_depth)


def _identity(config: TrainConfig) -> dict[str, str]:
    return {"model.preset": config.model.preset, "learns": "relative depth"}


TASK = Task(_check, _data, _model, _step, _evaluation, _identity)
