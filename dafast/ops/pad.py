"""Padding and cropping of images, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._dispatch import Op
from ._images import dense_rows, empty_images, extension_backends
from ._kernel_op import KernelOp

PADDINGS = ("replicate", "reflect", "constant")
PADDING_CODES = {"constant": 0, "replicate": 1, "reflect": 2}  # of `Padding` in csrc

Sides = tuple[int, int, int, int]
"""Pixels (left, right, top, bottom)."""


def pad_reference(x: Tensor, padding: Sides, mode: str = "constant", value: float = 0) -> Tensor:
    """Specification of `pad`: `F.pad`, with gradients summed in float32."""
    if mode == "constant":
        return F.pad(x, padding, value=value)
    if x.dtype in (torch.float16, torch.bfloat16):
        return F.pad(x.float(), padding, mode=mode).to(x.dtype)
    return F.pad(x, padding, mode=mode)


def _padded(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    return empty_images(x, x.shape[2] + top + bottom, x.shape[3] + left + right)


def _forward(x: Tensor, left: int, right: int, top: int, bottom: int, *args: Any) -> Tensor:
    out = _padded(x, left, right, top, bottom)
    torch.ops.dafast_C.pad(dense_rows(x), out, left, top, *args)
    return out


_op = KernelOp(
    "pad(Tensor x, SymInt left, SymInt right, SymInt top, SymInt bottom, SymInt mode,"
    " float value) -> Tensor",
    fake=lambda x, *args: _padded(x, *args[:4]),
    extension=_forward,
)


def _unpadded(grad: Tensor, *args: Any) -> Tensor:
    return _padded(grad, *(-pixels for pixels in args[:4]))


def _backward_kernel(grad: Tensor, *args: Any) -> Tensor:
    left, _, top, _, mode = args
    out = _unpadded(grad, *args)
    torch.ops.dafast_C.pad_backward(dense_rows(grad), out, left, top, mode)
    return out


_backward_op = KernelOp(
    "pad_backward(Tensor grad, SymInt left, SymInt right, SymInt top, SymInt bottom, SymInt mode)"
    " -> Tensor",
    fake=_unpadded,
    extension=_backward_kernel,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[1:6]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _backward_op(grad, *ctx.options), None, None, None, None, None, None


def _backward_of_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _op(grad, *ctx.options, 0.0), None, None, None, None, None


_op.register_autograd(_backward, _setup_context)
_backward_op.register_autograd(_backward_of_backward, _setup_context)


def _extension_backend(x: Tensor, padding: Sides, mode: str, value: float) -> Tensor:
    out = _op(x if x.ndim == 4 else x[None], *padding, PADDING_CODES[mode], float(value))
    return out if x.ndim == 4 else out[0]


def _cpp_preferred(x: Tensor, *_: Any) -> str:
    if x.dtype == torch.float32 and x.is_contiguous():
        return "PyTorch's own is faster for contiguous float32"
    return ""


_pad = Op("pad", pad_reference, extension_backends("pad", _extension_backend, _cpp_preferred))


def check_padding(height: int, width: int, padding: Sides, mode: str) -> None:
    """Raises the ValueError that `pad` raises for an image of this size."""
    if mode not in PADDINGS:
        raise ValueError(f"padding mode {mode!r}; use one of {', '.join(PADDINGS)}")
    if mode == "reflect" and (max(padding[:2]) >= width or max(padding[2:]) >= height):
        raise ValueError(
            f"padding {padding} reflects more than an image of {width}x{height} has; "
            "use mode='replicate'"
        )
    if width + sum(padding[:2]) < 1 or height + sum(padding[2:]) < 1:
        raise ValueError(f"padding {padding} leaves nothing of an image of {width}x{height}")


def pad(x: Tensor, padding: Sides, mode: str = "constant", value: float = 0) -> Tensor:
    """Pads the last two dimensions, or crops them where a number is negative.

    The backward gathers: no atomics, the same bits in every run.

    Args:
        x: (B, C, H, W) or (C, H, W), H and W > 0.
        padding: Pixels (left, right, top, bottom).
        mode: ``"constant"``, ``"replicate"`` or ``"reflect"`` (without the border pixel).
        value: For ``"constant"``.

    Returns:
        The padded tensor, channels_last if ``x`` is.

    Raises:
        ValueError: For another shape, an unknown mode, a reflection wider than the image, or a
            crop that leaves nothing.
    """
    if x.ndim not in (3, 4) or 0 in x.shape[-2:]:
        raise ValueError(f"pad needs (B, C, H, W) or (C, H, W), H and W > 0; got {tuple(x.shape)}")
    check_padding(x.shape[-2], x.shape[-1], padding, mode)
    return _pad(x, padding, mode, value)
