"""Predicts photos at their own resolution, for `DepthAnything.infer`.

Peak memory, with the resulting float32 map (4 bytes a pixel): 11 bytes a pixel of an 8-bit RGB file
(0.5 GiB for 50 megapixels), 16 of a uint16 array, 23 of an RGBA array, without the caller's own
array; channels are converted to float32 one at a time. The network never sees more than
``max_tokens`` tokens of one photo or ``max_batch_tokens`` of a batch. The photos of a list are
released one by one as they are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from .._warnings import WeightsWarning, warn
from ..camera import (
    Intrinsics,
    check_fov,
    check_intrinsics,
    focal_factor,
    intrinsics_from_35mm,
    intrinsics_from_fov,
    no_camera,
)
from ..config import ModelConfig
from ..geometry import MAX_TOKENS, check_count, check_geometry, plan_geometry
from ..images import as_pixels, focal_from_exif
from ..ops import Geometry, postprocess, preprocess
from ..ops._triton import why_missing as triton_missing
from ..ops.pad import check_padding
from ..picture_sources import fetch_all, name_of
from ..pointcloud import point_cloud
from .network import DepthNetwork
from .sky import SKY
from .transfer import MAX_BATCH_TOKENS as MAX_BATCH_TOKENS
from .transfer import Downloads, batch_tokens, upload

WAITING_BATCHES = 4
"""Limit on the tokens of photos that wait for others of their size, in `max_batch_tokens`."""


class InferenceKeywords(TypedDict, total=False):
    """Types of the fields of `InferenceOptions`, for the overloads of `DepthAnything.infer`."""

    fit: str | None
    size: int | None
    padding: str
    max_batch_tokens: int | None
    max_tokens: int
    flip: bool


@dataclass(frozen=True)
class InferenceOptions:
    """The options of `DepthAnything.infer`, which documents them."""

    fit: str | None = None
    size: int | None = None
    padding: str = "replicate"
    max_batch_tokens: int | None = None
    max_tokens: int = MAX_TOKENS
    flip: bool = False
    return_tensors: bool = False

    def check(self, config: ModelConfig) -> None:
        """Raises a ValueError if a value is invalid for a model of this configuration."""
        check_geometry(
            size=self.size_for(config),
            multiple=config.patch_size,
            fit=self.fit_for(config),
            max_tokens=self.max_tokens,
        )
        check_padding(1, 1, (0, 0, 0, 0), self.padding)
        if self.max_batch_tokens is not None:
            check_count("max_batch_tokens", self.max_batch_tokens, 1, "it must be at least 1")

    def fit_for(self, config: ModelConfig) -> str:
        """The size rule."""
        return config.fit if self.fit is None else self.fit

    def size_for(self, config: ModelConfig) -> int:
        """Side in pixels of the network's input, as `ModelConfig.image_size`."""
        return config.image_size if self.size is None else self.size


class _Input(NamedTuple):
    """A photo that waits for its batch."""

    position: int  # in the list of images
    x: Tensor | None  # (1, 3, H, W), preprocessed; None if `photo` is to be
    geometry: Geometry
    photo: Tensor | None = None  # of the same size as those of its batch


class _Prediction(NamedTuple):
    """The map of one photo."""

    position: int  # in the list of images
    map: Tensor
    geometry: Geometry
    finite: Tensor  # bool scalar on the model's device
    sky: Tensor | None


