"""Checks before a run whether labels can be in metres, with a few samples of each set."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import Tensor

from dafast._warnings import DataWarning, warn
from dafast.data.shards import SampleError, ShardDataset
from dafast.training.config import ConfigError, MetricSection

LOOKED_AT = 64
PLAUSIBLE = (0.02, 500.0)
"""Range of a set's median depth in metres: a nearer one looks like kilometres, a farther one like
millimetres."""

_OTHER_UNIT = (
    "Are the labels in another unit? The column `scale` of a list converts them (0.001 for "
    "millimetres)"
)


def valid_labels(disparity: Tensor, mask: Tensor, section: MetricSection) -> tuple[Tensor, Tensor]:
    """Depth in metres of disparity in 1/metre, and where it counts; sky has no depth."""
    depth = 1.0 / disparity
    return depth, mask & (depth > section.min_depth) & (depth < section.max_depth)


def check_metres(data: ShardDataset, section: MetricSection, key: str) -> None:
    """Checks whether labels can be metres, at 64 samples evenly spread over the set.

    No sample may declare another unit (`ShardDataset.unit`), and at least one must have a depth
    that counts. A median that no scene in metres has gives a warning.

    Args:
        data: With physical labels.
        section: The range of depths that count.
        key: The setting that the data is from, for messages.

    Raises:
        ConfigError: If the labels are not in metres.
    """
    for index in _chosen(data):
        with contextlib.suppress(SampleError):  # named when it is read
            if data.unit(index) not in ("", "1/metre"):
                raise ConfigError(
                    f"{key}: the label of {data.name(index)} is not in metres but "
                    f"{data.unit(index)}, like the labels of a teacher (`dafast label`) and of "
                    "data sets without metres. Name shards of measured depth, or leave out "
                    "metric.max_depth to learn relative disparity"
                )
    medians, counted = [], False
    for index in _chosen(data):
        sample = data[index]
        disparity, mask = torch.from_numpy(sample.disparity), torch.from_numpy(sample.mask)
        depth, valid = valid_labels(disparity, mask, section)
        counted |= bool(valid.any())
        known = depth[mask & depth.isfinite()]
        if known.numel():
            medians.append(float(known.median()))
    if not counted:
        raise ConfigError(
            f"{key}: none of {len(_chosen(data))} samples has a depth between metric.min_depth and "
            f"max_depth ({section.min_depth:g} to {section.max_depth:g} metres)"
            + (f"; the median depth is {np.median(medians):g}" if medians else "")
            + ". Are the labels in another unit? The column `scale` of a list converts them "
            "(0.001 for millimetres)"
        )
    _warn_of_implausible(medians, key)


def warn_of_no_scored_depth(data: ShardDataset, max_depth: float, best_by: str) -> None:
    """Warns where held-out labels cannot be scored, or cannot be metres.

    Without a depth under `max_depth` an evaluation has only a loss, and `best/` is chosen by that.

    Args:
        data: Held-out samples with physical labels.
        max_depth: Farther pixels do not count, in metres.
        best_by: The score that `best/` is chosen by.
    """
    medians, scored = [], False
    for index in _chosen(data):
        with contextlib.suppress(SampleError):  # named when it is read
            sample = data.read(index)
            known = sample.mask & (sample.disparity > 0)
            if not known.any():
                continue
            depth = 1.0 / sample.disparity[known]
            scored |= bool(((depth > 1e-3) & (depth < max_depth)).any())
            if data.unit(index) in ("", "1/metre"):
                medians.append(float(np.median(depth)))
    if not scored:
        found = f": the median depth is {np.median(medians):g}" if medians else ""
        effect = ", and best/ is chosen by the loss" if best_by == "abs_rel" else ""
        warn(
            DataWarning,
            f"data.eval_path: none of {len(_chosen(data))} samples has a depth under "
            f"data.eval_max_depth ({max_depth:g} metres){found}; abs_rel and delta_1 cannot be "
            f"computed{effect}. {_OTHER_UNIT}",
        )
    else:
        _warn_of_implausible(medians, "data.eval_path")


def _chosen(data: ShardDataset) -> list[int]:
    """The samples to check."""
    count = min(len(data), LOOKED_AT)
    return [int(i) for i in np.linspace(0, len(data) - 1, count).round()]


def _warn_of_implausible(medians: list[float], key: str) -> None:
    low, high = PLAUSIBLE
    if medians and not low <= np.median(medians) <= high:
        warn(
            DataWarning,
            f"{key}: the median depth is {np.median(medians):g} metres, which can hardly be "
            f"metres. {_OTHER_UNIT}",
        )
