"""`dafast serve`: its options, what it refuses, and how it ends."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import torch

from dafast import DepthAnything
from dafast.cli import build_parser, main
from dafast.cli.serve import settings_of
from tests.tiny import TINY
from tests.tolerances import TOLERANCES

pytest.importorskip("uvicorn")
ROOT = Path(__file__).resolve().parents[2]
BOUND = TOLERANCES[torch.float32].model


def parsed(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["serve", *words])


def test_the_server_is_private_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAFAST_TOKEN", raising=False)
    args = parsed("--device", "cpu")
    settings = settings_of(args)
    assert (args.host, settings.allow_urls, settings.cors_origins) == ("127.0.0.1", "", ())
    assert (settings.models, settings.token, settings.page) == (("nano",), "", False)


def test_options_become_settings() -> None:
    words = "--token t --max-pixels 10 --max-bytes 20 --timeout 3 --queue 4 --batch-wait 5"
    words += " --cors https://a --cors https://b --allow-urls --videos 0 --model a --model b"
    settings = settings_of(parsed(*words.split(), "--workers", "3", "--device", "cpu"))
    assert (settings.token, settings.max_pixels, settings.max_bytes) == ("t", 10, 20)
    assert (settings.timeout, settings.queue, settings.batch_wait) == (3.0, 4, 0.005)
    assert settings.cors_origins == ("https://a", "https://b")
    assert (settings.allow_urls, settings.videos, settings.workers) == ("public", 0, 3)
    assert settings.models == ("a", "b")


@pytest.mark.parametrize(
    ("model", "threads", "workers"), [("nano", 1, 1), ("nano", 2, 2), ("vitl", 8, 1)]
)
def test_small_models_get_two_workers(
    model: str, threads: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert settings_of(parsed("--model", model, "--device", "cpu")).workers == workers


@pytest.mark.parametrize("option", ["--workers", "--queue", "--batch", "--max-pixels"])
def test_numbers_are_positive(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(option, "0")
    assert f"argument {option}: " in capsys.readouterr().err


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) != 0
    message = capsys.readouterr().err
    assert f"--port {port}: " in message and "--port 0 takes a free port" in message


class Serve:
    """`dafast serve` in a process group of its own."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dafast", "serve", "--port", "0", "--device", "cpu", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def address(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().removeprefix("serving on ").strip()


@pytest.fixture
def serve() -> Iterator[Any]:
    started: list[Serve] = []

    def start(*words: str) -> Serve:
        started.append(Serve(*words))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.mark.exhaustive  # starts a server and two workers
@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_finishes_accepted_requests(
    signal_: signal.Signals, serve: Any, tmp_path: Path, seed: int
) -> None:
    tiny = DepthAnything(TINY).eval()
    tiny.save_pretrained(tmp_path)
    words = ("--dtype", "float32", "--batch", "64", "--batch-wait", "20000", "--timeout", "600")
    server = serve("--model", str(tmp_path), "--workers", "2", *words)
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.randint(0, 256, (30, 40, 3), np.uint8)).save(file, "PNG")
    expected = tiny.predict(file.getvalue()).values
    with httpx.Client(base_url=server.address(), timeout=600) as client:

        def post(_: int) -> httpx.Response:
            return client.post("/v1/depth", params={"format": "npy"}, content=file.getvalue())

        with ThreadPoolExecutor(10) as clients:
            answers = [clients.submit(post, i) for i in range(10)]
            accepted = 0
            while accepted < 10:  # received, or answered on a machine that is very busy
                time.sleep(0.01)
                text = client.get("/metrics").text
                admitted = re.search(r"^dafast_requests_admitted (.*)$", text, re.M)
                assert admitted is not None
                accepted = int(float(admitted[1])) + sum(answer.done() for answer in answers)
            os.killpg(server.process.pid, signal_)
            for answer in answers:
                assert answer.result().status_code == 200
                values = np.load(io.BytesIO(answer.result().content))
                assert np.abs(values - expected).max() <= BOUND * np.abs(expected).max()
    assert server.process.wait(120) == 0


@pytest.mark.exhaustive  # starts a server
def test_a_missing_model_is_one_line(serve: Any, tmp_path: Path) -> None:
    server = serve("--model", str(tmp_path / "missing.pth"))
    out, err = server.process.communicate(timeout=300)
    assert server.process.returncode != 0 and out == ""
    assert "missing.pth" in err and "Traceback" not in err
