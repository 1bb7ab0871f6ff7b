"""Whole runs of train.py with a small model: resume, two processes, bad steps."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch

from dafast import devices
from dafast.data.shards import ShardError
from dafast.data.transforms import AugmentConfig
from dafast.distributed import World
from dafast.models.depth_anything import DepthAnything
from dafast.training.config import (
    ConfigError,
    ModelSection,
    TrainConfig,
    UnlabeledSection,
)
from dafast.training.loop import train
from dafast.training.resume import changed_settings
from dafast.training.run import TooManyBadStepsError
from dafast.training.state import TrainingStateError, checkpoint_folder, list_checkpoints
from tests.notices import Notices
from tests.training import tiny
from tests.training.runs import (
    assert_same_weights,
    poison,
    run_until,
    start,
    tiny_config,
)

ONE = World(0, 1, torch.device("cpu"))


@pytest.mark.slow
def test_resume_after_kill_is_exact(shards: Path, tmp_path: Path, seed: int) -> None:
    config = tiny_config(shards, tmp_path / "whole", steps=400, seed=seed, checkpoint_every=10)
    chance = random.Random(seed)
    broken = dataclasses.replace(config, out=str(tmp_path / "broken"))

    terminated_at = chance.randrange(11, 20)
    process = start(broken, terminated_at)
    assert process.end(signal.SIGTERM) == 0, process.stderr
    saved = int(list_checkpoints(checkpoint_folder(broken.out))[0].stem.removeprefix("step-"))
    assert saved == max(tiny.losses(Path(broken.out))), "SIGTERM saves the step it stopped at"
    assert saved < 400, "the run was over before the signal"

    killed_at = saved + chance.randrange(3, 25)
    start(broken, killed_at).end()
    reached = max(tiny.losses(Path(broken.out)))
    assert killed_at <= reached < 400, "the run was over before the kill"
    end = reached + 7
    # The length of the run is part of the schedule: the rest is stopped by hand, not by `steps`.
    run_until(broken, end)
    run_until(config, end)
    whole, resumed = tiny.losses(Path(config.out)), tiny.losses(Path(broken.out))
    assert sorted(whole) == list(range(1, end + 1))
    assert whole == resumed, "not equal to the bit"
    assert_same_weights(Path(config.out), Path(broken.out))


@pytest.mark.slow
def test_workers_change_nothing(shards: Path, tmp_path: Path, seed: int) -> None:
    config = tiny_config(shards, tmp_path / "a", seed=seed, steps=4, checkpoint_every=0)
    train(config, ONE)
    other = dataclasses.replace(
        config, out=str(tmp_path / "b"), data=dataclasses.replace(config.data, workers=2)
    )
    train(other, ONE)
    assert tiny.losses(tmp_path / "a") == tiny.losses(tmp_path / "b")


@pytest.mark.slow
def test_truncated_checkpoint_falls_back(
    shards: Path, tmp_path: Path, seed: int, notices: Notices
) -> None:
    config = tiny_config(shards, tmp_path / "run", seed=seed)
    train(config, ONE)
    before = tiny.losses(tmp_path / "run")
    newest, second = list_checkpoints(checkpoint_folder(config.out))[:2]
    os.truncate(newest, newest.stat().st_size // 2)
    train(config, ONE)
    assert newest.name in notices.text
    assert "truncated" in notices.text
    assert tiny.losses(tmp_path / "run") == before
    assert second.name == "step-00000008.pt"


@pytest.mark.slow
def test_keeps_the_last_checkpoints(shards: Path, tmp_path: Path) -> None:
    train(tiny_config(shards, tmp_path / "run", keep=2), ONE)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [
        *("step-00000008.pt", "step-00000008.pt.sha256"),
        *("step-00000012.pt", "step-00000012.pt.sha256"),
    ]


def test_infer_shows_pictures_as_large_as_training_did(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards, tmp_path / "run", steps=1, checkpoint_every=0)
    data = dataclasses.replace(config.data, shapes=((56, 84), (42, 42)))
    train(dataclasses.replace(config, data=data), ONE)
    exported = DepthAnything.from_pretrained(tmp_path / "run/export", device="cpu")
    assert exported.config.image_size == 56


def test_bad_step_is_skipped_and_named(
    shards: Path,
    tmp_path: Path,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = tiny_config(shards, tmp_path / "run", seed=seed, steps=5, ema=0.0)
    poison(monkeypatch, [2])
    train(config, ONE)
    values = tiny.losses(tmp_path / "run")
    assert values[3] is None
    assert all(value is not None for step, value in values.items() if step != 3)
    error = capsys.readouterr().err
    assert "step 3 skipped" in error
    assert error.count(".tar/") == config.batch_size
    exported = DepthAnything.from_pretrained(tmp_path / "run/export", device="cpu", dtype="float32")
    assert all(bool(p.isfinite().all()) for p in exported.parameters())


@pytest.mark.slow
def test_too_many_bad_steps_stop_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(2, 1000))
    config = tiny_config(shards, tmp_path / "run", steps=20, max_bad_steps=3)
    with pytest.raises(TooManyBadStepsError, match="4 steps in a row"):
        train(config, ONE)


def test_resume_none_refuses_a_used_folder(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards, tmp_path / "run", steps=1)
    train(config, ONE)
    with pytest.raises(ConfigError, match="resume"):
        train(dataclasses.replace(config, resume="none"), ONE)


def test_evaluation_and_start_from_weights(shards: Path, tmp_path: Path, seed: int) -> None:
    config = tiny_config(shards, tmp_path / "a", steps=2, seed=seed)
    data = dataclasses.replace(config.data, eval_path=str(shards), eval_samples=5)
    train(dataclasses.replace(config, data=data, eval_every=1), ONE)
    text = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert text.count("eval/loss") == 2
    assert text.count("eval/plane_abs_rel") == 2
    warm = ModelSection(preset="tiny", init=str(tmp_path / "a" / "export"))
    train(dataclasses.replace(config, out=str(tmp_path / "b"), model=warm), ONE)
    wrong = ModelSection(preset="nano", init=str(tmp_path / "a" / "export"))
    with pytest.raises(ConfigError, match="embed_dim"):
        train(dataclasses.replace(config, out=str(tmp_path / "c"), model=wrong), ONE)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_auto_precision_is_that_of_inference(
    bfloat16: bool,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": bfloat16})
    devices.cpu_has_bfloat16.cache_clear()
    try:
        train(tiny_config(shards, tmp_path / "run", steps=1), ONE)
    finally:
        devices.cpu_has_bfloat16.cache_clear()
    dtype = "bfloat16" if bfloat16 else "float32"
    assert f"on 1 x cpu, {dtype}" in "".join(capsys.readouterr())


def test_mistakes_of_a_user_are_errors_that_name_the_setting(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards, tmp_path / "run", steps=1)
    absent = ModelSection(preset="tiny", init=str(tmp_path / "absent.pth"))
    with pytest.raises(ConfigError, match=r"model\.init: .*absent\.pth"):
        train(dataclasses.replace(config, model=absent), ONE)
    with pytest.raises(ConfigError, match="batch_size 4 does not divide by 3"):
        train(config, World(0, 3, torch.device("cpu")))
    for key in ("path", "eval_path"):
        data = dataclasses.replace(config.data, **{key: str(tmp_path / "nope")})
        with pytest.raises(ShardError, match=rf"set data\.{key} to"):
            train(dataclasses.replace(config, data=data), ONE)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="out: cannot create"):
        train(dataclasses.replace(config, out=str(tmp_path / "file" / "run")), ONE)
    train(config, ONE)
    with pytest.raises(TrainingStateError, match=r"another model \(model\.preset: tiny -> nano\)"):
        train(dataclasses.replace(config, model=ModelSection(preset="nano")), ONE)


def test_weights_that_differ_in_their_heads_alone_are_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DepthAnything("tiny").save_pretrained(tmp_path / "init")
    two = dataclasses.replace(tiny.TINY, name="two", num_heads=2)
    monkeypatch.setitem(tiny.PRESETS, "two", two)
    model = ModelSection(preset="two", init=str(tmp_path / "init"))
    with pytest.raises(ConfigError, match="has num_heads = 1"):
        train(tiny_config(shards, tmp_path / "run", model=model), ONE)


def test_settings_that_a_checkpoint_does_not_know_have_their_defaults() -> None:
    values = json.loads(json.dumps(dataclasses.asdict(TrainConfig(steps=5))))
    del values["unlabeled"]
    del values["losses"]
    section = UnlabeledSection(ratio=3)
    assert changed_settings(json.dumps(values), TrainConfig(steps=5)) == []
    assert changed_settings(json.dumps(values), TrainConfig(steps=6, unlabeled=section)) == [
        "unlabeled.ratio: 2 -> 3",
        "steps: 5 -> 6",
    ]


@pytest.mark.slow
def test_learns(tmp_path: Path, fixed_seed: int) -> None:
    config = tiny_config(
        tiny.write_shards(tmp_path / "data", 2, 18, fixed_seed), tmp_path / "run", steps=60,
        seed=fixed_seed, augment=AugmentConfig(), checkpoint_every=0,
    )  # fmt: skip
    train(config, ONE)
    values = [v for v in tiny.losses(tmp_path / "run").values() if v is not None]
    assert sum(values[-10:]) < 0.8 * sum(values[:10])
