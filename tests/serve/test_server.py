"""A real server: its answers are those of `predict`, and a worker that dies costs nothing."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import re
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import torch

from dafast import DepthAnything
from dafast.serve import ServerSettings
from dafast.serve.encoding import FORMATS, encode
from tests.serve.running import Running
from tests.tiny import TINY
from tests.tolerances import TOLERANCES

BOUND = TOLERANCES[torch.float32].model
SETTINGS = ServerSettings(dtype="float32", device="cpu", max_pixels=100_000, batch_wait=0.05)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    server = Running(SETTINGS)
    try:
        server.wait()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def model() -> DepthAnything:
    return DepthAnything.from_pretrained("nano", device="cpu", dtype="float32")


def photo(height: int, width: int, kind: str = "png", **options: Any) -> bytes:
    pixels = np.random.randint(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    image = PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def close(values: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(values - expected).max() <= BOUND * np.abs(expected).max())


def post(running: Running, data: bytes, **query: Any) -> httpx.Response:
    return running.client.post("/v1/depth", params={"size": 98, **query}, content=data)


@pytest.mark.slow
def test_each_format_is_what_predict_saves(running: Running, model: Any, seed: int) -> None:
    data = photo(60, 90)
    expected = model.predict(data, size=98, fov=70)
    for name in FORMATS:
        answer = post(running, data, format=name, fov=70, palette="inferno")
        assert answer.status_code == 200, answer.text
        wanted = encode(expected, name, "inferno")
        if name in ("png16", "color", "gray", "exr", "glb"):  # rounding may differ by threads
            assert answer.content[:8] == wanted[:8] and len(answer.content) > 500
        if name in ("png16", "color", "gray"):
            got, right = (
                np.asarray(PIL.Image.open(io.BytesIO(file))).astype(int)
                for file in (answer.content, wanted)
            )
            assert np.abs(got - right).max() <= (8 if name == "png16" else 2)
        if name == "npy":
            values = np.load(io.BytesIO(answer.content))
            assert close(values, expected.values)
        if name == "json":
            content = answer.json()
            values = np.frombuffer(base64.b64decode(content["data"]), "<f4")
            assert content["shape"] == [60, 90] and content["kind"] == "disparity"
            assert close(values.reshape(60, 90), expected.values)
    assert answer.headers["x-depth-size"] == "90x60"
    assert answer.headers["x-depth-camera"] == "fov"


@pytest.mark.slow
def test_mixed_requests_at_once_get_their_own_answers(
    running: Running, model: Any, seed: int
) -> None:
    photos = [photo(40 + 8 * (i % 3), 56, "jpeg" if i % 2 else "png") for i in range(12)]
    expected = [model.predict(data, size=98).values for data in photos]
    for _ in range(50):  # on a busy machine one may come after another
        with ThreadPoolExecutor(12) as clients:
            answers = list(clients.map(lambda data: post(running, data, format="npy"), photos))
        for values, answer in zip(expected, answers, strict=True):
            assert close(np.load(io.BytesIO(answer.content)), values)
        count, total = (
            float(re.search(rf"^dafast_batch_size_{name} (.*)$", metrics, re.M)[1])
            for metrics in [running.client.get("/metrics").text]
            for name in ("count", "sum")
        )
        if total > count:
            break
    assert total > count, "no two shared a batch"


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.slow
def test_bad_pictures_are_refused_without_harm_to_others(
    running: Running, model: Any, seed: int
) -> None:
    fine = photo(40, 56)
    restarts = running.pool.restarts
    bodies = [fine, b"no picture", bomb(), fine[: len(fine) // 2], photo(400, 400), fine]
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = list(clients.map(lambda data: post(running, data, format="npy"), bodies))
    assert [answer.status_code for answer in answers] == [200, 415, 413, 415, 413, 200]
    assert "900.0 megapixels" in answers[2].text
    assert answers[0].content == answers[-1].content
    assert running.pool.restarts == restarts


@pytest.mark.slow
def test_the_camera_of_a_photo_counts(running: Running, seed: int) -> None:
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50
    answer = post(running, photo(36, 36, "jpeg", exif=exif), format="json").json()
    assert answer["camera_source"] == "exif"
    assert answer["intrinsics"][0] == pytest.approx(50 / np.hypot(36, 24) * np.hypot(36, 36))


def test_signals_to_all_processes_do_not_end_a_worker(
    running: Running, model: Any, seed: int
) -> None:
    """Ctrl-C and service managers signal the whole group; the server still needs its workers."""
    (worker,) = running.pool.workers
    for each in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, each)
    data = photo(40, 56)
    answer = post(running, data, format="npy")
    assert close(np.load(io.BytesIO(answer.content)), model.predict(data, size=98).values)
    assert running.pool.restarts == 0


@pytest.mark.slow  # starts two more workers
def test_a_killed_worker_is_replaced_and_its_requests_answered(
    running: Running, model: Any, seed: int
) -> None:
    (worker,), before = running.pool.workers, running.pool.restarts
    sent: list[tuple[bytes, Future[httpx.Response]]] = []
    with ThreadPoolExecutor(10) as clients:
        for kills in (1, 2):
            while not (worker.ready and worker._items):
                if all(answer.done() for _, answer in sent):  # it was quicker than this thread
                    for data in (photo(48, 64) for _ in range(10)):
                        sent.append((data, clients.submit(post, running, data, format="npy")))
                time.sleep(0.001)
            os.kill(worker.pid, signal.SIGKILL)
            while running.pool.restarts < before + kills:
                time.sleep(0.001)
        received = [(data, answer.result()) for data, answer in sent]
    for data, answer in received:
        assert answer.status_code == 200, answer.text
        expected = model.predict(data, size=98).values
        assert close(np.load(io.BytesIO(answer.content)), expected)


@pytest.mark.exhaustive  # starts up to ten workers
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_no_request_is_lost_with_any_number_of_workers(
    workers: int, tmp_path: Path, seed: int
) -> None:
    """Also with more workers than processors. Each kill is of a worker that has requests."""
    tiny = DepthAnything(TINY).eval()
    tiny.save_pretrained(tmp_path)
    settings = dataclasses.replace(
        SETTINGS, models=(str(tmp_path),), workers=workers, timeout=600.0
    )
    server = Running(settings)
    photos = [photo(40 + 8 * (i % 3), 56) for i in range(12)]
    expected = [tiny.predict(data).values for data in photos]
    stop = threading.Event()

    def client(i: int) -> int:
        count = 0
        while count < 20 or not stop.is_set():
            answer = post(server, photos[i], format="npy", size=28)
            assert answer.status_code == 200, answer.text
            assert close(np.load(io.BytesIO(answer.content)), expected[i])
            count += 1
        return count

    try:
        server.wait()
        with ThreadPoolExecutor(12) as clients:
            answers = [clients.submit(client, i) for i in range(12)]
            for kills in (1, 2):  # a request with three dead workers is refused
                while not (busy := [w for w in server.pool.workers if w.ready and w._items]):
                    assert not any(answer.done() for answer in answers)
                os.kill(busy[0].pid, signal.SIGKILL)
                while server.pool.restarts < kills:
                    time.sleep(0.001)
            while not all(worker.ready for worker in server.pool.workers):
                time.sleep(0.01)
            stop.set()
            counts = [answer.result() for answer in answers]
        assert min(counts) >= 20 and server.pool.restarts == 2
    finally:
        stop.set()
        server.close()
