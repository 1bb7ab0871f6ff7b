"""Bias and exact GELU, as they follow the first product of an MLP."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension, _triton
from ._dispatch import Backend, Op
from ._kernel_op import kernel_op

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def bias_gelu_reference(x: Tensor, bias: Tensor, *, added: bool = False) -> Tensor:
    """Specification of `bias_gelu`, in float32 inside."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    bias = bias.to(compute)
    if added:
        bias = bias - bias.detach()  # its gradient alone
    return F.gelu(x.to(compute) + bias).to(x.dtype)


def _cpp_forward(x: Tensor, bias: Tensor, added: bool) -> Tensor:
    out = x.new_empty(x.shape)
    if out.numel():
        torch.ops.dafast_C.bias_gelu(x.contiguous(), bias, added, out)
    return out


@kernel_op("dafast::bias_gelu")
def _op(x: Tensor, bias: Tensor, added: bool, backend: str = "triton") -> Tensor:
    if backend == "cpp":
        return _cpp_forward(x, bias, added)
    from dafast.kernels.bias_gelu import bias_gelu_fwd

    return bias_gelu_fwd(x, bias, added)


@_op.register_fake
def _(x: Tensor, bias: Tensor, added: bool, backend: str = "triton") -> Tensor:
    return x.new_empty(x.shape)


@kernel_op("dafast::bias_gelu_backward")
def _backward_op(
    grad: Tensor, x: Tensor, bias: Tensor, added: bool, backend: str
) -> tuple[Tensor, Tensor]:
    if backend == "cpp":
        if x.numel() == 0:
            return x.new_empty(x.shape), bias.new_zeros(bias.shape, dtype=torch.float32)
        out, sums = x.new_empty(x.shape), bias.new_empty(bias.shape, dtype=torch.float32)
        torch.ops.dafast_C.bias_gelu_backward(
            grad.contiguous(), x.contiguous(), bias, added, out, sums
        )
        return out, sums
    from dafast.kernels.bias_gelu import bias_gelu_bwd

    return bias_gelu_bwd(grad, x, bias, added)


@_backward_op.register_fake
def _(grad: Tensor, x: Tensor, bias: Tensor, added: bool, backend: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.added, ctx.backend = inputs
    ctx.save_for_backward(x, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, bias = ctx.saved_tensors
    grad_x, grad_bias = _backward_op(grad, x, bias, ctx.added, ctx.backend)
    return grad_x, grad_bias.to(bias.dtype), None, None


_op.register_autograd(_backward, setup_context=_setup_context)
_triton.no_second_derivative(_backward_op, "bias_gelu")


def _why_not_dtypes(*tensors: Tensor) -> str:
    """Why the kernels cannot take these tensors; an empty string if they can."""
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            return f"takes float16, bfloat16 and float32, not {tensor.dtype}"
    return ""


def _triton_supports(x: Tensor, bias: Tensor, *, added: bool = False) -> tuple[bool, str]:
    if reason := _why_not_dtypes(x, bias):
        return False, reason
    return _triton.supports(x, bias)


def _cpp_supports(x: Tensor, bias: Tensor, *, added: bool = False) -> tuple[bool, str]:
    if reason := _why_not_dtypes(x, bias):
        return False, reason
    ok, reason = _extension.supports("cpp", "bias_gelu", x, bias)
    if ok:
        reason = _extension.why_not_unasked(x, bias)
    return not reason, reason


def _triton_backend(x: Tensor, bias: Tensor, *, added: bool = False) -> Tensor:
    return _op(x, bias, added, "triton")


def _cpp_backend(x: Tensor, bias: Tensor, *, added: bool = False) -> Tensor:
    return _op(x, bias, added, "cpp")


_bias_gelu = Op(
    "bias_gelu",
    bias_gelu_reference,
    {
        "triton": Backend(_triton_backend, _triton_supports),
        "cpp": Backend(_cpp_backend, _cpp_supports),
    },
)


def bias_gelu(x: Tensor, bias: Tensor, *, added: bool = False) -> Tensor:
    """GELU(x + bias), exact (erf), and in the backward both gradients in one pass.

    With ``added`` the product before it has added the bias already, in float32 and before it
    rounded its result, which costs it nothing: ``linear(t, weight, bias.detach())``. The function
    is then GELU(x), and the bias gets its gradient, the sum of that of x, here. With 16-bit
    activations this is the better way: a product that is rounded without its bias is rounded again
    with it.

    Args:
        x: (..., C), float16, bfloat16, float32 or float64.
        bias: (C); its dtype may be another one, it is added in float32.
        added: Whether ``x`` holds the bias already.

    Returns:
        (..., C) in the dtype of ``x``.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    if x.ndim == 0 or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"bias_gelu needs x (..., C) and bias (C); got {tuple(x.shape)}, {tuple(bias.shape)}"
        )
    if not x.is_floating_point() or not bias.is_floating_point():
        raise ValueError(f"floating point expected; got {x.dtype}, {bias.dtype}")
    return _bias_gelu(x, bias, added=added)
