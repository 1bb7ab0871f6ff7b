"""A 3x3 convolution in float32 with gradients, on a CPU by Winograd's algorithm."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import is_autocast_on
from . import _extension
from ._dispatch import Op, wants_gradient
from ._kernel_op import KernelOp

_CHANNEL_UNIT = 16
_LEAST_TILES = 256
"""With fewer tiles of 2x2 pixels the transformation of the weights takes too long."""


def conv3x3_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    other: Tensor | None,
    relu_input: bool,
) -> Tensor:
    """Specification of `conv3x3`."""
    out = F.conv2d(x.relu() if relu_input else x, weight, bias, padding=1)
    for more in (add, other):
        out = out if more is None else more + out
    return out


def _rows(x: Tensor | None) -> Tensor | None:
    """(B, C, h, w) as (B, h, w, C), contiguous."""
    return None if x is None else x.permute(0, 2, 3, 1).contiguous()


def _empty_map(x: Tensor, channels: int) -> Tensor:
    """(B, channels, h, w) in channels_last, of the size of x."""
    out = x.new_empty((x.shape[0], *x.shape[2:], channels))
    return out.permute(0, 3, 1, 2)


def _cpp_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    other: Tensor | None,
    relu_input: bool,
) -> Tensor:
    out = _empty_map(x, weight.shape[0])
    torch.ops.dafast_C.conv3x3(
        _rows(x), weight, bias if bias is None else bias.contiguous(), _rows(add), _rows(other),
        None, False, relu_input, out.permute(0, 2, 3, 1),
    )  # fmt: skip
    return out


_op = KernelOp(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? add, Tensor? other, bool relu_input)"
    " -> Tensor",
    fake=lambda x, weight, *_: _empty_map(x, weight.shape[0]),
    cpp=_cpp_forward,
)


def _cpp_input_gradient(grad: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
    out = _empty_map(grad, weight.shape[1])
    torch.ops.dafast_C.conv3x3(
        _rows(grad), weight, None, None, None, _rows(gate), True, False, out.permute(0, 2, 3, 1)
    )
    return out


_input_gradient = KernelOp(
    "conv3x3_input_gradient(Tensor grad, Tensor weight, Tensor? gate) -> Tensor",
    fake=lambda grad, weight, *_: _empty_map(grad, weight.shape[1]),
    cpp=_cpp_input_gradient,
)
_input_gradient.refuse_derivative("conv3x3")


def _empty_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, relu_input: bool
) -> tuple[Tensor, Tensor]:
    """For the weights, and for a bias."""
    return torch.empty_like(weight), weight.new_empty(len(weight))


def _cpp_weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, relu_input: bool
) -> tuple[Tensor, Tensor]:
    out, bias = _empty_gradients(grad, x, weight, relu_input)
    torch.ops.dafast_C.conv3x3_backward(_rows(grad), _rows(x), relu_input, out, bias)
    return out, bias


_weight_gradient = KernelOp(
    "conv3x3_weight_gradient(Tensor grad, Tensor x, Tensor weight, bool relu_input)"
    " -> (Tensor, Tensor)",
    fake=_empty_gradients,
    cpp=_cpp_weight_gradient,
)
_weight_gradient.refuse_derivative("conv3x3")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, _, _, ctx.relu_input = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    grad = grad.contiguous(memory_format=torch.channels_last)
    of_x = of_weight = of_bias = None
    if wanted[0]:
        of_x = _input_gradient(grad, weight, x if ctx.relu_input else None)
    if wanted[1] or wanted[2]:
        of_weight, of_bias = _weight_gradient(grad, x, weight, ctx.relu_input)
    grads = (of_x, of_weight, of_bias, grad, grad)
    return (*(g if w else None for g, w in zip(grads, wanted, strict=False)), None)


_op.register_autograd(_backward, _setup_context)


def _limits(x: Tensor, weight: Tensor, *rest: Any) -> str:
    for tensor in (x, weight, *rest[:3]):
        if tensor is not None and tensor.dtype != torch.float32:
            return f"takes float32, not {tensor.dtype}"
    if 0 in weight.shape or any(channels % _CHANNEL_UNIT for channels in weight.shape[:2]):
        return (
            f"takes multiples of {_CHANNEL_UNIT} channels, not {weight.shape[1]} to "
            f"{weight.shape[0]}"
        )
    return ""


def _unasked(x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> str:
    if torch.compiler.is_dynamo_compiling():
        return "torch.compile has convolutions of its own"
    if not wants_gradient(x, weight, *(() if bias is None else (bias,))):
        return "without a gradient PyTorch's convolution serves it"
    if x.stride(1) != 1:
        return "takes a copy of maps that are not channels last"
    if len(x) * ((x.shape[2] + 1) // 2) * ((x.shape[3] + 1) // 2) < _LEAST_TILES:
        return f"with fewer than {_LEAST_TILES} tiles PyTorch's convolution is as fast"
    if _extension.cpu_capability() in _extension.PORTABLE_FLOAT:
        return "without AVX2 PyTorch's convolution is faster"
    return ""


_conv3x3 = Op(
    "conv3x3",
    conv3x3_reference,
    {"cpp": _extension.backend("cpp", "conv3x3", lambda *args: _op(*args), _limits, _unasked)},
)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    add: Tensor | None = None,
    other: Tensor | None = None,
    relu_input: bool = False,
) -> Tensor:
    """A 3x3 convolution with padding 1, for training.

    Args:
        x: (B, C, H, W), floating point; best in channels_last.
        weight: (N, C, 3, 3).
        bias: (N).
        add: (B, N, H, W), added to the result.
        other: Added as well.
        relu_input: Whether negative inputs count as 0.

    Returns:
        (B, N, H, W) in the dtype of ``x``.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            "conv3x3 needs x (B, C, H, W) and weights (N, C, 3, 3); got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"conv3x3 needs a bias ({len(weight)}); got {tuple(bias.shape)}")
    size = (len(x), len(weight), *x.shape[2:])
    for more in (add, other):
        if more is not None and more.shape != size:
            raise ValueError(f"maps to add need the shape {size}; got {tuple(more.shape)}")
    for tensor in (x, weight, bias, add, other):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"floating point expected; got {tensor.dtype}")
    return _conv3x3(x, weight, bias, add, other, relu_input)


def serves_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a kernel serves `conv3x3` with these tensors; not under autocast to 16 bits."""
    if not x.is_cpu or is_autocast_on("cpu"):  # which the choice of a backend does not know
        return False
    return _conv3x3.select(x, weight, bias, None, None, False) != "reference"
