"""Upsampling of a map to the edges of a photo: the joint bilateral filter of Kopf et al. (2007).

Measured on synthetic scenes with their true disparity at a quarter and an eighth of the size, the
boundary F1 is higher than with the fast guided filter, and the error of depth lower: the guided
filter carries texture into the map and leaves halos along edges; see docs/kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp

REACH = 2
"""Pixels of the map to each side that a result is averaged from: 5 x 5."""

SPREAD = 0.7
"""Standard deviation of the weights of distance, in pixels of the map."""

FLOOR = 1e-6
"""Weight of a pixel whose colour is another one: where no colour fits, the nearest counts."""


def _places(source: int, target: int, align_corners: bool) -> Tensor:
    """Where the pixels of the result are in the map, (target,) float64 on the CPU."""
    place = torch.arange(target, dtype=torch.float64, device="cpu")
    if align_corners:
        return place * ((source - 1) / max(1, target - 1))
    return (place + 0.5) * (source / target) - 0.5


def guided_upsample_reference(
    x: Tensor, guide: Tensor, small: Tensor, sigma: float = 0.05, align_corners: bool = False
) -> Tensor:
    """Specification of `guided_upsample`; ``small`` is the guide at the size of the map."""
    sizes, targets = x.shape[-2:], guide.shape[-2:]
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    colours = guide.to(compute) / 255 if guide.dtype == torch.uint8 else guide.to(compute)
    x, small = x.to(compute), small.to(compute)
    taps = []  # for both axes and each offset: indices and weights
    for size, target in zip(sizes, targets, strict=True):
        place = _places(size, target, align_corners)
        nearest = place.round()
        taps.append(
            [
                (
                    (nearest.long() + offset).clamp(0, size - 1).to(x.device),
                    (-((nearest + offset - place) ** 2) / (2 * SPREAD**2))
                    .exp()
                    .to(x.device, compute),
                )
                for offset in range(-REACH, REACH + 1)
            ]
        )
    total, result = torch.zeros_like(colours[:, :1]), torch.zeros_like(colours[:, :1])
    for rows, weight_y in taps[0]:
        for columns, weight_x in taps[1]:
            near = small[:, :, rows][..., columns]
            distance = ((colours - near) ** 2).sum(1, keepdim=True)
            weight = (-distance / (2 * sigma**2)).exp() + FLOOR
            weight = weight * (weight_y[:, None] * weight_x)
            total = total + weight
            result = result + weight * x[:, :, rows][..., columns]
    return result / total


def _result(x: Tensor, guide: Tensor, small: Tensor, sigma: float, align_corners: bool) -> Tensor:
    return x.new_empty((x.shape[0], 1, *guide.shape[-2:]))


def _kernel(x: Tensor, guide: Tensor, small: Tensor, sigma: float, align_corners: bool) -> Tensor:
    out = _result(x, guide, small, sigma, align_corners)
    torch.ops.dafast_C.guided_upsample(
        x.contiguous(), guide, small.contiguous(), out, sigma, align_corners
    )
    return out


_op = KernelOp(
    "guided_upsample(Tensor x, Tensor guide, Tensor small, float sigma, bool align_corners)"
    " -> Tensor",
    fake=_result,
    cpp=_kernel,
)


def _limits(x: Tensor, guide: Tensor, small: Tensor, *_: object) -> str:
    if x.dtype != torch.float32 or small.dtype != torch.float32:
        return f"takes a map in float32, not {x.dtype}"
    if guide.dtype not in (torch.float32, torch.uint8):
        return f"takes a guide in float32 or uint8, not {guide.dtype}"
    return ""


_guided_upsample = Op(
    "guided_upsample",
    guided_upsample_reference,
    {"cpp": _extension.backend("cpp", "guided_upsample", _op, _limits, backward=False)},
)


def guided_upsample(
    x: Tensor, guide: Tensor, *, sigma: float = 0.05, align_corners: bool = False
) -> Tensor:
    """Upsamples maps so that their edges are those of a photo.

    Each result is the mean of the 5 x 5 pixels of the map around it, with weights that fall with
    their distance (standard deviation 0.7 pixels of the map) and with the difference between the
    colour of the result's pixel and the mean colour of the map's pixel (standard deviation
    ``sigma``).

    Args:
        x: Maps (B, 1, h, w), floating point.
        guide: Photos (B, C, H, W), floating point in 0..1, or uint8; of any strides (a permuted HWC
            array is read in place).
        sigma: Difference of colours at which a pixel counts little.
        align_corners: Whether the corners of the map are those of the photo, as in
            `resize_bilinear`.

    Returns:
        (B, 1, H, W) in float32 (float64 for float64). The reference has a gradient, the C++ kernel
        has none.

    Raises:
        ValueError: If shapes or dtypes do not fit, or sigma is not positive.
    """
    if x.ndim != 4 or x.shape[1] != 1 or 0 in x.shape[-2:] or not x.is_floating_point():
        raise ValueError(
            f"x must be floating point (B, 1, h, w), h and w > 0; got {x.dtype} {tuple(x.shape)}"
        )
    if guide.ndim != 4 or guide.shape[0] != x.shape[0] or 0 in guide.shape[1:]:
        raise ValueError(
            f"guide must be (B, C, H, W) with B = {x.shape[0]}, none of the others 0; got "
            f"{tuple(guide.shape)}"
        )
    if not guide.is_floating_point() and guide.dtype != torch.uint8:
        raise ValueError(f"guide must be floating point or uint8; got {guide.dtype}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive; got {sigma}")
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    # One channel at a time: a large uint8 photo never becomes float as a whole.
    channels = [
        F.adaptive_avg_pool2d(guide[:, c : c + 1].to(compute), (x.shape[2], x.shape[3]))
        for c in range(guide.shape[1])
    ]
    small = torch.cat(channels, 1) / (255 if guide.dtype == torch.uint8 else 1)
    return _guided_upsample(x.to(compute), guide, small, float(sigma), bool(align_corners))
