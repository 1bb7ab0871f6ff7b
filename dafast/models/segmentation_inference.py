"""Segmentation of photos: whole or in sliding windows, at one or several scales, also mirrored.

The procedure is that of the published evaluations (mmsegmentation's `slide_inference` and test-time
augmentation, which DINOv2 and Depth Anything use): logits of overlapping windows are averaged,
resized to the photo and turned into probabilities, which are averaged over all views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..geometry import MAX_TOKENS, check_count
from ..images import as_pixels
from ..ops import postprocess, preprocess
from .segmentation_network import SegmentationNetwork
from .transfer import MAX_BATCH_TOKENS


@dataclass(frozen=True)
class SegmentationOptions:
    """Options of the inference of a segmentation model.

    Attributes:
        size: Shorter side in pixels at scale 1; 0 for the size that the encoder was trained at
            (`ModelConfig.image_size`).
        scales: Factors; the photo is resized by each of them, which gives one view each.
        flip: Whether to add the mirror image of each view.
        window: Side in pixels of the windows that slide over a view, a multiple of the patch size;
            0 for the whole view at once.
        stride: Pixels between windows; 0 for two thirds of the window.
    """

    size: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int = 0
    stride: int = 0

    def check(self, patch: int) -> None:
        """Raises a ValueError if a value is invalid for a network of this patch size."""
        for name in ("size", "window", "stride"):
            check_count(name, getattr(self, name), 0, "it must not be negative")
        if not self.scales or not all(s > 0 and math.isfinite(s) for s in self.scales):
            raise ValueError(f"scales={self.scales}: must be positive factors")
        if self.window % patch:
            raise ValueError(f"window={self.window}: not a multiple of the patch size, {patch}")
        if self.stride and not self.window:
            raise ValueError(f"stride={self.stride}: the distance between windows; set window too")
        if self.stride > self.window:
            raise ValueError(
                f"stride={self.stride}: longer than the window ({self.window}), which would leave "
                "out pixels"
            )


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Starts of windows along one side: every `stride` pixels; the last window ends at the border.

    Args:
        length: Pixels of the side, at least `window`.
        window: Pixels of a window.
        stride: Pixels between the starts of two windows.
    """
    count = math.ceil((length - window) / stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def _logits(model: SegmentationNetwork, x: Tensor, options: SegmentationOptions) -> Tensor:
    """(1, 3, H, W) to (K, H, W), whole or in windows, averaged where they overlap."""
    if not options.window:
        return model(x)[0]
    height, width = (min(options.window, side) for side in x.shape[2:])
    stride = options.stride or max(1, round(options.window * 2 / 3))
    places = [
        (top, left)
        for top in window_starts(x.shape[2], height, min(stride, height))
        for left in window_starts(x.shape[3], width, min(stride, width))
    ]
    total = x.new_zeros((len(model.config.classes), *x.shape[2:]), dtype=torch.float32)
    count = x.new_zeros(x.shape[2:], dtype=torch.float32)
    tokens = height * width // model.config.encoder.patch_size**2 + 1
    batch = max(1, MAX_BATCH_TOKENS // tokens)
    for first in range(0, len(places), batch):
        chosen = places[first : first + batch]
        windows = [x[0, :, t : t + height, l : l + width] for t, l in chosen]  # noqa: E741
        for (top, left), logits in zip(chosen, model(torch.stack(windows)), strict=True):
            total[:, top : top + height, left : left + width] += logits
            count[top : top + height, left : left + width] += 1
    return total / count


@torch.no_grad()
def probabilities(
    model: SegmentationNetwork, image: Tensor, options: SegmentationOptions | None = None
) -> Tensor:
    """Class probabilities of one photo at its own resolution.

    Args:
        model: In evaluation mode.
        image: uint8 (H, W, 3), or floating point (3, H, W) in 0..1, RGB.
        options: Size, scales, windows.

    Returns:
        (classes, H, W), float32, on the model's device: 4 bytes a pixel and class, and 16 at the
        peak, while views are averaged.

    Raises:
        ValueError: If an option is out of range.
    """
    options = options or SegmentationOptions()
    config = model.config.encoder
    options.check(config.patch_size)
    size = options.size or config.image_size
    total: Tensor | None = None
    for scale in options.scales:
        x, (geometry,) = preprocess(
            image.to(model.device),
            size=max(config.patch_size, round(size * scale)),
            multiple=config.patch_size,
            # With windows the network's input is small for any photo.
            max_tokens=2**62 if options.window else MAX_TOKENS,
            mean=config.mean,
            std=config.std,
            dtype=model.dtype,
        )
        for mirrored in (False, True)[: 1 + options.flip]:
            logits = _logits(model, x.flip(3) if mirrored else x, options)
            logits = logits.flip(2) if mirrored else logits
            share = torch.stack(postprocess(logits, [geometry] * len(logits))).softmax(0)
            total = share if total is None else total.add_(share)
    assert total is not None  # there is at least one scale
    return total.div_(len(options.scales) * (1 + options.flip))


@torch.no_grad()
def segment(
    model: SegmentationNetwork, images: Any, options: SegmentationOptions | None = None
) -> Any:
    """The class of every pixel of photos, at their own resolution.

    Args:
        model: A model in evaluation mode; in training mode its BatchNorm would learn from the
            photos.
        images: One image or a list, as for `DepthAnything.infer`.
        options: Size, scales, windows.

    Returns:
        A uint8 numpy array (H, W) for one image, a list of them for a list: indices into
        `model.config.classes`.

    Raises:
        ImageError: If an image cannot be used; the message names it.
        ValueError: If an option is out of range, or the model is in training mode.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    single = not isinstance(images, list | tuple)
    results = []
    for i, image in enumerate([images] if single else images):
        pixels = as_pixels(image, "image" if single else f"image {i}")
        shares = probabilities(model, pixels, options)
        results.append(shares.argmax(0).to(torch.uint8).cpu().numpy())
    return results[0] if single else results
