"""The names of `dafast.models.inference` and `dafast.images`, for code that imports them here."""

from dafast.images import ImageError, from_pil, load_image
from dafast.models.inference import check_options, infer, infer_metric, predict, predict_native

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
