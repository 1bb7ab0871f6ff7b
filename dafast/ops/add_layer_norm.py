"""Residual add, LayerScale and the LayerNorm after them, as a pre-norm block has them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension, _triton
from ._dispatch import Backend, Op, _forced_backend
from ._kernel_op import kernel_op

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MAX_CHANNELS = 2048  # a row has to fit in the registers of one program
_MAX_CHANNELS_CPP = 4096  # and here on the stack, in float32


def _dtype_of_sum(x: Tensor, branch: Tensor, gamma: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, branch.dtype), gamma.dtype)


def add_layer_norm_reference(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Specification of `add_layer_norm`; PyTorch computes both in float32 and rounds once."""
    s = torch.addcmul(x, branch, gamma)
    dtype = dtype or s.dtype
    compute = torch.promote_types(torch.promote_types(s.dtype, weight.dtype), dtype)
    n = F.layer_norm(s.to(compute), s.shape[-1:], weight.to(compute), bias.to(compute), eps)
    return s, n.to(dtype)


def _empty_results(
    x: Tensor, sum_dtype: torch.dtype, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """For s, for n, and for mean and inverse standard deviation of the rows of s."""
    return (
        x.new_empty(x.shape, dtype=sum_dtype),
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty((2, math.prod(x.shape[:-1])), dtype=torch.float32),
    )


def _cpp_forward(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    sum_dtype: torch.dtype,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    results = _empty_results(x, sum_dtype, dtype)
    torch.ops.dafast_C.add_layer_norm(
        x.contiguous(), branch.contiguous(), gamma, weight, bias, eps, *results
    )
    return results


@kernel_op("dafast::add_layer_norm")
def _op(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    sum_dtype: torch.dtype,
    dtype: torch.dtype,
    backend: str = "triton",
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "cpp":
        return _cpp_forward(x, branch, gamma, weight, bias, eps, sum_dtype, dtype)
    from dafast.kernels.add_layer_norm import add_layer_norm_fwd

    return add_layer_norm_fwd(x, branch, gamma, weight, bias, eps, sum_dtype, dtype)


@_op.register_fake
def _(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    sum_dtype: torch.dtype,
    dtype: torch.dtype,
    backend: str = "triton",
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(x, sum_dtype, dtype)


def _empty_gradients(
    s: Tensor, branch: Tensor, x_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """For x, for branch, and for gamma, weight and bias in float32."""
    return (
        s.new_empty(s.shape, dtype=x_dtype),
        branch.new_empty(branch.shape),
        s.new_empty((3, s.shape[-1]), dtype=torch.float32),
    )


@kernel_op("dafast::add_layer_norm_backward")
def _backward_op(
    grad_s: Tensor | None,
    grad_n: Tensor | None,
    s: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    stats: Tensor,
    x_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "cpp":
        results = _empty_gradients(s, branch, x_dtype)
        grads = [None if g is None else g.contiguous() for g in (grad_s, grad_n)]
        torch.ops.dafast_C.add_layer_norm_backward(
            *grads, s, branch.contiguous(), gamma, weight, stats, *results
        )
        return results
    from dafast.kernels.add_layer_norm import add_layer_norm_bwd

    return add_layer_norm_bwd(grad_s, grad_n, s, branch, gamma, weight, stats, x_dtype)


@_backward_op.register_fake
def _(
    grad_s: Tensor | None,
    grad_n: Tensor | None,
    s: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    stats: Tensor,
    x_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(s, branch, x_dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, branch, gamma, weight, bias, *_, ctx.backend = inputs
    s, _, stats = output
    ctx.save_for_backward(s, branch, gamma, weight, stats)
    ctx.x_dtype, ctx.bias_dtype = x.dtype, bias.dtype
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_s: Tensor | None, grad_n: Tensor | None, _stats: None
) -> tuple[Tensor | None, ...]:
    if grad_s is None and grad_n is None:
        return (None,) * 9
    s, branch, gamma, weight, stats = ctx.saved_tensors
    grad_x, grad_branch, sums = _backward_op(
        grad_s, grad_n, s, branch, gamma, weight, stats, ctx.x_dtype, ctx.backend
    )
    dtypes = (gamma.dtype, weight.dtype, ctx.bias_dtype)
    parameters = (g.to(dtype) for g, dtype in zip(sums.unbind(), dtypes, strict=True))
    return grad_x, grad_branch, *parameters, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)
_triton.no_second_derivative(_backward_op, "add_layer_norm")


def _why_not_dtypes(*dtypes: torch.dtype) -> str:
    """Why the kernels cannot work on these; an empty string if they can."""
    for dtype in dtypes:
        if dtype not in _DTYPES:
            return f"takes float16, bfloat16 and float32, not {dtype}"
    return ""


def _triton_supports(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[bool, str]:
    tensors = (x, branch, gamma, weight, bias)
    if reason := _why_not_dtypes(*(tensor.dtype for tensor in tensors), dtype or x.dtype):
        return False, reason
    if not 0 < x.shape[-1] <= _MAX_CHANNELS:
        return False, f"takes 1 to {_MAX_CHANNELS} channels, not {x.shape[-1]}"
    return _triton.supports(*tensors)


def _cpp_supports(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[bool, str]:
    tensors = (x, branch, gamma, weight, bias)
    if reason := _why_not_dtypes(*(tensor.dtype for tensor in tensors), dtype or x.dtype):
        return False, reason
    if not 0 < x.shape[-1] <= _MAX_CHANNELS_CPP:
        return False, f"takes 1 to {_MAX_CHANNELS_CPP} channels, not {x.shape[-1]}"
    ok, reason = _extension.supports("cpp", "add_layer_norm", *tensors)
    if ok:
        reason = _extension.why_not_unasked(*tensors)
    if not reason and x.dtype != torch.float32 and _forced_backend() != "cpp":
        reason = f"with x in {x.dtype} PyTorch's own operations are as fast"
    return not reason, reason


def _triton_backend(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    sum_dtype = _dtype_of_sum(x, branch, gamma)
    dtype = dtype or sum_dtype
    return _op(x, branch, gamma, weight, bias, float(eps), sum_dtype, dtype, "triton")[:2]


def _cpp_backend(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    sum_dtype = _dtype_of_sum(x, branch, gamma)
    dtype = dtype or sum_dtype
    return _op(x, branch, gamma, weight, bias, float(eps), sum_dtype, dtype, "cpp")[:2]


_add_layer_norm = Op(
    "add_layer_norm",
    add_layer_norm_reference,
    {
        "triton": Backend(_triton_backend, _triton_supports),
        "cpp": Backend(_cpp_backend, _cpp_supports),
    },
)


def add_layer_norm(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """s = x + branch * gamma and n = LayerNorm(s) * weight + bias, in one pass over each tensor.

    What a pre-norm transformer does between two of its branches: the output of one, scaled by
    LayerScale (Touvron et al., "Going deeper with Image Transformers"), is added to the residual
    stream, and the sum is normalised for the next. Statistics are float32 and those of ``s`` as it
    is returned, rounded to its dtype.

    Autocast does not touch this op: ``s`` has the dtype that ``x + branch * gamma`` has in
    PyTorch, so float32 where the stream is, and ``dtype`` says what ``n`` is to be. Under autocast
    that is the dtype of the products which follow: the values that PyTorch's own float32
    LayerNorm and the cast after it would give.

    Args:
        x: Residual stream (..., C), float16, bfloat16, float32 or float64.
        branch: Output of the branch, of the shape of ``x``; its dtype may be another one.
        gamma: LayerScale (C); of any of these dtypes, like the following two.
        weight: Of the LayerNorm (C).
        bias: Of the LayerNorm (C).
        eps: Added to the variance.
        dtype: Of ``n``; that of ``s`` by default.

    Returns:
        ``s`` and ``n``, both (..., C).

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    if x.ndim == 0 or x.shape != branch.shape:
        raise ValueError(
            "add_layer_norm needs x and branch of one shape (..., C); got "
            f"{tuple(x.shape)} and {tuple(branch.shape)}"
        )
    for name, vector in (("gamma", gamma), ("weight", weight), ("bias", bias)):
        if vector.shape != x.shape[-1:]:
            raise ValueError(f"{name} must be ({x.shape[-1]},); got {tuple(vector.shape)}")
    dtypes = [tensor.dtype for tensor in (x, branch, gamma, weight, bias)]
    if not all(given.is_floating_point for given in (*dtypes, dtype or x.dtype)):
        raise ValueError(f"floating point expected; got {dtypes}, dtype={dtype}")
    return _add_layer_norm(x, branch, gamma, weight, bias, eps, dtype=dtype)
