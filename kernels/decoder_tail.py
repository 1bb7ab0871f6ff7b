"""The decoder's tail: bilinear upsampling, conv3x3, ReLU, conv1x1 to one channel, activation.

Neither the upsampled map nor the hidden one is ever written. A tap of a convolution mixes channels
and an interpolation mixes pixels, so the two commute; the kernel uses it along the height. A
program walks down the rows of the small map, interpolates each along the width, multiplies it with
the weights of all nine taps, and blends the products of two neighbouring rows for every upsampled
row that lies between them. Where matrix units are much faster than the rest, it multiplies first,
and interpolates the products along the width by another product.
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
    target,
)


@triton.jit
def _neighbours(index, count, scale, size):
    """The pixel of the small map before an upsampled one, and the weights of it and of the next.

    In float32, as PyTorch has it. Outside of the upsampled map, in its padding, both weights are 0.
    """
    at = tl.minimum(tl.maximum(index, 0), count - 1).to(tl.float32) * scale
    before = tl.maximum(tl.minimum(at.to(tl.int32), size - 2), 0)
    t = at - before.to(tl.float32)
    inside = (index >= 0) & (index < count)
    return before, tl.where(inside, 1.0 - t, 0.0), tl.where(inside, t, 0.0)


@triton.jit
def _load(at, row_mask, column_mask, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(at, mask=row_mask[:, None] & column_mask[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _pixels(
    row_ptr, column, dx, start, in_width, width, scale_x, stride_xw,
    C: tl.constexpr, BLOCK_C: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Pixels of the upsampled width at column + dx - 1, for the channels from ``start``."""
    c = start + tl.arange(0, BLOCK_C)
    before, s, t = _neighbours(column + (dx - 1), width, scale_x, in_width)
    at = row_ptr + before[:, None] * stride_xw + c[None, :]
    a = _load(at, before >= 0, c < C, MASKED).to(tl.float32)
    at += tl.minimum(in_width - 1, 1) * stride_xw
    b = _load(at, before >= 0, c < C, MASKED).to(tl.float32)
    return (a * s[:, None] + b * t[:, None]).to(row_ptr.dtype.element_ty)


