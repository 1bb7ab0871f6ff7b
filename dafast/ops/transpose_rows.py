"""Exchanges two dimensions of a tensor; its rows stay contiguous."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp


def transpose_rows_reference(x: Tensor) -> Tensor:
    """Specification of `transpose_rows`."""
    return x.transpose(1, 2).contiguous()


def _empty_result(x: Tensor) -> Tensor:
    a, b, c, d = x.shape
    return x.new_empty((a, c, b, d))


def _cpp_forward(x: Tensor) -> Tensor:
    out = _empty_result(x)
    torch.ops.dafast_C.transpose_rows(x.contiguous(), out)
    return out


_op = KernelOp("transpose_rows(Tensor x) -> Tensor", fake=_empty_result, cpp=_cpp_forward)


_transpose_rows = Op(
    "transpose_rows",
    transpose_rows_reference,
    {"cpp": _extension.backend("cpp", "transpose_rows", _op, lambda _: "", backward=False)},
)


def transpose_rows(x: Tensor) -> Tensor:
    """``x.transpose(1, 2).contiguous()``; for inference.

    Args:
        x: (A, B, C, D), of any dtype.

    Returns:
        (A, C, B, D), contiguous.

    Raises:
        ValueError: If x does not have four dimensions.
    """
    if x.ndim != 4:
        raise ValueError(f"transpose_rows needs x (A, B, C, D); got {tuple(x.shape)}")
    return _transpose_rows(x)
