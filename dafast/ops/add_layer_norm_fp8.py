"""`add_layer_norm` whose normalised rows are in e4m3, for the products that follow in fp8."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _triton
from ._dispatch import Op
from ._kernel_op import KernelOp
from .add_layer_norm import MAX_CHANNELS, add_layer_norm_reference, check_inputs
from .quantize_fp8 import Fp8Rows, backend, limits, round_rows


def add_layer_norm_fp8_reference(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Specification of `add_layer_norm_fp8`: n stays float32 until it is rounded to e4m3."""
    s, n = add_layer_norm_reference(x, branch, gamma, weight, bias, eps, torch.float32)
    return s, *round_rows(n)


def _empty_results(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape, dtype=args[-1]),
        x.new_empty(x.shape, dtype=torch.float8_e4m3fn),
        x.new_empty(x.shape[:-1], dtype=torch.float32),
    )


_op = KernelOp(
    "add_layer_norm_fp8(Tensor x, Tensor branch, Tensor gamma, Tensor weight, Tensor bias,"
    " float eps, ScalarType sum_dtype) -> (Tensor, Tensor, Tensor)",
    fake=_empty_results,
    triton=_triton.launcher("add_layer_norm", "add_layer_norm_fp8_fwd"),
)


def _triton_backend(
    x: Tensor, branch: Tensor, gamma: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias, eps = args
    sums = torch.promote_types(torch.promote_types(x.dtype, branch.dtype), gamma.dtype)
    return _op(x, branch, gamma, weight, bias, float(eps), sums)


def _limits(*args: Any) -> str:
    x = args[0]
    dtypes = [tensor.dtype for tensor in args[:5]]
    return limits(*dtypes, device=x.device, channels=x.shape[-1], most=MAX_CHANNELS["triton"])


_add_layer_norm_fp8 = Op(
    "add_layer_norm_fp8",
    add_layer_norm_fp8_reference,
    {"triton": backend(_triton_backend, _limits)},
)


def add_layer_norm_fp8(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Fp8Rows]:
    """s = x + branch * gamma, and LayerNorm(s) * weight + bias in e4m3; for inference.

    As `add_layer_norm`, except that the normalised rows are rounded once, from float32 to e4m3,
    with the scale of each row as `quantize_fp8` chooses it.

    Args:
        x: Residual stream (..., C), any floating-point type.
        branch: Output of the branch, of the shape of ``x``.
        gamma: LayerScale (C).
        weight: Weight of the LayerNorm (C).
        bias: Bias of the LayerNorm (C).
        eps: Added to the variance.

    Returns:
        ``s`` (..., C) in the dtype of ``x + branch * gamma``, and the normalised rows.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    check_inputs("add_layer_norm_fp8", x, branch, gamma, weight, bias)
    if not math.prod(x.shape[-1:]):
        raise ValueError(f"at least one channel expected; got {tuple(x.shape)}")
    s, *rows = _add_layer_norm_fp8(x, branch, gamma, weight, bias, eps)
    return s, Fp8Rows(*rows)
