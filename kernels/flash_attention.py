"""Flash attention of a ViT: forward and backward, dense or of packed sequences.

Softmax runs in base 2 with the scale folded into one multiply-add per logit. The last tile of a
loop, the only one that needs a mask, is taken first, while the accumulators are still empty; the
others follow without any mask, and only base pointers move. The backward makes two passes, one over
key tiles (dK, dV) and one over query tiles (dQ), so nothing is added atomically and results are the
same bit by bit in every run.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .flash_attention_tiles import (
    SHORT,
    at_row,
    clear_gaps,
    is_small,
    load_tile,
    place,
    tile_of,
    unit_of,
)
from .runtime import (
    INTERPRET,
    dot,
    float32_precision,
    kernel,
    next_power_of_2,
    on_its_device,
)

LOG2E = math.log2(math.e)
_SIZES = ["heads", "q_length", "k_length", "lse_rows"]  # a new length needs no compilation
_DELTA_ROWS = 64
_MAX_ROW_STRIDE = 2**23  # within a tile of at most 128 rows, offsets are int32


@triton.jit
def _logits(
    q, k_ptr, count, stride_kn,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Products of the queries with one tile of keys; minus infinity past ``count`` keys."""
    k = load_tile(k_ptr, stride_kn, count, D, BLOCK_N, BLOCK_D, TAIL)
    logits = tl.zeros((q.shape[0], BLOCK_N), tl.float32)
    logits = dot(q, tl.trans(k), logits, PRECISION, INTERPRETED)
    if TAIL:
        logits = tl.where((tl.arange(0, BLOCK_N) < count)[None, :], logits, -float("inf"))
    return logits


@triton.jit
def _exponents(logits, m, scale):
    """Exponents of a tile's probabilities, the factor of all earlier sums, the new maximum."""
    m_new = tl.maximum(m, tl.max(logits, 1) * scale)
    return logits * scale - m_new[:, None], tl.exp2(m - m_new), m_new


