"""Small data sets that stay on the device, decoded, cropped and disturbed there in batches.

For sets of some thousand small pictures the loader processes of `dafast.training.data` are what a
fast device waits for. Here a set is decoded once; the geometry and the colours of
`dafast.data.transforms` are batched tensor operations with the same settings. Two things differ
from there: pictures are resampled bilinearly without antialiasing (a crop should not be much larger
than the output), and the random numbers are the device's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dafast.data.shards import ShardDataset
from dafast.data.transforms import (
    LUMA,
    RGB_TO_YIQ,
    YIQ_TO_RGB,
    AugmentConfig,
    resize_image,
    resize_nearest,
)


@dataclass(frozen=True)
class Boxes:
    """Where crops are taken from.

    Attributes:
        centre: (B, 2), x and y of the centres; -1 and 1 are the picture's borders.
        half: (B, 2), half the width and height; 1 is the whole picture. A negative width flips.
    """

    centre: Tensor
    half: Tensor

    def __getitem__(self, index: slice) -> Boxes:
        return Boxes(self.centre[index], self.half[index])


class ResidentSet:
    """A data set in the memory of a device.

    Args:
        data: The shards; with ``labels="none"`` pictures alone are kept.
        device: Where to keep them.
        shape: Height and width that all samples are brought to; those of the first by default.
        indices: The samples to keep; all by default.
        threads: That decode.

    Attributes:
        image: (N, 3, H, W) uint8.
        disparity: (N, H, W) float32, or None without labels.
        mask: (N, H, W) bool, or None without labels.
    """

    def __init__(
        self,
        data: ShardDataset,
        device: torch.device | str,
        *,
        shape: tuple[int, int] | None = None,
        indices: Sequence[int] | None = None,
        threads: int = 4,
    ) -> None:
        indices = range(len(data)) if indices is None else indices
        size = shape or data[indices[0]].image.shape[:2]

        def read(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            sample = data[index]
            image = sample.image
            if image.shape[:2] != size:
                image = np.asarray(resize_image(Image.fromarray(image), size))
            if data.labels == "none":
                return image, sample.disparity, sample.mask
            disparity, mask = resize_nearest(sample.disparity, size), sample.mask
            return image, disparity, resize_nearest(mask, size)

        with ThreadPoolExecutor(threads) as pool:
            images, disparities, masks = zip(*pool.map(read, indices), strict=True)
        self.image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device).contiguous()
        self.disparity: Tensor | None = None
        self.mask: Tensor | None = None
        if data.labels != "none":
            self.disparity = torch.from_numpy(np.stack(disparities)).to(device)
            self.mask = torch.from_numpy(np.stack(masks)).to(device)

    def __len__(self) -> int:
        return len(self.image)


def epoch_batch(length: int, batch: int, step: int, seed: int) -> Tensor:
    """The samples of a step: the set in a random order, again and again in new ones.

    A pure function of its arguments, int64 (batch,) on the CPU.
    """
    first, stop = step * batch, (step + 1) * batch
    parts: list[np.ndarray] = []
    while first < stop:
        epoch, offset = divmod(first, length)
        order = np.random.default_rng([seed, epoch]).permutation(length)
        parts.append(order[offset : offset + stop - first])
        first += len(parts[-1])
    return torch.from_numpy(np.concatenate(parts))


def random_boxes(
    count: int,
    augment: AugmentConfig,
    source: Sequence[int],
    shape: tuple[int, int],
    generator: torch.Generator,
) -> Boxes:
    """Draws the crops (and flips) of `AugmentConfig` with ``crop = "resized"``.

    Args:
        count: How many.
        augment: `area`, `aspect_jitter` and `flip` are used.
        source: Height and width of the pictures.
        shape: Height and width of the output, for its aspect.
        generator: Source of everything random; its device gets the boxes.
    """
    if augment.crop != "resized":
        raise ValueError(f'crops on the device are "resized", not {augment.crop!r}')
    draw = torch.rand(count, 5, generator=generator, device=generator.device)
    height, width = source
    bend = (2 * draw[:, 0] - 1) * math.log(augment.aspect_jitter)
    aspect = shape[1] / shape[0] * bend.exp()
    box_width = torch.clamp(height * aspect, max=width)
    box_height = box_width / aspect
    low, high = augment.area
    side = (low + (high - low) * draw[:, 1]).sqrt()
    half = torch.stack([box_width * side / width, box_height * side / height], dim=1)
    centre = (2 * draw[:, 2:4] - 1) * (1 - half)
    half[:, 0] *= torch.where(draw[:, 4] < augment.flip, -1.0, 1.0)
    return Boxes(centre, half)


def crop(maps: Tensor, boxes: Boxes, shape: tuple[int, int], *, nearest: bool = False) -> Tensor:
    """Takes a box of each picture or map, resampled to one shape.

    Args:
        maps: (B, C, H, W) or (B, H, W), any dtype.
        boxes: B of them.
        shape: Height and width of the output.
        nearest: Pick values (labels, masks) instead of mixing them.

    Returns:
        float32, of the same rank.
    """
    zero = torch.zeros_like(boxes.centre[:, 0])
    rows = [
        torch.stack([boxes.half[:, 0], zero, boxes.centre[:, 0]], dim=1),
        torch.stack([zero, boxes.half[:, 1], boxes.centre[:, 1]], dim=1),
    ]
    channels = maps if maps.ndim == 4 else maps[:, None]
    grid = F.affine_grid(
        torch.stack(rows, dim=1), [len(maps), channels.shape[1], *shape], align_corners=False
    )
    mode = "nearest" if nearest else "bilinear"
    out = F.grid_sample(
        channels.float(), grid, mode=mode, padding_mode="border", align_corners=False
    )
    return out if maps.ndim == 4 else out[:, 0]


def disturb(images: Tensor, augment: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Disturbs the colours as `TrainTransform` does: jitter, gamma, grayscale, blur, noise.

    Args:
        images: (B, 3, H, W) float32, 0 to 255.
        augment: With what probability and how strongly.
        generator: Source of everything random.

    Returns:
        (B, 3, H, W) float32, 0 to 255, not rounded.
    """
    count, device = len(images), images.device
    draw = torch.rand(count, 11, generator=generator, device=device)

    def chance(column: int, probability: float) -> Tensor:
        return (draw[:, column] < probability).view(-1, 1, 1, 1)

    if augment.jitter:
        jitter = torch.where(chance(0, augment.jitter), 1.0, 0.0).view(-1)
        strength = (2 * draw[:, 4:9] - 1) * jitter[:, None]
        images = _jitter(images, augment, strength)
    if augment.grayscale:
        luma = torch.tensor(LUMA, device=device, dtype=images.dtype).view(1, 3, 1, 1)
        gray = (images * luma).sum(1, keepdim=True).expand_as(images)
        images = torch.where(chance(1, augment.grayscale), gray, images)
    if augment.blur:
        low, high = augment.blur_sigma
        blurred = gaussian_blur(images, low + (high - low) * draw[:, 9], high)
        images = torch.where(chance(2, augment.blur), blurred, images)
    if augment.noise:
        noise = torch.randn(images.shape, generator=generator, device=device)
        sigma = (255.0 * augment.noise_sigma * draw[:, 10]).view(-1, 1, 1, 1)
        noisy = (images + sigma * noise).clamp(0, 255)
        images = torch.where(chance(3, augment.noise), noisy, images)
    return images


