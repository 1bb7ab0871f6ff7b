"""Depth Anything: the network with files, photos and fast inference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, overload

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..geometry import MAX_TOKENS
from ..images import Picture
from ..ops.linear_int8 import why_slow as why_slow_int8
from ..result import DepthResult
from ..runtime import keep_freed_memory, warn_if_slow
from . import checkpoint, cuda_graphs, inference, transformers_bridge
from .cuda_graphs import GraphedForward
from .inference import InferenceKeywords, InferenceOptions
from .network import DepthNetwork
from .packed_cpu import OptimizedForward, why_not_packed
from .prediction import predict_results
from .publishing import Publishable

logger = logging.getLogger("dafast")

ImageList = list[Any] | tuple[Any, ...]
_T = TypeVar("_T")


class DepthAnything(Publishable, DepthNetwork):
    """Depth Anything V1, V2 and 3 (monocular): photos in, depth out.

    The weights are random; `from_pretrained` loads trained ones. The network, its forward and its
    parameters are those of `DepthNetwork`.

    Args:
        config: Name of a preset (``"vits"``, ``"v2-vitb"``, ``"nano"``, ...) or a `ModelConfig`.
    """

    def __init__(self, config: str | ModelConfig = "vits") -> None:
        super().__init__(config)
        self._optimized: OptimizedForward | GraphedForward | None = None
        self._uses_graphs = True

    def optimize(
        self,
        *,
        int8: bool | None = None,
        keep_memory: bool = True,
        cuda_graphs: bool | None = None,
    ) -> DepthAnything:
        """Makes inference fast: with packed weights on a CPU, with CUDA graphs on a GPU.

        It serves later calls without gradients (`torch.no_grad`, `torch.inference_mode`) and
        outside of autocast. Training, gradients, ``features``, forward hooks on parts of the model,
        `torch.compile`, `torch.func`, `torch.jit.trace` and a caller's own graph capture use the
        modules as before. `infer` calls this method by itself.

        On a CPU the weights are packed once into the layout of the products, a second copy of all
        weights (`dafast.models.packed_cpu`). The result is the same within rounding.

        On a GPU (`dafast.models.cuda_graphs`) the second call with an input of one size captures a
        graph, and later ones replay it: the same kernels, without the time of Python. A model keeps
        at most 8 graphs and their memory. The decoder's weights move to channels-last memory, once.
        Lists of images of different sizes use the modules.

        Calling it again changes nothing, and neither does calling it where it cannot help: on a CPU
        in float16 or float64, or if a part was replaced by one of another kind (the reason is
        logged). A copy or a pickle of the model starts unoptimized.

        Every call checks whether the weights or the settings of a module (`norm.eps`,
        `depth_head.max_depth`, ...) have changed. On a CPU the check reads every value of every
        weight, so it also sees writes through `Tensor.data` and numpy. On a GPU the graphs read the
        weights themselves, and are captured again only if weights have other memory.

        Args:
            int8: On a CPU, whether the encoder's linear layers multiply in int8
                (`dafast.ops.linear_int8`): even faster, and less exact; docs/performance.md has
                figures. By default the current choice stays; the first is False.
            keep_memory: On a CPU, whether the process keeps the memory that a forward releases, for
                the next one. It applies to all allocations of the process from then on, with
                glibc's malloc only. `infer` does not set it.
            cuda_graphs: On a GPU, whether to capture graphs. False releases them and their memory.
                By default the current choice stays; the first is True.

        Returns:
            The model itself.

        Raises:
            RuntimeError: If ``int8`` is requested and this machine has no fast kernel for it.
        """
        if cuda_graphs is not None:
            self._uses_graphs = cuda_graphs
        if self._captures_graphs():
            self._prepare_graphs()
            return self
        now = self._optimized if isinstance(self._optimized, OptimizedForward) else None
        wanted = (now is not None and now.int8) if int8 is None else int8
        if wanted and (slow := why_slow_int8()):
            raise RuntimeError(f"optimize(int8=True): {slow}")
        if now is None or now.int8 != wanted or not now.is_current(self):
            reason = why_not_packed(self)
            if reason:
                logger.info("dafast: optimize() changes nothing: %s", reason)
            self._optimized = None if reason else OptimizedForward(self, wanted)
        if keep_memory and self._optimized is not None:
            keep_freed_memory()
        return self

    def _captures_graphs(self) -> bool:
        return cuda_graphs.can_capture(self.device)

    def _prepare_graphs(self) -> None:
        now = self._optimized if isinstance(self._optimized, GraphedForward) else None
        if not self._uses_graphs:
            self._optimized = None
        elif now is None or not now.is_current(self):
            reason = cuda_graphs.why_not_captured(self)
            if reason:
                logger.info("dafast: optimize() changes nothing: %s", reason)
                self._optimized = None
                return
            cuda_graphs.use_channels_last(self)
            self._optimized = GraphedForward(self, cuda_graphs.new_machinery(self.device))

    def prepare_inference(self) -> None:
        """Optimizes the model as `optimize` does; each forward checks that this is current."""
        warn_if_slow(self.dtype, self.device)
        if self._optimized is None:
            self.optimize(keep_memory=False)

    def train(self, mode: bool = True) -> DepthAnything:
        """As `torch.nn.Module.train`; training gets the memory of the CUDA graphs."""
        if mode and isinstance(self._optimized, GraphedForward):
            self._optimized.release()
        return super().train(mode)

    def _optimized_now(self) -> OptimizedForward | GraphedForward | None:
        """What may replace the modules for a call now, for the weights and settings as they are."""
        if self._optimized is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        device = self.device.type
        # Asking a device that knows no autocast ("meta") would raise.
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return None
        if torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None:
            return None
        if nn.modules.module._has_any_global_hook() or self._optimized.is_hooked():
            return None
        if not self._optimized.is_current(self):
            self.optimize(keep_memory=False)
        now = self._optimized
        return None if now is None or now.is_hooked() or now.why_not() else now

    def _fast_forward(self, x: Tensor | Sequence[Tensor]) -> Callable[[Tensor], Tensor] | None:
        now = self._optimized_now()
        if not isinstance(now, GraphedForward):
            return now
        if type(x) is not Tensor:  # of mixed sizes, for which there is no graph
            return None
        return lambda image: now.run(self._run_modules, [image], torch.clone)

    def predict_batch(
        self, images: Sequence[Tensor], read: Callable[[Tensor], _T], sky: bool = False
    ) -> _T:
        """As `DepthNetwork.predict_batch`; on a GPU the inputs and results of a graph directly."""
        plain = type(self).forward is DepthNetwork.forward and self._compiled_call_impl is None
        hooked = self._forward_hooks or self._forward_pre_hooks or "forward" in vars(self)
        with torch.no_grad():
            now = self._optimized_now() if plain and not hooked else None
            if not isinstance(now, GraphedForward) or (sky and not self.config.sky_head):
                return super().predict_batch(images, read, sky)
            for image in images:
                self.pretrained.check_images(image)

            def finish(maps: Tensor) -> _T:
                return read(self._finish_with_sky(maps) if sky else self._finish(maps))

            return now.run(self._run_modules, images, finish)

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's layouts depend on the machine, graphs on addresses: a copy makes its own.
        return {**super().__getstate__(), "_optimized": None}

    @overload
    def infer(
        self,
        images: Picture,
        *,
        return_tensors: Literal[False] = ...,
        **options: Unpack[InferenceKeywords],
    ) -> np.ndarray: ...
    @overload
    def infer(
        self,
        images: ImageList,
        *,
        return_tensors: Literal[False] = ...,
        **options: Unpack[InferenceKeywords],
    ) -> list[np.ndarray]: ...
    @overload
    def infer(
        self,
        images: Picture,
        *,
        return_tensors: Literal[True],
        **options: Unpack[InferenceKeywords],
    ) -> Tensor: ...
    @overload
    def infer(
        self,
        images: ImageList,
        *,
        return_tensors: Literal[True],
        **options: Unpack[InferenceKeywords],
    ) -> list[Tensor]: ...
    def infer(
        self,
        images: Any,
        *,
        fit: str | None = None,
        size: int | None = None,
        padding: str = "replicate",
        max_batch_tokens: int | None = None,
        max_tokens: int = MAX_TOKENS,
        flip: bool = False,
        return_tensors: bool = False,
    ) -> Any:
        """Predicts the disparity of photos, at their own resolution, with a relative model.

        Depth Anything 3's mono model predicts relative depth instead (`ModelConfig.quantity` is
        ``"depth"``).

        The values of an image are taken as they are: 0..255 in uint8, 0..65535 in uint16 and in
        files of more than 8 bits, 0..1 in floating point. An image that uses at most 1/16 of this
        range, as 10 or 12 bits stored in 16 do, gives a warning and is not stretched. Gray, alpha
        (laid over white) and palette images are converted to RGB; files and PIL images are turned
        upright by their EXIF orientation. A file with several pages or frames gives a warning, and
        the first full page is used.

        On a CPU the first call packs the weights into a second copy; see `optimize`. A change of
        the weights or settings is seen at the next call.

        One model may be used by several threads at once, as long as none of them changes it. After
        `os.fork`, PyTorch's thread pool does not work in the child: call `torch.set_num_threads(1)`
        there first. `DataLoader` workers do so by themselves. Do not fork after several Python
        threads have used the model: the child can wait forever for a lock of the math library.
        Spawned processes always work; they get the model as a pickle and pack the weights again.

        Args:
            images: A path, an http or https URL, the bytes of a file, a file open for reading in
                binary mode, a PIL image, a numpy array (H, W), or (H, W, C) in RGB (uint8, uint16
                or floating point), a tensor (C, H, W) of these dtypes, or a list or tuple of them
                with any sizes.
            fit: ``"pad"`` (keeps the aspect ratio and pads), ``"official"`` (the official script's
                size rule and bicubic resize) or ``"upper_bound"`` (the rule of Depth Anything 3);
                by default that of the model's configuration, see `dafast.geometry.plan_geometry`.
            size: Shorter side in pixels of the network's input, the longer one with
                ``"upper_bound"``; by default `ModelConfig.image_size` (518 for the published ones
                of V1 and V2, 504 for Depth Anything 3).
            padding: ``"replicate"``, ``"reflect"`` or ``"constant"``; for ``fit="pad"``.
            max_batch_tokens: Photos of one network size share a batch of at most this many tokens;
                on a GPU with Triton, photos of all sizes do. By default 8192 on a CPU; on a GPU as
                many as half of its free memory holds, up to 65536.
            max_tokens: A photo that needs more tokens is scaled down, with a warning.
            flip: Whether to average the map with that of the mirror image (test-time
                augmentation): twice the time, a little more accuracy.
            return_tensors: Whether to return tensors on the model's device.

        Returns:
            A float32 array (H, W) for one image, a list of them for a list: disparity, large where
            the scene is near, up to an unknown scale and shift. Or relative depth, large where the
            scene is far, up to an unknown scale. If the network predicts NaN or
            infinity, a warning names the images and the likely reason.

        Raises:
            ImageError: If an image cannot be used; the message names it.
            TypeError: If the model is metric.
            ValueError: If an option is out of range.
        """
        options = InferenceOptions(
            fit, size, padding, max_batch_tokens, max_tokens, flip, return_tensors
        )
        return inference.infer(self, images, options)

    def infer_metric(
        self,
        images: Any,
        *,
        intrinsics: Sequence[float] | np.ndarray | None = None,
        fov: float | None = None,
        fit: str | None = None,
        size: int | None = None,
        padding: str = "replicate",
        max_batch_tokens: int | None = None,
        max_tokens: int = MAX_TOKENS,
        flip: bool = False,
        return_tensors: bool = False,
    ) -> Any:
        """Predicts the depth of photos in metres with a metric model, or points with a camera.

        Args:
            images: As for `infer`.
            intrinsics: The camera, the same for all photos: (fx, fy, cx, cy) in pixels of the
                photo, or a 3 x 3 matrix; see `dafast.pointcloud.Intrinsics`. It places the points
                in space. It changes the depth only of a model with a `ModelConfig.focal_length`
                (Depth Anything 3), which needs the camera: from here, from ``fov``, or from
                FocalLengthIn35mmFilm in the EXIF data of a photo given as a path or a PIL image.
            fov: The horizontal field of view in degrees, instead of ``intrinsics``.
            fit: As for `infer`.
            size: As for `infer`.
            padding: As for `infer`.
            max_batch_tokens: As for `infer`.
            max_tokens: As for `infer`.
            flip: As for `infer`.
            return_tensors: As for `infer`.

        Returns:
            As `infer`, in metres along the optical axis. With ``intrinsics`` or ``fov`` a
            `dafast.pointcloud.PointCloud` for each photo, which includes the depth. A model with a
            `ModelConfig.focal_length` and ``return_tensors`` gives the depth with them, too.

        Raises:
            ImageError: If an image cannot be used; the message names it.
            TypeError: If the model is relative.
            ValueError: If both ``intrinsics`` and ``fov`` are given, or one of them is not valid,
                or an option is out of range; or if the model needs the camera and it is unknown.
        """
        options = InferenceOptions(
            fit, size, padding, max_batch_tokens, max_tokens, flip, return_tensors
        )
        return inference.infer_metric(self, images, options, intrinsics=intrinsics, fov=fov)

    @overload
    def predict(
        self,
        images: Picture,
        *,
        intrinsics: Sequence[float] | np.ndarray | None = ...,
        fov: float | None = ...,
        keep_image: bool = ...,
        align_to: Any = ...,
        align: str = ...,
        tile: int | str | None = ...,
        panorama: bool = ...,
        guided: bool = ...,
        **options: Unpack[InferenceKeywords],
    ) -> DepthResult: ...
    @overload
    def predict(
        self,
        images: ImageList,
        *,
        intrinsics: Sequence[float] | np.ndarray | None = ...,
        fov: float | None = ...,
        keep_image: bool = ...,
        align_to: Any = ...,
        align: str = ...,
        tile: int | str | None = ...,
        panorama: bool = ...,
        guided: bool = ...,
        **options: Unpack[InferenceKeywords],
    ) -> list[DepthResult]: ...
    def predict(
        self,
        images: Any,
        *,
        intrinsics: Sequence[float] | np.ndarray | None = None,
        fov: float | None = None,
        keep_image: bool = True,
        align_to: Any = None,
        align: str = "global",
        tile: int | str | None = None,
        panorama: bool = False,
        guided: bool = False,
        **options: Unpack[InferenceKeywords],
    ) -> Any:
        """Predicts photos with any model; the results say what they are.

        Args:
            images: As for `infer`.
            intrinsics: The camera, the same for all photos: (fx, fy, cx, cy) in pixels of the
                upright photo, or a 3 x 3 matrix; see `dafast.camera.Intrinsics`.
            fov: The horizontal field of view in degrees, instead of ``intrinsics``. Without both
                the camera is that of the photo's EXIF data (FocalLengthIn35mmFilm), and else one
                with `dafast.camera.ASSUMED_35MM`; `DepthResult.camera_source` says which.
            keep_image: Whether the results hold the photos, for the colours of points and meshes.
            align_to: Points whose depth is known, which turn any prediction into metres: an array
                (N, 3) of row, column and metres, or a map of the photo's size, 0 or NaN where
                nothing is known. For a list of images a list of them.
            align: ``"global"``: a scale and a shift, robustly; or ``"local"``: then also a smooth
                correction that passes near the points. See `dafast.known_points.align_result`.
            tile: Predicts large photos in overlapping tiles of this many pixels a side, which gives
                more detail, or of a size that suits the photo (``"auto"``): the whole photo gives
                the layout, the tiles the detail; see `dafast.models.tiles`. None: one pass.
            panorama: Whether the photos are equirectangular (360 by 180 degrees); the results are
                `dafast.panorama.PanoramaResult`: distances from the camera.
            guided: Whether to enlarge the maps along the edges of the photo
                (`dafast.ops.guided_upsample`), instead of smoothly.
            **options: As for `infer`.

        Returns:
            A `DepthResult` for one image, a list of them for a list: disparity or relative depth
            of a relative model, metres of a metric model and with ``align_to``, where
            `DepthResult.alignment` has the residuals.

        Raises:
            ImageError: If an image cannot be used; the message names it.
            ValueError: If the camera or an option is not valid; or if the model needs the camera
                (`ModelConfig.focal_length`) and it is unknown.
        """
        return predict_results(
            self,
            images,
            InferenceOptions(**options),
            intrinsics=intrinsics,
            fov=fov,
            keep_image=keep_image,
            align_to=align_to,
            align=align,
            tile=tile,
            panorama=panorama,
            guided=guided,
        )

    def infer_sky(self, images: Any, **options: Unpack[InferenceKeywords]) -> Any:
        """Finds the sky in photos, with a model that has a sky head (Depth Anything 3).

        Args:
            images: As for `infer`.
            **options: As for `infer`.

        Returns:
            A bool array (H, W) for one image, a list of them for a list: True in the sky, where
            the output of the sky head, resized to the photo, is 0.5 or more. The depth that
            `infer` and `infer_metric` fill is that of all pixels from 0.3 on; see
            `dafast.models.sky.fill_sky`.

        Raises:
            ImageError: If an image cannot be used; the message names it.
            TypeError: If the model has no sky head.
            ValueError: If an option is out of range.
        """
        return inference.infer_sky(self, images, InferenceOptions(**options))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: str | ModelConfig | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        position_embedding: str | None = None,
        filename: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        force_download: bool = False,
    ) -> DepthAnything:
        """Loads trained weights; see `dafast.models.checkpoint.load_pretrained`."""
        return checkpoint.load_pretrained(
            cls,
            name_or_path,
            config=config,
            device=device,
            dtype=dtype,
            position_embedding=position_embedding,
            filename=filename,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            force_download=force_download,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        layout: str = "official",
        dtype: str | torch.dtype | None = None,
        max_shard_size: int | str = "5GB",
    ) -> None:
        """Writes the model to a folder; see `dafast.models.checkpoint.save_pretrained`."""
        checkpoint.save_pretrained(
            self, folder, layout=layout, dtype=dtype, max_shard_size=max_shard_size
        )

    @classmethod
    def from_transformers(
        cls, model: Any, *, position_embedding: str = "transformers"
    ) -> DepthAnything:
        """Builds a model from one of transformers, without files.

        The weights are copied: neither model sees later changes of the other.

        Args:
            model: A ``DepthAnythingForDepthEstimation``: V1, V2 or metric.
            position_embedding: As in `ModelConfig`. The default predicts what ``model`` predicts;
                `from_pretrained` takes ``"official"``.

        Returns:
            The model, on the device, in the dtype and in the mode (training or evaluation) of the
            other.

        Raises:
            TypeError: If ``model`` is of another class.
            ValueError: If dafast does not support a setting of the model, or its weights are not
                those of its configuration (LoRA, quantization).
            MissingPackageError: If transformers cannot be imported.
        """
        return transformers_bridge.from_transformers(cls, model, position_embedding)

    def to_transformers(self) -> Any:
        """Builds transformers' ``DepthAnythingForDepthEstimation`` from the model, without files.

        The weights are copied. transformers resizes position embeddings by its own rule, so its
        predictions differ at other sizes than ``grid_size`` x ``grid_size`` patches unless the
        configuration has ``position_embedding="transformers"``.

        Returns:
            The model, on the same device, in the same dtype and mode.

        Raises:
            ValueError: If transformers has no place for the model (ZoeDepth's bins, Depth
                Anything 3), or its weights are not those of its configuration.
            MissingPackageError: If transformers cannot be imported.
        """
        return transformers_bridge.to_transformers(self)