@triton.jit
def _add_tile(
    exponents, alpha, acc, total, v_ptr, count, stride_vn,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Adds a tile of ``count`` keys to the output and to the sum of the probabilities."""
    p = tl.exp2(exponents)
    total = total * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    v = load_tile(v_ptr, stride_vn, count, D, BLOCK_N, BLOCK_D, TAIL)
    acc = dot(p.to(v.dtype), v, acc, PRECISION, INTERPRETED)
    return acc, total


@kernel(do_not_specialize=_SIZES)
def _flash_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_ptr,
    heads, q_length, k_length, lse_rows, scale,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_kn, stride_kh,
    stride_vb, stride_vn, stride_vh, stride_ob, stride_on, stride_oh,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BRANCH: tl.constexpr, OVERLAP: tl.constexpr, VARLEN: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    start, batch, head, first, q_count, k_count, lse_at = place(
        cu_ptr, heads, q_length, k_length, lse_rows, BLOCK_M, False, VARLEN
    )
    if start >= q_count:
        return
    q_ptr = at_row(q_ptr, batch, first + start, head, stride_qb, stride_qn, stride_qh, UNIT)
    out_ptr = at_row(out_ptr, batch, first + start, head, stride_ob, stride_on, stride_oh, UNIT)
    k_ptr = at_row(k_ptr, batch, first, head, stride_kb, stride_kn, stride_kh, UNIT)
    v_ptr = at_row(v_ptr, batch, first, head, stride_vb, stride_vn, stride_vh, UNIT)
    rows = q_count - start
    q = load_tile(q_ptr, stride_qn, rows, D, BLOCK_M, BLOCK_D, True)
    m = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    last = (k_count - 1) // BLOCK_N * BLOCK_N
    past = last.to(tl.int64)
    tail = k_count - last
    if OVERLAP:
        # The values lag one tile behind the keys: the products of the next tile of keys run while
        # the exponentials of this one are computed.
        logits = _logits(q, k_ptr + past * stride_kn, tail, stride_kn,
                         D, BLOCK_N, BLOCK_D, True, PRECISION, INTERPRETED)  # fmt: skip
        exponents, alpha, m = _exponents(logits, m, scale)
        v_ptr += past * stride_vn
        for begin in range(0, last, BLOCK_N):
            count = tl.where(begin == 0, tail, BLOCK_N)
            logits = _logits(q, k_ptr + tl.cast(begin, tl.int64) * stride_kn, BLOCK_N, stride_kn,
                             D, BLOCK_N, BLOCK_D, False, PRECISION, INTERPRETED)  # fmt: skip
            acc, total = _add_tile(exponents, alpha, acc, total, v_ptr, count, stride_vn,
                                   D, BLOCK_N, BLOCK_D, True, PRECISION, INTERPRETED)  # fmt: skip
            exponents, alpha, m = _exponents(logits, m, scale)
            v_ptr += tl.where(begin == 0, -past, BLOCK_N) * stride_vn
        count = tl.where(last == 0, tail, BLOCK_N)
        acc, total = _add_tile(exponents, alpha, acc, total, v_ptr, count, stride_vn,
                               D, BLOCK_N, BLOCK_D, True, PRECISION, INTERPRETED)  # fmt: skip
    else:
        if not BRANCH or tail > 0:  # always so; see `tile_of`
            logits = _logits(q, k_ptr + past * stride_kn, tail, stride_kn,
                             D, BLOCK_N, BLOCK_D, True, PRECISION, INTERPRETED)  # fmt: skip
            exponents, alpha, m = _exponents(logits, m, scale)
            acc, total = _add_tile(
                exponents, alpha, acc, total, v_ptr + past * stride_vn, tail, stride_vn,
                D, BLOCK_N, BLOCK_D, True, PRECISION, INTERPRETED,
            )  # fmt: skip
        for _ in range(0, last, BLOCK_N):
            logits = _logits(q, k_ptr, BLOCK_N, stride_kn,
                             D, BLOCK_N, BLOCK_D, False, PRECISION, INTERPRETED)  # fmt: skip
            exponents, alpha, m = _exponents(logits, m, scale)
            acc, total = _add_tile(exponents, alpha, acc, total, v_ptr, BLOCK_N, stride_vn,
                                   D, BLOCK_N, BLOCK_D, False, PRECISION, INTERPRETED)  # fmt: skip
            k_ptr += BLOCK_N * stride_kn
            v_ptr += BLOCK_N * stride_vn
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    tl.store(lse_ptr + lse_at + start + row, m + tl.log2(total), mask=row < rows)
    out = (acc * (1.0 / total)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + (row[:, None] * stride_on + column[None, :]), out,
             mask=(row < rows)[:, None] & (column < D)[None, :])  # fmt: skip


@kernel(do_not_specialize=["heads", "sequences", "length", "rows"])
def _flash_attention_gaps_kernel(
    ptr, cu_ptr, heads, sequences, length, rows, stride_n, stride_h,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Zeros in the rows that no tile of the forward covers; one program per sequence and head."""
    pid = tl.program_id(0)
    clear_gaps(ptr, stride_n, stride_h, cu_ptr, pid // heads, sequences, pid % heads, length, rows,
               D, BLOCK, BLOCK_D)  # fmt: skip


@kernel(do_not_specialize=[*_SIZES, "sequences"])
def _flash_attention_bwd_preprocess_kernel(
    out_ptr, grad_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr, cu_ptr,
    heads, q_length, lse_rows, sequences,
    stride_ob, stride_on, stride_oh, stride_gb, stride_gn, stride_gh,
    stride_dqn, stride_dqh, stride_dkn, stride_dkh, stride_dvn, stride_dvh,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, VARLEN: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Delta: the dot product of every output row with its gradient.

    Also writes zeros to the rows of dQ, dK and dV that no tile covers.
    """
    if VARLEN:
        tiles, pid = tl.cdiv(q_length, BLOCK_M), tl.program_id(0)
        if pid % tiles == 0:
            sequence, at = pid // tiles // heads, pid // tiles % heads
            clear_gaps(dq_ptr, stride_dqn, stride_dqh, cu_ptr, sequence, sequences, at,
                       q_length, lse_rows, D, BLOCK_M, BLOCK_D)  # fmt: skip
            clear_gaps(dk_ptr, stride_dkn, stride_dkh, cu_ptr, sequence, sequences, at,
                       q_length, lse_rows, D, BLOCK_M, BLOCK_D)  # fmt: skip
            clear_gaps(dv_ptr, stride_dvn, stride_dvh, cu_ptr, sequence, sequences, at,
                       q_length, lse_rows, D, BLOCK_M, BLOCK_D)  # fmt: skip
    start, batch, head, first, count, _, lse_at = place(
        cu_ptr, heads, q_length, q_length, lse_rows, BLOCK_M, False, VARLEN
    )
    if start >= count:
        return
    out_ptr = at_row(out_ptr, batch, first + start, head, stride_ob, stride_on, stride_oh, UNIT)
    grad_ptr = at_row(grad_ptr, batch, first + start, head, stride_gb, stride_gn, stride_gh, UNIT)
    rows = count - start
    out = load_tile(out_ptr, stride_on, rows, D, BLOCK_M, BLOCK_D, True).to(tl.float32)
    grad = load_tile(grad_ptr, stride_gn, rows, D, BLOCK_M, BLOCK_D, True).to(tl.float32)
    row = tl.arange(0, BLOCK_M)
    tl.store(delta_ptr + lse_at + start + row, tl.sum(out * grad, 1), mask=row < rows)


@triton.jit
def _dkdv_step(
    k, v, dk, dv, q_ptr, grad_ptr, lse_ptr, delta_ptr, count, scale, stride_qn, stride_gn,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr,
    BRANCH: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One tile of queries, everything transposed: probabilities are (keys, queries)."""
    q = load_tile(q_ptr, stride_qn, count, D, BLOCK_M, BLOCK_D, TAIL)
    grad = load_tile(grad_ptr, stride_gn, count, D, BLOCK_M, BLOCK_D, TAIL)
    row = tl.arange(0, BLOCK_M)
    if TAIL:  # an infinite log-sum-exp makes the probabilities of rows that are not there 0
        lse = tl.load(lse_ptr + row, mask=row < count, other=float("inf"))
        delta = tl.load(delta_ptr + row, mask=row < count, other=0.0)
    else:
        lse = tl.load(lse_ptr + row)
        delta = tl.load(delta_ptr + row)
    zero = tl.zeros((k.shape[0], BLOCK_M), tl.float32)
    logits = dot(k, tl.trans(q), zero, PRECISION, INTERPRETED)
    if not BRANCH:  # this product runs while the exponentials are computed
        dp = dot(v, tl.trans(grad), zero, PRECISION, INTERPRETED)
    p = tl.exp2(logits * scale - lse[None, :])
    dv = dot(p.to(grad.dtype), grad, dv, PRECISION, INTERPRETED)
    if BRANCH:  # products run one by one: keep fewer values in registers
        dp = dot(v, tl.trans(grad), zero, PRECISION, INTERPRETED)
    ds = p * (dp - delta[None, :])
    dk = dot(ds.to(q.dtype), q, dk, PRECISION, INTERPRETED)
    return dk, dv


@kernel(do_not_specialize=_SIZES)
def _flash_attention_bwd_dkdv_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, cu_ptr,
    heads, q_length, k_length, lse_rows, scale, scale_log2,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_kn, stride_kh,
    stride_vb, stride_vn, stride_vh, stride_gb, stride_gn, stride_gh,
    stride_dkb, stride_dkn, stride_dkh, stride_dvb, stride_dvn, stride_dvh,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BRANCH: tl.constexpr, VARLEN: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys: a loop over the queries."""
    start, batch, head, first, q_count, k_count, lse_at = place(
        cu_ptr, heads, q_length, k_length, lse_rows, BLOCK_N, True, VARLEN
    )
    if start >= k_count:
        return
    q_ptr = at_row(q_ptr, batch, first, head, stride_qb, stride_qn, stride_qh, UNIT)
    grad_ptr = at_row(grad_ptr, batch, first, head, stride_gb, stride_gn, stride_gh, UNIT)
    k_ptr = at_row(k_ptr, batch, first + start, head, stride_kb, stride_kn, stride_kh, UNIT)
    v_ptr = at_row(v_ptr, batch, first + start, head, stride_vb, stride_vn, stride_vh, UNIT)
    dk_ptr = at_row(dk_ptr, batch, first + start, head, stride_dkb, stride_dkn, stride_dkh, UNIT)
    dv_ptr = at_row(dv_ptr, batch, first + start, head, stride_dvb, stride_dvn, stride_dvh, UNIT)
    lse_ptr += lse_at
    delta_ptr += lse_at
    rows = k_count - start
    k = load_tile(k_ptr, stride_kn, rows, D, BLOCK_N, BLOCK_D, True)
    v = load_tile(v_ptr, stride_vn, rows, D, BLOCK_N, BLOCK_D, True)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    last = (q_count - 1) // BLOCK_M * BLOCK_M
    past = last.to(tl.int64)
    if not BRANCH or q_count > last:  # always so; see `tile_of`
        dk, dv = _dkdv_step(
            k, v, dk, dv, q_ptr + past * stride_qn, grad_ptr + past * stride_gn, lse_ptr + past,
            delta_ptr + past, q_count - last, scale_log2, stride_qn, stride_gn,
            D, BLOCK_M, BLOCK_D, True, BRANCH, PRECISION, INTERPRETED,
        )  # fmt: skip
    for _ in range(0, last, BLOCK_M):
        dk, dv = _dkdv_step(
            k, v, dk, dv, q_ptr, grad_ptr, lse_ptr, delta_ptr, BLOCK_M, scale_log2,
            stride_qn, stride_gn, D, BLOCK_M, BLOCK_D, False, BRANCH, PRECISION, INTERPRETED,
        )  # fmt: skip
        q_ptr += BLOCK_M * stride_qn
        grad_ptr += BLOCK_M * stride_gn
        lse_ptr += BLOCK_M
        delta_ptr += BLOCK_M
    row, column = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (column < D)[None, :]
    tl.store(dk_ptr + (row[:, None] * stride_dkn + column[None, :]),
             (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside)  # fmt: skip
    tl.store(dv_ptr + (row[:, None] * stride_dvn + column[None, :]),
             dv.to(dv_ptr.dtype.element_ty), mask=inside)  # fmt: skip


@triton.jit
def _dq_step(
    q, grad, lse, delta, dq, k_ptr, v_ptr, count, scale, stride_kn, stride_vn,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    k = load_tile(k_ptr, stride_kn, count, D, BLOCK_N, BLOCK_D, TAIL)
    v = load_tile(v_ptr, stride_vn, count, D, BLOCK_N, BLOCK_D, TAIL)
    zero = tl.zeros((q.shape[0], BLOCK_N), tl.float32)
    p = tl.exp2(dot(q, tl.trans(k), zero, PRECISION, INTERPRETED) * scale - lse[:, None])
    dp = dot(grad, tl.trans(v), zero, PRECISION, INTERPRETED)
    ds = p * (dp - delta[:, None])
    if TAIL:  # a logit of 0 can be far above the row's own: exp2 may have overflowed
        ds = tl.where((tl.arange(0, BLOCK_N) < count)[None, :], ds, 0.0)
    return dot(ds.to(k.dtype), k, dq, PRECISION, INTERPRETED)


@kernel(do_not_specialize=_SIZES)
def _flash_attention_bwd_dq_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, cu_ptr,
    heads, q_length, k_length, lse_rows, scale, scale_log2,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_kn, stride_kh,
    stride_vb, stride_vn, stride_vh, stride_gb, stride_gn, stride_gh,
    stride_dqb, stride_dqn, stride_dqh,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BRANCH: tl.constexpr, VARLEN: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of queries: a loop over the keys."""
    start, batch, head, first, q_count, k_count, lse_at = place(
        cu_ptr, heads, q_length, k_length, lse_rows, BLOCK_M, False, VARLEN
    )
    if start >= q_count:
        return
    q_ptr = at_row(q_ptr, batch, first + start, head, stride_qb, stride_qn, stride_qh, UNIT)
    grad_ptr = at_row(grad_ptr, batch, first + start, head, stride_gb, stride_gn, stride_gh, UNIT)
    dq_ptr = at_row(dq_ptr, batch, first + start, head, stride_dqb, stride_dqn, stride_dqh, UNIT)
    k_ptr = at_row(k_ptr, batch, first, head, stride_kb, stride_kn, stride_kh, UNIT)
    v_ptr = at_row(v_ptr, batch, first, head, stride_vb, stride_vn, stride_vh, UNIT)
    rows = q_count - start
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    q = load_tile(q_ptr, stride_qn, rows, D, BLOCK_M, BLOCK_D, True)
    grad = load_tile(grad_ptr, stride_gn, rows, D, BLOCK_M, BLOCK_D, True)
    lse = tl.load(lse_ptr + lse_at + start + row, mask=row < rows, other=float("inf"))
    delta = tl.load(delta_ptr + lse_at + start + row, mask=row < rows, other=0.0)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    last = (k_count - 1) // BLOCK_N * BLOCK_N
    past = last.to(tl.int64)
    if not BRANCH or k_count > last:  # always so; see `tile_of`
        dq = _dq_step(
            q, grad, lse, delta, dq, k_ptr + past * stride_kn, v_ptr + past * stride_vn,
            k_count - last, scale_log2, stride_kn, stride_vn,
            D, BLOCK_N, BLOCK_D, True, PRECISION, INTERPRETED,
        )  # fmt: skip
    for _ in range(0, last, BLOCK_N):
        dq = _dq_step(
            q, grad, lse, delta, dq, k_ptr, v_ptr, BLOCK_N, scale_log2, stride_kn, stride_vn,
            D, BLOCK_N, BLOCK_D, False, PRECISION, INTERPRETED,
        )  # fmt: skip
        k_ptr += BLOCK_N * stride_kn
        v_ptr += BLOCK_N * stride_vn
    tl.store(dq_ptr + (row[:, None] * stride_dqn + column[None, :]),
             (dq * scale).to(dq_ptr.dtype.element_ty),
             mask=(row < rows)[:, None] & (column < D)[None, :])  # fmt: skip


def _strides(varlen: bool, *tensors: Tensor) -> list[int]:
    """Batch, row and head strides of each; packed sequences (T, H, D) have no batch."""
    strides: list[int] = []
    for x in tensors:
        strides += (0, *x.stride()[:2]) if varlen else x.stride()[:3]
    return strides


class _Problem:
    """Sizes that all four kernels share; ``cu_seqlens`` None is a dense batch."""

    def __init__(self, q: Tensor, k: Tensor, cu_seqlens: Tensor | None, max_seqlen: int) -> None:
        self.varlen = cu_seqlens is not None
        self.cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
        self.heads, self.head_dim = q.shape[-2:]
        if cu_seqlens is not None:
            self.batch, self.lse_rows = len(cu_seqlens) - 1, q.shape[0]
            self.q_length = self.k_length = max_seqlen
        else:
            self.batch, self.lse_rows = q.shape[0], q.shape[1]
            self.q_length, self.k_length = q.shape[1], k.shape[1]
        self.dtype = q.dtype
        self.small = is_small(q.shape[:-1].numel())
        self.short = max(self.q_length, self.k_length) <= SHORT
        precision = float32_precision() if q.dtype == torch.float32 else "tf32"
        self.constants = {
            "D": self.head_dim, "BLOCK_D": max(16, next_power_of_2(self.head_dim)),
            "VARLEN": self.varlen, "enable_fp_fusion": True,
        }  # fmt: skip
        self.products = {"PRECISION": precision, "INTERPRETED": INTERPRET}

    def tile(self, kind: str) -> dict[str, int]:
        return tile_of(kind, self.dtype, self.head_dim, self.small, self.short)

    def readable(self, *tensors: Tensor) -> list[Tensor]:
        """Each as it is where the kernels can read it in place, else a copy."""
        row = 0 if self.varlen else 1
        found = []
        for x in tensors:
            in_place = x.stride(-1) == 1 and x.stride(row) < _MAX_ROW_STRIDE
            found.append(x if in_place else x.contiguous())
        return found

    def is_empty(self, q: Tensor, k: Tensor) -> bool:
        return q.numel() == 0 or k.numel() == 0 or self.q_length == 0 or self.batch == 0

    def grid(self, length: int, block: int) -> tuple[int]:
        return (-(-length // block) * self.batch * self.heads,)


@on_its_device
def flash_attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, scale: float,
    cu_seqlens: Tensor | None = None, max_seqlen: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launches the forward: one kernel, and one for the rows outside of packed sequences.

    Args:
        q: (B, N, H, D), or (T, H, D) with ``cu_seqlens``; read in place where D has stride 1.
        k: (B, M, H, D), or (T, H, D).
        v: Like ``k``.
        scale: Factor on the logits.
        cu_seqlens: int32 (S + 1), first rows of the sequences and the end of the last.
        max_seqlen: Rows of the longest sequence. A longer one is cut: the rows past it get zeros,
            as do rows outside of all sequences.

    Returns:
        The output, contiguous, like ``q``; the logarithm to base 2 of the softmax's denominators,
        float32 (B, H, N) or (H, T).
    """
    problem = _Problem(q, k, cu_seqlens, max_seqlen)
    varlen = problem.varlen
    q, k, v = problem.readable(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    shape = (problem.heads, problem.lse_rows)
    lse = torch.empty(
        shape if varlen else (problem.batch, *shape), dtype=torch.float32, device=q.device
    )
    if problem.is_empty(q, k):
        return out.zero_(), lse.zero_()
    if varlen:
        _flash_attention_gaps_kernel[(problem.batch * problem.heads,)](
            out, problem.cu_seqlens,
            problem.heads, problem.batch, problem.q_length, problem.lse_rows, *out.stride()[:2],
            BLOCK=16, num_warps=1, D=problem.head_dim, BLOCK_D=problem.constants["BLOCK_D"],
            enable_fp_fusion=True,
        )  # fmt: skip
    tile = problem.tile("fwd")
    strides = _strides(varlen, q, k, v, out)
    _flash_attention_fwd_kernel[problem.grid(problem.q_length, tile["BLOCK_M"])](
        q, k, v, out, lse, problem.cu_seqlens,
        problem.heads, problem.q_length, problem.k_length, problem.lse_rows, scale * LOG2E,
        *strides, UNIT=unit_of(strides) if problem.head_dim % 16 else 1,
        **tile, **problem.constants, **problem.products,
    )  # fmt: skip
    return out, lse


@on_its_device
def flash_attention_bwd(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float,
    dq: Tensor, dk: Tensor, dv: Tensor,
    cu_seqlens: Tensor | None = None, max_seqlen: int = 0,
) -> None:  # fmt: skip
    """Launches the backward: three kernels, which write ``dq``, ``dk`` and ``dv``.

    Args:
        grad: Gradient of the output.
        q: As in the forward, and so are ``k``, ``v``, ``scale``, ``cu_seqlens``, ``max_seqlen``.
        k: As in the forward.
        v: As in the forward.
        out: From the forward.
        lse: From the forward.
        scale: As in the forward.
        dq: Written; of any strides with 1 for D, so views of a packed gradient serve.
        dk: Written, likewise.
        dv: Written, likewise.
        cu_seqlens: As in the forward.
        max_seqlen: As in the forward.
    """
    problem = _Problem(q, k, cu_seqlens, max_seqlen)
    varlen = problem.varlen
    grad, q, k, v = problem.readable(grad, q, k, v)
    if problem.is_empty(q, k):
        for x in (dq, dk, dv):
            x.zero_()
        return
    delta = torch.empty_like(lse)
    common = (problem.heads, problem.q_length, problem.k_length, problem.lse_rows,
              scale, scale * LOG2E)  # fmt: skip
    inputs = _strides(varlen, q, k, v, grad)
    outputs = _strides(varlen, dq, dk, dv)
    unit = unit_of(inputs + outputs) if problem.head_dim % 16 else 1
    _flash_attention_bwd_preprocess_kernel[problem.grid(problem.q_length, _DELTA_ROWS)](
        out, grad, delta, dq, dk, dv, problem.cu_seqlens,
        problem.heads, problem.q_length, problem.lse_rows, problem.batch,
        *_strides(varlen, out, grad),
        *(stride for x in (dq, dk, dv) for stride in x.stride()[-3:-1]),
        BLOCK_M=_DELTA_ROWS, num_warps=4, UNIT=unit, **problem.constants,
    )  # fmt: skip
    tile = problem.tile("dkdv")
    _flash_attention_bwd_dkdv_kernel[problem.grid(problem.k_length, tile["BLOCK_N"])](
        q, k, v, grad, lse, delta, dk, dv, problem.cu_seqlens, *common,
        *inputs, *outputs[3:], UNIT=unit,
        **tile, **problem.constants, **problem.products,
    )  # fmt: skip
    tile = problem.tile("dq")
    _flash_attention_bwd_dq_kernel[problem.grid(problem.q_length, tile["BLOCK_M"])](
        q, k, v, grad, lse, delta, dq, problem.cu_seqlens, *common,
        *inputs, *outputs[:3], UNIT=unit,
        **tile, **problem.constants, **problem.products,
    )  # fmt: skip
