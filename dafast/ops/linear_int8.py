"""A linear layer in int8: weights quantised once per output channel, inputs per token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp

_PANEL = 32
"""Output channels of a panel of packed weights; `csrc/cpu/linear_int8_kernels.h` has the layout."""

_MOST_DEPTH = 2**16
"""Most inputs of a layer: the sum of products of up to 255 times 127 fits in an int32."""


class Int8Weight(NamedTuple):
    """Weights (N, K) of a linear layer, from `quantize_weight`.

    Attributes:
        values: int8 (N, K), in -127..127.
        scale: float32 (N): a weight is its value times its channel's scale.
        packed: ``values`` in the layout of the C++ kernel; empty without it.
        sums: int32 (N), the sum of a channel's values; empty without the C++ kernel.
    """

    values: Tensor
    scale: Tensor
    packed: Tensor
    sums: Tensor


def quantize_weight(weight: Tensor) -> Int8Weight:
    """Rounds weights (N, K) to int8, symmetric, one scale per output channel.

    Raises:
        ValueError: If the weights are not floating point (N, K) with at least one input.
    """
    if weight.ndim != 2 or not weight.shape[1] or not weight.is_floating_point():
        raise ValueError(
            "quantize_weight needs floating-point weights (N, K), K at least 1; got "
            f"{weight.dtype} {tuple(weight.shape)}"
        )
    weight = weight.detach().float()
    scale = weight.abs().amax(1) / 127
    values = (weight / scale.clamp_min(1e-30)[:, None]).round().clamp(-127, 127).to(torch.int8)
    rows, depth = values.shape
    packed, sums = (weight.new_empty(0, dtype=dtype) for dtype in (torch.int8, torch.int32))
    if weight.device.type == "cpu" and not _extension.why_not("cpp", "linear_int8"):
        panels, fours = -(-rows // _PANEL), -(-depth // 4)
        packed = weight.new_empty(panels * _PANEL * fours * 4, dtype=torch.int8)
        sums = weight.new_empty(rows, dtype=torch.int32)
        torch.ops.dafast_C.pack_int8(values.contiguous(), packed, sums)
    return Int8Weight(values, scale, packed, sums)


def round_to_bytes(x: Tensor, dims: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Rounds to 256 steps between the smallest and the largest value along ``dims`` (and 0).

    Returns:
        Integers, less that of 0, and the size of a step, float32; the step is NaN if a value or
        the range is not finite.
    """
    exact = x.float()
    low = exact.amin(dims, keepdim=True).clamp_max(0)
    size = exact.amax(dims, keepdim=True).clamp_min(0) - low
    # Not `255 / size`, which multiplies by a rounded reciprocal: ties would round otherwise than in
    # the kernel. Values so small that the quotient is infinite count as zeros.
    inverse = torch.full_like(size, 255) / size
    inverse = torch.where(size > 0, inverse, 0).clamp_max(torch.finfo(torch.float32).max)
    zero = (-low * inverse).round()
    values = ((exact * inverse).round() + zero).clamp_max(255) - zero
    return values, torch.where(size.isfinite(), size / 255, torch.nan)


def linear_int8_reference(x: Tensor, weight: Int8Weight, bias: Tensor) -> Tensor:
    """Specification of `linear_int8`: integers in float64, which holds them exactly."""
    values, step = round_to_bytes(x, -1)
    sums = (values.double() @ weight.values.double().mT).float()
    return (sums * (step * weight.scale) + bias.float()).to(x.dtype)


def _cpp_forward(x: Tensor, *weight: Tensor) -> Tensor:
    out = _empty_result(x, *weight)
    torch.ops.dafast_C.linear_int8(x, out, *weight)
    return out


def _empty_result(x: Tensor, *weight: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], weight[-1].shape[0]))


_op = KernelOp(
    "linear_int8(Tensor x, Tensor packed, Tensor sums, Tensor scale, Tensor bias) -> Tensor",
    fake=_empty_result,
    cpp=_cpp_forward,
)


def _cpp_backend(x: Tensor, weight: Int8Weight, bias: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = _op(rows, weight.packed, weight.sums, weight.scale, bias.float().contiguous())
    return out.unflatten(0, x.shape[:-1])


def _cpp_limits(x: Tensor, weight: Int8Weight, bias: Tensor) -> str:
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16, not {x.dtype}"
    if x.shape[-1] > _MOST_DEPTH:
        return f"takes up to {_MOST_DEPTH} inputs, which int32 adds up, not {x.shape[-1]}"
    if not weight.packed.numel() and weight.values.numel():
        return "the weights were quantised without the C++ extension"
    return why_slow_int8()


def why_slow_int8() -> str:
    """Why int8 has no fast kernel on this machine; an empty string if it has."""
    capability = _extension.cpu_capability()
    if not capability:
        return _extension.why_not("cpp", "linear_int8")
    if capability == "portable":
        return "needs AVX2, or SDOT on ARM; the kernels use portable instructions here"
    return ""


_linear_int8 = Op(
    "linear_int8",
    linear_int8_reference,
    {"cpp": _extension.backend("cpp", "linear_int8", _cpp_backend, _cpp_limits, backward=False)},
)


def linear_int8(x: Tensor, weight: Int8Weight, bias: Tensor) -> Tensor:
    """A linear layer whose products are int8; for inference.

    Every token is rounded to 256 steps between its smallest and largest value, one of which is 0
    (dynamic quantisation), multiplied in integers, and scaled back.

    Args:
        x: (..., K), float32 or bfloat16 (other floating-point types run on the reference).
        weight: From `quantize_weight`, (N, K).
        bias: (N).

    Returns:
        (..., N) in the dtype of ``x``.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    columns, depth = weight.values.shape
    if x.ndim < 2 or x.shape[-1] != depth or bias.shape != (columns,):
        raise ValueError(
            f"linear_int8 needs x (..., {depth}) and bias ({columns},) for these weights; got "
            f"{tuple(x.shape)} and {tuple(bias.shape)}"
        )
    if not x.is_floating_point():
        raise ValueError(f"floating point expected; got {x.dtype}")
    return _linear_int8(x, weight, bias)
