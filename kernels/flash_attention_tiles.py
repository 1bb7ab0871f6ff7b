"""Tiles of the attention kernels: their sizes, and the rows that each program takes."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from .runtime import float32_precision, matrix_units, processors, target

_PROGRAMS = 4
"""Programs of 128 rows per processor; with fewer, the last round leaves too many of them idle."""


SHORT = 32
"""Sequences of at most this many rows, such as frames of a clip, have tiles of their own."""


def is_small(rows: int) -> bool:
    """Whether tiles of 128 rows would leave much of the current GPU idle.

    Args:
        rows: Queries, summed over batch and heads.
    """
    return rows < 128 * _PROGRAMS * processors()


def tile_of(
    kind: str, dtype: torch.dtype, head_dim: int, small: bool = False, short: bool = False
) -> dict[str, int]:
    """Tile sizes, warps and pipeline stages of a pass: ``fwd``, ``dkdv`` or ``dq``.

    BRANCH puts the first tile of a loop behind a condition that always holds. It keeps the operands
    that the loop does not change in shared memory, where otherwise too many registers would be
    taken. On Hopper, where matrix products run asynchronously, it would make the compiler
    serialise them; where loads and products do not overlap there is nothing to lose.

    OVERLAP, of the forward only, computes the exponentials of a tile while the products of the next
    one run.

    Chosen so that nothing spills on NVIDIA GPUs from sm_80 on and on gfx942, and shared memory
    fits; see docs/kernels/flash_attention.md.

    Args:
        kind: The pass.
        dtype: Of the queries.
        head_dim: Of the queries.
        small: Whether larger tiles would leave processors without a program. Results have the
            same bits: rows do not depend on each other.
        short: Whether no sequence has more than `SHORT` queries or keys: one tile of this size and
            few warps serve each, where a larger one would compute mostly rows that are not there.
    """
    tf32 = dtype == torch.float32 and float32_precision() == "tf32"
    return dict(_tile_of(kind, dtype, head_dim, small, short, tf32, *target()))


@functools.lru_cache(1024)
def _tile_of(
    kind: str,
    dtype: torch.dtype,
    head_dim: int,
    small: bool,
    short: bool,
    tf32: bool,
    backend: str,
    arch: int | str,
) -> dict[str, int]:
    units = matrix_units(backend, arch)
    wide = head_dim > 64
    asynchronous = units in ("wgmma", "tcgen05")
    branch, overlap = not asynchronous, False
    short = short and units not in ("interpreter", "mfma") and (tf32 or dtype != torch.float32)
    short = short and not (wide and (tf32 or kind == "dkdv"))  # it would spill
    if short:
        # There is one tile. Here it takes fewer registers behind a branch.
        narrow_dq = kind == "dq" and head_dim <= 32 and not tf32 and arch == 80
        branch = (wide or narrow_dq) and not asynchronous
        m, n, stages = SHORT, SHORT, 1
        if kind == "fwd":
            # 2 warps would spill there, and 4 on sm_80.
            narrow = tf32 and head_dim <= 16 and int(arch) >= 120
            warps = 4 if wide or narrow else 2 if tf32 or head_dim > 32 else 1
        else:
            warps = 4 if wide or tf32 else 2
    elif units == "interpreter":
        m, n, warps, stages = 32, 32, 4, 1
    elif units == "mfma" and (wide or dtype == torch.float32):
        m = 32 if kind == "dkdv" and wide and dtype == torch.float32 else 64
        n, warps, stages = 32, 4, 1
    elif units == "mfma":
        m, n, warps, stages = (64 if kind == "dkdv" else 128), 64, 4, 1
    elif tf32 and kind == "fwd":
        m, n, warps, stages = 64, 32, 4, 1 if wide and asynchronous else 2
    elif tf32:
        branch = True
        m, n, warps, stages = 32, 32, 4, 1
        if wide and kind == "dkdv" and arch in (86, 89):
            stages = 2  # with 1 it spills in packed sequences
        if asynchronous:
            m, n = (64, 32) if kind == "dq" else (16 if wide else 32, 64)
    elif dtype == torch.float32:
        # With 8 warps a thread would load 8 bytes of heads of 8 and 16 channels.
        m, n, warps, stages = (16, 16, 8, 1) if wide else (32, 32, 4 if head_dim <= 16 else 8, 1)
    elif kind == "fwd" and units == "wgmma":
        overlap = True
        m, n, warps, stages = (64, 64, 4, 2 if wide else 3)
    elif kind == "fwd":
        eight = wide or units == "tcgen05" or int(arch) >= 120  # with 4 warps it spills
        m, n, warps, stages = (128, 64, 8 if eight else 4, 3)
    elif not wide and units == "wgmma":  # the fastest of a sweep on an H100
        m, n, warps, stages = (32, 128, 8, 3) if kind == "dkdv" else (64, 64, 4, 3)
    elif wide and asynchronous:  # 64 rows for each of two groups of four warps
        m, n, warps, stages = (128, 64, 8, 2) if kind == "dq" else (32, 128, 8, 2)
    else:
        m, n, warps, stages = (64, 64, 8 if wide else 4, 2)
    if small and max(m, n) == 128 and (kind == "fwd" or not wide):
        m, n, warps = min(m, 64), min(n, 64), 4
    tile = {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages, "BRANCH": branch}
    return {**tile, "OVERLAP": overlap} if kind == "fwd" else tile


@triton.jit
def _sequence(cu_ptr, sequence, rows):
    """First row and end of a sequence, within the ``rows`` that exist."""
    first = tl.minimum(tl.maximum(tl.load(cu_ptr + sequence), 0), rows)
    return first, tl.minimum(tl.maximum(tl.load(cu_ptr + sequence + 1), first), rows)


@triton.jit
def clear_gaps(
    ptr, stride_n, stride_h, cu_ptr, sequence, sequences, head, length, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes zeros to the rows next to a sequence that no tile covers, in one head.

    They are the rows past ``length`` of the sequence and, at the first and the last sequence, those
    outside of all. A correct ``cu_seqlens`` leaves none.
    """
    first, end = _sequence(cu_ptr, sequence, rows)
    gap = first + tl.minimum(end - first, length)
    if sequence == sequences - 1:
        end = rows
    before = tl.where(sequence == 0, first, 0)
    row, column = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    at = ptr + head.to(tl.int64) * stride_h + (row[:, None] * stride_n + column[None, :])
    zeros = tl.zeros((BLOCK, BLOCK_D), ptr.dtype.element_ty)
    for begin in range(gap, end, BLOCK):
        inside = (row < end - begin)[:, None] & (column < D)[None, :]
        tl.store(at + tl.cast(begin, tl.int64) * stride_n, zeros, mask=inside)
    for begin in range(0, before, BLOCK):
        inside = (row < before - begin)[:, None] & (column < D)[None, :]
        tl.store(at + tl.cast(begin, tl.int64) * stride_n, zeros, mask=inside)


