"""The network with its fast forward: packed weights on a CPU, CUDA graphs on a GPU, 8 bits."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..devices import is_autocast_on, keep_freed_memory, return_freed_memory, warn_if_slow
from ..layers.temporal import FrameCache
from ..ops.linear_int8 import why_slow_int8
from . import cuda_graphs
from .calibration import photo_inputs
from .cuda_graphs import Fill, GraphedForward, InputKind
from .fp8_forward import Fp8Forward, why_not_fp8
from .network import DepthNetwork
from .packed_cpu import OptimizedForward, why_not_packed
from .packed_layers import FREED
from .snapshot import why_not_as_built

logger = logging.getLogger("dafast")

_T = TypeVar("_T")

_freeing = threading.Lock()


class _Bits(NamedTuple):
    """How the encoder's linear layers multiply, and the images that calibrate it."""

    int8: bool = False
    fp8: bool | str = False
    inputs: tuple[Tensor, ...] = ()

    def are_of(self, forward: OptimizedForward | GraphedForward | Fp8Forward) -> bool:
        now = (forward.int8, forward.fp8)
        return now == (self.int8, self.fp8) and forward.inputs is self.inputs


class OptimizedNetwork(DepthNetwork):
    """`DepthNetwork` with `optimize`.

    Args:
        config: As for `DepthNetwork`.
    """

    _uses_graphs = True  # on a GPU; see `optimize`

    def __init__(self, config: str | ModelConfig = "vits") -> None:
        super().__init__(config)
        self._optimized: OptimizedForward | GraphedForward | Fp8Forward | None = None

    def optimize(
        self,
        *,
        int8: bool | None = None,
        fp8: bool | Literal["emulate"] | None = None,
        calibration: Sequence[Any] | None = None,
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
        Lists of images of different sizes use the modules. Videos through temporal modules have
        graphs of the encoder and of the decoder.

        Calling it again changes nothing, and neither does calling it where it cannot help: on a CPU
        in float16 or float64, or if a part was replaced by one of another kind (the reason is
        logged). A copy or a pickle of the model starts unoptimized.

        Every call checks whether the weights or the settings of a module (`norm.eps`,
        `depth_head.max_depth`, ...) have changed. On a CPU the check reads every value of every
        weight, so it also sees writes through `Tensor.data` and numpy. On a GPU the graphs read the
        weights themselves, and are captured again only if weights have other memory. With ``fp8``
        on a GPU the weights are quantised again after changes that PyTorch counts
        (`Tensor._version`) and after `train`; after writes through `Tensor.data` without `train`,
        call ``model.train().eval()``.

        Args:
            int8: On a CPU, whether the encoder's linear layers multiply in int8
                (`dafast.ops.linear_int8`): even faster, and less exact; docs/performance.md has
                figures. By default the current choice stays; the first is False.
            fp8: On an NVIDIA GPU of compute capability 8.9 or later, with weights in bfloat16,
                whether the encoder's linear layers multiply in e4m3 (`dafast.ops.linear_fp8`):
                faster, and less exact; docs/performance.md has figures. ``"emulate"`` computes the
                same results on any device, slowly, to measure their accuracy. By default the
                current choice stays; the first is False.
            calibration: A few photos, anything that `infer` takes, for ``int8`` or ``fp8``: the
                sizes of the channels are measured with them (`dafast.models.calibration`). By
                default the current ones stay; the first is a synthetic picture.
            keep_memory: On a CPU, whether the process keeps the memory that a forward releases, for
                the next one. It applies to all allocations of the process from then on, with
                glibc's malloc only. `infer` does not set it.
            cuda_graphs: On a GPU, whether to capture graphs. False releases them and their memory.
                By default the current choice stays; the first is True.

        Returns:
            The model itself.

        Raises:
            RuntimeError: If ``int8`` or ``fp8`` is requested and cannot be fast here.
            ValueError: If ``int8`` and ``fp8`` are both requested, or ``calibration`` without
                either or without a photo.
        """
        bits = self._choose_bits(int8, fp8, calibration)
        if cuda_graphs is not None:
            self._uses_graphs = cuda_graphs
        if self._captures_graphs():
            self._prepare_graphs(bits)
            return self
        now = self._optimized
        if isinstance(now, GraphedForward) or not self._is_current(bits):
            _check_memory(self)
            self._optimized = None
            reason = why_not_as_built(self) if bits.fp8 else why_not_packed(self)
            if reason:
                logger.info("dafast: optimize() changes nothing: %s", reason)
            elif bits.fp8:
                self._optimized = Fp8Forward(self, bits.inputs, bits.fp8 == "emulate")
            else:
                self._optimized = OptimizedForward(self, bits.int8, bits.inputs)
        if keep_memory and self._optimized is not None:
            keep_freed_memory()
        return self

    def _choose_bits(
        self,
        int8: bool | None,
        fp8: bool | Literal["emulate"] | None,
        calibration: Sequence[Any] | None,
    ) -> _Bits:
        """Applies the requested choices; the others stay."""
        if int8 and fp8:
            raise ValueError("optimize() takes int8=True or fp8=True, not both")
        if fp8 not in (None, False, True, "emulate"):
            raise ValueError(f"fp8 must be True, False or 'emulate', not {fp8!r}")
        if fp8 is True and (why := why_not_fp8(self)):
            raise RuntimeError(f"optimize(fp8=True): {why}")
        on_cpu = not self._captures_graphs()
        if int8 and on_cpu and (slow := why_slow_int8()):
            raise RuntimeError(f"optimize(int8=True): {slow}")
        now = self._optimized
        bits = _Bits() if now is None else _Bits(now.int8, now.fp8, now.inputs)
        if fp8 is None and bits.fp8 is True and (why := why_not_fp8(self)):
            logger.info("dafast: no longer in fp8: %s", why)
            fp8 = False
        if int8 is not None:
            bits = bits._replace(int8=int8, fp8=bits.fp8 and not int8)
        if fp8 is not None:
            bits = bits._replace(fp8=fp8, int8=bits.int8 and not fp8)
        if calibration is not None:
            if not bits.int8 and not bits.fp8:
                raise ValueError("calibration= is for optimize(int8=True) or optimize(fp8=True)")
            bits = bits._replace(inputs=photo_inputs(self, calibration))
        return bits if bits.int8 or bits.fp8 else _Bits()

    def _is_current(self, bits: _Bits) -> bool:
        now = self._optimized
        return now is not None and bits.are_of(now) and now.is_current(self)

    def _captures_graphs(self) -> bool:
        return cuda_graphs.can_capture(self.device)

    def _prepare_graphs(self, bits: _Bits) -> None:
        now, bits = self._optimized, bits._replace(int8=False)
        if not self._uses_graphs and not bits.fp8:
            self._optimized = None
            return
        graphed = isinstance(now, GraphedForward)
        if graphed == self._uses_graphs and self._is_current(bits):
            return
        self._optimized = None
        reason = cuda_graphs.why_not_captured(self)
        if reason:
            logger.info("dafast: optimize() changes nothing: %s", reason)
            return
        if now is None:  # later weights may be a caller's, as in `torch.func.functional_call`
            cuda_graphs.use_channels_last(self)
        quantized = None
        if bits.fp8:
            quantized = Fp8Forward(self, bits.inputs, bits.fp8 == "emulate")
        self._optimized = quantized
        if self._uses_graphs:
            machinery = cuda_graphs.new_machinery(self.device)
            self._optimized = GraphedForward(self, machinery, quantized)

    def prepare_inference(self, keep_weights: bool = True) -> None:
        """Optimizes the model as `optimize` does; each forward checks that this is current.

        Args:
            keep_weights: Whether the model is also used otherwise than for inference. If not, and
                if it is not optimized yet, the weights of each layer are freed when the layer is
                packed on a CPU: half the memory. The model then only serves `infer`, `predict` and
                the like, without hooks and outside of autocast; to train, save, copy, change or
                move it, load it again. Any other use raises a RuntimeError.
        """
        warn_if_slow(self.dtype, self.device)
        if self._optimized is not None:
            return
        if keep_weights or self._captures_graphs() or why_not_packed(self):
            self.optimize(keep_memory=False)
        else:
            with _freeing:
                if self._optimized is None:  # another thread has not done it meanwhile
                    self._optimized = OptimizedForward(self, keep_weights=False)
            return_freed_memory()

    def train(self, mode: bool = True) -> Self:
        """As `torch.nn.Module.train`; training gets the memory of the CUDA graphs."""
        if mode and isinstance(self._optimized, GraphedForward | Fp8Forward):
            self._optimized.expire()
        return super().train(mode)

    def _may_be_optimized(self) -> bool:
        """Whether a call now may use another forward than that of the modules."""
        if self._optimized is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if is_autocast_on(self.device.type) or torch.jit.is_tracing():
            return False
        in_transform = torch._C._functorch.peek_interpreter_stack() is not None
        return not (in_transform or nn.modules.module._has_any_global_hook())

    def _optimized_now(self) -> OptimizedForward | GraphedForward | Fp8Forward | None:
        """What may replace the modules for a call now, for the weights and settings as they are."""
        now = self._optimized
        if now is None or not self._may_be_optimized() or now.is_hooked():
            return None
        if not now.is_current(self):
            self.optimize(keep_memory=False)
            now = self._optimized
            if now is None or now.is_hooked():
                return None
        return None if now.why_not() else now

    def _fast_forward(self, x: Tensor | Sequence[Tensor]) -> Callable[[Tensor], Tensor] | None:
        if not self._may_be_optimized():
            return None
        now = self._optimized
        if isinstance(now, OptimizedForward):
            now = self._optimized_now()  # graphs, if the model has moved to a GPU
        if now is None or isinstance(now, OptimizedForward):
            return now
        if type(x) is not Tensor:  # of mixed sizes, for which there is no graph
            return None
        return lambda image: self._run_images(self._run_modules, torch.clone, image)

    def _run_images(
        self, modules: Callable[..., Any], read: Callable[[Any], _T], image: Tensor, *part: str
    ) -> _T:
        """As `_run_fast` with images, or clips, as the input."""
        dense = image.is_contiguous()
        last = not dense and image.ndim == 4
        last = last and image.is_contiguous(memory_format=torch.channels_last)
        kind = InputKind(tuple(image.shape), image.dtype, last, part)

        def fill(out: Tensor | None) -> Tensor:
            return image if out is None else out.copy_(image)

        return self._run_fast(modules, kind, fill, read, lambda: modules(image))

    def _run_fast(
        self,
        modules: Callable[..., Any],
        kind: InputKind,
        fill: Fill,
        read: Callable[[Any], _T],
        otherwise: Callable[[], _T],
    ) -> _T:
        """As `GraphedForward.run`; ``otherwise()`` where graphs and fp8 do not serve the call.

        For calls that `_may_be_optimized` allows. ``modules`` is `_run_modules` or a part of it.
        """
        now = self._optimized
        if isinstance(now, OptimizedForward):  # it checks the weights itself
            return otherwise()
        if isinstance(now, GraphedForward) and not now.why_not():
            for result in now.replay(self, kind, fill, read):
                return result
        now = self._optimized_now()
        if now is None or isinstance(now, OptimizedForward):
            return otherwise()
        return now.run(functools.partial(modules, blocks=now.blocks), kind, fill, read)

    def parts(self) -> tuple[Callable[..., list[Tensor]], Callable[..., Tensor]]:
        """As `DepthNetwork.parts`; from packed weights on a CPU, from graphs on a GPU."""
        now = self._optimized_now()
        if isinstance(now, OptimizedForward):
            return now.encode, now.decode
        if now is None:
            return super().parts()

        def modules(x: Tensor, blocks: Sequence[Any] | None = None) -> list[Tensor]:
            return self._encode(x, blocks)[0]

        return lambda x: self._run_images(modules, _clones, x, "encoder"), self._decode_clip

    def _decode_clip(
        self,
        taps: Sequence[Tensor],
        rows: int,
        columns: int,
        frames: int = 1,
        cache: FrameCache | None = None,
    ) -> Tensor:
        """`DPTHead.forward` of clips and streams, as `_run_fast`.

        The input of a graph is one tensor with the values of all taps and earlier states.
        """
        seen = [] if cache is None else cache.seen()
        first = cache is not None and not seen  # of a stream: it occurs once
        if first or not self._captures_graphs():
            return self.depth_head(taps, rows, columns, frames, cache)
        given = [*taps, *chain.from_iterable(seen)]
        shapes = [each.shape for each in given]
        sizes = [each.numel() for each in given]

        def fill(out: Tensor | None) -> Tensor:
            return torch.cat([each.flatten() for each in given], out=out)

        def modules(x: Tensor, blocks: Sequence[Any] | None = None) -> list[Tensor]:
            """The outputs, and the states of the new frame of a stream."""
            views = (each.view(s) for each, s in zip(x.split(sizes), shapes, strict=True))
            own = list(islice(views, len(taps)))
            states = FrameCache.of([list(islice(views, len(frame))) for frame in seen])
            out = self.depth_head(own, rows, columns, frames, states if seen else None)
            return [out, *states.new]

        part = ("decoder", rows, columns, frames, *shapes)
        kind = InputKind((sum(sizes),), taps[0].dtype, part=part)
        out, *states = self._run_fast(modules, kind, fill, _clones, lambda: modules(fill(None)))
        if cache is not None:
            cache.new = states
        return out

    def _forward_packed(
        self, images: Sequence[Tensor], blocks: Sequence[Any] | None = None
    ) -> list[Tensor]:
        now = self._optimized_now()
        if now is not None and not isinstance(now, OptimizedForward):
            blocks = now.blocks
        return super()._forward_packed(images, blocks)

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
            parent = functools.partial(super().predict_batch, shape, fill, read, sky)
            allowed = plain and not hooked and sky <= self.config.sky_head
            if not allowed or not self._may_be_optimized():
                return parent()

            def finish(maps: Tensor) -> _T:
                return read(self._finish_with_sky(maps) if sky else self._finish(maps))

            kind = InputKind(shape, self.dtype)
            return self._run_fast(self._run_modules, kind, fill, finish, parent)

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's layouts depend on the machine, graphs on addresses: a copy makes its own.
        return {**super().__getstate__(), "_optimized": None}


def _clones(tensors: list[Tensor]) -> list[Tensor]:
    return [each.clone() for each in tensors]


def _check_memory(model: nn.Module) -> None:
    """Refuses a model whose weights `prepare_inference` has freed and that has changed since.

    Raises:
        RuntimeError: If a weight is on the device "meta", but not all are.
    """
    on_meta = [weight.is_meta for weight in model.parameters()]
    if any(on_meta) and not all(on_meta):
        raise RuntimeError(f"{FREED}, and the model has changed since: load it again")
