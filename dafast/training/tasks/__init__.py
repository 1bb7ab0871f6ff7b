"""The tasks that a run can learn, one file each, and the choice among them."""

from __future__ import annotations

from typing import Any

from dafast.training.config import ConfigError, TrainConfig
from dafast.training.task import Task
from dafast.training.tasks import metric, relative, segmentation, video


def task_of(config: TrainConfig) -> Task[Any, Any]:
    """The task of a configuration."""
    if config.segmentation.data:
        return segmentation.TASK
    if config.video.frames:
        return video.TASK
    return metric.TASK if config.metric.max_depth else relative.TASK


def check_config(config: TrainConfig) -> None:
    """Checks a configuration before anything is loaded.

    Raises:
        ConfigError: If settings are invalid; the message names all of them.
    """
    problems = list(config.problems()) or list(task_of(config).check(config))
    if problems:
        raise ConfigError("; ".join(problems))
