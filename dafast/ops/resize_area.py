"""The resizes of Depth Anything 3: area averages (OpenCV's INTER_AREA) where a picture shrinks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Geometry
from .resize_bicubic import resize_bicubic


def _area_weights(inputs: int, outputs: int, device: torch.device) -> Tensor:
    """(outputs, inputs): the share of each input pixel in each output pixel, float32.

    They are computed on the CPU, as Apple's GPUs have no float64.
    """
    edges = torch.arange(outputs + 1, dtype=torch.float64, device="cpu") * (inputs / outputs)
    pixels = torch.arange(inputs, dtype=torch.float64, device="cpu")
    upper = torch.minimum(edges[1:, None], pixels[None] + 1)
    lower = torch.maximum(edges[:-1, None], pixels[None])
    return ((upper - lower).clamp(min=0) * (outputs / inputs)).float().to(device)


def resize_area(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Averages over areas, for sides that shrink or stay.

    Args:
        plane: (H, W), float32.
        size: Height and width of the result, at most those of the plane.

    Returns:
        (*size), float32.
    """
    rows = _area_weights(plane.shape[0], size[0], plane.device)
    columns = _area_weights(plane.shape[1], size[1], plane.device)
    return rows @ plane @ columns.T


def resize_in_two(image: Tensor, geometry: Geometry) -> Tensor:
    """Resizes an image to `Geometry.first` and from there to `Geometry.resized`.

    A resize is cubic (OpenCV's INTER_CUBIC) if a side grows, and takes area averages otherwise. As
    in the original, the result of each is rounded to uint8 for a uint8 image.

    Args:
        image: (3, H, W), uint8, or floating point in 0..1.
        geometry: Its geometry, of ``fit="upper_bound"``.

    Returns:
        (3, *geometry.resized), uint8 or float32.
    """
    assert geometry.first is not None
    channels = []
    for channel in image:  # one at a time: floats of a large photo are large
        plane = channel.float()
        for size in (geometry.first, geometry.resized):
            height, width = plane.shape
            if (height, width) == size:
                continue
            if size[0] > height or size[1] > width:
                plane = resize_bicubic(plane[None, None], size)[0, 0]
            else:
                plane = resize_area(plane, size)
            if image.dtype == torch.uint8:
                plane = plane.round().clamp(0, 255)
        channels.append(plane.to(torch.uint8) if image.dtype == torch.uint8 else plane)
    if image.dtype == torch.uint8:
        return torch.stack(channels, dim=-1).permute(2, 0, 1)  # as photos are in memory
    return torch.stack(channels)
