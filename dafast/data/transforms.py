"""The geometry of a training sample: an image with its disparity and mask, cropped and flipped.

In one pass: a box of the source is chosen and resampled straight to the output size, so nothing
outside the crop is ever computed. The image is resampled antialiased bilinear; disparity and mask
nearest: an average across an object's edge is a depth that exists nowhere. Colours are changed
later, in batches: `dafast.data.colours`.

Everything random comes from the generator that is passed in; `sample_generator` makes the one that
belongs to a position of the training stream, so that a sample does not
depend on the worker, the rank or the resumed run that makes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class AugmentConfig:
    """Options of crops and disturbances of training samples. The defaults are the paper's stage 1.

    `dafast.data.colours` says how colours are changed, from `jitter` on.

    Attributes:
        crop: `"paper"`: the image is scaled until it just covers the output (for a square output:
            the shorter side to that size), then cropped at random. `"resized"`: a random box of
            the output's aspect, covering a random share of the largest box, is scaled to the
            output.
        area: For `"resized"`: range of that share.
        aspect_jitter: For `"resized"`: largest factor by which the box's aspect varies; 1 keeps it.
        rotate: Largest angle in degrees by which the picture is turned first; pixels from outside
            of it are black and not valid.
        flip: Probability of a horizontal flip.
        jitter: Probability that the colours are jittered, by the five strengths that follow.
        brightness: Factor in 1 +- this; so are contrast and saturation.
        contrast: See brightness.
        saturation: See brightness.
        hue: Rotation in HSV in +- this, in turns (0.5 is the opposite colour).
        gamma: Exponent in [1/(1 + this), 1 + this].
        grayscale: Probability of losing all colour.
        blur: Probability of a Gaussian blur.
        blur_sigma: Range of its sigma, in output pixels.
        noise: Probability of Gaussian noise.
        noise_sigma: Largest standard deviation of it, of a range of 0 to 1.
    """

    crop: Literal["paper", "resized"] = "paper"
    area: tuple[float, float] = (0.35, 1.0)
    aspect_jitter: float = 1.0
    rotate: float = 0.0
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gamma: float = 0.3
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    noise: float = 0.0
    noise_sigma: float = 0.04

    @property
    def changes_colours(self) -> bool:
        """Whether any change of colours is enabled."""
        return max(self.jitter, self.grayscale, self.blur, self.noise) > 0


STRONG = AugmentConfig(
    jitter=0.8, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, gamma=0.0,
    grayscale=0.2, blur=0.5, blur_sigma=(0.1, 2.0),
)  # fmt: skip
"""The student's view of unlabeled images: UniMatch's recipe, the paper gives no numbers."""


def sample_generator(seed: int, *position: int) -> np.random.Generator:
    """The generator of one position of a training stream: a pure function of the numbers."""
    return np.random.default_rng([seed, *position])


class TrainTransform:
    """Crops, turns and flips one sample.

    Args:
        config: See `AugmentConfig`; its colours are ignored here.
    """

    def __init__(self, config: AugmentConfig | None = None) -> None:
        self.config = config or AugmentConfig()

    def __call__(
        self,
        image: np.ndarray,
        disparity: np.ndarray,
        mask: np.ndarray,
        shape: tuple[int, int],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Applies the transform.

        Args:
            image: (H, W, 3) uint8.
            disparity: (h, w) float32, of the image's extent in any resolution.
            mask: (h, w) bool.
            shape: Output height and width.
            rng: Source of everything random.

        Returns:
            Image (*shape, 3) uint8, disparity float32 and mask bool of that shape, each contiguous.
        """
        picture = Image.fromarray(image)
        if self.config.rotate:  # otherwise nothing is drawn, so that older runs can be repeated
            angle = rng.uniform(-self.config.rotate, self.config.rotate)
            picture = picture.rotate(angle, Image.Resampling.BILINEAR)
            disparity = _rotate(disparity.astype(np.float32), angle)
            mask = _rotate(mask.astype(np.uint8), angle) != 0
        box = self._box(image.shape[0], image.shape[1], shape, rng)
        flip = rng.random() < self.config.flip
        picture = resize_image(picture, shape, box)
        if flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scale = disparity.shape[0] / image.shape[0], disparity.shape[1] / image.shape[1]
        box = box[0] * scale[1], box[1] * scale[0], box[2] * scale[1], box[3] * scale[0]
        disparity = resize_nearest(disparity, shape, box)
        mask = resize_nearest(mask, shape, box)
        if flip:
            disparity, mask = disparity[:, ::-1], mask[:, ::-1]
        # A writable copy: torch wants to own what it wraps.
        pixels = np.array(picture, order="C")
        return pixels, np.ascontiguousarray(disparity), np.ascontiguousarray(mask)

    def _box(
        self, height: int, width: int, shape: tuple[int, int], rng: np.random.Generator
    ) -> tuple[float, float, float, float]:
        """Chooses the source box (left, top, right, bottom), in source pixels."""
        config = self.config
        out_height, out_width = shape
        if config.crop == "paper":
            scale = max(out_height / height, out_width / width)
            scaled_height = max(out_height, round(height * scale))
            scaled_width = max(out_width, round(width * scale))
            step_y, step_x = height / scaled_height, width / scaled_width
            # Whole pixels of the scaled picture: what resizing first and cropping then would give.
            top = int(rng.integers(scaled_height - out_height + 1)) * step_y
            left = int(rng.integers(scaled_width - out_width + 1)) * step_x
            box_height, box_width = out_height * step_y, out_width * step_x
        else:
            bend = math.log(config.aspect_jitter)
            aspect = out_width / out_height * math.exp(rng.uniform(-bend, bend))
            box_width = min(width, height * aspect)
            box_height = box_width / aspect
            side = math.sqrt(rng.uniform(*config.area))
            box_width, box_height = box_width * side, box_height * side
            top = rng.uniform(0.0, max(0.0, height - box_height))
            left = rng.uniform(0.0, max(0.0, width - box_width))
        # Rounding must not push the box over the border by an ulp: Pillow refuses that.
        return left, top, min(float(width), left + box_width), min(float(height), top + box_height)


def _rotate(values: np.ndarray, angle: float) -> np.ndarray:
    """A map turned about its middle by degrees, counter-clockwise, nearest; 0 from outside."""
    return np.asarray(Image.fromarray(values).rotate(angle, Image.Resampling.NEAREST))


def resize_image(
    picture: Image.Image,
    shape: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Resamples a box of an image to (height, width): bilinear, antialiased when it shrinks."""
    return picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=box)


def resize_nearest(
    values: np.ndarray, shape: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resamples a box of a map to (height, width), nearest: values are picked, never mixed."""
    height, width = values.shape
    left, top, right, bottom = box or (0.0, 0.0, float(width), float(height))
    rows = top + (np.arange(shape[0]) + 0.5) * ((bottom - top) / shape[0])
    columns = left + (np.arange(shape[1]) + 0.5) * ((right - left) / shape[1])
    rows = np.clip(rows.astype(np.int64), 0, height - 1)
    columns = np.clip(columns.astype(np.int64), 0, width - 1)
    return values[rows[:, None], columns[None, :]]
