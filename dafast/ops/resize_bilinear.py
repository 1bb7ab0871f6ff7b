"""Bilinear resize, `torch.nn.functional.interpolate`'s, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._dispatch import Op
from ._images import dense_rows, empty_images, extension_backends
from ._kernel_op import KernelOp


def _interpolate(x: Tensor, height: int, width: int, *options: bool) -> Tensor:
    align_corners, antialias = options
    return F.interpolate(
        x, (height, width), mode="bilinear", align_corners=align_corners, antialias=antialias
    )


def _interpolate_backward(grad: Tensor, *args: Any) -> Tensor:
    height, width, *size, align_corners, antialias = args
    aten = torch.ops.aten
    backward = (
        aten._upsample_bilinear2d_aa_backward if antialias else aten.upsample_bilinear2d_backward
    )
    return backward(grad, [height, width], size, align_corners, None, None)


_interpolate_op = KernelOp(
    "interpolate_bilinear(Tensor x, SymInt height, SymInt width, bool align_corners,"
    " bool antialias) -> Tensor",
    fake=_interpolate,
    torch=_interpolate,
)
_interpolate_backward_op = KernelOp(
    "interpolate_bilinear_backward(Tensor grad, SymInt height, SymInt width, SymInt batch,"
    " SymInt channels, SymInt source_height, SymInt source_width, bool align_corners,"
    " bool antialias) -> Tensor",
    fake=_interpolate_backward,
    torch=_interpolate_backward,
)


def _setup_interpolate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, height, width, *options = inputs
    ctx.args = (height, width, *x.shape, *options)


_interpolate_op.register_autograd(
    lambda ctx, grad: (_interpolate_backward_op(grad, *ctx.args), None, None, None, None),
    _setup_interpolate,
)


def interpolate(
    x: Tensor, size: Sequence[int], *, align_corners: bool, antialias: bool = False
) -> Tensor:
    """`F.interpolate` in bilinear mode, with right gradients under `torch.compile` too.

    Of the backward that inductor makes from its decomposition, a scatter, PyTorch 2.13 can move
    the reader before the writer on a CPU: every gradient that passes is then 0. A custom op keeps
    PyTorch's own kernel.
    """
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if compiled and torch.is_grad_enabled():
        return _interpolate_op(x, size[0], size[1], align_corners, antialias)
    return F.interpolate(
        x, tuple(size), mode="bilinear", align_corners=align_corners, antialias=antialias
    )


def resize_bilinear_reference(
    x: Tensor, size: tuple[int, int], align_corners: bool = False, antialias: bool = False
) -> Tensor:
    """Specification of `resize_bilinear`: `F.interpolate` in float32 (float64 for float64)."""
    if antialias and size[1] == 1 and size[0] > 1:
        # On CPUs PyTorch 2.13 returns wrong values for a result that is one pixel wide.
        return resize_bilinear_reference(
            x.mT, (1, size[0]), align_corners=align_corners, antialias=True
        ).mT
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = interpolate(x.to(compute), size, align_corners=align_corners, antialias=antialias)
    return out.to(x.dtype)


def _empty(x: Tensor, height: int, width: int, *_: Any) -> Tensor:
    return empty_images(x, height, width)


def _forward(x: Tensor, height: int, width: int, *options: Any) -> Tensor:
    out = empty_images(x, height, width)
    torch.ops.dafast_C.resize_bilinear(dense_rows(x), out, *options)
    return out


_op = KernelOp(
    "resize_bilinear(Tensor x, SymInt height, SymInt width, bool align_corners, bool antialias)"
    " -> Tensor",
    fake=_empty,
    extension=_forward,
)


def _backward_kernel(grad: Tensor, height: int, width: int, *options: Any) -> Tensor:
    out = empty_images(grad, height, width)
    torch.ops.dafast_C.resize_bilinear_backward(dense_rows(grad), out, *options)
    return out


_backward_op = KernelOp(
    "resize_bilinear_backward(Tensor grad, SymInt height, SymInt width, bool align_corners,"
    " bool antialias) -> Tensor",
    fake=_empty,
    extension=_backward_kernel,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.size = inputs[0].shape[-2:]
    ctx.options = inputs[3:]


# The op is linear, so either is the other's backward.
def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _backward_op(grad, *ctx.size, *ctx.options), None, None, None, None


def _backward_of_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _op(grad, *ctx.size, *ctx.options), None, None, None, None


_op.register_autograd(_backward, _setup_context)
_backward_op.register_autograd(_backward_of_backward, _setup_context)


def _cpp_preferred(x: Tensor, _size: Any, _align_corners: bool, antialias: bool) -> str:
    if x.dtype == torch.float32 and not antialias:
        return "PyTorch's own is as fast in float32 without antialiasing"
    return ""


_resize_bilinear = Op(
    "resize_bilinear",
    resize_bilinear_reference,
    extension_backends(
        "resize_bilinear",
        lambda x, size, *options: _op(x, size[0], size[1], *options),
        _cpp_preferred,
    ),
)


def resize_bilinear(
    x: Tensor, size: tuple[int, int], *, align_corners: bool = False, antialias: bool = False
) -> Tensor:
    """Bilinear resize as `torch.nn.functional.interpolate` does it.

    The backward gathers: no atomics, the same bits in every run.

    Args:
        x: Images (B, C, H, W), floating point, contiguous or channels_last (other strides are
            copied unless the pixels of a row are contiguous).
        size: Height and width of the result.
        align_corners: Whether the corner pixels' centres coincide.
        antialias: Whether to widen the filter when shrinking.

    Returns:
        (B, C, *size) in the dtype of ``x``, channels_last if ``x`` is.

    Raises:
        ValueError: If the shape, the dtype or ``size`` cannot be resized.
    """
    if x.ndim != 4 or 0 in x.shape[-2:]:
        raise ValueError(f"resize_bilinear needs (B, C, H, W), H and W > 0; got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"resize_bilinear needs floating point; got {x.dtype}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), both at least 1; got {size}")
    return _resize_bilinear(x, (size[0], size[1]), align_corners, antialias)
