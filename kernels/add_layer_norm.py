"""Residual add, LayerScale and LayerNorm: each tensor read once and written once, both ways.

A program holds whole rows in registers and goes through some of them one tile after the other, so
that the parameters are read once per program, and the backward can add up their gradients on the
way; those sums are added in a fixed order by a second kernel.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl
from torch import Tensor

from .quantize_fp8 import store_e4m3
from .runtime import (
    INTERPRET,
    cdiv,
    kernel,
    next_power_of_2,
    on_its_device,
    sum_over_programs,
)

_MIN_ROWS = 8  # of a program
_MAX_PROGRAMS = 1024


@kernel(do_not_specialize=["rows", "program_rows"])
def _add_layer_norm_fwd_kernel(
    x_ptr, branch_ptr, gamma_ptr, weight_ptr, bias_ptr, s_ptr, n_ptr, stats_ptr, scale_ptr,
    rows, channels, program_rows, eps,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, LANE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    column = tl.max_contiguous(tl.arange(0, BLOCK_C), LANE)  # elements of a lane, at most
    inside = column < channels
    gamma = tl.load(gamma_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    first = tl.program_id(0) * program_rows
    for start in range(first, tl.minimum(first + program_rows, rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        valid = row < rows
        mask = valid[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * channels + column[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        branch = tl.load(branch_ptr + at, mask=mask, other=0.0).to(tl.float32)
        rounded = (x + branch * gamma).to(s_ptr.dtype.element_ty)
        tl.store(s_ptr + at, rounded, mask=mask)
        s = rounded.to(tl.float32)
        mean = tl.sum(s, 1) / channels
        centered = tl.where(mask, s - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centered * centered, 1) / channels + eps)
        n = centered * rstd[:, None] * weight + bias
        if scale_ptr is not None:
            store_e4m3(n_ptr, scale_ptr, at, row, n, mask, valid, INTERPRETED)
        else:
            tl.store(n_ptr + at, n.to(n_ptr.dtype.element_ty), mask=mask)
            tl.store(stats_ptr + row, mean, mask=valid)
            tl.store(stats_ptr + rows + row, rstd, mask=valid)


@kernel(do_not_specialize=["rows", "program_rows"])
def _add_layer_norm_bwd_kernel(
    grad_s_ptr, grad_n_ptr, s_ptr, branch_ptr, gamma_ptr, weight_ptr, stats_ptr,
    grad_x_ptr, grad_branch_ptr, partial_ptr,
    rows, channels, program_rows,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, LANE: tl.constexpr,
):  # fmt: skip
    column = tl.max_contiguous(tl.arange(0, BLOCK_C), LANE)  # elements of a lane, at most
    inside = column < channels
    gamma = tl.load(gamma_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    gamma_sum = tl.zeros((BLOCK_C,), tl.float32)
    weight_sum = tl.zeros((BLOCK_C,), tl.float32)
    bias_sum = tl.zeros((BLOCK_C,), tl.float32)
    first = tl.program_id(0) * program_rows
    for start in range(first, tl.minimum(first + program_rows, rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        valid = row < rows
        mask = valid[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * channels + column[None, :]
        branch = tl.load(branch_ptr + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        if grad_s_ptr is not None:
            grad = tl.load(grad_s_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if grad_n_ptr is not None:
            s = tl.load(s_ptr + at, mask=mask, other=0.0).to(tl.float32)
            grad_n = tl.load(grad_n_ptr + at, mask=mask, other=0.0).to(tl.float32)
            mean = tl.load(stats_ptr + row, mask=valid, other=0.0)[:, None]
            rstd = tl.load(stats_ptr + rows + row, mask=valid, other=0.0)[:, None]
            normed = tl.where(mask, (s - mean) * rstd, 0.0)
            ahead = grad_n * weight
            along = tl.sum(ahead, 1) / channels
            across = tl.sum(ahead * normed, 1) / channels
            grad += rstd * (ahead - along[:, None] - across[:, None] * normed)
            weight_sum += tl.sum(grad_n * normed, 0)
            bias_sum += tl.sum(grad_n, 0)
        gamma_sum += tl.sum(grad * branch, 0)
        tl.store(grad_x_ptr + at, grad.to(grad_x_ptr.dtype.element_ty), mask=mask)
        grad_branch = (grad * gamma).to(grad_branch_ptr.dtype.element_ty)
        tl.store(grad_branch_ptr + at, grad_branch, mask=mask)
    at = partial_ptr + tl.program_id(0) * (3 * channels) + column
    tl.store(at, gamma_sum, mask=inside)
    tl.store(at + channels, weight_sum, mask=inside)
    tl.store(at + 2 * channels, bias_sum, mask=inside)


@functools.lru_cache(1024)
def _launch(
    rows: int, channels: int, element_size: int, block_r: int
) -> tuple[int, tuple[int, int, int], dict[str, int]]:
    """Number of programs, and the sizes and options that both kernels share.

    A lane has 16 bytes of s, whose dtype is the widest, and all warps are adjacent on a row.
    So no two warps hold different rows, and sums over rows need no exchange between them.
    """
    block_c = next_power_of_2(channels)
    lane = 16 // element_size
    tiles = cdiv(max(_MIN_ROWS, cdiv(rows, _MAX_PROGRAMS)), block_r)
    return cdiv(rows, tiles * block_r), (rows, channels, tiles * block_r), {
        "BLOCK_R": block_r, "BLOCK_C": block_c, "LANE": lane,
        "num_warps": min(16, max(1, block_c // (32 * lane))),
    }  # fmt: skip


@on_its_device
def add_layer_norm_fwd(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    sum_dtype: torch.dtype,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the forward: one kernel.

    Args:
        x: (..., C); copied if it is not contiguous.
        branch: Likewise, of the same shape.
        gamma: (C).
        weight: (C).
        bias: (C).
        eps: Added to the variance.
        sum_dtype: Of the sum s.
        dtype: Of the normalised n.

    Returns:
        s and n (..., C), and for the backward mean and inverse standard deviation per row (2, R),
        float32.
    """
    s = torch.empty(x.shape, dtype=sum_dtype, device=x.device)
    n = torch.empty(x.shape, dtype=dtype, device=x.device)
    rows = x.numel() // x.shape[-1]
    stats = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    _run_fwd((x, branch, gamma, weight, bias), (s, n, stats, None), eps)
    return s, n, stats


