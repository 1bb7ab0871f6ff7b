"""The scripts in experiments/ run unchanged."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafast.data.shards import ShardDataset
from dafast.models.depth_anything import DepthAnything
from tests.forks import run_script

ROOT = Path(__file__).resolve().parent.parent


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_engine_in_miniature(tmp_path: Path, seed: int, rng: np.random.Generator) -> None:
    """The same script as in earnest, on a few images and for a few steps."""
    pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")
    photos = tmp_path / "my photos"
    photos.mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((96, 72)).save(photos / f"{i}.jpg")
    (photos / "broken.jpg").write_bytes(b"no picture")
    work = tmp_path / "work"
    sizes = {"SCENES": "4", "HELD_OUT": "1", "TEACHER_STEPS": "2", "STUDENT_STEPS": "2"}
    extra = "--batch-size 2 --data.shapes 56 70 --data.workers 0 --optim.warmup-steps 0"
    script = str(ROOT / "experiments/engine_in_miniature.sh")
    given = {"EXTRA": f"{extra} --seed {seed}", "PROCESSES": "1", "WORK": str(work)}
    done = run_script(["bash", script, str(photos)], {**os.environ, **sizes, **given})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED broken.jpg" in done.stdout
    assert len(ShardDataset(work / "pseudo-labeled")) == 4
    teacher, student = metrics(work / "teacher"), metrics(work / "student")
    assert [line["step"] for line in teacher] == [1, 2, 2]
    assert "unlabeled" not in teacher[0]
    assert {"labeled", "unlabeled", "alignment"} <= set(student[0])
    assert "eval/abs_rel" in student[-1]
    assert done.stdout.count("builtin") >= 2
    model = DepthAnything.from_pretrained(work / "student/export", device="cpu")
    assert np.isfinite(model.infer(photos / "0.jpg")).all()


FAKE = """#!/bin/sh
# Runs instead of Python: packs for real and notes the other steps.
echo "$*" >> "$LOG"
case "$*" in *"data pack"*) exec "$WARM" "$@" ;; esac
"""


def engine(tmp_path: Path, folders: list[str]) -> tuple[subprocess.CompletedProcess[str], str]:
    """The script called within `tmp_path`; the steps that it came to, but for packing not done."""
    fake, log = tmp_path / "fake", tmp_path / "log"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    log.write_text("")
    given = {"LOG": str(log), "WORK": "work", "PYTHONPATH": str(ROOT)}
    script = os.path.relpath(ROOT / "experiments/engine_in_miniature.sh", tmp_path)
    command = f'cd {tmp_path} && WARM=$PYTHON PYTHON={fake} exec bash {script} "$@"'
    done = run_script(["bash", "-c", command, "", *folders], {**os.environ, **given})
    return done, log.read_text()


def test_the_engine_stops_at_a_typo(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    done, log = engine(tmp_path, ["photos", "photoz"])
    assert done.returncode == 2
    assert "no such folder: photoz" in done.stderr
    assert log == "", "before anything is done"


@pytest.mark.slow
def test_the_engine_stops_at_folders_without_photographs(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "none").mkdir()
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / "photos/a.jpg")
    done, log = engine(tmp_path, ["photos", "none"])
    assert done.returncode == 1
    assert f"no photographs from {tmp_path / 'none'}" in done.stderr
    assert f"data pack {tmp_path / 'photos'} --out {tmp_path / 'work/photos/0'}" in log
    assert len(ShardDataset(tmp_path / "work/photos/0", labels="none")) == 1
    assert "train.py" not in log
    (tmp_path / "photos/b.jpg").write_bytes((tmp_path / "photos/a.jpg").read_bytes())
    done, log = engine(tmp_path, ["photos"])
    assert done.returncode == 1, "other photographs than those that are packed"
    assert "differ in items" in done.stderr
    assert "train.py" not in log


@pytest.mark.slow
def test_metric_on_synthetic(tmp_path: Path, fixed_seed: int) -> None:
    """The script that shows metres learned, on a few scenes and for a few steps."""
    pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")
    script = str(ROOT / "experiments/metric_on_synthetic.py")
    small = "--scenes 4 --held-out 2 --steps 2 --batch-size 2 --data.shapes 56 56"
    options = f"{small} --optim.warmup-steps 0 --seed {fixed_seed} --work {tmp_path}"
    done = run_script(["sh", "-c", f'"$PYTHON" {script} {options}'], os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "scores.json").read_text())
    assert len(rows) == 6
    for name, row in rows.items():
        assert f"| {name} | {row['abs_rel']:.3f}" in done.stdout
        assert all(np.isfinite(value) for value in row.values())
    # What is fitted to more is better on what it is fitted to.
    names = [name for name in rows if name.startswith("nano, one")]
    assert rows[names[1]]["abs_rel"] <= rows[names[0]]["abs_rel"] * 1.05
    model = DepthAnything.from_pretrained(tmp_path / "run/export", device="cpu")
    assert model.config.name == "nano-metric" and model.config.max_depth == 80
