"""Makes a command start and end quickly: PyTorch is most of the time of a short one."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Pauses Python's garbage collector within the block, for imports: their objects stay.

    Importing PyTorch starts hundreds of collections, which find nothing.
    """
    enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    try:
        yield
    finally:
        if not frozen:  # else a program that calls the command wants them to stay frozen
            # Moves the objects to the oldest generation; the next collection would visit them all.
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()


@functools.cache
def end_quickly() -> None:
    """Leaves the objects that still exist when the process ends to the system.

    Otherwise Python searches all objects of PyTorch for cycles several times. The standard streams
    are flushed and the functions of `atexit` run as usual; `__del__` of an object in a cycle or in
    a module does not run, which Python does not guarantee either. For commands that close their
    files themselves.
    """
    atexit.register(_leave_objects)


def _leave_objects() -> None:
    if "triton" not in sys.modules:  # its bindings report every object that is left
        gc.freeze()


def preload_torch() -> None:
    """Starts a thread that loads the libraries of PyTorch, while this one imports other modules.

    Only on Linux and with PyTorch for the CPU: PyTorch itself decides from where it loads those of
    CUDA. Where anything is missing, the import of PyTorch says so.
    """
    if not sys.platform.startswith("linux") or "torch" in sys.modules:
        return
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return
    folder = Path(spec.origin).parent / "lib"
    names = ("libtorch_global_deps.so", "libtorch_cpu.so")
    devices = ("libtorch_cuda.so", "libtorch_hip.so", "libtorch_xpu.so")
    if not all((folder / name).is_file() for name in names):
        return
    if any((folder / name).exists() for name in devices):
        return
    # `ctypes.CDLL` holds the lock of the interpreter while it loads; a call of a function does not.
    import ctypes

    load = getattr(ctypes.CDLL(None), "dlopen", None)
    if load is None:
        return
    load.argtypes, load.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p

    def work() -> None:
        # As `torch._load_global_deps`, and then as the import of `torch._C`.
        if load(os.fsencode(folder / names[0]), os.RTLD_NOW | os.RTLD_GLOBAL):
            load(os.fsencode(folder / names[1]), os.RTLD_NOW)

    threading.Thread(target=work, name="dafast-preload").start()
