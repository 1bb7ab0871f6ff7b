"""The connection between the server and its processes."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from dafast.serve.channel import open_channel
from dafast.serve.jobs import Answer, Job, PredictOptions


def test_messages_arrive_in_order_and_whole(seed: int) -> None:
    ours, theirs = open_channel()
    sizes = [0, 1, 70_000, int(np.random.randint(1 << 20, 3 << 20)), 5]
    sent = [(i, np.random.bytes(size)) for i, size in enumerate(sizes)]
    thread = threading.Thread(target=lambda: [ours.send(each) for each in sent])
    thread.start()
    assert [theirs.recv() for _ in sent] == sent
    thread.join()


def test_a_closed_end_is_an_error() -> None:
    ours, theirs = open_channel()
    ours._socket.sendall(b"\x09\0\0")  # a process that was killed within a message
    ours.close()
    with pytest.raises(EOFError):
        theirs.recv()
    with pytest.raises(OSError, match="Broken pipe"):
        theirs.send(b"x")


def test_bytes_of_jobs_and_answers_arrive_unchanged(seed: int) -> None:
    ours, theirs = open_channel()
    data = [np.random.bytes(int(size)) for size in (0, *np.random.randint(1, 20_000, 3))]
    sent = [(i, Job(each, PredictOptions("nano"), "npy")) for i, each in enumerate(data)]
    answers = [Answer(200, each, {"X-Depth-Kind": "depth"}) for each in data]
    ours.send((sent, answers))
    assert theirs.recv() == (sent, answers)
    assert all(type(job.data) is bytes for _, job in sent)
