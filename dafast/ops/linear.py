"""A linear layer in float32 with gradients, on a CPU by products of dafast's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import is_autocast_on
from . import _extension
from ._dispatch import Op, wants_gradient
from ._kernel_op import KernelOp

_UNIT = 32
_LEAST_ROWS = 512
"""With fewer rows packing the weights takes longer than the product gains."""


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Specification of `linear`."""
    return F.linear(x, weight, bias)


def _matrix(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _empty_result(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _cpp_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = _empty_result(x, weight)
    bias = bias if bias is None else bias.contiguous()
    torch.ops.dafast_C.linear(
        _matrix(x), weight.contiguous(), bias, True, out.view(-1, weight.shape[0])
    )
    return out


_op = KernelOp(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    fake=_empty_result,
    cpp=_cpp_forward,
)


def _empty_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], weight.shape[1]))


def _cpp_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    out = _empty_input_gradient(grad, weight)
    torch.ops.dafast_C.linear(
        _matrix(grad), weight.contiguous(), None, False, out.view(-1, weight.shape[1])
    )
    return out


_input_gradient = KernelOp(
    "linear_input_gradient(Tensor grad, Tensor weight) -> Tensor",
    fake=_empty_input_gradient,
    cpp=_cpp_input_gradient,
)
_input_gradient.refuse_derivative("linear")


def _empty_gradients(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """For the weights, and for a bias."""
    columns = grad.shape[-1]
    return grad.new_empty((columns, x.shape[-1])), grad.new_empty(columns)


def _cpp_weight_gradient(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = _empty_gradients(grad, x)
    torch.ops.dafast_C.linear_backward(_matrix(grad), _matrix(x), weight, bias)
    return weight, bias


_weight_gradient = KernelOp(
    "linear_weight_gradient(Tensor grad, Tensor x) -> (Tensor, Tensor)",
    fake=_empty_gradients,
    cpp=_cpp_weight_gradient,
)
_weight_gradient.refuse_derivative("linear")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    of_x = _input_gradient(grad, weight) if wanted[0] else None
    of_weight = of_bias = None
    if wanted[1] or wanted[2]:
        of_weight, of_bias = _weight_gradient(grad, x)
    return of_x, of_weight if wanted[1] else None, of_bias if wanted[2] else None


_op.register_autograd(_backward, _setup_context)


def _limits(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    for tensor in (x, weight, bias):
        if tensor is not None and tensor.dtype != torch.float32:
            return f"takes float32, not {tensor.dtype}"
    if 0 in weight.shape or any(size % _UNIT for size in weight.shape):
        return f"takes multiples of {_UNIT} channels, not {tuple(weight.shape)}"
    return ""


def _unasked(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    if torch.compiler.is_dynamo_compiling():
        return "torch.compile has products of its own"
    if not wants_gradient(x, weight, *(() if bias is None else (bias,))):
        return "without a gradient PyTorch's product serves it"
    if x.numel() < _LEAST_ROWS * x.shape[-1]:
        return f"PyTorch's product is as fast below {_LEAST_ROWS} rows"
    capability = _extension.cpu_capability()  # `supports` reports a missing extension
    if capability and not capability.startswith("avx512"):
        return "without AVX-512 it was not measured"
    return ""


_linear = Op(
    "linear",
    linear_reference,
    {"cpp": _extension.backend("cpp", "linear", lambda *args: _op(*args), _limits, _unasked)},
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, for training.

    Args:
        x: (..., K), floating point.
        weight: (N, K).
        bias: (N).

    Returns:
        (..., N) in the dtype of ``x``.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    if (
        x.ndim == 0 or weight.ndim != 2 or weight.shape[1] != x.shape[-1]
        or (bias is not None and bias.shape != weight.shape[:1])
    ):  # fmt: skip
        shapes = [None if t is None else tuple(t.shape) for t in (x, weight, bias)]
        raise ValueError(f"linear needs x (..., K), weights (N, K) and a bias (N); got {shapes}")
    for tensor in (x, weight, bias):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"floating point expected; got {tensor.dtype}")
    return _linear(x, weight, bias)


def linear_layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` where its kernel serves the call, else PyTorch's, as under autocast to 16 bits.

    Args:
        x: (..., K); PyTorch's function reports a shape that does not fit.
        weight: (N, K), of a layer.
        bias: (N), of the same layer.
    """
    # The choice of a backend does not know autocast.
    if x.is_cpu and not is_autocast_on("cpu") and x.shape[-1:] == weight.shape[1:]:
        backend = _linear.select(x, weight, bias)
        if backend != "reference":
            return _linear.backends[backend].fn(x, weight, bias)
    return F.linear(x, weight, bias)
