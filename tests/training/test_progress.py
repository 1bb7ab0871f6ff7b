"""What a run prints and records."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from dafast.training import progress as module
from dafast.training.progress import RunLog

VALUES = {"loss": 0.25, "lr": 1e-3}


def run(progress: RunLog) -> None:
    for step in (1, 2, 3):
        progress.step(step, 0.5, 4, VALUES)
    progress.evaluation(3, {"absrel": 0.125})
    progress.close()


def test_a_terminal_shows_one_line_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    progress = RunLog(tmp_path, 4, 0, 100, True)
    run(progress)
    printed = capsys.readouterr().out
    shown = printed.split("\n")[0].split("\r")[1:]
    assert [line[:8] for line in shown] == ["step 1/4", "step 2/4", "step 3/4"]
    assert {len(line) for line in shown} == {39}
    assert printed.split("\n")[-2].startswith("eval at step 3: absrel 0.1250")


def test_a_process_that_is_not_the_main_one_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = RunLog(tmp_path / "out", 4, 0, 1, False)
    run(progress)
    progress.say("nothing")
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()


def test_tensorboard_gets_what_the_file_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((Path(folder).name, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr(module, "why_no_module", lambda *names: "")
    run(RunLog(tmp_path, 4, 2, 1, True))
    assert written[0] == ("tensorboard", 2) and written[-1] == "closed"
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [(k, v, x["step"]) for x in lines for k, v in x.items() if k != "step"]
    assert [w[:1] + w[2:] for w in written[1:-1]] == [w[:1] + w[2:] for w in expected]
    assert ("eval/absrel", 0.125, 3) in written and ("loss", 0.25, 1) in written
