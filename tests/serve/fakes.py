"""A pool without processes: its answers come from the test."""

from __future__ import annotations

from collections.abc import Callable

from dafast.serve.jobs import Answer, Job
from dafast.serve.pool import QueuedJob


class FakePool:
    """Stands for `dafast.serve.pool.Pool`; `reply` answers a job, or None lets it wait."""

    def __init__(self, reply: Callable[[Job], Answer | None]) -> None:
        self.reply = reply
        self.ready, self.problem, self.restarts = True, "", 0
        self.queue: list[QueuedJob] = []
        self.jobs: list[Job] = []
        self.cancelled: list[QueuedJob] = []

    def submit(self, job: Job) -> QueuedJob:
        item = QueuedJob(job)
        self.jobs.append(job)
        answer = self.reply(job)
        if answer is None:
            self.queue.append(item)
        else:
            item.answer(answer)
        return item

    def cancel(self, item: QueuedJob) -> None:
        item.future.cancel()
        self.cancelled.append(item)

    def close(self) -> None:
        pass
