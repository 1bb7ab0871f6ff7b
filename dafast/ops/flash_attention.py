"""Scaled dot-product attention without a mask, as a ViT uses it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension, _triton
from ._dispatch import Backend, BackendError, Op, _forced_backend
from ._kernel_op import kernel_op

_KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_KERNEL_HEAD_DIM = 128
_CPP_TOKENS = 100


def _default_scale(q: Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def flash_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None
) -> Tensor:
    """Specification of `flash_attention`: softmax(q k^T * scale) v, in float32 inside."""
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    logits = torch.einsum("bnhd,bmhd->bhnm", q.to(compute), k.to(compute))
    logits = logits * _default_scale(q, scale)
    out = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(dim=-1), v.to(compute))
    return out.to(q.dtype)


def flash_attention_qkvpacked_reference(qkv: Tensor, *, scale: float | None = None) -> Tensor:
    """Specification of `flash_attention_qkvpacked`."""
    return flash_attention_reference(*qkv.unbind(2), scale=scale)


def flash_attention_varlen_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
) -> Tensor:
    """Specification of `flash_attention_varlen`: one sequence after the other."""
    lengths = cu_seqlens.diff().tolist()
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    outputs = [
        flash_attention_reference(*(x[None] for x in part), scale=scale)[0] for part in parts
    ]
    return torch.cat(outputs) if outputs else q + k + v  # empty, with a graph


# PyTorch's own.


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    if not q.numel() or not k.numel():  # its kernels for CUDA return None (PyTorch 2.11)
        return flash_attention_reference(q, k, v, scale=scale)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale
    )
    return out.transpose(1, 2)


def _sdpa_qkvpacked(qkv: Tensor, *, scale: float | None = None) -> Tensor:
    return _sdpa(*qkv.unbind(2), scale=scale)


def _lengths(cu_seqlens: Tensor) -> list[int]:
    """Lengths of the sequences; waits for the device."""
    return cu_seqlens.diff().tolist()


def _sdpa_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
) -> Tensor:
    parts = zip(*(x.split(_lengths(cu_seqlens)) for x in (q, k, v)), strict=True)
    outputs = [_sdpa(*(x[None] for x in part), scale=scale)[0] for part in parts]
    return torch.cat(outputs) if outputs else q + k + v  # empty, with a graph


# xformers: by request alone, to be compared with.


def _xformers_reason(q: Tensor) -> str:
    if _forced_backend() != "xformers":
        return "serves only when asked for by name"
    if q.device.type != "cuda":
        return f"has no operator for tensors on {q.device}"
    if q.dtype not in _KERNEL_DTYPES:
        return f"takes float16, bfloat16 and float32, not {q.dtype}"
    try:
        import xformers.ops  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: built for another PyTorch
        return f"xformers does not import ({error}); pip install 'dafast[xformers]'"
    return ""


def _xformers_supports(q: Tensor, *args: Any, **kwargs: Any) -> tuple[bool, str]:
    reason = _xformers_reason(q)
    return not reason, reason


def _unit_stride(*tensors: Tensor) -> list[Tensor]:
    """For kernels that take any strides but one: the last dimension's must be 1."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _memory_efficient_attention(*inputs: Tensor, **kwargs: Any) -> Tensor:
    from xformers.ops import memory_efficient_attention

    try:
        return memory_efficient_attention(*_unit_stride(*inputs), **kwargs)
    except NotImplementedError as error:  # a wheel without kernels for this PyTorch or this card
        first = next(iter(str(error).splitlines()), "no operator for these inputs")
        raise BackendError(f"xformers: {first} (`python -m xformers.info` says more)") from error


def _xformers(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    return _memory_efficient_attention(q, k, v, scale=scale)


def _xformers_qkvpacked(qkv: Tensor, *, scale: float | None = None) -> Tensor:
    return _xformers(*qkv.unbind(2), scale=scale)


def _xformers_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
) -> Tensor:
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    mask = BlockDiagonalMask.from_seqlens(_lengths(cu_seqlens), device=q.device)
    return _memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask, scale=scale)[0]


