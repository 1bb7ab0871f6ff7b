"""Ops: for each a specification in plain PyTorch, the public function, and its backends."""

from ._dispatch import BACKENDS, OPS, BackendError, available_backends, use_backend
from .affine_invariant_loss import affine_invariant_loss, affine_invariant_loss_reference
from .flash_attention import (
    flash_attention,
    flash_attention_qkvpacked,
    flash_attention_reference,
)
from .preprocess import (
    Geometry,
    pad,
    plan_geometry,
    postprocess,
    preprocess,
    resize_bilinear,
)
from .resize_bicubic import resize_bicubic, resize_bicubic_reference

__all__ = [
    "BACKENDS",
    "OPS",
    "BackendError",
    "Geometry",
    "affine_invariant_loss",
    "affine_invariant_loss_reference",
    "available_backends",
    "flash_attention",
    "flash_attention_qkvpacked",
    "flash_attention_reference",
    "pad",
    "plan_geometry",
    "postprocess",
    "preprocess",
    "resize_bicubic",
    "resize_bicubic_reference",
    "resize_bilinear",
    "use_backend",
]
