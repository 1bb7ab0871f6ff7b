"""Runs each kind of model for `dafast run`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry import MAX_TOKENS, plan_geometry
from ..images import as_array
from ..result import DEPTH_SCALE
from ..surface import EDGE_THRESHOLD
from . import class_formats, depth_formats
from ._camera import CameraChoice
from ._common import CommandError
from ._model import is_exported, load_model, own_device
from ._startup import no_collections
from .outputs import Format

if TYPE_CHECKING:
    import torch

    from ..config import ModelConfig
    from ..result import DepthResult
    from ..runtime import OnnxModel


def computes_elsewhere(device: torch.device) -> bool:
    """Whether the cores of the CPU are free while a model predicts on a device."""
    return device.type != "cpu"


class DepthPredictor:
    """A depth model and its options.

    Attributes:
        formats: All formats by name.
        default: Names of the formats that are written unasked.
        base: The settings that all results depend on.
        options: The settings that single formats depend on.
        decodes_ahead: Whether the next photo is decoded during a prediction; on a CPU, the
            prediction needs all cores.
    """

    formats: Mapping[str, Format] = depth_formats.FORMATS
    default = depth_formats.DEFAULT
    decodes_ahead = False

    def __init__(self, args: argparse.Namespace, camera: CameraChoice) -> None:
        refused = {"--fov": args.fov, "--intrinsics": args.intrinsics, "--tile": args.tile}
        refused["--guided"] = args.guided
        given = [name for name, value in refused.items() if value]
        if args.panorama and given:
            raise CommandError(f"--panorama: leave out {', '.join(given)}")
        self.camera = camera
        self.given = dict(size=args.size, fit=args.fit, max_tokens=args.max_tokens)
        self.large = dict(tile=args.tile, guided=args.guided, panorama=args.panorama)
        self.model, made_of = self._open(args)
        config = self.model.config
        self.base: dict[str, Any] = {
            "model": config.name,
            **made_of,
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

    def _open(self, args: argparse.Namespace) -> tuple[Any, dict[str, str]]:
        """Loads the model, checks the options with it, and digests its weights."""
        from ..models.digest import digest_model
        from ..models.inference import check_options
        from ..models.tiles import check_tile

        model = load_model(args, own_device(args.device))
        # A bad option ends the command before any photo.
        check_options(model.config, **self.given)
        check_tile(args.tile, model.config)
        self.decodes_ahead = computes_elsewhere(model.device)
        return model, _made_of(digest_model(model), model.dtype)

    def _prepare(self) -> None:
        """Packs the weights and frees them: nothing else uses this model."""
        self.model.prepare_inference(keep_weights=False)

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
        self._prepare()
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
    decodes_ahead = False

    def __init__(self, args: argparse.Namespace) -> None:
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
        self.size = args.size or 0
        encoder, self.names, made_of = self._open(args)
        self.base: dict[str, Any] = {
            "model": encoder.name,
            **made_of,
            "size": args.size or encoder.image_size,
        }
        self.options: dict[str, Any] = {}

    def _open(
        self, args: argparse.Namespace
    ) -> tuple[ModelConfig, tuple[str, ...], dict[str, str]]:
        """Loads the model: the encoder's configuration, the classes, and the weights' digest."""
        from ..models import SegmentationModel
        from ..models.digest import digest_model
        from ..models.segmentation_inference import SegmentationOptions

        model = SegmentationModel.from_pretrained(
            args.model, device=own_device(args.device), dtype=args.dtype
        )
        config, choice = model.config, SegmentationOptions(size=self.size)
        choice.check(config.encoder.patch_size)
        self.segment = lambda photo: model.segment(photo, choice)
        self.decodes_ahead = computes_elsewhere(model.device)
        return config.encoder, config.classes, _made_of(digest_model(model), model.dtype)

    def predict(self, image: Any, name: str, keep_image: bool) -> class_formats.MadeClasses:
        """Predicts one photo."""
        photo = as_array(image, name)
        kept = photo if keep_image else None
        return class_formats.MadeClasses(self.segment(photo), self.names, kept, {})

    def make(self, result: class_formats.MadeClasses, name: str) -> class_formats.MadeClasses:
        """Prepares a result for its files."""
        return dataclasses.replace(result, facts={"photo_name": name})


def _check_finite(values: np.ndarray, dtype: str) -> None:
    if not np.isfinite(values).all():
        remedy = "its weights may be damaged" if dtype == "float32" else "try --dtype float32"
        raise ValueError(f"the model gave NaN or infinity in {dtype}; {remedy}")


def _made_of(digest: str, dtype: Any) -> dict[str, str]:
    return {"weights": digest, "dtype": str(dtype).removeprefix("torch.")}


class OnnxPredictor(DepthPredictor):
    """A file of `dafast export`, which needs no PyTorch."""

    def __init__(self, args: argparse.Namespace, camera: CameraChoice, model: OnnxModel) -> None:
        self.exported = model
        super().__init__(args, camera)

    def _open(self, args: argparse.Namespace) -> tuple[Any, dict[str, str]]:
        _refuse(args, "--tile", "--guided", "--panorama")
        model = self.exported
        self.large = {}
        model.check_options(**self.given)
        return model, _made_of(model.facts.weights, model.facts.dtype)

    def _prepare(self) -> None:
        """ONNX Runtime prepared its weights when it opened the file."""


class OnnxClassPredictor(ClassPredictor):
    """A file of `dafast export` with a segmentation model."""

    def __init__(self, args: argparse.Namespace, model: OnnxModel) -> None:
        self.exported = model
        super().__init__(args)

    def _open(
        self, args: argparse.Namespace
    ) -> tuple[ModelConfig, tuple[str, ...], dict[str, str]]:
        model = self.exported
        size = self.size or None
        model.check_options(size=size)
        self.segment = lambda photo: model.segment(photo, size=size)
        facts = model.facts
        return facts.config, facts.classes, _made_of(facts.weights, facts.dtype)


def _refuse(args: argparse.Namespace, *options: str) -> None:
    """Raises a `CommandError` if an option is given that an exported file does not have."""
    values = {name: getattr(args, name[2:].replace("-", "_")) for name in options}
    if given := [name for name, value in values.items() if value]:
        raise CommandError(
            f"{args.model} is an exported file: leave out {', '.join(given)}, or use the model "
            "itself, with PyTorch"
        )


def _open_onnx(args: argparse.Namespace) -> OnnxModel:
    from ..runtime import OnnxModel

    _refuse(args, "--config")
    if args.dtype != "auto":
        raise CommandError(f"{args.model} is an exported file with its own dtype: no --dtype")
    device, _, number = str(args.device).partition(":")
    providers = {
        "auto": None,
        "cpu": ["CPUExecutionProvider"],
        "cuda": [("CUDAExecutionProvider", {"device_id": number or "0"})],
        "mps": ["CoreMLExecutionProvider"],
    }
    if device not in providers:
        raise CommandError(f"--device {args.device}: use {', '.join(providers)}")
    return OnnxModel(args.model, providers=providers[device])


Predictor = DepthPredictor | ClassPredictor


def open_predictor(args: argparse.Namespace) -> Predictor:
    """Loads the model of ``--model``, of either kind, or an exported file."""
    from ._camera import camera_of

    camera = camera_of(args)
    if is_exported(args.model):
        model = _open_onnx(args)
        if model.facts.classes:
            return OnnxClassPredictor(args, model)
        return OnnxPredictor(args, camera, model)
    with no_collections():
        from ..models.segmentation import is_segmentation

    return ClassPredictor(args) if is_segmentation(args.model) else DepthPredictor(args, camera)
