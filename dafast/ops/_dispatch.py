"""Which implementation of an op serves a call, and why another was not taken.

An op has named backends in order of preference; ``reference`` is always the last and serves
everything. Each other backend says for a given call whether it can serve it, and why not. Left
alone, an op takes the first backend that can; `use_backend` forces one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

logger = logging.getLogger("dafast")

BACKENDS = ("reference", "cpp", "cuda", "triton", "sdpa", "xformers")
"""The backends that exist; see `available_backends` for the ones that an op has."""

_forced: ContextVar[str | None] = ContextVar("dafast_backend", default=None)


def _forced_backend() -> str | None:
    """The backend that `use_backend` names; `torch.compile` takes it as it is while tracing."""
    return _forced.get()


# What `torch.compiler.assume_constant_result` does, without its import of torch._dynamo: seconds.
_forced_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_transformed(x: Tensor) -> bool:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_gradtrackingtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return forward_ad.unpack_dual(x).tangent is not None


def why_transformed(*tensors: Tensor) -> str:
    """Why custom ops cannot serve what `torch.func` or forward mode is to differentiate.

    PyTorch refuses them within the former, and drops their tangents in the latter without a word.
    An empty string where nothing of the kind is going on.
    """
    if torch.compiler.is_compiling() or not any(map(_is_transformed, tensors)):
        return ""
    return "has no derivatives for torch.func and forward-mode differentiation"


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve the call."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        fn: The implementation; it takes exactly the arguments of the op's public function.
        supports: Takes the same arguments and returns whether ``fn`` can serve them, and if not
            the reason.
    """

    fn: Callable[..., Any]
    supports: Callable[..., tuple[bool, str]] = lambda *args, **kwargs: (True, "")


class Op:
    """An op with its backends.

    Args:
        name: Name of the public function.
        reference: The specification in plain PyTorch.
        backends: Other implementations, the preferred one first.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Any],
        backends: dict[str, Backend] | None = None,
    ) -> None:
        self.name = name
        self.backends = {**(backends or {}), "reference": Backend(reference)}
        unknown = set(self.backends) - set(BACKENDS)
        if unknown:
            raise ValueError(f"op {name}: unknown backends {sorted(unknown)}")
        self._logged: set[tuple[str, str]] = set()
        OPS[name] = self

    def select(self, *args: Any, **kwargs: Any) -> str:
        """Returns the name of the backend that serves a call with these arguments.

        Raises:
            BackendError: If `use_backend` names a backend of this op that cannot serve them.
        """
        forced = _forced_backend()
        if forced is not None and forced in self.backends:
            ok, reason = self.backends[forced].supports(*args, **kwargs)
            if not ok:
                raise BackendError(f"dafast.ops.{self.name}: backend {forced!r}: {reason}")
            return forced
        for name, backend in self.backends.items():
            ok, reason = backend.supports(*args, **kwargs)
            if ok:
                return name
            if not torch.compiler.is_compiling() and (name, reason) not in self._logged:
                self._logged.add((name, reason))
                logger.info("dafast.ops.%s: backend %s not taken: %s", self.name, name, reason)
        raise AssertionError("the reference serves every call")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.backends[self.select(*args, **kwargs)].fn(*args, **kwargs)


OPS: dict[str, Op] = {}
"""Every op by name."""


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend within a ``with`` block, for tests and benchmarks.

    An op that has no backend of that name keeps its automatic choice; an op that has it but
    cannot serve the call with it raises `BackendError` with the reason. The choice holds for the
    current thread; a function that `torch.compile` has traced keeps the one it was traced with.

    Args:
        name: One of ``reference``, ``cpp``, ``cuda``, ``triton``, ``sdpa``, ``xformers``.

    Raises:
        ValueError: If no such backend exists.
    """
    if name not in BACKENDS:
        raise ValueError(f"no backend {name!r}; there are: {', '.join(BACKENDS)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def available_backends() -> dict[str, list[str]]:
    """Returns the backends of every op, the preferred one first."""
    return {name: list(op.backends) for name, op in OPS.items()}
