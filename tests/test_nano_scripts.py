"""experiments/score_nano.py and experiments/widen.py."""

from __future__ import annotations

import dataclasses
import importlib
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from dafast.data.sources import label_members
from dafast.models.depth_anything import DepthAnything
from tests.tiny import TINY

ROOT = Path(__file__).resolve().parent.parent


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module(name)


@pytest.mark.parametrize("copies", [2, 3])
def test_a_wider_model_has_the_same_outputs(
    copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed_seed: int
) -> None:
    torch.manual_seed(fixed_seed)
    widen = script("widen", monkeypatch)
    model = DepthAnything(TINY).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)  # biases and tokens too
    wide = widen.widen(model, copies)
    assert (wide.config.embed_dim, wide.config.num_heads) == (32 * copies, 2 * copies)
    assert widen.difference(model, wide) < 1e-4
    wide.save_pretrained(tmp_path)
    loaded = DepthAnything.from_pretrained(tmp_path, device="cpu", dtype="float32")
    assert widen.difference(model, loaded) < 1e-4


def test_the_copies_of_a_wider_model_learn_different_things(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widen = script("widen", monkeypatch)
    model = DepthAnything(TINY)
    for noise, equal in ((0.0, True), (0.5, False)):
        wide = widen.widen(model, 2, noise)
        wide(torch.randn(1, 3, 28, 28)).square().sum().backward()
        first, second = wide.pretrained.blocks[0].mlp.fc1.bias.grad.chunk(2)
        assert torch.allclose(first, second, rtol=1e-3, atol=1e-9) == equal


def write_shard(folder: Path, names: list[str], rng: np.random.Generator) -> None:
    folder.mkdir()
    with tarfile.open(folder / "part-000000.tar", "w") as tar:
        for name in names:
            coarse = Image.fromarray(rng.uniform(0.1, 1, (3, 4)).astype(np.float32))
            disparity = np.asarray(coarse.resize((40, 30), Image.Resampling.BILINEAR))
            jpg = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(jpg, "JPEG")
            mask = rng.random((30, 40)) < 0.9
            labels = label_members(np.where(mask, disparity, 0), mask, {"name": name})
            for suffix, data in {"jpg": jpg.getvalue(), **labels}.items():
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_scores_are_those_of_the_evaluation(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    score_nano = script("score_nano", monkeypatch)
    write_shard(tmp_path / "real", ["hall-0", "hall-12", "street"], rng)
    write_shard(tmp_path / "held", ["00", "01"], rng)
    DepthAnything(dataclasses.replace(TINY, image_size=42)).save_pretrained(tmp_path / "model")
    sets = ["--real", str(tmp_path / "real"), "--held-worlds", str(tmp_path / "held")]
    model = str(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["score_nano.py", model, *sets, "--sizes", "28", "42"])
    score_nano.main()
    out = capsys.readouterr().out
    assert "Real: 3 pictures, then 2 places" in out and "Held-out worlds: 2 pictures" in out
    rows = [line for line in out.splitlines() if line.startswith(f"| {model} |")]
    assert [row.split("|")[2].strip() for row in rows] == ["28", "42", "28", "42"]
    samples = score_nano.read(tmp_path / "real", 0, False)
    _, scores = score_nano.score(
        DepthAnything.from_pretrained(model, dtype="float32"), samples, "real", flip=True
    )
    cells = [float(cell) for cell in rows[1].split("|")[3:-1]]
    errors = {name.split("/")[-1]: row["abs_rel"] for name, row in scores["tiny"].items()}
    assert cells[0] == pytest.approx(np.mean(list(errors.values())), abs=6e-4)
    hall = (errors["hall-0"] + errors["hall-12"]) / 2
    assert cells[2] == pytest.approx((hall + errors["street"]) / 2, abs=6e-4)
