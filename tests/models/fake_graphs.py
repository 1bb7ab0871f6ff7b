"""CUDA graphs on a CPU: what is captured is every operation, with the memory it was called with.

As on a GPU a replay runs no Python of the model, reads and writes the captured addresses, and the
graphs of one pool share the memory of their results: a replay destroys those of all others.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dafast
from dafast.models.cuda_graphs import Graph
from tests.tiny import TINY, tiny

FIVE = tiny(num_layers=5)  # one more than the decoder reads


def _tensors(result: Any) -> list[Tensor]:
    many = result if isinstance(result, tuple | list) else (result,)
    return [x for x in many if isinstance(x, Tensor)]


class _Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, list[Tensor]]] = []
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, _tensors(result)))
            before = {x.untyped_storage().data_ptr() for x in _tensors(args)}
            self.made += [
                x for x in _tensors(result) if x.untyped_storage().data_ptr() not in before
            ]
        return result


class FakeGraph:
    """One captured graph."""

    def __init__(self, pool: FakeMachinery, record: _Record, x: Tensor) -> None:
        self.pool, self.record, self.x = pool, record, x

    def poison(self) -> None:
        """Destroys what another graph of the pool may overwrite."""
        for x in self.record.made:
            if x.is_floating_point():
                x.fill_(float("nan"))

    @torch.no_grad()
    def replay(self) -> None:
        assert self.pool.inside == threading.get_ident(), "the memory is used out of turn"
        self.pool.replays += 1
        for graph in self.pool.graphs:
            graph.poison()
            if graph is not self:
                graph.x.fill_(float("nan"))
        for func, args, kwargs, results in self.record.calls:
            for old, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                if old is not new:
                    old.copy_(new)


class FakeMachinery:
    """A `dafast.models.cuda_graphs.Machinery` that counts."""

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.reason = ""  # why_not
        self.error: Exception | None = None  # of the next captures
        self.inside: int | None = None  # the thread whose turn it is
        self.graphs: list[FakeGraph] = []

    def why_not(self) -> str:
        return self.reason

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        assert self.inside is None, "two turns at once"
        self.inside = threading.get_ident()
        try:
            yield
        finally:
            self.inside = None

    def capture(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Graph:
        assert self.inside == threading.get_ident()
        if self.error is not None:
            raise self.error
        self.captures += 1
        run(x)
        static = torch.full_like(x, float("nan"))
        with _Record() as record:
            out = run(static)
        graph = FakeGraph(self, record, static)
        self.graphs.append(graph)
        graph.poison()  # a capture runs nothing
        return Graph(static, out, graph.replay)

    def reset(self) -> None:
        self.graphs.clear()


def make(config=TINY):
    model = dafast.DepthAnything(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # every bias, gamma and norm counts
            p += 0.1 * torch.randn_like(p)
    return model


def modules(model, x):
    """What the modules compute."""
    plain = copy.deepcopy(model)
    with torch.no_grad():
        return plain(x)


def images(batch=1, height=28, width=42):
    return torch.randn(batch, 3, height, width)


def photo(height, width):
    return np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)


def in_place(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)


def replaced_data(model):
    for p in model.parameters():
        p.data = p.data * 1.5


def predict_batch(model: Any, x: Tensor, sky: bool = False) -> Any:
    """`DepthNetwork.predict_batch` of a tensor; the result is the caller's own."""

    def fill(out: Tensor | None) -> Tensor:
        return x.clone() if out is None else out.copy_(x)

    return model.predict_batch(tuple(x.shape), fill, torch.clone, sky)
