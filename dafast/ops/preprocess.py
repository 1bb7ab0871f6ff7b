"""From photos to the network's input, in one kernel where the extension serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import IMAGENET_MEAN, IMAGENET_STD
from ..geometry import MAX_TOKENS, Geometry, plan_geometry
from ._dispatch import FLOATS, Op
from ._images import dense_rows, extension_backends
from ._kernel_op import KernelOp
from .pad import PADDING_CODES, check_padding, pad
from .resize_area import resize_in_two
from .resize_bicubic import resize_bicubic
from .resize_bilinear import resize_bilinear


def _channels_first(image: Tensor) -> Tensor:
    """An image of either accepted layout as (3, H, W); a view."""
    if image.ndim == 3 and image.shape[2] == 3 and image.dtype == torch.uint8:
        return image.permute(2, 0, 1)
    if image.ndim == 3 and image.shape[0] == 3 and image.is_floating_point():
        return image
    raise ValueError(
        "preprocess needs uint8 (H, W, 3) or floating-point (3, H, W) in 0..1; got "
        f"{image.dtype} {tuple(image.shape)}"
    )


@dataclass(frozen=True)
class _Target:
    """How every image of a batch is prepared."""

    fit: str
    antialias: bool
    padding: str
    mean: Sequence[float]
    std: Sequence[float]
    dtype: torch.dtype
    memory_format: torch.memory_format


def _resize(image: Tensor, size: tuple[int, int], target: _Target) -> Tensor:
    """(3, H, W) to (3, *size) in 0..1 and float32 (float64 for float64)."""
    compute = torch.float64 if image.dtype == torch.float64 else torch.float32
    out = []
    for channel in image:  # one at a time: floats of a large photo are large
        plane = channel.to(compute)[None, None]
        if channel.dtype == torch.uint8:
            plane.mul_(1 / 255)
        if tuple(plane.shape[-2:]) == size:
            resized = plane
        elif target.fit == "official":
            resized = resize_bicubic(plane, size)
        else:
            resized = resize_bilinear(plane, size, antialias=target.antialias)
        out.append(resized[0, 0])
    return torch.stack(out)


def preprocess_reference(
    images: Sequence[Tensor], geometries: Sequence[Geometry], target: _Target
) -> Tensor:
    """Specification of `preprocess`, on images (3, H, W): resize, normalise, pad."""
    batch = []
    for image, geometry in zip(images, geometries, strict=True):
        resized = _resize(image, geometry.resized, target)
        mean = resized.new_tensor(target.mean)[:, None, None]
        std = resized.new_tensor(target.std)[:, None, None]
        batch.append(pad((resized - mean) / std, geometry.padding, target.padding))
    return torch.stack(batch).to(target.dtype, memory_format=target.memory_format)


def _empty_batch(images: Sequence[Tensor], *args: Any) -> Tensor:
    _placement, network, *_, dtype, channels_last = args
    return torch.empty(
        (len(images), 3, *network),
        dtype=dtype,
        device=images[0].device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _write(out: Tensor, images: Sequence[Tensor], *args: Any) -> Tensor:
    placement, _network, *options, _dtype, _channels_last = args
    torch.ops.dafast_C.preprocess([dense_rows(x) for x in images], out, placement, *options)
    return out


def _kernel(images: Sequence[Tensor], *args: Any) -> Tensor:
    return _write(_empty_batch(images, *args), images, *args)


_op = KernelOp(
    "preprocess(Tensor[] images, SymInt[] placement, SymInt[] network, float[] mean, float[] std,"
    " bool cubic, bool antialias, SymInt padding, ScalarType dtype, bool channels_last) -> Tensor",
    fake=_empty_batch,
    extension=_kernel,
)


def _arguments(
    images: Sequence[Tensor], geometries: Sequence[Geometry], target: _Target
) -> tuple[Any, ...]:
    """Arguments of the custom op."""
    images = [x if x.dtype in (torch.uint8, torch.float32) else x.float() for x in images]
    placement = [n for g in geometries for n in (*g.resized, g.padding[0], g.padding[2])]
    return (
        images, placement, geometries[0].network, target.mean, target.std,
        target.fit == "official", target.antialias, PADDING_CODES[target.padding], target.dtype,
        target.memory_format == torch.channels_last,
    )  # fmt: skip


def _limits(images: Sequence[Tensor], _geometries: Any, target: _Target) -> str:
    if len({x.dtype == torch.uint8 for x in images}) > 1:
        return "takes uint8 images or floating-point ones, not both in one batch"
    if target.dtype not in FLOATS:
        return f"writes float32, float16 and bfloat16, not {target.dtype}"
    return ""


_preprocess = Op(
    "preprocess",
    preprocess_reference,
    extension_backends(
        "preprocess", lambda *args: _op(*_arguments(*args)), limits=_limits, backward=False
    ),
)


def preprocess(
    images: Tensor | Sequence[Tensor],
    *,
    size: int = 518,
    multiple: int = 14,
    fit: str = "pad",
    padding: str = "replicate",
    antialias: bool = True,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    max_tokens: int = MAX_TOKENS,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    out: Tensor | None = None,
) -> tuple[Tensor, list[Geometry]]:
    """Resizes, normalises and pads photos to one batch of network inputs.

    Args:
        images: One image or several: uint8 (H, W, 3), or floating point (3, H, W) in 0..1, RGB.
        size: Wanted shorter side in pixels; the longer one with ``fit="upper_bound"``.
        multiple: Patch size in pixels.
        fit: ``"pad"``: bilinear resize (antialiased where it shrinks) that keeps the aspect
            ratio, then padding. ``"official"``: bicubic resize (OpenCV's INTER_CUBIC) to
            multiples of the patch. ``"upper_bound"``: the two resizes of Depth Anything 3, cubic
            where they enlarge and area averages where they shrink, each rounded to uint8 for a
            uint8 image. ``"video"``: as ``"official"``, smaller for wide frames. See
            `plan_geometry`.
        padding: ``"replicate"``, ``"reflect"`` or ``"constant"`` (the mean colour).
            Replicate disturbs the prediction least: with `nano` on 8 photos it changed it by 0.07
            of its mean absolute deviation, reflect by 0.10, constant by 0.23 (`bench/padding.py`).
        antialias: Whether the bilinear resize is antialiased where it shrinks.
        dtype: Of the result, which is rounded once, at its end.
        memory_format: Of the result: `torch.contiguous_format` or `torch.channels_last`.
        max_tokens: See `plan_geometry`.
        mean: Per-channel mean on RGB in 0..1.
        std: Per-channel standard deviation.
        out: The memory of the result, contiguous or channels-last as ``memory_format`` says; new
            memory by default.

    Returns:
        The batch (B, 3, H, W) on the device of the images, and the geometry of each image.

    Raises:
        ValueError: If an image has another layout, the images do not share one network size
            (see `plan_geometry`; `DepthAnything.infer` groups them), or an option is unknown.
    """
    given = [images] if isinstance(images, Tensor) else list(images)
    if not given:
        raise ValueError("preprocess needs at least one image")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format must be contiguous or channels_last; got {memory_format}")
    batch = [_channels_first(image) for image in given]
    geometries = []
    for image in batch:
        _, height, width = image.shape
        geometry = plan_geometry(
            height, width, size=size, multiple=multiple, fit=fit, max_tokens=max_tokens
        )
        check_padding(*geometry.resized, geometry.padding, padding)
        geometries.append(geometry)
    networks = {g.network for g in geometries}
    if len(networks) > 1:
        raise ValueError(
            f"the images of one batch need one network size; these have {sorted(networks)}: "
            "group them by `plan_geometry(...).network`"
        )
    if fit == "upper_bound":
        batch = [
            resize_in_two(image, geometry)
            for image, geometry in zip(batch, geometries, strict=True)
        ]
    fit = "official" if fit == "video" else fit  # the geometries differ, not the resize
    target = _Target(fit, antialias, padding, tuple(mean), tuple(std), dtype, memory_format)
    if out is None:
        return _preprocess(batch, geometries, target), geometries
    shape = (len(batch), 3, *geometries[0].network)
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != batch[0].device:
        raise ValueError(
            f"out must be {shape}, {dtype} on {batch[0].device}; got {tuple(out.shape)}, "
            f"{out.dtype} on {out.device}"
        )
    if not out.is_contiguous(memory_format=memory_format):
        raise ValueError(f"out must be {memory_format}; its strides are {out.stride()}")
    if (
        torch.compiler.is_compiling()
        or _preprocess.select(batch, geometries, target) == "reference"
    ):
        return out.copy_(_preprocess(batch, geometries, target)), geometries
    return _write(out, *_arguments(batch, geometries, target)), geometries
