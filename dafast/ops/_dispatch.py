"""Which implementation of an op serves a call, and why another one does not.

An op has named backends in order of preference; ``reference`` is always the last and serves every
call. An op takes the first backend that can serve the call and should; `use_backend` forces one
that can.
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

BACKENDS = (
    "reference", "cpp", "cuda", "triton", "sdpa", "xformers", "flash_attn", "scaled_mm",
)  # fmt: skip
"""The backends that exist; see `available_backends` for the ones that an op has."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels are compiled for; they compute in float32."""

_forced: ContextVar[str | None] = ContextVar("dafast_backend", default=None)


def _context() -> tuple[str | None, bool, bool]:
    """What surrounds a call; a constant while `torch.compile` traces.

    Returns:
        The backend that `use_backend` names, whether the call becomes part of a program that has
        to run without dafast's kernels, and whether `torch.func` or forward mode is at work.
    """
    traced = torch._C._get_tracing_state() is not None
    # `torch.compiler.is_exporting()`, without a Python call in every call of an op.
    exported = traced or torch.compiler._is_exporting_flag
    functorch = torch._C._functorch.peek_interpreter_stack() is not None
    # Outside of a `dual_level` no tensor has a tangent.
    return _forced.get(), exported, functorch or forward_ad._current_level >= 0


# What `torch.compiler.assume_constant_result` does, without its import of torch._dynamo: seconds.
_context._dynamo_marked_constant = True  # type: ignore[attr-defined]


_MAX_CHOICES = 4096


