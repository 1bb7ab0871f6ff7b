"""Depth Anything: DINOv2 encoder and DPT decoder in one module."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import inference
from ..config import ModelConfig, get_preset
from ..ops.geometry import MAX_TOKENS
from ..ops.linear_int8 import why_slow as why_slow_int8
from ..runtime import keep_freed_memory
from .dpt import DPTHead
from .metric import MetricBinsHead
from .optimized import OptimizedForward
from .optimized import why_not as why_not_optimized
from .vision_transformer import VisionTransformer

logger = logging.getLogger("dafast")


class DepthAnything(nn.Module):
    """Depth Anything V1 and V2, with the state_dict keys of the official checkpoints.

    A metric model of V1 has ZoeDepth's bins in `metric_head` besides; the keys of the published
    files are those of the layout "zoedepth" (`dafast.models.conversion`).

    Built like this the weights are random; `from_pretrained` loads trained ones.

    Args:
        config: A preset's name (``"vits"``, ``"v2-vitb"``, ``"nano"``, ...) or a `ModelConfig`.
    """

    def __init__(self, config: str | ModelConfig = "vits") -> None:
        super().__init__()
        self.config = get_preset(config) if isinstance(config, str) else config
        self.pretrained = VisionTransformer(self.config)
        self.depth_head = DPTHead(self.config)
        if self.config.bin_centers:
            self.metric_head = MetricBinsHead(self.config)
        self._optimized: OptimizedForward | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pretrained.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.pretrained.cls_token.dtype

    def forward(self, x: Tensor | Sequence[Tensor], *, features: bool = False) -> Any:
        """Predicts disparity (relative models) or depth in metres (metric models).

        Args:
            x: RGB normalised with ``config.mean`` and ``config.std``, (B, 3, H, W); H and W
                multiples of 14; on the device and in the dtype of the weights. Or a list of
                (3, H_i, W_i) with any sizes: the encoder takes them as one packed sequence,
                without distortion or padding, the decoder those of equal size together.
            features: Whether to return the encoder's final features too, for training; of a
                tensor alone.

        Returns:
            (B, H, W), float32 also with half-precision weights; for a list of images a list of
            (H_i, W_i). Disparity is large where the scene is near, 0 or more, and defined up to an
            unknown scale and shift. With ``features`` a pair: that, and the patch tokens
            (B, N, C) of the last block after the final LayerNorm, N = H/14 * W/14.

        Raises:
            ValueError: If the shape does not fit, or the device or, outside of autocast, the
                dtype is not that of the weights.
        """
        run = None if features else self._usable_optimized()
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

    def optimize(self, *, int8: bool | None = None, keep_memory: bool = True) -> DepthAnything:
        """Makes inference on a CPU fast: packs the weights once into the layout of its products.

        From then on a call without gradients (`torch.no_grad`, `torch.inference_mode`) outside of
        autocast takes `dafast.models.optimized.OptimizedForward`: the same function within
        rounding. `infer` does this by itself. The packed weights are a second copy of all of them.
        Weights that change are packed again at the next call; training, gradients, ``features``,
        forward hooks on parts of the model, `torch.compile`, `torch.func` and `torch.jit.trace`
        get the modules as ever. Does nothing the second time, nor where there is nothing to pack:
        on a GPU, in float16 or float64, or where a part was replaced by one of another kind (the
        reason is logged).

        How a change is seen: a weight replaced, or its version counted up; for what writes past
        that (`Tensor.data`, numpy, fused optimizers), eight values of every weight. A copy or a
        pickle of the model starts unoptimized.

        Args:
            int8: Whether the encoder's linear layers multiply in int8 (`dafast.ops.linear_int8`):
                faster again, and less exact; see docs/performance.md for how much. Left out, it
                stays as it is, False at first.
            keep_memory: Whether the process keeps the memory that a forward gives back, for the
                next: after a few calls none is asked of the system any more. It holds for all that
                the process allocates, from then on, with glibc's malloc; elsewhere it changes
                nothing. `infer` leaves it out.

        Returns:
            The model itself.

        Raises:
            RuntimeError: If ``int8`` is asked for and this machine has no fast kernel for it.
        """
        now = self._optimized
        wanted = (now is not None and now.int8) if int8 is None else int8
        if wanted and (slow := why_slow_int8()):
            raise RuntimeError(f"optimize(int8=True): {slow}")
        if now is None or now.int8 != wanted or not now.is_current():
            reason = why_not_optimized(self)
            if reason:
                logger.info("dafast: optimize() changes nothing: %s", reason)
            self._optimized = None if reason else OptimizedForward(self, wanted)
        if keep_memory and self._optimized is not None:
            keep_freed_memory()
        return self

    def _usable_optimized(self) -> OptimizedForward | None:
        if self._optimized is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if self.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return None
        if torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None:
            return None
        if nn.modules.module._has_any_global_hook() or any(
            m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
            for m in self.modules()
            if m is not self
        ):
            return None
        return self.optimize(keep_memory=False)._optimized

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's layouts are of this machine: a copy or a pickle packs its own.
        return {**super().__getstate__(), "_optimized": None}

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
            indices: Blocks counted from 0; the four that the decoder reads by default.
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
            return tap.transpose(-2, -1).unflatten(-1, grid)

        if isinstance(x, Tensor):
            return [as_map(tap, x) for tap in taps]
        return [list(map(as_map, tap, x)) for tap in taps]

    def infer(
        self,
        images: Any,
        *,
        fit: str = "pad",
        size: int | None = None,
        padding: str = "replicate",
        max_batch_tokens: int = inference.MAX_BATCH_TOKENS,
        max_tokens: int = MAX_TOKENS,
        flip: bool = False,
        return_tensors: bool = False,
    ) -> Any:
        """Disparity of photos at their own resolution; see `dafast.inference.predict`."""
        return inference.infer(
            self,
            images,
            fit=fit,
            size=size,
            padding=padding,
            max_batch_tokens=max_batch_tokens,
            max_tokens=max_tokens,
            flip=flip,
            return_tensors=return_tensors,
        )

    def infer_metric(
        self,
        images: Any,
        *,
        fit: str = "pad",
        size: int | None = None,
        padding: str = "replicate",
        max_batch_tokens: int = inference.MAX_BATCH_TOKENS,
        max_tokens: int = MAX_TOKENS,
        flip: bool = False,
        return_tensors: bool = False,
        intrinsics: Sequence[float] | np.ndarray | None = None,
        fov: float | None = None,
    ) -> Any:
        """Depth of photos in metres (metric models), or with a camera coloured points in space.

        See `dafast.inference.infer_metric` and `dafast.inference.predict`.
        """
        return inference.infer_metric(
            self,
            images,
            intrinsics=intrinsics,
            fov=fov,
            fit=fit,
            size=size,
            padding=padding,
            max_batch_tokens=max_batch_tokens,
            max_tokens=max_tokens,
            flip=flip,
            return_tensors=return_tensors,
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
    ) -> DepthAnything:
        """Loads trained weights; see `dafast.models.checkpoint.load_pretrained`."""
        from .checkpoint import load_pretrained

        return load_pretrained(
            name_or_path,
            config=config,
            device=device,
            dtype=dtype,
            position_embedding=position_embedding,
            filename=filename,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
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
        from .checkpoint import save_pretrained

        save_pretrained(self, folder, layout=layout, dtype=dtype, max_shard_size=max_shard_size)
