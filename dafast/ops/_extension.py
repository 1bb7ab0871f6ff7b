"""Lazy import of the compiled extension ``dafast._C``, and why it is missing where it is."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from ._dispatch import _forced_backend, why_transformed

logger = logging.getLogger("dafast")

MIN_ELEMENTS = 16384
"""What `why_not_unasked` calls small."""

HOW_TO_BUILD = (
    "with torch, pybind11, ninja and a C++ compiler present, reinstall dafast with "
    "`pip install --no-build-isolation`; -v shows what the compiler says"
)


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """Returns the module, or None and the reason; tried once in a process."""
    if importlib.util.find_spec("dafast._C") is None:
        return None, f"the C++ extension was not built ({HOW_TO_BUILD})"
    import torch  # noqa: F401  (the extension links against the libraries that this loads)

    try:
        return importlib.import_module("dafast._C"), ""
    except (ImportError, OSError, RuntimeError) as error:
        reason = f"the C++ extension is there but does not load: {error}"
        if "DAFAST_CPU_CAPABILITY" not in str(error):
            # Built against a newer PyTorch than the one that runs, or for another system.
            reason += f"; rebuild it: {HOW_TO_BUILD}"
        logger.warning("dafast: %s", reason)
        return None, reason


def load() -> ModuleType | None:
    """Returns ``dafast._C``, imported on the first call, or None where it is not to be had.

    Importing it registers the ops ``torch.ops.dafast_C.*``.
    """
    return _load()[0]


def why_missing() -> str:
    """Returns why `load` gives None, with what to do about it; an empty string if it does not."""
    return _load()[1]


def why_not(backend: str, op: str = "") -> str:
    """Returns why no call can be served by ``"cpp"`` or ``"cuda"``; an empty string if one can.

    Args:
        backend: ``"cpp"`` or ``"cuda"``.
        op: Name of an op: whether the extension has it is asked too.
    """
    module = load()
    if module is None:
        return why_missing()
    if backend == "cuda" and not module.cuda:
        return (
            "the C++ extension was built without CUDA (it takes a CUDA build of PyTorch and its "
            "toolkit, nvcc)"
        )
    if op and op not in module.ops:
        return f"the C++ extension is of an older version, without {op}: {HOW_TO_BUILD}"
    return ""


# torch.compile takes it as it is while tracing; see `_dispatch._forced_backend`.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


def supports(backend: str, op: str, *tensors: Tensor) -> tuple[bool, str]:
    """Whether the extension's kernels of an op can serve these tensors.

    Args:
        backend: ``"cpp"`` for its kernels on the CPU, ``"cuda"`` for those on a GPU.
        op: Name of the op.
        tensors: What the op is called with.

    Returns:
        Whether they can, as far as device and installation go, and why not.
    """
    wanted = "cpu" if backend == "cpp" else "cuda"
    for tensor in tensors:
        if tensor.device.type != wanted:
            return False, f"runs on {wanted.upper()} tensors; the input is on {tensor.device}"
        if tensor.device != tensors[0].device:
            return False, "needs all tensors on one device"
    reason = why_transformed(*tensors) or why_not(backend, op)
    return not reason, reason


def why_not_unasked(*tensors: Tensor) -> str:
    """Why a kernel that only saves a pass over memory is not taken unless it is asked for by name.

    Measured: without AVX-512, with a gradient, and on small tensors PyTorch's own operations are
    about as fast or faster.

    Args:
        tensors: What the op is called with, the largest first.

    Returns:
        The reason, an empty string if it is to be taken or ``use_backend("cpp")`` asks for it.
    """
    if _forced_backend() == "cpp":
        return ""
    import torch

    if torch.compiler.is_compiling():
        return "torch.compile fuses these operations itself"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "with a gradient PyTorch's own operations are as fast"
    if tensors[0].numel() < MIN_ELEMENTS:
        return f"PyTorch's own operations are as fast below {MIN_ELEMENTS} elements"
    module = load()
    if module is None or not module.cpu_capability().startswith("avx512"):
        return "without AVX-512 PyTorch's own operations are as fast"
    return ""
