"""Large arrays whose memory serves again when nobody holds them."""

from __future__ import annotations

import mmap
import weakref
from collections import defaultdict, deque

import numpy as np

_MOST = 64
"""Free pieces of memory of one size that are kept."""


class Recycler:
    """Gives arrays, and uses the memory of an array again when its last view is gone.

    The frames and maps of a video live for some frames, in several threads. In the heap, where the
    network's activations fill the gaps between them, they would make the process grow for hundreds
    of frames. This memory is outside the heap, and is mapped once. Threads may share a recycler.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, deque[mmap.mmap]] = defaultdict(lambda: deque(maxlen=_MOST))

    def empty(self, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        """An array of this shape and type, with any content."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        free = self._free[size]
        try:
            memory = free.pop()
        except IndexError:
            memory = mmap.mmap(-1, max(size, 1))
        owner = np.frombuffer(memory, np.uint8, size)  # the base of every view
        weakref.finalize(owner, free.append, memory).atexit = False
        return owner.view(dtype).reshape(shape)

    def copy(self, array: np.ndarray) -> np.ndarray:
        """A copy of an array."""
        result = self.empty(array.shape, array.dtype.type)
        np.copyto(result, array)
        return result
