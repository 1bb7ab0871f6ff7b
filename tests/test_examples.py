"""The examples run unchanged and fit on one screen."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dafast
from dafast.config import PRESETS
from dafast.data.lists import list_source
from tests.forks import Fork, python

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
PHOTO = str(ROOT / "examples/photos/room.jpg")


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_fits_on_one_screen(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) <= 40


def test_every_example_has_a_test() -> None:
    text = Path(__file__).read_text()
    assert len(EXAMPLES) == 6
    assert [name for name in EXAMPLES if f'run("{name}"' not in text and name not in text] == []


def test_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("predict.py", PHOTO, "--out", str(tmp_path), monkeypatch=monkeypatch)
    with Image.open(PHOTO) as photo, Image.open(tmp_path / "room.png") as picture:
        assert picture.size == photo.size
        assert np.asarray(picture).std() > 10


def test_point_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    torch.manual_seed(seed)
    config = dataclasses.replace(PRESETS["nano"], name="metric", max_depth=20.0)
    dafast.DepthAnything(config).save_pretrained(tmp_path / "model")
    out = tmp_path / "cloud.ply"
    arguments = ["--model", str(tmp_path / "model"), "--fov", "70", "--out", str(out)]
    run("point_cloud.py", PHOTO, *arguments, monkeypatch=monkeypatch)
    width, height = Image.open(PHOTO).size
    assert f"element vertex {width * height}\n".encode() in out.read_bytes()[:400]


@pytest.mark.slow
def test_rendered_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("embreex")
    out = str(tmp_path / "mine")
    run("rendered_pictures.py", "--count", "2", "--out", out, monkeypatch=monkeypatch)
    (first, _) = list_source(tmp_path / "mine.csv")
    depth = np.load(tmp_path / "mine/0000.npy")
    assert first.read is not None
    assert first.read().mask.shape == depth.shape == (168, 224)


def test_kernel_in_your_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("kernel_in_your_model.py", monkeypatch=monkeypatch)
    assert float(capsys.readouterr().out.split()[-1]) < 1e-5


@pytest.mark.slow
def test_encoder_features(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("encoder_features.py", PHOTO, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:] == [
        "pretrained.blocks.1: (1, 192, 64, 80)",
        "pretrained.blocks.2: (1, 192, 32, 40)",
        "pretrained.blocks.4: (1, 192, 16, 20)",
        "pretrained.blocks.5: (1, 192, 8, 10)",
    ]


@pytest.mark.slow
def test_finetune_on_a_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    for part in ("image", "depth"):
        (tmp_path / part).mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, (70, 84, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image" / f"{i}.jpg")
        depth = rng.integers(500, 9000, (70, 84), np.uint16)
        Image.fromarray(depth).save(tmp_path / "depth" / f"{i}.png")
    small = "--steps 2 --batch-size 2 --data.shapes 56 56 --data.workers 0 --data.hold-out 0.25"
    small += " --optim.warmup-steps 0"
    script = str(ROOT / "examples/finetune_on_a_folder.py")
    options = f"--model nano {small} --out {tmp_path / 'run'}"
    done = Fork(lambda: python([script, str(tmp_path), *options.split()]), {})
    assert done.wait(300) == 0, done.stdout + done.stderr
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 2
    model = dafast.DepthAnything.from_pretrained(tmp_path / "run/export", device="cpu")
    assert np.isfinite(model.infer(tmp_path / "image/0.jpg")).all()
