"""`dafast doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dafast.cli import main
from dafast.cli.doctor import collect
from tests.instruction_sets import instruction_set, needs_extension

ROOT = Path(__file__).resolve().parents[2]


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(json.dumps(collect()))
    assert report["packages"]["torch"] == torch.__version__
    for op, backends in report["ops"].items():
        assert backends[-1] == {"backend": "reference", "on": True}, op
    weights = ROOT / "dafast" / "weights" / "nano" / "model.safetensors"
    assert report["nano"]["present"] == weights.is_file()

    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in report["missing"]:
        assert part["part"] in text
    assert str(torch.__version__) in text


@needs_extension
def test_doctor_says_which_instructions_the_kernels_use(capsys):
    with instruction_set("portable"):
        assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["extension"]["cpu_instructions"] == "portable"
    # The one that is loaded is the one that was built, and has every op.
    assert "parts of the C++ extension" not in [part["part"] for part in report["missing"]]


def test_doctor_says_what_a_missing_extension_costs(capsys, monkeypatch):
    from dafast.ops import _extension

    monkeypatch.setattr(_extension, "_load", lambda: (None, "taken away by the test"))
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "taken away by the test" in text
    assert "cpp (off)" in text
    assert "resize_bicubic" in text[text.index("taken away") :]
