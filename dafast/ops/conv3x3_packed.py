"""A 3x3 convolution in float32 or bfloat16 from packed weights; threads take rows in pieces."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp
from .linear_packed import PackedWeight, pack_matrix, why_not_these


def pack_conv3x3(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    """Packs weights (N, C, 3, 3) and a bias (N) or None.

    Raises:
        ValueError: If the weights are not floating point (N, C, 3, 3), or the bias is not (N).
    """
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    if (
        weight.ndim != 4 or weight.shape[2:] != (3, 3) or not weight.is_floating_point()
        or bias.shape != weight.shape[:1]
    ):  # fmt: skip
        raise ValueError(
            "pack_conv3x3 needs floating-point weights (N, C, 3, 3) and bias (N); got "
            f"{weight.dtype} {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    return pack_matrix(weight, weight.permute(0, 2, 3, 1).flatten(1), bias)


def conv3x3_packed_reference(
    x: Tensor,
    weight: PackedWeight,
    add: Tensor | None,
    other: Tensor | None,
    stride: int,
    relu_input: bool,
    relu: bool,
) -> Tensor:
    """Specification of `conv3x3_packed`."""
    values = x.float().relu() if relu_input else x.float()
    out = F.conv2d(values, weight.values.float(), weight.bias.float(), stride, 1)
    out = out.relu() if relu else out
    for more in (add, other):
        out = out if more is None else out + more.float()
    return out.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _empty_result(x: Tensor, packed: Tensor, bias: Tensor, columns: int, *options: Any) -> Tensor:
    """Rows of channels: (B, h', w', N)."""
    stride = options[2]
    height, width = ((size - 1) // stride + 1 for size in x.shape[1:3])
    return x.new_empty((len(x), height, width, columns))


def _cpp_forward(x: Tensor, packed: Tensor, bias: Tensor, columns: int, *options: Any) -> Tensor:
    out = _empty_result(x, packed, bias, columns, *options)
    torch.ops.dafast_C.conv3x3_packed(x, out, packed, bias, *options)
    return out


_op = KernelOp(
    "conv3x3_packed(Tensor x, Tensor packed, Tensor bias, SymInt columns, Tensor? add,"
    " Tensor? other, int stride, bool relu_input, bool relu) -> Tensor",
    fake=_empty_result,
    cpp=_cpp_forward,
)


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _cpp_backend(
    x: Tensor,
    weight: PackedWeight,
    add: Tensor | None,
    other: Tensor | None,
    stride: int,
    relu_input: bool,
    relu: bool,
) -> Tensor:
    more = (None if m is None else _last(m.to(x.dtype)) for m in (add, other))
    out = _op(
        _last(x), weight.packed, weight.padded, len(weight.bias), *more, stride, relu_input, relu
    )
    return out.permute(0, 3, 1, 2)


def _cpp_limits(x: Tensor, weight: PackedWeight, *_rest: Any) -> str:
    if x.shape[1] % 2 and weight.values.dtype == torch.bfloat16:
        return f"takes an even number of channels in bfloat16, not {x.shape[1]}"
    return why_not_these(x, weight)


_conv3x3_packed = Op(
    "conv3x3_packed",
    conv3x3_packed_reference,
    {"cpp": _extension.backend("cpp", "conv3x3_packed", _cpp_backend, _cpp_limits, backward=False)},
)


def conv3x3_packed(
    x: Tensor,
    weight: PackedWeight,
    *,
    add: Tensor | None = None,
    other: Tensor | None = None,
    stride: int = 1,
    relu_input: bool = False,
    relu: bool = False,
) -> Tensor:
    """A 3x3 convolution with padding 1; for inference.

    Args:
        x: (B, C, H, W), float32 or bfloat16, best in channels_last (other floating-point types run
            on the reference).
        weight: From `pack_conv3x3`, of (N, C, 3, 3).
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
    columns, channels = weight.values.shape[:2]
    if x.ndim != 4 or x.shape[1] != channels or stride < 1 or not x.is_floating_point():
        raise ValueError(
            f"conv3x3_packed needs floating-point x (B, {channels}, H, W) for these weights; "
            f"got {x.dtype} {tuple(x.shape)}, stride {stride}"
        )
    size = (len(x), columns, *((n - 1) // stride + 1 for n in x.shape[2:]))
    for more in (add, other):
        if more is not None and more.shape != size:
            raise ValueError(f"maps to add need the shape {size}; got {tuple(more.shape)}")
    return _conv3x3_packed(x, weight, add, other, stride, relu_input, relu)
