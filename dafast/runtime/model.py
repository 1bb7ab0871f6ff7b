"""`OnnxModel`: an exported file that predicts photos with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._warnings import WeightsWarning, warn
from ..camera import check_fov, check_intrinsics, choose_camera, focal_factor, no_camera
from ..config import SKY, ModelConfig
from ..files import explain
from ..geometry import MAX_TOKENS, Geometry, check_geometry, plan_geometry
from ..images import as_array, focal_from_exif
from ..optional import MissingPackageError, why_no_module
from ..picture_sources import fetch_all, name_of
from ..pointcloud import as_bytes
from ..result import DepthResult
from .facts import FileFacts
from .resizing import resize_map, resize_photo

_PADDINGS = {"replicate": "edge", "reflect": "reflect", "constant": "constant"}


class OnnxModel:
    """A file of `dafast export --format onnx`, which runs without PyTorch.

    Args:
        path: The ONNX file.
        providers: Execution providers of ONNX Runtime, the preferred one first; by default those
            of the installed package.
        threads: Threads of ONNX Runtime on a CPU; 0 for its own choice.

    Attributes:
        facts: What the file says about itself.
        config: Configuration of the model; of a segmentation model that of its encoder.

    Raises:
        MissingPackageError: If onnxruntime is not installed.
        NotExportedError: If the file was not written by `dafast export`.
        FileNotFoundError: If there is no such file.
    """

    def __init__(
        self, path: str | Path, *, providers: Sequence[Any] | None = None, threads: int = 0
    ) -> None:
        if why := why_no_module("onnxruntime"):
            raise MissingPackageError(
                f"ONNX files need onnxruntime: pip install onnxruntime ({why})"
            )
        import onnxruntime

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        # Without VNNI instructions products of int8 saturate at 16 bits, unless this is set.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=providers or onnxruntime.get_available_providers()
            )
        except Exception as error:  # onnxruntime's exceptions have no common class
            raise ValueError(
                f"{path}: ONNX Runtime cannot load the file ({explain(error)})"
            ) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.facts = FileFacts.from_strings(metadata, str(path))
        self.config: ModelConfig = self.facts.config

    def __repr__(self) -> str:
        facts = self.facts
        return f"OnnxModel({self.config.name!r}, {facts.kind}, {facts.dtype})"

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the file on a batch, in the file's own layout.

        Args:
            images: `FileFacts.input_name` says which: normalised RGB (B, 3, H, W) float32, or
                photos (B, H, W, 3) uint8; of a file of clips (1, frames, 3, H, W) float32.

        Returns:
            Arrays by the names `FileFacts.output_names`, float32.
        """
        names = self.facts.output_names
        outputs = self._session.run(list(names), {self.facts.input_name: images})
        return dict(zip(names, outputs, strict=True))

    def check_options(
        self,
        *,
        fit: str | None = None,
        size: int | None = None,
        padding: str = "replicate",
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        """Checks options of `predict` before any photo is read.

        Raises:
            ValueError: If an option is out of range, or the file does not have it.
        """
        facts, config = self.facts, self.config
        if facts.frames:
            raise ValueError(
                f"{config.name!r} was exported for clips of {facts.frames} frames: it does not "
                f"predict photos; `run` takes a clip (1, {facts.frames}, 3, H, W)"
            )
        if facts.classes and fit not in (None, "pad"):
            raise ValueError(f"fit={fit!r}: a segmentation model uses 'pad'")
        if facts.shape or facts.preprocess:
            what = "an input of a fixed size" if facts.shape else "the resize in the graph"
            if fit is not None or size is not None:
                raise ValueError(f"the file was exported with {what}: leave out fit and size")
        check_geometry(
            size=config.image_size if size is None else size,
            multiple=config.patch_size,
            fit=self._fit(fit),
            max_tokens=max_tokens,
        )
        if padding not in _PADDINGS:
            raise ValueError(f"padding={padding!r}; use one of {', '.join(_PADDINGS)}")

    def predict(
        self,
        images: Any,
        *,
        intrinsics: Sequence[float] | np.ndarray | None = None,
        fov: float | None = None,
        keep_image: bool = True,
        fit: str | None = None,
        size: int | None = None,
        padding: str = "replicate",
        max_tokens: int = MAX_TOKENS,
    ) -> Any:
        """Predicts photos; the arguments and results are those of `DepthAnything.predict`.

        Args:
            images: A path, a URL, bytes, an open file, a PIL image, an array (H, W, C), or a list.
            intrinsics: (fx, fy, cx, cy) in pixels, or a 3 x 3 matrix, the same for all photos.
            fov: The horizontal field of view in degrees, instead of ``intrinsics``.
            keep_image: Whether the results hold the photos.
            fit: ``"pad"``, ``"official"``, ``"upper_bound"`` or ``"video"``; by default the model's
                own.
            size: Side in pixels of the network's input; by default `ModelConfig.image_size`.
            padding: ``"replicate"``, ``"reflect"`` or ``"constant"``; for ``fit="pad"``.
            max_tokens: A photo that needs more tokens is scaled down, with a warning.

        Returns:
            A `DepthResult` for one image, a list of them for a list.

        Raises:
            ImageError: If an image cannot be used; the message names it.
            TypeError: If the file is a segmentation model.
            ValueError: If an option is not valid, or the model needs the camera and it is unknown.
        """
        config = self.config
        if self.facts.classes:
            raise TypeError(f"{config.name!r} predicts classes, not depth: use `segment`")
        if intrinsics is not None and fov is not None:
            raise ValueError("intrinsics and fov both describe the camera: pass one of them")
        if fov is not None:
            check_fov(fov)
        if intrinsics is not None:
            intrinsics = check_intrinsics(intrinsics)
        options = dict(fit=fit, size=size, padding=padding, max_tokens=max_tokens)
        self.check_options(**options)  # type: ignore[arg-type]
        single = not isinstance(images, list | tuple)
        listed = fetch_all([images] if single else list(images))
        given = intrinsics is not None or fov is not None
        focals = [None if given else focal_from_exif(image) for image in listed]
        for i, image in enumerate(listed):  # before the network runs
            if config.focal_length is not None and not given and focals[i] is None:
                raise no_camera(name_of(image) or f"image {i}", config)
        results = []
        for i, image in enumerate(listed):
            photo = as_array(image, f"image {i}" if len(listed) > 1 else "image")
            out, geometry = self._maps(photo, **options)  # type: ignore[arg-type]
            values = out[0]
            camera, source = choose_camera(
                *values.shape, intrinsics=intrinsics, fov=fov, focal_35mm=focals[i]
            )
            if config.focal_length is not None:
                values = values * np.float32(focal_factor(config.focal_length, camera, geometry))
            results.append(
                DepthResult(
                    values,
                    kind="disparity" if config.quantity == "disparity" else "depth",
                    unit=config.unit,
                    image=photo if keep_image else None,
                    intrinsics=camera,
                    camera_source=source,
                    sky=out[1] >= SKY if config.sky_head else None,
                    name=name_of(image),
                    model=config.name,
                )
            )
        return results[0] if single else results

    def segment(self, images: Any, *, size: int | None = None) -> Any:
        """Returns the class of every pixel of photos; see `dafast.SegmentationModel.segment`.

        Args:
            images: As for `predict`.
            size: Shorter side in pixels of the network's input.

        Returns:
            A uint8 array (H, W) for one image, a list of them for a list: indices into
            `FileFacts.classes`.

        Raises:
            ImageError: If an image cannot be used; the message names it.
            TypeError: If the file is a depth model.
            ValueError: If an option is not valid.
        """
        if not self.facts.classes:
            raise TypeError(f"{self.config.name!r} predicts depth, not classes: use `predict`")
        self.check_options(size=size)
        single = not isinstance(images, list | tuple)
        listed = [images] if single else images
        results = []
        for i, image in enumerate(listed):
            photo = as_array(image, "image" if single else f"image {i}")
            logits, _ = self._maps(photo, None, size, "replicate", MAX_TOKENS)
            results.append(np.stack(logits).argmax(0).astype(np.uint8))
        return results[0] if single else results

    def _fit(self, fit: str | None) -> str:
        if self.facts.classes:
            return "pad"
        return self.config.fit if fit is None else fit

    def _maps(
        self, photo: np.ndarray, fit: str | None, size: int | None, padding: str, max_tokens: int
    ) -> tuple[list[np.ndarray], Geometry]:
        """Returns the outputs for a photo at its own size, and the geometry of its resize."""
        config, facts = self.config, self.facts
        height, width = photo.shape[:2]
        geometry = plan_geometry(
            height,
            width,
            size=config.image_size if size is None else size,
            multiple=config.patch_size,
            fit=self._fit(fit),
            max_tokens=2**62 if facts.shape or facts.preprocess else max_tokens,
        )
        if facts.preprocess:
            x = as_bytes(photo)[None]
        else:
            fitted = self._fit(fit)
            if facts.shape is not None:
                geometry, fitted = fixed_geometry(height, width, facts.shape), "pad"
            x = network_input(config, photo, geometry, fitted, padding)[None]
        outputs = self.run(x if facts.batch is None else x.repeat(facts.batch, 0))
        first = np.concatenate([outputs[name][0].reshape(-1, *outputs[name].shape[-2:])
                                for name in facts.output_names])  # fmt: skip
        if not np.isfinite(first).all():
            warn(WeightsWarning, f"{config.name}: the prediction is not finite in {facts.dtype}")
        if facts.preprocess:
            return list(first), geometry
        left, _, top, _ = geometry.padding
        rows, columns = geometry.resized
        cropped = first[:, top : top + rows, left : left + columns]
        corners = config.output_align_corners and not facts.classes
        return [resize_map(layer, geometry.original, corners) for layer in cropped], geometry


def network_input(
    config: ModelConfig, photo: np.ndarray, geometry: Geometry, fit: str, padding: str
) -> np.ndarray:
    """Converts a photo (H, W, 3) to the network's input (3, h, w), float32."""
    resized = resize_photo(photo, geometry, fit)
    mean, std = (
        np.array(values, np.float32)[:, None, None] for values in (config.mean, config.std)
    )
    left, right, top, bottom = geometry.padding
    sides = ((0, 0), (top, bottom), (left, right))
    if padding == "reflect" and max(top, bottom, left, right) >= min(geometry.resized):
        raise ValueError("padding='reflect': the photo is too small to be mirrored; use another")
    return np.pad((resized - mean) / std, sides, mode=_PADDINGS[padding])  # type: ignore[call-overload]


def fixed_geometry(height: int, width: int, shape: tuple[int, int]) -> Geometry:
    """How a photo fits into an input of a fixed size: scaled to fit inside, then padded evenly."""
    scale = min(shape[0] / height, shape[1] / width)
    sides = (
        min(shape[0], max(1, round(height * scale))),
        min(shape[1], max(1, round(width * scale))),
    )
    extra_h, extra_w = shape[0] - sides[0], shape[1] - sides[1]
    padding = (extra_w // 2, extra_w - extra_w // 2, extra_h // 2, extra_h - extra_h // 2)
    return Geometry((height, width), sides, padding, shape)
