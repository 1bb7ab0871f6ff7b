"""A linear layer in int8: weights quantised once per output channel, inputs per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _extension
from ._dispatch import Backend, Op

_PANEL = 32
"""Output channels of a panel of packed weights; `csrc/cpu/linear_int8.h` has the layout."""


_MOST_DEPTH = 2**17
"""Inputs of a layer whose products, of up to 127 times 127, an int32 holds the sum of."""


@dataclass(frozen=True)
class Int8Weight:
    """Weights (N, K) of a linear layer; made by `quantize_weight`.

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


def linear_int8_reference(x: Tensor, weight: Int8Weight, bias: Tensor) -> Tensor:
    """Specification of `linear_int8`: integers in float64, which holds them exactly."""
    exact = x.float()
    most = exact.abs().amax(-1, keepdim=True)
    # A token so small that 127 / most is infinite counts as zeros.
    steps = torch.where(most > 0, 127 / most, 0).clamp_max(torch.finfo(torch.float32).max)
    values = (exact * steps).round().double()
    sums = (values @ weight.values.double().mT).float()
    return (sums * (most / 127 * weight.scale) + bias.float()).to(x.dtype)


def _cpp_supports(x: Tensor, weight: Int8Weight, bias: Tensor) -> tuple[bool, str]:
    if torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
        return False, "has no backward; call it under torch.no_grad()"
    if x.dtype not in (torch.float32, torch.bfloat16):
        return False, f"takes float32 and bfloat16, not {x.dtype}"
    if x.shape[-1] > _MOST_DEPTH:
        return False, f"takes up to {_MOST_DEPTH} inputs, which int32 adds up, not {x.shape[-1]}"
    if not weight.packed.numel() and weight.values.numel():
        return False, "the weights were quantised without the C++ extension"
    reason = why_slow()
    return (False, reason) if reason else _extension.supports("cpp", "linear_int8", x, bias)


def _cpp_backend(x: Tensor, weight: Int8Weight, bias: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = rows.new_empty((len(rows), len(weight.values)))
    torch.ops.dafast_C.linear_int8(
        rows, out, weight.packed, weight.sums, weight.scale, bias.float().contiguous()
    )
    return out.unflatten(0, x.shape[:-1])


def why_slow() -> str:
    """Why int8 has no fast kernel on this machine; an empty string if it has."""
    module: Any = _extension.load()
    if module is None:
        return _extension.why_missing()
    if module.cpu_capability() not in ("avx512", "avx512_bf16"):
        return f"needs AVX-512 with VNNI; the kernels use {module.cpu_capability()} here"
    return ""


_linear_int8 = Op(
    "linear_int8", linear_int8_reference, {"cpp": Backend(_cpp_backend, _cpp_supports)}
)


def linear_int8(x: Tensor, weight: Int8Weight, bias: Tensor) -> Tensor:
    """A linear layer whose products are int8; for inference.

    Every token is scaled such that its largest value is 127 and rounded (dynamic quantisation),
    multiplied in integers, and scaled back.

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
