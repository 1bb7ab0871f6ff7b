"""`DepthAnything.infer`: any photo in, disparity at its own resolution out.

Memory, at its peak and with the resulting float32 map (4 bytes a pixel): 11 bytes a pixel of an
8-bit RGB file (0.5 GiB for 50 megapixels), 16 of a uint16 array, 23 of an RGBA array, the caller's
own array not counted; channels are converted to float32 one at a time. The network never sees
more than ``max_tokens`` tokens of one photo or ``max_batch_tokens`` of a batch, whatever the
photo's size. The originals of a list are dropped one by one as they are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..images import as_pixels
from ..ops import Geometry, postprocess, preprocess
from ..ops._triton import why_missing as triton_missing
from ..ops.geometry import MAX_TOKENS, check_count, check_geometry
from ..ops.pad import check_padding
from ..pointcloud import check_intrinsics, intrinsics_from_fov, point_cloud

if TYPE_CHECKING:
    from ..config import ModelConfig
    from .network import DepthNetwork

MAX_BATCH_TOKENS = 8192
WAITING_BATCHES = 4
"""Batches that may wait for photos of their size, in units of `max_batch_tokens`."""


def _predict(
    model: DepthNetwork,
    images: Sequence[Any],
    options: dict[str, Any],
    max_batch_tokens: int,
    native: bool = False,
    mirrored: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Yields (index, map) in any order; inputs of one network size share a batch.

    Where sequences of many lengths run as fast as those of one, inputs of all sizes do.
    With ``native`` a map keeps the resolution that the network gave it; with ``mirrored`` the
    network sees the mirror images, and the maps are turned back.
    """
    model.prepare_inference()
    waiting: dict[tuple[int, int] | None, list[tuple[int, Tensor, Geometry]]] = {}
    mixed = _mixes_sizes(model)

    def tokens(geometry: Geometry) -> int:
        height, width = geometry.network
        return height * width // model.config.patch_size**2 + 1

    def held(entries: list[tuple[int, Tensor, Geometry]]) -> int:
        return sum(tokens(geometry) for *_, geometry in entries)

    def flush(key: tuple[int, int] | None) -> Iterator[tuple[int, Tensor]]:
        entries = waiting.pop(key)
        inputs = [x for _, x, _ in entries]
        if len({x.shape for x in inputs}) == 1:
            predictions = model(torch.cat(inputs))
        else:
            predictions = model([x[0] for x in inputs])
        for (i, _, geometry), prediction in zip(entries, predictions, strict=True):
            if native:
                geometry = dataclasses.replace(geometry, original=geometry.resized)
            align_corners = model.config.output_align_corners
            out = postprocess(prediction[None], [geometry], align_corners=align_corners)[0]
            yield i, out.flip(-1) if mirrored else out

    for i, image in enumerate(images):
        pixels = as_pixels(image, f"image {i}" if len(images) > 1 else "image")
        if mirrored:
            pixels = pixels.flip(1 if pixels.dtype == torch.uint8 else 2)
        x, (geometry,) = preprocess(pixels.to(model.device), dtype=model.dtype, **options)
        key = None if mixed else geometry.network
        if key in waiting and held(waiting[key]) + tokens(geometry) > max_batch_tokens:
            yield from flush(key)
        waiting.setdefault(key, []).append((i, x, geometry))
        if held(waiting[key]) + tokens(geometry) > max_batch_tokens:
            yield from flush(key)  # another photo of this size would not fit
        waits = {key: held(entries) for key, entries in waiting.items()}
        if sum(waits.values()) > WAITING_BATCHES * max_batch_tokens:
            # Many sizes with few photos each: memory counts for more than full batches.
            yield from flush(max(waits, key=lambda key: waits[key]))
    for key in list(waiting):
        yield from flush(key)


def _mixes_sizes(model: DepthNetwork) -> bool:
    """Whether photos of different sizes share a batch: on a GPU that the kernels serve."""
    return model.device.type == "cuda" and not triton_missing()


def infer(model: DepthNetwork, images: Any, **options: Any) -> Any:
    """Predicts the disparity of photos with a relative model; images and options as in `predict`.

    Raises:
        TypeError: If the model is metric: use `infer_metric`.
    """
    if model.config.is_metric:
        raise TypeError(
            f"{model.config.name!r} predicts depth in metres, not disparity: use `infer_metric`"
        )
    return predict(model, images, **options)


