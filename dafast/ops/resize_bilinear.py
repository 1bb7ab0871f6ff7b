"""Bilinear resize, `torch.nn.functional.interpolate`'s, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._dispatch import Op, wants_gradient
from ._images import dense_rows, empty_images, extension_backends
from ._kernel_op import KernelOp


def _linear_op(
    name: str, forward: Callable[..., Tensor], backward: Callable[..., Tensor]
) -> KernelOp:
    """The custom op of a resize. It is linear, so it and its backward are each other's backward."""

    def fake(x: Tensor, height: int, width: int, *_: bool) -> Tensor:
        return empty_images(x, height, width)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.size, ctx.options = inputs[0].shape[-2:], inputs[3:]

    arguments = "(Tensor x, SymInt height, SymInt width, bool align_corners, bool antialias)"
    op = KernelOp(f"{name}{arguments} -> Tensor", fake, kernel=forward)
    backward_op = KernelOp(f"{name}_backward{arguments} -> Tensor", fake, kernel=backward)
    for one, other in ((op, backward_op), (backward_op, op)):

        def differentiate(ctx: Any, grad: Tensor, other: KernelOp = other) -> tuple[Any, ...]:
            return other(grad, *ctx.size, *ctx.options), None, None, None, None

        one.register_autograd(differentiate, setup_context)
    return op


def _interpolate(x: Tensor, height: int, width: int, corners: bool, antialias: bool) -> Tensor:
    return F.interpolate(
        x, (height, width), mode="bilinear", align_corners=corners, antialias=antialias
    )


def _interpolate_backward(grad: Tensor, height: int, width: int, *options: bool) -> Tensor:
    corners, antialias = options
    aten, source = torch.ops.aten, [*grad.shape[:2], height, width]
    kernel = (
        aten._upsample_bilinear2d_aa_backward if antialias else aten.upsample_bilinear2d_backward
    )
    return kernel(grad, grad.shape[2:], source, corners, None, None)


_interpolate_op = _linear_op("interpolate_bilinear", _interpolate, _interpolate_backward)


def resize_bilinear_reference(
    x: Tensor,
    size: Sequence[int],
    align_corners: bool = False,
    antialias: bool = False,
    compute: torch.dtype | None = None,
) -> Tensor:
    """Specification of `resize_bilinear`: `F.interpolate`, with right gradients when compiled too.

    Inductor decomposes the backward into a scatter, and PyTorch 2.13 can schedule its reader
    before it on a CPU: all gradients behind it are then 0. A custom op keeps PyTorch's own kernel.

    Args:
        x: As for `resize_bilinear`.
        size: As for `resize_bilinear`.
        align_corners: As for `resize_bilinear`.
        antialias: As for `resize_bilinear`.
        compute: Dtype inside; float32 by default (float64 for a float64 ``x``).
    """
    height, width = size
    if antialias and width == 1 and height > 1:
        # On CPUs PyTorch 2.13 returns wrong values for a result that is one pixel wide.
        return resize_bilinear_reference(x.mT, (1, height), align_corners, True, compute).mT
    dtype = x.dtype
    x = x.to(compute or (torch.float64 if dtype == torch.float64 else torch.float32))
    compiled = torch.is_grad_enabled() and torch.compiler.is_dynamo_compiling()
    if compiled and not torch.compiler.is_exporting():
        out = _interpolate_op(x, height, width, align_corners, antialias)
    else:
        out = F.interpolate(
            x, (height, width), mode="bilinear", align_corners=align_corners, antialias=antialias
        )
    return out.to(dtype)


def interpolate(x: Tensor, size: Sequence[int], align_corners: bool, **options: bool) -> Tensor:
    """`resize_bilinear_reference` in the dtype of ``x``, for the modules."""
    return resize_bilinear_reference(x, size, align_corners, compute=x.dtype, **options)


def _forward(x: Tensor, height: int, width: int, *options: bool) -> Tensor:
    out = empty_images(x, height, width)
    torch.ops.dafast_C.resize_bilinear(dense_rows(x), out, *options)
    return out


def _backward(grad: Tensor, height: int, width: int, *options: bool) -> Tensor:
    out = empty_images(grad, height, width)
    torch.ops.dafast_C.resize_bilinear_backward(dense_rows(grad), out, *options)
    return out


_op = _linear_op("resize_bilinear", _forward, _backward)


def _cpp_preferred(x: Tensor, _size: Any, _align_corners: bool, antialias: bool) -> str:
    if x.dtype != torch.float32 or antialias:
        return ""
    if x.device.type == "cpu" and x.stride(1) == 1 and not wants_gradient(x):
        return ""  # its threads take rows as they come, those of PyTorch wait for each other
    return "PyTorch's own is as fast in float32 without antialiasing"


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
    if len(size) != 2 or size[0] < 1 or size[1] < 1:
        raise ValueError(f"size must be (height, width), both at least 1; got {size}")
    return _resize_bilinear(x, (size[0], size[1]), align_corners, antialias)
