"""The network of Depth Anything: DINOv2 encoder and DPT decoder in one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig, get_preset
from .dpt import DPTHead
from .vision_transformer import VisionTransformer
from .zoedepth import MetricBinsHead


class DepthNetwork(nn.Module):
    """The network of Depth Anything V1 and V2, with the keys of the official checkpoints.

    The weights are random. `dafast.DepthAnything` adds photos, files and fast inference. A metric
    model of V1 also has ZoeDepth's bins, in `metric_head`; the published files have the keys of the
    layout "zoedepth" (`dafast.models.conversion`).

    Args:
        config: Name of a preset (``"vits"``, ``"v2-vitb"``, ``"nano"``, ...) or a `ModelConfig`.
    """

    def __init__(self, config: str | ModelConfig = "vits") -> None:
        super().__init__()
        self.config = get_preset(config) if isinstance(config, str) else config
        self.pretrained = VisionTransformer(self.config)
        self.depth_head = DPTHead(self.config)
        if self.config.bin_centers:
            self.metric_head = MetricBinsHead(self.config)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.pretrained.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.pretrained.cls_token.dtype

    def forward(self, x: Tensor | Sequence[Tensor], features: bool = False) -> Any:
        """Predicts disparity (relative models) or depth in metres (metric models).

        Args:
            x: RGB normalised with ``config.mean`` and ``config.std``, (B, 3, H, W); H and W
                multiples of 14; on the device and in the dtype of the weights. Or a list of
                (3, H_i, W_i) with any sizes: the encoder takes them as one packed sequence,
                without distortion or padding; the decoder takes those of equal size together.
            features: Whether to return the encoder's final features too, for training; only for
                a tensor.

        Returns:
            (B, H, W), float32 also with half-precision weights; for a list of images a list of
            (H_i, W_i). Disparity is 0 or more, large where the scene is near, up to an unknown
            scale and shift. With ``features`` a pair: the prediction, and the patch tokens
            (B, N, C) of the last block after the final LayerNorm, N = H/14 * W/14.

        Raises:
            ValueError: If the shape does not fit, or if the device or (outside of autocast) the
                dtype differs from that of the weights.
        """
        run = None if features else self._fast_forward()
        if run is not None:
            if isinstance(x, Tensor):
                return run(self.pretrained.check_images(x))
            return [run(self.pretrained.check_images(image[None]))[0] for image in x]
        if not isinstance(x, Tensor):
            if features:
                raise ValueError("features are returned for a tensor of images, not for a list")
            return self._forward_packed(x)
        indices = self.config.out_indices
        last = self.config.num_layers - 1
        wanted = (*indices, last) if features and last not in indices else indices
        taps = self.pretrained.get_intermediate_layers(x, wanted)
        patch = self.config.patch_size
        rows, columns = x.shape[-2] // patch, x.shape[-1] // patch
        prediction = self._decode(taps[:4], rows, columns)
        return (prediction, taps[-1]) if features else prediction

    def _fast_forward(self) -> Callable[[Tensor], Tensor] | None:
        """A forward that replaces the modules for this call, or None."""
        return None

    def prepare_inference(self) -> None:
        """Called before inference on photos; a subclass may make its forward fast here."""

    def _decode(self, taps: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """Four taps (B, rows * columns, C) to (B, rows * 14, columns * 14)."""
        if self.config.bin_centers:
            return self.metric_head(*self.depth_head.activations(taps, rows, columns)).squeeze(1)
        return self.depth_head(taps, rows, columns).squeeze(1)

    def _forward_packed(self, images: Sequence[Tensor]) -> list[Tensor]:
        if not images:
            return []
        taps = self.pretrained.get_intermediate_layers(images, self.config.out_indices)
        same_size: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            same_size.setdefault((image.shape[-2], image.shape[-1]), []).append(i)
        maps: dict[int, Tensor] = {}
        patch = self.config.patch_size
        for (height, width), members in same_size.items():
            stacked = [torch.stack([tap[i] for i in members]) for tap in taps]
            out = self._decode(stacked, height // patch, width // patch)
            maps.update(zip(members, out, strict=True))
        return [maps[i] for i in range(len(images))]

    def get_intermediate_layers(
        self,
        x: Tensor | Sequence[Tensor],
        indices: Sequence[int] | None = None,
        *,
        reshape: bool = False,
    ) -> list[Any]:
        """The encoder's features after its final LayerNorm, without the cls token.

        Args:
            x: As for `forward`.
            indices: Blocks, counted from 0; by default the four that the decoder reads.
            reshape: Whether to return maps instead of token lists.

        Returns:
            Per index (B, N, C) with N = H/14 * W/14, or (B, C, H/14, W/14); for a list of images
            a list per index, without B.
        """
        taps = self.pretrained.get_intermediate_layers(
            x, self.config.out_indices if indices is None else indices
        )
        if not reshape:
            return taps

        def as_map(tap: Tensor, image: Tensor) -> Tensor:
            patch = self.config.patch_size
            grid = (image.shape[-2] // patch, image.shape[-1] // patch)
            return tap.transpose(-2, -1).reshape(*tap.shape[:-2], -1, *grid)

        if isinstance(x, Tensor):
            return [as_map(tap, x) for tap in taps]
        return [list(map(as_map, tap, x)) for tap in taps]
