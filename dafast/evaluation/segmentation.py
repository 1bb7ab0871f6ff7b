"""Scores of segmentation: mean intersection over union, also of a constant guess."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .._warnings import is_quiet
from ..data.segmentation import IGNORE, READERS, SegmentationDataset
from ..models.segmentation_inference import SegmentationOptions, segment
from .builtin import SYNTHETIC_SCENES
from .scoring import read_ahead

if TYPE_CHECKING:
    from ..models import SegmentationModel


@dataclass(frozen=True)
class SegmentationResult:
    """Scores of one predictor on one data set.

    Attributes:
        data: Data set.
        predictor: The model's name, or ``"constant"``: the most frequent class everywhere.
        count: Images.
        miou: Mean of `iou` over the classes that occur.
        pixel_accuracy: Share of the pixels that are right.
        mean_accuracy: Mean over the classes that occur in the truth of the share of their pixels
            that is right.
        iou: Intersection over union of each class by name; a class that occurs neither in the
            truth nor in the predictions is left out.
    """

    data: str
    predictor: str
    count: int
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: dict[str, float]


def confusion_matrix(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts of pixels by true and predicted class.

    Args:
        predicted: Class indices, any shape and integer dtype.
        truth: The same, with `IGNORE` (255) where pixels do not count.
        classes: How many there are.

    Returns:
        int64 (classes, classes): truth in rows, predictions in columns.

    Raises:
        ValueError: If the shapes differ, or an index is out of range.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted {tuple(predicted.shape)}, but truth {tuple(truth.shape)}")
    counted = truth != IGNORE
    pairs = torch.stack([truth[counted], predicted[counted]]).long()
    if pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < classes:
        raise ValueError(f"classes {int(pairs.min())} to {int(pairs.max())}; there are {classes}")
    counts = torch.bincount(pairs[0] * classes + pairs[1], minlength=classes**2)
    return counts.view(classes, classes)


def iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class, of the whole set's confusion matrix.

    As in `torchmetrics`' Jaccard index, Cityscapes and ADE20K: true positives by true
    positives, false positives and false negatives, over all images together.

    Args:
        matrix: As `confusion_matrix` gives it, summed over images.

    Returns:
        (classes,) float64, NaN for a class that occurs neither in truth nor in predictions.
    """
    matrix = matrix.double()
    hits = matrix.diagonal()
    return hits / (matrix.sum(0) + matrix.sum(1) - hits)


def summarize(
    matrix: Tensor, names: Iterable[str], data: str, predictor: str, count: int
) -> SegmentationResult:
    """The scores of a confusion matrix.

    Raises:
        ValueError: If no pixel was counted.
    """
    if not matrix.any():
        raise ValueError(f"{data}: no pixel that counts")
    each = iou(matrix)
    counts = matrix.double()
    recall = counts.diagonal() / counts.sum(1)
    return SegmentationResult(
        data,
        predictor,
        count,
        float(each.nanmean()),
        float(counts.diagonal().sum() / counts.sum()),
        float(recall.nanmean()),
        {n: float(v) for n, v in zip(names, each, strict=True) if not v.isnan()},
    )


def constant_matrix(matrix: Tensor) -> Tensor:
    """The confusion matrix of predicting the most frequent true class everywhere."""
    guess = torch.zeros_like(matrix)
    frequency = matrix.sum(1)
    guess[:, frequency.argmax()] = frequency
    return guess


def score(
    model: SegmentationModel,
    samples: SegmentationDataset,
    data: str,
    options: SegmentationOptions | None = None,
    *,
    indices: Iterable[int] | None = None,
    progress: bool = True,
) -> list[SegmentationResult]:
    """Scores a model and the constant guess.

    Predictions are compared at the truth's own resolution. In a process group each process takes
    its share of the images; all get the whole result.

    Args:
        model: In evaluation mode; its classes are those of the samples, in the same order.
        samples: Photos with class maps.
        data: Name for the results.
        options: How photos are shown to the network.
        indices: Which samples; all by default.
        progress: Whether to show a bar on a terminal.

    Returns:
        The result of the model and of the constant.

    Raises:
        SampleError: If a sample cannot be read.
        ValueError: If the classes are not the model's, or no pixel counts.
    """
    from tqdm import tqdm

    classes = model.config.classes
    if classes != samples.classes:
        raise ValueError(
            f"{data}: its {len(samples.classes)} classes ({', '.join(samples.classes[:4])}, ...) "
            f"are not the model's {len(classes)} ({', '.join(classes[:4])}, ...)"
        )
    rank, size = 0, 1
    if dist.is_available() and dist.is_initialized() and indices is None:
        rank, size = dist.get_rank(), dist.get_world_size()
    chosen = list(range(len(samples)) if indices is None else indices)
    total = torch.zeros((len(classes), len(classes)), dtype=torch.int64)
    hidden = None if progress and rank == 0 and not is_quiet() else True
    share = tqdm(chosen[rank::size], desc=data, unit="image", disable=hidden, leave=False)
    with contextlib.closing(read_ahead(map(samples.read, share), model.device)) as read:
        for sample in read:
            predicted = torch.from_numpy(segment(model, sample.image, options))
            total += confusion_matrix(predicted, torch.from_numpy(sample.classes), len(classes))
    if size > 1:
        gathered = [torch.empty(0)] * size
        dist.all_gather_object(gathered, total)
        total = torch.stack(gathered).sum(0)
    return [
        summarize(matrix, classes, data, predictor, len(chosen))
        for matrix, predictor in (
            (total, model.config.name),
            (constant_matrix(total), "constant"),
        )
    ]


def synthetic(scenes: int = SYNTHETIC_SCENES) -> SegmentationDataset:
    """Held-out synthetic scenes, rendered on the fly: those of the depth evaluation."""
    from ..synthetic import CLASSES, HELD_OUT_SEED, render_scene

    def render(index: int) -> tuple[np.ndarray, np.ndarray]:
        sample = render_scene(HELD_OUT_SEED + index)
        return sample.image, sample.classes

    keys = [str(HELD_OUT_SEED + i) for i in range(scenes)]
    return SegmentationDataset(CLASSES, keys, render)


def open_segmentation(spec: str) -> SegmentationDataset:
    """The data set that ``NAME=PATH`` or ``synthetic`` means: its validation split.

    Raises:
        SourceError: If it is missing, or the folder has another layout.
        ValueError: If the name is unknown or a path is missing.
    """
    name, _, path = spec.partition("=")
    if spec == "synthetic":
        return synthetic()
    if name not in READERS:
        known = ", ".join(["synthetic", *(f"{reader}=PATH" for reader in READERS)])
        raise ValueError(
            f"no data set {name} for a segmentation model; there are: {known}. "
            "Depth is scored with a depth model."
        )
    if not path:
        raise ValueError(f"{name} is read from a path: give {name}=PATH")
    return READERS[name](Path(path).expanduser(), False)