@triton.jit
def _taps(
    upper, middle, lower, pixels, weight1_ptr, dx, start,
    C: tl.constexpr, N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Adds the pixels' products with the three taps of column ``dx``."""
    c, n = start + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    at = weight1_ptr + dx * C + n[None, :] * (9 * C) + c[:, None]
    w = _load(at, c < C, n < N, MASKED)
    upper = dot(pixels, w, upper, PRECISION, INTERPRETED)
    w = _load(at + 3 * C, c < C, n < N, MASKED)
    middle = dot(pixels, w, middle, PRECISION, INTERPRETED)
    w = _load(at + 6 * C, c < C, n < N, MASKED)
    lower = dot(pixels, w, lower, PRECISION, INTERPRETED)
    return upper, middle, lower


@triton.jit
def _row_products(
    row_ptr, weight1_ptr, column, blocks, in_width, width, scale_x, stride_xw,
    C: tl.constexpr, N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    ORDER: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A row of the small map, interpolated along the width, times the weights.

    Returns three tiles (column, N): what the row gives as the upper, middle and lower row of a
    window.
    """
    MASKED: tl.constexpr = C % BLOCK_C != 0 or N != BLOCK_N
    upper = tl.zeros((column.shape[0], BLOCK_N), tl.float32)
    middle, lower = upper, upper
    if ORDER == "unrolled":  # a quarter fewer instructions: columns and weights are kept
        for block in range(blocks):
            for dx in tl.static_range(3):
                pixels = _pixels(row_ptr, column, dx, block * BLOCK_C, in_width, width, scale_x,
                                 stride_xw, C, BLOCK_C, MASKED)  # fmt: skip
                upper, middle, lower = _taps(
                    upper, middle, lower, pixels, weight1_ptr, dx, block * BLOCK_C,
                    C, N, BLOCK_C, BLOCK_N, MASKED, PRECISION, INTERPRETED,
                )  # fmt: skip
    elif ORDER == "ahead":
        # Hopper: Triton puts pixels that the loop carries into shared memory, so that one wait goes
        # with a product; those just computed come from registers, and each wgmma is waited for.
        last = 3 * blocks - 1
        pixels = _pixels(row_ptr, column, 0, 0, in_width, width, scale_x, stride_xw,
                         C, BLOCK_C, MASKED)  # fmt: skip
        for step in range(3 * blocks):
            upper, middle, lower = _taps(
                upper, middle, lower, pixels, weight1_ptr, step % 3, step // 3 * BLOCK_C,
                C, N, BLOCK_C, BLOCK_N, MASKED, PRECISION, INTERPRETED,
            )  # fmt: skip
            coming = tl.minimum(step + 1, last)
            pixels = _pixels(row_ptr, column, coming % 3, coming // 3 * BLOCK_C, in_width, width,
                             scale_x, stride_xw, C, BLOCK_C, MASKED)  # fmt: skip
    else:  # fewer registers
        for step in range(3 * blocks):
            pixels = _pixels(row_ptr, column, step % 3, step // 3 * BLOCK_C, in_width, width,
                             scale_x, stride_xw, C, BLOCK_C, MASKED)  # fmt: skip
            upper, middle, lower = _taps(
                upper, middle, lower, pixels, weight1_ptr, step % 3, step // 3 * BLOCK_C,
                C, N, BLOCK_C, BLOCK_N, MASKED, PRECISION, INTERPRETED,
            )  # fmt: skip
    return upper, middle, lower


@triton.jit
def _interpolation(
    index, small, count, scale, STEPS: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    """The matrix (upsampled columns, small ones) that interpolates along the width.

    Columns lie at multiples of 1 / STEPS, so that both weights of a column are exact in 16 bits and
    sum to 1; rounded one by one they would not, which shows as stripes. Outside of the upsampled
    map, in its padding, the weights are 0. Transposed, a thread needs the place of one column only.
    """
    at = tl.minimum(tl.maximum(index, 0), count - 1).to(tl.float32) * scale
    at = tl.floor(at * STEPS + 0.5) * (1.0 / STEPS)
    at = tl.where((index >= 0) & (index < count), at, -16777216.0)  # far from all small columns
    weights = tl.maximum(1.0 - tl.abs(small[:, None] - at[None, :]), 0.0)
    return tl.trans(weights.to(dtype))


@triton.jit
def _tap(
    x, matrix, weight1_ptr, tap, out,
    C: tl.constexpr, N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Adds the interpolated products of a row of the small map with one tap."""
    c, n = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    at = weight1_ptr + tap * C + n[None, :] * (9 * C) + c[:, None]
    w = _load(at, c < C, n < N, C != BLOCK_C or N != BLOCK_N)
    products = tl.zeros((x.shape[0], BLOCK_N), tl.float32)
    products = dot(x, w, products, PRECISION, INTERPRETED)
    return dot(matrix, products.to(x.dtype), out, PRECISION, INTERPRETED)


@triton.jit
def _interpolated_products(
    row_ptr, weight1_ptr, column, in_width, width, scale_x, stride_xw,
    C: tl.constexpr, N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """As `_row_products`: the products with all taps first, then their interpolation.

    As many small columns as upsampled ones are read, which is enough where the map is enlarged.
    """
    BLOCK_W: tl.constexpr = column.shape[0]
    first = tl.program_id(0) * BLOCK_W
    begin, _, _ = _neighbours(first - 1, width, scale_x, in_width)
    small = begin + tl.arange(0, BLOCK_W)
    c = tl.arange(0, BLOCK_C)
    at = row_ptr + small[:, None] * stride_xw + c[None, :]
    x = tl.load(at, mask=(small < in_width)[:, None] & (c < C)[None, :], other=0.0)
    upper = tl.zeros((BLOCK_W, BLOCK_N), tl.float32)
    middle, lower = upper, upper
    for dx in range(3):  # not unrolled: addresses of all taps would take too many registers
        matrix = _interpolation(column + (dx - 1), small.to(tl.float32), width, scale_x, STEPS,
                                row_ptr.dtype.element_ty)  # fmt: skip
        upper = _tap(x, matrix, weight1_ptr, dx, upper, C, N, BLOCK_C, BLOCK_N,
                     PRECISION, INTERPRETED)  # fmt: skip
        middle = _tap(x, matrix, weight1_ptr, dx + 3, middle, C, N, BLOCK_C, BLOCK_N,
                      PRECISION, INTERPRETED)  # fmt: skip
        lower = _tap(x, matrix, weight1_ptr, dx + 6, lower, C, N, BLOCK_C, BLOCK_N,
                     PRECISION, INTERPRETED)  # fmt: skip
    return upper, middle, lower


@kernel(do_not_specialize=["blocks", "in_height", "in_width", "height", "width"])
def _decoder_tail_kernel(
    x_ptr, weight1_ptr, bias1_ptr, weight2_ptr, bias2_ptr, out_ptr,
    blocks, in_height, in_width, height, width, scale_y, scale_x,
    stride_xb, stride_xh, stride_xw,
    C: tl.constexpr, N: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    ORDER: tl.constexpr, STEPS: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """ROWS x BLOCK_W pixels of the output."""
    image = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * ROWS
    lane = tl.arange(0, BLOCK_W)
    column = tl.program_id(0) * BLOCK_W + lane
    n = tl.arange(0, BLOCK_N)
    x_ptr += image * stride_xb
    out_ptr += (image * height + first) * width + tl.program_id(0) * BLOCK_W
    # Of two neighbouring rows of the small map, `a` above `b`, the products.
    b_upper = tl.zeros((BLOCK_W, BLOCK_N), tl.float32)
    b_middle, b_lower = b_upper, b_upper
    # Sums of the two output rows whose windows have begun.
    older, newer = b_upper, b_upper
    y, end = first - 1, tl.minimum(first + ROWS, height) + 1
    row, s, t = _neighbours(y, height, scale_y, in_height)
    last_row, _, _ = _neighbours(end - 1, height, scale_y, in_height)
    for in_row in range(row, last_row + 2):
        a_upper, a_middle, a_lower = b_upper, b_middle, b_lower
        row_ptr = x_ptr + tl.minimum(in_row, in_height - 1).to(tl.int64) * stride_xh
        if ORDER == "products first":
            b_upper, b_middle, b_lower = _interpolated_products(
                row_ptr, weight1_ptr, column, in_width, width, scale_x, stride_xw,
                C, N, BLOCK_C, BLOCK_N, STEPS, PRECISION, INTERPRETED,
            )  # fmt: skip
        else:
            b_upper, b_middle, b_lower = _row_products(
                row_ptr, weight1_ptr, column, blocks, in_width, width, scale_x, stride_xw,
                C, N, BLOCK_C, BLOCK_N, ORDER, PRECISION, INTERPRETED,
            )  # fmt: skip
        while (row < in_row) & (y < end):  # the upsampled rows between them
            # Upsampled row y is the lower one in the window of output row y - 1, which is complete
            # with it, the middle one in that of y, and the upper one in that of y + 1.
            hidden = older + a_lower * s + b_lower * t
            older = newer + a_middle * s + b_middle * t
            newer = a_upper * s + b_upper * t
            if y > first:
                bias1 = tl.load(bias1_ptr + n, mask=n < N, other=0.0).to(tl.float32)
                hidden = tl.maximum(hidden + bias1[None, :], 0.0, propagate_nan=tl.PropagateNan.ALL)
                weight2 = tl.load(weight2_ptr + n, mask=n < N, other=0.0).to(tl.float32)
                value = tl.sum(hidden * weight2[None, :], 1) + tl.load(bias2_ptr).to(tl.float32)
                if ACTIVATION == 1:
                    value = tl.sigmoid(value)
                elif ACTIVATION == 2:
                    value = tl.exp(value)
                else:
                    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
                tl.store(out_ptr + (y - 1 - first) * width + lane, value, mask=column < width)
            y += 1
            row, s, t = _neighbours(y, height, scale_y, in_height)


@functools.lru_cache(1024)
def _tile(
    dtype: torch.dtype, channels: int, hidden: int, enlarges: bool, backend: str, arch: int | str,
    precision: str,
) -> dict[str, int | str]:  # fmt: skip
    """Tile sizes, warps and pipeline stages.

    Chosen so that no configuration spills on sm_80, sm_89, sm_90, sm_100, sm_120 and
    gfx942; see docs/kernels/decoder_tail.md.
    """
    units = matrix_units(backend, arch)
    half = dtype != torch.float32
    hip, hopper, blackwell = units == "mfma", units == "wgmma", units == "tcgen05"
    rows, block_w = (8, 32) if units == "interpreter" else (16, 64)
    block_c, order = 16, "rolled"
    if hopper and (half or precision == "tf32"):
        order = "ahead"
        block_c = next((c for c in ((64, 32) if half else (32,)) if channels % c == 0), 16)
        if half and enlarges and 64 < channels <= 128:
            block_c, order = 128, "products first"
    elif half:
        if channels >= 32 and (hip or blackwell):
            block_c = 32
        if not blackwell and channels % 16 == 0:
            order = "unrolled"
    return {
        "ROWS": rows, "BLOCK_W": block_w,
        "BLOCK_C": block_c, "BLOCK_N": max(16, next_power_of_2(hidden)), "ORDER": order,
        "STEPS": 256 if dtype == torch.bfloat16 else 2048,  # exact in the dtype's mantissa
        "num_warps": 4, "num_stages": 1 if hip else 2,
    }  # fmt: skip


def _scale(source: int, size: int) -> float:
    """Steps in the small map per step in the upsampled one; corners are aligned."""
    return (source - 1) / (size - 1) if size > 1 else 0.0


@on_its_device
def decoder_tail_fwd(
    x: Tensor, size: tuple[int, int],
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, activation: int,
) -> Tensor:  # fmt: skip
    """Launches the kernel.

    Args:
        x: (B, C, h, w), read in place where C has stride 1 (channels last), else copied.
        size: Height and width of the upsampled map.
        weight1: (N, C, 3, 3); copied unless it is channels last and of ``x``'s dtype.
        bias1: (N,).
        weight2: (1, N, 1, 1).
        bias2: (1,).
        activation: Of the output: 0 for a ReLU, 1 for a sigmoid, 2 for the exponential function.

    Returns:
        (B, 1, *size), float32.
    """
    batch, channels, in_height, in_width = x.shape
    height, width = size
    out = torch.empty((batch, 1, height, width), dtype=torch.float32, device=x.device)
    if out.numel() == 0:
        return out
    if x.stride(1) != 1:
        x = x.contiguous(memory_format=torch.channels_last)
    weight1 = weight1.to(x.dtype).contiguous(memory_format=torch.channels_last)
    precision = float32_precision() if x.dtype == torch.float32 else "tf32"
    scale_y, scale_x = _scale(in_height, height), _scale(in_width, width)
    # As many small columns as a program's 64 hold all neighbours of these and of the two next ones.
    enlarges = scale_x * 65 + 3 <= 64
    tile = _tile(x.dtype, channels, len(weight1), enlarges, *target(), precision)
    grid = (cdiv(width, tile["BLOCK_W"]), cdiv(height, tile["ROWS"]), batch)
    _decoder_tail_kernel[grid](
        x, weight1, bias1.contiguous(), weight2.contiguous(), bias2, out,
        cdiv(channels, tile["BLOCK_C"]), in_height, in_width, height, width,
        scale_y, scale_x, x.stride(0), x.stride(2), x.stride(3),
        C=channels, N=len(weight1), ACTIVATION=activation, **tile,
        PRECISION=precision, INTERPRETED=INTERPRET, enable_fp_fusion=True,
    )  # fmt: skip
    return out
