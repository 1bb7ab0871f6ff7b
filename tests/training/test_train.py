"""Whole runs of train.py with a small model: resume, two processes, bad steps."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import train
from dafast.data.transforms import AugmentConfig
from dafast.losses import AffineInvariantLoss
from dafast.models.depth_anything import DepthAnything
from dafast.training.config import ConfigError, DataSection, ModelSection, OptimSection, TrainConfig
from dafast.training.distributed import World
from dafast.training.state import CheckpointError, checkpoint_folder, list_checkpoints

ONE = World(0, 1, torch.device("cpu"))


def tiny_config(shards: Path, out: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        model=ModelSection(preset="tiny"),
        data=DataSection(path=str(shards), shapes=((42, 42), (42, 56)), workers=0),
        augment=AugmentConfig(crop="resized", jitter=0.8, blur=0.3, noise=0.5, grayscale=0.2),
        optim=OptimSection(encoder_lr=1e-3, decoder_lr=1e-3, warmup_steps=3),
        out=str(out),
        steps=12,
        batch_size=4,
        ema=0.9,
        checkpoint_every=4,
        eval_every=0,
        threads=1,
    )
    return dataclasses.replace(config, **changes)


def command(config: TrainConfig, *extra: str) -> list[str]:
    """The command line of the same run."""
    from dafast.training.config import TrainConfig as Plain

    assert isinstance(config, Plain)
    lines = []
    values = dataclasses.asdict(config)
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    for key, value in values.items():
        if key not in sections:
            lines.append(f"{key} = {toml(value)}")
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {toml(value)}" for key, value in section.items())]
    path = Path(config.out).with_suffix(".toml")
    path.write_text("\n".join(lines) + "\n")
    return [str(Path(tiny.__file__)), "--config", str(path), *extra]


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def start(config: TrainConfig, at_step: int) -> subprocess.Popen:
    """Starts the run as a process and returns when it has done `at_step` steps."""
    process = subprocess.Popen(
        [sys.executable, *command(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 60
    while max(tiny.losses(Path(config.out)), default=0) < at_step:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the run ended early:\n{process.communicate()[0].decode()}")
        time.sleep(0.005)
    return process


def test_resume_after_kill_is_exact(shards: Path, tmp_path: Path, seed: int) -> None:
    config = tiny_config(shards, tmp_path / "whole", steps=400, seed=seed, checkpoint_every=10)
    chance = random.Random(seed)
    broken = dataclasses.replace(config, out=str(tmp_path / "broken"))

    terminated_at = chance.randrange(11, 20)
    process = start(broken, terminated_at)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, output
    saved = int(list_checkpoints(checkpoint_folder(broken.out))[0].stem.removeprefix("step-"))
    assert saved == max(tiny.losses(Path(broken.out))), "SIGTERM saves the step it stopped at"
    assert saved < 400, "the run was over before the signal"

    killed_at = saved + chance.randrange(3, 25)
    process = start(broken, killed_at)
    process.kill()
    process.communicate()
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


def run_until(config: TrainConfig, step: int) -> None:
    """Runs in this process and stops as a signal would, after `step` steps."""
    original = train.RunLog.step

    def step_and_stop(self: Any, done: int, *args: Any) -> None:
        original(self, done, *args)
        if done == step - 1:  # the flag is looked at within the next step
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.RunLog, "step", step_and_stop)
        train.train(config, ONE)


def assert_same_weights(a: Path, b: Path) -> None:
    first = DepthAnything.from_pretrained(a / "export", device="cpu", dtype="float32")
    second = DepthAnything.from_pretrained(b / "export", device="cpu", dtype="float32")
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_two_processes_equal_one(shards: Path, tmp_path: Path, seed: int) -> None:
    # From weights that have learned something: an untrained model's prediction is so flat that the
    # division by its deviation blows rounding up within a few steps.
    train.train(tiny_config(shards, tmp_path / "start", seed=seed, steps=60), ONE)
    config = tiny_config(
        shards,
        tmp_path / "one",
        seed=seed,
        model=ModelSection(preset="tiny", init=str(tmp_path / "start" / "export")),
        precision="float32",
        steps=6,
        checkpoint_every=0,
        optim=OptimSection(encoder_lr=1e-4, decoder_lr=1e-4),
    )
    train.train(config, ONE)
    two = dataclasses.replace(config, out=str(tmp_path / "two"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", *command(two)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, both = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == len(both) == 6
    assert both[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
    for a, b in zip(one, both, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4), f"step {a['step']}"
    # The gradient goes through the median, that is through one pixel; where rounding makes it the
    # neighbour the gradient jumps. So the typical step must agree, not every one.
    apart = [abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(one, both, strict=True)]
    assert sorted(apart)[2] < 1e-4, apart


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_workers_change_nothing(shards: Path, tmp_path: Path, seed: int) -> None:
    config = tiny_config(shards, tmp_path / "a", seed=seed, steps=4, checkpoint_every=0)
    train.train(config, ONE)
    other = dataclasses.replace(
        config, out=str(tmp_path / "b"), data=dataclasses.replace(config.data, workers=2)
    )
    train.train(other, ONE)
    assert tiny.losses(tmp_path / "a") == tiny.losses(tmp_path / "b")


def test_truncated_checkpoint_falls_back(
    shards: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(shards, tmp_path / "run", seed=seed)
    train.train(config, ONE)
    before = tiny.losses(tmp_path / "run")
    newest, second = list_checkpoints(checkpoint_folder(config.out))[:2]
    os.truncate(newest, newest.stat().st_size // 2)
    train.train(config, ONE)
    assert newest.name in caplog.text
    assert "truncated" in caplog.text
    assert tiny.losses(tmp_path / "run") == before
    assert second.name == "step-00000008.pt"


def test_keeps_the_last_checkpoints(shards: Path, tmp_path: Path) -> None:
    train.train(tiny_config(shards, tmp_path / "run", keep=2), ONE)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [
        *("step-00000008.pt", "step-00000008.pt.sha256"),
        *("step-00000012.pt", "step-00000012.pt.sha256"),
    ]


def poison(monkeypatch: pytest.MonkeyPatch, bad_calls: range | list[int]) -> None:
    """Makes the loss of some steps NaN."""
    calls = iter(range(10**6))
    original = AffineInvariantLoss.forward

    def forward(self: Any, prediction: torch.Tensor, *args: Any) -> torch.Tensor:
        loss = original(self, prediction, *args)
        return loss * float("nan") if next(calls) in bad_calls else loss

    monkeypatch.setattr(AffineInvariantLoss, "forward", forward)


def test_bad_step_is_skipped_and_named(
    shards: Path,
    tmp_path: Path,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = tiny_config(shards, tmp_path / "run", seed=seed, steps=5, ema=0.0)
    poison(monkeypatch, [2])
    train.train(config, ONE)
    values = tiny.losses(tmp_path / "run")
    assert values[3] is None
    assert all(value is not None for step, value in values.items() if step != 3)
    error = capsys.readouterr().err
    assert "step 3 skipped" in error
    assert error.count(".tar/") == config.batch_size
    exported = DepthAnything.from_pretrained(tmp_path / "run/export", device="cpu", dtype="float32")
    assert all(bool(p.isfinite().all()) for p in exported.parameters())


def test_too_many_bad_steps_stop_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(2, 1000))
    config = tiny_config(shards, tmp_path / "run", steps=20, max_bad_steps=3)
    with pytest.raises(train.TooManyBadStepsError, match="4 steps in a row"):
        train.train(config, ONE)


def test_resume_none_refuses_a_used_folder(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards, tmp_path / "run", steps=1)
    train.train(config, ONE)
    with pytest.raises(ConfigError, match="resume"):
        train.train(dataclasses.replace(config, resume="none"), ONE)


def test_evaluation_and_start_from_weights(shards: Path, tmp_path: Path, seed: int) -> None:
    config = tiny_config(shards, tmp_path / "a", steps=2, seed=seed)
    data = dataclasses.replace(config.data, eval_path=str(shards), eval_samples=5)
    train.train(dataclasses.replace(config, data=data, eval_every=1), ONE)
    text = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert text.count("eval/loss") == 2
    assert text.count("eval/plane_abs_rel") == 2
    warm = ModelSection(preset="tiny", init=str(tmp_path / "a" / "export"))
    train.train(dataclasses.replace(config, out=str(tmp_path / "b"), model=warm), ONE)
    wrong = ModelSection(preset="nano", init=str(tmp_path / "a" / "export"))
    with pytest.raises(ConfigError, match="embed_dim"):
        train.train(dataclasses.replace(config, out=str(tmp_path / "c"), model=wrong), ONE)


def test_what_a_user_can_mend_is_an_error_with_its_name(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards, tmp_path / "run", steps=1)
    absent = ModelSection(preset="tiny", init=str(tmp_path / "absent.pth"))
    with pytest.raises(ConfigError, match=r"model\.init: .*absent\.pth"):
        train.train(dataclasses.replace(config, model=absent), ONE)
    with pytest.raises(ConfigError, match="batch_size 4 does not divide by 3"):
        train.train(config, World(0, 3, torch.device("cpu")))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="out: cannot make"):
        train.train(dataclasses.replace(config, out=str(tmp_path / "file" / "run")), ONE)
    train.train(config, ONE)
    with pytest.raises(CheckpointError, match=r"another model \(tiny, not nano\)"):
        train.train(dataclasses.replace(config, model=ModelSection(preset="nano")), ONE)


def test_weights_that_differ_in_their_heads_alone_are_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DepthAnything("tiny").save_pretrained(tmp_path / "init")
    two = dataclasses.replace(tiny.TINY, name="two", num_heads=2)
    monkeypatch.setitem(tiny.PRESETS, "two", two)
    model = ModelSection(preset="two", init=str(tmp_path / "init"))
    with pytest.raises(ConfigError, match="has num_heads = 1"):
        train.train(tiny_config(shards, tmp_path / "run", model=model), ONE)


def test_learns(shards: Path, tmp_path: Path, seed: int) -> None:
    config = tiny_config(
        shards, tmp_path / "run", steps=60, seed=seed, augment=AugmentConfig(), checkpoint_every=0
    )
    train.train(config, ONE)
    values = [v for v in tiny.losses(tmp_path / "run").values() if v is not None]
    assert sum(values[-10:]) < 0.8 * sum(values[:10])
