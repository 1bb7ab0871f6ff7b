"""The queue of the server: how batches form, and what happens to requests nobody waits for."""

from __future__ import annotations

import threading
import time

from dafast.serve import ServerSettings
from dafast.serve.jobs import Answer, Job, PredictOptions
from dafast.serve.pool import JobBatch, Queue, QueuedJob


def item(name: str = "x") -> QueuedJob:
    return QueuedJob(Job(name.encode(), PredictOptions("nano")))


def test_a_full_batch_does_not_wait() -> None:
    queue = Queue(ServerSettings(batch=3, batch_wait=3600))
    items = [item() for _ in range(4)]
    for each in items:
        queue.put(each)
    assert queue.take().items == items[:3]
    assert len(queue) == 1


def test_a_lone_request_waits_for_the_limit_and_no_longer() -> None:
    queue = Queue(ServerSettings(batch=3, batch_wait=0.05))
    first = item()
    queue.put(first)
    assert queue.take().items == [first]
    assert time.monotonic() - first.arrived >= 0.05


def test_a_waiting_worker_gets_the_request_that_comes() -> None:
    queue = Queue(ServerSettings(batch=2, batch_wait=3600))
    items = [item(), item()]

    def put() -> None:
        for each in items:
            time.sleep(0.02)  # the worker waits meanwhile, for the first and for the second
            queue.put(each)

    threading.Thread(target=put).start()
    assert queue.take().items == items


def test_workers_that_wait_share_the_requests() -> None:
    queue = Queue(ServerSettings(batch=8, batch_wait=0.2, workers=2))
    batches: list[JobBatch] = []
    takers = [threading.Thread(target=lambda: batches.append(queue.take())) for _ in range(2)]
    for taker in takers:
        taker.start()
    while queue.takers < 2:
        time.sleep(0.001)
    items = [item() for _ in range(4)]
    with queue.changed:  # no worker sees only some of them
        for each in items:
            queue.put(each)
    for taker in takers:
        taker.join()
    assert sorted(len(batch.items) for batch in batches) == [2, 2]
    assert {each for batch in batches for each in batch.items} == set(items)
    assert not any(batch.alone for batch in batches)


def test_a_request_is_alone_only_while_no_other_worker_computes() -> None:
    queue = Queue(ServerSettings(batch_wait=0, workers=1))
    for count, alone in ((1, True), (2, False)):
        for _ in range(count):
            queue.put(item())
        assert queue.take().alone == alone
    queue = Queue(ServerSettings(batch_wait=0, workers=2))
    queue.put(item())
    assert not queue.take().alone  # the other worker does not wait


def test_requests_of_a_dead_worker_come_first_and_alone() -> None:
    queue = Queue(ServerSettings(batch=4, batch_wait=0))
    later, returned = item(), [item(), item()]
    queue.put(later)
    for each in returned:
        each.attempts = 1
    queue.put_back(returned)
    assert [queue.take().items for _ in range(3)] == [[returned[0]], [returned[1]], [later]]


def test_cancelled_requests_are_not_computed() -> None:
    queue = Queue(ServerSettings(batch=4, batch_wait=0))
    items = [item() for _ in range(3)]
    for each in items:
        queue.put(each)
    items[0].future.cancel()
    queue.remove(items[0])
    items[1].future.cancel()  # between its removal and the worker
    assert queue.take().items == [items[2]]
    items[1].answer(Answer(200, b""))  # of a worker that had it already: nobody gets it
    assert items[1].future.cancelled()


def test_closing_ends_a_waiting_worker() -> None:
    queue = Queue(ServerSettings())
    threading.Timer(0.02, queue.close).start()
    assert queue.take().items == []
