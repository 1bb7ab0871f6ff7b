"""A linear layer whose products are e4m3: weights and inputs with a scale for each row."""

from __future__ import annotations

import torch
from torch import Tensor

from ._dispatch import Backend, Op
from .quantize_fp8 import Fp8Rows, why_no_fp8

_MULTIPLE = 16
"""Inputs and outputs of a layer come in multiples of it, which PyTorch's product needs."""

_ROWS_ON_CPU = torch.__version__ >= "2.13"
"""Whether PyTorch's product takes a scale for each row on a CPU; 2.11 fails with an assertion."""


def linear_fp8_reference(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:  # fmt: skip
    """Specification of `linear_fp8`: the products of e4m3 are exact in float32."""
    sums = x.float() @ weight.float().mT
    return (sums * (x_scale[..., None] * weight_scale) + bias.float()).to(dtype)


def _scaled_mm(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    if not x.numel():
        return torch.empty((*x.shape[:-1], len(weight)), dtype=dtype, device=x.device)
    out = torch._scaled_mm(
        x.reshape(-1, x.shape[-1]), weight.t(), scale_a=x_scale.reshape(-1, 1),
        scale_b=weight_scale.unsqueeze(0), bias=bias.to(dtype), out_dtype=dtype,
        use_fast_accum=True,
    )  # fmt: skip
    return out.unflatten(0, x.shape[:-1])


def _supports(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor,
    dtype: torch.dtype,
) -> str:  # fmt: skip
    if len({tensor.device for tensor in (x, x_scale, weight, weight_scale, bias)}) > 1:
        return f"needs all tensors on one device; got {x.device} and {weight.device}"
    if x.device.type != "cpu" and (why := why_no_fp8(x.device)):
        return why
    if not weight.is_contiguous():
        return "needs contiguous weights"
    if dtype is not torch.bfloat16:
        return f"gives bfloat16, not {dtype}"
    if x.shape[-1] % _MULTIPLE or len(weight) % _MULTIPLE:
        shape = tuple(weight.shape)
        return f"takes inputs and outputs in multiples of {_MULTIPLE}, not weights {shape}"
    if torch.is_grad_enabled() and bias.requires_grad:
        return "has no backward; call it under torch.no_grad()"
    if x.device.type == "cpu" and not _ROWS_ON_CPU:
        return f"needs PyTorch 2.13 or newer on a CPU; this is {torch.__version__}"
    return ""


def _preferred(x: Tensor, *_: object) -> str:
    return "on a CPU it rounds its sums more often" if x.is_cpu else ""


_linear_fp8 = Op(
    "linear_fp8",
    linear_fp8_reference,
    {"scaled_mm": Backend(_scaled_mm, _supports, _preferred)},
)


def linear_fp8(
    x: Fp8Rows, weight: Fp8Rows, bias: Tensor, *, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """A linear layer whose products are e4m3; for inference.

    Products are added up in float32, scaled by row and column, and the bias is added before the
    one rounding to ``dtype``. Without a GPU that multiplies e4m3 the reference emulates it, to the
    last digits of the sums.

    Args:
        x: (..., K), from `quantize_fp8` or `add_layer_norm_fp8`.
        weight: (N, K), from `quantize_fp8`.
        bias: (N).
        dtype: Dtype of the result; on a GPU the fast product gives bfloat16.

    Returns:
        (..., N).

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    rows, columns = x.values, weight.values
    if (
        columns.ndim != 2 or rows.ndim < 2 or rows.shape[-1:] != columns.shape[1:]
        or bias.shape != columns.shape[:1]
    ):  # fmt: skip
        raise ValueError(
            "linear_fp8 needs x (..., K), weight (N, K) and bias (N); got "
            f"{tuple(rows.shape)}, {tuple(columns.shape)} and {tuple(bias.shape)}"
        )
    if {rows.dtype, columns.dtype} != {torch.float8_e4m3fn}:
        raise ValueError(f"float8_e4m3fn expected; got {rows.dtype} and {columns.dtype}")
    if not dtype.is_floating_point or not bias.is_floating_point():
        raise ValueError(f"floating point expected; got bias {bias.dtype}, dtype={dtype}")
    return _linear_fp8(rows, x.scale, columns, weight.scale, bias, dtype)
