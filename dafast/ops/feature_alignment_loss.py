"""Feature alignment: keeps a student's features near a frozen encoder's, within a tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension, _triton
from ._dispatch import Op, wrong_dtype
from ._kernel_op import KernelOp

REDUCTIONS = ("all", "kept")
_MAX_CHANNELS = 8192  # a row has to fit in the registers of one program


def feature_alignment_loss_reference(
    student: Tensor, teacher: Tensor, margin: float = 0.85, reduction: str = "all"
) -> Tensor:
    """Specification of `feature_alignment_loss`, in float32 inside."""
    compute = torch.float64 if student.dtype == torch.float64 else torch.float32
    cosine = F.cosine_similarity(student.to(compute), teacher.detach().to(compute), dim=-1)
    kept = ~(cosine > margin)  # not `<=`: a NaN has to show
    total = torch.where(kept, 1 - cosine, 0).sum()
    divisor = kept.sum() if reduction == "kept" else cosine.numel()
    return total / (divisor.clamp_min(1) if isinstance(divisor, Tensor) else max(divisor, 1))


def _empty_results(student: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """For the loss, three numbers per token, and the weight of a token; all float32."""
    rows = student.shape[0] * student.shape[1]
    return (
        student.new_empty((), dtype=torch.float32),
        student.new_empty((3, rows), dtype=torch.float32),
        student.new_empty((), dtype=torch.float32),
    )


def _cpp_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    results = _empty_results(*args)
    torch.ops.dafast_C.feature_alignment_loss(*args, *results)
    return results


_op = KernelOp(
    "feature_alignment_loss(Tensor student, Tensor teacher, float margin, bool kept_only,"
    " str backend) -> (Tensor, Tensor, Tensor)",
    fake=_empty_results,
    triton=_triton.launcher("feature_alignment_loss", "feature_alignment_loss_fwd"),
    cpp=_cpp_forward,
)


def _cpp_backward(grad: Tensor, student: Tensor, *args: Any) -> Tensor:
    out = student.new_empty(student.shape)
    torch.ops.dafast_C.feature_alignment_loss_backward(grad, student, *args, out)
    return out


_backward_op = KernelOp(
    "feature_alignment_loss_backward(Tensor grad, Tensor student, Tensor teacher, Tensor stats,"
    " Tensor weight, str backend) -> Tensor",
    fake=lambda grad, student, *_: student.new_empty(student.shape),
    triton=_triton.launcher("feature_alignment_loss", "feature_alignment_loss_bwd"),
    cpp=_cpp_backward,
)


_op.differentiate_by(_backward_op, lambda inputs, results: (*inputs[:2], *results[1:], inputs[-1]))


def _backend(name: str) -> Callable[..., Tensor]:
    def run(student: Tensor, teacher: Tensor, margin: float, reduction: str) -> Tensor:
        return _op(student, teacher.detach(), float(margin), reduction == "kept", name)[0]

    return run


def _limits(student: Tensor, teacher: Tensor, *_: Any) -> str:
    return wrong_dtype(student.dtype, teacher.dtype)


def _triton_limits(student: Tensor, teacher: Tensor, *_: Any) -> str:
    if student.shape[-1] > _MAX_CHANNELS:
        return f"takes up to {_MAX_CHANNELS} channels, not {student.shape[-1]}"
    return _limits(student, teacher)


_feature_alignment_loss = Op(
    "feature_alignment_loss",
    feature_alignment_loss_reference,
    {
        "triton": _triton.backend(_backend("triton"), _triton_limits),
        "cpp": _extension.backend("cpp", "feature_alignment_loss", _backend("cpp"), _limits),
    },
)


def feature_alignment_loss(
    student: Tensor, teacher: Tensor, *, margin: float = 0.85, reduction: str = "all"
) -> Tensor:
    """Mean of 1 - cosine similarity over the tokens that are not similar enough.

    Depth Anything, Eq. 9. A token with a cosine above ``margin`` (alpha = 0.85 in the paper)
    counts 0 and gets no gradient: within the tolerance the student may differ from the frozen
    encoder. Only the student gets a gradient.

    Args:
        student: Features (B, N, C), float16, bfloat16, float32 or float64; any strides (a view
            without the class token is read in place).
        teacher: Features of the frozen encoder (B, N, C).
        margin: Largest cosine of a token that takes part.
        reduction: ``"all"`` divides the sum by the number of all tokens, as Eq. 9 is written;
            ``"kept"`` by the number of tokens that take part.

    Returns:
        A scalar, float32 (float64 for a float64 student); 0 if no token takes part.

    Raises:
        ValueError: If shapes, dtypes or ``reduction`` do not fit.
    """
    if student.ndim != 3 or student.shape != teacher.shape:
        raise ValueError(
            "feature_alignment_loss needs student and teacher of one shape (B, N, C); got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if not student.is_floating_point() or not teacher.is_floating_point():
        raise ValueError(f"floating point expected; got {student.dtype}, {teacher.dtype}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    return _feature_alignment_loss(student, teacher, margin, reduction)
