"""One scale and one shift for all photos of a camera or a place, from a list with depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..alignment import robust_scale_shift, work_dtype
from ..models import DepthAnything
from .metrics import MIN_DEPTH, valid_depth
from .samples import EvaluationSample

FITS = ("scale", "scale-shift")

_PIXELS = 2000  # of each photo, evenly spread over those with depth


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`.

    Attributes:
        scale: Factor of the predictions.
        shift: What is added: in 1/m of disparity, in metres of depth.
        images: Number of photos with depth.
        outliers: Fraction of the pixels that do not agree with the scale and the shift.
        before: Median relative error of depth without the calibration; None for a relative model.
        after: The same with it.
    """

    scale: float
    shift: float
    images: int
    outliers: float
    before: float | None
    after: float


def calibrate(
    model: DepthAnything,
    samples: Sequence[EvaluationSample],
    fit: str | None = None,
    fov: float | None = None,
) -> Calibration:
    """Fits a model's predictions to known depth, and stores the result in its configuration.

    A scale and a shift are fitted robustly (`dafast.alignment.robust_scale_shift`), of disparity
    for a model of disparity, of depth for the others; a scale is the median of the ratios. An
    earlier calibration of the model is replaced.

    Args:
        model: Any model; its ``config`` changes.
        samples: Photos with depth.
        fit: ``"scale"`` or ``"scale-shift"``; by default ``"scale-shift"`` for disparity, and
            ``"scale"`` for depth.
        fov: Horizontal field of view of all photos in degrees, for models that need the camera.

    Raises:
        ValueError: If the fit is unknown or impossible, or no photo has a pixel with depth.
    """
    config = dataclasses.replace(model.config, calibration=None)
    disparity = config.quantity == "disparity"
    fit = fit or ("scale-shift" if disparity else "scale")
    if fit not in FITS:
        raise ValueError(f"fit={fit!r}; use one of {', '.join(FITS)}")
    if fit == "scale-shift" and config.focal_length is not None:
        raise ValueError(
            f"{config.name!r} depends on the focal length: only its scale can be fitted"
        )
    if fov is not None and config.focal_length is None:
        raise ValueError(f"fov= (--fov): the output of {config.name!r} needs no camera")
    model.config = config
    pairs = [_pixels_of(model, sample, fov) for sample in samples]
    pairs = [pair for pair in pairs if len(pair[0])]
    if not pairs:
        raise ValueError("no photo of the list has a pixel with depth")
    x, depth = (torch.cat(column) for column in zip(*pairs, strict=True))
    target = 1 / depth if disparity else depth
    if fit == "scale-shift":
        found = robust_scale_shift(x, target, None if disparity else 1 / target)
        scale, shift, inliers, sure = found
        if scale > 0 and not sure:
            raise ValueError(
                "the list does not determine a shift, as its depth or the predictions are nearly "
                "constant, or do not agree; fit only the scale (--fit scale)"
            )
    else:
        ratios = (target / x)[x > 0]
        scale, shift = (float(ratios.median()) if len(ratios) else 0.0), 0.0
        inliers = torch.ones_like(x, dtype=torch.bool)
    if not scale > 0:
        raise ValueError(
            f"the predictions do not grow with the {'disparity' if disparity else 'depth'} of the "
            "list; check its depth, its unit and the model"
        )
    model.config = dataclasses.replace(config, calibration=(scale, shift))

    def error(predicted: Tensor) -> float:
        metres = 1 / predicted.clamp(min=MIN_DEPTH) if disparity else predicted
        return float(((metres - depth).abs() / depth).median())

    before = error(x) if config.is_metric else None
    outliers = 1 - float(inliers.double().mean())
    return Calibration(scale, shift, len(pairs), outliers, before, error(scale * x + shift))


def _pixels_of(
    model: DepthAnything, sample: EvaluationSample, fov: float | None
) -> tuple[Tensor, Tensor]:
    """Predictions and depth of some pixels of a photo, on the CPU."""
    prediction = torch.from_numpy(model.predict(sample.image, fov=fov, keep_image=False).values)
    mask = torch.from_numpy(valid_depth(sample.depth, sample.max_depth))
    mask &= prediction.isfinite()
    place = mask.flatten().nonzero()[:, 0]
    place = place[:: max(1, len(place) // _PIXELS)]
    dtype = work_dtype(prediction.device)
    depth = torch.from_numpy(sample.depth).flatten()[place]
    return prediction.flatten()[place].to(dtype), depth.to(dtype)
