"""Predictions as functions, and the names of `dafast.images`, for code that imports them here.

`infer`, `infer_metric` and `predict` take the options of `DepthAnything.infer` as keywords.
"""

from typing import Any

from dafast import models
from dafast.images import ImageError, from_pil, load_image
from dafast.models.inference import InferenceOptions, check_options, predict_native
from dafast.models.network import DepthNetwork

__all__ = [
    "ImageError",
    "check_options",
    "from_pil",
    "infer",
    "infer_metric",
    "load_image",
    "predict",
    "predict_native",
]


def infer(model: DepthNetwork, images: Any, **options: Any) -> Any:
    """Predicts disparity with a relative model; see `DepthAnything.infer`."""
    return models.inference.infer(model, images, InferenceOptions(**options))


def infer_metric(
    model: DepthNetwork,
    images: Any,
    *,
    intrinsics: Any = None,
    fov: float | None = None,
    **options: Any,
) -> Any:
    """Predicts metres with a metric model, or points; see `DepthAnything.infer_metric`."""
    return models.inference.infer_metric(
        model, images, InferenceOptions(**options), intrinsics=intrinsics, fov=fov
    )


def predict(model: DepthNetwork, images: Any, **options: Any) -> Any:
    """Runs a model of either kind; see `DepthAnything.infer`."""
    return models.inference.predict(model, images, InferenceOptions(**options))
