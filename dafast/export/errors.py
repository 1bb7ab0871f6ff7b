"""Errors of the maps of an ONNX or OpenVINO file against the model, on photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..models.segmentation import SegmentationModel
from ..runtime import OnnxModel
from .openvino_file import OpenvinoModel


def photo_errors(
    path: str | Path, model: Any, photos: Sequence[Any], **options: Any
) -> list[tuple[float, float]]:
    """Computes the largest and the mean error for each photo, as fractions of the map's range.

    Of a segmentation model both are the fraction of pixels with another class.

    Args:
        path: The ONNX or OpenVINO file.
        model: The model that it was exported from.
        photos: As for `DepthAnything.infer`.
        **options: As for `DepthAnything.predict`.
    """
    exported: OnnxModel
    if Path(path).suffix == ".xml":
        exported = OpenvinoModel(Path(path))
    else:
        exported = OnnxModel(path, providers=["CPUExecutionProvider"])
    errors = []
    for photo in photos:
        if isinstance(model, SegmentationModel):
            wrong = float((exported.segment(photo) != model.segment(photo)).mean())
            errors.append((wrong, wrong))
            continue
        if model.config.focal_length is not None:
            options.setdefault("fov", 60)
        out = exported.predict(photo, **options).values.astype(np.float64)
        true = model.predict(photo, **options).values
        error, span = np.abs(out - true), float(true.max() - true.min()) or 1.0
        errors.append((float(error.max()) / span, float(error.mean()) / span))
    return errors
