"""Fine-tuning to depth in metres: what is trained, its step, its evaluation.

Depth Anything, section 4.3: the encoder and decoder of a relative model with ZoeDepth's bins, all
of it trained with the SILog loss. Batches hold disparity in 1/metre, as the shards do.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dafast.config import PRESETS, ModelConfig
from dafast.data.shards import SampleError, ShardDataset
from dafast.evaluation.metrics import depth_errors
from dafast.losses import SILogLoss
from dafast.models.depth_anything import DepthAnything
from dafast.profiling import annotate
from dafast.training.config import ConfigError, MetricSection, TrainConfig, image_size
from dafast.training.data import Batch
from dafast.training.steps import LabeledStep, autocast, build_model, prepare_model

_OUTPUT = "depth_head.scratch.output_conv2.2."  # the decoder's last convolution


def metric_config(config: TrainConfig) -> ModelConfig:
    """The network that a run trains: the preset's, with an output in metres.

    `infer` will show it pictures as large as training did: the size of things in a picture tells
    how far they are, so that another size would give other depths.
    """
    preset, section = PRESETS[config.model.preset], config.metric
    return dataclasses.replace(
        preset,
        name=preset.name if preset.is_metric else f"{preset.name}-metric",
        max_depth=section.max_depth,
        bin_centers="" if section.head == "sigmoid" else section.head,
        image_size=image_size(config),
        output_align_corners=True,
        hub_id="",
        hub_file="",
    )


def build_metric_model(config: TrainConfig, device: torch.device) -> DepthAnything:
    """Builds the model from what `config.model` says it starts from, relative or metric.

    What the start has no weights for, or such as mean something else, starts random: the bins of a
    relative model, and the decoder's last convolution where one of the two ends in a sigmoid.
    """
    start = build_model(config.model, torch.device("cpu"), channels_last=False)
    model = DepthAnything(metric_config(config))

    def sigmoid(other: ModelConfig) -> bool:
        return other.is_metric and not other.bin_centers

    foreign = []
    if sigmoid(start.config) != sigmoid(model.config):
        foreign.append(_OUTPUT)
    if start.config.bin_centers != model.config.bin_centers:
        foreign.append("metric_head.")
    state = {k: v for k, v in start.state_dict().items() if not k.startswith(tuple(foreign))}
    model.load_state_dict(state, strict=False)
    prepare_model(model, device, config.channels_last)
    trained = dict(start.named_parameters())
    for name, parameter in model.named_parameters():
        if name in trained and not trained[name].requires_grad:
            parameter.requires_grad_(False)  # frozen, as `config.model` asks
    return model


def valid_labels(disparity: Tensor, mask: Tensor, section: MetricSection) -> tuple[Tensor, Tensor]:
    """Depth in metres of disparity in 1/metre, and where it counts; sky has none."""
    depth = 1.0 / disparity
    return depth, mask & (depth > section.min_depth) & (depth < section.max_depth)


def check_metres(data: ShardDataset, section: MetricSection, key: str) -> None:
    """Looks whether labels can be metres, at 64 samples evenly spread over the set.

    None may say that it is in another unit (`ShardDataset.unit`), and one has to have a depth that
    counts.

    Args:
        data: With physical labels.
        section: The range of depths that count.
        key: The setting that the data is from, for messages.

    Raises:
        ConfigError: If the labels are no metres.
    """
    count = min(len(data), 64)
    chosen = [int(i) for i in np.linspace(0, len(data) - 1, count).round()]
    for index in chosen:
        with contextlib.suppress(SampleError):  # named when it is read
            if data.unit(index) not in ("", "1/metre"):
                raise ConfigError(
                    f"{key}: the label of {data.name(index)} is not in metres but "
                    f"{data.unit(index)}, as those of a teacher are (`dafast label`) and of data "
                    "sets that know no metres. Name shards of measured depth, or leave out "
                    "metric.max_depth to learn relative disparity"
                )
    for index in chosen:
        sample = data[index]
        disparity, mask = torch.from_numpy(sample.disparity), torch.from_numpy(sample.mask)
        if valid_labels(disparity, mask, section)[1].any():
            return
    raise ConfigError(
        f"{key}: of {count} samples none has a depth between metric.min_depth and max_depth "
        f"({section.min_depth:g} to {section.max_depth:g} metres); are the labels in another unit? "
        "A list has the column `scale` for that"
    )


class MetricStep(LabeledStep):
    """Loss of a batch of images with depth in metres: change colours, predict, compare.

    The loss takes the valid pixels of a process's batch together, as published; so it depends a
    little on how many processes share the batch. In how many pieces (`accumulate`) changes nothing:
    before the first is learned from all are predicted once without a gradient, for the sums over
    pixels that the loss of the whole is a function of.
    """

    def __init__(
        self, network: nn.Module, model: DepthAnything, config: TrainConfig, dtype: torch.dtype
    ) -> None:
        super().__init__(network, model, config, dtype)
        self.section = config.metric
        self.silog = SILogLoss(config.metric.beta)
        self.pieces, self.whole = 1, torch.empty(0)  # of the step: how many, their sums

    @torch.no_grad()
    def begin(self, batches: Sequence[Batch]) -> list[float]:
        """Predicts all pieces where there are several, for the loss of the whole."""
        self.pieces = len(batches)
        if self.pieces > 1:
            self.whole = torch.stack(
                [self.silog.sums(*self._compared(batch)) for batch in batches]
            ).sum(0)
        return super().begin(batches)

    def _compared(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted depth, true depth and where it counts, (B, H, W) each."""
        disparity, mask = self.to_device(batch.disparity, batch.mask)
        image = self.seen(batch)
        with autocast(self.device, self.dtype):
            prediction = self.network(image)
        return prediction.float(), *valid_labels(disparity, mask, self.section)

    @annotate("metric_step")
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the parts of the loss by name; `loss` is their total.

        Of a piece of a step the loss is that of the whole step, and its gradient so much of the
        whole one's as goes through this piece, times the number of pieces: their mean is the step.
        """
        compared = self._compared(batch)
        if self.pieces == 1:
            loss = self.silog(*compared)
        else:
            own = self.silog.sums(*compared)
            loss = self.silog.of_sums(self.whole + self.pieces * (own - own.detach())).float()
        return {"loss": loss, "silog": loss}


def metric_evaluation(
    model: DepthAnything, data: ShardDataset, samples: int, section: MetricSection
) -> dict[str, float]:
    """Evaluates on held-out samples, without alignment: metres are compared with metres.

    Args:
        model: In any mode; it is put back.
        data: With physical labels, in 1/metre.
        samples: How many, evenly spread; 0 is all.
        section: The range, the loss's share of the scale, and whether to average over mirror
            images.

    Returns:
        `loss` and the metrics of `depth_errors`, means over the images that have a valid label.
    """
    was_training = model.training
    model.eval()
    loss = SILogLoss(section.beta)
    rows: list[dict[str, float]] = []
    count = min(samples or len(data), len(data))
    for index in np.linspace(0, len(data) - 1, count).round().astype(int):
        sample = data[int(index)]
        disparity, mask = torch.from_numpy(sample.disparity), torch.from_numpy(sample.mask)
        depth, valid = valid_labels(disparity[None], mask[None], section)
        if not valid.any():
            continue
        predicted = torch.from_numpy(model.infer_metric(sample.image, flip=section.flip))[None]
        predicted = predicted.clamp(section.min_depth, section.max_depth)
        errors = depth_errors(predicted, depth, valid)
        row = {name: float(value) for name, value in errors.items()}
        rows.append({"loss": float(loss(predicted, depth, valid)), **row})
    model.train(was_training)
    if not rows:
        return {"loss": float("nan")}
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
