"""Depth Anything: DINOv2 encoder and DPT decoder in one module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig, get_preset
from .dpt import DPTHead
from .vision_transformer import VisionTransformer


class DepthAnything(nn.Module):
    """Depth Anything V1 and V2, with the state_dict keys of the official checkpoints.

    Built like this the weights are random; `from_pretrained` loads trained ones.

    Args:
        config: A preset's name (``"vits"``, ``"v2-vitb"``, ``"nano"``, ...) or a `ModelConfig`.
    """

    def __init__(self, config: str | ModelConfig = "vits") -> None:
        super().__init__()
        self.config = get_preset(config) if isinstance(config, str) else config
        self.pretrained = VisionTransformer(self.config)
        self.depth_head = DPTHead(self.config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pretrained.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.pretrained.cls_token.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Predicts disparity (relative models) or depth in metres (metric models).

        Args:
            x: RGB normalised with ``config.mean`` and ``config.std``, (B, 3, H, W); H and W
                multiples of 14; on the device and in the dtype of the weights.

        Returns:
            (B, H, W), float32 also with half-precision weights. Disparity is large where the scene
            is near, 0 or more, and defined up to an unknown scale and shift.

        Raises:
            ValueError: If the shape does not fit.
        """
        taps = self.pretrained.get_intermediate_layers(x, self.config.out_indices)
        patch = self.config.patch_size
        return self.depth_head(taps, x.shape[-2] // patch, x.shape[-1] // patch).squeeze(1)

    def get_intermediate_layers(
        self, x: Tensor, indices: Sequence[int] | None = None, *, reshape: bool = False
    ) -> list[Tensor]:
        """The encoder's features after its final LayerNorm, without the cls token.

        Args:
            x: As for `forward`.
            indices: Blocks counted from 0; the four that the decoder reads by default.
            reshape: Whether to return maps instead of token lists.

        Returns:
            Per index (B, N, C) with N = H/14 * W/14, or (B, C, H/14, W/14).
        """
        taps = self.pretrained.get_intermediate_layers(
            x, self.config.out_indices if indices is None else indices
        )
        if not reshape:
            return taps
        grid = (x.shape[-2] // self.config.patch_size, x.shape[-1] // self.config.patch_size)
        return [tap.transpose(1, 2).unflatten(2, grid) for tap in taps]

    def infer(self, images: Any, **options: Any) -> Any:
        """Disparity of photos at their own resolution; options: `dafast.inference.predict`."""
        from ..inference import infer

        return infer(self, images, **options)

    def infer_metric(self, images: Any, **options: Any) -> Any:
        """Depth of photos in metres (metric models); options: `dafast.inference.predict`."""
        from ..inference import infer_metric

        return infer_metric(self, images, **options)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> DepthAnything:
        """Loads trained weights; see `dafast.models.checkpoint.load_pretrained`."""
        from .checkpoint import load_pretrained

        return load_pretrained(name_or_path, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Writes the model to a folder; see `dafast.models.checkpoint.save_pretrained`."""
        from .checkpoint import save_pretrained

        save_pretrained(self, folder, **options)
