"""Bias, residuals and ReLU, which follow a convolution in the decoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _triton
from ._dispatch import Op, wrong_dtype
from ._kernel_op import KernelOp


def bias_relu_add_reference(
    x: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    other: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Specification of `bias_relu_add`, in float32 inside."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    dtype = x.dtype
    out = x.to(compute) + bias.to(compute)[:, None, None]
    for term in (residual, other):
        if term is not None:
            dtype = torch.promote_types(dtype, term.dtype)
            out = out + term.to(compute)
    return (F.relu(out) if relu else out).to(dtype)


def _fake(x: Tensor, bias: Tensor, residual: Any, other: Any, *_: Any) -> Tensor:
    dtype = x.dtype
    for term in (residual, other):
        if term is not None:
            dtype = torch.promote_types(dtype, term.dtype)
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)


_op = KernelOp(
    "bias_relu_add(Tensor x, Tensor bias, Tensor? residual, Tensor? other, bool relu, str backend)"
    " -> Tensor",
    fake=_fake,
    triton=_triton.launcher("bias_relu_add", "bias_relu_add_fwd"),
)

_backward_op = KernelOp(
    "bias_relu_add_backward(Tensor grad, Tensor out, str backend) -> (Tensor, Tensor)",
    fake=lambda _grad, out, *_: (
        torch.empty_like(out, memory_format=torch.channels_last),
        out.new_empty(out.shape[1], dtype=torch.float32),
    ),
    triton=_triton.launcher("bias_relu_add", "bias_relu_add_bwd"),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *terms, relu, backend = inputs
    ctx.options = relu, backend
    ctx.dtypes = [None if term is None else term.dtype for term in terms]
    ctx.save_for_backward(*([output] if relu else []))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    relu, backend = ctx.options
    if relu:
        grad, sums = _backward_op(grad, *ctx.saved_tensors, backend)
    elif ctx.needs_input_grad[1]:
        sums = grad.sum((0, 2, 3), dtype=torch.float32)
    grads: list[Tensor | None] = [None] * 6
    for i, dtype in enumerate(ctx.dtypes):
        if ctx.needs_input_grad[i]:
            grads[i] = (sums if i == 1 else grad).to(dtype)
    return tuple(grads)


_op.register_autograd(_backward, _setup_context)
_backward_op.refuse_derivative("bias_relu_add")


def _limits(x: Tensor, bias: Tensor, residual: Any, other: Any, *_: Any) -> str:
    return wrong_dtype(*(t.dtype for t in (x, bias, residual, other) if t is not None))


def _unasked(x: Tensor, *_: Any) -> str:
    if torch.compiler.is_dynamo_compiling():
        return "torch.compile fuses these operations itself"
    return "" if x.stride(1) == 1 else "takes a copy of maps that are not channels last"


_bias_relu_add = Op(
    "bias_relu_add",
    bias_relu_add_reference,
    {"triton": _triton.backend(lambda *args: _op(*args, "triton"), _limits, _unasked)},
)


def bias_relu_add(
    x: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    other: Tensor | None = None,
    *,
    relu: bool = False,
) -> Tensor:
    """x + bias + residual + other, then a ReLU if asked, in one pass over memory.

    What follows a convolution without its bias. Everything is added in float32 and rounded once;
    with ``relu`` the backward computes the gradients of the map and of the bias in one pass.

    Args:
        x: (B, C, H, W), float16, bfloat16, float32 or float64. Fast is channels last.
        bias: (C), of any of these dtypes.
        residual: Of the shape of ``x``, of any of these dtypes.
        other: A second residual; only with ``residual``.
        relu: Whether negative sums become 0.

    Returns:
        (B, C, H, W) in the widest dtype of ``x`` and the residuals.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    if x.ndim != 4 or bias.shape != x.shape[1:2]:
        raise ValueError(
            f"bias_relu_add needs x (B, C, H, W) and bias (C); got {tuple(x.shape)}, "
            f"{tuple(bias.shape)}"
        )
    if other is not None and residual is None:
        raise ValueError("bias_relu_add takes other only together with residual")
    for term in (residual, other):
        if term is not None and term.shape != x.shape:
            raise ValueError(
                f"a residual has the shape of x, {tuple(x.shape)}; got {tuple(term.shape)}"
            )
    for t in (x, bias, residual, other):
        if t is not None and not t.is_floating_point():
            raise ValueError(f"floating point expected; got {t.dtype}")
    return _bias_relu_add(x, bias, residual, other, relu)


def serves_convolutions(x: Tensor, bias: Tensor, *residuals: Tensor | None) -> bool:
    """Whether a kernel serves the bias, residuals and ReLU after a convolution of ``x``."""
    residual, other = (*residuals, None, None)[:2]
    return _bias_relu_add.select(x, bias, residual, other, False) != "reference"
