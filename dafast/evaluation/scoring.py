"""The predictions of a model and the scores of one sample, for photos and videos."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..video.threads import staged
from .alignment import align, constant_baseline, plane_baseline
from .cache import PredictionCache
from .metrics import MIN_DEPTH, boundary_f1, depth_errors
from .protocols import Protocol, get_protocol
from .samples import EvaluationSample

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..models import DepthAnything

_ANY_FOV = 60.0  # the alignment cancels it
_BATCH = 16  # frames of a video at a time
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """Scores of one predictor on one data set.

    Attributes:
        data: Data set.
        predictor: The model's name, ``"constant"`` or ``"plane"``.
        protocol: Name of the protocol.
        count: Images.
        metrics: Mean over the images of each of `METRICS`, and of ``boundary_f1`` where every
            image's truth is sharp.
    """

    data: str
    predictor: str
    protocol: str
    count: int
    metrics: dict[str, float]


def predict_disparity(
    model: DepthAnything,
    images: list[np.ndarray],
    cache: PredictionCache | None,
    options: dict[str, Any],
) -> list[Tensor]:
    """Disparity of each photo, from the cache if it is there."""
    found = [cache.read(image) if cache else None for image in images]
    new = [i for i, prediction in enumerate(found) if prediction is None]
    results = {
        i: torch.from_numpy(p).to(model.device) for i, p in enumerate(found) if p is not None
    }
    if new:
        infer = model.infer_metric if model.config.is_metric else model.infer
        predictions = infer([images[i] for i in new], return_tensors=True, **options)
        for i, prediction in zip(new, predictions, strict=True):
            results[i] = prediction
            if cache:
                cache.write(images[i], prediction.cpu().numpy())
    ordered = [results[i] for i in range(len(images))]
    return (
        [1 / p.clamp(min=MIN_DEPTH) for p in ordered]
        if model.config.quantity != "disparity"
        else ordered
    )


def score_sample(
    name: str, prediction: Tensor, sample: EvaluationSample, mask: np.ndarray, protocol: Protocol
) -> dict[str, dict[str, float]]:
    """Metrics of one prediction and of the baselines, by predictor.

    Args:
        name: The predictor's.
        prediction: Disparity (H, W).
        sample: The photo's truth.
        mask: Pixels that count, bool (H, W).
        protocol: How to align and clamp.

    Raises:
        ValueError: If the prediction is not finite at a pixel that counts.
    """
    max_depth = protocol.max_depth(sample, mask)
    device = prediction.device
    valid = torch.from_numpy(mask).to(device)[None]

    def pick(x: Tensor) -> Tensor:
        """Only the pixels that count, often few, unless neighbours are needed."""
        return x if sample.sharp else x[valid][None, None]

    truth, counted = pick(torch.from_numpy(sample.depth).to(device)[None]), pick(valid)
    disparity = np.zeros(mask.shape)
    disparity[mask] = 1 / sample.depth[mask].astype(np.float64)
    depths = {
        name: align(
            pick(prediction[None]),
            truth,
            counted,
            protocol.alignment,
            max_depth=protocol.max_depth(sample, mask, fitted=protocol.alignment != "none"),
        )
    }
    for baseline, fit in (("plane", plane_baseline), ("constant", constant_baseline)):
        fitted = torch.from_numpy(fit(disparity, mask)).to(device, depths[name].dtype)[None]
        depths[baseline] = 1 / pick(fitted).clamp(min=1 / max_depth)
    scores = {}
    for predictor, depth in depths.items():
        errors = depth_errors(depth, truth, counted)
        if sample.sharp:
            errors["boundary_f1"] = boundary_f1(depth, truth, counted)
        scores[predictor] = {metric: float(value) for metric, value in errors.items()}
    return scores


def camera_options(config: ModelConfig, protocol: Protocol, fov: float | None) -> dict[str, float]:
    """The camera as an option of `infer_metric`, empty for a model that needs none."""
    if config.focal_length is None:
        if fov is not None:
            raise ValueError(f"fov= (--fov): the output of {config.name!r} needs no camera")
        return {}
    if fov is None and protocol.alignment == "none":
        raise ValueError(
            f"{config.name!r} predicts metres that depend on the camera, which the data "
            "sets do not give: pass fov= (--fov) with the horizontal field of view of all "
            "photos in degrees, or an alignment that needs no camera, e.g. "
            "alignment='median' (--align median)"
        )
    return {"fov": _ANY_FOV if fov is None else fov}


@dataclass(frozen=True)
class Scoring:
    """Options of scoring, without the model, which may be on another machine.

    Attributes:
        predictor: The model's name.
        is_metric: Whether it predicts metres.
        protocol: How predictions are aligned and clamped.
        options: Options of `infer` or `infer_metric`.
    """

    predictor: str
    is_metric: bool
    protocol: Protocol
    options: dict[str, Any]

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        protocol: str = "paper",
        alignment: str | None = None,
        fit: str | None = None,
        flip: bool = False,
        fov: float | None = None,
    ) -> Scoring:
        """The settings for a model; the arguments are those of `benchmarks.score`.

        Raises:
            ValueError: If the protocol is unknown, or the camera is needed and unknown.
        """
        if alignment is None and config.is_metric:
            alignment = "none"
        preset = get_protocol(protocol, alignment)
        options = {"fit": fit or config.fit, **camera_options(config, preset, fov)}
        if flip:
            options["flip"] = True
        return cls(config.name, config.is_metric, preset, options)


class DisparityPredictor:
    """Disparity of photos or of the frames of a video, as evaluations need it.

    Args:
        model: The model.
        options: Of `infer`.
        cache: Folder for predictions; existing ones are reused.
    """

    def __init__(self, model: DepthAnything, options: dict[str, Any], cache: Path | None) -> None:
        self.model, self.options = model, options
        self.store = PredictionCache(cache, model, options) if cache else None

    def __call__(self, images: Sequence[np.ndarray], video: bool = False) -> list[Tensor]:
        """One map (H, W) for each image; a video goes through temporal modules if there are any."""
        if video and self.model.config.temporal_frames:
            results = self.model.infer_video(list(images), keep_image=False, **self.options)
            return [torch.from_numpy(result.to_disparity().values) for result in results]
        step = _BATCH if video else max(1, len(images))
        return [
            each
            for start in range(0, len(images), step)
            for each in predict_disparity(
                self.model, list(images[start : start + step]), self.store, self.options
            )
        ]


def read_ahead(items: Iterable[T], device: torch.device) -> Generator[T, None, None]:
    """The items; if a model predicts on a GPU, the next one is read while one is predicted.

    On a CPU the prediction needs all cores. Close the generator: that ends the thread.
    """
    return staged(items) if device.type != "cpu" else (item for item in items)


def shared(samples: Iterable[T]) -> tuple[int, Iterable[T]]:
    """This process's rank in its process group, and its share of the samples.

    Raises:
        ValueError: If several processes are to share an iterator.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return 0, samples
    if not isinstance(samples, Sequence):
        raise ValueError("several processes can share a sequence of samples, not an iterator")
    rank = dist.get_rank()
    return rank, samples[rank :: dist.get_world_size()]


def together(rows: list[T]) -> list[T]:
    """The rows of all processes of the group."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]
