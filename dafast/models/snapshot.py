"""The state of a model at one time, to tell whether its weights or settings have changed since."""

from __future__ import annotations

from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NO_EFFECT = ("training", "checkpoint_activations", "feeds_product", "inplace")
"""Settings without an effect on inference."""

_COLUMNS = 4099
"""A prime above the rows of every weight, so that no two rows of a weight share all columns."""


def settings(module: nn.Module) -> dict[str, Any]:
    """What a module computes apart from its weights: its class, its plain attributes, its parts."""
    plain = (bool, int, float, str, tuple, type(None))
    values = {
        name: value
        for name, value in vars(module).items()
        if name[0] != "_" and name not in NO_EFFECT and isinstance(value, plain)
    }
    weights = [name for name, weight in module._parameters.items() if weight is not None]
    return {"class": type(module).__name__, "type": type(module), "weights": weights, **values}


class Snapshot:
    """The weights and settings of a model when it was packed.

    PyTorch counts a version of each weight, but `Tensor.data`, numpy and fused optimizers write
    without counting. So every value is compared too: small weights as they are, large ones by sums
    over columns, which no exchange of rows leaves as they were: 10 ms for 100 MB of weights.
    The snapshot keeps the weights alive, so that no other weight can take their address. Values are
    compared on the CPU only.

    Args:
        model: A module with a ``config``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts = [_Part(module) for module in model.modules() if module is not model]
        self._config = model.config
        self._state = self._state_of(model)
        weights = [p.detach() for p in model.parameters()]
        self._alive = weights
        weights = [w for w in weights if w.device.type == "cpu"]
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
        return self._same_state(model) and self._values == self._fingerprint()

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

    def _same_state(self, model: nn.Module) -> bool:
        """Compares by identity first, and by value only if something is another object."""
        if model.config is not self._config and model.config != self._config:
            return False
        parts = [module for module in model.modules() if module is not model]
        if len(parts) == len(self._parts) and all(
            part.is_unchanged(module) for part, module in zip(self._parts, parts, strict=True)
        ):
            return True
        return self._state == self._state_of(model)

    @staticmethod
    def _state_of(model: nn.Module) -> list[Any]:
        weights = [_identity(p) for p in model.parameters()]
        return [*weights, *map(settings, model.modules())]


class _Part:
    """The attributes and the weights of a module, as objects."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.type = module, type(module)
        self.values = list(vars(module).values())
        self.weights = list(module._parameters.values())
        self.identities = [w if w is None else _identity(w) for w in self.weights]

    def is_unchanged(self, module: nn.Module) -> bool:
        values, weights = vars(module).values(), module._parameters.values()
        return (
            module is self.module
            and type(module) is self.type
            and len(values) == len(self.values)
            and all(map(is_, values, self.values))
            and len(weights) == len(self.weights)
            and all(map(is_, weights, self.weights))
            and self.identities == [w if w is None else _identity(w) for w in weights]
        )


def _identity(weight: Tensor) -> tuple[int, int]:
    """Address and version: `Tensor.data = ...` replaces the memory of the same parameter."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _memory_of(weight: Tensor) -> np.ndarray | None:
    """The memory of a weight as uint8 (N,), shared with it; None if it has gaps."""
    if not torch.ops.aten.is_non_overlapping_and_dense(weight):
        return None
    return weight.as_strided((weight.numel(),), (1,)).view(torch.uint8).numpy()
