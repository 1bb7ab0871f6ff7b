"""The forward on a GPU as CUDA graphs; `DepthAnything.optimize` builds it.

One photo takes some 250 launches, and Python needs longer for them than a GPU for their work. A
graph is all of them in one launch. Each graph is of one size of the input and is captured when this
size is seen for the second time, so that a folder of odd sizes captures nothing. A video through
temporal modules has graphs of the encoder and of the decoder, because windows share frames.

A graph reads the weights where they are: it is right after any change in place, however it is made
(`Tensor.data`, fused optimizers, ...), because it keeps nothing that is derived from them. So it
also resizes the position embeddings itself, in a few short launches, unless the input has the size
of the training. Other modules, settings or weights at other addresses are seen by `Structure`.
Graphs in fp8 hold copies of the weights anyway, and keep the resized position embeddings, too.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..ops import forced_backend
from .fp8_forward import Fp8Forward
from .network import DepthNetwork
from .snapshot import Structure, why_not_as_built
from .vision_transformer import PositionsBySize, keep_positions

logger = logging.getLogger("dafast")

MAX_GRAPHS = 8
"""Graphs that a model keeps; the one whose last use is the longest ago makes room."""

_MAX_SEEN = 64
"""Sizes that are remembered without a graph."""

_capturing = threading.Lock()  # a capture waits for the device, which would end another one

_T = TypeVar("_T")
_Forward = Callable[[Tensor], Any]


class Graph(NamedTuple):
    """A captured graph: its input and its result, in memory that all graphs share.

    `positions` is memory that the graph reads, so it has to live as long.
    """

    x: Tensor
    out: Any
    replay: Callable[[], None]
    positions: PositionsBySize | None = None


class InputKind(NamedTuple):
    """The input of a graph: images (B, 3, H, W), or what a part of the network takes.

    `part` is () for the whole network, else the name of the part and its other arguments.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = False
    part: tuple[Any, ...] = ()


Fill = Callable[[Tensor | None], Tensor]
"""Writes the input into the given memory, or into new memory, and returns it."""


