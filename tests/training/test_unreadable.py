"""Samples that cannot be read: each set against its own size, over processes and restarts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dafast.data import shards as shards_module
from dafast.data.shards import SampleError, ShardDataset, ShardError
from dafast.training.data import TrainingData
from dafast.training.loop import train
from dafast.training.resume import changed_data, data_state
from dafast.training.state import checkpoint_folder, list_checkpoints, load_checkpoint, load_newest
from dafast.training.unreadable import Unreadable
from tests.training import runs, tiny
from tests.training.runs import ONE, student_config, tiny_config


class Several:
    """The world of a process among others that found something too."""

    def __init__(self, *others: dict[str, list[str]]) -> None:
        self.others = others

    def gather(self, value: Any) -> list[Any]:
        return [*self.others, value]


class Pictures:
    """A set of pictures, of which some cannot be read."""

    def __init__(self, count: int, broken: str = "") -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return chr(ord("a") + index)

    def read(self, index: int) -> None:
        if self.name(index) in self.broken:
            raise SampleError(f"{self.name(index)}: gone")


def of_sizes(labeled: int, unlabeled: int | None, broken: str = "abcdefgh") -> Any:
    return SimpleNamespace(
        labeled=Pictures(labeled, broken),
        unlabeled=None if unlabeled is None else Pictures(unlabeled),
    )


def test_each_set_has_its_own_share() -> None:
    counted = Unreadable(of_sizes(10, 1000), 0.3)
    counted.add({"unlabeled": [f"u{i}: gone" for i in range(300)], "labeled": ["a", "b", "c"]}, ONE)
    with pytest.raises(ShardError, match=r"4 of 10 samples cannot be read.*30\.0%"):
        counted.add({"labeled": ["d"]}, ONE)


def test_what_all_processes_found_counts_once() -> None:
    counted = Unreadable(of_sizes(10, None), 0.3)
    counted.add({"labeled": ["a", "b"]}, Several({"labeled": ["b", "c"]}, {}))  # type: ignore
    assert counted.state_dict() == {"labeled": ["a", "b", "c"]}
    again = Unreadable(of_sizes(10, None), 0.3)
    again.load_state_dict(counted.state_dict())
    with pytest.raises(ShardError, match="4 of 10"):
        again.add({}, Several({"labeled": ["d"]}))  # type: ignore[arg-type]


def test_repaired_samples_are_not_counted() -> None:
    """Three of ten were damaged; two of them are whole again, and two others are met."""
    counted = Unreadable(of_sizes(10, None, broken="ade"), 0.3)
    counted.load_state_dict({"labeled": ["a: gone", "b: gone", "c: gone"]})
    counted.add({"labeled": ["d: gone", "e: gone"]}, ONE)
    assert counted.state_dict() == {"labeled": ["a: gone", "d: gone", "e: gone"]}
    with pytest.raises(ShardError, match="4 of 10"):
        counted.add({"labeled": ["f: gone"]}, ONE)


def test_shards_of_one_name_are_kept_apart(tmp_path: Path, seed: int) -> None:
    folders = [tiny.write_shards(tmp_path / name, 1, 2, seed) for name in "ab"]
    data = ShardDataset([str(folder) for folder in folders])
    assert len({data.name(index) for index in range(4)}) == 4
    assert ShardDataset(str(folders[0])).name(0) == "00000.tar/000000"


def test_an_early_checkpoint_is_counted_again() -> None:
    counted = Unreadable(of_sizes(10, 10), 0.0)
    counted.load_state_dict(["a: gone"])
    counted.add({}, ONE)


@pytest.mark.slow
def test_two_processes_count_together(tmp_path: Path, seed: int) -> None:
    """Four of ten are damaged, three allowed: half of the set, as one process sees it, has two."""
    shards = tiny.write_shards(tmp_path / "shards", 1, 10, seed, broken=range(4))
    config = tiny_config(shards, tmp_path / "run", seed=seed, steps=6, checkpoint_every=0)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, max_bad_fraction=0.3)
    )
    done = runs.processes(config, 2, fails=True, TINY_LENIENT="1")
    assert "4 of 10 samples cannot be read" in done.stderr


@pytest.mark.slow
def test_damaged_labels_among_many_unlabeled(
    tmp_path: Path, learned: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeled = tiny.write_shards(tmp_path / "labeled", 1, 8, seed, broken=range(4))
    unlabeled = tiny.write_shards(tmp_path / "unlabeled", 1, 40, seed + 1, labeled=False)
    config = student_config(labeled, learned, tmp_path / "run", seed=seed, steps=6)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, max_bad_fraction=0.3),
        unlabeled=dataclasses.replace(config.unlabeled, path=str(unlabeled)),
    )
    # The data set itself counts what one process reads of it; here the run's count is meant.
    monkeypatch.setattr(shards_module, "check_bad_share", lambda *args: None)
    with pytest.raises(ShardError, match=r"of 8 samples cannot be read"):
        train(config, ONE)
    kept = list_checkpoints(checkpoint_folder(config.out))  # of the steps that were done
    assert kept
    assert max(tiny.losses(tmp_path / "run")) == int(kept[0].stem.removeprefix("step-"))


@pytest.mark.slow
def test_a_checkpoint_knows_them(tmp_path: Path, learned: str, seed: int) -> None:
    labeled = tiny.write_shards(tmp_path / "labeled", 1, 8, seed, broken=range(2, 3))
    unlabeled = tiny.write_shards(
        tmp_path / "unlabeled", 1, 16, seed + 1, labeled=False, broken=range(5, 6)
    )
    config = student_config(labeled, learned, tmp_path / "run", seed=seed, steps=4)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, max_bad_fraction=0.5),
        unlabeled=dataclasses.replace(config.unlabeled, path=str(unlabeled)),
    )
    train(config, ONE)
    found = load_newest(checkpoint_folder(config.out))
    assert found is not None
    state = found[1]["bad_samples"]
    assert [len(state["labeled"]), len(state["unlabeled"])] == [1, 1]
    assert "000002" in state["labeled"][0]
    assert "000005" in state["unlabeled"][0]


@pytest.mark.slow
def test_data_that_changed_are_named(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    shards = tiny.write_shards(tmp_path / "shards", 2, 6, seed)
    config = tiny_config(shards, tmp_path / "run", seed=seed, steps=2)
    train(config, ONE)
    train(dataclasses.replace(config, steps=3), ONE)
    assert "data.path" not in capsys.readouterr().out
    tiny.write_shards(shards, 3, 6, seed)
    train(dataclasses.replace(config, steps=4), ONE)
    assert "data.path: 12 samples -> 18; their order is new" in capsys.readouterr().out
    path = checkpoint_folder(config.out) / "step-00000004.pt"
    assert load_checkpoint(path)["data"]["data.path"]["samples"] == 18


def test_data_that_moved_are_the_same(tmp_path: Path, seed: int) -> None:
    def opened(folder: Path) -> Any:
        return TrainingData.open(tiny_config(folder, tmp_path / "run", seed=seed))

    first = tiny.write_shards(tmp_path / "a", 2, 3, seed)
    before = data_state(opened(first))
    assert changed_data(before, opened(first.rename(tmp_path / "b"))) == []
    (tmp_path / "b/00001.tar").rename(tmp_path / "b/00002.tar")
    (line,) = changed_data(before, opened(tmp_path / "b"))
    assert line.startswith("data.path: 6 samples of other shards")


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path, seed: int) -> None:
    shards = tiny.write_shards(tmp_path / "shards", 1, 6, seed)
    config = tiny_config(shards, tmp_path / "run", seed=seed, steps=1)
    left = checkpoint_folder(config.out) / f".{'0' * 32}.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of it")
    train(config, ONE)
    assert not left.exists()
    assert (left.parent / "step-00000001.pt").exists()
