"""From photos to the network's input and from its output back to the photos' size."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import IMAGENET_MEAN, IMAGENET_STD
from .resize_bicubic import resize_bicubic

logger = logging.getLogger("dafast")

FITS = ("pad", "official")
PADDINGS = ("replicate", "reflect", "constant")
MAX_TOKENS = 8192


@dataclass(frozen=True)
class Geometry:
    """How one photo became one input of the network; sizes are (height, width) in pixels.

    Attributes:
        original: Size of the photo.
        resized: Size it is resized to.
        padding: Pixels added (left, right, top, bottom) after that.
        network: Size of the network's input, multiples of the patch.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    padding: tuple[int, int, int, int]
    network: tuple[int, int]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def plan_geometry(
    height: int,
    width: int,
    *,
    size: int = 518,
    multiple: int = 14,
    fit: str = "pad",
    max_tokens: int = MAX_TOKENS,
) -> Geometry:
    """Works out the sizes without touching a pixel.

    ``fit="pad"``: the shorter side becomes ``size``, the longer one is rounded to the nearest
    pixel, and both are padded up to a multiple, evenly, the odd pixel right and bottom.
    ``fit="official"``: the rule of the official script (`depth_anything/util/transform.py`,
    ``lower_bound``): scale = max(size/h, size/w), each side rounded to a multiple, up instead
    where rounding falls under ``size``; no padding.

    A photo that would need more than ``max_tokens`` tokens (patches and the cls token) is
    scaled down until it fits, with a warning; no side falls under ``multiple``.

    Args:
        height: Height of the photo in pixels.
        width: Width of the photo in pixels.
        size: Wanted shorter side in pixels.
        multiple: Patch size in pixels.
        fit: ``"pad"`` or ``"official"``.
        max_tokens: Upper bound on (H / multiple) * (W / multiple) + 1.

    Returns:
        The geometry.

    Raises:
        ValueError: For an empty photo, an unknown ``fit``, or a ``size`` under ``multiple``.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image needs at least one pixel; got {height}x{width}")
    if fit not in FITS:
        raise ValueError(f"fit={fit!r}; use one of {', '.join(FITS)}")
    if size < multiple:
        raise ValueError(f"size={size} is smaller than a patch of {multiple} pixels")
    if max_tokens < 2:
        raise ValueError(f"max_tokens={max_tokens}: one patch and the cls token make two")

    def tokens(sides: tuple[int, int]) -> int:
        return _round_up(sides[0], multiple) * _round_up(sides[1], multiple) // multiple**2 + 1

    scale = max(size / height, size / width)
    sides = _sides(height, width, scale, size, multiple, fit)
    wanted = tokens(sides)
    while tokens(sides) > max_tokens and max(sides) > multiple:
        # sqrt would do for a continuous size; rounding up to patches may need a few steps more.
        scale *= min(0.995, math.sqrt(max_tokens / tokens(sides)))
        shrunk = _sides(height, width, scale, 0, multiple, fit)
        # A side at its floor of one patch stays; the other alone gives way.
        longest = (max_tokens - 1) * multiple
        sides = (min(shrunk[0], longest), min(shrunk[1], longest))
    if wanted > max_tokens:
        logger.warning(
            "an image of %dx%d pixels would take %d tokens; scaled down to %d (max_tokens=%d)",
            width,
            height,
            wanted,
            tokens(sides),
            max_tokens,
        )
    network = (_round_up(sides[0], multiple), _round_up(sides[1], multiple))
    extra_h, extra_w = network[0] - sides[0], network[1] - sides[1]
    padding = (extra_w // 2, extra_w - extra_w // 2, extra_h // 2, extra_h - extra_h // 2)
    return Geometry((height, width), sides, padding, network)


def _sides(
    height: int, width: int, scale: float, size: int, multiple: int, fit: str
) -> tuple[int, int]:
    """Both sides after scaling; ``size`` > 0 is the least that the official rule allows."""
    if fit == "pad":
        return tuple(max(multiple, round(side * scale)) for side in (height, width))  # type: ignore[return-value]
    sides = []
    for side in (height, width):
        # Python's round is half to even, as np.round in the official script.
        rounded = round(side * scale / multiple) * multiple
        if rounded < size:
            rounded = math.ceil(side * scale / multiple) * multiple
        sides.append(max(multiple, rounded))
    return sides[0], sides[1]


def pad(x: Tensor, padding: tuple[int, int, int, int], *, mode: str = "constant") -> Tensor:
    """Pads the last two dimensions.

    Args:
        x: (B, C, H, W) or (C, H, W).
        padding: Pixels (left, right, top, bottom).
        mode: ``"constant"`` (zeros), ``"replicate"`` or ``"reflect"``.

    Returns:
        The padded tensor.

    Raises:
        ValueError: For an unknown mode, or a reflection wider than the image.
    """
    if mode not in PADDINGS:
        raise ValueError(f"padding mode {mode!r}; use one of {', '.join(PADDINGS)}")
    if mode == "reflect" and (max(padding[:2]) >= x.shape[-1] or max(padding[2:]) >= x.shape[-2]):
        raise ValueError(
            f"padding {padding} reflects more than an image of {x.shape[-1]}x{x.shape[-2]} has; "
            "use mode='replicate'"
        )
    return F.pad(x, padding, mode=mode)


def resize_bilinear(
    x: Tensor, size: tuple[int, int], *, align_corners: bool = False, antialias: bool = False
) -> Tensor:
    """Bilinear resize, exactly `torch.nn.functional.interpolate`'s.

    Args:
        x: (B, C, H, W), floating point.
        size: Height and width to resize to.
        align_corners: Whether the corner pixels' centres coincide.
        antialias: Whether to widen the filter when shrinking.

    Returns:
        (B, C, *size).
    """
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners, antialias=antialias)


def _to_float_channels(image: Tensor) -> list[Tensor]:
    """The three channels, each (H, W); a 50-megapixel photo is converted one at a time."""
    if image.ndim == 3 and image.shape[2] == 3 and image.dtype == torch.uint8:
        return list(image.unbind(2))
    if image.ndim == 3 and image.shape[0] == 3 and image.is_floating_point():
        return list(image.unbind(0))
    raise ValueError(
        "preprocess needs uint8 (H, W, 3) or floating-point (3, H, W) in 0..1; got "
        f"{image.dtype} {tuple(image.shape)}"
    )


def _resize(image: Tensor, geometry: Geometry, fit: str) -> Tensor:
    """(3, *geometry.resized) in float32 and 0..1."""
    out = []
    for channel in _to_float_channels(image):
        plane = channel.to(torch.float32)[None, None]
        if channel.dtype == torch.uint8:
            plane.mul_(1 / 255)
        if tuple(plane.shape[-2:]) == geometry.resized:
            resized = plane
        elif fit == "official":
            resized = resize_bicubic(plane, geometry.resized)
        else:
            resized = resize_bilinear(plane, geometry.resized, antialias=True)
        out.append(resized[0, 0])
    return torch.stack(out)


def preprocess(
    images: Tensor | Sequence[Tensor],
    *,
    size: int = 518,
    multiple: int = 14,
    fit: str = "pad",
    padding: str = "replicate",
    dtype: torch.dtype = torch.float32,
    max_tokens: int = MAX_TOKENS,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> tuple[Tensor, list[Geometry]]:
    """Resizes, normalises and pads photos to one batch of network inputs.

    Args:
        images: One image or several: uint8 (H, W, 3), or floating point (3, H, W) in 0..1, RGB.
        size: Wanted shorter side in pixels.
        multiple: Patch size in pixels.
        fit: ``"pad"``: bilinear resize (antialiased where it shrinks) that keeps the aspect
            ratio, then padding. ``"official"``: bicubic resize (OpenCV's INTER_CUBIC) to
            multiples of the patch. See `plan_geometry`.
        padding: ``"replicate"``, ``"reflect"`` or ``"constant"`` (the mean colour).
            Replicate disturbs the prediction least: with `nano` on 8 photos it changed it by 0.07
            of its mean absolute deviation, reflect by 0.10, constant by 0.23 (`bench/padding.py`).
        dtype: Of the result.
        max_tokens: See `plan_geometry`.
        mean: Per-channel mean on RGB in 0..1.
        std: Per-channel standard deviation.

    Returns:
        The batch (B, 3, H, W) on the device of the images, and the geometry of each image.

    Raises:
        ValueError: If an image has another layout, or the images do not share one network size
            (`plan_geometry` tells; `DepthAnything.infer` groups them).
    """
    batch = [images] if isinstance(images, Tensor) else list(images)
    if not batch:
        raise ValueError("preprocess needs at least one image")
    geometries = []
    for image in batch:
        height, width = _to_float_channels(image)[0].shape
        geometries.append(
            plan_geometry(
                height, width, size=size, multiple=multiple, fit=fit, max_tokens=max_tokens
            )
        )
    networks = {g.network for g in geometries}
    if len(networks) > 1:
        raise ValueError(
            f"the images of one batch need one network size; these have {sorted(networks)}: "
            "group them by `plan_geometry(...).network`"
        )
    planes = []
    for image, geometry in zip(batch, geometries, strict=True):
        resized = _resize(image, geometry, fit)
        shift = resized.new_tensor(mean)[:, None, None]
        scale = resized.new_tensor(std)[:, None, None]
        planes.append(pad((resized - shift) / scale, geometry.padding, mode=padding))
    return torch.stack(planes).to(dtype), geometries


def postprocess(
    disparity: Tensor, geometries: Sequence[Geometry], *, align_corners: bool = False
) -> list[Tensor]:
    """Crops the padding away and resizes each prediction to the size of its photo.

    Args:
        disparity: (B, H, W), the network's output.
        geometries: One per image, from `preprocess`.
        align_corners: As the model's official script has it: False in V1, True in V2.

    Returns:
        One float32 (height, width) per image.

    Raises:
        ValueError: If the output's size is not that of the geometry.
    """
    if len(disparity) != len(geometries):
        raise ValueError(f"{len(disparity)} predictions but {len(geometries)} geometries")
    out = []
    for prediction, geometry in zip(disparity, geometries, strict=True):
        if tuple(prediction.shape) != geometry.network:
            raise ValueError(
                f"prediction of {tuple(prediction.shape)} but the geometry says {geometry.network}"
            )
        left, _, top, _ = geometry.padding
        height, width = geometry.resized
        cropped = prediction[top : top + height, left : left + width].float()[None, None]
        out.append(resize_bilinear(cropped, geometry.original, align_corners=align_corners)[0, 0])
    return out
