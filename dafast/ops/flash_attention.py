"""Scaled dot-product attention without a mask, as a ViT uses it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._dispatch import Backend, Op


def flash_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None
) -> Tensor:
    """Specification of `flash_attention`: softmax(q k^T * scale) v, in float32 inside."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    logits = torch.einsum("bnhd,bmhd->bhnm", q.to(compute), k.to(compute)) * scale
    out = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(dim=-1), v.to(compute))
    return out.to(q.dtype)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale
    )
    return out.transpose(1, 2)


_flash_attention = Op("flash_attention", flash_attention_reference, {"sdpa": Backend(_sdpa)})


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4:
        raise ValueError(
            "flash_attention needs q (B, N, H, D) and k, v (B, M, H, D); got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} differ in batch, heads or head_dim"
        )
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise ValueError(
            f"q, k, v need one floating-point dtype; got {q.dtype}, {k.dtype}, {v.dtype}"
        )


def flash_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Non-causal multi-head attention.

    Args:
        q: Queries (B, N, H, D), any strides; float16, bfloat16, float32 or float64.
        k: Keys (B, M, H, D).
        v: Values (B, M, H, D).
        scale: Factor on the logits; D ** -0.5 by default.

    Returns:
        (B, N, H, D) in the dtype of ``q``.

    Raises:
        ValueError: If shapes or dtypes do not fit together.
    """
    _check(q, k, v)
    return _flash_attention(q, k, v, scale=scale)


def flash_attention_qkvpacked(qkv: Tensor, *, scale: float | None = None) -> Tensor:
    """`flash_attention` on the packed output of a qkv projection.

    Args:
        qkv: (B, N, 3, H, D); queries, keys and values along dimension 2.
        scale: Factor on the logits; D ** -0.5 by default.

    Returns:
        (B, N, H, D).

    Raises:
        ValueError: If ``qkv`` has another shape.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"flash_attention_qkvpacked needs (B, N, 3, H, D); got {tuple(qkv.shape)}")
    q, k, v = qkv.unbind(2)
    return flash_attention(q, k, v, scale=scale)