class Predictor:
    """Runs photos through a model; those of one network size share a batch.

    Where sequences of mixed lengths are as fast as those of one length, all photos do.

    Args:
        model: A relative or a metric model.
        options: Checked options.
        native: Whether maps keep the network's resolution.
        sky: Whether to predict the sky, too.
        mirrored: Whether the network sees the mirror images; the maps are mirrored back.
    """

    def __init__(
        self,
        model: DepthNetwork,
        options: InferenceOptions,
        *,
        native: bool = False,
        sky: bool = False,
        mirrored: bool = False,
    ) -> None:
        self.model, self.options, self.sky = model, options, sky
        self.native, self.mirrored = native, mirrored
        # On a GPU that the kernels serve, one batch takes photos of all sizes.
        self.mixed = model.device.type == "cuda" and not triton_missing()
        self.waiting: dict[tuple[int, int] | None, list[_Input]] = {}

    def run(
        self, images: Sequence[Any], pixels: dict[int, Tensor] | None = None
    ) -> Iterator[_Prediction]:
        """Yields the maps of images, in any order; ``pixels`` collects the images as read."""
        self.model.prepare_inference()
        limit = self.options.max_batch_tokens
        if limit is None:
            limit = batch_tokens(self.model) if len(images) > 1 else 1
        for i, image in enumerate(images):
            photo = as_pixels(image, f"image {i}" if len(images) > 1 else "image")
            if pixels is not None:
                pixels[i] = photo
            if self.mirrored:
                photo = photo.flip(1 if photo.dtype == torch.uint8 else 2)
            photo = upload(photo, self.model.device)
            if len(images) == 1:  # its batch: preprocessed in the memory of the network's input
                yield from self._run_batch([_Input(i, None, self._plan(photo), photo)])
                return
            x, geometry = self._preprocess(photo)
            key = None if self.mixed else geometry.network
            tokens = self._tokens(geometry)
            if self._held(key) + tokens > limit:
                yield from self._flush(key)
            self.waiting.setdefault(key, []).append(_Input(i, x, geometry))
            if self._held(key) + tokens > limit:
                yield from self._flush(key)  # another photo of this size would not fit
            held = {key: self._held(key) for key in self.waiting}
            if sum(held.values()) > WAITING_BATCHES * limit:
                # Many sizes with few photos each: free memory before batches are full.
                yield from self._flush(max(held, key=lambda key: held[key]))
        for key in list(self.waiting):
            yield from self._flush(key)

    def predict_frames(self, photos: Sequence[Tensor]) -> list[tuple[Tensor, Geometry]]:
        """The maps (H, W) of photos (H, W, 3) uint8 on the model's device."""
        if len({photo.shape for photo in photos}) == 1:
            geometry = self._plan(photos[0])
            entries = [_Input(i, None, geometry, photo) for i, photo in enumerate(photos)]
        else:
            entries = [_Input(i, *self._preprocess(photo)) for i, photo in enumerate(photos)]
        return [(found.map, found.geometry) for found in self._run_batch(entries)]

    def tokens_of(self, photo: Tensor) -> int:
        """Tokens of a photo in the network."""
        return self._tokens(self._plan(photo))

    def _plan(self, photo: Tensor) -> Geometry:
        config, options = self.model.config, self.options
        height, width = photo.shape[:2] if photo.dtype == torch.uint8 else photo.shape[1:]
        return plan_geometry(
            height,
            width,
            size=options.size_for(config),
            multiple=config.patch_size,
            fit=options.fit_for(config),
            max_tokens=options.max_tokens,
            warn=False,  # `_preprocess` does
        )

    def _preprocess(
        self, photos: Tensor | Sequence[Tensor], out: Tensor | None = None
    ) -> tuple[Tensor, Geometry]:
        """The network's input for a photo, or for photos of one size."""
        config, options = self.model.config, self.options
        x, (geometry, *_) = preprocess(
            photos,
            size=options.size_for(config),
            multiple=config.patch_size,
            fit=options.fit_for(config),
            padding=options.padding,
            max_tokens=options.max_tokens,
            mean=config.mean,
            std=config.std,
            dtype=self.model.dtype,
            out=out,
        )
        return x, geometry

    def _tokens(self, geometry: Geometry) -> int:
        height, width = geometry.network
        return height * width // self.model.config.patch_size**2 + 1

    def _held(self, key: tuple[int, int] | None) -> int:
        return sum(self._tokens(entry.geometry) for entry in self.waiting.get(key, []))

    def _flush(self, key: tuple[int, int] | None) -> Iterator[_Prediction]:
        """Runs the photos that wait under a key as one batch."""
        entries = self.waiting.pop(key, [])
        if entries:
            yield from self._run_batch(entries)

    def _run_batch(self, entries: list[_Input]) -> Iterator[_Prediction]:
        inputs = [entry.x for entry in entries if entry.x is not None]
        photos = [entry.photo for entry in entries if entry.photo is not None]

        def read(outputs: Iterable[Tensor]) -> list[_Prediction]:
            return [self._postprocess(*each) for each in zip(entries, outputs, strict=True)]

        def fill(out: Tensor | None) -> Tensor:
            if photos:
                return self._preprocess(photos, out)[0]
            return inputs[0] if len(inputs) == 1 and out is None else torch.cat(inputs, out=out)

        networks = {entry.geometry.network for entry in entries}
        if len(networks) == 1:
            shape = (len(entries), 3, *networks.pop())
            yield from self.model.predict_batch(shape, fill, read, self.sky)
        else:
            forward = self.model.predict_with_sky if self.sky else self.model
            yield from read(forward([x[0] for x in inputs]))

    def _postprocess(self, entry: _Input, output: Tensor) -> _Prediction:
        """The map of a photo, in memory of its own, from the network's output (H, W)."""
        geometry = wanted = entry.geometry
        if self.native:
            wanted = dataclasses.replace(geometry, original=geometry.resized)
        align_corners = self.model.config.output_align_corners
        layers = output.reshape(-1, *output.shape[-2:])  # the prediction, and the sky
        out = postprocess(layers, [wanted] * len(layers), align_corners=align_corners)
        first, *rest = (self._own(o.float(), output) for o in out)
        return _Prediction(
            entry.position, first, geometry, output.isfinite().all(), rest[0] if rest else None
        )

    def _own(self, out: Tensor, output: Tensor) -> Tensor:
        """A map in memory of its own, mirrored back."""
        if self.mirrored:
            return out.flip(-1)
        shared = out.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
        return out.clone() if shared else out