def infer_metric(
    model: DepthNetwork,
    images: Any,
    *,
    intrinsics: Sequence[float] | np.ndarray | None = None,
    fov: float | None = None,
    **options: Any,
) -> Any:
    """Predicts the depth of photos in metres with a metric model; otherwise as `infer`.

    Args:
        model: A metric model.
        images: As in `predict`.
        intrinsics: The camera, (fx, fy, cx, cy) in pixels of the photo or a 3 x 3 matrix, the same
            for all photos: see `dafast.pointcloud.Intrinsics`. It places the points in space and
            changes nothing in the depth.
        fov: In its place the horizontal field of view in degrees.
        **options: As in `predict`.

    Returns:
        As `predict`, in metres along the optical axis. With ``intrinsics`` or ``fov`` a
        `dafast.pointcloud.PointCloud` for each photo, which has the depth too.

    Raises:
        TypeError: If the model is relative: use `infer`.
        ValueError: If both ``intrinsics`` and ``fov`` are given or one of them is none, or an
            option is out of range.
    """
    if not model.config.is_metric:
        raise TypeError(
            f"{model.config.name!r} predicts relative disparity, not metres: use `infer`, or load "
            "a metric model such as 'v2-metric-hypersim-vits'"
        )
    if intrinsics is None and fov is None:
        return predict(model, images, **options)
    if intrinsics is not None and fov is not None:
        raise ValueError("intrinsics and fov both say what the camera is: give one of them")
    if options.get("return_tensors"):
        raise ValueError("a point cloud holds numpy arrays: leave out return_tensors")
    if fov is None:
        check_intrinsics(intrinsics)  # type: ignore[arg-type]
    single = not isinstance(images, list | tuple)
    photos = []
    for i, image in enumerate([images] if single else images):
        pixels = as_pixels(image, "image" if single else f"image {i}")
        photos.append((pixels if pixels.dtype == torch.uint8 else pixels.permute(1, 2, 0)).numpy())
    clouds = []
    for photo, depth in zip(photos, predict(model, photos, **options), strict=True):
        camera = intrinsics if fov is None else intrinsics_from_fov(fov, *depth.shape)
        clouds.append(point_cloud(depth, photo, camera))  # type: ignore[arg-type]
    return clouds[0] if single else clouds


def check_options(
    config: ModelConfig,
    *,
    fit: str = "pad",
    size: int | None = None,
    padding: str = "replicate",
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_tokens: int = MAX_TOKENS,
) -> None:
    """Checks what can be said of the options of `predict` before any photo is read.

    Raises:
        ValueError: If an option is out of range.
    """
    size = config.image_size if size is None else size
    check_geometry(size=size, multiple=config.patch_size, fit=fit, max_tokens=max_tokens)
    check_padding(1, 1, (0, 0, 0, 0), padding)
    check_count("max_batch_tokens", max_batch_tokens, 1, "it must be at least 1")


@torch.no_grad()  # not inference_mode: its tensors could not take part in training
def predict(
    model: DepthNetwork,
    images: Any,
    *,
    fit: str = "pad",
    size: int | None = None,
    padding: str = "replicate",
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_tokens: int = MAX_TOKENS,
    flip: bool = False,
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
        max_batch_tokens: Photos of one network size are run together up to this many tokens; on a
            GPU with Triton, photos of all sizes.
        max_tokens: A photo that needs more tokens is scaled down, with a warning.
        flip: Whether to predict the mirror images too and average the two maps of each photo:
            twice the time, a little more accuracy (test-time augmentation).
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
    options = _checked_options(model, fit, size, padding, max_batch_tokens, max_tokens)
    results: list[Any] = [None] * len(inputs)
    for i, prediction in _predict(model, inputs, options, max_batch_tokens):
        results[i] = prediction
    if flip:
        for i, prediction in _predict(model, inputs, options, max_batch_tokens, mirrored=True):
            results[i] = (results[i] + prediction) / 2
    if not return_tensors:
        results = [prediction.cpu().numpy() for prediction in results]
    return results[0] if single else results


@torch.no_grad()
def predict_native(
    model: DepthNetwork,
    images: Sequence[Any],
    *,
    size: int | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[np.ndarray]:
    """As `predict` with ``fit="pad"``, at the network's own resolution: what a label is kept in.

    Args:
        model: A relative or a metric model.
        images: As a list that `predict` takes.
        size: As in `predict`.
        max_batch_tokens: As in `predict`.

    Returns:
        Per image a float32 map of its aspect, rounded to pixels, with the shorter side ``size``.
    """
    options = _checked_options(model, "pad", size, "replicate", max_batch_tokens, MAX_TOKENS)
    results: list[Any] = [None] * len(images)
    for i, prediction in _predict(model, images, options, max_batch_tokens, native=True):
        results[i] = prediction.cpu().numpy()
    return results


def _checked_options(
    model: DepthNetwork,
    fit: str,
    size: int | None,
    padding: str,
    max_batch_tokens: int,
    max_tokens: int,
) -> dict[str, Any]:
    """The options of `preprocess`, checked."""
    check_options(
        model.config,
        fit=fit,
        size=size,
        padding=padding,
        max_batch_tokens=max_batch_tokens,
        max_tokens=max_tokens,
    )
    return dict(
        size=model.config.image_size if size is None else size,
        multiple=model.config.patch_size,
        fit=fit,
        padding=padding,
        max_tokens=max_tokens,
        mean=model.config.mean,
        std=model.config.std,
    )
