"""What a run learns: the data, the model and the evaluation that belong to its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from dafast.data.shards import ShardDataset
from dafast.training import segmentation
from dafast.training.config import ConfigError, TrainConfig, image_size
from dafast.training.data import TrainingData
from dafast.training.evaluation import periodic_evaluation
from dafast.training.metric import build_metric_model, check_metres, metric_evaluation
from dafast.training.steps import build_model


def open_data(config: TrainConfig) -> Any:
    """The training data, a `TrainingData` or what answers as one."""
    if config.segmentation.data:
        return segmentation.SegmentationTrainingData.open(config)
    data = TrainingData.open(config)
    if config.metric.max_depth:
        check_metres(data.shards, config.metric, "data.path")
    return data


def open_model(config: TrainConfig, data: Any, device: torch.device) -> Any:
    """The model to train, from what `config.model` says it starts from."""
    if config.metric.max_depth:
        return build_metric_model(config, device)
    if config.segmentation.data:
        return segmentation.build_segmentation_model(data.shards.classes, config, device)
    model = build_model(config.model, device, config.channels_last)
    if model.config.is_metric:
        raise ConfigError(
            f"model.init: {config.model.init} predicts metres; this trains relative disparity, "
            "metres with metric.max_depth"
        )
    model.config = dataclasses.replace(model.config, image_size=image_size(config))
    return model


def open_evaluation(config: TrainConfig) -> Callable[[Any], dict[str, float]]:
    """What takes the model and scores it on the held-out data of `data.eval_path`."""
    if config.segmentation.data:
        return segmentation.open_segmentation_evaluation(config)
    held_out = ShardDataset(config.data.eval_path, labels="physical", key="data.eval_path")
    samples, max_depth = config.data.eval_samples, config.data.eval_max_depth
    if config.metric.max_depth:
        check_metres(held_out, config.metric, "data.eval_path")
        return lambda model: metric_evaluation(model, held_out, samples, config.metric)
    return lambda model: periodic_evaluation(model, held_out, samples, max_depth)
