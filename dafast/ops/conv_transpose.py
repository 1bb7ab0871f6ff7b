"""Transposed convolution whose stride is its kernel, as the decoder enlarges maps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import without_autocast
from . import _triton
from ._dispatch import Op, wrong_dtype
from ._kernel_op import KernelOp


def conv_transpose_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Specification of `conv_transpose`: PyTorch's layer, in ``x``'s dtype."""
    with without_autocast(x.device):
        return F.conv_transpose2d(x, weight.to(x.dtype), bias.to(x.dtype), stride=weight.shape[2:])


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    size = weight.shape[2]
    shape = (x.shape[0], weight.shape[1], size * x.shape[2], size * x.shape[3])
    return x.new_empty(shape).contiguous(memory_format=torch.channels_last)


_op = KernelOp(
    "conv_transpose(Tensor x, Tensor weight, Tensor bias, str backend) -> Tensor",
    fake=_fake,
    triton=_triton.launcher("conv_transpose", "conv_transpose_fwd"),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _ = inputs
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    size = list(weight.shape[2:])
    wanted = list(ctx.needs_input_grad[:3])
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), [weight.shape[1]], size, [0, 0], [1, 1], True, [0, 0], 1,
        wanted,
    )  # fmt: skip
    dtypes = (x.dtype, weight.dtype, ctx.bias_dtype)
    cast = (g.to(d) if w else None for g, d, w in zip(grads, dtypes, wanted, strict=True))
    return (*cast, None)


_op.register_autograd(_backward, _setup_context)


def _limits(x: Tensor, weight: Tensor, bias: Tensor) -> str:
    return wrong_dtype(x.dtype, weight.dtype, bias.dtype)


def _unasked(x: Tensor, *_: Any) -> str:
    if x.dtype == torch.float32:
        return "in float32 PyTorch's own convolutions use TF32, the kernel only if products do"
    return "" if x.stride(1) == 1 else "takes a copy of maps that are not channels last"


_conv_transpose = Op(
    "conv_transpose",
    conv_transpose_reference,
    {"triton": _triton.backend(lambda *args: _op(*args, "triton"), _limits, _unasked)},
)


def conv_transpose(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Transposed convolution whose stride is its kernel: a pixel becomes k x k pixels.

    Args:
        x: (B, C, h, w), float16, bfloat16, float32 or float64. Fast is channels last.
        weight: (C, N, k, k), as in `torch.nn.ConvTranspose2d`; used in ``x``'s dtype.
        bias: (N).

    Returns:
        (B, N, k * h, k * w) in the dtype of ``x``.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    if (
        x.ndim != 4 or weight.ndim != 4 or weight.shape[0] != x.shape[1]
        or weight.shape[2] != weight.shape[3] or bias.shape != weight.shape[1:2]
    ):  # fmt: skip
        raise ValueError(
            "conv_transpose needs x (B, C, h, w), weight (C, N, k, k) and bias (N); got "
            f"{tuple(x.shape)}, {tuple(weight.shape)}, {tuple(bias.shape)}"
        )
    for t in (x, weight, bias):
        if not t.is_floating_point():
            raise ValueError(f"floating point expected; got {t.dtype}")
    if 0 in weight.shape or 0 in x.shape[1:]:
        raise ValueError(
            f"no side may be empty; got {tuple(x.shape)} and weights {tuple(weight.shape)}"
        )
    return _conv_transpose(x, weight, bias)


def conv_transpose_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`conv_transpose` where its kernel serves the call, else PyTorch's.

    Args:
        x: (B, C, h, w); PyTorch's function reports a shape that does not fit.
        weight: (C, N, k, k), of a layer.
        bias: (N), of the same layer.
    """
    if x.ndim == 4 and x.shape[1] == len(weight) and 0 not in x.shape[1:]:
        backend = _conv_transpose.select(x, weight, bias)
        if backend != "reference":
            return _conv_transpose.backends[backend].fn(x, weight, bias)
    return F.conv_transpose2d(x, weight, bias, stride=weight.shape[2:])
