"""A linear layer in float32 or bfloat16 from packed weights; threads take its rows in pieces."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp

PANEL = 32
"""Output channels of a panel of packed weights; `csrc/cpu/weights_float.h` has the layout."""


class PackedWeight(NamedTuple):
    """Weights and bias, from `pack_linear` or `pack_conv3x3`.

    Attributes:
        values: (N, K) or (N, C, 3, 3), as they were given, without a copy.
        bias: (N), as it was given.
        packed: ``values`` in the layout of the C++ kernel; empty without it.
        padded: The bias in float32, with zeros up to whole panels.
    """

    values: Tensor
    bias: Tensor
    packed: Tensor
    padded: Tensor


def why_slow_packed(dtype: torch.dtype) -> str:
    """Why weights of a dtype have no fast kernel on this machine; an empty string if they have."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16 weights, not {dtype}"
    if reason := _extension.why_not("cpp", "linear_packed"):
        return reason
    capability = _extension.cpu_capability()
    if dtype == torch.bfloat16 and capability not in ("avx512_bf16", "avx512_amx"):
        return f"bfloat16 weights need AVX-512 with BF16; the kernels use {capability} here"
    if capability in _extension.PORTABLE_FLOAT:
        return "needs AVX2; the kernels use portable instructions here"
    return ""


def packed_size(weight: Tensor) -> int:
    """Elements of packed weights (N, K)."""
    columns, depth = weight.shape
    depth += depth % 2 if weight.dtype == torch.bfloat16 else 0
    return -(-columns // PANEL) * PANEL * depth


def pack_linear(weight: Tensor, bias: Tensor) -> PackedWeight:
    """Packs weights (N, K) and a bias (N).

    Raises:
        ValueError: If the weights are not floating point (N, K) with a bias (N).
    """
    if weight.ndim != 2 or not weight.is_floating_point() or bias.shape != weight.shape[:1]:
        raise ValueError(
            "pack_linear needs floating-point weights (N, K) and bias (N); got "
            f"{weight.dtype} {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    return pack_matrix(weight, weight, bias)


def pack_matrix(values: Tensor, matrix: Tensor, bias: Tensor) -> PackedWeight:
    """Packs ``matrix`` (N, K), which has the elements of ``values``."""
    values, matrix, bias = values.detach(), matrix.detach(), bias.detach()
    packed = matrix.new_empty(0)
    if matrix.device.type == "cpu" and not why_slow_packed(matrix.dtype):
        packed = matrix.new_empty(packed_size(matrix))
        torch.ops.dafast_C.pack_linear(matrix.contiguous(), packed)
    return PackedWeight(values, bias, packed, F.pad(bias.float(), (0, -len(bias) % PANEL)))


def linear_packed_reference(x: Tensor, weight: PackedWeight) -> Tensor:
    """Specification of `linear_packed`."""
    return F.linear(x.float(), weight.values.float(), weight.bias.float()).to(x.dtype)


def _empty_result(x: Tensor, packed: Tensor, bias: Tensor, columns: int) -> Tensor:
    return x.new_empty((x.shape[0], columns))


def _cpp_forward(x: Tensor, packed: Tensor, bias: Tensor, columns: int) -> Tensor:
    out = _empty_result(x, packed, bias, columns)
    torch.ops.dafast_C.linear_packed(x, out, packed, bias)
    return out


_op = KernelOp(
    "linear_packed(Tensor x, Tensor packed, Tensor bias, SymInt columns) -> Tensor",
    fake=_empty_result,
    cpp=_cpp_forward,
)


def _cpp_backend(x: Tensor, weight: PackedWeight) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = _op(rows, weight.packed, weight.padded, len(weight.bias))
    return out.unflatten(0, x.shape[:-1])


def why_not_these(x: Tensor, weight: PackedWeight) -> str:
    """Why the C++ kernels cannot multiply x with these weights; an empty string if they can."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16, not {x.dtype}"
    if reason := why_slow_packed(weight.packed.dtype):
        return reason
    if not weight.packed.numel() and weight.values.numel():
        return "the weights were packed without the C++ kernel"
    return ""


_linear_packed = Op(
    "linear_packed",
    linear_packed_reference,
    {
        "cpp": _extension.backend(
            "cpp", "linear_packed", _cpp_backend, why_not_these, backward=False
        )
    },
)


def linear_packed(x: Tensor, weight: PackedWeight) -> Tensor:
    """A linear layer; for inference.

    With bfloat16 weights the products are those of bfloat16 and the sums float32.

    Args:
        x: (..., K), float32 or bfloat16 (other floating-point types run on the reference).
        weight: From `pack_linear`, (N, K).

    Returns:
        (..., N) in the dtype of ``x``.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    depth = weight.values.shape[1]
    if x.ndim < 2 or x.shape[-1] != depth or not x.is_floating_point():
        raise ValueError(
            f"linear_packed needs floating-point x (..., {depth}) for these weights; got "
            f"{x.dtype} {tuple(x.shape)}"
        )
    return _linear_packed(x, weight)
