"""The sky of Depth Anything 3: how its depth is filled."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SKY, SKY_FEWEST, SKY_FILLED, SKY_QUANTILE

__all__ = ["SKY", "fill_sky"]


def fill_sky(depth: Tensor, sky: Tensor) -> Tensor:
    """Replaces the depth of the sky by the 0.99 quantile of the depth elsewhere, as published.

    Depth in the sky is not trained, so its values mean nothing. The quantile is that of all pixels
    without sky, each image by itself. The official code draws 100,000 of them where there are more,
    so its result differs by the noise of the draw, and it shares one quantile among all images of
    a call, which there are views of one scene.

    Args:
        depth: (B, H, W).
        sky: (B, H, W), 0.3 or more in the sky.

    Returns:
        (B, H, W); an image with at most 10 pixels of sky, or of the rest, as it was.
    """
    in_sky = sky >= SKY_FILLED
    count = in_sky.flatten(1).sum(1)
    enough = (
        (count > SKY_FEWEST) & (in_sky[0].numel() - count > SKY_FEWEST) if len(sky) else count > 0
    )
    rest = depth.detach().masked_fill(in_sky, torch.nan)
    # `nanquantile` limits the elements of a call, not of an image.
    far = [image.flatten().nanquantile(SKY_QUANTILE) for image in rest.unbind()]
    if not far:
        return depth
    return torch.where(in_sky & enough[:, None, None], torch.stack(far)[:, None, None], depth)
