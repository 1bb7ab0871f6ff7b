"""Attention of other packages, only by request: for comparisons, and for cards that they serve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..optional import why_no_module
from ._dispatch import BackendError, wrong_dtype

# xformers.


def xformers_supports(q: Tensor, *_: Any) -> str:
    if q.device.type != "cuda":
        return f"has no operator for tensors on {q.device}"
    if reason := wrong_dtype(q.dtype):
        return reason
    why = why_no_module("xformers.ops")  # fails where it was built for another PyTorch
    return f"{why}; pip install 'dafast[xformers]'" if why else ""


def unit_stride(*tensors: Tensor) -> list[Tensor]:
    """Copies where needed, for kernels that take only a stride of 1 in the last dimension."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def xformers(q: Tensor, k: Tensor, v: Tensor, scale: float | None, mask: Any = None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    try:
        return memory_efficient_attention(*unit_stride(q, k, v), scale=scale, attn_bias=mask)
    except NotImplementedError as error:  # a wheel without kernels for this PyTorch or this card
        first = next(iter(str(error).splitlines()), "no operator for these inputs")
        raise BackendError(f"xformers: {first} (`python -m xformers.info` says more)") from error


def xformers_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, _max_seqlen: int, scale: float | None
) -> Tensor:
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    mask = BlockDiagonalMask.from_seqlens(cu_seqlens.diff().tolist(), device=q.device)
    return xformers(q[None], k[None], v[None], scale, mask)[0]


# FlashAttention 4. It was never run: its checks and its calls are tested with a fake module.


def flash_attn_supports(q: Tensor, *_: Any) -> str:
    if q.device.type != "cuda":
        return f"has no kernels for tensors on {q.device}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, not {q.dtype}"
    if q.shape[-1] % 8:
        return f"takes a head_dim that is a multiple of 8, not {q.shape[-1]}"
    why = why_no_module("flash_attn.cute")
    return f"{why}; pip install 'dafast[flash-attn]'" if why else ""


def _flash_attn_call(name: str, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    import flash_attn.cute

    if not q.numel() or not k.numel():
        return q * 0.0 + (k.sum() + v.sum()) * 0.0  # empty or zero, with a graph
    try:
        out = getattr(flash_attn.cute, name)(*unit_stride(q, k, v), **options)
    except (AssertionError, NotImplementedError) as error:  # how it refuses a card or a shape
        raise BackendError(f"flash_attn: {str(error) or 'refuses these inputs'}") from error
    return out[0] if isinstance(out, tuple) else out  # the log-sum-exp follows


def flash_attn(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    return _flash_attn_call("flash_attn_func", q, k, v, softmax_scale=scale)


def flash_attn_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float | None
) -> Tensor:
    return _flash_attn_call(
        "flash_attn_varlen_func", q, k, v, softmax_scale=scale,
        cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen, max_seqlen_k=max_seqlen,
    )  # fmt: skip
