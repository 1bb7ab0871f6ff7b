"""Bicubic resize as OpenCV's INTER_CUBIC does it on floats: the resize of ``fit="official"``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp

A = -0.75
"""The parameter of the cubic kernel; PyTorch's bicubic has the same, Pillow's is -0.5."""


def cubic_taps(x: Tensor, source: int) -> tuple[Tensor, Tensor]:
    """Source indices (target, 4) and weights (target, 4) of the places ``x`` (target) in a row."""
    below = x.floor()
    t = x - below
    u = 1 - t
    w0 = ((A * (t + 1) - 5 * A) * (t + 1) + 8 * A) * (t + 1) - 4 * A
    w1 = ((A + 2) * t - (A + 3)) * t * t + 1
    w2 = ((A + 2) * u - (A + 3)) * u * u + 1
    weights = torch.stack([w0, w1, w2, 1 - w0 - w1 - w2], dim=1)
    taps = below.long()[:, None] + torch.arange(-1, 3, device=x.device)
    return taps.clamp(0, source - 1), weights


def _cubic_axis(
    source: int, target: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`cubic_taps` of every target pixel, on ``device``.

    Coordinates are computed in float64: in float32 those of a large photo lose the digits that
    the weights consist of (errors of 3e-4). They are computed on the CPU, as Apple's GPUs have no
    float64.
    """
    x = torch.arange(target, dtype=torch.float64, device="cpu")
    taps, weights = cubic_taps((x + 0.5) * (source / target) - 0.5, source)
    return taps.to(device), weights.to(dtype).to(device)


def resize_bicubic_reference(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Specification of `resize_bicubic`: the rows, then the columns, four taps each."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    for dim, target in ((-2, size[0]), (-1, size[1])):
        taps, weights = _cubic_axis(x.shape[dim], target, x.device, compute)
        resized = None
        for k in range(4):
            # Gathered before the conversion: a large uint8 photo never becomes float as a whole.
            tap = x.index_select(dim, taps[:, k]).to(compute)
            tap = tap * (weights[:, k, None] if dim == -2 else weights[:, k])
            resized = tap if resized is None else resized + tap
        assert resized is not None
        x = resized
    return x


def _kernel(x: Tensor, size: Sequence[int]) -> Tensor:
    if x.ndim == 3:
        return torch.ops.dafast_C.resize_bicubic(x[None], *size)[0]
    return torch.ops.dafast_C.resize_bicubic(x, *size)


_op = KernelOp(
    "resize_bicubic(Tensor x, SymInt[] size) -> Tensor",
    fake=lambda x, size: x.new_empty((*x.shape[:-2], *size), dtype=torch.float32),
    cpp=_kernel,
)


def _limits(x: Tensor, _size: Sequence[int]) -> str:
    if x.dtype in (torch.float32, torch.uint8):
        return ""
    return f"takes float32 and uint8, not {x.dtype}"


_resize_bicubic = Op(
    "resize_bicubic",
    resize_bicubic_reference,
    {"cpp": _extension.backend("cpp", "resize_bicubic", _op, _limits, backward=False)},
)


def resize_bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes images as ``cv2.resize(..., interpolation=cv2.INTER_CUBIC)`` does float images.

    The cubic kernel with a = -0.75, half-pixel centres, no antialiasing when it shrinks, border
    pixels repeated. Results can leave the range of the input, as the kernel overshoots at edges;
    nothing is rounded or clamped.

    Args:
        x: Images (B, C, H, W) or (C, H, W), floating point or uint8, of any strides (a permuted
            HWC array is read in place).
        size: Height and width of the result.

    Returns:
        (B, C, *size) or (C, *size) in float32 (float64 for float64), on the range of the input:
        0..255 for uint8.

    Raises:
        ValueError: If the shape, the dtype or ``size`` cannot be resized.
    """
    if x.ndim not in (3, 4) or 0 in x.shape[-2:]:
        raise ValueError(
            f"resize_bicubic needs (B, C, H, W) or (C, H, W), H and W > 0; got {tuple(x.shape)}"
        )
    if not x.is_floating_point() and x.dtype != torch.uint8:
        raise ValueError(f"resize_bicubic needs floating point or uint8; got {x.dtype}")
    if len(size) != 2 or size[0] < 1 or size[1] < 1:
        raise ValueError(f"size must be (height, width), both at least 1; got {size}")
    return _resize_bicubic(x, (size[0], size[1]))
