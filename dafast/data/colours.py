"""The colours of a batch of training images, changed on the device with kornia.

What happens to an image is decided by `DRAWS` numbers in [0, 1), drawn where the image is made: by
a loader process with the generator of the image's position, or for a whole batch
(`dafast.data.resident`). `change_colours` turns them into factors and applies them to the batch.
So an image's colours depend only on its own numbers, not on the rest of the batch.

The definitions are those of torchvision's ColorJitter, in whose terms UniMatch gives its strong
view, in this order (torchvision shuffles the first four):

1. brightness: a factor;
2. contrast: a factor on the distance from the image's mean luminance;
3. saturation: a factor on the distance of each pixel from its luminance;
4. hue: turned in HSV;
5. gamma: an exponent (not of ColorJitter);

then grayscale (ITU-R 601 luminance), a Gaussian blur whose border pixels are repeated, and Gaussian
noise. Values are cut to the range after each of the five and after the noise, and never rounded.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dafast.data.transforms import AugmentConfig
from dafast.optional import MissingPackageError, why_no_module
from dafast.profiling import annotate

DRAWS = 12
"""How many numbers an image has: four chances, five strengths, two sigmas, the noise's seed."""
_JITTER, _GRAYSCALE, _BLUR, _NOISE = range(4)
_STRENGTHS = slice(4, 9)  # brightness, contrast, saturation, hue, gamma
_BLUR_SIGMA, _NOISE_SIGMA, _NOISE_SEED = 9, 10, 11


def draw_colours(rng: np.random.Generator) -> np.ndarray:
    """Draws the numbers of an image, float64 (DRAWS,) in [0, 1).

    All are always drawn, so that no option shifts the numbers of another.
    """
    return rng.random(DRAWS)


@annotate("colours")
@torch.no_grad()
def change_colours(images: Tensor, augment: AugmentConfig, draws: Tensor) -> Tensor:
    """Changes the colours of images as their numbers say.

    Each change is applied only to the images that are drawn for it. The numbers are read on the
    CPU; if they are there already, a GPU does not wait. A GPU takes the images together; a CPU
    takes them one by one, which costs no time from 168 pixels a side on, and gives an image the
    same bits in every batch. Noise comes from the generator of the images' device: other devices
    give other noise.

    Args:
        images: (B, 3, H, W) of any dtype, 0 to 255; left as they are.
        augment: With what probability and how strongly.
        draws: (B, DRAWS), each in [0, 1).

    Returns:
        (B, 3, H, W) float32, 0 to 255. An image without a drawn change keeps its values; if no
        image has one, the given tensor is returned.

    Raises:
        MissingPackageError: If kornia is missing.
    """
    if not augment.changes_colours:
        return images
    if why := why_no_module("kornia"):
        raise MissingPackageError(
            f"changing the colours of images needs kornia: pip install 'dafast[train]' ({why})"
        )
    draws = draws.cpu().double()
    if images.device.type == "cpu":
        pairs = zip(images.split(1), draws.split(1), strict=True)
        return torch.cat([_change(image, augment, own) for image, own in pairs])
    return _change(images, augment, draws)


def _change(images: Tensor, augment: AugmentConfig, draws: Tensor) -> Tensor:
    out = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for chance, probability, change in (
        (_JITTER, augment.jitter, _jitter),
        (_GRAYSCALE, augment.grayscale, _grayscale),
        (_BLUR, augment.blur, _blur),
        (_NOISE, augment.noise, _noise),
    ):
        rows = (draws[:, chance] < probability).nonzero().flatten()
        if 0 < len(rows) == len(out):
            out = change(out, augment, draws)
        elif len(rows):
            index = rows.to(out.device, non_blocking=True)
            out[index] = change(out[index], augment, draws[rows])
    return out


def _jitter(images: Tensor, augment: AugmentConfig, draws: Tensor) -> Tensor:
    from kornia import enhance

    brightness, contrast, saturation, hue, gamma = (2.0 * draws[:, _STRENGTHS] - 1.0).unbind(1)
    images = enhance.adjust_brightness_accumulative(
        images / 255.0, 1.0 + augment.brightness * brightness
    )
    images = enhance.adjust_contrast_with_mean_subtraction(
        images, 1.0 + augment.contrast * contrast
    )
    images = enhance.adjust_saturation_with_gray_subtraction(
        images, 1.0 + augment.saturation * saturation
    )
    if augment.hue:  # radians
        images = enhance.adjust_hue(images, 2.0 * math.pi * augment.hue * hue)
    if augment.gamma:
        images = enhance.adjust_gamma(images, (1.0 + augment.gamma) ** gamma)
    return 255.0 * images


def _grayscale(images: Tensor, augment: AugmentConfig, draws: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale

    return rgb_to_grayscale(images).expand_as(images).contiguous()


def _blur(images: Tensor, augment: AugmentConfig, draws: Tensor) -> Tensor:
    from kornia.filters import gaussian_blur2d

    low, high = augment.blur_sigma
    # kornia wants it positive; so little is the image itself.
    sigma = (low + (high - low) * draws[:, _BLUR_SIGMA]).clamp(min=1e-3)
    # As wide as the largest sigma asks, so that an image does not depend on the others'.
    size = 2 * max(1, math.ceil(3.0 * high)) + 1
    return gaussian_blur2d(images, size, sigma[:, None].expand(-1, 2), border_type="replicate")


def _noise(images: Tensor, augment: AugmentConfig, draws: Tensor) -> Tensor:
    generator = torch.Generator(images.device)
    numbers = draws[:, [_NOISE_SIGMA, _NOISE_SEED]].tolist()
    for image, (sigma, seed) in zip(images, numbers, strict=True):
        generator.manual_seed(int(seed * 2**53))
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image.add_(noise, alpha=255.0 * augment.noise_sigma * sigma)
    return images.clamp_(0.0, 255.0)