@on_its_device
def add_layer_norm_fp8_fwd(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    sum_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the same kernel with n in e4m3, and its rows' scales instead of statistics.

    Args:
        x: As for `add_layer_norm_fwd`, like the others.
        branch: (..., C).
        gamma: (C).
        weight: (C).
        bias: (C).
        eps: Added to the variance.
        sum_dtype: Of the sum s.

    Returns:
        s (..., C), and n in e4m3 (..., C) with its scales (...), float32.
    """
    s = torch.empty(x.shape, dtype=sum_dtype, device=x.device)
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    _run_fwd((x, branch, gamma, weight, bias), (s, values, None, scale), eps)
    return s, values, scale


def _run_fwd(inputs: tuple[Tensor, ...], results: tuple[Tensor | None, ...], eps: float) -> None:
    x, s = inputs[0], results[0]
    if x.numel() == 0 or s is None:
        return
    channels = x.shape[-1]
    programs, sizes, options = _launch(x.numel() // channels, channels, s.element_size(), 4)
    # No contraction to FMA: two lanes that add each other's square would contract one each, and
    # then hold different last digits of the one number that is stored.
    _add_layer_norm_fwd_kernel[(programs,)](
        *map(Tensor.contiguous, inputs), *results, *sizes, eps, **options,
        INTERPRETED=INTERPRET, enable_fp_fusion=False,
    )  # fmt: skip


@on_its_device
def add_layer_norm_bwd(
    grad_s: Tensor | None,
    grad_n: Tensor | None,
    s: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    stats: Tensor,
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the backward: one kernel over the tensors, one that adds up its programs' sums.

    Args:
        grad_s: Gradient of s (..., C), or None.
        grad_n: Gradient of n (..., C), or None.
        s: From the forward.
        branch: As in the forward.
        gamma: As in the forward.
        weight: As in the forward.
        stats: From the forward.
        x_dtype: Dtype of the gradient of x.

    Returns:
        Gradients of x and of branch (..., C), and of gamma, weight and bias (3, C), these float32.
    """
    grad_x = torch.empty(s.shape, dtype=x_dtype, device=s.device)
    grad_branch = torch.empty(branch.shape, dtype=branch.dtype, device=s.device)
    if s.numel() == 0:
        return grad_x, grad_branch, s.new_zeros((3, s.shape[-1]), dtype=torch.float32)
    grad_s = None if grad_s is None else grad_s.contiguous()
    grad_n = None if grad_n is None else grad_n.contiguous()
    channels = s.shape[-1]
    programs, sizes, options = _launch(s.numel() // channels, channels, s.element_size(), 2)
    partial = torch.empty((programs, 3 * channels), dtype=torch.float32, device=s.device)
    _add_layer_norm_bwd_kernel[(programs,)](
        grad_s, grad_n, s, branch.contiguous(), gamma.contiguous(), weight.contiguous(), stats,
        grad_x, grad_branch, partial, *sizes, **options, enable_fp_fusion=True,
    )  # fmt: skip
    return grad_x, grad_branch, sum_over_programs(partial).unflatten(0, (3, -1))
