"""experiments/ablation_in_miniature.py: its rows, its steps, its tables, and a whole small run."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dafast.data.colours import change_colours
from dafast.models.depth_anything import DepthAnything
from dafast.training.config_files import load_toml
from dafast.training.tasks import check_config
from tests.training import tiny

ROOT = Path(__file__).resolve().parent.parent
SWITCHES = ("path", "cutmix", "align")
COLOURS = ("jitter", "grayscale", "blur")


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("ablation_tasks")


@pytest.fixture
def driver(tasks: ModuleType) -> ModuleType:
    return importlib.import_module("ablation_in_miniature")


@pytest.fixture
def task(tasks: ModuleType, tmp_path: Path) -> Any:
    def make(name: str, **settings: Any) -> Any:
        shared = tasks.Settings(data=str(tmp_path), work=str(tmp_path), device="cpu", **settings)
        return tasks.Task(shared, name, time.time() + 600)

    return make


# ------------------------------------------------------------------------------------ the rows


def test_the_base_is_a_configuration() -> None:
    check_config(load_toml(ROOT / "configs/nano-ablation.toml"))


@pytest.mark.parametrize(
    "row", ["labeled", "labeled-x3", "naive", "cutmix", "alignment", "alignment-nano"]
)
def test_a_row_switches_what_the_papers_does(task: Any, tasks: ModuleType, row: str) -> None:
    file, times = tasks.ROWS[row]
    paper = load_toml(ROOT / f"configs/ablation/{file}.toml").unlabeled
    ours = task(f"{row}-2", batch_size=5).config()
    assert (ours.seed, ours.batch_size) == (2, 5 * times)
    for switch in SWITCHES:
        assert bool(getattr(ours.unlabeled, switch)) == bool(getattr(paper, switch)), switch
    assert ours.unlabeled.align_margin == paper.align_margin == 0.85
    for colour in COLOURS:
        assert getattr(ours.unlabeled.augment, colour) == getattr(paper.augment, colour), colour
    assert ours.model.encoder_init == "nano"
    check_config(ours)


def test_rows_differ_only_in_their_switches(task: Any) -> None:
    configs = [task(f"{row}-1").config() for row in ("naive", "cutmix", "alignment")]
    plain = [dataclasses.replace(c, unlabeled=configs[0].unlabeled) for c in configs]
    assert plain[0] == plain[1] == plain[2]
    assert configs[1].unlabeled == dataclasses.replace(configs[2].unlabeled, align="")


def test_a_teacher_is_no_students_twin(task: Any) -> None:
    assert task("teacher-1").config().seed != task("labeled-1").config().seed
    scratch = task("scratch-1").config()
    assert scratch.model.encoder_init == "mimetic"
    assert scratch.optim.encoder_lr > task("teacher-1").config().optim.encoder_lr


# --------------------------------------------------------------------------------- the batches


def unlabeled_set(tasks: ModuleType, folder: Path, seed: int) -> Any:
    shards = tiny.write_shards(folder, 1, 6, seed)
    return tasks.ResidentSet(tasks.ShardDataset(shards), "cpu", shape=(70, 84))


@pytest.mark.parametrize("row", ["naive", "cutmix", "alignment"])
def test_batches(tasks: ModuleType, task: Any, tmp_path: Path, seed: int, row: str) -> None:
    data = unlabeled_set(tasks, tmp_path / "shards", seed)
    config = task(f"{row}-1", batch_size=4, side=56).config()
    batches = tasks.Batches(config, data, data)
    step = seed % 1000
    batch, again, next_one = batches(step), batches(step), batches(step + 1)
    for one, two in zip(batch.unlabeled, again.unlabeled, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(batch.image, next_one.image)
    assert batch.image.shape == (4, 3, 56, 56)
    assert batch.disparity.shape == batch.mask.shape == (4, 56, 56)
    unlabeled = batch.unlabeled
    assert unlabeled.image.shape == (8, 3, 56, 56)
    assert unlabeled.region.shape == (8, 56, 56)
    naive = row == "naive"
    strong = change_colours(unlabeled.image, config.unlabeled.augment, unlabeled.colours)
    assert torch.equal(unlabeled.image, strong) == naive
    many = torch.cat([batches(step + i).unlabeled.region for i in range(6)])
    mixed = float((~many).any(-1).any(-1).float().mean())
    assert mixed == 0 if naive else 0.1 < mixed < 0.9


@pytest.mark.slow
def test_labels_of_whole_pictures(task: Any, seed: int) -> None:
    """Close to what `infer` gives, which pads instead of stretching."""
    model = DepthAnything.from_pretrained("nano", device="cpu", dtype="float32").eval()
    photo = Image.open(ROOT / "examples/photos/room.jpg").convert("RGB").resize((208, 160))
    pixels = np.asarray(photo)
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].repeat(3, 1, 1, 1)
    labels = task("teacher-1").label(model, images, batch=2)
    assert labels.shape == (3, 160, 208)
    assert (labels.min(), labels.max()) == (0.0, 1.0)
    want = model.infer(pixels)
    assert np.corrcoef(labels[0].ravel(), want.ravel())[0, 1] > 0.97


# ----------------------------------------------------------------------------------- the driver


def arguments(tmp_path: Path, **changes: Any) -> Namespace:
    values = {"data": "d", "work": tmp_path / "work", "report": None, "deadline": 100.0, "jobs": 2}
    values |= {"device": "cpu", "batch_size": 2, "side": 56, "limit": 0}
    return Namespace(**values | changes)


def test_the_slowest_says_how_many_steps(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    run = driver.Run(arguments(tmp_path))
    files = []
    for name, speed in (("a", 0.5), ("b", 2.0)):
        (run.work / name).mkdir()
        files.append(run.work / name / "speed.json")
        files[-1].write_text(json.dumps({"seconds_per_step": speed}))
    run.agree(run.work / "word.json", files, 2, 1100.0)
    steps = json.loads((run.work / "word.json").read_text())["steps"]
    assert steps == 23  # 0.93 * 100 / 2 waves / 2 seconds


def test_a_failing_task_is_tried_once_more_and_stops_nothing(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = driver.Run(arguments(tmp_path))
    started: list[tuple[str, str]] = []

    def start(task: str, backend: str, stop_at: float) -> subprocess.Popen[bytes]:
        started.append((task, backend))
        folder = run.work / task
        folder.mkdir(exist_ok=True)
        (folder / "log.txt").write_text("it broke\n")
        good = f"open({str(folder / 'result.json')!r}, 'w').write('{{}}')"
        code = "raise SystemExit(3)" if task == "bad" else good
        return subprocess.Popen([sys.executable, "-c", code])

    monkeypatch.setattr(run, "start", start)
    run.stage("some", ["bad", "one", "two"], time.time() + 50, steps=5)
    assert sorted(started) == [
        ("bad", "auto"),
        ("bad", "reference"),
        ("one", "auto"),
        ("two", "auto"),
    ]
    assert run.is_done("one")
    assert run.is_done("two")
    assert not run.is_done("bad")
    started.clear()
    run.stage("some", ["one", "two"], time.time() + 50)
    assert not started


def test_the_deadline_ends_a_stage(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = driver.Run(arguments(tmp_path))
    processes: list[subprocess.Popen[bytes]] = []

    def start(task: str, backend: str, stop_at: float) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        if len(processes) == 2:
            run.end = time.time()
        return processes[-1]

    monkeypatch.setattr(run, "start", start)
    run.stage("some", ["one", "two", "three"], time.time() + 50, steps=5)
    assert len(processes) == 2
    assert all(process.wait(60) != 0 for process in processes)


def scored(driver: ModuleType, rng: np.random.Generator, **more: Any) -> dict[str, Any]:
    names = [name for names in driver.COLUMNS.values() for name in names]

    def metrics() -> dict[str, float]:
        return {"abs_rel": float(rng.uniform(0.1, 0.5)), "delta_1": float(rng.uniform(0.3, 0.9))}

    return {"scores": {name: {"model": metrics()} for name in names}, **more}


def test_tables(driver: ModuleType, rng: np.random.Generator) -> None:
    results = {
        f"{row}-{seed}": scored(driver, rng, steps=7, complete=True)
        for row in ("labeled", "labeled-x3", "cutmix")
        for seed in (1, 2, 3)
    }
    results["cutmix-3"]["complete"] = False
    text = driver.tables(results)
    errors = [
        results[f"labeled-{s}"]["scores"]["held-out-unseen"]["model"]["abs_rel"] for s in (1, 2, 3)
    ]
    mean, deviation = statistics.fmean(errors), statistics.stdev(errors)
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1]
        for line in text.split("\n\n")[1].splitlines()[2:]
    }
    assert rows["labeled only"][0].strip() == "3"
    assert rows["labeled only"][3].strip() == f"{mean:.4f} ± {deviation:.4f}"
    assert rows["+ strong view and CutMix"][0].strip() == "2"  # the one cut short does not count
    assert "cutmix-3 | 7 (cut short)" in text
    differences = [
        results[f"cutmix-{s}"]["scores"]["aloe"]["model"]["abs_rel"]
        - results[f"labeled-{s}"]["scores"]["aloe"]["model"]["abs_rel"]
        for s in (1, 2)
    ]
    want = f"{statistics.fmean(differences):.4f} ± {statistics.stdev(differences):.4f}"
    assert want in text.split("abs_rel less that of")[1]


def test_tables_of_nothing(driver: ModuleType) -> None:
    assert "every run" in driver.tables({})


# --------------------------------------------------------------------------------- a whole run


@pytest.mark.exhaustive  # an experiment, no part of the package: six trainings and evaluations
def test_the_whole_in_a_few_steps(tmp_path: Path, seed: int) -> None:
    data = tmp_path / "data"
    for name in ("labeled", "held-out-labeled", "held-out-unlabeled", "held-out-unseen"):
        tiny.write_shards(data / name, 1, 4, seed)
    tiny.write_shards(data / "unlabeled", 1, 6, seed, labeled=False)
    work, report = tmp_path / "work", tmp_path / "report"
    sizes = "--seeds 1 --rows labeled alignment alignment-nano --batch-size 2 --side 56"
    steps = "--steps 2 --teacher-steps 2 --device cpu --jobs 2 --deadline 250"
    command = [sys.executable, str(ROOT / "experiments/ablation_in_miniature.py")]
    command += ["--data", str(data), "--work", str(work), "--report", str(report)]
    command += [*sizes.split(), *steps.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run() -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "everything is done" in run()
    found = json.loads((report / "results.json").read_text())
    assert found["check"]["ok"]
    students = {"labeled-1", "alignment-1", "alignment-nano-1"}
    assert set(found["results"]) == {"nano", "teacher-1", "scratch-1"} | students
    for name in students:
        result = found["results"][name]
        assert (result["steps"], result["complete"]) == (2, True)
        assert {"held-out-labeled", "held-out-unseen"} <= set(result["scores"])
    labels = [np.load(work / name / "labels.npy") for name in ("teacher-1", "nano")]
    assert labels[0].shape == labels[1].shape == (6, *labels[0].shape[1:])
    assert not np.allclose(*labels, atol=0.05)
    lines = (work / "alignment-1/metrics.jsonl").read_text().splitlines()
    assert {"labeled", "unlabeled", "alignment"} <= set(json.loads(lines[0]))
    model = DepthAnything.from_pretrained(report / "best", device="cpu")
    assert model.config.image_size == 56  # evaluated as it was trained
    assert np.isfinite(model.infer(ROOT / "examples/photos/room.jpg")).all()
    assert "0 of 3 to do" in run()  # the second time nothing is left
