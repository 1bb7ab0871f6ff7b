"""Feature alignment: keeps a student's features near a frozen encoder's, within a tolerance."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension, _triton
from ._dispatch import Backend, Op
from ._kernel_op import kernel_op

REDUCTIONS = ("all", "kept")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MAX_CHANNELS = 8192  # a row has to fit in the registers of one program


def feature_alignment_loss_reference(
    student: Tensor, teacher: Tensor, *, margin: float = 0.85, reduction: str = "all"
) -> Tensor:
    """Specification of `feature_alignment_loss`, in float32 inside."""
    compute = torch.float64 if student.dtype == torch.float64 else torch.float32
    cosine = F.cosine_similarity(student.to(compute), teacher.detach().to(compute), dim=-1)
    kept = ~(cosine > margin)  # not `<=`: a NaN has to show
    total = torch.where(kept, 1 - cosine, 0).sum()
    divisor = kept.sum() if reduction == "kept" else cosine.numel()
    return total / (divisor.clamp_min(1) if isinstance(divisor, Tensor) else max(divisor, 1))


def _empty_results(student: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For the loss, three numbers per token, and the weight of a token; all float32."""
    empty = student.new_empty
    rows = student.shape[0] * student.shape[1]
    return (
        empty((), dtype=torch.float32),
        empty((3, rows), dtype=torch.float32),
        empty((), dtype=torch.float32),
    )


@kernel_op("dafast::feature_alignment_loss")
def _op(
    student: Tensor, teacher: Tensor, margin: float, kept_only: bool, backend: str = "triton"
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "cpp":
        results = _empty_results(student)
        torch.ops.dafast_C.feature_alignment_loss(student, teacher, margin, kept_only, *results)
        return results
    from dafast.kernels.feature_alignment_loss import feature_alignment_loss_fwd

    return feature_alignment_loss_fwd(student, teacher, margin, kept_only)


@_op.register_fake
def _(
    student: Tensor, teacher: Tensor, margin: float, kept_only: bool, backend: str = "triton"
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(student)


@kernel_op("dafast::feature_alignment_loss_backward")
def _backward_op(
    grad: Tensor, student: Tensor, teacher: Tensor, stats: Tensor, weight: Tensor, backend: str
) -> Tensor:
    if backend == "cpp":
        out = student.new_empty(student.shape)
        torch.ops.dafast_C.feature_alignment_loss_backward(
            grad, student, teacher, stats, weight, out
        )
        return out
    from dafast.kernels.feature_alignment_loss import feature_alignment_loss_bwd

    return feature_alignment_loss_bwd(grad, student, teacher, stats, weight)


@_backward_op.register_fake
def _(
    grad: Tensor, student: Tensor, teacher: Tensor, stats: Tensor, weight: Tensor, backend: str
) -> Tensor:
    return student.new_empty(student.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    student, teacher, _, _, ctx.backend = inputs
    _, stats, weight = output
    ctx.save_for_backward(student, teacher, stats, weight)


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Any, ...]:
    return _backward_op(grad, *ctx.saved_tensors, ctx.backend), None, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)
_triton.no_second_derivative(_backward_op, "feature_alignment_loss")


def _why_not_dtypes(*tensors: Tensor) -> str:
    """Why the kernels cannot take these tensors; an empty string if they can."""
    for x in tensors:
        if x.dtype not in _DTYPES:
            return f"takes float16, bfloat16 and float32, not {x.dtype}"
    return ""


def _triton_supports(
    student: Tensor, teacher: Tensor, *, margin: float = 0.85, reduction: str = "all"
) -> tuple[bool, str]:
    if reason := _why_not_dtypes(student, teacher):
        return False, reason
    if student.shape[-1] > _MAX_CHANNELS:
        return False, f"takes up to {_MAX_CHANNELS} channels, not {student.shape[-1]}"
    return _triton.supports(student, teacher)


def _cpp_supports(
    student: Tensor, teacher: Tensor, *, margin: float = 0.85, reduction: str = "all"
) -> tuple[bool, str]:
    if reason := _why_not_dtypes(student, teacher):
        return False, reason
    return _extension.supports("cpp", "feature_alignment_loss", student, teacher)


def _triton_backend(
    student: Tensor, teacher: Tensor, *, margin: float = 0.85, reduction: str = "all"
) -> Tensor:
    return _op(student, teacher.detach(), float(margin), reduction == "kept", "triton")[0]


def _cpp_backend(
    student: Tensor, teacher: Tensor, *, margin: float = 0.85, reduction: str = "all"
) -> Tensor:
    return _op(student, teacher.detach(), float(margin), reduction == "kept", "cpp")[0]


_feature_alignment_loss = Op(
    "feature_alignment_loss",
    feature_alignment_loss_reference,
    {
        "triton": Backend(_triton_backend, _triton_supports),
        "cpp": Backend(_cpp_backend, _cpp_supports),
    },
)


def feature_alignment_loss(
    student: Tensor, teacher: Tensor, *, margin: float = 0.85, reduction: str = "all"
) -> Tensor:
    """1 - cosine similarity per token, tokens that are similar enough left out.

    Depth Anything, Eq. 9. A token with a cosine above ``margin`` (there alpha = 0.85) counts 0
    and gets no gradient: within the tolerance the student may differ from the frozen encoder. The
    gradient goes to the student alone.

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
    return _feature_alignment_loss(student, teacher, margin=margin, reduction=reduction)
