"""Attention with both products in int8, for inference on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp
from .linear_int8 import why_slow_int8


def _rounded(x: Tensor, dims: int) -> Tensor:
    """x in 255 steps, symmetric, one scale for all values along ``dims``."""
    step = x.abs().amax(dims, keepdim=True) / 127
    return (x / step.clamp_min(torch.finfo(torch.float32).tiny)).round() * step


def attention_int8_reference(qkv: Tensor, scale: float) -> Tensor:
    """The specification in plain PyTorch; probabilities stay float32."""
    if not qkv.numel():
        return _empty_result(qkv, scale)
    q, k, v = qkv.float().permute(2, 0, 3, 1, 4)  # (B, H, N, D)
    k = k - k.mean(-2, keepdim=True)
    logits = _rounded(q, -1) @ _rounded(k, -1).mT
    mixed = (logits * scale).softmax(-1) @ _rounded(v, -2)
    return mixed.transpose(1, 2).to(qkv.dtype)


def _empty_result(qkv: Tensor, scale: float) -> Tensor:
    batch, tokens, _, heads, dims = qkv.shape
    return qkv.new_empty((batch, tokens, heads, dims))


def _cpp_forward(qkv: Tensor, scale: float) -> Tensor:
    out = _empty_result(qkv, scale)
    torch.ops.dafast_C.attention_int8(qkv, out, scale)
    return out


_op = KernelOp(
    "attention_int8(Tensor qkv, float scale) -> Tensor", fake=_empty_result, cpp=_cpp_forward
)


def _cpp_backend(qkv: Tensor, scale: float) -> Tensor:
    return _op(qkv.contiguous(), scale)


def _cpp_limits(qkv: Tensor, scale: float) -> str:
    if qkv.dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16, not {qkv.dtype}"
    if qkv.shape[-1] % 16 or not 0 < qkv.shape[-1] <= 128:
        return f"takes a head_dim of 16, 32, ... 128, not {qkv.shape[-1]}"
    return why_slow_int8()


_attention_int8 = Op(
    "attention_int8",
    attention_int8_reference,
    {"cpp": _extension.backend("cpp", "attention_int8", _cpp_backend, _cpp_limits, backward=False)},
)


def attention_int8(qkv: Tensor, scale: float | None = None) -> Tensor:
    """Attention whose products are int8; for inference.

    Queries and keys are scaled for each token and head to a largest value of 127 and rounded, keys
    after their mean over the tokens is subtracted (which softmax does not see); values for each
    channel. The C++ kernel also rounds probabilities, to 8 bits, and passes each rounding error on
    to a later key, so that many small probabilities keep their sum.

    Args:
        qkv: (B, N, 3, H, D), floating point: queries, keys and values.
        scale: Factor of the logits; 1 / sqrt(D) by default.

    Returns:
        (B, N, H, D) in the dtype of ``qkv``.

    Raises:
        ValueError: If the shape or dtype does not fit.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3 or not qkv.is_floating_point():
        raise ValueError(
            "attention_int8 needs floating-point qkv (B, N, 3, H, D); got "
            f"{qkv.dtype} {tuple(qkv.shape)}"
        )
    return _attention_int8(qkv, qkv.shape[-1] ** -0.5 if scale is None else scale)
