"""ReLU and a 1x1 convolution to one channel, the end of the decoder, for training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import without_autocast
from . import _extension
from ._dispatch import Op, wants_gradient, wrong_dtype
from ._kernel_op import KernelOp

_CHANNEL_UNIT = 32
_MOST_CHANNELS = 512


def relu_project_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Specification of `relu_project`; the convolution is in float32."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    with without_autocast(x.device):
        return F.conv2d(F.relu(x).to(compute), weight.to(compute), bias.to(compute))


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) as (B * h * w, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous().view(-1, x.shape[1])


def _empty_result(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty((len(x), 1, *x.shape[2:]), dtype=torch.float32)


def _cpp_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = _empty_result(x)
    torch.ops.dafast_C.relu_project(
        _rows(x), weight.float().flatten(), bias.float().contiguous(), out.view(-1)
    )
    return out


_op = KernelOp(
    "relu_project(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    fake=_empty_result,
    cpp=_cpp_forward,
)


def _empty_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For x, channels last, and in float32 for the weight and the bias."""
    rows = x.new_empty((len(x), *x.shape[2:], x.shape[1]))
    return (
        rows.permute(0, 3, 1, 2),
        weight.new_empty(weight.shape, dtype=torch.float32),
        weight.new_empty(1, dtype=torch.float32),
    )


def _cpp_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out, sums, total = _empty_gradients(grad, x, weight)
    torch.ops.dafast_C.relu_project_backward(
        grad.reshape(-1), _rows(x), weight.float().flatten(), _rows(out), sums.view(-1), total
    )
    return out, sums, total


_backward_op = KernelOp(
    "relu_project_backward(Tensor grad, Tensor x, Tensor weight) -> (Tensor, Tensor, Tensor)",
    fake=_empty_gradients,
    cpp=_cpp_backward,
)
_op.differentiate_by(_backward_op, lambda inputs, _: inputs[:2])


def _limits(x: Tensor, weight: Tensor, bias: Tensor) -> str:
    if reason := wrong_dtype(x.dtype, weight.dtype, bias.dtype):
        return reason
    channels = x.shape[1]
    if channels % _CHANNEL_UNIT or not 0 < channels <= _MOST_CHANNELS:
        return (
            f"takes a multiple of {_CHANNEL_UNIT} channels up to {_MOST_CHANNELS}, not {channels}"
        )
    return ""


def _unasked(x: Tensor, weight: Tensor, bias: Tensor) -> str:
    if torch.compiler.is_dynamo_compiling():
        return "torch.compile fuses these itself"
    if not wants_gradient(x, weight, bias):
        return "without a gradient decoder_tail serves it"
    if x.stride(1) != 1:
        return "takes a copy of maps that are not channels last"
    return ""


_relu_project = Op(
    "relu_project",
    relu_project_reference,
    {"cpp": _extension.backend("cpp", "relu_project", lambda *args: _op(*args), _limits, _unasked)},
)


def relu_project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 1x1 convolution of ReLU(x) to one channel, in float32.

    Args:
        x: (B, C, h, w), floating point; best in channels_last.
        weight: (1, C, 1, 1).
        bias: (1).

    Returns:
        (B, 1, h, w), float32 (float64 for a float64 map).

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    if x.ndim != 4 or weight.shape != (1, x.shape[1], 1, 1) or bias.shape != (1,):
        shapes = [tuple(t.shape) for t in (x, weight, bias)]
        raise ValueError(
            f"relu_project needs x (B, C, h, w), weight (1, C, 1, 1) and bias (1); got {shapes}"
        )
    for tensor in (x, weight, bias):
        if not tensor.is_floating_point():
            raise ValueError(f"floating point expected; got {tensor.dtype}")
    return _relu_project(x, weight, bias)
