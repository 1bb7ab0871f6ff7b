"""Depth Anything: the network with files, photos and fast inference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..geometry import MAX_TOKENS
from ..images import Picture
from ..result import DepthResult
from ..video.frame_result import FrameResult
from ..video.source import Selection
from . import checkpoint, inference
from .clips import predict_video
from .inference import InferenceKeywords, InferenceOptions
from .optimized_network import OptimizedNetwork
from .prediction import predict_results
from .publishing import Publishable
from .streaming import stream_results
from .transformers_bridge import Convertible

ImageList = list[Any] | tuple[Any, ...]


class DepthAnything(Convertible, Publishable, OptimizedNetwork):
    """Depth Anything V1, V2 and 3 (monocular): photos in, depth out.

    The weights are random; `from_pretrained` loads trained ones. The network, its forward and its
    parameters are those of `DepthNetwork`.

    Args:
        config: Name of a preset (``"vits"``, ``"v2-vitb"``, ``"nano"``, ...) or a `ModelConfig`.
    """

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
                size rule and bicubic resize), ``"upper_bound"`` (the rule of Depth Anything 3) or
                ``"video"`` (that of Video-Depth-Anything); by default that of the model's
                configuration, see `dafast.geometry.plan_geometry`.
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
        """Predicts photos with any model; each result has its kind and unit.

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

    def stream(
        self,
        source: Any,
        *,
        stabilize: str | None = None,
        lookahead: int = 8,
        every: int = 1,
        fps: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        keep_image: bool = True,
        intrinsics: Sequence[float] | np.ndarray | None = None,
        fov: float | None = None,
        **options: Unpack[InferenceKeywords],
    ) -> Iterator[FrameResult]:
        """Predicts a video frame by frame; the memory does not depend on its length.

        The next frames are decoded and computed while the program handles a result. A model with
        temporal modules (``"vda-vits"``) predicts overlapping windows of frames as `infer_video`
        does; with ``lookahead=0`` it predicts each frame at once from the states of earlier ones,
        as in the streaming mode of Video-Depth-Anything, which is less accurate.

        Args:
            source: A video file, an animated GIF or WebP, a folder of numbered pictures, the number
                of a webcam, ``"-"`` for the standard input, or any iterable of pictures of one
                size, as `infer` takes them; see `dafast.video.reader.open_video`.
            stabilize: ``"range"``: brings the disparity of all frames of a shot to one scale and
                shift; ``"flow"``: also by what moves, with optical flow (OpenCV); ``"off"``: leaves
                the maps and their display ranges as they are. By default ``"range"`` for relative
                models; of metric models and of those with temporal modules only the display range
                is smoothed.
            lookahead: Frames that the display range knows in advance, by which results are late.
                With 0 each result is there before the next frame is needed, and of a webcam that is
                faster than the model the newest frame is predicted.
            every: Takes each frame whose number is a multiple of it.
            fps: Largest number of frames per second. It is the rate of folders and arrays, 30 by
                default.
            start: Seconds from the beginning of the video to the first frame.
            end: Seconds from the beginning of the video to the end.
            keep_image: Whether the results hold the frames.
            intrinsics: As for `predict`.
            fov: As for `predict`.
            **options: As for `infer`, without ``flip``.

        Yields:
            A `dafast.video.FrameResult`, a `DepthResult`, for each frame.

        Raises:
            VideoError: If the source cannot be read.
            ValueError: If an option is out of range, or if the model needs the camera and it is
                unknown.
            MissingPackageError: If PyAV, or OpenCV for ``"flow"``, is needed and not installed.
        """
        return stream_results(
            self,
            source,
            InferenceOptions(**options),
            stabilize=stabilize,
            lookahead=lookahead,
            selection=Selection(every, fps, start, end),
            keep_image=keep_image,
            intrinsics=intrinsics,
            fov=fov,
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

    def infer_video(
        self,
        frames: Iterable[Any],
        *,
        intrinsics: Sequence[float] | np.ndarray | None = None,
        fov: float | None = None,
        keep_image: bool = True,
        **options: Unpack[InferenceKeywords],
    ) -> Iterator[DepthResult]:
        """Predicts a video with a model that has temporal modules, in overlapping windows.

        The windows, what they share and how they are aligned are those of Video-Depth-Anything
        (`dafast.models.clips`). A frame is final when the window after it is predicted: some 32
        frames are read before the first result. The memory does not depend on the video's length.
        `stream` reads files, and has a mode that answers each frame at once, less steadily.

        Args:
            frames: Pictures of one size, as `infer` takes them, in order; any iterable.
            intrinsics: As for `predict`.
            fov: As for `predict`.
            keep_image: Whether the results hold the frames.
            **options: As for `infer`, without ``flip``.

        Returns:
            An iterator over a `DepthResult` for each frame. Disparity has one scale and one shift
            for the whole video.

        Raises:
            ImageError: If a frame cannot be used; the message has its number.
            TypeError: If the model has no temporal modules; ``"vda-vits"`` has them.
            ValueError: If an option is out of range, or a frame has another size than the first.
        """
        return predict_video(
            self,
            frames,
            InferenceOptions(**options),
            streaming=False,
            intrinsics=intrinsics,
            fov=fov,
            keep_image=keep_image,
        )

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
        """Loads a model with trained weights, in evaluation mode.

        Args:
            name_or_path: A preset, a hub id, a file or a folder, in any published layout.
            config: Configuration of the weights, where neither a config.json nor a name says it.
            device: ``"auto"`` (CUDA, else MPS, else the CPU), or what `torch.device` takes.
            dtype: ``"auto"`` (bfloat16 where the device has it, else float32), ``"float32"``,
                ``"bfloat16"``, ``"float16"`` or a `torch.dtype`.
            position_embedding: ``"official"`` or ``"transformers"``; see `ModelConfig`.
            filename: File of the hub repository or folder.
            revision: Branch, tag or commit of the hub repository.
            cache_dir: Replaces the hub's own cache.
            local_files_only: Whether to load only from the cache.
            token: Token of the hub; ``False`` for none.
            force_download: Whether to download files that are in the cache again.

        Raises:
            CheckpointError: If the weights are missing, unreadable or of another model, or nothing
                says their configuration.
            ValueError: If ``config``, ``device`` or ``dtype`` does not exist.
        """
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
        """Writes config.json and the weights as safetensors; other files of the folder stay.

        Args:
            folder: Created if missing.
            layout: ``"official"``, ``"transformers"``, or that of the published files of one kind
                of model: ``"zoedepth"``, ``"da3"``, ``"vda"``.
            dtype: Of the weights in the file; the model's own by default.
            max_shard_size: Largest file, in bytes or as ``"5GB"``.

        Raises:
            ValueError: If a value does not exist, the layout has no place for the model, or the
                weights are not those of the configuration (weight_norm, LoRA).
            DiskFullError: If there is no room for the files; the earlier ones stay.
        """
        checkpoint.save_pretrained(
            self, folder, layout=layout, dtype=dtype, max_shard_size=max_shard_size
        )
