"""`dafast doctor`."""

from __future__ import annotations

import json
import re
import sys
import tomllib
import types
from importlib.metadata import version
from pathlib import Path

import torch

from dafast import optional
from dafast.cli import doctor, main
from dafast.cli.doctor import OPTIONAL, collect
from tests.instruction_sets import instruction_set, needs_extension

ROOT = Path(__file__).resolve().parents[2]


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(json.dumps(collect()))
    assert report["packages"]["torch"] == version("torch")
    for op, backends in report["ops"].items():
        assert backends[-1] == {"backend": "reference", "on": True}, op
    weights = ROOT / "dafast" / "weights" / "nano" / "model.safetensors"
    assert report["nano"]["present"] == weights.is_file()

    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in report["missing"]:
        assert part["part"] in text
    assert version("torch") in text and report["inference"] in text


def test_doctor_says_how_the_network_runs(monkeypatch):
    from dafast.cli.doctor import _inference
    from dafast.models import packed_cpu

    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert "captures a CUDA graph for each size" in _inference(gpu, torch.bfloat16)
    monkeypatch.setattr(packed_cpu, "_why_no_onednn", lambda: "")
    assert _inference(cpu, torch.float32) == "packs the weights once"
    monkeypatch.setattr(packed_cpu, "_why_no_onednn", lambda: "no oneDNN")
    assert _inference(cpu, torch.float32) == "runs the modules: no oneDNN"
    assert _inference(torch.device("mps"), torch.float32) == "runs the modules"


def test_doctor_describes_gpus_and_missing_weights(capsys, monkeypatch):
    device = types.SimpleNamespace(name="A card", major=9, minor=0, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: device)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = doctor._devices()
    assert [each["device"] for each in found] == ["cpu", "cuda:0", "cuda:1", "mps"]
    assert (found[1]["compute_capability"], found[1]["memory_gib"]) == ("9.0", 80.0)
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "_devices", lambda: found)
    weights = {"present": False, "folder": "/here", "absent": ["config.json"]}
    monkeypatch.setattr(doctor, "_shipped_weights", lambda: weights)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "A card, 80.0 GiB, compute capability 9.0" in text and "Apple GPU" in text
    assert "nano weights: not in /here: config.json" in text
    parts = doctor._missing_hardware(torch.device("cuda"), torch.float32)
    assert [part["part"] for part in parts] == ["bfloat16"]
    assert "this CUDA has no bfloat16" in parts[0]["why"]


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


def test_doctor_names_a_broken_package_and_the_reason(tmp_path, monkeypatch, capsys):
    (tmp_path / "pillow_heif").mkdir()
    (tmp_path / "pillow_heif" / "__init__.py").write_text("raise OSError('no libheif')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(optional, "_BROKEN", {})
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    sys.modules.pop("pillow_heif", None)
    assert (
        "pillow-heif: pillow_heif is installed, but its import fails (OSError: no libheif)" in text
    )
    assert "  pillow-heif       installed, but its import fails  (extra [heif])" in text
    assert text.count("  h5py ") == 1


def test_doctor_lists_every_optional_package_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared: dict[str, list[str]] = {}
    for extra, requirements in project["optional-dependencies"].items():
        if extra not in ("all", "test", "dev", "docs"):
            for requirement in requirements:
                name = re.match(r"[\w.-]+", requirement)[0]
                declared.setdefault(name, []).append(extra)
    listed = [(package.name, sorted(package.extras)) for package in OPTIONAL]
    assert len(dict(listed)) == len(listed)
    assert dict(listed) == {name: sorted(extras) for name, extras in declared.items()}
