"""What goes wrong around a run, and runs that are given again: nothing finished is lost."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dafast.cli.train import message
from dafast.data import remote
from dafast.data.shards import ShardError
from dafast.files import DiskFullError
from dafast.training.config import (
    ConfigError,
    MetricSection,
    ModelSection,
    OptimSection,
    TrainConfig,
)
from dafast.training.loop import train
from dafast.training.progress import RunLog
from dafast.training.resume import other_model
from dafast.training.state import (
    RunState,
    TrainingStateError,
    checkpoint_folder,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from tests.forks import Fork
from tests.training import runs, tiny
from tests.training.runs import ONE, tiny_config

OPTIM = OptimSection(encoder_lr=1e-4, decoder_lr=1e-4)


def evaluated(config: TrainConfig, shards: Path, **changes: Any) -> TrainConfig:
    data = dataclasses.replace(config.data, eval_path=str(shards), eval_samples=2)
    return dataclasses.replace(config, data=data, **changes)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder: when it was written, and what is in it."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def steps_of(folder: Path) -> list[int]:
    return [int(p.stem.removeprefix("step-")) for p in list_checkpoints(checkpoint_folder(folder))]


@pytest.mark.slow
@pytest.mark.parametrize("with_evaluation", [False, True])
def test_a_finished_run_given_again_stays_as_it_is(
    with_evaluation: bool, shards: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "run"
    config = tiny_config(shards, out, seed=seed, steps=2, checkpoint_every=1, optim=OPTIM)
    if with_evaluation:
        config = evaluated(config, shards)
    train(config, ONE)
    before = tree(out)
    capsys.readouterr()
    train(config, ONE)
    assert tree(out) == before
    assert f"{out} is finished: 2 steps of 2" in capsys.readouterr().out

    # What is missing is made up for: the export, an evaluation that was not asked for before.
    (out / "export" / "config.json").unlink()
    train(config, ONE)
    assert tree(out)["export/config.json"][1] == before["export/config.json"][1]
    lines = len(runs.metrics(out))
    if not with_evaluation:
        train(evaluated(config, shards), ONE)
        assert "eval/loss" in runs.metrics(out)[-1]
        lines += 1
    assert len(runs.metrics(out)) == lines
    train(dataclasses.replace(config, steps=3), ONE)  # more steps continue
    assert sorted(tiny.losses(out)) == [1, 2, 3]


@pytest.mark.slow
def test_a_run_that_is_stopped_in_its_last_step_is_evaluated_by_the_next(
    shards: Path, tmp_path: Path, seed: int
) -> None:
    config = tiny_config(shards, tmp_path / "run", seed=seed, steps=2, optim=OPTIM)
    config = evaluated(config, shards)
    runs.run_until(config, 2)
    assert steps_of(tmp_path / "run") == [2]
    assert not any("eval/loss" in line for line in runs.metrics(tmp_path / "run"))
    for _ in range(2):
        train(config, ONE)
        assert sum("eval/loss" in line for line in runs.metrics(tmp_path / "run")) == 1
    best = load_checkpoint(list_checkpoints(checkpoint_folder(config.out))[0])["best_score"]
    assert math.isfinite(best)


@pytest.mark.slow
def test_an_evaluation_that_a_stop_prevented_is_made_up_for(
    shards: Path, tmp_path: Path, seed: int
) -> None:
    config = tiny_config(shards, tmp_path / "run", seed=seed, steps=6, checkpoint_every=0)
    config = evaluated(config, shards, eval_every=2)
    runs.run_until(config, 4)  # the signal is looked at before the evaluation
    train(config, ONE)
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    train(whole, ONE)

    def evaluations(run: str) -> dict[float, float]:
        lines = runs.metrics(tmp_path / run)
        return {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}

    assert evaluations("run") == evaluations("whole")
    assert sorted(evaluations("run")) == [2, 4, 6]
    best = [(tmp_path / run / "best/evaluation.json").read_bytes() for run in ("run", "whole")]
    assert best[0] == best[1]


@pytest.mark.slow
def test_an_abandoned_future_is_set_aside(
    shards: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    """A run that continues from an older checkpoint keeps its own; later files are not lost."""
    out = tmp_path / "run"
    config = tiny_config(shards, out, seed=seed, steps=4, checkpoint_every=1, keep=4, optim=OPTIM)
    config = evaluated(config, shards, eval_every=1)
    train(config, ONE)
    before = tree(out)
    later = {n: v for n, v in before.items() if "step-00000003" in n or "step-00000004" in n}
    (old,) = [p for p in list_checkpoints(checkpoint_folder(out)) if "step-00000002" in p.name]
    again = dataclasses.replace(config, resume=str(old), keep=1, steps=3, seed=seed + 1)
    capsys.readouterr()
    train(again, ONE)
    assert steps_of(out) == [3], "the one that was just written is the one that is kept"
    assert str(out / "set-aside-1") in capsys.readouterr().out
    aside = tree(out / "set-aside-1")
    assert {name: aside[name] for name in later} == later
    assert aside["metrics.jsonl"] == before["metrics.jsonl"]
    best_step = json.loads(before["best/evaluation.json"][1])["step"]
    assert ("best/evaluation.json" in aside) == (best_step > 2)
    assert (out / "best").is_dir()
    assert sorted(tiny.losses(out)) == [1, 2, 3]
    assert load_checkpoint(list_checkpoints(checkpoint_folder(out))[0])["step"] == 3

    # The same command again: the run is finished, and nothing is set aside once more.
    before_again = tree(out)
    train(again, ONE)
    assert "is finished" in capsys.readouterr().out
    assert tree(out) == before_again
    # With more steps it continues from its own newest checkpoint.
    train(dataclasses.replace(again, steps=4), ONE)
    assert sorted(tiny.losses(out)) == [1, 2, 3, 4]
    assert not (out / "set-aside-2").exists()

    # Back to what was set aside, which is another future again.
    back = out / "set-aside-1" / "checkpoints" / "step-00000003.pt"
    train(dataclasses.replace(config, resume=str(back)), ONE)
    lines = map(json.loads, before["metrics.jsonl"][1].splitlines())
    (then,) = [line["loss"] for line in lines if line["step"] == 4 and "loss" in line]
    assert tiny.losses(out)[4] == then


@pytest.mark.slow
def test_a_broken_later_checkpoint_does_not_outlive_whole_ones(
    shards: Path, tmp_path: Path, seed: int
) -> None:
    config = tiny_config(
        shards, tmp_path / "run", seed=seed, steps=8, checkpoint_every=4, keep=2, optim=OPTIM
    )
    train(config, ONE)
    newest = list_checkpoints(checkpoint_folder(config.out))[0]
    os.truncate(newest, newest.stat().st_size // 2)
    runs.run_until(dataclasses.replace(config, keep=1), 6)
    assert steps_of(tmp_path / "run") == [6]
    load_checkpoint(list_checkpoints(checkpoint_folder(config.out))[0])
    assert (tmp_path / "run/set-aside-1/checkpoints" / newest.name).exists()


def test_a_checkpoint_without_its_checksum_says_so(tmp_path: Path) -> None:
    """It was copied without the file next to it."""
    path = save_checkpoint(tmp_path, 3, {"step": 3}, 1)
    sums = path.with_name(f"{path.name}.sha256")
    text = sums.read_text()
    sums.unlink()
    with pytest.raises(TrainingStateError, match=rf"no checksum file: copy {sums.name} ") as caught:
        load_checkpoint(path)
    assert f"`sha256sum {path.name} > {sums.name}`" in str(caught.value)
    with pytest.raises(TrainingStateError, match=r"can be used.*no checksum file: copy"):
        load_newest(tmp_path)
    subprocess.run(f"sha256sum {path.name} > {sums.name}", shell=True, cwd=tmp_path, check=True)
    assert sums.read_text() == text
    assert load_checkpoint(path) == {"step": 3}


def test_the_state_of_a_run_is_what_checkpoints_hold() -> None:
    state = RunState(step=3, position=12, unlabeled_position=24, skipped_steps=1, best_score=0.5)
    keys = {"step", "position", "unlabeled_position", "skipped_steps", "best_score"}
    assert state.state_dict().keys() == keys
    other = RunState()
    other.load_state_dict({**state.state_dict(), "model": {}})
    assert other == state
    early = RunState(best_score=0.1)
    early.load_state_dict({"step": 2, "position": 8, "skipped_steps": 0})
    assert early == RunState(step=2, position=8)
    state.advance(4, 8, skipped=True)
    assert state == RunState(4, 16, 32, 2, 0.5)


@pytest.mark.parametrize("keep", [1, 2])
def test_the_checkpoint_that_is_written_is_kept(keep: int, tmp_path: Path) -> None:
    for step in (8, 6, 7, 2):
        path = save_checkpoint(tmp_path, step, {"step": step}, keep)
        assert path.exists() and path in list_checkpoints(tmp_path)
        assert len(list_checkpoints(tmp_path)) <= keep


def test_a_warm_up_as_long_as_the_epochs_is_an_error(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards, tmp_path / "run", steps=0, epochs=0.25)  # 9 images, 2 steps
    with pytest.raises(ConfigError, match=r"warmup_steps \(3\).* 36 images, 4 a step, are 2 steps"):
        train(config, ONE)
    assert not (tmp_path / "run").exists()
    short = dataclasses.replace(config.optim, warmup_steps=1)
    train(dataclasses.replace(config, optim=short), ONE)
    assert sorted(tiny.losses(tmp_path / "run")) == [1, 2]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_a_shard_that_vanishes_stops_the_run_with_what_is_done(
    workers: int, tmp_path: Path, seed: int
) -> None:
    """It is one error about the shard, not many damaged samples; the run continues from there.

    With processes of the loader as a command, which has to end, too.
    """
    data = tiny.write_shards(tmp_path / "data", 3, 8, seed)
    config = tiny_config(data, tmp_path / "run", seed=seed, steps=12, optim=OPTIM)
    section = dataclasses.replace(config.data, workers=workers, prefetch=1, max_bad_fraction=1.0)
    config = dataclasses.replace(config, data=section, checkpoint_every=0)
    changes = {"TINY_LOSE": "1", "TINY_SHARDS": str(data)}
    if workers:
        done = subprocess.run(
            [sys.executable, *runs.command(config)], capture_output=True, text=True, timeout=300,
            check=False, env={**os.environ, **changes},
        )  # fmt: skip
    else:
        arguments = runs.command(config)[1:]
        done = Fork(lambda: tiny.command(arguments), changes)
        done.wait(300)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dafast: error: ")]
    assert line.startswith(f"dafast: error: the shard {data}")
    assert "has changed" in line and "restore it" in line
    assert "Traceback" not in done.stderr and "skipped" not in done.stderr
    reached = max(tiny.losses(tmp_path / "run"))
    assert steps_of(tmp_path / "run") == [reached], "every step that was taken is in a checkpoint"

    tiny.write_shards(data, 3, 8, seed)
    config = dataclasses.replace(config, data=dataclasses.replace(section, workers=0))
    train(config, ONE)
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    train(whole, ONE)
    assert tiny.losses(tmp_path / "run") == tiny.losses(tmp_path / "whole")


def full(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["metrics.jsonl", "export", "best", "config.json"])
def test_a_full_disk_is_named_and_loses_nothing(
    place: str, shards: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    config = tiny_config(shards, out, seed=seed, steps=3, checkpoint_every=1, optim=OPTIM)
    config = evaluated(config, shards, eval_every=1)
    train(dataclasses.replace(config, steps=1), ONE)
    before = tree(out)

    class FullFile:
        write = staticmethod(full)
        close = staticmethod(lambda: None)

    opened = RunLog.__init__

    def open_and_fill(self: RunLog, *args: Any) -> None:
        opened(self, *args)
        self._file.close()
        self._file = FullFile()  # type: ignore[assignment]

    save = tiny.DepthAnything.save_pretrained

    def save_but_not_there(self: Any, folder: Path, **options: Any) -> None:
        if folder.name == place:
            full()
        save(self, folder, **options)

    replace = os.replace

    def replace_but_not_that(source: Any, target: Any) -> None:
        if Path(target).name == place:
            full()
        replace(source, target)

    with monkeypatch.context() as patch:
        if place == "metrics.jsonl":
            patch.setattr(RunLog, "__init__", open_and_fill)
        elif place == "config.json":
            patch.setattr(remote.os, "replace", replace_but_not_that)
        else:
            patch.setattr(tiny.DepthAnything, "save_pretrained", save_but_not_there)
            if place == "best":  # a model that is better than any
                patch.setattr(
                    "dafast.training.tasks.relative.periodic_evaluation",
                    lambda *args: {"loss": -1.0},
                )
        with pytest.raises((DiskFullError, TrainingStateError)) as caught:
            train(config, ONE)
    text = str(caught.value)
    assert place in text and "No space left on device" in text and "same command" in text
    assert "\n" not in text
    kept = tree(out)
    for name, (_, content) in before.items():
        if "step-" in name or (place == "best" and name.startswith("best/")):
            assert kept[name][1] == content, name
    assert not [name for name in kept if "tmp" in name or Path(name).name.startswith(".")]

    # With room again the run ends as if nothing had happened.
    train(config, ONE)
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    train(dataclasses.replace(whole, steps=1), ONE)
    train(whole, ONE)
    assert tiny.losses(out) == tiny.losses(tmp_path / "whole")
    runs.assert_same_weights(out, tmp_path / "whole")


@pytest.mark.slow
def test_a_limit_of_the_system_is_one_line(shards: Path, tmp_path: Path, seed: int) -> None:
    """The command itself, under a limit on the size of files that the checkpoint does not pass."""
    config = tiny_config(shards, tmp_path / "run", seed=seed, steps=2, optim=OPTIM)

    arguments = runs.command(config)[1:]

    def limited() -> int:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return tiny.command(arguments)

    done = Fork(limited, {})
    assert done.wait(300) == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("dafast: error: ")]
    assert len(lines) == 1 and "cannot write" in lines[0] and "Free some space" in lines[0]
    assert "Traceback" not in done.stderr


def test_the_message_of_a_loader_process_has_no_traceback() -> None:
    text = "Caught ShardError in DataLoader worker process 0.\nOriginal Traceback (most recent "
    error = ShardError(f"{text}call last):\n  File x\ndafast.data.remote.ShardError: a is gone\n")
    assert message(error) == "a is gone"
    assert message(ShardError("b: ShardError: c")) == "b: ShardError: c"


METRIC = {"metric": MetricSection(max_depth=80.0)}
SIGMOID = {"metric": MetricSection(max_depth=80.0, head="sigmoid")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, METRIC, r"learns: relative depth -> metres"),
        ({}, SIGMOID, r"learns: relative depth -> metres"),  # whose weights would fit
        (METRIC, {}, r"learns: metres -> relative depth"),
        (METRIC, SIGMOID, r"metric\.head: softplus -> sigmoid"),
        ({}, {"model": ModelSection(preset="nano")}, r"model\.preset: tiny -> nano"),
    ],
)
def test_a_run_of_another_network_is_not_continued(
    first: dict[str, Any], second: dict[str, Any], message: str, shards: Path, tmp_path: Path
) -> None:
    config = tiny_config(shards, tmp_path / "run", steps=1, optim=OPTIM)
    train(dataclasses.replace(config, **first), ONE)
    before = tree(tmp_path / "run")
    with pytest.raises(TrainingStateError, match=rf"is of another model \({message}\)"):
        train(dataclasses.replace(config, **second), ONE)
    assert tree(tmp_path / "run") == before


def test_settings_of_the_network_that_are_compared() -> None:
    config = TrainConfig()
    early = dataclasses.asdict(config)
    del early["metric"], early["segmentation"]
    assert other_model(json.dumps(early), config) == []
    farther = dataclasses.replace(config, metric=MetricSection(max_depth=20.0))
    assert other_model(json.dumps(dataclasses.asdict(farther)), farther) == []
