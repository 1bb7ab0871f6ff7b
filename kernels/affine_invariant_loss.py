"""Affine-invariant loss: masked median, MAD, normalisation and L1, forward and backward.

`masked_median.py` has the passes that find the medians and sum the deviations. Float sums have a
fixed order: every run gives the same bits.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .masked_median import (
    SIZES,
    STATE,
    _affine_invariant_loss_histogram_kernel,
    counting,
    load_block,
    statistics,
    sum_in_order,
)
from .runtime import cdiv, kernel, next_power_of_2, on_its_device
from .runtime import target as current_target

_COEFFICIENTS = 8  # float32 per map and region; see the reduce kernel
_PROGRAMS = 512  # four for each of 132 processors; smaller grids get fewer tiles a program


@triton.jit
def _sign(x):
    return (x > 0.0).to(tl.float32) - (x < 0.0).to(tl.float32)


@triton.jit
def _pixel_weight(area_ptr, valid, pixels, maps, r: tl.constexpr, REGIONS: tl.constexpr):
    """What a valid pixel of region ``r`` counts: region's share / valid pixels / maps, or 0."""
    area = pixels.to(tl.float32)
    share = 1.0
    if REGIONS == 2:
        first = tl.load(area_ptr).to(tl.float32)
        share = (first if r == 0 else area - first) / area
    count = tl.maximum(valid, 1).to(tl.float32) * maps.to(tl.float32)
    return tl.where(valid > 0, share / count, 0.0)


@triton.jit
def _normalisation(
    hist_ptr, area_ptr, state_ptr, deviations_ptr, coefficients_ptr, min_scale,
    maps, chunks, pixels, leader, r: tl.constexpr, DONE: tl.constexpr, BITS: tl.constexpr,
    REGIONS: tl.constexpr, STATE: tl.constexpr, COEFFICIENTS: tl.constexpr,
):  # fmt: skip
    """Medians, inverse scales, and the weight of a pixel, of region ``r`` of a map."""
    p_median, p_scale, clamped = statistics(
        hist_ptr + (r << BITS), state_ptr + r * STATE, deviations_ptr + r * chunks,
        chunks, min_scale, leader, DONE, BITS,
    )  # fmt: skip
    t = REGIONS + r
    t_median, t_scale, _ = statistics(
        hist_ptr + (t << BITS), state_ptr + t * STATE, deviations_ptr + t * chunks,
        chunks, min_scale, leader, DONE, BITS,
    )  # fmt: skip
    p_inverse, t_inverse = 1.0 / p_scale, 1.0 / t_scale
    at = coefficients_ptr + r * COEFFICIENTS
    tl.store(at, p_median, mask=leader)
    tl.store(at + 1, p_inverse, mask=leader)
    tl.store(at + 2, t_median, mask=leader)
    tl.store(at + 3, t_inverse, mask=leader)
    tl.store(at + 7, clamped.to(tl.float32), mask=leader)
    weight = _pixel_weight(area_ptr, tl.load(state_ptr + r * STATE), pixels, maps, r, REGIONS)
    return p_median, p_inverse, t_median, t_inverse, weight


