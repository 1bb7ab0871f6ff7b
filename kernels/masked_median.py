"""Medians and mean absolute deviations of masked maps, for the affine-invariant loss.

The median is exact and found without sorting: a radix select over a histogram for each digit of a
key that orders like the float, several programs per map. Each pass starts with every program
reading the histogram of the previous pass, so nothing returns to the host and no kernel runs only
to pass a number on. The last pass also sums the absolute deviations. Atomics
are only on integers, and float sums have a fixed order: every run gives the same bits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import triton
import triton.language as tl

from .runtime import kernel


@dataclass(frozen=True)
class Counting:
    """How the radix select counts.

    Attributes:
        digits: Bits of each pass, from the leading ones; 32 together.
        local: Number of passes that count within a program before they add to the histogram of
            the map. Later passes add each pixel: few share that many leading bits.
        tiles: Largest number of blocks of pixels that a program counts.
    """

    digits: tuple[int, ...]
    local: int
    tiles: int


SHARED_ATOMICS = Counting((11, 11, 10), 3, 8)  # `tl.histogram` costs the same for any digit
BALLOTS = Counting((8, 8, 8, 8), 2, 1)  # it grows with the number of bins; see the page


@functools.cache
def counting(version: str, backend: str) -> Counting:
    """The fastest way to count, with the `tl.histogram` of a version of Triton and a backend.

    Triton counts with atomics on shared memory from 3.8 on, and only on NVIDIA GPUs.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    return SHARED_ATOMICS if (major, minor) >= (3, 8) and backend != "hip" else BALLOTS


STATE = 10  # int32 per segment; see _narrow

