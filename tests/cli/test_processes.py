"""`dafast run` in many processes, as torchrun starts them."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import dafast
import dafast.cli.models
import dafast.cli.run
from dafast.cli import main
from dafast.cli._log import logger
from dafast.cli.photos import find_photos
from dafast.distributed import World
from dafast.formats.facts import read_facts
from tests.cli.helpers import contents, photo

ROOT = Path(__file__).resolve().parents[2]


def test_only_the_main_process_fails_and_sums_up(run, tmp_path, monkeypatch):
    """Under torchrun an error of another process would end the main one before its summary."""

    class Fake(World):
        broadcast = staticmethod(lambda value: find_photos([str(tmp_path / "in")]))
        gather = staticmethod(lambda value: [value])

    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for names in ((), ("a.png", "b.png")):
        for name in names:
            (tmp_path / "in" / name).write_bytes(b"x")
        for rank in (0, 1):
            session = contextlib.nullcontext(Fake(rank, 2, torch.device("cpu")))
            monkeypatch.setattr(dafast.cli.run, "_session", lambda session=session: session)
            code, text = run(tmp_path / "in")
            assert code == (1 if rank == 0 else 0)
            assert ("written to" in text) == (rank == 0)


class Pipe(io.RawIOBase):
    """Keeps each write by itself, as a pipe that other processes write to in between."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.writes.append(bytes(data).decode())
        return len(data)


@pytest.mark.parametrize("unbuffered", [False, True])
def test_each_line_is_one_write(unbuffered, tmp_path, rng, model_folder, monkeypatch):
    """Otherwise the lines of two processes of torchrun merge. Streams as Python makes them."""
    pipes = [Pipe(), Pipe()]
    for name, pipe in zip(("stdout", "stderr"), pipes, strict=True):
        inner = pipe if unbuffered else io.BufferedWriter(pipe)
        stream = io.TextIOWrapper(inner, line_buffering=False, write_through=unbuffered)
        monkeypatch.setattr(sys, name, stream)
    photo(tmp_path / "in" / "a.png", rng, (20, 30))
    (tmp_path / "in" / "broken.png").write_bytes(b"x")
    out = ["--out", str(tmp_path / "out"), "--formats", "png16", "--device", "cpu"]
    assert main(["run", str(tmp_path / "in"), *out, "--model", model_folder]) == 1

    def command(args):
        print("two", "words")
        print("two words", file=sys.stderr)
        logger.warning("of the library")
        warnings.warn("a warning", dafast.DafastWarning, stacklevel=1)
        raise ValueError("several\nlines")

    monkeypatch.setattr(dafast.cli.models, "list_models", command)
    assert main(["models"]) == 1
    for pipe in pipes:
        assert pipe.writes and all(text.endswith("\n") for text in pipe.writes), pipe.writes
    assert "two words\n" in pipes[0].writes
    wanted = "two words", "of the library", "a warning", "dafast: error: several\nlines"
    assert pipes[1].writes[-4:] == [f"{text}\n" for text in wanted]


@pytest.mark.slow
def test_processes_share_the_photos(tmp_path, rng, model_folder):
    """Two processes as torchrun starts them: no file is written twice, one summary."""
    for i in range(5):
        photo(tmp_path / "in" / f"{i}.png", rng, (20 + i, 30))
    (tmp_path / "in" / "broken.png").write_bytes(b"x")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "dafast", "run", str(tmp_path / "in"), "--out", str(tmp_path / "out")),
        *("--model", model_folder, "--device", "cpu", "--formats", "png16,npy", "--common-range"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",  # where `print` writes a line in two parts
        },
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    summaries = [line for line in lines if "written to" in line]
    assert len(summaries) == 1 and summaries[0].startswith("5 written"), done.stdout
    assert "1 failed" in summaries[0]
    for i in range(5):
        assert sum(line.startswith(f"{tmp_path / 'in' / str(i)}.png ->") for line in lines) == 1
    assert len(contents(tmp_path / "out")) == 10
    ranges = {tuple(read_facts(tmp_path / "out" / f"{i}_depth.png")["range"]) for i in range(5)}
    assert len(ranges) == 1
