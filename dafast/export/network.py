"""The network as a module that can be exported: from images to the outputs of a file."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..models.digest import digest_model
from ..models.network import DepthNetwork
from ..models.segmentation_network import SegmentationNetwork
from ..models.sky import fill_sky as fill_sky_by_sorting
from ..runtime import FileFacts
from .sky import fill_sky

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.float32}
DTYPES = tuple(_DTYPES)
"""The data types of exported files; int8 starts from float32."""

PHOTO_FITS = ("pad", "official")
"""The size rules that `dafast.export.photos` has; the others resize in two steps, rounded."""


class ExportedNetwork(nn.Module):
    """Normalised images (B, 3, H, W) float32 to the outputs of `FileFacts.output_names`, float32.

    The sky of Depth Anything 3 is filled, and is an output of its own. The calibration of
    `ModelConfig.calibration` is applied.

    Args:
        model: A depth or a segmentation network, in evaluation mode; it is not changed.
        dtype: Data type of the weights: ``"float32"`` or ``"float16"``.
        frames: Length T of the clips that a model with temporal modules takes; 0 for images.
    """

    def __init__(self, model: nn.Module, dtype: str = "float32", frames: int = 0) -> None:
        super().__init__()
        self.network: Any = copy.deepcopy(model).to("cpu", _DTYPES[dtype]).requires_grad_(False)
        self.dtype, self.frames = _DTYPES[dtype], frames
        self.eval()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to (B, H, W) each, or logits (B, classes, H, W).

        Clips (1, T, 3, H, W) give (1, T, H, W).
        """
        x = pixel_values.to(self.dtype)
        if self.frames:
            return (self._depth(self.network.clip_outputs(x[0], self.frames))[None],)
        if isinstance(self.network, SegmentationNetwork):
            return (self.network(x),)
        maps = self.network.decoder_outputs(x)
        if not self.network.config.sky_head:
            return (self._depth(maps),)
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        fill = fill_sky if traced else fill_sky_by_sorting
        return self._depth(fill(maps[:, 0], maps[:, 1])[:, None]), maps[:, 1]

    def _depth(self, maps: Tensor) -> Tensor:
        depth = maps[:, 0]
        if self.network.config.calibration is None:
            return depth
        scale, shift = self.network.config.calibration
        return depth * scale + shift


def facts_of(
    model: nn.Module,
    *,
    dtype: str = "float32",
    shape: tuple[int, int] | None = None,
    batch: int | None = None,
    preprocess: bool = False,
    frames: int | None = None,
) -> FileFacts:
    """The facts that a file of a model carries; the arguments are fields of `FileFacts`.

    ``frames`` is None for the longest clips that the model takes.

    Raises:
        TypeError: If the model is neither a depth nor a segmentation network.
        ValueError: If an argument is not valid for the model.
    """
    if isinstance(model, SegmentationNetwork):
        config, classes = model.config.encoder, model.config.classes
    elif isinstance(model, DepthNetwork):
        config, classes = model.config, ()
    else:
        raise TypeError(f"{type(model).__name__} is not a DepthAnything or SegmentationModel")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r}: use one of {', '.join(DTYPES)}")
    if shape is not None and not preprocess and any(n < 1 or n % config.patch_size for n in shape):
        raise ValueError(
            f"shape={shape}: height and width must be multiples of {config.patch_size}"
        )
    if batch is not None and batch < 1:
        raise ValueError(f"batch={batch}: at least 1, or None for any")
    if config.temporal_frames and not classes:
        frames, batch = _window(config, frames, batch, dtype, preprocess), 1
    elif frames is not None:
        raise ValueError(
            f"frames={frames}: {config.name!r} takes images, not clips; leave frames out"
        )
    if preprocess and not classes and config.fit not in PHOTO_FITS:
        raise ValueError(
            f"{config.name!r} resizes photos by fit={config.fit!r}, and a graph has "
            f"{' and '.join(PHOTO_FITS)}: export it without preprocess and use dafast.runtime"
        )
    return FileFacts(
        config,
        tuple(classes),
        dtype,
        shape,
        batch,
        preprocess,
        frames or 0,
        weights=digest_model(model),
    )


def _window(
    config: ModelConfig, frames: int | None, batch: int | None, dtype: str, preprocess: bool
) -> int:
    """Returns the length of the clips of a file, after the checks for clips."""
    most = config.temporal_frames
    frames = most if frames is None else frames
    if not 1 <= frames <= most:
        raise ValueError(f"frames={frames}: {config.name!r} takes clips of 1 to {most} frames")
    if batch not in (None, 1):
        raise ValueError(f"batch={batch}: a file of clips takes one clip in a call; use batch=1")
    if preprocess:
        raise ValueError("preprocess is not possible for clips: leave it out")
    if dtype == "int8":
        raise ValueError("dtype='int8' is calibrated on photos, not on clips: use 'float16'")
    return frames
