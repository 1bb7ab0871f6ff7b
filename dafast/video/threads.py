"""Stages of a pipeline that run at the same time, with bounded queues between them."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

_T = TypeVar("_T")
_R = TypeVar("_R")

_END = object()

_PATIENCE = 60.0
"""Seconds to wait for the end of a thread."""

_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""

TRIM = 24
"""Frames of a video after which `trim_heap` is worth its time, which is that of a few page faults
for each of them."""


def share_heap() -> None:
    """Makes all threads of the process use one heap, with glibc; does nothing elsewhere.

    Frames and maps are made in one thread and freed in another. With a heap for each thread, which
    is glibc's default, memory grows over the first thousand frames of a video.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim_heap() -> None:
    """Returns the free pages of the heap to the system, with glibc; does nothing elsewhere.

    The activations of several forwards share the heap with small objects that live longer. The gaps
    between them grow over hundreds of frames unless their pages are returned.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Stage(Generic[_T]):
    """Runs an iterable in a thread of its own, a few items ahead of its reader.

    An error of the iterable is raised to the reader, behind the items before it.

    Args:
        items: What to run; its ``close`` is called in the same thread when reading stops.
        size: Items that wait for the reader at most.
        newest: Whether a new item replaces the oldest one that waits, as for a camera that is
            faster than its reader.
    """

    def __init__(self, items: Iterable[_T], size: int = 1, *, newest: bool = False) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._newest = newest
        self._stopped = threading.Event()
        self._items = items
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        last: tuple[object, BaseException | None] = (_END, None)
        try:
            for item in self._items:
                self._put(item, replace=self._newest)
                del item  # not held until the next one is made
                if self._stopped.is_set():
                    break
        except BaseException as error:
            last = (_END, error)
        finally:
            try:
                close = getattr(self._items, "close", None)
                if close is not None:
                    close()
            except BaseException as error:
                last = (_END, last[1] or error)
            self._put(last)

    def _put(self, item: Any, replace: bool = False) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, block=not replace, timeout=0.1)
                return
            except queue.Full:
                if replace:
                    with contextlib.suppress(queue.Empty):
                        self._queue.get_nowait()

    def __iter__(self) -> Iterator[_T]:
        while True:
            item = self._queue.get()
            if isinstance(item, tuple) and len(item) == 2 and item[0] is _END:
                if item[1] is not None:
                    raise item[1]
                return
            yield item
            del item

    def close(self) -> None:
        """Stops the thread behind its current item, and waits for it.

        A thread that waits for a webcam or a pipe is left behind.
        """
        self._stopped.set()
        self._thread.join(_PATIENCE)

    @property
    def is_running(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()


def staged(
    items: Iterable[_T], size: int = 1, *, newest: bool = False
) -> Generator[_T, None, None]:
    """The items of an iterable, which runs in a thread of its own; see `Stage`."""
    stage = Stage(items, size, newest=newest)
    try:
        yield from stage
    finally:
        stage.close()


class Workers:
    """Threads that call a function on items, each with its share of PyTorch's threads.

    Two forwards of one thread each are faster than one after the other with two threads: nothing
    waits for the slower half.

    Args:
        count: Number of the threads.
    """

    def __init__(self, count: int) -> None:
        self._count, total = count, torch.get_num_threads()
        share, ready = max(1, total // count), threading.Barrier(count)

        def begin() -> None:
            torch.set_num_threads(share)  # of this thread, and of those that start later
            ready.wait()

        self._pool = ThreadPoolExecutor(count, initializer=begin)
        list(self._pool.map(lambda _: None, range(count)))
        torch.set_num_threads(total)

    def map(self, function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        """The results in the order of the items.

        As many items are at work as there are threads; the next one is taken meanwhile.
        """
        waiting: deque[Future[_R]] = deque()
        for item in items:
            done = waiting.popleft().result() if len(waiting) == self._count else None
            waiting.append(self._pool.submit(function, item))
            del item
            if done is not None:
                yield done
                del done
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """Ends the threads behind their current items."""
        self._pool.shutdown(wait=True, cancel_futures=True)
