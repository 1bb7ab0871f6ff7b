"""From the network's output to the photos' sizes, in one kernel where the extension serves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import Geometry
from ._dispatch import Op
from ._images import extension_backends
from ._kernel_op import KernelOp
from .resize_bilinear import resize_bilinear


def _to_uint16(x: Tensor) -> Tensor:
    """Least value to 0, greatest to 65535; 0 if all are equal up to the rounding of the resize."""
    least, greatest = x.aminmax()
    width = greatest - least
    flat = width <= 1e-6 * torch.maximum(least.abs(), greatest.abs())
    share = torch.where(flat, 0, (x - least) / width)
    return (share * 65535).round().to(torch.int32).to(torch.uint16)


def postprocess_reference(
    disparity: Tensor, geometries: Sequence[Geometry], align_corners: bool, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Specification of `postprocess`: crop, resize."""
    out = []
    for prediction, geometry in zip(disparity, geometries, strict=True):
        left, _, top, _ = geometry.padding
        height, width = geometry.resized
        cropped = prediction[top : top + height, left : left + width][None, None]
        if cropped.dtype != torch.float64:
            cropped = cropped.float()
        resized = resize_bilinear(cropped, geometry.original, align_corners=align_corners)[0, 0]
        out.append(_to_uint16(resized) if dtype == torch.uint16 else resized)
    return tuple(out)


def _empty_maps(disparity: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    return [
        torch.empty((height, width), dtype=dtype, device=disparity.device)
        for height, width in zip(sizes[::2], sizes[1::2], strict=True)
    ]


def _kernel(
    disparity: Tensor, crops: list[int], sizes: list[int], align_corners: bool, dtype: torch.dtype
) -> list[Tensor]:
    out = _empty_maps(disparity, sizes, dtype)
    dense = disparity if disparity.stride(-1) == 1 else disparity.contiguous()
    torch.ops.dafast_C.postprocess(dense, out, crops, align_corners)
    return out


_op = KernelOp(
    "postprocess(Tensor disparity, SymInt[] crops, SymInt[] sizes, bool align_corners,"
    " ScalarType dtype) -> Tensor[]",
    fake=lambda disparity, _crops, sizes, _corners, dtype: _empty_maps(disparity, sizes, dtype),
    extension=_kernel,
)


def _extension_backend(
    disparity: Tensor, geometries: Sequence[Geometry], align_corners: bool, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    crops = [n for g in geometries for n in (g.padding[2], g.padding[0], *g.resized)]
    sizes = [n for g in geometries for n in g.original]
    return tuple(_op(disparity, crops, sizes, align_corners, dtype))


_postprocess = Op(
    "postprocess",
    postprocess_reference,
    extension_backends("postprocess", _extension_backend, backward=False),
)


def postprocess(
    disparity: Tensor,
    geometries: Sequence[Geometry],
    *,
    align_corners: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Crops the padding away and resizes each prediction to the size of its photo.

    Args:
        disparity: (B, H, W), the network's output, floating point.
        geometries: One per image, from `preprocess`.
        align_corners: As the model's official script has it: False in V1, True in V2.
        dtype: `torch.float32`, or `torch.uint16` for saving: each map from its least value (0) to
            its greatest (65535); the values have to be finite.

    Returns:
        One (height, width) per image.

    Raises:
        ValueError: If the output's size is not that of the geometry, or for another dtype.
    """
    if dtype not in (torch.float32, torch.uint16):
        raise ValueError(f"postprocess gives float32 or uint16, not {dtype}")
    if len(disparity) != len(geometries):
        raise ValueError(f"{len(disparity)} predictions but {len(geometries)} geometries")
    for prediction, geometry in zip(disparity, geometries, strict=True):
        if tuple(prediction.shape) != geometry.network:
            raise ValueError(
                f"prediction of {tuple(prediction.shape)} but the geometry says {geometry.network}"
            )
    return list(_postprocess(disparity, geometries, align_corners, dtype))
