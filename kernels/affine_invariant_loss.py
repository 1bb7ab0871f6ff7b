"""Affine-invariant loss: masked median, MAD, normalisation and L1, forward and backward.

The median is exact and found without sorting: a radix select over four histograms (8 bits each of
a key that orders like the float), several programs per map. Each pass starts with every program
reading the histogram of the pass before it, so nothing returns to the host and no kernel runs
only to pass a number on. Atomics are only on integers, and float sums have a fixed order: the
result is the same bit by bit in every run.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .runtime import cdiv, next_power_of_2, on_its_device
from .runtime import target as current_target

_LOCAL = 2  # passes that count within the program; measured on an H100, see the page
_PASSES = 4  # of the radix select, 8 bits each
_BINS = 256  # of one histogram
_STATE = 10  # int32 per segment; see _narrow
_COEFFICIENTS = 8  # float32 per map and region; see the reduce kernel

# Their alignment is in UNIT; a value of 1, say one map, must not become a constant without `.to`.
_SIZES = ["maps", "chunks", "units", "stride_pb", "stride_tb", "stride_mb", "stride_rb"]


@triton.jit
def _key(x):
    """An int32 that orders like the float32 ``x``; -0.0 counts as 0.0."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    """The float32 of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _sign(x):
    return (x > 0.0).to(tl.float32) - (x < 0.0).to(tl.float32)


