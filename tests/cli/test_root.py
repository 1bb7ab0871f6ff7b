"""The root of the command line: mistakes, streams, Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import pytest

import dafast
from dafast.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["run", "a.jpg"], "--out"),
        (["run", "a.jpg", "--out", "x", "--palette", "nope"], "inferno"),
        (["run", "a.jpg", "--out", "x", "--size", "0"], "at least 1"),
        (["run", "a.jpg", "--out", "x", "--size", "big"], "whole number"),
        (["synth", "--out", "x"], "--scenes"),
    ],
)
def test_mistakes_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"dafast {dafast.__version__}\n"
