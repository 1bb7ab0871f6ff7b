"""The runner of a Ray cluster.

Actors hold the models. With GPUs, tasks on the processors of all nodes decode, encode and write:
one task does one shard from beginning to end and calls its actor for each chunk of images. Without
GPUs the actor does whole shards itself, because images and maps need not leave the process that
computes them. An output shard always has one writer, in the order and with the batches of the
local path.

This uses Ray's tasks and actors and not Ray Data, whose blocks do not keep the bounds of the shards
(docs/scale.md). Here the shard is the unit of work, of failure and of repetition.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from dafast.cluster.connection import ClusterError
from dafast.cluster.plan import plan_for
from dafast.cluster.workers import Gauges, Model, do_part
from dafast.data.jobs import Outcome, ParallelJob, Progress
from dafast.files import explain

LOSSES = 10
"""Times that a part may be lost with a worker, an actor or a node until it counts as failed. From
half of them on it is done without others at the same actor: it may be what ends the actor."""

BUSY_TRIES, BUSY_WAIT = 30, 2.0
"""Tries, and seconds between them, for a shard that another process is writing. A worker of a lost
node may hold its lock for a moment."""

_SILENCE = 30.0  # seconds without a finished part until a line says what the run waits for


@dataclass(eq=False)
class _Actor:
    """An actor with a model.

    Attributes:
        handle: Ray's handle.
        loading: Reference to its facts; None once it is loaded.
        parts: Number of parts that it does, or that tasks do with it.
    """

    handle: Any
    loading: Any
    parts: int = 0


class RayRunner:
    """Does jobs on the cluster that this process is connected to; a context manager.

    A lost worker, actor or node costs the parts that it had in work: they are done again elsewhere,
    after all others. Ray places the tasks and the actors, also on nodes that join later; actors
    that wait for a place make its autoscaler add nodes.

    Args:
        command: Name of the command, which Ray's dashboard shows.
        make: Loads the model in each actor, as `Model` takes it; None for a job without a model.
        models: Number of actors; None for one per GPU, without GPUs one per processor.
        workers: Threads that decode and encode a part.
        device: The value of ``--device``.
        say: Takes a line when the run waits for the cluster or when something is lost.
    """

    def __init__(
        self,
        command: str,
        make: Callable[[], Any] | None = None,
        *,
        models: int | None = None,
        workers: int = 1,
        device: str = "auto",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._command, self._make, self._say = command, make, say
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._plan = plan_for(nodes, models if make else 0, workers, device)
        self._task: Any = None
        if self._plan.task_options is not None:
            self._task = ray.remote(do_part).options(
                name=f"dafast {command}",
                max_retries=0,  # `run` does lost parts again, with another actor
                scheduling_strategy="SPREAD",
                **self._plan.task_options,
            )
        self._actors: list[_Actor] = []
        self._facts: Any = None
        self._failed_starts = 0

    def __enter__(self) -> RayRunner:
        for _ in range(self._plan.models):
            self._start_actor()
        return self

    def __exit__(self, *error: object) -> None:
        # Not without a connection: Ray would make one to any cluster that it finds.
        for actor in self._actors if ray.is_initialized() else []:
            with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
                ray.kill(actor.handle)
        self._actors = []

    def facts(self) -> Any:
        """Facts of the models; waits for the first one.

        Raises:
            ClusterError: If actors are lost repeatedly.
            Exception: If the model cannot be loaded, why.
        """
        said = time.monotonic()
        while self._facts is None:
            self._wait([])
            if time.monotonic() - said > _SILENCE:
                said = time.monotonic()
                self._say_waiting(0)
        return self._facts

    def run(self, job: ParallelJob, parts: Sequence[Any]) -> Iterator[tuple[int, Outcome]]:
        """Processes all parts, as `Runner.run` does.

        Raises:
            ClusterError: If actors are lost repeatedly.
            Exception: Any error of the job or the model; finished parts stay.
        """
        waiting = deque(range(len(parts)))
        running: dict[Any, tuple[int, int, _Actor | None]] = {}
        lost: Counter[int] = Counter()
        tried: Counter[int] = Counter()
        later: list[tuple[float, int]] = []  # shards that others are writing
        show, progress = _gauges(self._command), Progress(len(parts), lambda line: None)
        said = time.monotonic()
        try:
            while waiting or running or later:
                now = time.monotonic()
                waiting.extend(number for when, number in later if when <= now)
                later = [each for each in later if each[0] > now]
                while waiting:
                    share = self._plan.parts if lost[waiting[0]] >= LOSSES // 2 else 1
                    if not (place := self._free_place(len(running), share)):
                        break
                    number, actor = waiting.popleft(), place[0]
                    running[self._submit(job, parts[number], actor, share)] = number, share, actor
                if not running and not waiting:
                    time.sleep(0.1)
                    continue
                for ref in self._wait(list(running), 1.0 if later else _SILENCE):
                    number, share, actor = running.pop(ref)
                    if actor is not None:
                        actor.parts -= share
                    outcome = self._collect(ref, actor, job.name(parts[number]))
                    if outcome is None or isinstance(outcome, str):
                        lost[number] += 1
                        if lost[number] < LOSSES:
                            waiting.append(number)  # last: the others may not need the cause
                            continue
                        name = job.name(parts[number])
                        reason = f"lost {LOSSES} times, at last because {outcome}"
                        outcome = Outcome(name, "failed", failures=[(name, reason)])
                    if outcome.state == "busy" and tried[number] < BUSY_TRIES:
                        tried[number] += 1
                        later.append((time.monotonic() + BUSY_WAIT, number))
                        continue
                    progress.add(outcome)
                    show(progress.done, progress.total, progress.rate, progress.seconds_left)
                    said = time.monotonic()
                    yield number, outcome
                if time.monotonic() - said > _SILENCE:
                    said = time.monotonic()
                    self._say_waiting(len(running))
        finally:
            for ref in running if ray.is_initialized() else []:
                with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
                    # The parts of an actor end with it: it cannot be forced to give one up.
                    ray.cancel(ref, force=self._task is not None)

    def _say_waiting(self, running: int) -> None:
        ready = sum(actor.loading is None for actor in self._actors)
        models = f"{ready} of {self._plan.models} models are ready, " if self._plan.models else ""
        self._say(f"waiting for the cluster: {models}{running} parts are submitted")

    def _free_place(self, running: int, share: int) -> tuple[_Actor | None] | None:
        """The loaded actor with the fewest parts; None if each has too many for this share."""
        if not self._plan.models:
            return (None,) if running < self._plan.parts else None
        ready = [actor for actor in self._actors if actor.loading is None]
        actor = min(ready, key=lambda each: each.parts, default=None)
        return (actor,) if actor and actor.parts + share <= self._plan.parts else None

    def _submit(self, job: ParallelJob, part: Any, actor: _Actor | None, share: int) -> Any:
        call = job, part, self._plan.threads, self._command
        if actor is None:
            return self._task.remote(*call)
        actor.parts += share
        if self._task is not None:
            return self._task.remote(*call, actor.handle)
        return actor.handle.do_part.options(name=f"dafast {self._command}").remote(*call)

    def _wait(self, tasks: list[Any], timeout: float = _SILENCE) -> list[Any]:
        """Waits for a task or an actor; returns the tasks that ended."""
        loading = {a.loading: a for a in self._actors if a.loading is not None}
        refs = [*tasks, *loading]
        # All that ended: one for each call would favour the first of the list.
        done, rest = ray.wait(refs, num_returns=1, timeout=timeout)
        if rest and done:
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for ref in done:
            if ref in loading:
                self._loaded(loading[ref])
        return [ref for ref in done if ref not in loading]

    def _start_actor(self) -> None:
        options = {**self._plan.model_options, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        actor_class: Any = ray.remote(Model)
        handle = actor_class.options(**options).remote(self._make, self._plan.model_threads)
        self._actors.append(_Actor(handle, handle.facts.remote()))

    def _loaded(self, actor: _Actor) -> None:
        """Takes an actor that is loaded; starts another one if it was lost meanwhile."""
        try:
            facts = ray.get(actor.loading)
        except ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= LOSSES * self._plan.models:
                raise ClusterError(f"no model could be started: {explain(error)}") from error
            self._replace(actor)
            return
        if isinstance(facts, Exception):
            raise facts
        actor.loading, self._failed_starts = None, 0
        if self._facts is None:
            self._facts = facts
        elif facts != self._facts:
            raise ClusterError(
                f"the models differ from node to node ({facts} and {self._facts}): give --dtype "
                "and the same weights on all nodes"
            )

    def _replace(self, actor: _Actor) -> None:
        """Replaces a lost actor."""
        if actor not in self._actors:
            return  # an earlier task noticed it
        self._actors.remove(actor)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(actor.handle)
        self._start_actor()

    def _collect(self, ref: Any, actor: _Actor | None, name: str) -> Outcome | str:
        """The outcome of a task; the reason if it was lost."""
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if not isinstance(cause, ray.exceptions.RayError):
                raise cause from None
        except ray.exceptions.RayError as error:
            cause = error
        what = "its worker or its node was lost"
        if isinstance(cause, ray.exceptions.RayActorError):
            what = "its model was lost"
            if actor is not None:
                self._replace(actor)
        elif isinstance(cause, ray.exceptions.OutOfMemoryError):
            what = "its node ran out of memory"
        self._say(f"{name} is done again: {what}")
        return what


def _gauges(command: str) -> Callable[[float, float, float, float], Any]:
    """Returns `Gauges.show`: Ray collects the metrics of a driver, but not those of a client."""
    from ray.util.client import ray as client

    if not client.is_connected():
        return Gauges(command).show
    actor_class: Any = ray.remote(Gauges)
    return actor_class.options(num_cpus=0, max_restarts=-1).remote(command).show.remote