def predict_maps(
    model: DepthNetwork,
    images: Sequence[Any],
    options: InferenceOptions,
    *,
    native: bool = False,
    skies: dict[int, Tensor] | None = None,
    pixels: dict[int, Tensor] | None = None,
    geometries: dict[int, Geometry] | None = None,
) -> list[Tensor]:
    """Maps of images, float32, with a warning if one is not finite.

    They are on the model's device with ``options.return_tensors``, else on the host: each is copied
    while the next photos are read and computed. ``skies`` collects the outputs of the sky head,
    ``pixels`` the images as read, and ``geometries`` how they were resized.
    """
    options.check(model.config)
    images = fetch_all(images)
    downloads = None if options.return_tensors else Downloads()
    maps: dict[int, Tensor] = {}
    finite: dict[int, Tensor] = {}
    kind = dict(native=native, sky=skies is not None)
    for i, out, geometry, good, above in Predictor(model, options, **kind).run(images, pixels):
        maps[i], finite[i] = out, good
        if geometries is not None:
            geometries[i] = geometry
        if skies is not None and above is not None:
            skies[i] = above
        if downloads and not options.flip:
            downloads.add(i, maps.pop(i))
    if options.flip:
        for i, out, _, good, above in Predictor(model, options, **kind, mirrored=True).run(images):
            maps[i] = (maps[i] + out) / 2
            finite[i] = finite[i] & good
            if skies is not None and above is not None:
                skies[i] = (skies[i] + above) / 2
            if downloads:
                downloads.add(i, maps.pop(i))
    order = range(len(images))
    if order:
        flags = torch.stack([finite[i] for i in order]).tolist()  # waits for the device once
        bad = [i for i, good in enumerate(flags) if not good]
        if bad:
            subject = "the image" if len(flags) == 1 else f"image {', '.join(map(str, bad[:8]))}"
            more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
            reason = why_not_finite(model)
            text = f"the prediction of {subject}{more} is not finite: {reason}"
            warn(WeightsWarning, text)
    maps = maps if downloads is None else downloads.finish()
    if model.config.calibration is None:
        return [maps[i] for i in order]
    scale, shift = model.config.calibration
    return [maps[i] * scale + shift for i in order]


def why_not_finite(model: DepthNetwork) -> str:
    """The likely reason, with a remedy, why a model predicts NaN or infinity."""
    freed = False
    for name, weight in model.named_parameters():
        if weight.is_meta:  # see `OptimizedNetwork.prepare_inference`
            freed = True
        elif not weight.isfinite().all():
            return f"the weight {name} holds NaN or infinity, so the checkpoint is damaged"
    if model.dtype == torch.float16:
        return "float16 overflows beyond 65504; load the model with dtype='float32'"
    dtype = str(model.dtype).removeprefix("torch.")
    if freed:
        return f"weights hold NaN or overflow in {dtype}, so the checkpoint may be damaged"
    return f"the weights are finite but overflow in {dtype}, so the checkpoint may be damaged"


@torch.no_grad()  # not inference_mode: its tensors could not take part in training
def predict(model: DepthNetwork, images: Any, options: InferenceOptions | None = None) -> Any:
    """Runs a model of either kind on images; see `DepthAnything.infer`."""
    options = options or InferenceOptions()
    single = not isinstance(images, list | tuple)
    maps = predict_maps(model, [images] if single else list(images), options)
    results = maps if options.return_tensors else [out.cpu().numpy() for out in maps]
    return results[0] if single else results


def infer(model: DepthNetwork, images: Any, options: InferenceOptions | None = None) -> Any:
    """Predicts disparity or relative depth; see `DepthAnything.infer`."""
    if model.config.is_metric:
        raise TypeError(
            f"{model.config.name!r} predicts depth in metres, not disparity: use `infer_metric`"
        )
    return predict(model, images, options)


