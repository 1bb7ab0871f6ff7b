"""The loader's benchmark runs, and what it says of sizes is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import loader, loader_peers
from dafast.data.shards import ShardDataset
from tests.training import tiny


@pytest.mark.slow
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
    assert report["start"]["scan_ms"] > 0 and report["start"]["kept_ms"] > 0
    assert report["start"]["index_bytes"] == 8 * 4 + 5 * 2 * 8 + 4, "key, places, number"
    table = capsys.readouterr().out
    assert table.count("\n| ") == 1 + len(loader.STAGES)
    assert json.loads((tmp_path / "out.json").read_text())["shape"] == 28


@pytest.mark.slow
def test_beside_webdataset(tmp_path: Path, seed: int, capsys) -> None:
    shards = tiny.write_shards(tmp_path / "shards", 2, 6, seed)
    report = loader.main([
        *("--shards", str(shards), "--shape", "28", "--batch", "3", "--workers", "0", "1"),
        *("--seconds", "0.05", "--images", "4", "--stage", "image", "--peers", "--rounds", "3"),
        *("--pictures", "9"),
    ])  # fmt: skip
    peers = report["peers"]
    assert [(p["workers"], p["loader"] == "dafast") for p in peers] == [
        *((0, True), (0, False), (0, False), (1, True), (1, False), (1, False))
    ]
    for entry in peers:
        assert 0 < entry["low"] <= entry["images_per_second"] <= entry["high"]
        assert entry["loader"] != "dafast" or entry["ratio"] == 1
    assert capsys.readouterr().out.count("| webdataset, ") == 4


def test_loaders_give_the_same_pictures(tmp_path: Path, seed: int) -> None:
    """All of them, decoded to arrays of the same sizes."""
    data = ShardDataset(tiny.write_shards(tmp_path / "shards", 1, 6, seed))
    shards = loader_peers.pictures_alone(data, tmp_path, 5)
    expected = {data[i].image.nbytes for i in range(5)}
    alone = ShardDataset(shards, labels="none")
    assert [alone.image_file(i) for i in range(5)] == [data.image_file(i) for i in range(5)]
    for name, stream in loader_peers.loaders(shards, 3, 0, seed).items():
        sizes = [size for _ in range(40) for size in next(stream)]
        assert set(sizes) == expected, name


def test_ratio_is_ours_to_theirs(tmp_path: Path, seed: int) -> None:
    data = ShardDataset(tiny.write_shards(tmp_path / "shards", 1, 6, seed))
    shards = loader_peers.pictures_alone(data, tmp_path, 6)
    rates = iter([30.0, 10.0, 15.0, 60.0, 40.0, 20.0, 20.0, 10.0, 5.0])  # of three rounds
    ours, first, second = loader_peers.compare(
        shards, 3, [0], 1, 3, seed, lambda stream, ahead, seconds: next(rates)
    )
    assert (ours["images_per_second"], ours["low"], ours["high"]) == (30, 20, 60)
    assert (first["images_per_second"], first["ratio"]) == (10, 2)
    assert (second["images_per_second"], second["ratio"]) == (15, 3)


@pytest.mark.slow
def test_makes_its_own(tmp_path: Path, seed: int) -> None:
    loader.make_shards(tmp_path, 3, (84, 112), seed % 1000)
    data = ShardDataset(tmp_path)
    assert len(data) == 3
    for sample in data:
        assert sample.image.shape == (84, 112, 3) and sample.image.std() > 2
        assert sample.disparity.shape == (84, 112)
    # In one mosaic of fifty nano sees nothing near.
    assert any(sample.disparity.std() > 0 for sample in data)


@pytest.mark.parametrize("arguments", [["--size", "84"], ["--size", "0x9"], ["--batch", "2"]])
def test_mistakes(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        loader.main(arguments)
    assert arguments[0] in capsys.readouterr().err
