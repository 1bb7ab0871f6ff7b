"""Residual add, LayerScale and the LayerNorm after them, as in a pre-norm block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension, _triton
from ._dispatch import Check, Op, wrong_dtype
from ._kernel_op import KernelOp

MAX_CHANNELS = {"triton": 2048, "cpp": 4096}
"""A row has to fit in the registers of one program, or in float32 on the stack of a thread."""


def add_layer_norm_reference(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Specification of `add_layer_norm`; PyTorch computes both in float32 and rounds once."""
    s = torch.addcmul(x, branch, gamma)
    dtype = dtype or s.dtype
    compute = torch.promote_types(torch.promote_types(s.dtype, weight.dtype), dtype)
    n = F.layer_norm(s.to(compute), weight.shape, weight.to(compute), bias.to(compute), eps)
    return s, n.to(dtype)


def _empty_results(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """For s, for n, and for mean and inverse standard deviation of the rows of s."""
    *_, sum_dtype, dtype, _backend = args
    return (
        x.new_empty(x.shape, dtype=sum_dtype),
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty((2, math.prod(x.shape[:-1])), dtype=torch.float32),
    )


def _cpp_forward(x: Tensor, branch: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *parameters, _sum_dtype, _dtype = args
    results = _empty_results(x, *args, "cpp")
    torch.ops.dafast_C.add_layer_norm(x.contiguous(), branch.contiguous(), *parameters, *results)
    return results


_op = KernelOp(
    "add_layer_norm(Tensor x, Tensor branch, Tensor gamma, Tensor weight, Tensor bias, float eps,"
    " ScalarType sum_dtype, ScalarType dtype, str backend) -> (Tensor, Tensor, Tensor)",
    fake=_empty_results,
    triton=_triton.launcher("add_layer_norm", "add_layer_norm_fwd"),
    cpp=_cpp_forward,
)


def _empty_gradients(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """For x, for branch, and for gamma, weight and bias in float32."""
    _grad_s, _grad_n, s, branch, _gamma, _weight, _stats, x_dtype, _backend = args
    return (
        s.new_empty(s.shape, dtype=x_dtype),
        branch.new_empty(branch.shape),
        s.new_empty((3, s.shape[-1]), dtype=torch.float32),
    )


def _cpp_backward(
    grad_s: Tensor | None, grad_n: Tensor | None, s: Tensor, branch: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    results = _empty_gradients(grad_s, grad_n, s, branch, *args, "cpp")
    grads = [None if grad is None else grad.contiguous() for grad in (grad_s, grad_n)]
    *parameters, _x_dtype = args
    torch.ops.dafast_C.add_layer_norm_backward(
        *grads, s, branch.contiguous(), *parameters, *results
    )
    return results


_backward_op = KernelOp(
    "add_layer_norm_backward(Tensor? grad_s, Tensor? grad_n, Tensor s, Tensor branch,"
    " Tensor gamma, Tensor weight, Tensor stats, ScalarType x_dtype, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    fake=_empty_gradients,
    triton=_triton.launcher("add_layer_norm", "add_layer_norm_bwd"),
    cpp=_cpp_backward,
)


def _keep(inputs: tuple[Any, ...], results: tuple[Tensor, ...]) -> tuple[Any, ...]:
    x, branch, gamma, weight, *_, backend = inputs
    s, _, stats = results
    return s, branch, gamma, weight, stats, x.dtype, backend


_op.differentiate_by(
    _backward_op, _keep, outputs=2, finish=lambda x, branch, sums: (x, branch, *sums.unbind())
)


def _backend(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, branch: Tensor, gamma: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        weight, bias, eps, dtype = args
        sums = torch.promote_types(torch.promote_types(x.dtype, branch.dtype), gamma.dtype)
        return _op(x, branch, gamma, weight, bias, float(eps), sums, dtype or sums, name)[:2]

    return run


def _limits(backend: str) -> Check:
    most = MAX_CHANNELS[backend]

    def check(*args: Any) -> str:
        dtypes = [tensor.dtype for tensor in args[:5]]
        if reason := wrong_dtype(*dtypes, *(dtype for dtype in args[6:] if dtype)):
            return reason
        channels = args[0].shape[-1]
        return "" if 0 < channels <= most else f"takes 1 to {most} channels, not {channels}"

    return check


def _cpp_preferred(*args: Any) -> str:
    if args[0].dtype != torch.float32:
        return f"with x in {args[0].dtype} PyTorch's own operations are as fast"
    gradient = True
    for tensor in args[:5]:  # a loop makes no Python call
        gradient = gradient and tensor.dtype == torch.float32
    return _extension.saves_time(*args[:5], gradient=gradient)


_add_layer_norm = Op(
    "add_layer_norm",
    add_layer_norm_reference,
    {
        "triton": _triton.backend(_backend("triton"), _limits("triton")),
        "cpp": _extension.backend(
            "cpp", "add_layer_norm", _backend("cpp"), _limits("cpp"), _cpp_preferred
        ),
    },
)


def check_inputs(
    op: str, x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor
) -> None:
    """Raises a ValueError if shapes or dtypes do not fit."""
    if x.ndim == 0 or x.shape != branch.shape:
        raise ValueError(
            f"{op} needs x and branch of one shape (..., C); got "
            f"{tuple(x.shape)} and {tuple(branch.shape)}"
        )
    for name, vector in (("gamma", gamma), ("weight", weight), ("bias", bias)):
        if vector.shape != x.shape[-1:]:
            raise ValueError(f"{name} must be ({x.shape[-1]},); got {tuple(vector.shape)}")
    for tensor in (x, branch, gamma, weight, bias):  # a loop makes no Python call
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"floating point expected; got {tensor.dtype}")


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

    This is the step between two branches of a pre-norm transformer: the output of one, scaled by
    LayerScale (Touvron et al., "Going deeper with Image Transformers"), is added to the residual
    stream, and the sum is normalised for the next. Statistics are in float32 and computed from
    ``s`` after it is rounded to its dtype.

    Autocast does not change this op: ``s`` has the dtype that ``x + branch * gamma`` has in
    PyTorch, float32 if the stream is float32, and ``dtype`` sets that of ``n``. Under autocast
    pass the dtype of the products that follow: the values equal those of PyTorch's float32
    LayerNorm followed by a cast.

    Args:
        x: Residual stream (..., C), float16, bfloat16, float32 or float64.
        branch: Output of the branch, of the shape of ``x``, in any of these dtypes.
        gamma: LayerScale (C), in any of these dtypes, as the next two.
        weight: Weight of the LayerNorm (C).
        bias: Bias of the LayerNorm (C).
        eps: Added to the variance.
        dtype: Dtype of ``n``; that of ``s`` by default.

    Returns:
        ``s`` and ``n``, both (..., C).

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    check_inputs("add_layer_norm", x, branch, gamma, weight, bias)
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"floating point expected; got dtype={dtype}")
    return _add_layer_norm(x, branch, gamma, weight, bias, eps, dtype)
