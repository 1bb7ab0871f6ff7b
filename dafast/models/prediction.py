"""From photos to results that say their kind, unit and camera: `DepthAnything.predict`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..camera import check_fov, check_intrinsics, choose_camera, focal_factor, no_camera
from ..config import ModelConfig
from ..images import as_pixels, focal_from_exif
from ..known_points import align_result, check_method
from ..ops import Geometry
from ..panorama import PanoramaResult
from ..picture_sources import fetch_all, name_of
from ..result import DepthResult
from .inference import InferenceOptions, predict_maps
from .network import DepthNetwork
from .panorama import predict_panorama
from .sky import SKY
from .tiles import check_tile, predict_tiled


@torch.no_grad()
def predict_results(
    model: DepthNetwork,
    images: Any,
    options: InferenceOptions,
    *,
    intrinsics: Sequence[float] | np.ndarray | None = None,
    fov: float | None = None,
    keep_image: bool = True,
    align_to: Any = None,
    align: str = "global",
    tile: int | str | None = None,
    panorama: bool = False,
    guided: bool = False,
) -> Any:
    """Predicts results; see `DepthAnything.predict`."""
    config = model.config
    if panorama and (intrinsics is not None or fov is not None or tile is not None or guided):
        raise ValueError("a panorama has no intrinsics, fov, tile and guided: leave them out")
    check_method(align)
    if align != "global" and align_to is None:
        raise ValueError(f"align={align!r} needs points: pass align_to")
    check_tile(tile, config)
    if intrinsics is not None and fov is not None:
        raise ValueError("intrinsics and fov both describe the camera: pass one of them")
    if fov is not None:
        check_fov(fov)
    if intrinsics is not None:
        intrinsics = check_intrinsics(intrinsics)
    single = not isinstance(images, list | tuple)
    listed = fetch_all([images] if single else list(images))
    points = [align_to] if single else align_to
    if align_to is not None and (
        not isinstance(points, list | tuple) or len(points) != len(listed)
    ):
        raise ValueError(f"align_to: for {len(listed)} images a list of as many sets of points")
    if panorama:
        results = [
            _panorama(model, image, i, options, keep_image) for i, image in enumerate(listed)
        ]
        if align_to is not None:
            results = [align_result(r, p, align) for r, p in zip(results, points, strict=True)]
        return results[0] if single else results
    given = intrinsics is not None or fov is not None
    names = [name_of(image) for image in listed]
    if config.focal_length is not None and not given:  # before the network runs
        for i, image in enumerate(listed):
            if focal_from_exif(image) is None:
                raise no_camera(names[i] or f"image {i}", config)
    pixels: dict[int, Tensor] | None = {} if keep_image else None
    geometries: dict[int, Geometry] = {}
    skies: dict[int, Tensor] | None = {} if config.sky_head else None
    collected: dict[str, Any] = dict(pixels=pixels, geometries=geometries)
    if tile is None and not guided:
        maps = predict_maps(model, listed, options, skies=skies, **collected)
    else:
        maps = _predict_large(model, listed, options, tile, guided, **collected)
        if skies is not None:  # of the whole picture
            predict_maps(model, listed, options, skies=skies)
    results = []
    for i, out in enumerate(maps):
        focal = None if given else focal_from_exif(listed[i])
        camera, source = choose_camera(*out.shape, intrinsics=intrinsics, fov=fov, focal_35mm=focal)
        if config.focal_length is not None:
            out = out * focal_factor(config.focal_length, camera, geometries[i])
        result = DepthResult(
            out.cpu().numpy(),
            kind="disparity" if config.quantity == "disparity" else "depth",
            unit=unit_of(config),
            image=None if pixels is None else rgb(pixels.pop(i)),
            intrinsics=camera,
            camera_source=source,
            sky=None if skies is None else (skies[i] >= SKY).cpu().numpy(),
            name=names[i],
            model=config.name,
        )
        if align_to is not None:
            result = align_result(result, points[i], align)
        results.append(result)
    return results[0] if single else results


def _panorama(
    model: DepthNetwork, image: Any, number: int, options: InferenceOptions, keep_image: bool
) -> DepthResult:
    name = name_of(image)
    photo = rgb(as_pixels(image, name or f"image {number}"))
    config = model.config
    return PanoramaResult(
        predict_panorama(model, photo, options).numpy(),
        kind="disparity" if config.quantity == "disparity" else "depth",
        unit=unit_of(config),
        image=photo if keep_image else None,
        name=name,
        model=config.name,
    )


def unit_of(config: ModelConfig) -> str:
    """The unit of a model's maps, `ModelConfig.unit`."""
    return config.unit


def _predict_large(
    model: DepthNetwork,
    images: Sequence[Any],
    options: InferenceOptions,
    tile: int | str | None,
    guided: bool,
    pixels: dict[int, Tensor] | None,
    geometries: dict[int, Geometry],
) -> list[Tensor]:
    """As `predict_maps`, one photo after the other, in tiles or with the photo's edges."""
    options.check(model.config)
    maps = []
    for i, image in enumerate(images):
        photo = as_pixels(image, f"image {i}" if len(images) > 1 else "image")
        out, geometries[i] = predict_tiled(model, rgb(photo), options, tile, guided)
        maps.append(out)
        if pixels is not None:
            pixels[i] = photo
    return maps


def rgb(photo: Tensor) -> np.ndarray:
    """The pixels of `as_pixels` as (H, W, 3)."""
    return (photo if photo.dtype == torch.uint8 else photo.permute(1, 2, 0)).numpy()
