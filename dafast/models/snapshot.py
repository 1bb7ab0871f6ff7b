"""The state that the results of a model depend on, and the check whether it has changed."""

from __future__ import annotations

import functools
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..devices import on_meta
from .network import DepthNetwork

NO_EFFECT = ("training", "checkpoint_activations", "feeds_product", "inplace")
"""Settings without an effect on inference."""

_PLAIN = (bool, int, float, str, tuple, type(None))

_READ = ("eps", "max_depth", "position_embedding")
"""Settings that every forward reads from the modules; all others must be as built."""

_COLUMNS = 4099
"""A prime above the rows of every weight, so that no two rows of a weight share all columns."""


def _setting_names(module: nn.Module) -> list[str]:
    """Names of a module's plain attributes that have an effect on inference."""
    return [
        name
        for name, value in vars(module).items()
        if name[0] != "_" and name not in NO_EFFECT and isinstance(value, _PLAIN)
    ]


def settings(module: nn.Module) -> dict[str, Any]:
    """What a module computes apart from its weights: its class, its plain attributes, its parts."""
    values = {name: vars(module)[name] for name in _setting_names(module)}
    weights = [name for name, weight in module._parameters.items() if weight is not None]
    return {"class": type(module).__name__, "type": type(module), "weights": weights, **values}


@functools.cache
def _built(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Settings of every module that a configuration builds."""
    with on_meta():
        model = DepthNetwork(config)
    return {name: settings(child) for name, child in model.named_modules() if name}


def why_not_as_built(model: DepthNetwork) -> str:
    """Names a part that the configuration does not build, or "": it may compute something else."""
    expected = _built(model.config)
    found = {
        name: settings(child) for name, child in model.named_modules(remove_duplicate=False) if name
    }
    nothing = {"class": "nothing"}
    for name in expected | found:
        now, built = found.get(name, nothing), expected.get(name, nothing)
        for key in now | built:
            if key not in _READ and now.get(key) != built.get(key):
                what = f"{name} is" if key in ("class", "type") else f"{name}.{key} is"
                key = "class" if key == "type" else key
                return f"the model is not as built: {what} {now.get(key)}, not {built.get(key)}"
    return ""


class Structure:
    """The modules of a model, their settings, and the memory of their weights.

    It does not look at values: `Snapshot` adds them. Every call of a fast forward asks `is_of`, so
    it makes no Python call for each module.

    Args:
        model: A module with a ``config``.
    """

    def __init__(self, model: nn.Module) -> None:
        parts = [module for module in model.modules() if module is not model]
        self._config = model.config
        self._parts, self._types = parts, [type(part) for part in parts]
        self._attributes = [vars(part) for part in parts]
        self._sizes = [len(attributes) for attributes in self._attributes]
        self._children: list[dict[str, Any]] = [m._modules for m in (model, *parts)]
        self._child_sizes = [*map(len, self._children)]
        self._parents = [found for found in self._children if found]
        self._expected_children = self._present_children()
        self._weights: list[dict[str, Any]] = [
            *(part._parameters for part in parts), *(part._buffers for part in parts)
        ]  # fmt: skip
        self._weight_counts = [*map(len, self._weights)]
        self._filled = [found for found in self._weights if found]
        self._places = self._places_of_weights()
        names = [(_setting_names(part), vars(part)) for part in parts]
        self._readers = [(itemgetter(*each), found) for each, found in names if each]
        self._settings = [read(found) for read, found in self._readers]
        self._hooks = [h for part in parts for h in (part._forward_hooks, part._forward_pre_hooks)]

    def is_of(self, model: nn.Module) -> bool:
        """Whether a model still has these modules, settings and weights, at the same addresses."""
        if model._modules is not self._children[0]:
            return False
        if model.config is not self._config and model.config != self._config:
            return False
        return (
            [*map(len, self._attributes)] == self._sizes
            and [*map(type, self._parts)] == self._types
            and [*map(len, self._children)] == self._child_sizes
            and self._present_children() == self._expected_children  # modules equal only themselves
            and self._has_settings()
            and [*map(len, self._weights)] == self._weight_counts
            and self._places_of_weights() == self._places
        )

    def has_weights_in_place(self) -> bool:
        """Whether the weights are in the same memory; the quick part of `is_of`."""
        return [*map(Tensor.data_ptr, self._present_weights())] == self._places[0]

    def is_hooked(self) -> bool:
        """Whether a module has hooks, or another function instead of its `forward`."""
        return any(self._hooks) or any("forward" in found for found in self._attributes)

    def _has_settings(self) -> bool:
        try:
            return [read(found) for read, found in self._readers] == self._settings
        except KeyError:  # one attribute instead of another
            return False

    def _present_children(self) -> list[Any]:
        return [*chain.from_iterable(map(dict.values, self._parents))]

    def _places_of_weights(self) -> tuple[list[int], ...]:
        """Addresses and layouts: `Tensor.data = ...` replaces the memory of the same parameter."""
        weights = self._present_weights()
        # Lists of tuples would have the garbage collector run at every call.
        return [*map(Tensor.data_ptr, weights)], [*map(Tensor.is_contiguous, weights)]

    def _present_weights(self) -> list[Any]:
        slots = chain.from_iterable(map(dict.values, self._filled))
        return [w for w in slots if w is not None]


class Snapshot(Structure):
    """The structure of a model and the values of its weights when they were packed.

    PyTorch counts a version of each weight, but `Tensor.data`, numpy and fused optimizers write
    without counting. So every value is compared too: small weights as they are, large ones by sums
    over columns, which no exchange of rows leaves as they were: 10 ms for 100 MB of weights.
    The snapshot keeps the weights alive, so that no other weight can take their address. Values are
    compared on the CPU only.

    Args:
        model: A module with a ``config``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._tensors = list(model.parameters())
        self._versions = self._count_versions()
        self._alive = [p if p.is_meta else p.detach() for p in self._tensors]
        weights = [w for w in self._alive if w.device.type == "cpu"]
        memory = [_memory_of(w) for w in weights]
        self._with_gaps = [w for w, m in zip(weights, memory, strict=True) if m is None]
        self._small: list[np.ndarray] = []
        self._large: list[np.ndarray] = []
        for content in memory:
            if content is not None:
                self._add(content)
        self._values = self._fingerprint()

    def is_of(self, model: nn.Module) -> bool:
        """Whether nothing has changed since that affects the results of a model."""
        return (
            super().is_of(model)
            and self._count_versions() == self._versions
            and self._values == self._fingerprint()
        )

    def _count_versions(self) -> list[int]:
        return [0 if weight.is_inference() else weight._version for weight in self._tensors]

    def _add(self, content: np.ndarray) -> None:
        """Prepares the views of a weight's memory, uint8 (N,)."""
        row = 8 * _COLUMNS
        end = len(content) // row * row
        if end > 4 * row:
            self._large.append(content[:end].view(np.int64).reshape(-1, _COLUMNS))
            content = content[end:]
        self._small.append(content)

    def _fingerprint(self) -> bytes:
        """Integers, in which NaN equals NaN; sums modulo 2^64 still tell any single change."""
        parts: list[Any] = [*self._small, *(_memory_of(w.contiguous()) for w in self._with_gaps)]
        return b"".join(parts + [np.add.reduce(table, axis=0) for table in self._large])


def _memory_of(weight: Tensor) -> np.ndarray | None:
    """The memory of a weight as uint8 (N,), shared with it; None if it has gaps."""
    if not torch.ops.aten.is_non_overlapping_and_dense(weight):
        return None
    return weight.as_strided((weight.numel(),), (1,)).view(torch.uint8).numpy()
