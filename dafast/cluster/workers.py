"""The code that runs on the nodes: the actor with a model, the task that does one part, metrics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
import ray.exceptions
from ray.util.metrics import Counter, Gauge

from dafast.data.jobs import Outcome, ParallelJob
from dafast.files import DiskFullError


class Model:
    """An actor with a model, which one thread calls.

    Args:
        make: Loads it: an object that is called with images and has the attribute `facts`.
        threads: Number of PyTorch's threads.
    """

    def __init__(self, make: Callable[[], Any], threads: int) -> None:
        import torch

        # PyTorch keeps the number of threads by thread, and Ray calls an actor from several.
        self._thread = ThreadPoolExecutor(1, "model", torch.set_num_threads, (threads,))
        self._error: Exception | None = None
        try:
            self._model = self._thread.submit(make).result()
        except Exception as error:  # Ray would keep only its text
            self._error = error

    def facts(self) -> Any:
        """Returns the facts of the model, or the exception that prevented its loading.

        It is returned: Ray prints the trace of an exception that nobody asks for, and the first
        actor that cannot load its model ends the run.
        """
        return self._model.facts if self._error is None else self._error

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[np.ndarray]:
        """Calls the model."""
        return self._thread.submit(self._model, images, **options).result()

    def do_part(self, job: ParallelJob, part: Any, threads: int, command: str) -> Outcome:
        """Does one part of a job with this model, as the function `do_part`."""
        return _do_part(job, part, self.predict, threads, command)


def do_part(job: ParallelJob, part: Any, threads: int, command: str, model: Any = None) -> Outcome:
    """Does one part of a job in a task.

    Args:
        job: The job.
        part: The part.
        threads: Number of threads that decode and encode.
        command: Name of the command, for the metrics of Ray's dashboard.
        model: Handle of a `Model`; None for a job without one.

    Raises:
        RayError: If the actor is lost.
    """

    def predict(images: Sequence[np.ndarray], **options: Any) -> list[np.ndarray]:
        # While it waits, Ray gives this worker's processor to another task.
        return ray.get(model.predict.remote(images, **options))

    return _do_part(job, part, predict, threads, command)


def _do_part(job: ParallelJob, part: Any, predict: Any, threads: int, command: str) -> Outcome:
    try:
        with ThreadPoolExecutor(threads) as pool:
            outcome = job.do(part, predict, pool)
    except DiskFullError as error:  # another node may have room
        name = job.name(part)
        return Outcome(name, "failed", failures=[(name, str(error))])
    tags = {"command": command}
    for name, count in (("dafast_worker_parts", 1), ("dafast_worker_images", outcome.images)):
        if count:
            _counter(name).inc(count, tags)
    return outcome


@functools.cache
def _counter(name: str) -> Counter:
    """A counter of this process, made once."""
    return Counter(name, "done by dafast", ("command",))


class Gauges:
    """Progress of a run as metrics of this process, for Ray's dashboard.

    Args:
        command: Name of the command.
    """

    def __init__(self, command: str) -> None:
        self._tags = {"command": command}
        self._all = [
            Gauge(f"dafast_{name}", text, ("command",))
            for name, text in (
                ("parts_done", "parts that are done"),
                ("parts_total", "parts of the job"),
                ("images_per_second", "rate since the start"),
                ("seconds_left", "estimated time to the end"),
            )
        ]

    def show(self, done: float, total: float, rate: float, seconds_left: float) -> None:
        """Sets them."""
        for gauge, value in zip(self._all, (done, total, rate, seconds_left), strict=True):
            gauge.set(value, self._tags)
