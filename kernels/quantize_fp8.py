"""Rows of a tensor, or of its GELU, in e4m3 with a scale each: read once, written in one byte."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .runtime import INTERPRET, kernel, next_power_of_2, on_its_device


@triton.jit
def store_e4m3(values_ptr, scale_ptr, at, row, y, mask, valid, INTERPRETED: tl.constexpr):
    """Stores whole rows ``y`` (R, C), float32 and 0 outside of ``mask``, and their scales.

    Divisions are exact, one of each kind for a row: the values are those of the reference. A row
    of zeros has the scale 0, one with NaN the scale NaN.
    """
    # Magnitudes are ordered as their bits are, NaN above all.
    most = tl.max(tl.abs(y).to(tl.int32, bitcast=True), 1).to(tl.float32, bitcast=True)
    divisor = tl.where(most == 0.0, 1.0, most)
    steps = tl.math.div_rn(tl.full(most.shape, 448.0, tl.float32), divisor)
    steps = tl.minimum(steps, 3.4028234663852886e38)  # of an infinite quotient
    scaled = y * steps[:, None]
    if INTERPRETED:
        # The interpreter drops digits; here none is left to drop: 3 below the first one, and none
        # below 2^-9. The sum with 2^23 units of the last place rounds to the nearest even.
        bits = tl.abs(scaled).to(tl.int32, bitcast=True)
        power = tl.maximum((bits >> 23) - 127, -6)
        magic = ((power + 147) << 23).to(tl.float32, bitcast=True)  # 2^(power - 3 + 23)
        rounded = (tl.abs(scaled) + magic) - magic
        scaled = tl.where(scaled < 0, -rounded, rounded)
    tl.store(values_ptr + at, scaled.to(values_ptr.dtype.element_ty), mask=mask)
    scale = tl.math.div_rn(most, tl.full(most.shape, 448.0, tl.float32))
    tl.store(scale_ptr + row, scale, mask=valid)


@kernel(do_not_specialize=["rows"])
def _quantize_fp8_kernel(
    x_ptr, values_ptr, scale_ptr, rows, channels,
    GELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, LANE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    column = tl.max_contiguous(tl.arange(0, BLOCK_C), LANE)  # elements of a lane
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = row < rows
    mask = valid[:, None] & (column < channels)[None, :]
    at = row.to(tl.int64)[:, None] * channels + column[None, :]
    y = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        y = y * (0.5 + 0.5 * tl.erf(y * 0.7071067811865476))
    store_e4m3(values_ptr, scale_ptr, at, row, y, mask, valid, INTERPRETED)


@functools.lru_cache(1024)
def _launch(rows: int, channels: int, element_size: int, gelu: bool) -> tuple[int, dict[str, int]]:
    """Number of programs, and the options: a lane reads 16 bytes, a program some 4096 values."""
    block_c, lane = next_power_of_2(channels), 16 // element_size
    block_r = max(1, min(4096 // block_c, 4))
    return -(-rows // block_r), {
        "GELU": gelu, "BLOCK_R": block_r, "BLOCK_C": block_c, "LANE": lane,
        "INTERPRETED": INTERPRET, "num_warps": min(16, max(1, block_c // (32 * lane))),
        "enable_fp_fusion": True,
    }  # fmt: skip


@on_its_device
def quantize_fp8_fwd(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Launches the kernel.

    Args:
        x: (..., C); copied if it is not contiguous.
        gelu: Whether to quantise the GELU of x.

    Returns:
        The values (..., C), e4m3, and the scales (...), float32.
    """
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    if values.numel() == 0:
        return values, scale
    channels = x.shape[-1]
    rows = x.numel() // channels
    programs, options = _launch(rows, channels, x.element_size(), gelu)
    _quantize_fp8_kernel[(programs,)](x.contiguous(), values, scale, rows, channels, **options)
    return values, scale
