"""Videos as jobs of the server."""

from __future__ import annotations

import io
import queue
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from starlette.testclient import TestClient

from dafast.serve import ServerSettings, create_app, video_jobs
from dafast.serve import app as module
from dafast.serve.video_jobs import VideoOptions
from tests.serve.fakes import FakePool
from tests.serve.test_app import good
from tests.video.clips import moving, write_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, moving(10), sound="aac").read_bytes()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    settings = ServerSettings(videos=2, max_video_bytes=100_000, dtype="float32", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Pool", lambda settings, on_batch: FakePool(good))
        with TestClient(create_app(settings)) as client:
            yield client


def wait(client: TestClient, name: str) -> dict[str, Any]:
    while True:
        about = client.get(f"/v1/video/{name}").json()
        if about["status"] in ("done", "failed"):
            return about
        time.sleep(0.05)


@pytest.mark.slow  # two processes
def test_a_video_becomes_a_video_of_its_depth(client: TestClient, clip: bytes) -> None:
    started = client.post("/v1/video", params={"layout": "side"}, content=clip)
    assert started.status_code == 202
    waiting = client.post("/v1/video", content=b"no video").json()
    full = client.post("/v1/video", content=clip)
    assert (full.status_code, full.headers["retry-after"]) == (503, "10")
    name = started.json()["id"]
    assert client.get(f"/v1/video/{name}/result").status_code in (200, 409)
    done = {"id": name, "status": "done", "frames": 10, "total": 10, "problem": ""}
    assert wait(client, name) == done
    answer = client.get(f"/v1/video/{name}/result")
    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content)) as video:
        pictures = list(video.decode(video=0))
        assert len(pictures) == 10 and len(video.streams.audio) == 1
        assert (pictures[0].width, pictures[0].height) == (128, 48)
    failed = wait(client, waiting["id"])
    assert failed["status"] == "failed" and "the video" in failed["problem"]
    assert "/" not in failed["problem"]  # no path of the server
    folder = client.app.state.server.videos.folder
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["depth.mp4"]
    assert client.delete(f"/v1/video/{name}").status_code == 204
    assert client.get(f"/v1/video/{name}").status_code == 404
    assert list(folder.rglob("depth.mp4")) == []


def test_wrong_videos_are_refused(client: TestClient) -> None:
    server = client.app.state.server
    before = set(server.videos.jobs)
    for query, content, status, message in (
        ({}, b"", 422, "empty"),
        ({}, b"x" * 100_001, 413, "100000 bytes"),
        ({"model": "vitg"}, b"x", 422, "this server has nano"),
        ({"palette": "nowhere"}, b"x", 422, "palette"),
        ({"layout": "round"}, b"x", 422, "overlay"),
    ):
        answer = client.post("/v1/video", params=query, content=content)
        assert answer.status_code == status and message in answer.text
    assert set(server.videos.jobs) == before
    for method, path in (("GET", "x"), ("GET", "x/result"), ("DELETE", "x")):
        assert client.request(method, f"/v1/video/{path}").status_code == 404


def test_closing_ends_the_running_job(clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Pool", lambda settings, on_batch: FakePool(good))
    with TestClient(create_app(ServerSettings(dtype="float32", device="cpu"))) as client:
        name = client.post("/v1/video", content=clip).json()["id"]
        while client.get(f"/v1/video/{name}").json()["status"] == "queued":
            time.sleep(0.01)
        folder: Path = client.app.state.server.videos.folder
        assert folder.exists()
    assert not folder.exists()


class Kept:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def send(self, message: tuple[Any, ...]) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("wrong", ["", "large", "damaged"])
def test_what_the_process_of_a_job_sends(wrong: str, clip: bytes, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "depth.mp4"
    source.write_bytes(b"no video" if wrong == "damaged" else clip)
    most = 100 if wrong == "large" else 10_000
    settings = ServerSettings(dtype="float32", device="cpu", max_pixels=most)
    channel = Kept()
    video_jobs.convert(channel, settings, source, out, VideoOptions("nano"))  # type: ignore[arg-type]
    if not wrong:
        assert channel.sent == [(8, 10), (10, 10), ("done", "")]
        with av.open(str(out)) as video:
            assert sum(1 for _ in video.decode(video=0)) == 10
        return
    ((status, problem),) = channel.sent
    assert status == "failed" and not out.exists()
    assert "64x48 is more than 100 pixels" in problem or problem.startswith("the video")


def test_jobs_end_and_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a process that answers when the test says so."""
    ours, theirs = queue.Queue(), threading.Event()
    process = types.SimpleNamespace(kill=lambda: ours.put(EOFError()), join=lambda: None)

    class Answers:
        def recv(self) -> tuple[Any, ...]:
            theirs.set()
            message = ours.get(timeout=60)
            if isinstance(message, Exception):
                raise message
            return message

    monkeypatch.setattr(video_jobs, "start_process", lambda *_, name: (process, Answers()))
    jobs = video_jobs.VideoJobs(ServerSettings(videos=2))
    try:
        running, waiting = (jobs.create(VideoOptions("nano")) for _ in range(2))
        jobs.start(running)
        assert theirs.wait(60)
        jobs.start(waiting)
        assert jobs.is_full and running.describe()["status"] == "running"
        jobs.remove(waiting)  # before its turn
        ours.put((4, 9))
        jobs.remove(running)  # kills its process
        while running.status != "failed":
            time.sleep(0.01)
        assert (running.frames, running.total) == (4, 9) and "has ended" in running.problem
        third = jobs.create(VideoOptions("nano"))
        jobs.start(third)
        ours.put(("done", ""))
        while third.status != "done":
            time.sleep(0.01)
        assert third.folder.exists() and waiting.status == "queued"
        monkeypatch.setattr(video_jobs, "KEPT", -1.0)
        jobs.create(VideoOptions("nano"))
        assert third.id not in jobs.jobs and not third.folder.exists()
    finally:
        jobs.close()
    assert not jobs.folder.exists()
