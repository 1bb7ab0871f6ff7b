"""What docs/metric.md says runs as written, on small data and a small network."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dafast.cli import main
from dafast.models.depth_anything import DepthAnything
from dafast.pointcloud import PointCloud
from dafast.training.command import parse_args
from dafast.training.config_files import load_toml
from dafast.training.loop import train
from dafast.training.tasks.metric import build_metric_model
from tests.training.runs import ONE, tiny_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metric.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line]
DRIVE = "2011_09_26/2011_09_26_drive_0001_sync"
# What makes a run small; everything else is as the page and its configurations have it.
SMALL = (
    "--data.shapes 42 56 --steps 2 --batch-size 2 --data.workers 0 --optim.warmup-steps 0 "
    "--model.preset tiny --model.init ./vits"
)


def picture(path: Path, rng: np.random.Generator, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)


def depth16(path: Path, rng: np.random.Generator, height: int, width: int, unit: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    depth = rng.uniform(0.5, 9, (height, width)) * (rng.random((height, width)) < 0.7)
    Image.fromarray(np.rint(depth * unit).astype(np.uint16)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_seed: int) -> Path:
    """The networks and the data, where the page has them."""
    h5py = pytest.importorskip("h5py")
    io = pytest.importorskip("scipy.io")
    rng = np.random.default_rng(run_seed)
    root = tmp_path_factory.mktemp("documented")
    data = root / "data"
    DepthAnything("tiny").save_pretrained(root / "vits")
    for name in ("metric-indoor-vitl", "metric-outdoor-vitl"):
        settings = load_toml(ROOT / "configs" / "metric-nyu.toml").metric
        config = tiny_config(root, root, metric=settings)
        build_metric_model(config, torch.device("cpu")).save_pretrained(root / name)
    for i in range(2):
        picture(data / f"nyu/kitchen_0028b/rgb_{i:05d}.jpg", rng, 48, 64)
        depth16(data / f"nyu/kitchen_0028b/sync_depth_{i:05d}.png", rng, 48, 64, 1000)
        picture(data / f"kitti/{DRIVE}/image_02/data/{i:010d}.png", rng, 352, 1216)
        truth = f"train/{DRIVE.split('/')[1]}/proj_depth/groundtruth/image_02/{i:010d}.png"
        depth16(data / "kitti" / truth, rng, 352, 1216, 256)
    (data / "kitti/eigen_train_files.txt").write_text(f"{DRIVE} 0 l\n{DRIVE} 1 l\n")
    (data / "kitti/eigen_test_files.txt").write_text(f"{DRIVE} 1 l\n")
    (data / "nyuv2").mkdir()
    with h5py.File(data / "nyuv2/nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = rng.integers(0, 256, (1, 3, 640, 480), dtype=np.uint8)
        file["rawDepths"] = rng.uniform(0, 12, (1, 640, 480)).astype(np.float32)
    io.savemat(data / "nyuv2/splits.mat", {"testNdxs": np.array([[1]])})
    picture(data / "a.png", rng, 48, 64)
    np.save(data / "a.npy", rng.uniform(1, 9, (48, 64)))
    with (data / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "depth"], ["a.png", "a.npy"]])
    return root


def run_training(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """train.py's command line in this process, its configurations found in the checkout."""
    options = words[words.index("train.py") + 1 :]
    options[1] = str(ROOT / options[1])
    config = parse_args([*options, *shlex.split(SMALL)])
    train(config, ONE)
    exported = DepthAnything.from_pretrained(folder / config.out / "export", device="cpu")
    assert exported.config.max_depth == config.metric.max_depth
    assert exported.config.bin_centers == config.metric.head


@pytest.mark.slow
def test_commands_one_after_the_other(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    seed: int,
) -> None:
    """They build on each other, as a reader would type them."""
    pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kinds = {"dafast": 0, "train.py": 0}
    for command in COMMANDS:
        words = shlex.split(command, comments=True)
        if "train.py" in words:
            kinds["train.py"] += 1
            run_training(words, folder, monkeypatch)
        elif words[0] == "dafast":
            kinds["dafast"] += 1
            words = [f"./{w}" if w.startswith("metric-") else w for w in words[1:]]
            if words[0] == "synth":  # a few instead of hundreds: rendering takes long
                words[words.index("--scenes") + 1] = "2"
                words += ["--workers", "1"]
            assert main(words) == 0, command
        else:
            # Has a test of its own, tests/test_experiments.py.
            assert words == ["python", "experiments/metric_on_synthetic.py"]
        text = capsys.readouterr().out
        if words[0] == "eval":
            assert "abs_rel" in text, command
    assert kinds == {"dafast": 9, "train.py": 4}
    rows = json.loads((folder / "scores.json").read_text())
    mine = [row for row in rows if row["predictor"] == "tiny-metric"]
    assert {(row["data"], row["protocol"]) for row in mine} == {
        ("nyuv2", "paper+none"),
        ("list", "paper+none"),
    }


@pytest.mark.slow
def test_python(folder: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.chdir(folder)
    picture(folder / "photo.jpg", rng, 48, 64)
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    code = code.replace('"v2-metric-hypersim-vits"', '"./metric-indoor-vitl"')
    names = dict(zip(("fx", "fy", "cx", "cy"), (60.0, 60.0, 32.0, 24.0), strict=True))
    exec(code, names)
    assert names["depth"].shape == (48, 64) and names["depth"].dtype == np.float32
    assert isinstance(names["cloud"], PointCloud) and len(names["cloud"].points) == 48 * 64
    assert (folder / "photo.ply").stat().st_size > 15 * 48 * 64
