"""The commands of docs/serve.md, in the order of the page, on a free port."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafast.views import save_video
from tests.test_shell_blocks import ROOT, lines

LEFT_OUT = r"^(pip install|docker)"
"""Lines that install packages, and those that need a Docker daemon."""


class Command:
    """A `dafast` command of the page that runs until it is ended."""

    def __init__(self, words: list[str]) -> None:
        more = ["--no-browser"] if words[1] == "demo" else []
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words, "--port", "0", *more],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().removeprefix("serving on http://").strip()

    def end(self) -> int:
        """Ends it as Ctrl-C does, and returns its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(120)


def curl(line: str, address: str) -> str:
    """Runs a line with this address, and returns what it prints."""
    line = line.replace("localhost:8000", address)
    done = subprocess.run(
        ["bash", "-c", line.replace("curl ", "curl -sS --fail-with-body ", 1)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def wait_for_video(number: str, address: str) -> None:
    deadline = time.monotonic() + 300
    while (job := json.loads(curl(f"curl {address}/v1/video/{number}", address)))["status"] in (
        "queued",
        "running",
    ):
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    assert job["status"] == "done", job


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    photo = Image.open(ROOT / "examples/photos/room.jpg").resize((112, 84))
    photo.save("photo.jpg")
    save_video("clip.mp4", [np.roll(np.asarray(photo), 2 * i, axis=1) for i in range(6)], fps=24)
    return tmp_path


@pytest.mark.exhaustive  # starts two servers
def test_commands_of_the_page_run(folder: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    server: Command | None = None
    number, ran, printed = "", 0, ""
    try:
        for line in lines("docs/serve.md"):
            if re.search(LEFT_OUT, line):
                continue
            if line.startswith("dafast "):
                assert server is None or server.end() == 0
                server = Command(shlex.split(line))
            else:
                assert line.startswith("curl ") and server is not None, line
                if line.endswith("/result"):
                    wait_for_video(number, server.address)
                printed = curl(line.replace("Kq3...", number), server.address)
                if "format=json" in line:
                    assert json.loads(printed)["shape"] == [84, 112]
                if "/v1/video?" in line:
                    number = json.loads(printed)["id"]
            ran += 1
        assert server is not None and server.end() == 0
    finally:
        if server is not None:
            server.process.kill()
    assert ran == 9
    depth = np.asarray(Image.open("depth.png"))
    assert depth.shape == (84, 112) and depth.max() > 255
    assert Path("points.ply").read_bytes()[:3] == b"ply"
    assert Path("depth.mp4").read_bytes()[4:8] == b"ftyp"
