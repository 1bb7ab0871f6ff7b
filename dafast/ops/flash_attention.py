"""Scaled dot-product attention without a mask, as a ViT uses it."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import without_autocast
from . import _attention_packages as packages
from . import _extension, _triton
from ._dispatch import Backend, Op, wrong_dtype
from ._kernel_op import KernelOp

_KERNEL_HEAD_DIM = 128
_CPP_TOKENS = 64
"""Length below which SDPA is as fast as the C++ kernel in float32."""


def _default_scale(q: Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def flash_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None
) -> Tensor:
    """Specification of `flash_attention`: softmax(q k^T * scale) v, in float32 inside."""
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    with without_autocast(q.device):
        logits = torch.einsum("bnhd,bmhd->bhnm", q.to(compute), k.to(compute))
        logits = logits * _default_scale(q, scale)
        out = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(dim=-1), v.to(compute))
        return out.to(q.dtype)


def flash_attention_qkvpacked_reference(qkv: Tensor, scale: float | None = None) -> Tensor:
    """Specification of `flash_attention_qkvpacked`."""
    return flash_attention_reference(*qkv.unbind(2), scale=scale)  # type: ignore[misc,arg-type]


def _one_by_one(attend: Callable[..., Tensor], *args: Any) -> Tensor:
    """Dense attention on each of several packed sequences; waits for their lengths."""
    *qkv, cu_seqlens, _max_seqlen, scale = args
    lengths = cu_seqlens.diff().tolist()
    parts = zip(*(x.split(lengths) for x in qkv), strict=True)
    outputs = [attend(*(x[None] for x in part), scale)[0] for part in parts]
    return torch.cat(outputs) if outputs else sum(qkv)  # empty, with a graph


def flash_attention_varlen_reference(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float | None = None
) -> Tensor:
    """Specification of `flash_attention_varlen`: one sequence after the other."""
    return _one_by_one(flash_attention_reference, q, k, v, cu_seqlens, max_seqlen, scale)


# PyTorch's own.


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    if not q.numel() or not k.numel():  # its kernels for CUDA return None (PyTorch 2.11)
        return flash_attention_reference(q, k, v, scale)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    with without_autocast(q.device):  # which would change the dtype of the result
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


# The project's kernels. A call of the custom op has packed sequences if it has `cu_seqlens`.


_launch_forward = _triton.launcher("flash_attention", "flash_attention_fwd")
_launch_backward = _triton.launcher("flash_attention", "flash_attention_bwd")


def _empty_results(q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """For the output, and for the logsumexp of every row that the backward needs."""
    *tokens_first, heads, _ = q.shape
    shape = (*tokens_first[:-1], heads, tokens_first[-1])  # (B, H, N) or (H, T)
    lse = q.new_empty((0,) if args[-1] == "cpp" else shape, dtype=torch.float32)
    return q.new_empty(q.shape), lse


def _triton_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor]:
    return _launch_forward(q, k, v, scale, cu_seqlens, max_seqlen)


def _cpp_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, _max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor]:
    out, lse = _empty_results(q, "cpp")
    # Its kernel takes packed sequences as a batch of one.
    batch = [x if x.ndim == 4 else x[None] for x in (*packages.unit_stride(q, k, v), out)]
    torch.ops.dafast_C.flash_attention(*batch, cu_seqlens, scale)
    return out, lse


_op = KernelOp(
    "flash_attention(Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens, SymInt max_seqlen,"
    " float scale, str backend) -> (Tensor, Tensor)",
    fake=_empty_results,
    triton=_triton_forward,
    cpp=_cpp_forward,
)


def _triton_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    q, k, v, cu_seqlens, out, lse, max_seqlen, scale = args
    grads = tuple(x.new_empty(x.shape) for x in (q, k, v))
    _launch_backward(grad, q, k, v, out, lse, scale, *grads, cu_seqlens, max_seqlen)
    return grads


def _run_cpp_backward(
    grads: tuple[Tensor, ...], inputs: tuple[Tensor, ...], ends: Tensor | None, scale: float
) -> None:
    """Writes the gradients of q, k and v; the inputs are the gradient of the output, q, k and v."""
    tensors = [x if x.ndim == 4 else x[None] for x in (*packages.unit_stride(*inputs), *grads)]
    torch.ops.dafast_C.flash_attention_backward(*tensors[:4], ends, scale, *tensors[4:])


def _cpp_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    q, k, v, cu_seqlens, _out, _lse, _max_seqlen, scale = args
    grads = tuple(x.new_empty(x.shape) for x in (q, k, v))
    _run_cpp_backward(grads, (grad, q, k, v), cu_seqlens, scale)
    return grads


_backward_op = KernelOp(
    "flash_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens,"
    " Tensor out, Tensor lse, SymInt max_seqlen, float scale, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda grad, *args: tuple(x.new_empty(x.shape) for x in args[:3]),
    triton=_triton_backward,
    cpp=_cpp_backward,
)


_op.differentiate_by(_backward_op, lambda inputs, results: (*inputs[:4], *results, *inputs[4:]))


# Packed queries, keys and values: their gradient is written as one tensor.


def _cpp_packed_forward(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.unbind(2)
    return _cpp_forward(q, k, v, None, 0, scale)


_packed_op = KernelOp(
    "flash_attention_qkvpacked(Tensor qkv, float scale, str backend) -> (Tensor, Tensor)",
    fake=lambda qkv, scale, backend: _empty_results(qkv.select(2, 0), backend),
    triton=lambda qkv, scale: _launch_forward(*qkv.unbind(2), scale),
    cpp=_cpp_packed_forward,
)


def _triton_packed_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float
) -> Tensor:
    packed = qkv.new_empty(qkv.shape)
    _launch_backward(grad, *qkv.unbind(2), out, lse, scale, *packed.unbind(2))
    return packed


def _cpp_packed_backward(
    grad: Tensor, qkv: Tensor, _out: Tensor, _lse: Tensor, scale: float
) -> Tensor:
    packed = qkv.new_empty(qkv.shape)
    _run_cpp_backward(packed.unbind(2), (grad, *qkv.unbind(2)), None, scale)
    return packed


_packed_backward_op = KernelOp(
    "flash_attention_qkvpacked_backward(Tensor grad, Tensor qkv, Tensor out, Tensor lse,"
    " float scale, str backend) -> Tensor",
    fake=lambda grad, qkv, *_: qkv.new_empty(qkv.shape),
    triton=_triton_packed_backward,
    cpp=_cpp_packed_backward,
)


_packed_op.differentiate_by(
    _packed_backward_op, lambda inputs, results: (inputs[0], *results, *inputs[1:])
)


# The arguments of the three ops end with `scale`; their first is q, or all three packed.


def _limits(x: Tensor, *args: Any, multiple: int = 16) -> str:
    scale = args[-1]
    if scale is not None and not 0 < scale < math.inf:
        return f"takes a positive scale, not {scale}"
    if reason := wrong_dtype(x.dtype):
        return reason
    head_dim = x.shape[-1]
    if head_dim % multiple or not 0 < head_dim <= _KERNEL_HEAD_DIM:
        some = ", ".join(str(i * multiple) for i in (1, 2, 3))
        return f"takes a head_dim of {some}, ... {_KERNEL_HEAD_DIM}, not {head_dim}"
    return ""


def _triton_limits(x: Tensor, *args: Any) -> str:
    return _limits(x, *args, multiple=8)  # 16 bytes a row, in half precision


def _triton_unasked(x: Tensor, *_: Any) -> str:
    # In float32 that is not TF32 there are no tensor cores. On an H100 PyTorch's own attention is
    # three to six times as fast then. Packed sequences stay: sdpa would wait for their lengths,
    # and cannot be captured in a graph.
    if x.ndim > 3 and x.dtype == torch.float32 and _triton.is_full_float32():
        return "in float32 at full precision PyTorch's own kernels are faster"
    return ""


def _cpp_preferred(x: Tensor, *_: Any) -> str:
    """The reason where sdpa was measured to be faster; sdpa takes packed sequences one by one."""
    if _extension.cpu_capability() in _extension.PORTABLE_FLOAT:
        return "is slower than sdpa without AVX2; serves when asked for by name"
    if x.ndim > 3 and x.shape[1] < _CPP_TOKENS:
        return f"is no faster than sdpa under {_CPP_TOKENS} tokens"
    return ""


def _dense(backend: str) -> Callable[..., Tensor]:
    return lambda q, k, v, scale: _op(q, k, v, None, 0, _default_scale(q, scale), backend)[0]


def _varlen(backend: str) -> Callable[..., Tensor]:
    return lambda q, *args: _op(q, *args[:-1], _default_scale(q, args[-1]), backend)[0]


def _packed(backend: str) -> Callable[..., Tensor]:
    return lambda qkv, scale: _packed_op(qkv, _default_scale(qkv, scale), backend)[0]


def _unpacked(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda qkv, scale: attend(*qkv.unbind(2), scale)


def _by_request(*_: Any) -> str:
    return "serves only when asked for by name"


def _backends(
    triton: Any, cpp: Any, xformers: Any, flash_attn: Any, sdpa: Any
) -> dict[str, Backend]:
    return {
        "triton": _triton.backend(triton, _triton_limits, _triton_unasked),
        "cpp": _extension.backend("cpp", "flash_attention_backward", cpp, _limits, _cpp_preferred),
        "xformers": Backend(xformers, packages.xformers_supports, _by_request),
        "flash_attn": Backend(flash_attn, packages.flash_attn_supports, _by_request),
        "sdpa": Backend(sdpa),
    }


_flash_attention = Op(
    "flash_attention",
    flash_attention_reference,
    _backends(_dense("triton"), _dense("cpp"), packages.xformers, packages.flash_attn, _sdpa),
)
_flash_attention_qkvpacked = Op(
    "flash_attention_qkvpacked",
    flash_attention_qkvpacked_reference,
    _backends(
        _packed("triton"),
        _packed("cpp"),
        *map(_unpacked, (packages.xformers, packages.flash_attn, _sdpa)),
    ),
)
_flash_attention_varlen = Op(
    "flash_attention_varlen",
    flash_attention_varlen_reference,
    _backends(
        _varlen("triton"),
        _varlen("cpp"),
        packages.xformers_varlen,
        packages.flash_attn_varlen,
        lambda *args: _one_by_one(_sdpa, *args),
    ),
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
    return _flash_attention(q, k, v, scale)


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
    return _flash_attention_qkvpacked(qkv, scale)


def _check_seqlens(cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> None:
    """Checks what can be seen without waiting for a device; on a CPU, everything."""
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
            f"cu_seqlens must rise from 0 to the {tokens} rows of q; got {reprlib.repr(ends)}"
        )
    if max(lengths, default=0) > max_seqlen:
        raise ValueError(f"a sequence has {max(lengths)} tokens; max_seqlen is {max_seqlen}")


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

    A batch of images of different sizes then runs without padding: a token attends only to the
    tokens of its own image.

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
        ValueError: If shapes, dtypes and ``cu_seqlens`` do not fit together. The values of a
            ``cu_seqlens`` on a GPU are not checked, because that would wait for the device. There
            the Triton kernels cut a sequence that is longer than ``max_seqlen``, and rows of the
            output and of the gradients that belong to no sequence are zero.
    """
    if q.ndim != 3 or not q.shape == k.shape == v.shape:
        raise ValueError(
            "flash_attention_varlen needs q, k, v of one shape (T, H, D); got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    _check_dtypes(q, k, v)
    _check_seqlens(cu_seqlens, max_seqlen, len(q))
    return _flash_attention_varlen(q, k, v, cu_seqlens, max_seqlen, scale)
