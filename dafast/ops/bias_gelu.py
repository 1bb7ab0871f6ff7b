"""Bias and exact GELU, which follow the first product of an MLP."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import is_autocast_on
from . import _extension, _triton
from ._dispatch import Op, wrong_dtype
from ._kernel_op import KernelOp
from .linear import linear_layer


def bias_gelu_reference(x: Tensor, bias: Tensor, added: bool = False) -> Tensor:
    """Specification of `bias_gelu`, in float32 inside."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    bias = bias.to(compute)
    if added:
        bias = bias - bias.detach()  # 0, with the gradient of the bias
    return F.gelu(x.to(compute) + bias).to(x.dtype)


def _cpp_forward(x: Tensor, bias: Tensor, added: bool) -> Tensor:
    out = x.new_empty(x.shape)
    if out.numel():
        torch.ops.dafast_C.bias_gelu(x.contiguous(), bias, added, out)
    return out


_op = KernelOp(
    "bias_gelu(Tensor x, Tensor bias, bool added, str backend) -> Tensor",
    fake=lambda x, *_: x.new_empty(x.shape),
    triton=_triton.launcher("bias_gelu", "bias_gelu_fwd"),
    cpp=_cpp_forward,
)


def _empty_gradients(_grad: Tensor, x: Tensor, bias: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """For x, and for the bias in float32."""
    return x.new_empty(x.shape), bias.new_empty(bias.shape, dtype=torch.float32)


def _cpp_backward(grad: Tensor, x: Tensor, bias: Tensor, added: bool) -> tuple[Tensor, Tensor]:
    out, sums = _empty_gradients(grad, x, bias)
    if x.numel() == 0:
        return out, sums.zero_()
    torch.ops.dafast_C.bias_gelu_backward(grad.contiguous(), x.contiguous(), bias, added, out, sums)
    return out, sums


_backward_op = KernelOp(
    "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, bool added, str backend)"
    " -> (Tensor, Tensor)",
    fake=_empty_gradients,
    triton=_triton.launcher("bias_gelu", "bias_gelu_bwd"),
    cpp=_cpp_backward,
)


_op.differentiate_by(_backward_op, lambda inputs, _: inputs)

_backward_with_output_op = KernelOp(
    "bias_gelu_backward_with_output(Tensor grad, Tensor x, Tensor bias, bool added)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda *args: (*_empty_gradients(*args), args[1].new_empty(args[1].shape)),
    triton=_triton.launcher("bias_gelu", "bias_gelu_bwd_with_output"),
)
_backward_with_output_op.refuse_derivative("bias_gelu")


def _limits(x: Tensor, bias: Tensor, *_: Any) -> str:
    return wrong_dtype(x.dtype, bias.dtype)


_bias_gelu = Op(
    "bias_gelu",
    bias_gelu_reference,
    {
        "triton": _triton.backend(lambda *args: _op(*args, "triton"), _limits),
        "cpp": _extension.backend(
            "cpp",
            "bias_gelu",
            lambda *args: _op(*args, "cpp"),
            _limits,
            lambda x, bias, *_: _extension.saves_time(x, bias),
        ),
    },
)


def bias_gelu(x: Tensor, bias: Tensor, *, added: bool = False) -> Tensor:
    """GELU(x + bias), exact (erf), and in the backward both gradients in one pass.

    With ``added``, ``x`` is the result of a product that has added the bias in float32, before it
    rounded: ``linear(t, weight, bias.detach())``. The function is then GELU(x), and the gradient
    of the bias, the sum of that of x, is computed here. With 16-bit activations this is more
    exact: a product without its bias is rounded twice.

    Args:
        x: (..., C), float16, bfloat16, float32 or float64.
        bias: (C), of any of these dtypes; added in float32.
        added: Whether ``x`` already includes the bias.

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
    return _bias_gelu(x, bias, added)


class _GeluLinear(torch.autograd.Function):
    """GELU(x) weight^T + offset, which keeps x, and not GELU(x), for the gradient of the weight.

    The backward computes GELU(x) again in the kernel that computes the gradient of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias, weight)
        return F.linear(_op(x, bias, True, "triton"), weight, offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, bias, weight = ctx.saved_tensors
        grad_x, sums, out = _backward_with_output_op(grad @ weight, x, bias, True)
        rows = grad.reshape(-1, grad.shape[-1])
        grad_weight = rows.t() @ out.view(-1, out.shape[-1])
        return grad_x, sums.to(bias.dtype), grad_weight, rows.sum(0)


def mlp(x: Tensor, fc1: tuple[Tensor, Tensor], fc2: tuple[Tensor, Tensor]) -> Tensor:
    """fc2(GELU(fc1(x))); where the Triton kernel serves, training keeps one hidden tensor, not two.

    Args:
        x: (..., K).
        fc1: Weight (C, K) and bias (C) of a linear layer.
        fc2: Weight (M, C) and bias (M) of a linear layer.

    Returns:
        (..., M).
    """
    weight, offset = fc2
    trains = torch.is_grad_enabled() and weight.requires_grad
    if not trains or _bias_gelu.select(x, fc1[1], True) != "triton":
        return linear_layer(linear_gelu(x, *fc1), weight, offset)
    hidden = F.linear(x, fc1[0], fc1[1].detach())
    if is_autocast_on(x.device.type):  # which does not look into an autograd.Function
        weight, offset = weight.to(hidden.dtype), offset.to(hidden.dtype)
    return _GeluLinear.apply(hidden, fc1[1], weight, offset)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(x weight^T + bias), with `bias_gelu` after the product where a kernel serves it.

    Without a kernel GELU is PyTorch's, and the product that of `linear` or PyTorch's.

    Args:
        x: (..., K).
        weight: (C, K).
        bias: (C).

    Returns:
        (..., C).
    """
    backend = _bias_gelu.select(x, bias, True)
    if backend == "reference":
        return F.gelu(linear_layer(x, weight, bias))
    # The product adds the bias before it rounds; the bias gets its gradient from the GELU.
    return _bias_gelu.backends[backend].fn(F.linear(x, weight, bias.detach()), bias, True)
