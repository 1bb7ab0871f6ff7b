"""What `dafast run` does with each kind of model."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry import MAX_TOKENS, plan_geometry
from ..result import DEPTH_SCALE
from ..surface import EDGE_THRESHOLD
from . import class_formats, depth_formats
from ._camera import CameraChoice
from ._common import CommandError
from ._model import load_model, own_device
from .outputs import Format

if TYPE_CHECKING:
    from ..models import DepthAnything, SegmentationModel
    from ..result import DepthResult


class DepthPredictor:
    """A depth model and its options.

    Attributes:
        formats: All formats by name.
        default: Names of the formats that are written unasked.
        base: The settings that all results depend on.
        options: The settings that single formats depend on.
    """

    formats: Mapping[str, Format] = depth_formats.FORMATS
    default = depth_formats.DEFAULT

    def __init__(self, args: argparse.Namespace, camera: CameraChoice) -> None:
        from ..models.digest import digest_model
        from ..models.inference import check_options
        from ..models.tiles import check_tile

        refused = {"--fov": args.fov, "--intrinsics": args.intrinsics, "--tile": args.tile}
        refused["--guided"] = args.guided
        given = [name for name, value in refused.items() if value]
        if args.panorama and given:
            raise CommandError(f"--panorama: leave out {', '.join(given)}")
        self.model: DepthAnything = load_model(args, own_device(args.device))
        self.camera = camera
        config = self.model.config
        self.given = dict(size=args.size, fit=args.fit, max_tokens=args.max_tokens)
        # A bad option ends the command before any photo.
        check_options(config, **self.given)
        check_tile(args.tile, config)
        self.large = dict(tile=args.tile, guided=args.guided, panorama=args.panorama)
        self.base: dict[str, Any] = {
            "model": config.name,
            "weights": digest_model(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "fit": args.fit or config.fit,
            "size": args.size or config.image_size,
            "max_tokens": args.max_tokens,
            "tile": args.tile,
            "guided": args.guided or None,
            "panorama": args.panorama or None,
        }
        if config.unit:  # "1/m" is written as metres, too
            self.formats = depth_formats.IN_METRES
        elif args.depth_scale is not None:
            raise CommandError(
                f"{args.model} does not predict metres: leave out --depth-scale, or choose a "
                "metric model"
            )
        self.options: dict[str, Any] = {
            "palette": args.palette or "Spectral_r",
            "camera": camera.setting,
            "edge_threshold": args.edge_threshold or EDGE_THRESHOLD,
            "depth_scale": args.depth_scale or DEPTH_SCALE,
            "range": None,
        }
        if config.focal_length is not None:  # the metres depend on the camera
            self.base["camera"] = camera.setting

    def predict(self, image: Any, name: str, keep_image: bool) -> DepthResult:
        """Predicts one photo.

        Raises:
            ValueError: If ``--intrinsics exif`` asks for EXIF data that the photo lacks, or the map
                is not finite.
        """
        from ..images import focal_from_exif

        if self.camera.exif and focal_from_exif(image) is None:
            raise ValueError(
                "no FocalLengthIn35mmFilm in its EXIF data: give --fov or --intrinsics FX,FY,CX,CY"
            )
        result = self.model.predict(
            image,
            intrinsics=self.camera.intrinsics,
            fov=self.camera.fov,
            keep_image=keep_image,
            **self.large,
            **self.given,
        )
        _check_finite(result.values, self.base["dtype"])
        return dataclasses.replace(result, name=name)

    def make(self, result: DepthResult, name: str) -> depth_formats.Made:
        """Prepares a result for its files."""
        if result.unit == "1/m":  # of a calibrated model; metres are unknown where it is 0 or less
            shown = result.to_depth()
        else:
            shown = result if result.is_metric else result.to_disparity()
            _check_finite(shown.values, self.base["dtype"])  # depth 0 has no disparity
        facts = {"photo_name": name, **self._true_size(result.values.shape)}
        return depth_formats.Made(result, shown, facts)

    def _true_size(self, shape: tuple[int, ...]) -> dict[str, int]:
        """The size that the network saw, where the token limit made it smaller than asked."""
        base, patch = self.base, self.model.config.patch_size
        if base["panorama"]:
            return {}
        options = dict(size=base["size"], multiple=patch, fit=base["fit"])
        free = plan_geometry(*shape, **options, max_tokens=2**62)
        cut = plan_geometry(*shape, **options, max_tokens=base["max_tokens"], warn=False)
        side = max if base["fit"] == "upper_bound" else min
        return {} if cut == free else {"size": side(cut.resized), "asked_size": base["size"]}


class ClassPredictor:
    """A segmentation model and its options; the attributes are those of `DepthPredictor`."""

    formats: Mapping[str, Format] = class_formats.FORMATS
    default = class_formats.DEFAULT

    def __init__(self, args: argparse.Namespace) -> None:
        from ..models import SegmentationModel
        from ..models.digest import digest_model
        from ..models.segmentation_inference import SegmentationOptions

        depth_only = {"--config": args.config, "--fit": args.fit, "--fov": args.fov}
        depth_only |= {"--intrinsics": args.intrinsics, "--common-range": args.common_range}
        depth_only |= {"--tile": args.tile, "--guided": args.guided, "--panorama": args.panorama}
        depth_only |= {"--palette": args.palette, "--depth-scale": args.depth_scale}
        depth_only |= {"--edge-threshold": args.edge_threshold}
        depth_only |= {"--max-tokens": args.max_tokens != MAX_TOKENS}
        given = [name for name, value in depth_only.items() if value]
        if given:
            raise CommandError(
                f"{args.model} is a segmentation model: leave out {', '.join(given)}"
            )
        self.model: SegmentationModel = SegmentationModel.from_pretrained(
            args.model, device=own_device(args.device), dtype=args.dtype
        )
        config = self.model.config
        self.choice = SegmentationOptions(size=args.size or 0)
        self.choice.check(config.encoder.patch_size)
        self.base: dict[str, Any] = {
            "model": config.encoder.name,
            "weights": digest_model(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "size": args.size or config.encoder.image_size,
        }
        self.options: dict[str, Any] = {}

    def predict(self, image: Any, name: str, keep_image: bool) -> class_formats.MadeClasses:
        """Predicts one photo."""
        from ..images import as_pixels

        pixels = as_pixels(image, name)
        photo = (pixels if pixels.dtype.itemsize == 1 else pixels.permute(1, 2, 0)).numpy()
        classes = self.model.segment(photo, self.choice)
        kept = photo if keep_image else None
        return class_formats.MadeClasses(classes, self.model.config.classes, kept, {})

    def make(self, result: class_formats.MadeClasses, name: str) -> class_formats.MadeClasses:
        """Prepares a result for its files."""
        return dataclasses.replace(result, facts={"photo_name": name})


def _check_finite(values: np.ndarray, dtype: str) -> None:
    if not np.isfinite(values).all():
        remedy = "its weights may be damaged" if dtype == "float32" else "try --dtype float32"
        raise ValueError(f"the model gave NaN or infinity in {dtype}; {remedy}")


Predictor = DepthPredictor | ClassPredictor


def open_predictor(args: argparse.Namespace) -> Predictor:
    """Loads the model of ``--model``, of either kind."""
    from ..models.segmentation import is_segmentation
    from ._camera import camera_of

    camera = camera_of(args)
    return ClassPredictor(args) if is_segmentation(args.model) else DepthPredictor(args, camera)
