"""Fine-tuning on a list of pictures: the documented command, from the list to the best model."""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dafast.data.shards import ShardDataset
from dafast.distributed import World
from dafast.models.depth_anything import DepthAnything
from dafast.training.command import parse_args
from dafast.training.config import ConfigError, TrainConfig
from dafast.training.loop import train
from dafast.training.own_pictures import pack_lists
from tests.notices import Notices
from tests.training import runs, tiny

ONE = World(0, 1, torch.device("cpu"))
PAGE = (tiny.ROOT / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = [line for line in PAGE.splitlines() if "configs/finetune.toml " in line]


def write_list(folder: Path, count: int, rng: np.random.Generator, broken: int = 0) -> Path:
    """Pictures with depth in millimetres; the last `broken` of them are damaged."""
    rows = []
    for i in range(count):
        ramp = np.linspace(500, 4000, 60)[:, None] + rng.uniform(0, 300, (60, 80))
        np.save(folder / f"{i}.npy", ramp)
        Image.fromarray((ramp / 20).astype(np.uint8)).convert("RGB").save(folder / f"{i}.png")
        if i >= count - broken:
            (folder / f"{i}.png").write_bytes(b"no picture")
        rows.append({"image": f"{i}.png", "depth": f"{i}.npy", "scale": 0.001})
    path = folder / "my-pictures.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def config_of(path: Path, **data: object) -> TrainConfig:
    config = runs.tiny_config(path, path.parent / "run", steps=2)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


@pytest.mark.slow
def test_the_documented_command_runs(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = COMMANDS
    program, *arguments = shlex.split(command)[1:]
    assert program == "train.py"
    write_list(tmp_path, 10, rng)
    tiny.trained_model().save_pretrained(tmp_path / "start")
    arguments = [a.replace("configs/", f"{tiny.ROOT}/configs/") for a in arguments]
    small = [
        *("--model.preset", "tiny", "--model.init", str(tmp_path / "start")),
        *("--data.shapes", "42", "42", "--data.workers", "0"),
        *("--optim.warmup-steps", "1", "--epochs", "2"),
    ]
    monkeypatch.chdir(tmp_path)
    config = parse_args([*arguments, *small])
    train(config, ONE)
    lines = runs.metrics(Path("runs/finetune"))
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert len(ShardDataset("runs/finetune/data/train")) == 9
    assert len(ShardDataset("runs/finetune/data/held-out")) == 1
    best = json.loads(Path("runs/finetune/best/evaluation.json").read_text())
    assert best["step"] == 2 and 0 < best["abs_rel"] < 10
    model = DepthAnything.from_pretrained("runs/finetune/best", device="cpu", dtype="float32")
    assert model.infer("0.png").shape == (60, 80)

    # Again: nothing to pack, nothing to train, and no complaint about changed settings.
    shard = Path("runs/finetune/data/train/shard-000000.tar")
    written = shard.stat().st_mtime_ns
    train(config, ONE)
    assert shard.stat().st_mtime_ns == written


def test_what_is_held_out_is_not_trained_on(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_list(tmp_path, 12, rng)
    packed = pack_lists(config_of(path, hold_out=0.25), ONE)
    assert pack_lists(packed, ONE) == packed

    def names(folder: str) -> set[str]:
        data = ShardDataset(folder, labels="physical")
        return {data.meta(i)["source"] for i in range(len(data))}

    kept, held_out = names(packed.data.path), names(packed.data.eval_path)
    assert len(kept) == 9 and len(held_out) == 3
    assert kept | held_out == {f"{i}.png" for i in range(12)}
    other = dataclasses.replace(config_of(path, hold_out=0.25), out=str(tmp_path / "b"), seed=5)
    assert names(pack_lists(other, ONE).data.eval_path) == held_out, "for every seed"
    sample = ShardDataset(packed.data.eval_path, labels="physical")[0]
    metres = np.load(tmp_path / str(sorted(held_out)[0]).replace(".png", ".npy")) * 0.001
    assert np.isclose(sample.disparity.max(), 1 / metres.min(), rtol=0.1)


def test_a_list_of_its_own_for_evaluation(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "other").mkdir()
    paths = write_list(tmp_path, 4, rng), write_list(tmp_path / "other", 3, rng)
    packed = pack_lists(config_of(paths[0], eval_path=str(paths[1])), ONE)
    assert len(ShardDataset(packed.data.path)) == 4
    assert len(ShardDataset(packed.data.eval_path)) == 3


def test_pictures_that_cannot_be_read(
    tmp_path: Path, rng: np.random.Generator, notices: Notices
) -> None:
    path = write_list(tmp_path, 10, rng, broken=1)
    with pytest.raises(ConfigError, match=r"data\.path: 1 of 10 .* 1\.0% .*9\.png: .*remove"):
        pack_lists(config_of(path), ONE)
    packed = pack_lists(config_of(path, max_bad_fraction=0.2), ONE)
    assert "left out: 9.png" in notices.text
    assert len(ShardDataset(packed.data.path)) == 9


def test_mistakes_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_list(tmp_path, 2, rng)
    with pytest.raises(ConfigError, match=r"data\.path: .*nowhere\.csv"):
        pack_lists(config_of(tmp_path / "nowhere.csv"), ONE)
    config = config_of(path)
    remote = dataclasses.replace(config.data, path="http://127.0.0.1:9/list.csv")
    with pytest.raises(ConfigError, match=r"data\.path: a list must be a local file, not .*shards"):
        pack_lists(dataclasses.replace(config, data=remote), ONE)
    with pytest.raises(ConfigError, match=r"data\.path: no picture is left.*data\.hold_out"):
        pack_lists(config_of(path, hold_out=0.9), ONE)
    pack_lists(config_of(path), ONE)
    pack_lists(config_of(path), ONE)  # what was packed stays
    rows = path.read_text()
    path.write_text(rows.replace("1.png,1.npy", "1.png,0.npy"))  # another label of a picture
    with pytest.raises(ConfigError, match=r"data\.path: .*differ in names"):
        pack_lists(config_of(path), ONE)
    path.write_text(rows)
    path.write_text("\n".join(path.read_text().splitlines()[:2]))
    with pytest.raises(ConfigError, match=r"data\.path: .*differ in items, names"):
        pack_lists(config_of(path), ONE)


def test_a_corrected_label_is_no_silent_matter(tmp_path: Path, rng: np.random.Generator) -> None:
    """The run's shards hold the old one: the run says so, and packs again once they are gone."""
    path = write_list(tmp_path, 4, rng)
    config = config_of(path, hold_out=0.25)
    packed = pack_lists(config, ONE)
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.load(tmp_path / f"{i}.npy") * 2)
    with pytest.raises(ConfigError, match=r"data\.path: .*shard-000000\.tar\) have changed"):
        pack_lists(config, ONE)
    shutil.rmtree(tmp_path / "run" / "data")
    assert pack_lists(config, ONE) == packed
    sample = ShardDataset(packed.data.path, labels="physical")[0]
    assert 1 / sample.disparity.max() > 0.9, "twice as far"
    # With the shards instead of the list a run continues without its pictures.
    for i in range(4):
        (tmp_path / f"{i}.npy").unlink()
    with pytest.raises(ConfigError, match="have changed in size or date"):
        pack_lists(config, ONE)
    assert pack_lists(packed, ONE) == packed


def test_a_comma_in_a_name(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("image,depth,scale\nmy,pic.jpg,d.png,0.001\n")
    with pytest.raises(ConfigError, match=r"data\.path: .*row 1 has more fields.*quote names"):
        pack_lists(config_of(path), ONE)
