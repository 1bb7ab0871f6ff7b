"""The commands of docs/evaluation.md run as written, on small data and a small network."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dafast
from dafast.cli import main
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("dafast eval")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_seed):
    """The network and the data, where the page has them."""
    h5py = pytest.importorskip("h5py")
    io = pytest.importorskip("scipy.io")
    rng = np.random.default_rng(run_seed)
    root = tmp_path_factory.mktemp("documented")
    dafast.DepthAnything(TINY).save_pretrained(root / "vits")
    data = root / "data"

    drive = "2011_09_26_drive_0002_sync"
    photo = data / "kitti/2011_09_26" / drive / "image_02/data/0000000069.png"
    truth = data / "kitti/val" / drive / "proj_depth/groundtruth/image_02/0000000069.png"
    for path in (photo, truth):
        path.parent.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (37, 124, 3), dtype=np.uint8)).save(photo)
    Image.fromarray(rng.integers(0, 65536, (37, 124), dtype=np.uint16)).save(truth)
    (data / "kitti/test_files.txt").write_text(f"2011_09_26/{drive} 69 l\n")

    (data / "nyuv2").mkdir()
    with h5py.File(data / "nyuv2/nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = rng.integers(0, 256, (1, 3, 640, 480), dtype=np.uint8)
        file["rawDepths"] = rng.uniform(0, 12, (1, 640, 480)).astype(np.float32)
    io.savemat(data / "nyuv2/splits.mat", {"testNdxs": np.array([[1]])})

    np.save(data / "depth.npy", rng.uniform(1, 9, (30, 40)))
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(data / "photo.png")
    with (data / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "depth"], ["photo.png", "depth.npy"]])
    return root


def test_there_are_commands():
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, folder, monkeypatch, capsys, seed):
    if "builtin" in command:
        pytest.importorskip("skimage")
    command = command.replace("--model vits", "--model ./vits")  # a folder, not the preset
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (folder / "scores.json").unlink(missing_ok=True)
    assert main(shlex.split(command)[1:]) == 0
    table = capsys.readouterr().out
    assert "abs_rel" in table and "tiny" in table
    if "--json" in command:
        results = json.loads((folder / "scores.json").read_text())
        assert {(r["data"], r["protocol"], r["count"]) for r in results} == {
            ("kitti", "paper", 1),
            ("nyuv2", "paper", 1),
        }
        for name in ("abs_rel", "delta_1", "delta_2", "delta_3", "rmse", "log10", "silog"):
            assert all(np.isfinite(r[name]) for r in results)
    if "--cache" in command:
        assert list((folder / "predictions").glob("tiny-*/*.npy"))