# Triton. The base-2 logarithms of the softmax's denominators go along for the backward.


def _lse_like(q: Tensor, varlen: bool) -> Tensor:
    if varlen:
        tokens, heads = q.shape[:2]
        return q.new_empty((heads, tokens), dtype=torch.float32)
    batch, tokens, heads = q.shape[:3]
    return q.new_empty((batch, heads, tokens), dtype=torch.float32)


@kernel_op("dafast::flash_attention")
def _op(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    from dafast.kernels.flash_attention import flash_attention_fwd

    return flash_attention_fwd(q, k, v, scale)


@_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), _lse_like(q, varlen=False)


@kernel_op("dafast::flash_attention_backward")
def _backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from dafast.kernels.flash_attention import flash_attention_bwd

    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    flash_attention_bwd(grad, q, k, v, out, lse, scale, dq, dk, dv)
    return dq, dk, dv


@_backward_op.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _lse: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 4
    return *_backward_op(grad, *ctx.saved_tensors, ctx.scale), None


_op.register_autograd(_backward, setup_context=_setup_context)
_triton.no_second_derivative(_backward_op, "flash_attention")


@kernel_op("dafast::flash_attention_qkvpacked")
def _packed_op(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    from dafast.kernels.flash_attention import flash_attention_fwd

    return flash_attention_fwd(*qkv.unbind(2), scale)


@_packed_op.register_fake
def _(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    q = qkv.select(2, 0)
    return q.new_empty(q.shape), _lse_like(q, varlen=False)


@kernel_op("dafast::flash_attention_qkvpacked_backward")
def _packed_backward_op(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float
) -> Tensor:
    from dafast.kernels.flash_attention import flash_attention_bwd

    packed = qkv.new_empty(qkv.shape)  # the kernels write into it: nothing is concatenated
    flash_attention_bwd(grad, *qkv.unbind(2), out, lse, scale, *packed.unbind(2))
    return packed


@_packed_backward_op.register_fake
def _(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _packed_backward(ctx: Any, grad: Tensor | None, _lse: None) -> tuple[Tensor | None, None]:
    if grad is None:
        return None, None
    return _packed_backward_op(grad, *ctx.saved_tensors, ctx.scale), None


_packed_op.register_autograd(_packed_backward, setup_context=_setup_context)
_triton.no_second_derivative(_packed_backward_op, "flash_attention_qkvpacked")


@kernel_op("dafast::flash_attention_varlen")
def _varlen_op(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor]:
    from dafast.kernels.flash_attention import flash_attention_fwd

    return flash_attention_fwd(q, k, v, scale, cu_seqlens, max_seqlen)


@_varlen_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), _lse_like(q, varlen=True)


@kernel_op("dafast::flash_attention_varlen_backward")
def _varlen_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    out: Tensor,
    lse: Tensor,
    max_seqlen: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from dafast.kernels.flash_attention import flash_attention_bwd

    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    flash_attention_bwd(grad, q, k, v, out, lse, scale, dq, dk, dv, cu_seqlens, max_seqlen)
    return dq, dk, dv


@_varlen_backward_op.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    out: Tensor,
    lse: Tensor,
    max_seqlen: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _varlen_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.max_seqlen, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _varlen_backward(ctx: Any, grad: Tensor | None, _lse: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    grads = _varlen_backward_op(grad, *ctx.saved_tensors, ctx.max_seqlen, ctx.scale)
    return *grads, None, None, None


_varlen_op.register_autograd(_varlen_backward, setup_context=_varlen_setup)
_triton.no_second_derivative(_varlen_backward_op, "flash_attention_varlen")


def _kernel_reason(q: Tensor, scale: float | None) -> str:
    """Why the project's own kernels cannot serve a call, whatever the device."""
    if scale is not None and not 0 < scale < math.inf:
        return f"takes a positive scale, not {scale}"
    if q.dtype not in _KERNEL_DTYPES:
        return f"takes float16, bfloat16 and float32, not {q.dtype}"
    head_dim = q.shape[-1]
    if head_dim % 16 or not 0 < head_dim <= _KERNEL_HEAD_DIM:
        return f"takes a head_dim of 16, 32, 48, ... {_KERNEL_HEAD_DIM}, not {head_dim}"
    return ""


def _triton_supports(q: Tensor, *tensors: Any, scale: float | None = None) -> tuple[bool, str]:
    if reason := _kernel_reason(q, scale):
        return False, reason
    ok, reason = _triton.supports(q, *(x for x in tensors if isinstance(x, Tensor)))
    # Packed sequences stay: sdpa would wait for their lengths, and cannot be captured in a graph.
    if ok and q.ndim > 3:
        reason = _triton.why_not_unasked(q)
    return not reason, reason


def _triton_backend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    return _op(q, k, v, _default_scale(q, scale))[0]


def _triton_qkvpacked(qkv: Tensor, *, scale: float | None = None) -> Tensor:
    return _packed_op(qkv, _default_scale(qkv, scale))[0]


def _triton_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
) -> Tensor:
    return _varlen_op(q, k, v, cu_seqlens, max_seqlen, _default_scale(q, scale))[0]


# C++ on the CPU: the forward alone.


@kernel_op("dafast::flash_attention_cpu")
def _cpp_op(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, scale: float) -> Tensor:
    _extension.load()  # registers dafast_C
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    torch.ops.dafast_C.flash_attention(*_unit_stride(q, k, v), out, cu_seqlens, scale)
    return out


@_cpp_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, scale: float) -> Tensor:
    return q.new_empty(q.shape)


def _cpu_capability() -> str:
    module = _extension.load()
    return module.cpu_capability() if module else ""


# torch.compile takes it as it is while tracing; see `_dispatch._forced_backend`.
_cpu_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _cpp_supports(q: Tensor, *others: Any, scale: float | None = None) -> tuple[bool, str]:
    tensors = [q, *(x for x in others if isinstance(x, Tensor))]
    if reason := _kernel_reason(q, scale):
        return False, reason
    ok, reason = _extension.supports("cpp", "flash_attention", *tensors)
    if not ok:
        return ok, reason
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False, "has no backward; sdpa has"
    if _forced_backend() == "cpp":
        return True, ""
    # Where sdpa is measured to be faster. Of sequences in a row sdpa takes one after the other.
    if _cpu_capability() == "portable":
        return False, "is slower than sdpa without AVX2; serves when asked for by name"
    if q.ndim > 3 and q.shape[1] < _CPP_TOKENS:
        return False, f"is no faster than sdpa under {_CPP_TOKENS} tokens"
    return True, ""


def _cpp(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    return _cpp_op(q, k, v, None, _default_scale(q, scale))


def _cpp_qkvpacked(qkv: Tensor, *, scale: float | None = None) -> Tensor:
    return _cpp(*qkv.unbind(2), scale=scale)


def _cpp_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
) -> Tensor:
    return _cpp_op(q[None], k[None], v[None], cu_seqlens, _default_scale(q, scale))[0]


_flash_attention = Op(
    "flash_attention",
    flash_attention_reference,
    {
        "triton": Backend(_triton_backend, _triton_supports),
        "cpp": Backend(_cpp, _cpp_supports),
        "xformers": Backend(_xformers, _xformers_supports),
        "sdpa": Backend(_sdpa),
    },
)
_flash_attention_qkvpacked = Op(
    "flash_attention_qkvpacked",
    flash_attention_qkvpacked_reference,
    {
        "triton": Backend(_triton_qkvpacked, _triton_supports),
        "cpp": Backend(_cpp_qkvpacked, _cpp_supports),
        "xformers": Backend(_xformers_qkvpacked, _xformers_supports),
        "sdpa": Backend(_sdpa_qkvpacked),
    },
)
_flash_attention_varlen = Op(
    "flash_attention_varlen",
    flash_attention_varlen_reference,
    {
        "triton": Backend(_triton_varlen, _triton_supports),
        "cpp": Backend(_cpp_varlen, _cpp_supports),
        "xformers": Backend(_xformers_varlen, _xformers_supports),
        "sdpa": Backend(_sdpa_varlen),
    },
)


def _check_dtypes(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise ValueError(
            f"q, k, v need one floating-point dtype; got {q.dtype}, {k.dtype}, {v.dtype}"
        )


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
    _check_dtypes(q, k, v)


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
    """`flash_attention` on the packed output of a qkv projection, read in place.

    Args:
        qkv: (B, N, 3, H, D); queries, keys and values along dimension 2.
        scale: Factor on the logits; D ** -0.5 by default.

    Returns:
        (B, N, H, D).

    Raises:
        ValueError: If ``qkv`` has another shape or is not floating point.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"flash_attention_qkvpacked needs (B, N, 3, H, D); got {tuple(qkv.shape)}")
    if not qkv.is_floating_point():
        raise ValueError(f"qkv needs a floating-point dtype; got {qkv.dtype}")
    return _flash_attention_qkvpacked(qkv, scale=scale)


def _check_seqlens(cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> None:
    """All that can be seen without waiting for a device; on a CPU, everything."""
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or len(cu_seqlens) < 1:
        raise ValueError(
            f"cu_seqlens must be int32 (S + 1); got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    sequences = len(cu_seqlens) - 1
    if max_seqlen < 0 or sequences * max_seqlen < tokens:
        raise ValueError(
            f"{sequences} sequences of at most max_seqlen = {max_seqlen} tokens cannot hold the "
            f"{tokens} rows of q"
        )
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    ends = cu_seqlens.tolist()
    lengths = [b - a for a, b in itertools.pairwise(ends)]
    if ends[0] != 0 or ends[-1] != tokens or min(lengths, default=0) < 0:
        raise ValueError(
            f"cu_seqlens must rise from 0 to the {tokens} rows of q; got {_shortened(ends)}"
        )
    if max(lengths, default=0) > max_seqlen:
        raise ValueError(f"a sequence has {max(lengths)} tokens; max_seqlen is {max_seqlen}")


def _shortened(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:8]))
    return f"[{shown}, ...]" if len(values) > 8 else f"[{shown}]"


def flash_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention within each of several sequences that are packed into one.

    So a batch of images of different sizes runs without padding: token i attends to the tokens
    of its own image alone.

    Args:
        q: Queries (T, H, D), any strides; the sequences one after the other.
        k: Keys (T, H, D).
        v: Values (T, H, D).
        cu_seqlens: int32 (S + 1), increasing: 0, the first rows of the other sequences, T.
        max_seqlen: Length of the longest sequence, or more.
        scale: Factor on the logits; D ** -0.5 by default.

    Returns:
        (T, H, D) in the dtype of ``q``.

    Raises:
        ValueError: If shapes or dtypes do not fit together, or ``cu_seqlens`` to them. What is in
            a ``cu_seqlens`` on a GPU is not looked at, for that would wait for the device: there
            it has to be right, or memory is read that is not part of the inputs.
    """
    if q.ndim != 3 or not q.shape == k.shape == v.shape:
        raise ValueError(
            "flash_attention_varlen needs q, k, v of one shape (T, H, D); got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    _check_dtypes(q, k, v)
    _check_seqlens(cu_seqlens, max_seqlen, len(q))
    return _flash_attention_varlen(q, k, v, cu_seqlens, max_seqlen, scale=scale)