# Their alignment is in UNIT; a value of 1, say one map, must not become a constant without `.to`.
SIZES = ["maps", "chunks", "tiles", "units", "stride_pb", "stride_tb", "stride_mb", "stride_rb"]


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
def sum_in_order(x_ptr, count, BLOCK: tl.constexpr):
    """Sum of ``count`` float32, always in the same order."""
    index = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        total += tl.load(x_ptr + start + index, mask=start + index < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def load_block(
    prediction_ptr, target_ptr, mask_ptr, regions_ptr, map, block, units,
    stride_pb, stride_tb, stride_mb, stride_rb, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixels of a block: both values as float32, whether valid, inside the map, and the region.

    Sizes and strides come divided by UNIT, so that the compiler sees how far they are aligned and
    loads vectors. The mask of pixels is therefore not used for loading.
    """
    pixel = block * BLOCK + tl.arange(0, BLOCK)
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
def _narrow(hist_ptr, state_ptr, leader, DONE: tl.constexpr, BITS: tl.constexpr):
    """Digit of the median in the histogram of the last of DONE passes, of one segment.

    A segment is a map's prediction or target in one region. Its state: [0] number of valid
    pixels, [1] of those that equal the median; after k passes [2k] the leading bits of the
    median's key and [2k + 1] its rank among the keys that share them.

    Returns:
        The leading bits of the median's key, as many as DONE passes have found.
    """
    BINS: tl.constexpr = 1 << BITS
    bins = tl.arange(0, BINS)
    counts = tl.load(hist_ptr + bins)
    if DONE == 1:
        valid = tl.sum(counts, 0)
        rank = tl.maximum(valid - 1, 0) // 2
        tl.store(state_ptr, valid, mask=leader)
    else:
        rank = tl.load(state_ptr + 2 * DONE - 1)
    below = tl.cumsum(counts, 0) <= rank
    digit = tl.minimum(tl.sum(below.to(tl.int32), 0), BINS - 1)  # BINS in an empty segment
    rank -= tl.sum(tl.where(below, counts, 0), 0)
    if DONE == 1:
        prefix = digit - BINS // 2  # keys are signed
    else:
        prefix = tl.load(state_ptr + 2 * DONE - 2) * BINS + digit
    # Right after the last pass, the only one whose digits are single keys.
    tl.store(state_ptr + 1, tl.sum(tl.where(bins == digit, counts, 0), 0), mask=leader)
    tl.store(state_ptr + 2 * DONE, prefix, mask=leader)
    tl.store(state_ptr + 2 * DONE + 1, rank, mask=leader)
    return prefix


@triton.jit
def _prefixes(
    hist_ptr, state_ptr, leader, DONE: tl.constexpr, BITS: tl.constexpr, REGIONS: tl.constexpr,
    STATE: tl.constexpr,
):  # fmt: skip
    """`_narrow` for the regions of a map's prediction or target; without regions twice the same."""
    first = _narrow(hist_ptr, state_ptr, leader, DONE, BITS)
    second = first
    if REGIONS == 2:
        second = _narrow(hist_ptr + (1 << BITS), state_ptr + STATE, leader, DONE, BITS)
    return first, second


@triton.jit
def _count(
    x, valid, region, first, second, hist_ptr, counts,
    BITS: tl.constexpr, BELOW: tl.constexpr, LOCAL: tl.constexpr, REGIONS: tl.constexpr,
):  # fmt: skip
    """Counts the digit of one tensor's keys that start with the median's leading bits.

    Returns:
        The counts, and in the last pass (BELOW == 0) the distances of all other valid values to
        the interval of floats that start with these bits. The distance from its nearer end to the
        median is added when the median is known; both are positive, so nothing cancels.
    """
    key = _key(x)
    digit = (key >> BELOW) & ((1 << BITS) - 1)
    counted, distances = valid, x
    if BITS + BELOW == 32:
        digit ^= 1 << (BITS - 1)  # keys are signed
    else:
        prefix = tl.where(region == 0, first, second)
        leading = key >> (BELOW + BITS)
        counted = valid & (leading == prefix)
        if BELOW == 0:
            least = prefix << BITS
            distance = tl.where(
                leading > prefix, x - _value(least | ((1 << BITS) - 1)), _value(least) - x
            )
            distances = tl.where(valid & (leading != prefix), distance, 0.0)
    bin = digit + (region << BITS)
    if LOCAL:
        # Many pixels in a few bins, where global atomics would queue: within the program first.
        counts += tl.histogram(bin, REGIONS << BITS, mask=counted)
    else:  # few pixels
        tl.atomic_add(hist_ptr + bin, 1, mask=counted, sem="relaxed")
    return counts, distances


@kernel(do_not_specialize=SIZES)
def _affine_invariant_loss_histogram_kernel(
    prediction_ptr, target_ptr, mask_ptr, regions_ptr, hist_ptr, area_ptr, state_ptr,
    deviations_ptr, maps, chunks, tiles, units, stride_pb, stride_tb, stride_mb, stride_rb,
    PASS: tl.constexpr, BITS: tl.constexpr, BEFORE: tl.constexpr, BELOW: tl.constexpr,
    BINS: tl.constexpr, LOCAL: tl.constexpr, REGIONS: tl.constexpr, STATE: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A pass of the radix select, of both tensors so that mask and regions are read once.

    A digit of BITS, after one of BEFORE bits and with BELOW bits left. A pass has a histogram
    (maps, 2 tensors, REGIONS, 2**BITS), BINS for each segment apart from the one of the next pass.
    The last pass writes its sums of distances as (maps, 2, REGIONS, chunks).
    """
    map, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    SEGMENTS: tl.constexpr = 2 * REGIONS
    pass_size = maps.to(tl.int64) * (SEGMENTS * BINS)
    state_ptr += map * (SEGMENTS * STATE)
    leader = chunk == 0
    p_first, p_second, t_first, t_second = 0, 0, 0, 0
    if PASS > 0:
        at = hist_ptr + (PASS - 1) * pass_size + map * (SEGMENTS << BEFORE)
        p_first, p_second = _prefixes(at, state_ptr, leader, PASS, BEFORE, REGIONS, STATE)
        t_first, t_second = _prefixes(
            at + (REGIONS << BEFORE), state_ptr + REGIONS * STATE, leader, PASS, BEFORE,
            REGIONS, STATE,
        )  # fmt: skip
    p_hist = hist_ptr + PASS * pass_size + map * (SEGMENTS << BITS)
    t_hist = p_hist + (REGIONS << BITS)
    p_counts = tl.zeros((REGIONS << BITS,), tl.int32)
    t_counts = tl.zeros((REGIONS << BITS,), tl.int32)
    p_deviations, t_deviations, p_others, t_others = 0.0, 0.0, 0.0, 0.0
    area = 0
    for tile in range(tiles):
        prediction, target, valid, inside, region = load_block(
            prediction_ptr, target_ptr, mask_ptr, regions_ptr, map, chunk * tiles + tile, units,
            stride_pb, stride_tb, stride_mb, stride_rb, UNIT, BLOCK,
        )  # fmt: skip
        p_counts, p_distances = _count(
            prediction, valid, region, p_first, p_second, p_hist, p_counts,
            BITS, BELOW, LOCAL, REGIONS,
        )  # fmt: skip
        t_counts, t_distances = _count(
            target, valid, region, t_first, t_second, t_hist, t_counts,
            BITS, BELOW, LOCAL, REGIONS,
        )  # fmt: skip
        if BELOW == 0:
            p_deviations += tl.sum(tl.where(region == 0, p_distances, 0.0), 0)
            t_deviations += tl.sum(tl.where(region == 0, t_distances, 0.0), 0)
            if REGIONS == 2:
                p_others += tl.sum(tl.where(region == 1, p_distances, 0.0), 0)
                t_others += tl.sum(tl.where(region == 1, t_distances, 0.0), 0)
        if PASS == 0 and REGIONS == 2:
            area += tl.sum((inside & (region == 0)).to(tl.int32), 0)
    if LOCAL:
        bins = tl.arange(0, REGIONS << BITS)
        tl.atomic_add(p_hist + bins, p_counts, mask=p_counts > 0, sem="relaxed")
        tl.atomic_add(t_hist + bins, t_counts, mask=t_counts > 0, sem="relaxed")
    if BELOW == 0:
        at = deviations_ptr + map * SEGMENTS * chunks + chunk
        tl.store(at, p_deviations)
        tl.store(at + REGIONS * chunks, t_deviations)
        if REGIONS == 2:
            tl.store(at + chunks, p_others)
            tl.store(at + 3 * chunks, t_others)
    if PASS == 0 and REGIONS == 2:
        tl.atomic_add(area_ptr + map, area, sem="relaxed")


@triton.jit
def statistics(
    hist_ptr, state_ptr, deviations_ptr, chunks, min_scale, leader,
    DONE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Median, clamped scale (a NaN stays one), and whether it was clamped, of one segment."""
    key = _narrow(hist_ptr, state_ptr, leader, DONE, BITS)
    median = _value(key)
    # Keys in the interval of the last pass are known exactly; the others up to its ends.
    bins = tl.arange(0, 1 << BITS)
    counts = tl.load(hist_ptr + bins)
    least = (key >> BITS) << BITS
    distances = tl.abs(_value(least + bins) - median) * counts.to(tl.float32)
    total = sum_in_order(deviations_ptr, chunks, 128) + tl.sum(
        tl.where(counts > 0, distances, 0.0), 0
    )
    valid = tl.load(state_ptr)
    below = tl.maximum(valid - 1, 0) // 2 - tl.load(state_ptr + 2 * DONE - 1)
    above = valid - below - tl.sum(counts, 0)
    most = _value(least | ((1 << BITS) - 1))
    total += tl.where(below > 0, below.to(tl.float32) * (median - _value(least)), 0.0)
    total += tl.where(above > 0, above.to(tl.float32) * (most - median), 0.0)
    scale = total / tl.maximum(valid, 1).to(tl.float32)
    clamped = scale < min_scale
    return median, tl.where(clamped, min_scale, scale), clamped
