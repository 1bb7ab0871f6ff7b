"""The part of a transformer block after attention, row by row, with int8 products."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp
from .linear_int8 import Int8Weight, linear_int8_reference, why_slow_int8


class Int8Linear(NamedTuple):
    """Weights (N, K) from `quantize_weight`, and bias (N)."""

    weight: Int8Weight
    bias: Tensor


class RowNorm(NamedTuple):
    """Parameters of a LayerNorm over C channels."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True, eq=False)
class EncoderRows:
    """Parameters of `encoder_rows_int8`.

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

    proj: Int8Linear
    ls1: Tensor
    norm2: RowNorm
    fc1: Int8Linear
    fc2: Int8Linear
    ls2: Tensor
    tap: RowNorm | None
    next_norm: RowNorm | None
    qkv: Int8Linear | None
    packed: Tensor = field(init=False)
    sums: Tensor = field(init=False)
    vectors: Tensor = field(init=False)

    # `Op.select` keeps arguments that have a hash; it must not keep weights.
    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        packed: list[Tensor] = []
        sums: list[Tensor] = []
        vectors: list[Tensor] = []

        def add(part: Int8Linear | RowNorm | Tensor | None) -> None:
            if isinstance(part, Int8Linear):
                packed.append(part.weight.packed)
                sums.append(part.weight.sums)
                vectors.extend((part.weight.scale, part.bias))
            elif isinstance(part, RowNorm):
                vectors.extend((part.weight, part.bias, torch.tensor([part.eps])))
            elif part is not None:
                vectors.append(part)

        for part in (self.proj, self.ls1, self.norm2, self.fc1, self.fc2, self.ls2, self.tap,
                     self.next_norm, self.qkv):  # fmt: skip
            add(part)
        whole = torch.cat(packed)
        object.__setattr__(self, "packed", whole)
        # The layers refer to their parts of it, so that no second copy is kept.
        views = iter(whole.split([len(part) for part in packed]))
        for name in ("proj", "fc1", "fc2", "qkv"):
            layer = getattr(self, name)
            if layer is not None:
                weight = layer.weight._replace(packed=next(views))
                object.__setattr__(self, name, layer._replace(weight=weight))
        object.__setattr__(self, "sums", torch.cat(sums))
        object.__setattr__(self, "vectors", torch.cat([v.detach().float() for v in vectors]))


def _norm(x: Tensor, norm: RowNorm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps)


def encoder_rows_int8_reference(
    x: Tensor, mixed: Tensor, rows: EncoderRows
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The specification in plain PyTorch."""
    x = x + rows.ls1.float() * linear_int8_reference(mixed.float(), *rows.proj)
    hidden = F.gelu(linear_int8_reference(_norm(x, rows.norm2), *rows.fc1))
    x = x + rows.ls2.float() * linear_int8_reference(hidden, *rows.fc2)
    tap = None if rows.tap is None else _norm(x, rows.tap).to(mixed.dtype)
    qkv = None
    if rows.next_norm is not None and rows.qkv is not None:
        qkv = linear_int8_reference(_norm(x, rows.next_norm), *rows.qkv).to(mixed.dtype)
    return x, tap, qkv


def _fake(
    x: Tensor, mixed: Tensor, packed: Tensor, sums: Tensor, vectors: Tensor, hidden: int,
    tap: bool, columns: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows, channels = x.shape
    return (
        torch.empty_like(x),
        mixed.new_empty((rows, channels if tap else 0)),
        mixed.new_empty((rows, columns)),
    )


def _cpp_forward(
    x: Tensor, mixed: Tensor, packed: Tensor, sums: Tensor, vectors: Tensor, hidden: int,
    tap: bool, columns: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    outs = _fake(x, mixed, packed, sums, vectors, hidden, tap, columns)
    torch.ops.dafast_C.encoder_rows_int8(x, mixed, packed, sums, vectors, hidden, *outs)
    return outs


_op = KernelOp(
    "encoder_rows_int8(Tensor x, Tensor mixed, Tensor packed, Tensor sums, Tensor vectors,"
    " int hidden, bool tap, int columns) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    cpp=_cpp_forward,
)


def _cpp_backend(
    x: Tensor, mixed: Tensor, rows: EncoderRows
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    flat = (t.reshape(-1, t.shape[-1]).contiguous() for t in (x, mixed))
    columns = 0 if rows.qkv is None else len(rows.qkv.bias)
    stream, tap, qkv = _op(
        *flat, rows.packed, rows.sums, rows.vectors, len(rows.fc1.bias), rows.tap is not None,
        columns,
    )  # fmt: skip
    return (
        stream.view(x.shape),
        None if rows.tap is None else tap.view(x.shape),
        qkv.view(*x.shape[:-1], columns) if columns else None,
    )


def _cpp_limits(x: Tensor, mixed: Tensor, rows: EncoderRows) -> str:
    if x.dtype != torch.float32 or mixed.dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 x, and float32 or bfloat16 mixed, not {x.dtype} and {mixed.dtype}"
    if x.shape[-1] % 16 or len(rows.fc1.bias) % 16:
        return f"takes multiples of 16 channels, not {x.shape[-1]} and {len(rows.fc1.bias)}"
    if not rows.packed.numel():
        return "the weights were quantised without the C++ extension"
    return why_slow_int8()


_encoder_rows_int8 = Op(
    "encoder_rows_int8",
    encoder_rows_int8_reference,
    {
        "cpp": _extension.backend(
            "cpp", "encoder_rows_int8", _cpp_backend, _cpp_limits, backward=False
        )
    },
)


def encoder_rows_int8(
    x: Tensor, mixed: Tensor, rows: EncoderRows
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The rest of a transformer block behind attention, and the first layer of the next block.

    ``x += ls1 * proj(mixed)``, ``x += ls2 * fc2(gelu(fc1(norm2(x))))``, then the tap is the norm of
    x for the decoder, and qkv the first layer of the next block. Linear layers are `linear_int8`;
    everything between them is float32.

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
    channels = rows.proj.weight.values.shape[1]
    if x.shape != mixed.shape or x.ndim < 2 or x.shape[-1] != channels:
        raise ValueError(
            f"encoder_rows_int8 needs x and mixed (..., {channels}) of one shape; got "
            f"{tuple(x.shape)} and {tuple(mixed.shape)}"
        )
    return _encoder_rows_int8(x, mixed, rows)
