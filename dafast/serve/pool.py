"""The queue of requests, and the workers that answer them.

A request that was accepted stays in the server's own process until its answer is there. If a worker
dies, another one replaces it, and its requests are computed again, one at a time: a picture
that crashes workers does not take others with it.
"""

from __future__ import annotations

import atexit
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, NamedTuple

from .jobs import Answer, Job, refuse
from .processes import start_process
from .settings import ServerSettings
from .worker import run_worker

logger = logging.getLogger("dafast.serve")

ATTEMPTS = 3
"""Workers that may die on a request before it is refused."""

_HANG = 30.0
"""Seconds beyond the timeout of requests after which a silent worker is ended."""


@dataclass(eq=False)
class QueuedJob:
    """A request in the queue; `future` receives its answer."""

    job: Job
    future: Future[Answer] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    attempts: int = 0

    def answer(self, answer: Answer) -> None:
        """Passes the answer on, unless nobody waits for it."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(answer)


class JobBatch(NamedTuple):
    """Requests that one worker computes together.

    Attributes:
        items: The requests.
        alone: Whether it is one request and no other worker computes, so that it may use all
            processors.
    """

    items: list[QueuedJob]
    alone: bool = False


class Queue:
    """Requests in the order in which they arrived.

    Attributes:
        takers: Number of workers that wait in `take`.
        changed: Locks the queue, and notifies workers that it has changed.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._items: deque[QueuedJob] = deque()
        self.changed = Condition()
        self._closed = False
        self.takers = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: QueuedJob) -> None:
        """Appends a request."""
        with self.changed:
            self._items.append(item)
            self.changed.notify_all()

    def put_back(self, items: list[QueuedJob]) -> None:
        """Returns requests whose worker has died to the front."""
        with self.changed:
            self._items.extendleft(reversed(items))
            self.changed.notify_all()

    def remove(self, item: QueuedJob) -> None:
        """Removes a request that nobody waits for, if no worker has it yet."""
        with self.changed:
            if item in self._items:
                self._items.remove(item)

    def close(self) -> None:
        """Makes `take` return an empty batch from now on."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def take(self) -> JobBatch:
        """Waits for requests and returns a batch; an empty one after `close`.

        A batch is complete when it is full, or when its oldest request has waited for
        ``batch_wait``. Workers that wait at the same time share the requests. A request whose
        worker has died is a batch of its own.
        """
        with self.changed:
            self.takers += 1
            try:
                while not self._closed:
                    while self._items and self._items[0].future.cancelled():
                        self._items.popleft()
                    if not self._items:
                        self.changed.wait()
                        continue
                    left = self._items[0].arrived + self._settings.batch_wait - time.monotonic()
                    if self._items[0].attempts:
                        return JobBatch([self._items.popleft()])
                    if left <= 0 or len(self._items) >= self._settings.batch:
                        return self._pop_batch()
                    self.changed.wait(left)
            finally:
                self.takers -= 1
        return JobBatch([])

    def _pop_batch(self) -> JobBatch:
        share = math.ceil(len(self._items) / self.takers)
        batch: list[QueuedJob] = []
        while self._items and len(batch) < min(share, self._settings.batch):
            if self._items[0].attempts:
                break
            item = self._items.popleft()
            if not item.future.cancelled():
                batch.append(item)
        others_wait = self.takers == self._settings.workers
        return JobBatch(batch, alone=len(batch) == 1 and not self._items and others_wait)


class Worker:
    """A worker process, with a thread that feeds it and one that reads its answers.

    Attributes:
        ready: Whether it has loaded its model.
        restarts: How often the process was replaced.
        problem: Why the model cannot be loaded, or "".
    """

    def __init__(self, settings: ServerSettings, queue: Queue, on_batch: Callable[[int], None]):
        self._settings, self._queue, self._on_batch = settings, queue, on_batch
        self._changed = Condition()
        self._closed = self.ready = self._idle = False
        self._busy_since = 0.0
        self._numbers = 0
        self._items: dict[int, QueuedJob] = {}
        self.restarts = 0
        self.problem = ""
        self._failures = 0  # processes that ended before they were ready, in a row
        self._start()
        self._threads = [
            Thread(target=target, daemon=True) for target in (self._feed, self._read, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int | None:
        """Number of the process."""
        return self._process.pid

    def _start(self) -> None:
        self._process, self._channel = start_process(
            run_worker, self._settings, name="dafast-worker"
        )

    def _feed(self) -> None:
        """Sends a batch whenever the worker is idle."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._idle or self._closed)
            batch = self._queue.take()
            if not batch.items:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._idle or self._closed)  # it may have died
                self._idle, self._busy_since = False, time.monotonic()
                channel = self._channel
                message = []
                for item in batch.items:
                    item.attempts += 1
                    self._numbers += 1
                    self._items[self._numbers] = item
                    message.append((self._numbers, item.job))
            self._on_batch(len(batch.items))
            # A dead worker: `_read` sees it and returns the batch to the queue.
            with suppress(OSError, ValueError):
                channel.send((batch.alone, message))

    def _read(self) -> None:
        """Passes answers on; starts another process when one ends."""
        while True:
            try:
                message = self._channel.recv()
            except Exception:  # EOFError, OSError, or a message that was cut off
                if not self._restart():
                    return
                continue
            with self._changed:
                if isinstance(message, str):
                    self.problem = message
                    continue
                if message is None:
                    self.ready = self._idle = True
                    self._failures, self.problem = 0, ""
                    self._changed.notify_all()
                    continue
                item = self._items.pop(message[0], None)
            if item is not None:
                item.answer(message[1])

    def _restart(self) -> bool:
        """Replaces the process; False after `close`."""
        self._channel.close()
        self._process.kill()
        self._process.join()
        with self._changed:
            if self._closed:
                return False
            code = self._process.exitcode
            if not self.ready:
                self._failures += 1
            self.ready = self._idle = False
            items, self._items = list(self._items.values()), {}
        self.restarts += 1
        logger.error("a worker ended (exit code %s); starting another one", code)
        lost = [item for item in items if item.attempts >= ATTEMPTS]
        for item in lost:
            item.answer(refuse(500, f"{ATTEMPTS} workers ended while computing this picture"))
        self._queue.put_back([item for item in items if item not in lost])
        with self._changed:
            if self._failures:
                pause = min(2.0**self._failures, 30.0)
                self._changed.wait_for(lambda: self._closed, pause)
            if self._closed:
                return False
            self._start()
        return True

    def _watch(self) -> None:
        """Ends a process that does not finish its batch."""
        limit = self._settings.timeout + _HANG
        while not self._closed:
            time.sleep(1.0)
            busy = self.ready and not self._idle
            if busy and time.monotonic() - self._busy_since > limit:
                logger.error("a worker has not answered for %.0f s", limit)
                self._process.kill()

    def close(self) -> None:
        """Ends the process."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._process.kill()
        self._process.join()


class Pool:
    """The workers of a server and their queue.

    Args:
        settings: The settings of the server.
        on_batch: Called with the size of each batch.
    """

    def __init__(self, settings: ServerSettings, on_batch: Callable[[int], Any] = lambda n: None):
        self.settings = settings
        self.queue = Queue(settings)
        self.workers = [Worker(settings, self.queue, on_batch) for _ in range(settings.workers)]
        atexit.register(self.close)  # of a server that is not shut down in order

    @property
    def ready(self) -> bool:
        """Whether at least one worker has loaded its model."""
        return any(worker.ready for worker in self.workers)

    @property
    def problem(self) -> str:
        """Why a worker cannot load its model, or ""."""
        return next((worker.problem for worker in self.workers if worker.problem), "")

    @property
    def restarts(self) -> int:
        """Number of workers that were replaced."""
        return sum(worker.restarts for worker in self.workers)

    def submit(self, job: Job) -> QueuedJob:
        """Puts a job into the queue."""
        item = QueuedJob(job)
        self.queue.put(item)
        return item

    def cancel(self, item: QueuedJob) -> None:
        """Drops a request; if a worker already computes it, its answer is dropped."""
        item.future.cancel()
        self.queue.remove(item)

    def close(self) -> None:
        """Ends the workers."""
        atexit.unregister(self.close)
        self.queue.close()
        for worker in self.workers:
            worker.close()
