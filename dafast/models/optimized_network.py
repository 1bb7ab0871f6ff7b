"""The network with its fast forward: packed weights on a CPU, CUDA graphs on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..devices import is_autocast_on, keep_freed_memory, warn_if_slow
from ..ops.linear_int8 import why_slow as why_slow_int8
from . import cuda_graphs
from .cuda_graphs import GraphedForward, InputKind
from .network import DepthNetwork
from .packed_cpu import OptimizedForward, why_not_packed

logger = logging.getLogger("dafast")

_T = TypeVar("_T")


class OptimizedNetwork(DepthNetwork):
    """`DepthNetwork` with `optimize`.

    Args:
        config: As for `DepthNetwork`.
    """

    _uses_graphs = True  # on a GPU; see `optimize`

    def __init__(self, config: str | ModelConfig = "vits") -> None:
        super().__init__(config)
        self._optimized: OptimizedForward | GraphedForward | None = None

    def optimize(
        self,
        *,
        int8: bool | None = None,
        keep_memory: bool = True,
        cuda_graphs: bool | None = None,
    ) -> Self:
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
            if now is None:  # later weights may be a caller's, as in `torch.func.functional_call`
                cuda_graphs.use_channels_last(self)
            self._optimized = GraphedForward(self, cuda_graphs.new_machinery(self.device))

    def prepare_inference(self) -> None:
        """Optimizes the model as `optimize` does; each forward checks that this is current."""
        warn_if_slow(self.dtype, self.device)
        if self._optimized is None:
            self.optimize(keep_memory=False)

    def train(self, mode: bool = True) -> Self:
        """As `torch.nn.Module.train`; training gets the memory of the CUDA graphs."""
        if mode and isinstance(self._optimized, GraphedForward):
            self._optimized.release()
        return super().train(mode)

    def _optimized_now(self) -> OptimizedForward | GraphedForward | None:
        """What may replace the modules for a call now, for the weights and settings as they are."""
        if self._optimized is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        device = self.device.type
        if is_autocast_on(device):
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

        def run(image: Tensor) -> Tensor:
            dense = image.is_contiguous()
            last = not dense and image.ndim == 4
            last = last and image.is_contiguous(memory_format=torch.channels_last)
            kind = InputKind(tuple(image.shape), image.dtype, last)

            def fill(out: Tensor | None) -> Tensor:
                return image if out is None else out.copy_(image)

            return now.run(self._run_modules, kind, fill, torch.clone)

        return run

    def parts(self) -> tuple[Callable[..., list[Tensor]], Callable[..., Tensor]]:
        """As `DepthNetwork.parts`; on a CPU with the packed weights."""
        now = self._optimized_now()
        if isinstance(now, OptimizedForward):
            return now.encode, now.decode
        return super().parts()

    def predict_batch(
        self,
        shape: tuple[int, ...],
        fill: Callable[[Tensor | None], Tensor],
        read: Callable[[Tensor], _T],
        sky: bool = False,
    ) -> _T:
        """As `DepthNetwork.predict_batch`; on a GPU in the memory of a graph."""
        plain = type(self).forward is DepthNetwork.forward and self._compiled_call_impl is None
        hooked = self._forward_hooks or self._forward_pre_hooks or "forward" in vars(self)
        with torch.no_grad():
            now = self._optimized_now() if plain and not hooked else None
            if not isinstance(now, GraphedForward) or sky > self.config.sky_head:
                return super().predict_batch(shape, fill, read, sky)

            def finish(maps: Tensor) -> _T:
                return read(self._finish_with_sky(maps) if sky else self._finish(maps))

            return now.run(self._run_modules, InputKind(shape, self.dtype), fill, finish)

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's layouts depend on the machine, graphs on addresses: a copy makes its own.
        return {**super().__getstate__(), "_optimized": None}
