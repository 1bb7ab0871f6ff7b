"""Depth in metres: the model, its step, its evaluation.

Depth Anything, section 4.3: the encoder and decoder of a relative model with ZoeDepth's bins, all
of it trained with the SILog loss. Batches hold disparity in 1/metre, as the shards do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dafast.config import PRESETS, ModelConfig
from dafast.data.shards import ShardDataset
from dafast.distributed import World
from dafast.evaluation.metrics import depth_errors
from dafast.losses import SILogLoss
from dafast.models.depth_anything import DepthAnything
from dafast.profiling import annotate
from dafast.training.config import MetricSection, TrainConfig
from dafast.training.data import Batch, TrainingData
from dafast.training.own_pictures import pack_lists
from dafast.training.starts import build_model, prepare_model
from dafast.training.task import Step, Task, autocast, depth_problems
from dafast.training.units import check_metres, valid_labels

_OUTPUT = "depth_head.scratch.output_conv2.2."  # the decoder's last convolution


def metric_config(config: TrainConfig) -> ModelConfig:
    """The network that a run trains: the preset's, with an output in metres.

    Its `image_size` is that of training. The size of things in a picture tells how far away they
    are, so `infer` would give other depths at another size.
    """
    preset, section = PRESETS[config.model.preset], config.metric
    return dataclasses.replace(
        preset,
        name=preset.name if preset.is_metric else f"{preset.name}-metric",
        max_depth=section.max_depth,
        bin_centers="" if section.head == "sigmoid" else section.head,
        output="",
        kind="",
        focal_length=None,
        sky_head=False,
        fit="pad",
        image_size=config.data.image_size,
        output_align_corners=True,
        hub_id="",
        hub_file="",
    )


def build_metric_model(config: TrainConfig, device: torch.device) -> DepthAnything:
    """Builds the model with the initial weights that `config.model` names, relative or metric.

    Weights that the start lacks, or that mean something else there, start random: the bins of a
    relative model, and the decoder's last convolution where the two have different activations.
    """
    start = build_model(config.model, torch.device("cpu"), channels_last=False)
    model = DepthAnything(metric_config(config))

    foreign = ["depth_head.scratch.sky_output_conv2."]
    if start.config.activation != model.config.activation:
        foreign.append(_OUTPUT)
    if start.config.bin_centers != model.config.bin_centers:
        foreign.append("metric_head.")
    state = {k: v for k, v in start.state_dict().items() if not k.startswith(tuple(foreign))}
    model.load_state_dict(state, strict=False)
    prepare_model(model, device, config.channels_last)
    trained = dict(start.named_parameters())
    for name, parameter in model.named_parameters():
        if name in trained and not trained[name].requires_grad:
            parameter.requires_grad_(False)  # frozen by `config.model`
    return model


class MetricStep(Step):
    """Loss of a batch of images with depth in metres: change colours, predict, compare.

    The loss takes the valid pixels of a process's batch together, as published; so it depends a
    little on how many processes share the batch. It does not depend on the number of pieces
    (`accumulate`): all pieces are first predicted once without gradients, for the sums over pixels
    that determine the loss of the whole step.

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
        self.section = config.metric
        self.silog = SILogLoss(config.metric.beta)
        self.pieces, self.whole = 1, torch.empty(0)  # of the step: how many, their sums

    @torch.no_grad()
    def begin(self, batches: Sequence[Batch]) -> list[float]:
        """Predicts all pieces where there are several, for the loss of the whole step."""
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

        The loss of a piece is that of the whole step; its gradient is the part that goes through
        this piece, times the number of pieces: the mean over the pieces is the step's gradient.
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
        model: In any mode, which it has again afterwards.
        data: With physical labels, in 1/metre.
        samples: How many, evenly spread; 0 is all.
        section: The range of depths, the loss's beta, and whether to average over mirror images.

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


def _check(config: TrainConfig) -> Iterator[str]:
    section = config.metric
    if section.min_depth >= section.max_depth:
        yield f"metric.min_depth must be under metric.max_depth ({section.max_depth})"
    if config.unlabeled.path:
        yield "metric.max_depth and unlabeled.path exclude each other: a student learns disparity"
    if config.gradient_matching:
        yield "gradient_matching does not work with metric.max_depth"
    if len({min(shape) for shape in config.data.shapes}) != 1:
        yield (
            "data.shapes: with metric.max_depth all need the same shorter side, because the "
            "predicted metres depend on the size at which a scene is shown"
        )
    yield from depth_problems(config)


def _data(config: TrainConfig, world: World) -> tuple[TrainConfig, TrainingData]:
    config = pack_lists(config, world)
    data = TrainingData.open(config, labels="physical")
    check_metres(data.labeled, config.metric, "data.path")
    return config, data


def _model(config: TrainConfig, data: TrainingData, device: torch.device) -> DepthAnything:
    return build_metric_model(config, device)


def _step(
    network: nn.Module, model: DepthAnything, config: TrainConfig, dtype: torch.dtype
) -> Step:
    return MetricStep(network, model, config, dtype).to(model.device)


def _evaluation(config: TrainConfig) -> Callable[[DepthAnything], dict[str, float]]:
    held_out = ShardDataset(config.data.eval_path, labels="physical", key="data.eval_path")
    check_metres(held_out, config.metric, "data.eval_path")
    samples = config.data.eval_samples
    return lambda model: metric_evaluation(model, held_out, samples, config.metric)


def _identity(config: TrainConfig) -> dict[str, str]:
    return {
        "model.preset": config.model.preset,
        "learns": "metres",
        "metric.head": config.metric.head,
    }


TASK = Task(_check, _data, _model, _step, _evaluation, _identity)
