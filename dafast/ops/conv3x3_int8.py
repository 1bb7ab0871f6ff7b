"""A 3x3 convolution in int8: weights quantised once, maps a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp
from .linear_int8 import Int8Weight, quantize_weight, round_to_bytes, why_slow_int8

_STRIP = 4
"""Rows of the result whose input shares one range."""

_MOST_CHANNELS = 2**12
"""Most input channels: the sum of products of up to 255 times 127 fits in an int32."""


def quantize_conv3x3(weight: Tensor) -> Int8Weight:
    """Rounds weights (N, C, 3, 3) to int8 as `quantize_weight` does, as (N, 3 * 3 * C).

    Raises:
        ValueError: If the weights are not floating point (N, C, 3, 3).
    """
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"quantize_conv3x3 needs weights (N, C, 3, 3); got {tuple(weight.shape)}")
    return quantize_weight(weight.permute(0, 2, 3, 1).flatten(1))


def conv3x3_int8_reference(
    x: Tensor,
    weight: Int8Weight,
    bias: Tensor,
    add: Tensor | None,
    other: Tensor | None,
    stride: int,
    relu_input: bool,
    relu: bool,
) -> Tensor:
    """The specification in plain PyTorch."""
    exact = F.pad(x.float().relu() if relu_input else x.float(), (1, 1, 1, 1))
    kernel = weight.values.double().unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
    strips = []
    for part in exact.unfold(2, 3, stride).split(_STRIP, 2):  # (B, C, rows, W + 2, ky)
        values, step = round_to_bytes(part, (1, 2, 3, 4))
        windows = values.unfold(3, 3, stride)  # (B, C, rows, columns, ky, kx)
        sums = torch.einsum("bcrxij,ncij->bnrx", windows.double(), kernel).float()
        strips.append(sums * (step[..., 0] * weight.scale[:, None, None]))
    out = torch.cat(strips, 2) + bias.float()[:, None, None]
    out = out.relu() if relu else out
    for more in (add, other):
        out = out if more is None else out + more.float()
    return out.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _empty_result(x: Tensor, packed: Tensor, sums: Tensor, scale: Tensor, bias: Tensor,
                  add: Tensor | None, other: Tensor | None, stride: int, relu_input: bool,
                  relu: bool) -> Tensor:  # fmt: skip
    """Rows of channels: (B, h', w', N)."""
    height, width = ((size - 1) // stride + 1 for size in x.shape[1:3])
    return x.new_empty((len(x), height, width, len(bias)))


def _cpp_forward(x: Tensor, *arguments: Any) -> Tensor:
    out = _empty_result(x, *arguments)
    torch.ops.dafast_C.conv3x3_int8(x, out, *arguments)
    return out


_op = KernelOp(
    "conv3x3_int8(Tensor x, Tensor packed, Tensor sums, Tensor scale, Tensor bias, Tensor? add,"
    " Tensor? other, int stride, bool relu_input, bool relu) -> Tensor",
    fake=_empty_result,
    cpp=_cpp_forward,
)


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _cpp_backend(
    x: Tensor,
    weight: Int8Weight,
    bias: Tensor,
    add: Tensor | None,
    other: Tensor | None,
    stride: int,
    relu_input: bool,
    relu: bool,
) -> Tensor:
    more = (None if m is None else _last(m.to(x.dtype)) for m in (add, other))
    out = _op(
        _last(x), weight.packed, weight.sums, weight.scale, bias.float().contiguous(), *more,
        stride, relu_input, relu,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def _cpp_limits(x: Tensor, weight: Int8Weight, *_rest: Any) -> str:
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16, not {x.dtype}"
    if x.shape[1] % 4 or x.shape[1] > _MOST_CHANNELS:
        return f"takes a multiple of 4 channels up to {_MOST_CHANNELS}, not {x.shape[1]}"
    if not weight.packed.numel() and weight.values.numel():
        return "the weights were quantised without the C++ extension"
    return why_slow_int8()


_conv3x3_int8 = Op(
    "conv3x3_int8",
    conv3x3_int8_reference,
    {"cpp": _extension.backend("cpp", "conv3x3_int8", _cpp_backend, _cpp_limits, backward=False)},
)


def conv3x3_int8(
    x: Tensor,
    weight: Int8Weight,
    bias: Tensor,
    *,
    add: Tensor | None = None,
    other: Tensor | None = None,
    stride: int = 1,
    relu_input: bool = False,
    relu: bool = False,
) -> Tensor:
    """A 3x3 convolution with padding 1 whose products are int8; for inference.

    The input of every four rows of the result is rounded to 256 steps between its smallest and
    largest value, one of which is 0 (dynamic quantisation).

    Args:
        x: (B, C, H, W), float32 or bfloat16, best in channels_last (other floating-point types and
            numbers of channels that 4 does not divide run on the reference).
        weight: From `quantize_conv3x3`, of (N, C, 3, 3).
        bias: (N).
        add: Added to the result; of its shape.
        other: Added as well.
        stride: Of the windows.
        relu_input: Whether negative inputs count as 0.
        relu: Whether negative results become 0, before the additions.

    Returns:
        (B, N, ceil(H / stride), ceil(W / stride)) in channels_last and the dtype of ``x``.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    columns, depth = weight.values.shape
    if x.ndim != 4 or 9 * x.shape[1] != depth or bias.shape != (columns,) or stride < 1:
        raise ValueError(
            f"conv3x3_int8 needs x (B, {depth / 9:g}, H, W) and bias ({columns},) for these "
            f"weights; got {tuple(x.shape)} and {tuple(bias.shape)}, stride {stride}"
        )
    if not x.is_floating_point():
        raise ValueError(f"floating point expected; got {x.dtype}")
    size = (len(x), columns, *((n - 1) // stride + 1 for n in x.shape[2:]))
    for more in (add, other):
        if more is not None and more.shape != size:
            raise ValueError(f"maps to add need the shape {size}; got {tuple(more.shape)}")
    return _conv3x3_int8(x, weight, bias, add, other, stride, relu_input, relu)
