"""The loader's benchmark runs, and what it says of sizes is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import loader
from dafast.data.shards import ShardDataset
from tests.training import tiny


def test_runs_on_given_shards(tmp_path: Path, seed: int, capsys) -> None:
    shards = tiny.write_shards(tmp_path / "shards", 1, 6, seed)
    report = loader.main([
        *("--shards", str(shards), "--shape", "28", "--batch", "3", "--workers", "0", "1"),
        *("--seconds", "0.05", "--images", "4", "--json", str(tmp_path / "out.json")),
    ])  # fmt: skip
    assert [record["stage"] for record in report["records"]] == list(loader.STAGES)
    for record in report["records"]:
        assert record["ms"] > 0
        assert set(record["images_per_second"]) == {0, 1}
        assert min(record["images_per_second"].values()) > 0
    assert report["colours_ms"] > 0
    data = ShardDataset(shards)
    files = [len(data.image_file(i)) for i in range(6)]
    assert min(files) <= report["sizes"]["image_bytes"] <= max(files)
    assert 60 * 80 <= report["sizes"]["pixels"] <= 90 * 60
    assert report["start"]["scan_ms"] > report["start"]["kept_ms"] > 0
    assert report["start"]["index_bytes"] == 8 * 4 + 5 * 2 * 8 + 4, "key, places, number"
    table = capsys.readouterr().out
    assert table.count("\n| ") == 1 + len(loader.STAGES)
    assert json.loads((tmp_path / "out.json").read_text())["shape"] == 28


def test_makes_its_own(tmp_path: Path, seed: int) -> None:
    loader.make_shards(tmp_path, 3, (84, 112), seed % 1000)
    data = ShardDataset(tmp_path)
    assert len(data) == 3
    for sample in data:
        assert sample.image.shape == (84, 112, 3) and sample.image.std() > 5
        assert sample.disparity.shape == (84, 112) and sample.disparity.std() > 0


@pytest.mark.parametrize("arguments", [["--size", "84"], ["--size", "0x9"], ["--batch", "2"]])
def test_mistakes(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        loader.main(arguments)
    assert arguments[0] in capsys.readouterr().err
