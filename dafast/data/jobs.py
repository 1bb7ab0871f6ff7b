"""Jobs on shards, described once, and the runner that does them in this process.

A `ShardJob` says what becomes of one shard. `do_shard` does it: whole or not at all, skipping
results that exist. A runner does so for all shards: `InOrder` here, `dafast.cluster` on the nodes
of a Ray cluster.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from dafast.data.remote import Fetcher, ShardError, exists, local_copy, name_of
from dafast.data.writing import claim, read_failures, write_failures

Predict = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
"""Images (H, W, 3) uint8 to one array each: maps (h, w) float32, or masks (H, W) bool."""


@dataclass
class Outcome:
    """The outcome of one part of a job.

    Attributes:
        name: Name of the part in messages: the shard's file name.
        state: "written"; "kept" if it existed; "busy" if another process is writing it; "failed".
        images: Number of images in it.
        failures: ("shard/key" or "shard", reason), also of a shard that existed already.
        facts: What the job needs for its report.
    """

    name: str
    state: Literal["written", "kept", "busy", "failed"] = "written"
    images: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    facts: Any = None


class ParallelJob(Protocol):
    """Work in independent parts."""

    def do(self, part: Any, predict: Predict, pool: Executor) -> Outcome:
        """Does one part.

        Args:
            part: One of the parts that a runner was given.
            predict: The model, here or on another machine.
            pool: Threads that decode and encode.
        """
        ...

    def name(self, part: Any) -> str:
        """The part's name in messages."""
        ...


class ShardJob(ABC):
    """A job that writes one file for each source, usually a shard."""

    @abstractmethod
    def target(self, source: Any) -> Path:
        """The file that is made of a source."""

    @abstractmethod
    def write(self, source: Any, file: BinaryIO, predict: Predict, pool: Executor) -> Outcome:
        """Writes the file of one source; the failures in the result are those of its samples."""

    def name(self, source: Any) -> str:
        """The source's name in messages."""
        return name_of(source)

    def open(self, source: Any) -> contextlib.AbstractContextManager[Any]:
        """Gives the source as `write` takes it: a local copy of a shard."""
        return local_copy(source)

    def do(self, source: Any, predict: Predict, pool: Executor) -> Outcome:
        """Does one source, as `do_shard`; an unreadable or unwritable shard is a failure."""
        return self.try_shard(source, predict, pool, self.open(source))

    def try_shard(
        self,
        source: Any,
        predict: Predict,
        pool: Executor,
        opened: contextlib.AbstractContextManager[Any],
    ) -> Outcome:
        """`do` with a source that was opened elsewhere."""
        try:
            return do_shard(self, source, predict, pool, opened)
        except ShardError as error:
            name = self.name(source)
            return Outcome(name, "failed", failures=[(name, str(error))])


def do_shard(
    job: ShardJob,
    source: Any,
    predict: Predict,
    pool: Executor,
    opened: contextlib.AbstractContextManager[Any],
) -> Outcome:
    """Makes the file of one source, unless it exists or another process is making it.

    Args:
        job: What to do.
        source: The source.
        predict: The model.
        pool: Threads that decode and encode.
        opened: The source as `ShardJob.write` takes it.

    Raises:
        ShardError: If a shard cannot be read or written.
        DiskFullError: If there is no room for the file; existing files stay.
    """
    target, name = job.target(source), job.name(source)
    with claim(target) as file:
        if file is not None:
            with opened as local:
                outcome = job.write(local, file, predict, pool)
            outcome.name = name
            # First the list, then the shard: a shard never lacks its list.
            write_failures(target, outcome.failures)
    if file is None:
        state: Literal["kept", "busy"] = "kept" if exists(target) else "busy"
        outcome = Outcome(name, state, failures=read_failures(target))
    return outcome


class Runner(Protocol):
    """Does a job."""

    def run(self, job: Any, parts: Sequence[Any]) -> Iterator[tuple[int, Outcome]]:
        """Does all parts; gives the number and outcome of each when it is done, in any order."""
        ...


class InOrder:
    """The runner of one process: shards in order, with threads that decode and encode.

    A shard behind a URL is fetched while the previous one is in work.

    Args:
        predict: The model.
        workers: Number of threads.
    """

    def __init__(self, predict: Predict, workers: int = 2) -> None:
        self.predict, self.workers = predict, workers

    def run(self, job: ShardJob, parts: Sequence[Path]) -> Iterator[tuple[int, Outcome]]:
        """Does all shards, as `Runner.run`.

        Raises:
            DiskFullError: If there is no room for a shard; existing ones stay.
        """

        def missing(shard: Path) -> bool:
            return not exists(job.target(shard))

        with ThreadPoolExecutor(self.workers) as pool, Fetcher(parts, missing) as fetcher:
            for number, shard in enumerate(parts):
                yield number, job.try_shard(shard, self.predict, pool, fetcher.local(number))


class Progress:
    """Lines of progress with rate and time left.

    Args:
        total: Number of parts.
        say: Takes a line for each part that was written.
        what: The parts, in the lines.
    """

    def __init__(self, total: int, say: Callable[[str], None], what: str = "shards") -> None:
        self.total, self.say, self.what = total, say, what
        self.began = time.monotonic()
        self.done = self.written = self.images = 0

    @property
    def rate(self) -> float:
        """Images in a second since the start."""
        return self.images / max(time.monotonic() - self.began, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Estimated time to the end, if the other parts are as large as those written."""
        left = (self.total - self.done) * self.images / max(self.written, 1)
        return left / max(self.rate, 1e-9)

    def add(self, outcome: Outcome) -> None:
        """Counts a part."""
        self.done += 1
        if outcome.state != "written":
            return
        self.written, self.images = self.written + 1, self.images + outcome.images
        self.say(
            f"{outcome.name}  {self.done}/{self.total} {self.what}, {self.rate:.2f} images/s, "
            f"{self.seconds_left / 60:.1f} min left"
        )
