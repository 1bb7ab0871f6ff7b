"""The device and the floating-point type that a model runs in."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ._warnings import PerformanceWarning, warn

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware.

    On x86 that is AVX512_BF16 or AMX_BF16, on ARM the BF16 extension. A CPU without them converts
    to float32 and back, which is slower than float32 (`torch.cpu.get_capabilities`).
    """
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def device_has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware.

    NVIDIA GPUs do from compute capability 8.0 on, and so do the AMD GPUs that PyTorch supports.
    False for Apple GPUs: the first generation does not, and there is no query for it.
    """
    if device.type == "cpu":
        return cpu_has_bfloat16()
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return False


def is_autocast_on(kind: str) -> bool:
    """Whether autocast is on for a type of device; False for "meta", where asking would raise."""
    # `torch.amp.is_autocast_available` would say so too, but torch 2.11 does not compile it.
    return kind != "meta" and torch.is_autocast_enabled(kind)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Turns autocast off."""
    kind = device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # as `is_autocast_on`, without its call
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


@functools.cache
def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep freed memory for the next allocation, up to 2 GiB at its top.

    By default it returns memory at the top of the heap to the system and maps large blocks again
    each time. For the network's activations these are thousands of page faults in each forward,
    and some hundred thousand in a step of training.

    Returns:
        Whether it succeeded: False with another C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    trim_threshold, mmap_threshold = -1, -3
    # Before glibc 2.35 the second was limited to half a heap; larger blocks are then mapped each
    # time.
    raised = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)
    return bool(raised and mallopt(trim_threshold, 2**31 - 1))


def return_freed_memory() -> None:
    """Makes glibc's malloc return freed memory to the system, also within its heap."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Turns a device or its name into a device that exists here.

    Args:
        device: ``"auto"`` (CUDA, else MPS, else the CPU), or anything that `torch.device` takes.

    Raises:
        ValueError: If this machine does not have the device, or PyTorch does not know its name.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r}: use 'auto', 'cpu', 'cuda', 'cuda:1', 'mps', ..."
        ) from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            built = "" if torch.version.cuda or torch.version.hip else "; PyTorch is a CPU build"
            raise ValueError(f"device={device!r}: PyTorch sees {count} CUDA devices here{built}")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}: PyTorch sees no Apple GPU here")
    return resolved


def resolve_dtype(
    dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu"
) -> torch.dtype:
    """Turns a floating-point type or its name into a `torch.dtype`.

    Args:
        dtype: ``"auto"`` (bfloat16 where ``device`` has it in hardware, else float32),
            ``"float32"``, ``"bfloat16"``, ``"float16"``, or one of these as `torch.dtype`.
        device: The device that ``"auto"`` chooses for.

    Raises:
        ValueError: For any other type.
    """
    if dtype == "auto":
        return torch.bfloat16 if device_has_bfloat16(resolve_device(device)) else torch.float32
    if isinstance(dtype, str) and dtype in _DTYPES:
        return _DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in (*_DTYPES.values(), torch.float64):
        return dtype
    raise ValueError(f"dtype={dtype!r}: use 'auto', {', '.join(map(repr, _DTYPES))}")


class _SkipInitialization(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`, which have nothing to fill on "meta"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Modules made in this context have shapes and dtypes, but no memory and no values.

    Random numbers are not drawn either: under only ``torch.device("meta")`` PyTorch sends them
    through its Python decompositions, which import `torch._dynamo` (more than a second).
    """
    with torch.device("meta"), _SkipInitialization():
        yield


@functools.cache
def warn_if_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Warns once that a model of this dtype runs slower than in float32 on this device."""
    if device.type != "cpu":
        return
    if dtype == torch.float16:
        text = "float16 on a CPU takes 17 to 28 times as long as float32; use float32"
        warn(PerformanceWarning, text)
    elif dtype == torch.bfloat16 and not cpu_has_bfloat16():
        warn(
            PerformanceWarning,
            "this CPU has no bfloat16 arithmetic: bfloat16 takes 3 times as long as float32; "
            "use float32",
        )
