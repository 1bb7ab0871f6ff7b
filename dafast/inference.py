"""`DepthAnything.infer`: any photo in, disparity at its own resolution out.

Memory, at its peak and with the resulting float32 map (4 bytes a pixel): 11 bytes a pixel of an
8-bit RGB file (0.5 GiB for 50 megapixels), 16 of a uint16 array, 23 of an RGBA array, the caller's
own array not counted; channels are converted to float32 one at a time. The network never sees
more than ``max_tokens`` tokens of one photo or ``max_batch_tokens`` of a batch, whatever the
photo's size. The originals of a list are dropped one by one as they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .ops.preprocess import MAX_TOKENS, Geometry, plan_geometry, postprocess, preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

    from .models import DepthAnything

MAX_BATCH_TOKENS = 8192
WAITING_BATCHES = 4
"""Batches that may wait for photos of their size, in units of `max_batch_tokens`."""


class ImageError(ValueError):
    """An image that cannot be read or used; the message names it and what is wrong."""


def load_image(path: str | Path) -> np.ndarray:
    """Reads an image file as RGB, turned upright as its EXIF orientation says.

    Args:
        path: Any format that Pillow reads.

    Returns:
        uint8 (H, W, 3), or float32 (H, W, 3) in 0..1 for a 16-bit or floating-point file.
        Transparent pixels are laid over white.

    Raises:
        ImageError: If the file is missing, corrupt or not an image.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ImageError(f"{path}: {what}")
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)  # a copy would double the memory
            return from_pil(image, str(path))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on a corrupt file
        reason = str(error).replace(str(path), "the file")
        raise ImageError(f"{path}: cannot be read as an image ({reason})") from error