def _key(args: tuple[Any, ...], forced: str | None) -> tuple[Any, ...] | None:
    """All that the choice of a backend depends on within a process, None if it is not known."""
    parts: list[Any] = [forced, torch.is_grad_enabled()]
    for arg in args:
        many = isinstance(arg, (list, tuple))  # images, geometries, the parts of a weight
        parts.append(len(arg) if many else None)
        for x in arg if many else (arg,):
            if not isinstance(x, Tensor):
                parts.append(x)
                continue
            if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
                return None
            parts += (x.dtype, x.device, x.shape, x.stride(), x.requires_grad)
            if x.dtype is torch.float32:
                parts.append(torch.backends.cuda.matmul.fp32_precision)
    key = tuple(parts)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def forget_choices() -> None:
    """Forgets which backends served which calls, where a reason of one of them has changed."""
    for op in OPS.values():
        op._choices.clear()


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve the call."""


Check = Callable[..., str]
"""Takes the arguments of a call and returns "" or the reason against a backend."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an op. Its functions take the arguments of `Op.__call__`.

    Attributes:
        fn: The implementation.
        supports: Whether it can serve the call; None if it can serve every call.
        preferred: Whether it should serve the call unasked; None for always. Asked first, so it
            has to take any arguments of the op.
        custom: Whether it is a custom op, which `torch.func` and forward mode cannot
            differentiate.
    """

    fn: Callable[..., Any]
    supports: Check | None = None
    preferred: Check | None = None
    custom: bool = False


class Op:
    """An op with its backends.

    Args:
        name: Name of the public function.
        reference: The specification in plain PyTorch.
        backends: Other implementations, the preferred one first.
    """

    def __init__(
        self, name: str, reference: Callable[..., Any], backends: dict[str, Backend] | None = None
    ) -> None:
        self.name = name
        self.backends = {**(backends or {}), "reference": Backend(reference)}
        unknown = set(self.backends) - set(BACKENDS)
        if unknown:
            raise ValueError(f"op {name}: unknown backends {sorted(unknown)}")
        self._logged: set[tuple[str, str]] = set()
        self._choices: dict[tuple[Any, ...] | None, str] = {}
        OPS[name] = self

    def select(self, *args: Any) -> str:
        """Returns the name of the backend that serves a call with these positional arguments.

        Raises:
            BackendError: If `use_backend` names a backend of this op that cannot serve them.
        """
        forced, exported, transforms = _context()
        key = None
        if not (exported or transforms or torch.compiler.is_dynamo_compiling()):
            key = _key(args, forced)
            if key in self._choices:
                return self._choices[key]
        name = self._choose(args, forced, exported, transforms)
        if key is not None:
            if len(self._choices) >= _MAX_CHOICES:
                self._choices.clear()
            self._choices[key] = name
        return name

    def _choose(
        self, args: tuple[Any, ...], forced: str | None, exported: bool, transforms: bool
    ) -> str:
        no_custom = _transformed(args) if transforms else ""
        if forced is not None and forced in self.backends:
            backend = self.backends[forced]
            reason = (no_custom if backend.custom else "") or (
                backend.supports(*args) if backend.supports else ""
            )
            if reason:
                raise BackendError(f"dafast.ops.{self.name}: backend {forced!r}: {reason}")
            return forced
        if exported:
            return "sdpa" if "sdpa" in self.backends else "reference"
        for name, backend in self.backends.items():
            reason = backend.preferred(*args) if backend.preferred else ""
            if not reason and backend.custom:
                reason = no_custom
            if not reason and backend.supports:
                reason = backend.supports(*args)
            if not reason:
                return name
            if not torch.compiler.is_dynamo_compiling() and (name, reason) not in self._logged:
                self._logged.add((name, reason))
                logger.info("dafast.ops.%s: backend %s not taken: %s", self.name, name, reason)
        raise AssertionError("the reference serves every call")

    def __call__(self, *args: Any) -> Any:
        return self.backends[self.select(*args)].fn(*args)


OPS: dict[str, Op] = {}
"""Every op by name."""


def wrong_dtype(*dtypes: torch.dtype) -> str:
    """The check of the dtypes that kernels are compiled for."""
    for dtype in dtypes:
        if dtype not in FLOATS:
            return f"takes float32, float16 and bfloat16, not {dtype}"
    return ""


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records a call with these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


def kernel_backend(
    fn: Callable[..., Any],
    available: Callable[[torch.device], str],
    limits: Check,
    preferred: Check | None = None,
    *,
    backward: bool = True,
) -> Backend:
    """A backend of the project's own kernels.

    Args:
        fn: The implementation, a custom op.
        available: Whether there are kernels for a device here.
        limits: Whether the kernels can serve the call, if there are any.
        preferred: Whether they should serve it unasked.
        backward: Whether they have a backward.
    """

    def supports(*args: Any) -> str:
        device = None
        for x in args[0] if isinstance(args[0], list) else args:
            if isinstance(x, Tensor):
                if device is None:
                    device = x.device
                elif x.device != device:
                    return f"needs all tensors on one device; got {device} and {x.device}"
                if not backward and torch.is_grad_enabled() and x.requires_grad:
                    return "has no backward; call it under torch.no_grad()"
        assert device is not None
        return available(device) or limits(*args)

    return Backend(fn, supports, preferred, custom=True)


def _transformed(args: tuple[Any, ...]) -> str:
    """The check of custom ops, which `torch.func` and forward mode cannot differentiate.

    PyTorch refuses them in `torch.func`, and silently drops their tangents in forward mode.
    """
    if torch.compiler.is_dynamo_compiling():
        return ""
    functorch = torch._C._functorch
    for x in args[0] if isinstance(args[0], list) else args:
        if not isinstance(x, Tensor):
            continue
        while functorch.is_functorch_wrapped_tensor(x):
            if functorch.is_gradtrackingtensor(x):
                return "has no derivatives for torch.func and forward-mode differentiation"
            x = functorch.get_unwrapped(x)
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
            return "has no derivatives for torch.func and forward-mode differentiation"
    return ""


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend within a ``with`` block, for tests and benchmarks.

    An op that has no backend of that name keeps its automatic choice; an op that has it but
    cannot serve the call with it raises `BackendError` with the reason. The choice holds for the
    current thread; a function that `torch.compile` has traced keeps the one it was traced with.

    Args:
        name: One of ``reference``, ``cpp``, ``cuda``, ``triton``, ``sdpa``, ``xformers``,
            ``flash_attn``, ``scaled_mm``.

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


def forced_backend() -> str | None:
    """Returns the backend that `use_backend` names around this call."""
    return _forced.get()


def available_backends() -> dict[str, list[str]]:
    """Returns the backends of every op, the preferred one first."""
    return {name: list(op.backends) for name, op in OPS.items()}
