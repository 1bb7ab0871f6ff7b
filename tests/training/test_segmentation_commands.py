"""The commands of docs/segmentation.md run as written, on small data and with a small network.

A run of `train.py` gets two steps instead of its thousands, and small crops; scoring gets sizes to
match.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dafast.cli import main
from dafast.config import PRESETS
from dafast.data.shards import ShardDataset
from dafast.models import DepthAnything, FeaturePyramid, SegmentationModel
from dafast.training import starts
from tests.data.test_segmentation_readers import ade20k_photo, cityscapes_frame, write_list
from tests.training import tiny

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "segmentation.md").read_text(encoding="utf-8")
SHELL = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()
]
SMALL = ["--steps", "2", "--batch-size", "2", "--data.workers", "0", "--data.shapes", "28", "42",
         "--optim.warmup-steps", "0", "--threads", "1", "--data.max-bad-fraction", "0.5",
         "--data.eval-samples", "2"]  # fmt: skip


def test_there_are_commands() -> None:
    kinds = [" ".join(command.split()[:2]) for command in SHELL]
    assert {k: kinds.count(k) for k in kinds} == {
        "dafast synth": 2,
        "python train.py": 3,
        "torchrun --nproc-per-node": 2,
        "dafast eval": 4,
        "python experiments/linear_probe.py": 1,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_seed: int) -> Path:
    """The data, where the page has it; the commands run here in the page's order."""
    rng = np.random.default_rng(run_seed)
    root = tmp_path_factory.mktemp("documented")
    for split in ("train", "val"):
        cityscapes_frame(root / "data/cityscapes", split, "bonn", 0, rng, trained=split == "val")
    for split in ("training", "validation"):
        ade20k_photo(root / "data/ADEChallengeData2016", split, 1, rng)
    write_list(root / "data", rng)
    (root / "configs").symlink_to(ROOT / "configs")
    return root


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with the scenes fewer and the training short."""
    words = shlex.split(command)
    if words[:2] == ["dafast", "synth"]:
        words[words.index("--scenes") + 1] = "3"
        words += ["--workers", "1"]
    if words[0] == "dafast":
        words = [{"896": "56", "518": "28"}.get(word, word) for word in words]
        assert main(words[1:]) == 0
        return
    assert main(["train", *words[words.index("train.py") + 1 :], *SMALL]) == 0


@pytest.mark.slow
def test_the_commands_run_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One test: what is scored is what was trained before."""
    pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(PRESETS, "vitl", tiny.TINY)  # vitl.init is then a folder of that name
    DepthAnything(tiny.TINY).save_pretrained(folder / "vitl")
    original = starts.load_pretrained

    def local(cls: type, name: object, **options: object) -> DepthAnything:
        return original(cls, folder / "vitl" if name == "vitl" else name, **options)

    monkeypatch.setattr(starts, "load_pretrained", local)
    commands = [c for c in SHELL if "linear_probe" not in c]
    trained = [c for c in commands if "train.py" in c]
    scored = [c for c in commands if c.startswith("dafast eval")]
    for command in [c for c in commands if c.startswith("dafast synth")] + trained:
        run(command, monkeypatch)
    assert len(ShardDataset(folder / "data/synthetic")) == 3
    runs = {p.parent.name: p for p in folder.glob("runs/*/export")}
    assert set(runs) == {
        "segmentation-nano",
        "segmentation-tuned",
        "segmentation-ade20k",
        "segmentation-cityscapes",
        "segmentation-list",
    }
    capsys.readouterr()
    for command in scored:
        run(command, monkeypatch)
        printed = capsys.readouterr().out
        assert "miou" in printed and "constant" in printed, command
    entries = json.loads((folder / "scores.json").read_text())
    assert [(e["data"], e["count"]) for e in entries] == [("cityscapes", 1)] * 2
    assert all({"miou", "pixel_accuracy", "mean_accuracy", "iou"} <= set(e) for e in entries)


@pytest.mark.slow
def test_the_linear_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The script, on a few scenes and for a few steps; a second run continues."""
    pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    import linear_probe

    options = ["--scenes", "4", "--held-out", "2", "--steps", "2", "--batch-size", "2"]
    options += ["--seeds", "1", "2", "--work", str(tmp_path / "probe")]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["linear_probe.py", *options])
        linear_probe.main()
        printed = capsys.readouterr().out
        assert "| nano | linear |" in printed and "| random | linear |" in printed
        assert "| constant | - |" in printed
    rows = json.loads((tmp_path / "probe/results.json").read_text())
    assert [row["encoder"] for row in rows] == ["nano", "random", "constant"]
    for row in rows:
        assert 0 <= row["miou"] <= 1
    encoders = {
        run: SegmentationModel.from_pretrained(tmp_path / "probe" / run / "export", device="cpu",
                                               dtype="float32").pretrained
        for run in ("nano-linear-1", "nano-linear-2", "random-linear-1", "random-linear-2")
    }  # fmt: skip
    nano = DepthAnything.from_pretrained("nano", device="cpu", dtype="float32").pretrained
    weight = "blocks.0.attn.qkv.weight"
    weights = {run: encoder.get_parameter(weight) for run, encoder in encoders.items()}
    assert torch.equal(weights["nano-linear-1"], nano.get_parameter(weight))
    assert torch.equal(weights["nano-linear-2"], nano.get_parameter(weight))
    assert not torch.equal(weights["random-linear-1"], weights["random-linear-2"])


def test_the_python_of_the_page(tmp_path: Path, seed: int, rng: np.random.Generator) -> None:
    """Its shapes and numbers, line by line."""
    import dafast

    depth = dafast.DepthAnything.from_pretrained("nano", device="cpu", dtype="float32")
    model = dafast.SegmentationModel.from_depth(
        depth, classes=["sky", "ground", "rest"], head="linear"
    )
    images = torch.randn(2, 3, 28, 42)
    assert model(images).shape == (2, 3, 28, 42)
    model.save_pretrained(tmp_path / "export")
    loaded = dafast.SegmentationModel.from_pretrained(tmp_path / "export", device="cpu")
    classes = loaded.segment(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    assert classes.shape == (30, 40) and classes.dtype == np.uint8
    pyramid = dafast.FeaturePyramid(depth)
    assert isinstance(pyramid, FeaturePyramid)
    maps = pyramid(torch.randn(1, 3, 64, 96))
    assert pyramid.feature_info.channels() == [m.shape[1] for m in maps] == [192] * 4
    assert pyramid.feature_info.reduction() == [4, 8, 16, 32]