def from_pil(image: Image, name: str = "image") -> np.ndarray:
    """A PIL image of any mode to RGB, as `load_image` returns it.

    Raises:
        ImageError: If its values are out of the range of its mode.
    """
    import PIL.Image

    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        if image.mode != "F":  # "I" holds 16 bits in 32: Pillow's way to open 16-bit files
            values /= 65535
        return _as_rgb(values, name)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = PIL.Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _as_rgb(array: np.ndarray, name: str) -> np.ndarray:
    """A numpy image of any accepted kind to uint8 or float32 (H, W, 3)."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"{name}: an array must be (H, W), or (H, W, C) with 1 to 4 channels in the last "
            f"dimension, and not empty; got {array.shape}"
        )
    if not array.dtype.isnative:  # big-endian, as some files have it
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.uint16:
        array = array.astype(np.float32)
        array /= 65535
    elif np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32, copy=False)
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
            raise ImageError(
                f"{name}: floating-point images must be in 0..1 without NaN; got {low:g}..{high:g}"
                " (divide by 255, or pass uint8)"
            )
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ImageError(f"{name}: dtype {array.dtype}; use uint8, uint16 or floating point")
    if array.shape[2] in (2, 4):
        white = np.float32(255 if array.dtype == np.uint8 else 1)
        alpha = array[..., -1].astype(np.float32)
        alpha /= white
        color = np.empty((*array.shape[:2], array.shape[2] - 1), array.dtype)
        for c in range(color.shape[2]):  # one at a time: floats of a large photo are large
            plane = array[..., c] * alpha + white * (1 - alpha)
            color[..., c] = plane.round() if array.dtype == np.uint8 else plane
        array = color
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return array


def _load(image: Any, name: str) -> Tensor:
    """Anything that `infer` takes to uint8 (H, W, 3) or float32 (3, H, W) in 0..1."""
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 2, 3, 4):
            raise ImageError(f"{name}: a tensor must be (C, H, W); got {tuple(image.shape)}")
        if image.dtype in (torch.float16, torch.bfloat16):
            image = image.float()
        array = _as_rgb(image.detach().permute(1, 2, 0).cpu().numpy(), name)
    elif isinstance(image, str | Path):
        array = load_image(image)
    elif isinstance(image, np.ndarray):
        array = _as_rgb(image, name)
    elif hasattr(image, "convert") and hasattr(image, "getbands"):
        from PIL import ImageOps

        try:
            array = from_pil(ImageOps.exif_transpose(image), name)
        except ImageError:
            raise
        except Exception as error:  # opened, but never read until now
            name = getattr(image, "filename", "") or name
            raise ImageError(f"{name}: cannot be read as an image ({error})") from error
    else:
        raise ImageError(
            f"{name}: {type(image).__name__} is not an image; pass a path, a PIL image, a numpy "
            "array (H, W, C) or a tensor (C, H, W)"
        )
    # torch wants writable memory with positive strides; Pillow's is neither for sure.
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor if tensor.dtype == torch.uint8 else tensor.permute(2, 0, 1)


def _predict(
    model: DepthAnything, images: Sequence[Any], options: dict[str, Any], max_batch_tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """Yields (index, map) in any order; inputs of one network size share a batch."""
    waiting: dict[tuple[int, int], list[tuple[int, Tensor, Geometry]]] = {}

    def tokens(network: tuple[int, int]) -> int:
        return network[0] * network[1] // model.config.patch_size**2 + 1

    def flush(network: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        entries = waiting.pop(network)
        batch = torch.cat([x for _, x, _ in entries]).to(model.device, model.dtype)
        maps = postprocess(
            model(batch), [g for *_, g in entries], align_corners=model.config.output_align_corners
        )
        yield from zip((i for i, *_ in entries), maps, strict=True)

    for i, image in enumerate(images):
        pixels = _load(image, f"image {i}" if len(images) > 1 else "image")
        x, (geometry,) = preprocess(pixels.to(model.device), **options)
        group = waiting.setdefault(geometry.network, [])
        group.append((i, x, geometry))
        if (len(group) + 1) * tokens(geometry.network) > max_batch_tokens:
            yield from flush(geometry.network)
        held = {network: len(entries) * tokens(network) for network, entries in waiting.items()}
        if sum(held.values()) > WAITING_BATCHES * max_batch_tokens:
            # Many sizes with few photos each: memory counts for more than full batches.
            yield from flush(max(held, key=lambda network: held[network]))
    for network in list(waiting):
        yield from flush(network)


def infer(model: DepthAnything, images: Any, **options: Any) -> Any:
    """Predicts the disparity of photos with a relative model; images and options as in `predict`.

    Raises:
        TypeError: If the model is metric: use `infer_metric`.
    """
    if model.config.is_metric:
        raise TypeError(
            f"{model.config.name!r} predicts depth in metres, not disparity: use `infer_metric`"
        )
    return predict(model, images, **options)


def infer_metric(model: DepthAnything, images: Any, **options: Any) -> Any:
    """Predicts the depth of photos in metres with a metric model; otherwise as `infer`.

    Raises:
        TypeError: If the model is relative: use `infer`.
    """
    if not model.config.is_metric:
        raise TypeError(
            f"{model.config.name!r} predicts relative disparity, not metres: use `infer`, or load "
            "a metric model such as 'v2-metric-hypersim-vits'"
        )
    return predict(model, images, **options)


@torch.no_grad()  # not inference_mode: its tensors could not take part in training
def predict(
    model: DepthAnything,
    images: Any,
    *,
    fit: str = "pad",
    size: int | None = None,
    padding: str = "replicate",
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_tokens: int = MAX_TOKENS,
    return_tensors: bool = False,
) -> Any:
    """Runs a model of either kind on photos, at their own resolution.

    Args:
        model: A relative or a metric model.
        images: A path, a PIL image, a numpy array (H, W, C) in RGB (uint8, uint16, or floating
            point in 0..1), a tensor (C, H, W) with the same ranges, or a list of them with any
            sizes. Gray, alpha (laid over white), palette and 16-bit images are handled; files
            and PIL images are turned upright by their EXIF orientation.
        fit: ``"pad"`` (keeps the aspect ratio and pads) or ``"official"`` (the official
            script's size rule and bicubic resize).
        size: Shorter side in pixels that the network sees; ``None`` for the size that the model
            was trained at (518 for the published ones).
        padding: ``"replicate"``, ``"reflect"`` or ``"constant"``; for ``fit="pad"``.
        max_batch_tokens: Photos of one network size are run together up to this many tokens.
        max_tokens: A photo that needs more tokens is scaled down, with a warning.
        return_tensors: Whether to return float32 tensors on the model's device.

    Returns:
        A float32 numpy array (H, W) for one image, a list of them for a list: disparity of a
        relative model (large where the scene is near; scale and shift are unknown), metres of a
        metric one.

    Raises:
        ImageError: If an image cannot be used; the message names it.
        ValueError: If an option is out of range.
    """
    single = not isinstance(images, list | tuple)
    inputs = [images] if single else list(images)
    options: dict[str, Any] = dict(
        size=model.config.image_size if size is None else size,
        multiple=model.config.patch_size,
        fit=fit,
        padding=padding,
        max_tokens=max_tokens,
        mean=model.config.mean,
        std=model.config.std,
    )
    plan_geometry(  # a bad option is reported before any photo is read
        1, 1, size=options["size"], multiple=options["multiple"], fit=fit, max_tokens=max_tokens
    )
    results: list[Any] = [None] * len(inputs)
    for i, prediction in _predict(model, inputs, options, max_batch_tokens):
        results[i] = prediction if return_tensors else prediction.cpu().numpy()
    return results[0] if single else results
