"""Whole runs of train.py with a small model, in this process and in others."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dafast.data.transforms import STRONG, AugmentConfig
from dafast.distributed import World
from dafast.losses import AffineInvariantLoss
from dafast.models.depth_anything import DepthAnything
from dafast.training.config import (
    DataSection,
    ModelSection,
    OptimSection,
    TrainConfig,
    UnlabeledSection,
)
from dafast.training.loop import train
from dafast.training.progress import RunLog
from tests.forks import Fork, ranks
from tests.training import tiny

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


def student_config(shards: Path, learned: str, out: Path, **changes: Any) -> TrainConfig:
    """Labels from the loop, CutMix, alignment: all that depends on the batch."""
    section = UnlabeledSection(
        path=str(shards),
        teacher=learned,
        align=learned,
        align_margin=1.0,
        augment=dataclasses.replace(STRONG, crop="resized"),
    )
    model = ModelSection(preset="tiny", init=learned)
    values = {"model": model, "unlabeled": section, "precision": "float32", **changes}
    return tiny_config(shards, out, **values)


def command(config: TrainConfig, *extra: str) -> list[str]:
    """The command line of the same run."""
    from dafast.training.config import TrainConfig as Plain

    assert isinstance(config, Plain)
    lines = table(dataclasses.asdict(config), "")
    path = Path(config.out).with_suffix(".toml")
    path.write_text("\n".join(lines) + "\n")
    return [str(Path(tiny.__file__)), "--config", str(path), *extra]


def table(values: dict[str, Any], name: str) -> list[str]:
    """The lines of a TOML table and of those in it."""
    lines = [f"{key} = {toml(v)}" for key, v in values.items() if not isinstance(v, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"[{name}{key}]", *table(value, f"{name}{key}.")]
    return lines


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def start(config: TrainConfig, at_step: int) -> Fork:
    """Starts the run as a process and returns when it has done `at_step` steps."""
    arguments = command(config)[1:]
    process = Fork(lambda: tiny.command(arguments), {})
    deadline = time.monotonic() + 300  # a machine busy with other work takes ten times as long
    while max(tiny.losses(Path(config.out)), default=0) < at_step:
        if process.poll() is not None or time.monotonic() > deadline:
            process.end()
            pytest.fail(f"the run ended early:\n{process.stderr}")
        time.sleep(0.005)
    return process


def processes(
    config: TrainConfig, count: int, *, fails: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end in several processes, a good one or, where it `fails`, a bad one."""
    arguments = command(config)[1:]
    return ranks(lambda: tiny.command(arguments), count, fails=fails, **environment)


def run_until(config: TrainConfig, step: int) -> None:
    """Runs in this process and stops as a signal would, after `step` steps."""
    original = RunLog.step

    def step_and_stop(self: Any, done: int, *args: Any) -> None:
        original(self, done, *args)
        if done == step - 1:  # the flag is looked at within the next step
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", step_and_stop)
        train(config, ONE)


def assert_same_weights(a: Path, b: Path) -> None:
    first = DepthAnything.from_pretrained(a / "export", device="cpu", dtype="float32")
    second = DepthAnything.from_pretrained(b / "export", device="cpu", dtype="float32")
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def poison(monkeypatch: pytest.MonkeyPatch, bad_calls: range | list[int]) -> None:
    """Makes the loss of some steps NaN."""
    monkeypatch.setattr(AffineInvariantLoss, "forward", tiny.poisoned_loss(bad_calls))


def torchrun(
    config: TrainConfig, processes: int, restarts: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end under torchrun's agent, whose workers are forks of this process."""
    arguments = command(config)[1:]

    def agent() -> None:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=uuid.uuid4().hex,
            max_restarts=restarts,
            start_method="fork",
        )
        elastic_launch(settings, tiny.succeed)(arguments)

    process = Fork(agent, environment)
    code = process.wait(300)  # a machine busy with other work takes ten times as long
    process.end()
    assert code == 0, process.stdout + process.stderr
    return subprocess.CompletedProcess([], 0, process.stdout, process.stderr)
