"""Whether the Triton kernels can serve a call; without importing Triton where they cannot."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from ..optional import why_no_module
from ._dispatch import Backend, Check, kernel_backend

MIN_CAPABILITY = (8, 0)
"""Oldest NVIDIA compute capability that the kernels are compiled for (Ampere)."""


@functools.cache
def _import_reason() -> str:
    """Why Triton cannot be imported, an empty string where it can."""
    why = why_no_module("triton", "triton.language")  # an empty folder `triton` imports too
    return f"{why}; pip install 'dafast[triton]'" if why else ""


def _cpu_reason() -> str:
    """Why Triton cannot run on CPU tensors, an empty string where it can.

    It can in its interpreter (``TRITON_INTERPRET=1`` set before Triton is imported), and under a
    driver that runs compiled kernels on the CPU.
    """
    if reason := _import_reason():
        return reason
    import triton

    if triton.knobs.runtime.interpret:
        return ""
    try:
        device = triton.runtime.driver.active.get_active_torch_device()
    except RuntimeError:  # no active driver
        device = None
    if device is not None and device.type == "cpu":
        return ""
    return "its kernels run on a GPU; on CPU tensors only with TRITON_INTERPRET=1"


@functools.cache
def _gpu_reason(index: int) -> str:
    """Why Triton cannot run on this GPU, an empty string where it can."""
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip is None and capability < MIN_CAPABILITY:
        return "needs compute capability {}.{}; the GPU has {}.{}".format(
            *MIN_CAPABILITY, *capability
        )
    return _import_reason()


def is_full_float32() -> bool:
    """Whether float32 products run at full precision: without TF32, so without tensor cores."""
    # Not by get_float32_matmul_precision, which raises where a newer setting has been used.
    return torch.backends.cuda.matmul.fp32_precision not in ("tf32", "bf16")


def why_not(device: torch.device) -> str:
    """Returns why no call can be served on this device; an empty string if one can."""
    if device.type == "cuda":
        return _gpu_reason(device.index)
    if device.type == "cpu":
        return _cpu_reason()
    return f"runs on CUDA and ROCm GPUs; the tensors are on {device}"


# Constants while torch.compile traces; see `_dispatch._context`.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]
is_full_float32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_missing() -> str:
    """Returns why no call can be served on a GPU; an empty string if one can."""
    return _gpu_reason(0) if torch.cuda.is_available() else "PyTorch sees no CUDA GPU here"


def backend(
    fn: Callable[..., Any], limits: Check, unasked: Check | None = None, *, backward: bool = True
) -> Backend:
    """`kernel_backend` with Triton kernels.

    They never serve unasked on a CPU: interpreted they are thousands of times slower than any
    other backend. On a GPU ``unasked`` decides.
    """

    def preferred(*args: Any) -> str:
        if args[0].is_cpu:
            return "on a CPU its kernels run interpreted, and only when asked for by name"
        return unasked(*args) if unasked else ""

    return kernel_backend(fn, why_not, limits, preferred, backward=backward)


def launcher(op: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of ``dafast.kernels.<op>``, imported at the first call."""
    load = functools.cache(lambda: importlib.import_module(f"dafast.kernels.{op}"))
    return lambda *args: getattr(load(), name)(*args)
