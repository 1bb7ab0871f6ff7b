"""Bias, residuals and ReLU after a convolution, in one pass; channels-last maps."""

from __future__ import annotations

import functools

import torch
import triton.language as tl
from torch import Tensor

from .runtime import cdiv, kernel, next_power_of_2, on_its_device, sum_over_programs

_TILE = 2048  # elements in 16 bits: 16 bytes twice for each thread
_MAX_BLOCK_C = 256
_MIN_ROWS = 32  # of a program of the backward
_MAX_CHUNKS = 512  # of rows, in the backward


@kernel(do_not_specialize=["rows"])
def _bias_relu_add_fwd_kernel(
    x_ptr, bias_ptr, residual_ptr, other_ptr, out_ptr, rows, blocks,
    C: tl.constexpr, RESIDUALS: tl.constexpr, RELU: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    column = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = (tl.program_id(0) // blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = column < C
    mask = (row < rows)[:, None] & inside[None, :]
    at = row.to(tl.int64)[:, None] * C + column[None, :]
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    out = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
    if RESIDUALS >= 1:
        out += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if RESIDUALS == 2:
        out += tl.load(other_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@kernel(do_not_specialize=["rows", "chunk_rows"])
def _bias_relu_add_bwd_kernel(
    grad_ptr, out_ptr, grad_x_ptr, partial_ptr, rows, chunk_rows, blocks,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    column = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < C
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    chunk = tl.program_id(0) // blocks
    first = chunk * chunk_rows
    for start in range(first, tl.minimum(first + chunk_rows, rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * C + column[None, :]
        out = tl.load(out_ptr + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.where(out <= 0, 0.0, grad)  # a NaN passes it, as in PyTorch
        tl.store(grad_x_ptr + at, grad.to(grad_x_ptr.dtype.element_ty), mask=mask)
        total += grad
    tl.store(partial_ptr + chunk * C + column, tl.sum(total, 0), mask=inside)


@functools.lru_cache(1024)
def _plan(channels: int, element_size: int) -> tuple[int, dict[str, int | bool]]:
    """Blocks of channels, and the options of a launch."""
    block_c = min(_MAX_BLOCK_C, next_power_of_2(channels))
    block_r = max(1, _TILE * 2 // (element_size * block_c))
    options = {"BLOCK_R": block_r, "BLOCK_C": block_c, "num_warps": 4, "enable_fp_fusion": True}
    return cdiv(channels, block_c), options


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


@on_its_device
def bias_relu_add_fwd(
    x: Tensor, bias: Tensor, residual: Tensor | None, other: Tensor | None, relu: bool
) -> Tensor:
    """Launches the forward: one kernel.

    Args:
        x: (B, C, H, W); copied if it is not channels last, as are the residuals.
        bias: (C).
        residual: Of the shape of ``x``, or None.
        other: Another one; only with ``residual``.
        relu: Whether negative sums become 0.

    Returns:
        (B, C, H, W), channels last, in the widest dtype of ``x`` and the residuals.
    """
    dtype = x.dtype
    residuals = [r for r in (residual, other) if r is not None]
    for r in residuals:
        dtype = torch.promote_types(dtype, r.dtype)
    out = _empty(x, dtype)
    if out.numel() == 0:
        return out
    x, channels = _dense(x), x.shape[1]
    maps = [_dense(r) for r in residuals]
    rows = x.numel() // channels
    blocks, options = _plan(channels, out.element_size())
    _bias_relu_add_fwd_kernel[(cdiv(rows, options["BLOCK_R"]) * blocks,)](
        x, bias.contiguous(), maps[0] if maps else x, maps[-1] if maps else x, out,
        rows, blocks, C=channels, RESIDUALS=len(maps), RELU=relu, **options,
    )  # fmt: skip
    return out


@on_its_device
def bias_relu_add_bwd(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Launches the backward of a call with a ReLU: one kernel, and one that adds up its sums.

    Args:
        grad: Gradient of the output (B, C, H, W); copied if it is not channels last.
        out: The output.

    Returns:
        Gradient of the sum that the ReLU was applied to, of the dtype of ``out``, and that of the
        bias (C), in float32.
    """
    grad_x, channels = _empty(out, out.dtype), out.shape[1]
    if out.numel() == 0:
        return grad_x, torch.zeros((channels,), dtype=torch.float32, device=out.device)
    rows = out.numel() // channels
    blocks, options = _plan(channels, out.element_size())
    tiles = cdiv(max(_MIN_ROWS, cdiv(rows, _MAX_CHUNKS)), options["BLOCK_R"])
    chunk_rows = tiles * options["BLOCK_R"]
    chunks = cdiv(rows, chunk_rows)
    partial = torch.empty((chunks, channels), dtype=torch.float32, device=out.device)
    _bias_relu_add_bwd_kernel[(chunks * blocks,)](
        _dense(grad),
        _dense(out),
        grad_x,
        partial,
        rows,
        chunk_rows,
        blocks,
        C=channels,
        **options,
    )
    return grad_x, sum_over_programs(partial)