@kernel(do_not_specialize=SIZES)
def _affine_invariant_loss_l1_kernel(
    prediction_ptr, target_ptr, mask_ptr, regions_ptr, hist_ptr, area_ptr, state_ptr,
    deviations_ptr, losses_ptr, signs_ptr, coefficients_ptr, min_scale,
    maps, chunks, tiles, units, stride_pb, stride_tb, stride_mb, stride_rb,
    DONE: tl.constexpr, BITS: tl.constexpr, BINS: tl.constexpr, REGIONS: tl.constexpr,
    STATE: tl.constexpr, COEFFICIENTS: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Medians and scales; this chunk's part of the loss, and of both sums that the backward needs.

    Losses are (maps, chunks); sums of e and of e * p_hat, e = sign(p_hat - t_hat), are
    (maps, REGIONS, 2, chunks). The coefficients get medians, inverse scales, the clamp.
    """
    map, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    SEGMENTS: tl.constexpr = 2 * REGIONS
    hist_ptr += (DONE - 1) * maps.to(tl.int64) * (SEGMENTS * BINS) + map * (SEGMENTS << BITS)
    state_ptr += map * (SEGMENTS * STATE)
    deviations_ptr += map * SEGMENTS * chunks
    signs_ptr += map * SEGMENTS * chunks + chunk
    coefficients_ptr += map * (REGIONS * COEFFICIENTS)
    leader = chunk == 0
    p_m, p_i, t_m, t_i, weight = _normalisation(
        hist_ptr, area_ptr + map, state_ptr, deviations_ptr, coefficients_ptr, min_scale,
        maps, chunks, units * UNIT, leader, 0, DONE, BITS, REGIONS, STATE, COEFFICIENTS,
    )  # fmt: skip
    p_m2, p_i2, t_m2, t_i2, weight2 = p_m, p_i, t_m, t_i, weight
    if REGIONS == 2:
        p_m2, p_i2, t_m2, t_i2, weight2 = _normalisation(
            hist_ptr, area_ptr + map, state_ptr, deviations_ptr, coefficients_ptr, min_scale,
            maps, chunks, units * UNIT, leader, 1, DONE, BITS, REGIONS, STATE, COEFFICIENTS,
        )  # fmt: skip

    losses, signs, along, signs2, along2 = 0.0, 0.0, 0.0, 0.0, 0.0
    for tile in range(tiles):
        prediction, target, valid, _, region = load_block(
            prediction_ptr, target_ptr, mask_ptr, regions_ptr, map, chunk * tiles + tile, units,
            stride_pb, stride_tb, stride_mb, stride_rb, UNIT, BLOCK,
        )  # fmt: skip
        first = region == 0
        p_hat = (prediction - tl.where(first, p_m, p_m2)) * tl.where(first, p_i, p_i2)
        t_hat = (target - tl.where(first, t_m, t_m2)) * tl.where(first, t_i, t_i2)
        ahead = p_hat - t_hat
        e = _sign(ahead)
        losses += tl.sum(tl.where(valid, tl.abs(ahead) * tl.where(first, weight, weight2), 0.0), 0)
        signs += tl.sum(tl.where(valid & first, e, 0.0), 0)
        along += tl.sum(tl.where(valid & first, e * p_hat, 0.0), 0)
        if REGIONS == 2:
            signs2 += tl.sum(tl.where(valid & (region == 1), e, 0.0), 0)
            along2 += tl.sum(tl.where(valid & (region == 1), e * p_hat, 0.0), 0)
    tl.store(losses_ptr + map * chunks + chunk, losses)
    tl.store(signs_ptr, signs)
    tl.store(signs_ptr + chunks, along)
    if REGIONS == 2:
        tl.store(signs_ptr + 2 * chunks, signs2)
        tl.store(signs_ptr + 3 * chunks, along2)


@kernel(do_not_specialize=["maps", "chunks", "units"])
def _affine_invariant_loss_reduce_kernel(
    area_ptr, state_ptr, losses_ptr, signs_ptr, coefficients_ptr, loss_ptr,
    maps, chunks, units,
    DONE: tl.constexpr, REGIONS: tl.constexpr, STATE: tl.constexpr,
    COEFFICIENTS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """One program per map: its coefficients for the backward; program 0 also sums the loss.

    Coefficients of a map's region: [0] [1] median and inverse scale of the prediction, [2] [3] of
    the target, then the factors in the gradient of a pixel of [4] sign(p_hat - t_hat),
    [5] p == median, [6] sign(p - median); [7] whether the prediction's scale was clamped.
    """
    map = tl.program_id(0).to(tl.int64)
    for r in tl.static_range(REGIONS):
        state = state_ptr + (map * (2 * REGIONS) + r) * STATE
        at = coefficients_ptr + (map * REGIONS + r) * COEFFICIENTS
        signs = signs_ptr + (map * REGIONS + r) * 2 * chunks
        valid, ties = tl.load(state), tl.load(state + 1)
        # Pixels above the median minus those below it: the sum of sign(p - median).
        below = tl.maximum(valid - 1, 0) // 2 - tl.load(state + 2 * DONE + 1)
        beyond = (valid - ties - 2 * below).to(tl.float32)
        weight = _pixel_weight(area_ptr + map, valid, units * UNIT, maps, r, REGIONS)
        by_sign = weight * tl.load(at + 1)
        by_scale = (
            -by_sign
            * sum_in_order(signs + chunks, chunks, 128)
            / tl.maximum(valid, 1).to(tl.float32)
        )
        by_scale = tl.where(tl.load(at + 7) != 0.0, 0.0, by_scale)
        tl.store(at + 4, by_sign)
        tied = by_sign * sum_in_order(signs, chunks, 128) + by_scale * beyond
        tl.store(at + 5, -tied / tl.maximum(ties, 1).to(tl.float32))
        tl.store(at + 6, by_scale)
    if map == 0:
        tl.store(loss_ptr, sum_in_order(losses_ptr, maps * chunks, 1024))


@kernel(do_not_specialize=["blocks", *SIZES[3:]])
def _affine_invariant_loss_bwd_kernel(
    grad_ptr, prediction_ptr, target_ptr, mask_ptr, regions_ptr, coefficients_ptr, out_ptr,
    blocks, units, stride_pb, stride_tb, stride_mb, stride_rb,
    REGIONS: tl.constexpr, COEFFICIENTS: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    map, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    prediction, target, valid, inside, region = load_block(
        prediction_ptr, target_ptr, mask_ptr, regions_ptr, map, block, units,
        stride_pb, stride_tb, stride_mb, stride_rb, UNIT, BLOCK,
    )  # fmt: skip
    coefficients_ptr += map * (REGIONS * COEFFICIENTS)
    grad = tl.load(grad_ptr).to(tl.float32)
    out = tl.zeros_like(prediction)
    for r in tl.static_range(REGIONS):
        at = coefficients_ptr + r * COEFFICIENTS
        above = prediction - tl.load(at)
        # The forward's own arithmetic, so that the signs are the ones that it summed.
        p_hat = above * tl.load(at + 1)
        e = _sign(p_hat - (target - tl.load(at + 2)) * tl.load(at + 3))
        tied = tl.where(above == 0.0, tl.load(at + 5), 0.0)
        value = e * tl.load(at + 4) + tied + _sign(above) * tl.load(at + 6)
        out = tl.where(region == r, value, out)
    out = tl.where(valid, out * grad, 0.0)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    out_at = out_ptr + map * units * UNIT + pixel
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=inside)


def _tile(pixels: int, backend: str, arch: int | str) -> dict[str, int]:
    """BLOCK and num_warps: 16 pixels of both tensors per thread.

    The fastest of a sweep on an H100 with Triton 3.6, with 8 maps and with 64.
    """
    if backend == "interpreter":
        return {"BLOCK": max(128, next_power_of_2(cdiv(pixels, 8))), "num_warps": 4}
    # With four warps a kernel spills on Ampere.
    return {"BLOCK": 2048, "num_warps": 4 if backend == "cuda" and int(arch) >= 90 else 8}


def _tiles(maps: int, blocks: int, most: int) -> int:
    """Blocks of pixels that a program counts before it adds to the histograms of the map."""
    tiles = most
    while tiles > 1 and maps * cdiv(blocks, tiles) < _PROGRAMS:
        tiles //= 2
    return tiles


def _rows_in_place(x: Tensor) -> Tensor:
    """The tensor itself if every map is dense (any stride between maps), else a copy."""
    dense = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    return x if dense else x.contiguous()


class _Maps:
    """Inputs of all kernels that read pixels, and their grid."""

    def __init__(
        self, prediction: Tensor, target: Tensor, mask: Tensor | None, regions: Tensor | None
    ) -> None:
        self.maps, height, width = prediction.shape
        pixels = height * width
        self.tensors = [
            None if x is None else _rows_in_place(x) for x in (prediction, target, mask, regions)
        ]
        strides = [0 if x is None else x.stride(0) for x in self.tensors]
        self.unit = math.gcd(16, pixels, *strides)
        self.sizes = [pixels // self.unit, *(stride // self.unit for stride in strides)]
        backend, arch = current_target()
        self.counting = counting(triton.__version__, backend)
        tile = _tile(pixels, backend, arch)
        self.blocks = cdiv(pixels, tile["BLOCK"])
        interpreted = backend == "interpreter"
        self.tiles = 3 if interpreted else _tiles(self.maps, self.blocks, self.counting.tiles)
        self.chunks = cdiv(self.blocks, self.tiles)
        self.grid = (self.maps * self.chunks,)
        # No contraction to FMA: equal maps have to normalise to equal values.
        self.options = {
            **tile, "UNIT": self.unit, "REGIONS": 1 if regions is None else 2,
            "enable_fp_fusion": False,
        }  # fmt: skip


@on_its_device
def affine_invariant_loss_fwd(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    regions: Tensor | None,
    min_scale: float,
) -> tuple[Tensor, Tensor]:
    """Launches the forward: one memset and five kernels, of which four read the inputs.

    With shorter digits (`masked_median.counting`) there is one pass more.

    Args:
        prediction: (B, H, W), float32, bfloat16 or float16; read in place if each map is dense.
        target: (B, H, W), likewise; dtypes may differ.
        mask: Valid pixels (B, H, W), bool; None: all.
        regions: First of two regions (B, H, W), bool; None: one region.
        min_scale: Lower bound of the scale.

    Returns:
        The loss (), and for the backward (B, 1 or 2 regions, 8) coefficients; both float32.
    """
    x = _Maps(prediction, target, mask, regions)
    count = x.options["REGIONS"]
    empty = {"dtype": torch.float32, "device": prediction.device}
    loss = torch.empty((), **empty)
    coefficients = torch.empty((x.maps, count, _COEFFICIENTS), **empty)
    if prediction.numel() == 0:
        return loss.zero_(), coefficients.zero_()
    segments = x.maps * 2 * count
    integers = {"dtype": torch.int32, "device": prediction.device}
    digits, passes = x.counting.digits, len(x.counting.digits)
    bins = 1 << max(digits)
    words = passes * segments * bins
    histograms, area = torch.zeros(words + x.maps, **integers).split([words, x.maps])
    state = torch.empty((segments, STATE), **integers)
    deviations = torch.empty((segments, x.chunks), **empty)
    losses = torch.empty((x.maps, x.chunks), **empty)
    signs = torch.empty((segments, x.chunks), **empty)
    grid_of = (x.maps, x.chunks, x.tiles, *x.sizes)
    for number, bits in enumerate(digits):
        _affine_invariant_loss_histogram_kernel[x.grid](
            *x.tensors, histograms, area, state, deviations, *grid_of,
            PASS=number, BITS=bits, BEFORE=digits[number - 1], BELOW=sum(digits[number + 1 :]),
            BINS=bins, LOCAL=number < x.counting.local, STATE=STATE, **x.options,
        )  # fmt: skip
    _affine_invariant_loss_l1_kernel[x.grid](
        *x.tensors, histograms, area, state, deviations, losses, signs, coefficients, min_scale,
        *grid_of, DONE=passes, BITS=digits[-1], BINS=bins,
        STATE=STATE, COEFFICIENTS=_COEFFICIENTS, **x.options,
    )  # fmt: skip
    _affine_invariant_loss_reduce_kernel[(x.maps,)](
        area, state, losses, signs, coefficients, loss, x.maps, x.chunks, x.sizes[0],
        DONE=passes, STATE=STATE, COEFFICIENTS=_COEFFICIENTS, UNIT=x.unit, REGIONS=count,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return loss, coefficients


@on_its_device
def affine_invariant_loss_bwd(
    grad: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    regions: Tensor | None,
    coefficients: Tensor,
) -> Tensor:
    """Launches the backward: one kernel, one read of the inputs.

    Args:
        grad: Gradient of the loss (), on the device.
        prediction: As in the forward.
        target: As in the forward.
        mask: As in the forward.
        regions: As in the forward.
        coefficients: From the forward.

    Returns:
        Gradient of the prediction (B, H, W), contiguous, in its dtype.
    """
    out = torch.empty(prediction.shape, dtype=prediction.dtype, device=prediction.device)
    if out.numel() == 0:
        return out
    x = _Maps(prediction, target, mask, regions)
    _affine_invariant_loss_bwd_kernel[(x.maps * x.blocks,)](
        grad, *x.tensors, coefficients, out, x.blocks, *x.sizes,
        COEFFICIENTS=_COEFFICIENTS, **x.options,
    )  # fmt: skip
    return out
