"""What a run learns: the model and the evaluation that belong to its configuration."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dafast.data.shards import ShardDataset
from dafast.models.depth_anything import DepthAnything
from dafast.training.config import ConfigError, TrainConfig
from dafast.training.data import TrainingData
from dafast.training.evaluation import periodic_evaluation
from dafast.training.metric import build_metric_model, metric_evaluation
from dafast.training.steps import build_model


def open_model(config: TrainConfig, data: TrainingData, device: torch.device) -> DepthAnything:
    """The model to train, from what `config.model` says it starts from."""
    if config.metric.max_depth:
        return build_metric_model(config, device)
    model = build_model(config.model, device, config.channels_last)
    if model.config.is_metric:
        raise ConfigError(
            f"model.init: {config.model.init} predicts metres; this trains relative disparity, "
            "metres with metric.max_depth"
        )
    return model


def open_evaluation(config: TrainConfig) -> Callable[[DepthAnything], dict[str, float]]:
    """What takes the model and scores it on the held-out data of `data.eval_path`."""
    held_out = ShardDataset(config.data.eval_path, labels="physical", key="data.eval_path")
    samples, max_depth = config.data.eval_samples, config.data.eval_max_depth
    if config.metric.max_depth:
        return lambda model: metric_evaluation(model, held_out, samples, config.metric)
    return lambda model: periodic_evaluation(model, held_out, samples, max_depth)
