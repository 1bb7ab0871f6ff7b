"""The graph of ``preprocess``: photos in, maps of their size out.

A resize is two matrix products, one for the rows and one for the columns. Their weights are built
from the shape of the photo inside the graph, so one file takes photos of every size. Padding and
cropping are part of the weights.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..ops import postprocess, preprocess
from ..ops.resize_bicubic import A as CUBIC
from ..runtime import FileFacts
from .network import ExportedNetwork


class PhotoNetwork(nn.Module):
    """Photos (B, H, W, 3) uint8 to the outputs of `FileFacts.output_names` at their size.

    Equals `DepthAnything.infer` with the default options and without a limit of tokens.

    Args:
        network: The network.
        facts: What the file is to be.
    """

    def __init__(self, network: ExportedNetwork, facts: FileFacts) -> None:
        super().__init__()
        self.network, self.config = network, facts.config
        self.fit = "pad" if facts.classes else facts.config.fit
        self.align_corners = facts.config.output_align_corners and not facts.classes

    def forward(self, photo: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, 3) uint8 to (B, H, W) each, or logits (B, classes, H, W)."""
        shape = torch._shape_as_tensor(photo)
        sides = [shape[1], shape[2]]
        sizes = self._sizes(*sides)
        planes = photo.permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (self.config.mean, self.config.std)
        )
        into = [self._into(side, *size) for side, size in zip(sides, sizes, strict=True)]
        outputs = self.network((into[0] @ planes @ into[1].T - mean) / std)
        back = [self._back(side, *size) for side, size in zip(sides, sizes, strict=True)]
        return tuple(back[0] @ out @ back[1].T for out in outputs)

    def _sizes(self, height: Tensor, width: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Computes for each side the resized size, the padding before it, and the network's size.

        The rule of `dafast.geometry.plan_geometry`, in float64 as there.
        """
        patch, size = self.config.patch_size, self.config.image_size
        scale = size / torch.minimum(height, width).double()
        sizes = []
        for side in (height, width):
            if self.fit == "official":
                patches = side.double() * scale / patch
                rounded = torch.round(patches) * patch
                rounded = torch.where(rounded < size, torch.ceil(patches) * patch, rounded)
            else:
                rounded = torch.round(side.double() * scale)
            resized = torch.maximum(rounded.long(), torch.tensor(patch))
            network = (resized + (patch - 1)) // patch * patch
            sizes.append((resized, (network - resized) // 2, network))
        return sizes

    def _into(self, side: Tensor, resized: Tensor, before: Tensor, network: Tensor) -> Tensor:
        """Weights (network, side) of the resize and of replicated padding."""
        pixels = _count(network) - before
        pixels = torch.minimum(torch.maximum(pixels, torch.tensor(0)), resized - 1)
        below, share = _places((2 * pixels + 1) * side - resized, 2 * resized)
        if self.fit == "official":
            distance = (_count(side + 4) - 2 - below[:, None]).float() - share[:, None]
            weights = _cubic(distance.abs())
            columns = _count(side)
            first = weights[:, :2].sum(1, keepdim=True) * (columns == 0)
            last = weights[:, -2:].sum(1, keepdim=True) * (columns == side - 1)
            return weights[:, 2:-2] + first + last
        distance = (_count(side) - below[:, None]).float() - share[:, None]
        scale = torch.clamp(side.float() / resized.float(), min=1.0)
        weights = torch.relu(1 - distance.abs() / scale)
        return weights / weights.sum(1, keepdim=True)

    def _back(self, side: Tensor, resized: Tensor, before: Tensor, network: Tensor) -> Tensor:
        """Weights (side, network) of the crop and of the resize to the photo's size."""
        pixels = _count(side)
        if self.align_corners:
            numerator, denominator = pixels * (resized - 1), side - 1
            denominator = torch.maximum(denominator, torch.tensor(1))
        else:
            numerator, denominator = (2 * pixels + 1) * resized - side, 2 * side
        least, most = torch.tensor(0), (resized - 1) * denominator
        numerator = torch.minimum(torch.maximum(numerator, least), most)
        below, share = _places(numerator, denominator)
        columns = _count(network) - before
        return torch.relu(1 - ((columns - below[:, None]).float() - share[:, None]).abs())


def _count(end: Tensor) -> Tensor:
    """`torch.arange` of a size that a program computes."""
    return torch.arange(end)  # type: ignore[call-overload]


def _places(numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """The whole part (int64) and the fraction (float32) of quotients above -1.

    As whole numbers: in float32 the places in a large photo lose the digits of the weights.
    """
    shifted = numerator + denominator
    whole = shifted // denominator
    rest = (shifted - whole * denominator).float() / denominator.float()
    return whole - 1, rest


def _cubic(distance: Tensor) -> Tensor:
    """The cubic kernel at distances of at least 0."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
    far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros(())))


def photo_outputs(
    reference: ExportedNetwork, facts: FileFacts, photos: np.ndarray
) -> list[np.ndarray]:
    """The outputs for photos (B, H, W, 3) by the ops of `DepthAnything.infer`."""
    config = facts.config
    fit = "pad" if facts.classes else config.fit
    align_corners = config.output_align_corners and not facts.classes
    x, geometries = preprocess(
        list(torch.from_numpy(photos)),
        size=config.image_size,
        multiple=config.patch_size,
        fit=fit,
        max_tokens=2**62,
        mean=config.mean,
        std=config.std,
    )
    results = []
    with torch.no_grad():
        for out in reference(x):
            layers = out.reshape(-1, *out.shape[-2:])
            each = [g for g in geometries for _ in range(len(layers) // len(geometries))]
            maps = postprocess(layers, each, align_corners=align_corners)
            results.append(torch.stack(maps).reshape(*out.shape[:-2], *maps[0].shape).numpy())
    return results
