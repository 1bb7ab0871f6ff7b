"""Lazy import of the compiled extension ``dafast._C``, and why it is missing."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._warnings import PerformanceWarning, warn
from ._dispatch import Backend, Check, kernel_backend, wants_gradient

MIN_ELEMENTS = 16384
"""What `saves_time` calls small."""

HOW_TO_BUILD = (
    "with torch, pybind11, ninja and a C++ compiler present, reinstall dafast with "
    "`pip install --no-build-isolation`; -v shows what the compiler says"
)


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """Returns the module, or None and the reason; tried once in a process."""
    if importlib.util.find_spec("dafast._C") is None:
        return None, f"the C++ extension was not built ({HOW_TO_BUILD})"
    try:
        return importlib.import_module("dafast._C"), ""
    except (Exception, SystemExit) as error:  # a broken installation can raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())
        reason = f"the C++ extension is installed, but its import fails ({text})"
        if "DAFAST_CPU_CAPABILITY" not in str(error):
            # Usually it was built with a newer PyTorch, or for another system.
            reason += f"; rebuild it: {HOW_TO_BUILD}"
        warn(PerformanceWarning, reason)
        return None, reason


def load() -> ModuleType | None:
    """Returns ``dafast._C``, imported on the first call, or None where it is missing.

    Importing it registers the ops ``torch.ops.dafast_C.*``.
    """
    return _load()[0]


def why_missing() -> str:
    """Returns why `load` gives None and the remedy; an empty string if it does not."""
    return _load()[1]


_DEVICES = {"cpp": "cpu", "cuda": "cuda"}


def why_not(backend: str, op: str = "", device: torch.device | None = None) -> str:
    """Returns why no call can be served by ``"cpp"`` or ``"cuda"``; an empty string if one can.

    Args:
        backend: ``"cpp"`` or ``"cuda"``.
        op: Name of an op: whether the extension has it is asked too.
        device: Device of the tensors: whether the backend runs there is asked too.
    """
    if device is not None and device.type != _DEVICES[backend]:
        return f"runs on {_DEVICES[backend].upper()} tensors; the input is on {device}"
    module, reason = _load()
    if module is None:
        return reason
    if backend == "cuda" and not module.cuda:
        return (
            "the C++ extension was built without CUDA (it takes a CUDA build of PyTorch and its "
            "toolkit, nvcc)"
        )
    if op and op not in module.ops:
        return f"the C++ extension is of an older version, without {op}: {HOW_TO_BUILD}"
    return ""


PORTABLE_FLOAT = ("portable", "dotprod", "i8mm")
"""Values of `cpu_capability` for which float products run on portable instructions."""


def cpu_capability() -> str:
    """Returns the instruction set of the CPU kernels; an empty string without the extension."""
    module, _ = _load()
    return module.cpu_capability() if module else ""


# Constants while torch.compile traces; see `_dispatch._context`.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]
cpu_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def backend(
    kind: str,
    op: str,
    fn: Callable[..., Any],
    limits: Check,
    preferred: Check | None = None,
    *,
    backward: bool = True,
) -> Backend:
    """`kernel_backend` with the kernels ``"cpp"`` or ``"cuda"`` of an op of the extension."""
    available = functools.partial(why_not, kind, op)
    return kernel_backend(fn, available, limits, preferred, backward=backward)


def saves_time(*tensors: Tensor, gradient: bool = False) -> str:
    """The check of whether a CPU kernel that only saves a pass over memory gains time.

    Measured: without AVX-512, with a gradient, and on small tensors PyTorch's own operations are
    about as fast or faster.

    Args:
        tensors: The tensors of the call, the largest first.
        gradient: Whether the kernel also gains time with a gradient.
    """
    if torch.compiler.is_dynamo_compiling():
        return "torch.compile fuses these operations itself"
    if not gradient and wants_gradient(*tensors):
        return "with a gradient PyTorch's own operations are as fast"
    if tensors[0].numel() < MIN_ELEMENTS:
        return f"PyTorch's own operations are as fast below {MIN_ELEMENTS} elements"
    capability = cpu_capability()  # `supports` reports a missing extension
    if capability and not capability.startswith("avx512"):
        return "without AVX-512 PyTorch's own operations are as fast"
    return ""
