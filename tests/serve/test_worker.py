"""The worker of a server, in a thread of this process."""

from __future__ import annotations

import io
import json
import os
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from dafast.serve.channel import Channel
from dafast.serve.encoding import FORMATS
from dafast.serve.jobs import Answer, Job, PredictOptions
from dafast.serve.settings import ServerSettings
from dafast.serve.worker import run_worker

SETTINGS = ServerSettings(device="cpu", dtype="float32", max_pixels=5000, workers=1)
SMALL = PredictOptions("nano", size=28, fov=60.0)


@pytest.fixture
def limit(monkeypatch):
    """A worker sets these, which must not stay."""
    monkeypatch.setenv("DAFAST_MAX_PIXELS", "0")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def photo(rng: np.random.Generator, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def answers(settings: ServerSettings, *batches: list[Job]) -> list[Answer]:
    """What a worker answers to batches of jobs, in their order."""
    ours, theirs = map(Channel, socket.socketpair())

    def work() -> None:
        try:
            run_worker(theirs, settings)
        finally:
            theirs.close()  # or `recv` would wait forever

    worker = threading.Thread(target=work)
    worker.start()
    found: dict[int, Answer] = {}
    count = sum(map(len, batches))
    try:
        assert ours.recv() is None  # the model is loaded
        number = 0
        for jobs in batches:
            ours.send((False, list(enumerate(jobs, number))))
            number += len(jobs)
        free = 0
        while len(found) < count or free < len(batches):
            if (message := ours.recv()) is None:
                free += 1
            else:
                found[message[0]] = message[1]
    finally:
        ours.close()
        worker.join()
    return [found[i] for i in range(count)]


def test_every_format_has_its_answer(limit, rng):
    data = photo(rng)
    found = answers(SETTINGS, [Job(data, SMALL, name) for name in FORMATS])
    assert [answer.status for answer in found] == [200] * len(FORMATS), found
    bodies = dict(zip(FORMATS, found, strict=True))
    assert len({answer.body for answer in found}) == len(found)
    facts = json.loads(bodies["json"].body)
    assert facts["shape"] == [30, 40] and bodies["json"].facts["X-Depth-Size"] == "40x30"
    assert bodies["color"].body[:4] == bodies["png16"].body[:4] == b"\x89PNG"
    assert os.environ["DAFAST_MAX_PIXELS"] == "5000"


def test_each_refusal_is_of_its_own_picture(limit, tmp_path, rng):
    good = photo(rng)
    jobs = [
        Job(good, SMALL),
        Job(b"no picture", SMALL),
        Job(photo(rng, (100, 60)), SMALL),
        Job(good, PredictOptions("nano", size=28, fov=400.0)),
        Job(good, PredictOptions(str(tmp_path / "none"), size=28)),
    ]
    # The third picture of the first batch reaches the limit: two predictions.
    found = answers(SETTINGS, [Job(photo(rng, (50, 40)), SMALL) for _ in range(4)], jobs)
    assert [a.status for a in found] == [200] * 5 + [415, 413, 422, 500], found
    texts = [a.body.decode() for a in found[5:]]
    assert "megapixels; the limit is 0.005" in texts[1]
    assert "400" in texts[2]
    assert texts[3].startswith(f"the model cannot be loaded: {tmp_path / 'none'}")


def test_a_model_that_cannot_be_loaded_is_the_first_message(limit, tmp_path):
    ours, theirs = map(Channel, socket.socketpair())
    run_worker(theirs, ServerSettings(models=(str(tmp_path / "none"),), device="cpu"))
    assert str(tmp_path / "none") in ours.recv()
