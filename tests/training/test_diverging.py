"""Runs that diverge or stop learning: what they leave, and what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dafast.models import DepthAnything
from dafast.training.config import ModelSection, OptimSection
from dafast.training.loop import train
from dafast.training.run import QUIET_STEPS, TooManyBadStepsError
from dafast.training.state import checkpoint_folder, list_checkpoints
from tests.training import tiny
from tests.training.runs import ONE, metrics, poison, tiny_config

CALM = OptimSection(encoder_lr=1e-4, decoder_lr=1e-4)
WILD = OptimSection(encoder_lr=1e30, decoder_lr=1e30, schedule="constant", grad_clip=0.0)


def kept(out: Path) -> dict[str, bytes]:
    """The checkpoints and the exported and best weights of a run."""
    names = [*out.glob("checkpoints/*"), *out.glob("export/*"), *out.glob("best/*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in names}


def steps_of(out: Path) -> list[int]:
    return [int(p.stem.removeprefix("step-")) for p in list_checkpoints(checkpoint_folder(out))]


@pytest.mark.slow
def test_a_diverging_run_keeps_its_good_checkpoints(
    shards: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    """Also the checkpoint right after the step whose update broke the model."""
    out = tmp_path / "run"
    config = tiny_config(shards, out, seed=seed, steps=3, checkpoint_every=1, optim=CALM)
    data = dataclasses.replace(config.data, eval_path=str(shards), eval_samples=2)
    config = dataclasses.replace(config, data=data, eval_every=1)
    train(config, ONE)
    before = kept(out)
    assert steps_of(out) == [3, 2, 1] and "best/config.json" in before
    wild = dataclasses.replace(config, steps=300, optim=WILD, max_bad_steps=3)
    with pytest.raises(TooManyBadStepsError, match=r"\(the last: step \d+\)") as caught:
        train(wild, ONE)
    assert f"The last good checkpoint is of step 3: {out}/checkpoints/step-00000003.pt" in str(
        caught.value
    )
    assert kept(out) == before
    assert "step 4: no checkpoint and no export, the model is not finite" in capsys.readouterr().out
    # With the old settings the run continues as if nothing had happened.
    train(dataclasses.replace(config, steps=4), ONE)
    assert steps_of(out) == [4, 3, 2]
    assert not list(out.glob("set-aside-*"))


@pytest.mark.slow
def test_no_checkpoint_is_written_while_steps_are_skipped(
    shards: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model itself is finite here: one bad step may be the samples' fault, a second is not."""
    poison(monkeypatch, range(4, 1000))
    config = tiny_config(
        shards, tmp_path / "run", seed=seed, steps=50, checkpoint_every=1, max_bad_steps=6
    )
    with pytest.raises(TooManyBadStepsError, match="of step 5: "):
        train(config, ONE)
    assert steps_of(tmp_path / "run") == [5, 4, 3]


@pytest.mark.slow
def test_a_run_that_ends_broken_is_no_success(
    shards: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(2, 1000))
    config = tiny_config(shards, tmp_path / "run", seed=seed, steps=5, checkpoint_every=2)
    with pytest.raises(TooManyBadStepsError, match=r"ended at step 5 .*not finite.* of step 2: "):
        train(config, ONE)
    assert steps_of(tmp_path / "run") == [2]


@pytest.mark.slow
def test_one_bad_step_at_the_end_costs_nothing_else(
    shards: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, [4])
    train(tiny_config(shards, tmp_path / "run", seed=seed, steps=5, checkpoint_every=0), ONE)
    assert steps_of(tmp_path / "run") == [5]
    assert (tmp_path / "run/export/config.json").exists()


def dead_model(folder: Path) -> ModelSection:
    """A model whose last ReLU gives 0 everywhere, and its section of a configuration."""
    model = DepthAnything(tiny.TINY)
    with torch.no_grad():
        model.get_parameter("depth_head.scratch.output_conv2.2.bias").fill_(-1e4)
    model.save_pretrained(folder)
    return ModelSection(preset="tiny", init=str(folder))


@pytest.mark.slow
def test_a_run_that_learns_nothing_warns(
    shards: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    config = tiny_config(
        shards,
        tmp_path / "run",
        seed=seed,
        model=dead_model(tmp_path / "dead"),
        steps=QUIET_STEPS + 1,
        checkpoint_every=0,
    )
    train(config, ONE)
    assert all(line["grad_norm"] == 0 for line in metrics(tmp_path / "run"))
    error = capsys.readouterr().err
    assert error.count(f"exactly 0 for {QUIET_STEPS} steps, up to step {QUIET_STEPS}") == 1
    assert f"exactly 0 in the last {QUIET_STEPS + 1} steps" in error
    healthy = dataclasses.replace(
        config, model=ModelSection(preset="tiny"), out=str(tmp_path / "b")
    )
    train(healthy, ONE)
    assert "exactly 0" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_without_its_checkpoints_is_set_aside(
    shards: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    """They were deleted to save disk: nothing of the finished run is overwritten."""
    out = tmp_path / "run"
    config = tiny_config(shards, out, seed=seed, steps=2, checkpoint_every=1, optim=CALM)
    data = dataclasses.replace(config.data, eval_path=str(shards), eval_samples=2)
    config = dataclasses.replace(config, data=data)
    train(config, ONE)
    names = ("metrics.jsonl", "config.json", "export", "best")
    before = {
        path.relative_to(out): path.read_bytes()
        for name in names
        for path in [out / name, *(out / name).glob("*")]
        if path.is_file()
    }
    for path in (out / "checkpoints").iterdir():
        path.unlink()
    train(dataclasses.replace(config, seed=seed + 1), ONE)
    assert f"the files of the earlier run are in {out}/set-aside-1" in capsys.readouterr().out
    assert {p: (out / "set-aside-1" / p).read_bytes() for p in before} == before
    assert sorted(tiny.losses(out)) == [1, 2] and (out / "export/config.json").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    shards: Path, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    train(tiny_config(shards, out, seed=seed, steps=1, checkpoint_every=0), ONE)
    assert sorted(tiny.losses(out)) == [1]
    assert not list(out.glob("set-aside-*"))