class Machinery(Protocol):
    """Captures and replays graphs on one device."""

    def why_not(self) -> str:
        """The reason why no graph can run now, or ""."""
        ...

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """A block that uses the shared memory: after all earlier ones, on any stream.

        Input and result of a graph are valid within a turn, up to the replay of another graph.
        """
        ...

    def capture(self, run: _Forward, x: Tensor) -> Graph:
        """Captures the launches of ``run`` for inputs like ``x``; within a turn."""
        ...

    def reset(self) -> None:
        """Gives the shared memory back, once no graph is left."""
        ...


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps the garbage collector from unloading a kernel, which would invalidate a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CudaMachinery:
    """`torch.cuda.CUDAGraph` on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        # Of all captures: only then can graphs share the memory of a pool.
        self.stream = torch.cuda.Stream(device)
        self.done = torch.cuda.Event()

    def why_not(self) -> str:
        """As `Machinery.why_not`."""
        with torch.cuda.device(self.device):
            capturing = torch.cuda.is_current_stream_capturing()
        return "a CUDA graph is being captured" if capturing else ""

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """As `Machinery.turn`."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self.done)
            try:
                yield
            finally:
                self.done.record(stream)

    def capture(self, run: _Forward, x: Tensor) -> Graph:
        """As `Machinery.capture`."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            # Compiles kernels and chooses algorithms, which a capture cannot. A copy has the
            # alignment of the graph's input, on which they depend; a caller's images may not.
            run(x.clone())
        current.wait_stream(self.stream)
        try:
            # "thread_local": other threads may allocate memory meanwhile.
            with (
                _capturing,
                _uncollected(),
                torch.cuda.graph(
                    graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
                ),
            ):
                static = torch.empty_like(x)
                out = run(static)
        except BaseException:
            torch.cuda.set_stream(current)
            self.pool = torch.cuda.graph_pool_handle()  # the old one may be left half open
            raise
        return Graph(static, out, graph.replay)

    def reset(self) -> None:
        """As `Machinery.reset`."""
        self.pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()


def can_capture(device: torch.device) -> bool:
    """Whether graphs can be captured on a device."""
    return device.type == "cuda"


def new_machinery(device: torch.device) -> Machinery:
    """The machinery for a device that can capture graphs."""
    return CudaMachinery(device)


def why_not_captured(model: DepthNetwork) -> str:
    """The reason why the forward of a model cannot be captured, or "" if it can."""
    for name, weight in model.named_parameters():
        if type(weight.data) is not Tensor:
            return f"graphs need plain tensors as weights; {name} is a {type(weight.data).__name__}"
        if weight.device != model.device:
            return f"graphs need all weights on one device; {name} is on {weight.device}"
    for name, module in model.named_modules():
        if name and module._compiled_call_impl is not None:
            return f"{name} is compiled by torch.compile"
    return why_not_as_built(model)


def use_channels_last(model: DepthNetwork) -> None:
    """Lays the decoder's kernels out as cuDNN reads them with maps of the encoder's layout.

    Otherwise cuDNN copies 30 of them in every forward. The values stay; a weight moves to other
    memory the first time.
    """
    for name, weight in model.named_parameters():
        if weight.ndim == 4 and not name.startswith("pretrained.") and not weight.is_inference():
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


class GraphedForward:
    """`DepthNetwork.forward` without gradients, or a part of it, from graphs.

    It has no reference to the model, which owns it.

    Args:
        model: A model for which `why_not_captured` returns "".
        machinery: For the model's device.
        quantized: The forward in fp8, if graphs are to be of that.
    """

    int8 = False

    def __init__(
        self, model: DepthNetwork, machinery: Machinery, quantized: Fp8Forward | None = None
    ) -> None:
        self._quantized = quantized
        self.fp8 = False if quantized is None else quantized.fp8
        self.inputs = () if quantized is None else quantized.inputs
        self.blocks = None if quantized is None else quantized.blocks
        self._structure = Structure(model)
        self._machinery = machinery
        self._graphs: OrderedDict[Any, Graph] = OrderedDict()
        self._seen: OrderedDict[Any, str] = OrderedDict()
        self._lock = threading.Lock()

    def is_current(self, model: DepthNetwork) -> bool:
        """Whether the model still has the modules, settings and weights that graphs hold."""
        if self._quantized is not None:
            return self._quantized.is_current(model)
        return self._structure.is_of(model)

    def is_hooked(self) -> bool:
        """As `Structure.is_hooked`."""
        return self._structure.is_hooked()

    def why_not(self) -> str:
        """The reason why no graph can run now, or ""."""
        if torch._C._len_torch_dispatch_stack():  # FakeTensorMode, a counter of operations, ...
            return "a TorchDispatchMode has to see the operations"
        return self._machinery.why_not()

    def replay(
        self, model: DepthNetwork, kind: InputKind, fill: Fill, read: Callable[[Any], _T]
    ) -> list[_T]:
        """As `run`, from a graph that exists; the device computes while the host checks the model.

        The check takes the host a tenth of a millisecond and more. Only hooks, which stay, and the
        addresses of weights come before the launch: a graph must not read freed memory.

        Returns:
            The result in a list; an empty list if there is no graph or the model has changed.
        """
        if self.is_hooked():
            return []
        with self._lock, torch.inference_mode(False), torch.no_grad():
            key = (*kind, *_arithmetic())
            graph = self._graphs.get(key)
            if graph is None or not self._structure.has_weights_in_place():
                return []
            self._graphs.move_to_end(key)
            with self._machinery.turn():
                fill(graph.x)
                graph.replay()
                return [read(graph.out)] if self.is_current(model) else []

    def run(self, forward: _Forward, kind: InputKind, fill: Fill, read: Callable[[Any], _T]) -> _T:
        """Computes ``read(forward(fill(None)))``, from a graph if there is one.

        Args:
            forward: The model's forward, from images (B, 3, H, W) to (B, C, H, W), or a part of it.
            kind: What ``fill`` returns.
            fill: Writes the input into the given memory, or into new memory, and returns it.
            read: Gets the result in memory that the next call overwrites, so it must return
                copies. It must not call the model, and neither must ``fill``.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            # Else static tensors would be inference tensors, which only inference mode can write.
            graph, x = self._graph_for(forward, kind, fill)
            if graph is not None:
                with self._machinery.turn():
                    if x is None:
                        fill(graph.x)
                    else:
                        graph.x.copy_(x)
                    graph.replay()
                    return read(graph.out)
        x = fill(None) if x is None else x
        try:
            return read(forward(x))
        except torch.OutOfMemoryError:
            if not self.release():
                raise
        return read(forward(x))  # with the memory of the graphs

    def expire(self) -> None:
        """Drops all graphs, and has quantised weights made again."""
        self.release()
        if self._quantized is not None:
            self._quantized.expire()

    def release(self) -> bool:
        """Drops all graphs and their memory until they are captured again; False if it had none."""
        with self._lock:
            if not self._graphs:
                return False
            self._graphs.clear()
            self._machinery.reset()
        return True

    def _graph_for(
        self, forward: _Forward, kind: InputKind, fill: Fill
    ) -> tuple[Graph | None, Tensor | None]:
        """The graph for a kind of input, and the input if it had to be made."""
        key = (*kind, *_arithmetic())
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            return graph, None
        if key not in self._seen:
            self._seen[key] = ""
            if len(self._seen) > _MAX_SEEN:
                self._seen.popitem(last=False)
            return None, None
        if self._seen[key]:  # captured before, without success
            return None, None
        if len(self._graphs) >= MAX_GRAPHS:
            self._graphs.popitem(last=False)
        layout = torch.channels_last if kind.channels_last else torch.contiguous_format
        x = fill(None)
        try:
            with self._machinery.turn():
                static = x.contiguous(memory_format=layout)
                graph = self._graphs[key] = self._capture(forward, static)
        except RuntimeError as error:  # out of memory, too: the modules need less
            self._seen[key] = str(error) or type(error).__name__
            logger.info("dafast: no CUDA graph for %s: %s", kind.shape, self._seen[key])
        return graph, x

    def _capture(self, forward: _Forward, x: Tensor) -> Graph:
        if self._quantized is None:
            return self._machinery.capture(forward, x)
        kept: PositionsBySize = {}  # `capture` runs the forward once before it captures it

        def run(x: Tensor) -> Tensor:
            with keep_positions(kept):
                return forward(x)

        return self._machinery.capture(run, x)._replace(positions=kept)


def _arithmetic() -> tuple[Any, ...]:
    """The global settings that choose how products are computed."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        forced_backend(), cuda.matmul.fp32_precision,
        cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )  # fmt: skip
