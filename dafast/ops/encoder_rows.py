"""The part of a transformer block after attention, row by row, in float32 or bfloat16."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp
from .encoder_rows_int8 import RowNorm
from .linear_packed import PANEL, packed_size, why_slow_packed

Linear = tuple[Tensor, Tensor]
"""Weights (N, K) and bias (N)."""


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Parameters of `encoder_rows`, which are packed together; weights have one dtype.

    Attributes:
        proj: Projection of the heads, (C, C).
        ls1: Scale (C) of the first branch.
        norm2: Before the MLP.
        fc1: (hidden, C).
        fc2: (C, hidden).
        ls2: Scale (C) of the second branch.
        tap: Norm of the stream behind the block, for the decoder; None without a tap.
        next_norm: First norm of the next block; None for the last block.
        qkv: First layer of the next block, (3 C, C).
    """

    proj: Linear
    ls1: Tensor
    norm2: RowNorm
    fc1: Linear
    fc2: Linear
    ls2: Tensor
    tap: RowNorm | None
    next_norm: RowNorm | None
    qkv: Linear | None
    packed: Tensor = field(init=False)
    vectors: Tensor = field(init=False)

    # `Op.select` keeps arguments that have a hash; it must not keep weights.
    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        parts = (self.proj, self.ls1, self.norm2, self.fc1, self.fc2, self.ls2, self.tap,
                 self.next_norm, self.qkv)  # fmt: skip
        vectors: list[Tensor] = []
        weights: list[Tensor] = []
        for part in parts:
            if isinstance(part, RowNorm):
                vectors.extend((part.weight, part.bias, torch.tensor([part.eps])))
            elif isinstance(part, tuple):
                weights.append(part[0].detach())
                vectors.append(part[1])
            elif part is not None:
                vectors.append(part)
        object.__setattr__(self, "vectors", torch.cat([v.detach().float() for v in vectors]))
        object.__setattr__(self, "packed", self._packed(weights))

    def _packed(self, weights: list[Tensor]) -> Tensor:
        """All weights in one tensor, packed each into its place; empty without the C++ kernel."""
        first = weights[0]
        if first.device.type != "cpu" or why_not_rows(first.dtype, *self.fc1[0].shape):
            return first.new_empty(0)
        sizes = [packed_size(weight) for weight in weights]
        packed = first.new_empty(sum(sizes))
        for weight, place in zip(weights, packed.split(sizes), strict=True):
            torch.ops.dafast_C.pack_linear(weight.contiguous(), place)
        return packed

    def free_values(self) -> None:
        """Replaces the weights as they were given by ones without memory, on "meta".

        The kernel still computes, the reference no longer.
        """
        for name in ("proj", "fc1", "fc2", "qkv"):
            layer = getattr(self, name)
            if layer is not None and self.packed.numel():
                object.__setattr__(self, name, (layer[0].detach().to("meta"), layer[1]))


def why_not_rows(dtype: torch.dtype, hidden: int, channels: int) -> str:
    """Why a block has no fast kernel on this machine; an empty string if it has."""
    if channels % PANEL or hidden % PANEL:
        return f"takes multiples of {PANEL} channels, not {channels} and {hidden}"
    return why_slow_packed(dtype)


def _norm(x: Tensor, norm: RowNorm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps)


def encoder_rows_reference(
    x: Tensor, mixed: Tensor, rows: PackedRows
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Specification of `encoder_rows`."""

    def linear(x: Tensor, layer: Linear) -> Tensor:
        weight, bias = layer
        return F.linear(x.to(weight.dtype).float(), weight.float(), bias.float())

    x = x + rows.ls1.float() * linear(mixed, rows.proj)
    hidden = F.gelu(linear(_norm(x, rows.norm2), rows.fc1))
    x = x + rows.ls2.float() * linear(hidden, rows.fc2)
    tap = None if rows.tap is None else _norm(x, rows.tap).to(mixed.dtype)
    qkv = None
    if rows.next_norm is not None and rows.qkv is not None:
        qkv = linear(_norm(x, rows.next_norm), rows.qkv).to(mixed.dtype)
    return x, tap, qkv


def _fake(
    x: Tensor, mixed: Tensor, packed: Tensor, vectors: Tensor, hidden: int, tap: bool, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, channels = x.shape
    return (
        torch.empty_like(x),
        mixed.new_empty((rows, channels if tap else 0)),
        mixed.new_empty((rows, columns)),
    )


def _cpp_forward(
    x: Tensor, mixed: Tensor, packed: Tensor, vectors: Tensor, hidden: int, tap: bool, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    outs = _fake(x, mixed, packed, vectors, hidden, tap, columns)
    torch.ops.dafast_C.encoder_rows(x, mixed, packed, vectors, hidden, *outs)
    return outs


_op = KernelOp(
    "encoder_rows(Tensor x, Tensor mixed, Tensor packed, Tensor vectors, int hidden, bool tap,"
    " int columns) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    cpp=_cpp_forward,
)


def _cpp_backend(
    x: Tensor, mixed: Tensor, rows: PackedRows
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    flat = (t.reshape(-1, t.shape[-1]).contiguous() for t in (x, mixed))
    columns = 0 if rows.qkv is None else len(rows.qkv[1])
    stream, tap, qkv = _op(
        *flat, rows.packed, rows.vectors, len(rows.fc1[1]), rows.tap is not None, columns
    )
    return (
        stream.view(x.shape),
        None if rows.tap is None else tap.view(x.shape),
        qkv.view(*x.shape[:-1], columns) if columns else None,
    )


def _cpp_limits(x: Tensor, mixed: Tensor, rows: PackedRows) -> str:
    if x.dtype != torch.float32 or mixed.dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 x, and float32 or bfloat16 mixed, not {x.dtype} and {mixed.dtype}"
    if reason := why_not_rows(rows.packed.dtype, *rows.fc1[0].shape):
        return reason
    return "" if rows.packed.numel() else "the weights were packed without the C++ kernel"


_encoder_rows = Op(
    "encoder_rows",
    encoder_rows_reference,
    {"cpp": _extension.backend("cpp", "encoder_rows", _cpp_backend, _cpp_limits, backward=False)},
)


def encoder_rows(
    x: Tensor, mixed: Tensor, rows: PackedRows
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The rest of a transformer block behind attention, and the first layer of the next block.

    ``x += ls1 * proj(mixed)``, ``x += ls2 * fc2(gelu(fc1(norm2(x))))``, then the tap is the norm of
    x for the decoder, and qkv the first layer of the next block. With bfloat16 weights the inputs
    of linear layers are rounded to bfloat16; everything between the layers is float32.

    Args:
        x: Residual stream (..., C), float32.
        mixed: Result of attention (..., C), float32 or bfloat16.
        rows: The parameters.

    Returns:
        The stream behind the block, float32; the tap and qkv, (..., C) and (..., 3 C) in the dtype
        of ``mixed``, or None if ``rows`` has no parameters for them.

    Raises:
        ValueError: If shapes do not fit.
    """
    channels = rows.proj[0].shape[1]
    if x.shape != mixed.shape or x.ndim < 2 or x.shape[-1] != channels:
        raise ValueError(
            f"encoder_rows needs x and mixed (..., {channels}) of one shape; got "
            f"{tuple(x.shape)} and {tuple(mixed.shape)}"
        )
    return _encoder_rows(x, mixed, rows)
