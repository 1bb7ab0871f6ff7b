"""Small data sets that stay on the device, decoded and cropped there in batches.

With a few thousand small pictures a fast device waits for the loader processes of
`dafast.training.data`. Here a set is decoded once; the geometry of `dafast.data.transforms` is
batched tensor operations with the same settings. Two things differ from there: pictures are
resampled bilinearly without antialiasing (a crop should not be much larger than the output), and
the random numbers, also those for `dafast.data.colours`, are the device's own.
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

from dafast.data.colours import DRAWS
from dafast.data.shards import ShardDataset
from dafast.data.transforms import AugmentConfig, resize_image, resize_nearest


@dataclass(frozen=True)
class Boxes:
    """Positions of crops.

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
        data: The shards; with ``labels="none"`` only pictures are kept.
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
    """The samples of a step: passes over the set, each in a new random order.

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


def random_colours(count: int, generator: torch.Generator) -> Tensor:
    """Draws the numbers that `dafast.data.colours.change_colours` takes, (count, DRAWS) on the CPU.

    With a GPU's generator, the call waits for the device.
    """
    return torch.rand(count, DRAWS, generator=generator, device=generator.device).cpu()