@triton.jit
def _sum(x_ptr, count):
    """Sum of ``count`` float32, always in the same order."""
    index = tl.arange(0, 128)
    total = tl.zeros((128,), tl.float32)
    for start in range(0, count, 128):
        total += tl.load(x_ptr + start + index, mask=start + index < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _load(
    prediction_ptr, target_ptr, mask_ptr, regions_ptr, map, chunk, units,
    stride_pb, stride_tb, stride_mb, stride_rb, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixels of a chunk: both values as float32, whether valid, inside the map, and the region.

    Sizes and strides come divided by UNIT, so that the compiler sees how far they are aligned and
    loads vectors. The mask of pixels is therefore not used for loading.
    """
    pixel = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < units * UNIT
    prediction = tl.load(prediction_ptr + map * stride_pb * UNIT + pixel, mask=inside, other=0.0)
    target = tl.load(target_ptr + map * stride_tb * UNIT + pixel, mask=inside, other=0.0)
    valid = inside
    if mask_ptr is not None:
        mask = tl.load(mask_ptr + map * stride_mb * UNIT + pixel, mask=inside, other=0)
        valid = inside & (mask != 0)
    region = tl.zeros((BLOCK,), tl.int32)
    if regions_ptr is not None:
        first = tl.load(regions_ptr + map * stride_rb * UNIT + pixel, mask=inside, other=0)
        region = (first == 0).to(tl.int32)
    return prediction.to(tl.float32), target.to(tl.float32), valid, inside, region


@triton.jit
def _narrow(hist_ptr, state_ptr, leader, PASS: tl.constexpr, BINS: tl.constexpr):
    """Digit of the median in the histogram of pass PASS - 1, of one segment (map, tensor, region).

    State of a segment: [0] number of valid pixels; after pass k (1 to 4) [2k - 1] the leading 8k
    bits of the median's key and [2k] its rank among the keys that share them; [9] ties.

    Returns:
        The leading bits of the median's key: 8, 16, 24, or all 32.
    """
    bins = tl.arange(0, BINS)
    counts = tl.load(hist_ptr + bins)
    if PASS == 1:
        valid = tl.sum(counts, 0)
        rank = tl.maximum(valid - 1, 0) // 2
        tl.store(state_ptr, valid, mask=leader)
    else:
        rank = tl.load(state_ptr + 2 * PASS - 2)
    below = tl.cumsum(counts, 0) <= rank
    digit = tl.minimum(tl.sum(below.to(tl.int32), 0), BINS - 1)  # BINS in an empty segment
    rank -= tl.sum(tl.where(below, counts, 0), 0)
    if PASS == 1:
        prefix = digit - BINS // 2  # keys are signed
    else:
        prefix = tl.load(state_ptr + 2 * PASS - 3) * BINS + digit
    if PASS == 4:
        tl.store(state_ptr + 9, tl.sum(tl.where(bins == digit, counts, 0), 0), mask=leader)
    tl.store(state_ptr + 2 * PASS - 1, prefix, mask=leader)
    tl.store(state_ptr + 2 * PASS, rank, mask=leader)
    return prefix


@triton.jit
def _count(
    x, valid, region, hist_ptr, state_ptr, leader, before,
    PASS: tl.constexpr, LOCAL: tl.constexpr, REGIONS: tl.constexpr, STATE: tl.constexpr,
    BINS: tl.constexpr,
):  # fmt: skip
    """Adds one tensor's keys to its histogram of this pass, the two regions next to each other."""
    key = _key(x)
    digit = (key >> (24 - 8 * PASS)) & (BINS - 1)
    if PASS == 0:
        digit ^= BINS // 2  # keys are signed
    else:
        prefix = tl.zeros_like(key)
        for r in tl.static_range(REGIONS):
            at = hist_ptr - before + r * BINS
            found = _narrow(at, state_ptr + r * STATE, leader, PASS, BINS)
            prefix = tl.where(region == r, found, prefix)
        valid = valid & ((key >> (32 - 8 * PASS)) == prefix)
    bin = digit + region * BINS
    if PASS < LOCAL:
        # Most pixels, in a few bins, where global atomics would queue: within the program first.
        counts = tl.histogram(bin, REGIONS * BINS, mask=valid)
        at = hist_ptr + tl.arange(0, REGIONS * BINS)
        tl.atomic_add(at, counts, mask=counts > 0, sem="relaxed")
    else:  # few pixels share that many leading bits with the median
        tl.atomic_add(hist_ptr + bin, 1, mask=valid, sem="relaxed")


@triton.jit(do_not_specialize=_SIZES)
def _affine_invariant_loss_histogram_kernel(
    prediction_ptr, target_ptr, mask_ptr, regions_ptr, hist_ptr, area_ptr, state_ptr,
    maps, chunks, units, stride_pb, stride_tb, stride_mb, stride_rb,
    PASS: tl.constexpr, LOCAL: tl.constexpr, REGIONS: tl.constexpr, STATE: tl.constexpr,
    BINS: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A pass of the radix select, of both tensors so that mask and regions are read once.

    Histograms are (4 passes, maps, 2 tensors, REGIONS, BINS).
    """
    map, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    prediction, target, valid, inside, region = _load(
        prediction_ptr, target_ptr, mask_ptr, regions_ptr, map, chunk, units,
        stride_pb, stride_tb, stride_mb, stride_rb, UNIT, BLOCK,
    )  # fmt: skip
    before = maps.to(tl.int64) * (2 * REGIONS * BINS)
    hist_ptr += PASS * before + map * (2 * REGIONS * BINS)
    state_ptr += map * (2 * REGIONS * STATE)
    leader = chunk == 0
    _count(prediction, valid, region, hist_ptr, state_ptr, leader, before,
           PASS, LOCAL, REGIONS, STATE, BINS)  # fmt: skip
    _count(target, valid, region, hist_ptr + REGIONS * BINS, state_ptr + REGIONS * STATE, leader,
           before, PASS, LOCAL, REGIONS, STATE, BINS)  # fmt: skip
    if PASS == 0 and REGIONS == 2:
        first = tl.sum((inside & (region == 0)).to(tl.int32), 0)
        tl.atomic_add(area_ptr + map, first, sem="relaxed")


@triton.jit
def _deviation(
    x, valid, region, hist_ptr, state_ptr, out_ptr, leader, chunk, chunks,
    REGIONS: tl.constexpr, STATE: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """One tensor's median, and this chunk's sum of |x - median| for each region."""
    for r in tl.static_range(REGIONS):
        key = _narrow(hist_ptr + r * BINS, state_ptr + r * STATE, leader, 4, BINS)
        deviation = tl.where(valid & (region == r), x - _value(key), 0.0)
        tl.store(out_ptr + r * chunks + chunk, tl.sum(tl.abs(deviation), 0))


@triton.jit(do_not_specialize=_SIZES)
def _affine_invariant_loss_deviation_kernel(
    prediction_ptr, target_ptr, mask_ptr, regions_ptr, hist_ptr, state_ptr, deviations_ptr,
    maps, chunks, units, stride_pb, stride_tb, stride_mb, stride_rb,
    REGIONS: tl.constexpr, STATE: tl.constexpr, BINS: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Medians from the last histogram; sums of |x - median| as (maps, 2, REGIONS, chunks)."""
    map, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    prediction, target, valid, _, region = _load(
        prediction_ptr, target_ptr, mask_ptr, regions_ptr, map, chunk, units,
        stride_pb, stride_tb, stride_mb, stride_rb, UNIT, BLOCK,
    )  # fmt: skip
    hist_ptr += (3 * maps.to(tl.int64) + map) * (2 * REGIONS * BINS)
    state_ptr += map * (2 * REGIONS * STATE)
    deviations_ptr += map * (2 * REGIONS) * chunks
    leader = chunk == 0
    _deviation(prediction, valid, region, hist_ptr, state_ptr, deviations_ptr, leader,
               chunk, chunks, REGIONS, STATE, BINS)  # fmt: skip
    _deviation(target, valid, region, hist_ptr + REGIONS * BINS, state_ptr + REGIONS * STATE,
               deviations_ptr + REGIONS * chunks, leader, chunk, chunks,
               REGIONS, STATE, BINS)  # fmt: skip


@triton.jit
def _segment(state_ptr, deviations_ptr, chunks, min_scale):
    """Median, clamped scale (a NaN stays one), and whether it was clamped, of one segment."""
    valid = tl.load(state_ptr)
    scale = _sum(deviations_ptr, chunks) / tl.maximum(valid, 1).to(tl.float32)
    clamped = scale < min_scale
    return _value(tl.load(state_ptr + 7)), tl.where(clamped, min_scale, scale), clamped


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


@triton.jit(do_not_specialize=_SIZES)
def _affine_invariant_loss_l1_kernel(
    prediction_ptr, target_ptr, mask_ptr, regions_ptr, area_ptr, state_ptr, deviations_ptr,
    losses_ptr, signs_ptr, coefficients_ptr, min_scale,
    maps, chunks, units, stride_pb, stride_tb, stride_mb, stride_rb,
    REGIONS: tl.constexpr, STATE: tl.constexpr, COEFFICIENTS: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scales; this chunk's part of the loss, and of both sums that the backward needs.

    Losses are (maps, chunks); sums of e and of e * p_hat, e = sign(p_hat - t_hat), are
    (maps, REGIONS, 2, chunks). The coefficients get medians, inverse scales, the clamp.
    """
    map, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    prediction, target, valid, _, region = _load(
        prediction_ptr, target_ptr, mask_ptr, regions_ptr, map, chunk, units,
        stride_pb, stride_tb, stride_mb, stride_rb, UNIT, BLOCK,
    )  # fmt: skip
    state_ptr += map * (2 * REGIONS * STATE)
    deviations_ptr += map * (2 * REGIONS) * chunks
    signs_ptr += map * (2 * REGIONS) * chunks + chunk
    coefficients_ptr += map * (REGIONS * COEFFICIENTS)
    leader = chunk == 0

    p_median, p_inverse = tl.zeros_like(prediction), tl.zeros_like(prediction)
    t_median, t_inverse = tl.zeros_like(target), tl.zeros_like(target)
    weight = tl.zeros_like(prediction)
    for r in tl.static_range(REGIONS):
        p_state, p_deviations = state_ptr + r * STATE, deviations_ptr + r * chunks
        p_m, p_s, clamped = _segment(p_state, p_deviations, chunks, min_scale)
        t_m, t_s, _ = _segment(
            p_state + REGIONS * STATE, p_deviations + REGIONS * chunks, chunks, min_scale
        )
        w = _pixel_weight(area_ptr + map, tl.load(p_state), units * UNIT, maps, r, REGIONS)
        p_i, t_i = 1.0 / p_s, 1.0 / t_s
        at = coefficients_ptr + r * COEFFICIENTS
        tl.store(at, p_m, mask=leader)
        tl.store(at + 1, p_i, mask=leader)
        tl.store(at + 2, t_m, mask=leader)
        tl.store(at + 3, t_i, mask=leader)
        tl.store(at + 7, clamped.to(tl.float32), mask=leader)
        here = region == r
        p_median, p_inverse = tl.where(here, p_m, p_median), tl.where(here, p_i, p_inverse)
        t_median, t_inverse = tl.where(here, t_m, t_median), tl.where(here, t_i, t_inverse)
        weight = tl.where(here, w, weight)

    p_hat = (prediction - p_median) * p_inverse
    ahead = p_hat - (target - t_median) * t_inverse
    e = _sign(ahead)
    tl.store(losses_ptr + map * chunks + chunk,
             tl.sum(tl.where(valid, tl.abs(ahead) * weight, 0.0), 0))  # fmt: skip
    for r in tl.static_range(REGIONS):
        here = valid & (region == r)
        tl.store(signs_ptr + 2 * r * chunks, tl.sum(tl.where(here, e, 0.0), 0))
        tl.store(signs_ptr + (2 * r + 1) * chunks, tl.sum(tl.where(here, e * p_hat, 0.0), 0))


@triton.jit(do_not_specialize=_SIZES[:3])
def _affine_invariant_loss_reduce_kernel(
    area_ptr, state_ptr, losses_ptr, signs_ptr, coefficients_ptr, loss_ptr,
    maps, chunks, units,
    REGIONS: tl.constexpr, STATE: tl.constexpr, COEFFICIENTS: tl.constexpr, UNIT: tl.constexpr,
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
        valid, ties = tl.load(state), tl.maximum(tl.load(state + 9), 1).to(tl.float32)
        # Pixels above the median less those below it: the sum of sign(p - median).
        below = tl.maximum(valid - 1, 0) // 2 - tl.load(state + 8)
        beyond = (valid - tl.load(state + 9) - 2 * below).to(tl.float32)
        weight = _pixel_weight(area_ptr + map, valid, units * UNIT, maps, r, REGIONS)
        by_sign = weight * tl.load(at + 1)
        by_scale = -by_sign * _sum(signs + chunks, chunks) / tl.maximum(valid, 1).to(tl.float32)
        by_scale = tl.where(tl.load(at + 7) != 0.0, 0.0, by_scale)
        tl.store(at + 4, by_sign)
        tl.store(at + 5, -(by_sign * _sum(signs, chunks) + by_scale * beyond) / ties)
        tl.store(at + 6, by_scale)
    if map == 0:
        tl.store(loss_ptr, _sum(losses_ptr, maps * chunks))


@triton.jit(do_not_specialize=_SIZES[1:])
def _affine_invariant_loss_bwd_kernel(
    grad_ptr, prediction_ptr, target_ptr, mask_ptr, regions_ptr, coefficients_ptr, out_ptr,
    chunks, units, stride_pb, stride_tb, stride_mb, stride_rb,
    REGIONS: tl.constexpr, COEFFICIENTS: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    map, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    prediction, target, valid, inside, region = _load(
        prediction_ptr, target_ptr, mask_ptr, regions_ptr, map, chunk, units,
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
    pixel = chunk * BLOCK + tl.arange(0, BLOCK)
    out_at = out_ptr + map * units * UNIT + pixel
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=inside)


def _tile(maps: int, pixels: int) -> dict[str, int]:
    """BLOCK and num_warps: 16 pixels of both tensors per thread.

    The fastest of a sweep on an H100, with 8 maps and with 64. Every program reads two histograms
    (2 KiB) in addition to its pixels.
    """
    backend, arch = current_target()
    if backend == "interpreter":
        return {"BLOCK": max(128, next_power_of_2(cdiv(pixels, 4))), "num_warps": 4}
    # With four warps a kernel spills on Ampere.
    return {"BLOCK": 2048, "num_warps": 4 if backend == "cuda" and int(arch) >= 90 else 8}


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
        self.tile = _tile(self.maps, pixels)
        self.chunks = cdiv(pixels, self.tile["BLOCK"])
        self.grid = (self.maps * self.chunks,)
        # No contraction to FMA: equal maps have to normalise to equal values.
        self.options = {
            **self.tile, "UNIT": self.unit, "REGIONS": 1 if regions is None else 2,
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
    """Launches the forward: one memset and seven kernels, of which six read the inputs.

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
    bins = _PASSES * segments * _BINS
    histograms, area = torch.zeros(bins + x.maps, **integers).split([bins, x.maps])
    state = torch.empty((segments, _STATE), **integers)
    deviations = torch.empty((segments, x.chunks), **empty)
    losses = torch.empty((x.maps, x.chunks), **empty)
    signs = torch.empty((segments, x.chunks), **empty)
    for number in range(_PASSES):
        _affine_invariant_loss_histogram_kernel[x.grid](
            *x.tensors, histograms, area, state, x.maps, x.chunks, *x.sizes,
            PASS=number, LOCAL=_LOCAL, STATE=_STATE, BINS=_BINS, **x.options,
        )  # fmt: skip
    _affine_invariant_loss_deviation_kernel[x.grid](
        *x.tensors, histograms, state, deviations, x.maps, x.chunks, *x.sizes,
        STATE=_STATE, BINS=_BINS, **x.options,
    )  # fmt: skip
    _affine_invariant_loss_l1_kernel[x.grid](
        *x.tensors, area, state, deviations, losses, signs, coefficients, min_scale,
        x.maps, x.chunks, *x.sizes, STATE=_STATE, COEFFICIENTS=_COEFFICIENTS, **x.options,
    )  # fmt: skip
    _affine_invariant_loss_reduce_kernel[(x.maps,)](
        area, state, losses, signs, coefficients, loss, x.maps, x.chunks, x.sizes[0],
        STATE=_STATE, COEFFICIENTS=_COEFFICIENTS, UNIT=x.unit, REGIONS=count,
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
    _affine_invariant_loss_bwd_kernel[x.grid](
        grad, *x.tensors, coefficients, out, x.chunks, *x.sizes,
        COEFFICIENTS=_COEFFICIENTS, **x.options,
    )  # fmt: skip
    return out