@triton.jit
def place(
    cu_ptr, heads, q_length, k_length, lse_rows,
    BLOCK: tl.constexpr, OVER_KEYS: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """Which rows a program takes: those of one tile of one head of one sequence.

    Returns:
        First row of the tile; batch, head and first row of the sequence, with which pointers are
        made (int64; a dense batch starts each sequence at its own stride, packed ones have batch
        0); the numbers of queries and keys; where the head's statistics begin.
    """
    tiles = tl.cdiv(k_length if OVER_KEYS else q_length, BLOCK)
    pid = tl.program_id(0)
    start = pid % tiles * BLOCK
    batch, head = (pid // tiles // heads).to(tl.int64), (pid // tiles % heads).to(tl.int64)
    if VARLEN:
        first, end = _sequence(cu_ptr, batch, lse_rows)
        count = tl.minimum(end - first, q_length)
        first = first.to(tl.int64)
        return start, tl.zeros((), tl.int64), head, first, count, count, head * lse_rows + first
    else:
        first = tl.zeros((), tl.int64)
        return start, batch, head, first, q_length, k_length, (batch * heads + head) * lse_rows


def unit_of(strides: list[int]) -> int:
    """A divisor of the strides of heads whose channels are no multiple of 16: 8 or 1.

    Triton sees whether a stride is a multiple of 16. Heads of 8 or 24 channels start at multiples
    of 8, which loads of 16 bytes in 16 bits have to know.
    """
    return 1 if any(stride % 8 for stride in strides) else 8


@triton.jit
def at_row(ptr, batch, row, head, stride_b, stride_n, stride_h, UNIT: tl.constexpr):
    """Pointer to the first element of a row of a head; see `unit_of`."""
    offset = batch * stride_b + row * stride_n + head * stride_h
    if UNIT > 1:
        offset = tl.multiple_of(offset, UNIT)
    return ptr + offset


@triton.jit
def load_tile(
    ptr, stride, count,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The rows (BLOCK, BLOCK_D) from ``ptr`` on; 0 past ``count`` rows and past D columns."""
    row, column = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    at = ptr + (row[:, None] * stride + column[None, :])
    if MASKED:
        return tl.load(at, mask=(row < count)[:, None] & (column < D)[None, :], other=0.0)
    elif BLOCK_D != D:
        return tl.load(at, mask=(column < D)[None, :], other=0.0)
    else:
        return tl.load(at)
