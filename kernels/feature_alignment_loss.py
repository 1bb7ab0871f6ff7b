"""Feature alignment: cosine similarity per token with a tolerance margin, forward and backward.

A program holds whole rows of both maps in registers, so that dot product and both norms come from
one read; three float32 per token are kept for the backward, which again reads both maps once, and
reads nothing of a token that gets no gradient.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl
from torch import Tensor

from .runtime import cdiv, kernel, next_power_of_2, on_its_device

EPS = 1e-8
"""Lower bound of a norm, that of `torch.nn.functional.cosine_similarity`."""

_REDUCE = 2048


@kernel(do_not_specialize=["batch_rows", "rows"])
def _feature_alignment_loss_fwd_kernel(
    student_ptr, teacher_ptr, stats_ptr, sums_ptr, counts_ptr,
    batch_rows, rows, channels, margin,
    stride_sb, stride_sn, stride_tb, stride_tn,
    EPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_C)
    valid = row < rows
    image, token = (row // batch_rows).to(tl.int64), (row % batch_rows).to(tl.int64)
    mask = valid[:, None] & (column < channels)[None, :]
    s_at = (image * stride_sb + token * stride_sn)[:, None] + column[None, :]
    t_at = (image * stride_tb + token * stride_tn)[:, None] + column[None, :]
    s = tl.load(student_ptr + s_at, mask=mask, other=0.0).to(tl.float32)
    t = tl.load(teacher_ptr + t_at, mask=mask, other=0.0).to(tl.float32)
    s_norm = tl.sqrt(tl.sum(s * s, 1))
    s_inverse = 1.0 / tl.maximum(s_norm, EPS)
    t_inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(t * t, 1)), EPS)
    cosine = tl.sum((s * s_inverse[:, None]) * (t * t_inverse[:, None]), 1)
    # Not `cosine <= margin`: a NaN has to show.
    kept = valid & ~(cosine > margin)
    tl.store(stats_ptr + row, tl.where(kept, cosine, 2.0), mask=valid)
    tl.store(stats_ptr + rows + row, 1.0 / s_norm, mask=valid)
    tl.store(stats_ptr + 2 * rows + row, t_inverse, mask=valid)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(kept, 1.0 - cosine, 0.0), 0))
    tl.store(counts_ptr + tl.program_id(0), tl.sum(kept.to(tl.int32), 0))


@kernel(do_not_specialize=["programs", "rows"])
def _feature_alignment_loss_reduce_kernel(
    sums_ptr, counts_ptr, loss_ptr, weight_ptr, programs, rows,
    KEPT_ONLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program, in a fixed order: the sum is the same bit by bit in every run.
    index = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, programs, BLOCK):
        mask = start + index < programs
        total += tl.load(sums_ptr + start + index, mask=mask, other=0.0)
        count += tl.load(counts_ptr + start + index, mask=mask, other=0)
    divisor = rows
    if KEPT_ONLY:
        divisor = tl.maximum(tl.sum(count, 0), 1)
    tl.store(loss_ptr, tl.sum(total, 0) / divisor)
    tl.store(weight_ptr, 1.0 / divisor)


@kernel(do_not_specialize=["batch_rows", "rows"])
def _feature_alignment_loss_bwd_kernel(
    grad_ptr, student_ptr, teacher_ptr, stats_ptr, weight_ptr, out_ptr,
    batch_rows, rows, channels,
    stride_sb, stride_sn, stride_tb, stride_tn,
    EPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_C)
    valid = row < rows
    image, token = (row // batch_rows).to(tl.int64), (row % batch_rows).to(tl.int64)
    cosine = tl.load(stats_ptr + row, mask=valid, other=2.0)
    kept = cosine != 2.0
    inside = (column < channels)[None, :]
    mask = kept[:, None] & inside
    s_at = (image * stride_sb + token * stride_sn)[:, None] + column[None, :]
    t_at = (image * stride_tb + token * stride_tn)[:, None] + column[None, :]
    s = tl.load(student_ptr + s_at, mask=mask, other=0.0).to(tl.float32)
    t = tl.load(teacher_ptr + t_at, mask=mask, other=0.0).to(tl.float32)
    inverse = tl.load(stats_ptr + rows + row, mask=kept, other=0.0)
    # PyTorch clamps the norm's value, not its derivative, which is 0 for a zero vector.
    s_inverse = tl.where(inverse > 1.0 / EPS, 1.0 / EPS, inverse)  # keeps NaN
    derivative = tl.where(inverse == float("inf"), 0.0, inverse)
    t_inverse = tl.load(stats_ptr + 2 * rows + row, mask=kept, other=0.0)
    factor = tl.load(grad_ptr) * tl.load(weight_ptr) * s_inverse
    ahead = (factor * cosine * derivative)[:, None] * s - (factor * t_inverse)[:, None] * t
    grad = tl.where(mask, ahead, 0.0)
    out_at = row.to(tl.int64)[:, None] * channels + column[None, :]
    tl.store(out_ptr + out_at, grad.to(out_ptr.dtype.element_ty), mask=valid[:, None] & inside)


@functools.lru_cache(1024)
def _tile(channels: int, element_size: int) -> dict[str, int]:
    """BLOCK_R, BLOCK_C, num_warps: loads of 16 bytes a lane, and all warps are adjacent on a row.

    So no two warps hold different rows, and the sum over rows needs no exchange between them.
    """
    lane = 16 // element_size
    block_c = next_power_of_2(channels)
    num_warps = min(8, max(1, block_c // (32 * lane)))
    return {"BLOCK_R": max(1, min(32 // lane, 16384 // block_c)), "BLOCK_C": block_c,
            "num_warps": num_warps}  # fmt: skip


def _rows_of_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@on_its_device
def feature_alignment_loss_fwd(
    student: Tensor, teacher: Tensor, margin: float, kept_only: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the forward: two kernels.

    Args:
        student: (B, N, C), any strides; read in place where that of C is 1.
        teacher: (B, N, C), likewise.
        margin: Tokens with a larger cosine take no part.
        kept_only: Whether to divide by the number of the other tokens, else by all.

    Returns:
        The loss (), and for the backward per token cosine and both inverse norms (3, B * N),
        infinite for a zero student, and the weight of a token (); all float32.
    """
    student, teacher = _rows_of_unit_stride(student), _rows_of_unit_stride(teacher)
    batch, tokens, channels = student.shape
    rows = batch * tokens
    stats = student.new_empty((3, rows), dtype=torch.float32)
    loss = student.new_empty((), dtype=torch.float32)
    weight = student.new_empty((), dtype=torch.float32)
    if rows == 0 or channels == 0:
        # No channel: every cosine is 0.
        value = float(rows > 0 and not margin < 0.0)
        return loss.fill_(value), stats.fill_(0.0), weight.fill_(0.0)
    tile = _tile(channels, student.element_size())
    programs = cdiv(rows, tile["BLOCK_R"])
    sums = student.new_empty((programs,), dtype=torch.float32)
    counts = student.new_empty((programs,), dtype=torch.int32)
    # No contraction to FMA: where lanes add each other's products, each would contract its own, and
    # then hold different last digits of the one number that is stored.
    _feature_alignment_loss_fwd_kernel[(programs,)](
        student, teacher, stats, sums, counts, tokens, rows, channels, margin,
        student.stride(0), student.stride(1), teacher.stride(0), teacher.stride(1),
        EPS=EPS, **tile, enable_fp_fusion=False,
    )  # fmt: skip
    _feature_alignment_loss_reduce_kernel[(1,)](
        sums, counts, loss, weight, programs, rows,
        KEPT_ONLY=kept_only, BLOCK=_REDUCE, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return loss, stats, weight


@on_its_device
def feature_alignment_loss_bwd(
    grad: Tensor, student: Tensor, teacher: Tensor, stats: Tensor, weight: Tensor
) -> Tensor:
    """Launches the backward: one kernel.

    Args:
        grad: Gradient of the loss (), float32, on the device.
        student: As in the forward.
        teacher: As in the forward.
        stats: From the forward.
        weight: From the forward.

    Returns:
        Gradient of the student (B, N, C), contiguous, in its dtype.
    """
    out = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    if out.numel() == 0:
        return out
    student, teacher = _rows_of_unit_stride(student), _rows_of_unit_stride(teacher)
    batch, tokens, channels = student.shape
    tile = _tile(channels, student.element_size())
    _feature_alignment_loss_bwd_kernel[(cdiv(batch * tokens, tile["BLOCK_R"]),)](
        grad, student, teacher, stats, weight, out, tokens, batch * tokens, channels,
        student.stride(0), student.stride(1), teacher.stride(0), teacher.stride(1),
        EPS=EPS, **tile, enable_fp_fusion=True,
    )  # fmt: skip
    return out
