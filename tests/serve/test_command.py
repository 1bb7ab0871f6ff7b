"""`dafast serve` and `dafast demo` in this process, over a pool without processes.

`tests/cli/test_serve.py` has the options, and real servers.
"""

from __future__ import annotations

import os
import signal
import webbrowser

import httpx
import pytest

from dafast.cli import main
from dafast.cli import serve as command
from dafast.optional import why_no_module
from dafast.serve import app as module
from dafast.serve.jobs import Answer
from tests.serve.fakes import FakePool


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> FakePool:
    pool = FakePool(lambda job: Answer(200, b"depth of " + job.data, {}))
    monkeypatch.setattr(module, "Pool", lambda settings, on_batch: pool)
    return pool


def test_demo_opens_the_page_and_a_signal_ends_it(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[tuple[str, bytes]] = []

    def open_page(address: str) -> None:
        base = address.split("/#")[0]
        headers = {"Authorization": "Bearer a/b"}
        answer = httpx.post(f"{base}/v1/depth", content=b"photo", headers=headers, timeout=60)
        opened.append((address, answer.content))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(webbrowser, "open", open_page)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["demo", "--port", "0", "--token", "a/b"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    ((address, answer),) = opened
    assert address.endswith("/#a/b") and answer == b"depth of photo"
    out, err = capsys.readouterr()
    assert out == f"serving on {address}\n"
    assert "loading nano" in err and err.endswith("the server has ended\n")


def test_a_model_that_cannot_be_loaded_ends_the_server(
    pool: FakePool, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.ready, pool.problem = False, "mine.safetensors: no such file"
    assert main(["serve", "--port", "0", "--model", "mine.safetensors"]) != 0
    out, err = capsys.readouterr()
    assert out == "" and "loading mine.safetensors" in err
    assert "mine.safetensors: no such file" in err.splitlines()[-1]


@pytest.mark.parametrize("port", ["65536", "http"])
def test_a_wrong_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--port", port])
    assert f"{port!r} is not a port (0 to 65535)" in capsys.readouterr().err


def test_headers_are_limited_with_and_without_httptools(monkeypatch: pytest.MonkeyPatch) -> None:
    if not why_no_module("httptools"):
        assert command._protocol().__name__ == "LimitedProtocol"
    monkeypatch.setattr("dafast.optional.why_no_module", lambda *names: "no httptools")
    assert command._protocol() == "h11"
