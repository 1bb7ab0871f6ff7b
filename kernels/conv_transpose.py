"""Transposed convolutions whose stride is their kernel: a product whose tiles are stored in place.

A pixel of the small map makes a patch of k x k pixels, and no two patches overlap. So the layer is
one product of (pixels, C) with (C, k * k * N), and only the place of each value is special.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .runtime import (
    INTERPRET,
    cdiv,
    dot,
    float32_precision,
    kernel,
    matrix_units,
    next_power_of_2,
    on_its_device,
    processors,
    target,
)


@triton.jit
def _tile_product(
    x_at, weight_at, row_mask, column_mask, stride_wc,
    C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The product of BLOCK_M pixels and BLOCK_N columns of the weights, in float32."""
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, C, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_at, mask=row_mask[:, None], other=0.0)
            w = tl.load(weight_at, mask=column_mask[None, :], other=0.0)
        else:
            inside = start + k < C
            x = tl.load(x_at, mask=row_mask[:, None] & inside[None, :], other=0.0)
            w = tl.load(weight_at, mask=inside[:, None] & column_mask[None, :], other=0.0)
        acc = dot(x, w, acc, PRECISION, INTERPRETED)
        x_at += BLOCK_K
        weight_at += BLOCK_K * stride_wc
    return acc


@kernel(do_not_specialize=["pixels", "width", "blocks"])
def _conv_transpose_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, pixels, width, columns, out_channels, span, blocks,
    C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """BLOCK_M pixels of the small map, BLOCK_N of the ``columns`` that each of them becomes.

    A column is (row of the patch, its column, output channel), ``span`` columns are one row of it.
    """
    pixel = (tl.program_id(0) // blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask, column_mask = pixel < pixels, column < columns
    k = tl.arange(0, BLOCK_K)
    at = x_ptr + pixel.to(tl.int64)[:, None] * C + k[None, :]
    weight_at = weight_ptr + k[:, None] * columns + column[None, :]
    out = _tile_product(at, weight_at, row_mask, column_mask, columns,
                        C, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION, INTERPRETED)  # fmt: skip
    bias = tl.load(bias_ptr + column % out_channels, mask=column_mask, other=0.0)
    out += bias.to(tl.float32)[None, :]
    row = (pixel // width).to(tl.int64)
    place = row * width * columns + (pixel % width).to(tl.int64) * span
    offset = (column // span).to(tl.int64) * width * span + column % span
    tl.store(out_ptr + place[:, None] + offset[None, :], out.to(out_ptr.dtype.element_ty),
             mask=row_mask[:, None] & column_mask[None, :])  # fmt: skip


@functools.lru_cache(1024)
def _tile(
    pixels: int, channels: int, columns: int, half: bool, backend: str, arch: int | str,
    precision: str, count: int,
) -> dict[str, int | bool]:  # fmt: skip
    """Tile sizes, warps and stages; small tiles while large ones leave processors idle."""
    units = matrix_units(backend, arch)
    block_m, block_n = 128, 128
    if not half or cdiv(pixels, 128) * cdiv(columns, 128) < 2 * count:
        block_m, block_n = 64, 64
    block_k = min(64 if half else 32, max(16, next_power_of_2(channels)))
    if precision == "ieee":
        block_k = 16
    return {
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
        "EVEN_K": channels % block_k == 0,
        "num_warps": 8 if block_m == 128 else 4, "num_stages": 1 if units == "mfma" else 2,
    }  # fmt: skip


@on_its_device
def conv_transpose_fwd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Launches the kernel.

    Args:
        x: (B, C, h, w); copied if it is not channels last.
        weight: (C, N, k, k); copied unless it is channels last and of ``x``'s dtype.
        bias: (N).

    Returns:
        (B, N, k * h, k * w) in the dtype of ``x``, channels last.
    """
    batch, channels, height, width = x.shape
    out_channels, size = weight.shape[1:3]
    out = torch.empty(
        (batch, out_channels, size * height, size * width), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    if out.numel() == 0:
        return out
    x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.to(x.dtype).contiguous(memory_format=torch.channels_last)
    pixels, columns = batch * height * width, size * size * out_channels
    half = x.dtype != torch.float32
    precision = "tf32" if half else float32_precision()
    tile = _tile(pixels, channels, columns, half, *target(), precision, processors())
    blocks = cdiv(columns, tile["BLOCK_N"])
    _conv_transpose_kernel[(cdiv(pixels, tile["BLOCK_M"]) * blocks,)](
        x, weight, bias.contiguous(), out, pixels, width, columns, out_channels,
        size * out_channels, blocks, C=channels, **tile,
        PRECISION=precision, INTERPRETED=INTERPRET, enable_fp_fusion=True,
    )  # fmt: skip
    return out
