"""The network of Depth Anything: DINOv2 encoder and DPT decoder in one module.

The decoder of Video-Depth-Anything also has temporal modules, through which the frames of a clip
exchange information; the encoder sees each frame by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..config import ModelConfig, get_preset
from ..layers.temporal import FrameCache
from .dpt import DPTHead
from .sky import fill_sky
from .vision_transformer import VisionTransformer
from .zoedepth import MetricBinsHead

_T = TypeVar("_T")


class DepthNetwork(nn.Module):
    """The network of Depth Anything V1, V2 and 3 (monocular), with V1's and V2's official keys.

    With `ModelConfig.temporal_frames` it is that of Video-Depth-Anything.

    The weights are random. `dafast.DepthAnything` adds photos, files and fast inference. A metric
    model of V1 also has ZoeDepth's bins, in `metric_head`; the published files have the keys of the
    layout "zoedepth" (`dafast.models.conversion`).

    Args:
        config: Name of a preset (``"vits"``, ``"v2-vitb"``, ``"nano"``, ...) or a `ModelConfig`.

    Attributes:
        loaded_from: The name or path that `from_pretrained` loaded the weights from; "" for none.
    """

    def __init__(self, config: str | ModelConfig = "vits") -> None:
        super().__init__()
        self.loaded_from = ""
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
        """Predicts disparity, depth, or depth in metres, see `ModelConfig.quantity`.

        With a sky head the sky is filled as in Depth Anything 3, for each image by itself; see
        `dafast.models.sky.fill_sky`.

        Args:
            x: RGB normalised with ``config.mean`` and ``config.std``, (B, 3, H, W); H and W
                multiples of 14; on the device and in the dtype of the weights. Or a list of
                (3, H_i, W_i) with any sizes: the encoder takes them as one packed sequence,
                without distortion or padding; the decoder takes those of equal size together.
                A model with temporal modules also takes clips (B, T, 3, H, W), with T up to
                ``config.temporal_frames``, and sees an image as a clip of one frame.
            features: Whether to return the encoder's final features too, for training; only for
                a tensor.

        Returns:
            (B, H, W), float32 also with half-precision weights; for a list of images a list of
            (H_i, W_i), for clips (B, T, H, W). Disparity is 0 or more, large where the scene is
            near, up to an unknown scale and shift. A metric model with a `ModelConfig.focal_length`
            gives metres for a camera with this focal length. With ``features`` a pair: the
            prediction, and the patch tokens (B, N, C) of the last block after the final
            LayerNorm, N = H/14 * W/14.

        Raises:
            ValueError: If the shape does not fit, or if the device or (outside of autocast) the
                dtype differs from that of the weights.
        """
        if not features:
            maps = self._maps(x)
            if isinstance(x, Tensor) and isinstance(maps, Tensor):
                out = self._finish(maps)
                return out.unflatten(0, x.shape[:2]) if x.ndim == 5 else out
            return [self._finish(each[None])[0] for each in maps]
        if not isinstance(x, Tensor):
            raise ValueError("features are returned for a tensor of images, not for a list")
        indices = self.config.out_indices
        last = self.config.num_layers - 1
        wanted = (*indices, last) if features and last not in indices else indices
        taps = self.pretrained.get_intermediate_layers(x, wanted)
        patch = self.config.patch_size
        rows, columns = x.shape[-2] // patch, x.shape[-1] // patch
        return self._finish(self._decode(taps[:4], rows, columns)), taps[-1]

    def predict_sky(self, x: Tensor | Sequence[Tensor]) -> Any:
        """Predicts the sky with a model that has a sky head.

        Args:
            x: As for `forward`.

        Returns:
            As `forward`: about 1 in the sky and 0 elsewhere, 0 or more. Depth Anything 3 calls a
            pixel sky from 0.5 on.

        Raises:
            TypeError: If the model has no sky head.
        """
        both = self.predict_with_sky(x)
        return both[:, 1] if isinstance(both, Tensor) else [each[1] for each in both]

    def predict_with_sky(self, x: Tensor | Sequence[Tensor]) -> Any:
        """The results of `forward` and of `predict_sky` from one pass.

        Args:
            x: As for `forward`.

        Returns:
            (B, 2, H, W); for a list of images a list of (2, H_i, W_i).

        Raises:
            TypeError: If the model has no sky head.
        """
        if not self.config.sky_head:
            raise TypeError(f"{self.config.name!r} has no sky head; 'da3mono-vitl' has one")
        maps = self._maps(x)
        if isinstance(maps, Tensor):
            return self._finish_with_sky(maps)
        return [self._finish_with_sky(each[None])[0] for each in maps]

    def predict_batch(
        self,
        shape: tuple[int, ...],
        fill: Callable[[Tensor | None], Tensor],
        read: Callable[[Tensor], _T],
        sky: bool = False,
    ) -> _T:
        """Computes ``read`` of the predictions for the images that ``fill`` gives.

        Args:
            shape: (B, 3, H, W), as for `forward`.
            fill: Writes images of this shape, in the dtype of the weights, into the given memory,
                or into new memory, and returns it. It must not call the model.
            read: Takes the results of `forward`, or of `predict_with_sky`, in memory that the next
                call overwrites, so it must return copies. It must not call the model.
            sky: Whether to predict the sky, too.
        """
        with torch.no_grad():
            x = fill(None)
            return read(self.predict_with_sky(x) if sky else self(x))

    def _finish_with_sky(self, maps: Tensor) -> Tensor:
        return torch.stack([self._finish(maps), maps[:, 1]], dim=1)

    def predict_next(self, x: Tensor, cache: FrameCache) -> Tensor:
        """Predicts the next frame of a stream, with the states of earlier frames.

        Args:
            x: One image (1, 3, H, W), as for `forward`, of the same size as the earlier ones.
            cache: Their states; those of this frame are added.

        Returns:
            (1, H, W).

        Raises:
            TypeError: If the model has no temporal modules.
        """
        self.check_temporal()
        self.pretrained.check_images(x)
        encode, decode = self.parts()
        patch = self.config.patch_size
        rows, columns = x.shape[-2] // patch, x.shape[-1] // patch
        out = decode(encode(x), rows, columns, 1, cache)
        cache.advance()
        return self._finish(out)

    def parts(self) -> tuple[Callable[..., list[Tensor]], Callable[..., Tensor]]:
        """What `forward` does now, in two functions, for frames that several windows share.

        Returns:
            Images (B, 3, H, W) to the decoder's four taps (B, N, C); and taps, rows and columns of
            the grid of patches, frames of a clip and a `FrameCache` or None to (B, 1, H, W), as
            `DPTHead.forward`.
        """
        return lambda x: self._encode(x)[0], self.depth_head

    def check_temporal(self) -> None:
        """Raises a TypeError if the model has no temporal modules."""
        if not self.config.temporal_frames:
            raise TypeError(f"{self.config.name!r} has no temporal modules; 'vda-vits' has them")

    def _check(self, x: Tensor) -> Tensor:
        """Returns x, if it is a batch of images, or of clips, that the model takes."""
        if x.ndim != 5:
            return self.pretrained.check_images(x)
        self.check_temporal()
        self.pretrained.check_images(x.flatten(0, 1))
        return x

    def _maps(self, x: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The decoder's outputs (B, C, H, W), or a list of (C, H_i, W_i)."""
        run = self._fast_forward(x)
        if run is not None:
            if isinstance(x, Tensor):
                return run(self._check(x))
            return [run(self.pretrained.check_images(image[None]))[0] for image in x]
        return self._run_modules(x) if isinstance(x, Tensor) else self._forward_packed(x)

    def decoder_outputs(self, x: Tensor) -> Tensor:
        """The outputs of the modules before the sky is filled, for programs that are exported.

        Args:
            x: A tensor as for `forward`.

        Returns:
            (B, 1, H, W); with a sky head (B, 2, H, W): the prediction and the sky.
        """
        return self._run_modules(x)

    def clip_outputs(self, x: Tensor, frames: int) -> Tensor:
        """As `decoder_outputs`, of clips.

        Args:
            x: Clips with their frames one after the other, (B * T, 3, H, W).
            frames: T; a number, which a trace does not take from the shape.

        Returns:
            (B * T, 1, H, W).

        Raises:
            TypeError: If the model has no temporal modules.
        """
        self.check_temporal()
        return self._decode(*self._encode(x), frames)

    def _run_modules(self, x: Tensor, blocks: Sequence[Any] | None = None) -> Tensor:
        """Images (B, 3, H, W), or clips with as many frames, to outputs (B, C, H, W).

        Args:
            x: The images.
            blocks: As for `VisionTransformer.get_intermediate_layers`.
        """
        frames = 1
        if x.ndim == 5:
            x, frames = self._check(x).flatten(0, 1), x.shape[1]
        return self._decode(*self._encode(x, blocks), frames)

    def _encode(
        self, x: Tensor, blocks: Sequence[Any] | None = None
    ) -> tuple[list[Tensor], int, int]:
        """Images (B, 3, H, W) to the decoder's inputs: four taps, rows and columns."""
        taps = self.pretrained.get_intermediate_layers(x, self.config.out_indices, blocks)
        patch = self.config.patch_size
        return taps, x.shape[-2] // patch, x.shape[-1] // patch

    def _finish(self, maps: Tensor) -> Tensor:
        """The decoder's outputs (B, C, H, W) to the prediction (B, H, W)."""
        return fill_sky(maps[:, 0], maps[:, 1]) if self.config.sky_head else maps.squeeze(1)

    def _fast_forward(self, x: Tensor | Sequence[Tensor]) -> Callable[[Tensor], Tensor] | None:
        """What replaces the modules for this call, images to outputs (B, C, H, W), or None."""
        return None

    def prepare_inference(self, keep_weights: bool = True) -> None:
        """Called before inference on photos; a subclass may make its forward fast here.

        Args:
            keep_weights: Whether the model is also used otherwise than for inference.
        """

    def _decode(self, taps: Sequence[Tensor], rows: int, columns: int, frames: int = 1) -> Tensor:
        """Four taps (B, rows * columns, C) to the outputs (B, C, rows * 14, columns * 14)."""
        if self.config.bin_centers:
            return self.metric_head(*self.depth_head.activations(taps, rows, columns))
        return self.depth_head(taps, rows, columns, frames)

    def _forward_packed(
        self, images: Sequence[Tensor], blocks: Sequence[Any] | None = None
    ) -> list[Tensor]:
        if not images:
            return []
        taps = self.pretrained.get_intermediate_layers(images, self.config.out_indices, blocks)
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