def _jitter(images: Tensor, augment: AugmentConfig, strength: Tensor) -> Tensor:
    """`transforms.jitter_colours` of each image, `strength` (B, 5) in -1..1."""
    device, dtype = images.device, images.dtype

    def constant(values: np.ndarray) -> Tensor:
        return torch.tensor(values, device=device, dtype=dtype)

    luma = constant(LUMA)
    brightness, contrast, saturation = (
        (1 + amount * strength[:, i]).view(-1, 1, 1)
        for i, amount in enumerate((augment.brightness, augment.contrast, augment.saturation))
    )
    angle = 2 * math.pi * augment.hue * strength[:, 3]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1)
    hue = constant(YIQ_TO_RGB) @ turn.view(-1, 3, 3) @ constant(RGB_TO_YIQ)
    saturate = saturation * torch.eye(3, device=device) + (1 - saturation) * luma.expand(3, 3)
    matrix = contrast * brightness * (saturate @ hue)
    mean = (images * luma.view(1, 3, 1, 1)).sum(1).mean((1, 2)).view(-1, 1, 1)
    shift = (1 - contrast) * brightness * mean
    images = (matrix @ images.flatten(2) + shift).view_as(images).clamp(0, 255)
    if augment.gamma:
        exponent = (1.0 + augment.gamma) ** strength[:, 4].view(-1, 1, 1, 1)
        images = 255.0 * (images / 255.0) ** exponent
    return images


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blurs each image with its own sigma, in pixels; borders are repeated.

    Args:
        images: (B, C, H, W) float32.
        sigma: (B,).
        largest: No sigma is above it; the kernel reaches three of it.
    """
    radius = max(1, math.ceil(3 * largest))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    count, channels, height, width = images.shape
    kernel = kernel.repeat_interleave(channels, 0)[:, None, None]
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    planes = padded.reshape(1, count * channels, height + 2 * radius, width + 2 * radius)
    planes = F.conv2d(planes, kernel, groups=count * channels)
    planes = F.conv2d(planes, kernel.transpose(2, 3), groups=count * channels)
    return planes.view(count, channels, height, width)
