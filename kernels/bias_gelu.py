"""Bias and exact GELU, forward and backward; the gradient of the bias comes with that of x."""

from __future__ import annotations

import functools

import torch
import triton.language as tl
from torch import Tensor

from .runtime import cdiv, kernel, on_its_device, sum_over_programs

_BLOCK_C = 256
_MIN_ROWS = 32  # of a program
_MAX_CHUNKS = 256  # of rows


@kernel(do_not_specialize=["rows", "chunk_rows"])
def _bias_gelu_fwd_kernel(
    x_ptr, bias_ptr, out_ptr, rows, channels, chunk_rows, blocks,
    ADDED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    column = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < channels
    bias = tl.zeros((BLOCK_C,), tl.float32)
    if not ADDED:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    first = (tl.program_id(0) // blocks) * chunk_rows
    for start in range(first, tl.minimum(first + chunk_rows, rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * channels + column[None, :]
        z = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        out = z * (0.5 + 0.5 * tl.erf(z * 0.7071067811865476))
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@kernel(do_not_specialize=["rows", "chunk_rows"])
def _bias_gelu_bwd_kernel(
    grad_ptr, x_ptr, bias_ptr, grad_x_ptr, partial_ptr, out_ptr, rows, channels, chunk_rows, blocks,
    ADDED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    column = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < channels
    bias = tl.zeros((BLOCK_C,), tl.float32)
    if not ADDED:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    chunk = tl.program_id(0) // blocks
    first = chunk * chunk_rows
    for start in range(first, tl.minimum(first + chunk_rows, rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * channels + column[None, :]
        z = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        below = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)  # normal distribution and its density
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        grad_x = grad * (below + z * density)
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
        if OUT:  # the values of the forward again
            tl.store(out_ptr + at, (z * below).to(out_ptr.dtype.element_ty), mask=mask)
        total += tl.where(mask, grad_x, 0.0)
    tl.store(partial_ptr + chunk * channels + column, tl.sum(total, 0), mask=inside)


@functools.lru_cache(1024)
def _launch(
    rows: int, channels: int, element_size: int, added: bool
) -> tuple[int, int, tuple[int, int, int, int], dict[str, int | bool]]:
    """Chunks of rows, programs (a chunk times a block of columns), and sizes and options."""
    block_r = 8 if element_size == 2 else 4
    tiles = cdiv(max(_MIN_ROWS, cdiv(rows, _MAX_CHUNKS)), block_r)
    chunks = cdiv(rows, tiles * block_r)
    blocks = cdiv(channels, _BLOCK_C)
    return chunks, chunks * blocks, (rows, channels, tiles * block_r, blocks), {
        "ADDED": added, "BLOCK_R": block_r, "BLOCK_C": _BLOCK_C, "num_warps": 4,
        "enable_fp_fusion": True,
    }  # fmt: skip


@on_its_device
def bias_gelu_fwd(x: Tensor, bias: Tensor, added: bool) -> Tensor:
    """Launches the forward: one kernel.

    Args:
        x: (..., C); copied if it is not contiguous.
        bias: (C).
        added: Whether x holds the bias already.

    Returns:
        (..., C) in the dtype of x.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    channels = x.shape[-1]
    plan = _launch(x.numel() // channels, channels, x.element_size(), added)
    _, programs, sizes, options = plan
    _bias_gelu_fwd_kernel[(programs,)](x.contiguous(), bias.contiguous(), out, *sizes, **options)
    return out


@on_its_device
def bias_gelu_bwd(
    grad: Tensor, x: Tensor, bias: Tensor, added: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Launches the backward: one kernel over the tensors, one that adds up its programs' sums.

    Args:
        grad: Gradient of the output (..., C).
        x: As in the forward.
        bias: As in the forward.
        added: As in the forward.
        out: Gets the output of the forward again, to the same bits: (..., C), contiguous.

    Returns:
        Gradients of x (..., C) in its dtype and of the bias (C) in float32.
    """
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return grad_x, bias.new_zeros(bias.shape, dtype=torch.float32)
    channels = x.shape[-1]
    plan = _launch(x.numel() // channels, channels, x.element_size(), added)
    chunks, programs, sizes, options = plan
    partial = torch.empty((chunks, channels), dtype=torch.float32, device=x.device)
    _bias_gelu_bwd_kernel[(programs,)](
        grad.contiguous(), x.contiguous(), bias.contiguous(), grad_x, partial,
        grad_x if out is None else out, *sizes, OUT=out is not None, **options,
    )  # fmt: skip
    return grad_x, sum_over_programs(partial)


@on_its_device
def bias_gelu_bwd_with_output(
    grad: Tensor, x: Tensor, bias: Tensor, added: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the backward, whose first kernel also writes the output of the forward again.

    Args:
        grad: Gradient of the output (..., C).
        x: As in the forward.
        bias: As in the forward.
        added: As in the forward.

    Returns:
        Gradients of x (..., C) in its dtype and of the bias (C) in float32, and the output (..., C)
        in the dtype of x, equal to the forward's to the bit.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return *bias_gelu_bwd(grad, x, bias, added, out), out
