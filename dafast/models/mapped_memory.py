"""Memory of mapped files: which it is, and how to release what was read.

A page of a mapped file counts as memory of the process from its first use. A model that is copied
from a mapped file would therefore be in memory twice, until the last tensor is copied.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

_DONTNEED = 4  # MADV_DONTNEED of Linux


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def mapped_memory(paths: Iterable[Path]) -> list[range]:
    """Addresses at which files are mapped into this process; empty if the system does not tell."""
    names = {str(path.resolve()) for path in paths}
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5] in names:
            start, end = (int(address, 16) for address in parts[0].split("-"))
            found.append(range(start, end))
    return found


def release_pages(tensor: Tensor, mapped: Iterable[range]) -> None:
    """Releases the memory of a tensor in a mapped file; the next use reads the file again.

    Nothing may have written to the pages of the tensor since the file was mapped: it would be lost.

    Args:
        tensor: Any tensor; one whose elements are not contiguous in a mapped file stays.
        mapped: From `mapped_memory`.
    """
    madvise = _madvise()
    if madvise is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start = tensor.data_ptr()
    end = start + tensor.nbytes
    if not any(start in addresses and end <= addresses.stop for addresses in mapped):
        return
    page = mmap.PAGESIZE
    start = start // page * page  # the neighbours on its pages are unchanged, too
    madvise(start, -(-end // page) * page - start, _DONTNEED)