@torch.no_grad()
def infer_sky(model: DepthNetwork, images: Any, options: InferenceOptions | None = None) -> Any:
    """Finds the sky with a model that has a sky head; see `DepthAnything.infer_sky`."""
    options = options or InferenceOptions()
    single = not isinstance(images, list | tuple)
    skies: dict[int, Tensor] = {}
    predict_maps(model, [images] if single else list(images), options, skies=skies)
    masks = [skies[i] >= SKY for i in range(len(skies))]
    results = masks if options.return_tensors else [mask.cpu().numpy() for mask in masks]
    return results[0] if single else results


def infer_metric(
    model: DepthNetwork,
    images: Any,
    options: InferenceOptions | None = None,
    *,
    intrinsics: Sequence[float] | np.ndarray | None = None,
    fov: float | None = None,
) -> Any:
    """Predicts metres with a metric model, or points; see `DepthAnything.infer_metric`."""
    config = model.config
    if not config.is_metric:
        raise TypeError(
            f"{config.name!r} predicts relative {config.quantity}, not metres: use `infer`, or "
            "load a metric model such as 'v2-metric-hypersim-vits'"
        )
    by_focal = config.focal_length is not None
    given = intrinsics is not None or fov is not None
    if not given and not by_focal:
        return predict(model, images, options)
    options = options or InferenceOptions()
    if intrinsics is not None and fov is not None:
        raise ValueError("intrinsics and fov both describe the camera: pass one of them")
    if given and options.return_tensors and not by_focal:
        raise ValueError("a point cloud holds numpy arrays: leave out return_tensors")
    if fov is not None:
        check_fov(fov)
    elif intrinsics is not None:
        check_intrinsics(intrinsics)
    single = not isinstance(images, list | tuple)
    listed = fetch_all([images] if single else list(images))
    # Before the network runs: a photo without a camera is an error.
    noted = [] if given else [_camera_of(image, i, config) for i, image in enumerate(listed)]
    points = given and not options.return_tensors
    pixels: dict[int, Tensor] | None = {} if points else None
    geometries: dict[int, Geometry] = {}
    with torch.no_grad():
        maps = predict_maps(model, listed, options, pixels=pixels, geometries=geometries)
    results: list[Any] = []
    for i, out in enumerate(maps):
        if not given:
            camera = noted[i](*out.shape)
        elif fov is None:
            camera = check_intrinsics(intrinsics)  # type: ignore[arg-type]
        else:
            camera = intrinsics_from_fov(fov, *out.shape)
        if config.focal_length is not None:
            out = out * focal_factor(config.focal_length, camera, geometries[i])
        if pixels is None:
            results.append(out if options.return_tensors else out.cpu().numpy())
            continue
        photo = pixels.pop(i)
        photo = photo if photo.dtype == torch.uint8 else photo.permute(1, 2, 0)
        results.append(point_cloud(out.cpu().numpy(), photo.numpy(), camera))
    return results[0] if single else results


def _camera_of(image: Any, position: int, config: ModelConfig) -> Callable[[int, int], Intrinsics]:
    """The camera that a photo's EXIF data describe, by the photo's height and width.

    Raises:
        ValueError: If the focal length is missing.
    """
    focal = focal_from_exif(image)
    if focal is None:
        raise no_camera(name_of(image) or f"image {position}", config)
    return lambda height, width: intrinsics_from_35mm(focal, height, width)


@torch.no_grad()
def predict_native(
    model: DepthNetwork,
    images: Sequence[Any],
    *,
    size: int | None = None,
    max_batch_tokens: int | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[np.ndarray]:
    """Predicts maps at the network's own resolution, in which pseudo-labels are stored.

    Args:
        model: A relative or a metric model.
        images: A list of images, as for `DepthAnything.infer`.
        size: As for `DepthAnything.infer`.
        max_batch_tokens: As for `DepthAnything.infer`.
        max_tokens: As for `DepthAnything.infer`.

    Returns:
        A float32 map for each image, with its aspect ratio (rounded to pixels) and the shorter
        side ``size``.
    """
    options = InferenceOptions(
        fit="pad", size=size, max_batch_tokens=max_batch_tokens, max_tokens=max_tokens
    )
    return [out.cpu().numpy() for out in predict_maps(model, images, options, native=True)]


def check_options(config: ModelConfig, **options: Any) -> None:
    """Checks options of `DepthAnything.infer` before any photo is read.

    Raises:
        ValueError: If an option is out of range.
    """
    InferenceOptions(**options).check(config)
