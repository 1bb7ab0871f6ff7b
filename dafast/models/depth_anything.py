"""Depth Anything: the network, and what a program does with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.geometry import MAX_TOKENS
from ..ops.linear_int8 import why_slow as why_slow_int8
from ..runtime import keep_freed_memory
from . import checkpoint, inference
from .network import DepthNetwork
from .packed_cpu import OptimizedForward
from .packed_cpu import why_not as why_not_optimized

logger = logging.getLogger("dafast")


class DepthAnything(DepthNetwork):
    """Depth Anything V1 and V2: photos in, depth out.

    Built like this the weights are random; `from_pretrained` loads trained ones. The network
    itself, its forward and its parameters are those of `DepthNetwork`.

    Args:
        config: Name of a preset (``"vits"``, ``"v2-vitb"``, ``"nano"``, ...) or a `ModelConfig`.
    """

    def __init__(self, config: str | ModelConfig = "vits") -> None:
        super().__init__(config)
        self._optimized: OptimizedForward | None = None

    def optimize(self, *, int8: bool | None = None, keep_memory: bool = True) -> DepthAnything:
        """Makes inference on a CPU fast: packs the weights once into the layout of its products.

        From then on a call without gradients (`torch.no_grad`, `torch.inference_mode`) outside of
        autocast takes `dafast.models.packed_cpu.OptimizedForward`: the same function within
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
        if now is None or now.int8 != wanted or not now.is_current(self):
            reason = why_not_optimized(self)
            if reason:
                logger.info("dafast: optimize() changes nothing: %s", reason)
            self._optimized = None if reason else OptimizedForward(self, wanted)
        if keep_memory and self._optimized is not None:
            keep_freed_memory()
        return self

    def prepare_inference(self) -> None:
        """Packs the weights as `optimize` does, and leaves the process's memory as it is."""
        self.optimize(keep_memory=False)

    def _fast_forward(self) -> Callable[[Tensor], Tensor] | None:
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
        """Disparity of photos at their own resolution; see `dafast.models.inference.predict`."""
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

        See `dafast.models.inference.infer_metric` and `dafast.models.inference.predict`.
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
