"""A step of the student: labeled images, and unlabeled ones that a teacher labels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dafast.data.colours import change_colours
from dafast.losses import FeatureAlignmentLoss
from dafast.models.checkpoint import CheckpointError
from dafast.models.depth_anything import DepthAnything
from dafast.models.vision_transformer import VisionTransformer
from dafast.profiling import annotate
from dafast.training.config import ConfigError, TrainConfig, UnlabeledSection
from dafast.training.data import Batch
from dafast.training.metric import MetricStep
from dafast.training.segmentation import SegmentationStep
from dafast.training.steps import LabeledStep, Normalise, autocast, start_encoder


class StudentStep(LabeledStep):
    """Loss of a batch of labeled and unlabeled images (Depth Anything, stage 2).

    The student sees the labeled images as they are and the unlabeled ones disturbed and mixed, in
    one pass. The loss is the plain average of its parts: `labeled`; `unlabeled`, against the
    teacher's maps of the clean images, the two parts of a mixed image apart; and `alignment` of
    the features of unlabeled images with those of a frozen encoder, where that is asked for. A
    gradient-matching term belongs to the part that it stands beside.
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
    if teacher.config.is_metric:
        raise ConfigError(
            f"unlabeled.teacher: {section.teacher} predicts metres; a relative model is needed"
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


def build_step(
    network: nn.Module, model: Any, config: TrainConfig, dtype: torch.dtype
) -> nn.Module:
    """What turns a batch into losses: of a student where there are unlabeled images."""
    if config.metric.max_depth:
        return MetricStep(network, model, config, dtype).to(model.device)
    if config.segmentation.data:
        return SegmentationStep(network, model, config.augment, dtype).to(model.device)
    kind = StudentStep if config.unlabeled.path else LabeledStep
    return kind(network, model, config, dtype).to(model.device)
