"""Options of a run that the paper does not have: each works, and changes nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dafast.distributed import World
from dafast.losses import AffineInvariantLoss, GradientMatchingLoss
from dafast.models.depth_anything import DepthAnything
from dafast.training.config import ModelSection, OptimSection, TrainConfig, UnlabeledSection
from dafast.training.data import Batch, TrainingData, make_loader
from dafast.training.loop import train
from dafast.training.optimizers import backward, build_optimizer
from dafast.training.resume import find_checkpoint
from dafast.training.starts import build_model, prepare_model
from dafast.training.state import (
    TrainingStateError,
    checkpoint_folder,
    list_checkpoints,
    load_checkpoint,
)
from dafast.training.tasks import task_of
from tests.tolerances import TOLERANCES
from tests.training import runs, tiny

ONE = World(0, 1, torch.device("cpu"))
TOLERANCE = TOLERANCES[torch.float32].model


def first_batches(config: TrainConfig) -> list[Batch]:
    """All that the loader gives for the first step."""
    data = TrainingData.open(config)
    return list(
        make_loader(config, data, ONE, step=0, stop_step=1, position=0, unlabeled_position=0)
    )


def gradients(model: DepthAnything) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("kind", ["labeled", "student"])
def test_accumulation_is_the_larger_batch(
    shards: Path, learned: str, tmp_path: Path, seed: int, kind: str, accumulate: int
) -> None:
    """Losses and gradients, and which images are mixed with which.

    The network computes in float64, and labels come from shards: in float32 a batch of another
    size is rounded otherwise, and a median may be the neighbouring pixel.
    """
    torch.manual_seed(seed)
    config = runs.student_config(shards, learned, tmp_path, seed=seed, gradient_matching=0.5)
    section = dataclasses.replace(config.unlabeled, teacher="")
    section = section if kind == "student" else UnlabeledSection()
    config = dataclasses.replace(config, unlabeled=section)
    model = DepthAnything.from_pretrained(learned, device="cpu", dtype="float32")
    with torch.no_grad():  # away from the frozen encoder
        for parameter in model.pretrained.parameters():
            parameter += 0.5 * parameter.std() * torch.randn_like(parameter)
    model = prepare_model(model, ONE.device, False).double()
    results = []
    for n in (1, accumulate):
        pieces = dataclasses.replace(config, accumulate=n)
        batches = first_batches(pieces)
        assert [len(batch.image) for batch in batches] == [config.batch_size // n] * n
        model.zero_grad()
        step = task_of(pieces).step(model, model, pieces, torch.float32)
        step.normalise.double()
        parts = backward(step, model, batches)
        results.append((parts, gradients(model)))
    (whole, expected), (parts, found) = results
    assert parts.keys() == whole.keys()
    for name, value in parts.items():
        assert value.item() == pytest.approx(whole[name].item(), rel=TOLERANCE), name
    assert whole["loss"].item() > 0 and expected.norm().item() > 0
    assert (found - expected).norm().item() < TOLERANCE * expected.norm().item()


@pytest.mark.slow
def test_a_run_that_accumulates_resumes_to_the_bit(
    shards: Path, learned: str, tmp_path: Path, seed: int
) -> None:
    config = runs.student_config(
        shards, learned, tmp_path / "a", seed=seed, accumulate=2, steps=4, checkpoint_every=2
    )
    train(config, ONE)
    whole = tiny.losses(tmp_path / "a")
    list_checkpoints(checkpoint_folder(config.out))[0].unlink()
    train(config, ONE)
    assert tiny.losses(tmp_path / "a") == whole
    position = load_checkpoint(list_checkpoints(checkpoint_folder(config.out))[0])
    assert (position["position"], position["unlabeled_position"]) == (16, 32)


@pytest.mark.parametrize("features", [False, True])
def test_activation_checkpointing_changes_no_bit(features: bool, seed: int) -> None:
    torch.manual_seed(seed)
    kept = prepare_model(tiny.trained_model(), ONE.device, False)
    recomputed = copy.deepcopy(kept)
    recomputed.pretrained.checkpoint_activations = True
    images = torch.rand(2, 3, 42, 56)
    runs_of_block = {}
    for model in (kept, recomputed):
        calls: list[int] = []
        for block in model.pretrained.blocks:
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        out = model(images, features=features)
        maps = out[0] if features else out
        loss = (maps - images.mean(1)).abs().mean() + (out[1].square().mean() if features else 0)
        loss.backward()
        runs_of_block[model] = len(calls)
    assert runs_of_block == {kept: 4, recomputed: 8}
    assert torch.equal(gradients(kept), gradients(recomputed))
    with torch.no_grad():
        assert torch.equal(kept(images), recomputed(images))


def test_gradient_matching_is_added_to_each_depth_loss(
    shards: Path, learned: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runs.student_config(shards, learned, tmp_path, seed=seed)
    (batch,) = first_batches(config)
    model = prepare_model(tiny.trained_model(), ONE.device, False)
    plain = task_of(config).step(model, model, config, torch.float32)(batch)
    assert list(plain) == ["loss", "labeled", "unlabeled", "alignment"]

    seen: list[tuple[torch.Tensor, ...]] = []
    for loss in (AffineInvariantLoss, GradientMatchingLoss):
        forward = loss.forward
        monkeypatch.setattr(
            loss,
            "forward",
            lambda self, *maps, forward=forward: (seen.append(maps), forward(self, *maps))[1],
        )
    weighted = dataclasses.replace(config, gradient_matching=0.25)
    parts = task_of(weighted).step(model, model, weighted, torch.float32)(batch)
    names = ["labeled", "labeled_gradient", "unlabeled", "unlabeled_gradient", "alignment"]
    assert list(parts) == ["loss", *names]
    for name in ("labeled", "unlabeled", "alignment"):
        assert parts[name].item() == plain[name].item()
    for maps, same, name in ((*seen[:2], "labeled"), (*seen[2:], "unlabeled")):
        assert all(a is b for a, b in zip(maps, same, strict=True)), "both see the same maps"
        expected = 0.25 * GradientMatchingLoss()(*maps)
        assert parts[f"{name}_gradient"].item() == pytest.approx(expected.item(), rel=1e-6)
    total = sum(parts[name].item() for name in names) / 3
    assert parts["loss"].item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("muon", [False, True])
def test_layer_decay(muon: bool) -> None:
    model = prepare_model(tiny.trained_model(), ONE.device, False)  # four blocks
    section = OptimSection(encoder_lr=1.0, decoder_lr=3.0, layer_decay=0.5, muon=muon)
    rates = {}
    for group in build_optimizer(model, section).param_groups:
        for parameter in group["params"]:
            assert parameter not in rates
            rates[parameter] = (group["lr"], group["peak_lr"])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter not in rates
            continue
        if not name.startswith("pretrained."):
            expected = 3.0
        elif ".blocks." in name:
            expected = 0.5 ** (3 - int(name.split(".")[2]))
        else:
            expected = 1.0 if name.startswith("pretrained.norm") else 0.5**4
        assert rates[parameter] == (expected, expected), name
    groups = build_optimizer(model, dataclasses.replace(section, layer_decay=1.0)).param_groups
    assert {group["peak_lr"] for group in groups} == {1.0, 3.0}
    assert len(groups) == (5 if muon else 4), "one each, as checkpoints of earlier runs have them"


@pytest.mark.slow
def test_a_frozen_encoder_stays_and_the_decoder_learns(
    shards: Path, learned: str, tmp_path: Path, seed: int
) -> None:
    section = ModelSection(preset="tiny", init=learned, freeze_encoder=True)
    assert not any(
        p.requires_grad for p in build_model(section, ONE.device, False).pretrained.parameters()
    )
    config = runs.tiny_config(shards, tmp_path / "run", seed=seed, steps=3, model=section)
    train(config, ONE)
    before = DepthAnything.from_pretrained(learned, device="cpu", dtype="float32").state_dict()
    after = DepthAnything.from_pretrained(
        tmp_path / "run" / "export", device="cpu", dtype="float32"
    ).state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and not any(name.startswith("pretrained.") for name in changed)
    assert all(line["grad_norm"] > 0 for line in runs.metrics(tmp_path / "run"))


def scripted_scores(
    monkeypatch: pytest.MonkeyPatch, scores: dict[int, dict[str, float]], config: TrainConfig
) -> dict[int, dict[str, torch.Tensor]]:
    """Lets evaluations give these numbers; returns the weights that each one saw."""
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def evaluation(model: DepthAnything, *args: Any) -> dict[str, float]:
        step = max(tiny.losses(Path(config.out)))
        seen[step] = copy.deepcopy(model.state_dict())
        return scores[step]

    monkeypatch.setattr("dafast.training.tasks.relative.periodic_evaluation", evaluation)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("best_by", ["abs_rel", "loss"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_best_model_is_kept_across_a_resume(
    shards: Path,
    tmp_path: Path,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    best_by: str,
    ema: float,
) -> None:
    config = runs.tiny_config(
        shards,
        tmp_path / "run",
        seed=seed,
        ema=ema,
        eval_every=1,
        checkpoint_every=1,
        best_by=best_by,
    )
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, eval_path=str(shards))
    )
    other = {"abs_rel": "loss", "loss": "abs_rel"}[best_by]
    values = [0.5, 0.2, 0.4, 0.3, 0.1, float("nan")]
    scores = {i: {best_by: v, other: 1.0 / i} for i, v in enumerate(values, 1)}
    seen = scripted_scores(monkeypatch, scores, config)

    def kept() -> dict[str, float]:
        best = json.loads((tmp_path / "run" / "best" / "evaluation.json").read_text())
        model = DepthAnything.from_pretrained(
            tmp_path / "run" / "best", device="cpu", dtype="float32"
        )
        for name, value in model.state_dict().items():
            assert torch.equal(value, seen[best["step"]][name]), name
        return best

    train(dataclasses.replace(config, steps=3, optim=OptimSection(1e-3, 1.0, 1e-3)), ONE)
    assert kept() == {"step": 2, **scores[2]}
    train(dataclasses.replace(config, steps=4, optim=OptimSection(1e-3, 1.0, 1e-3)), ONE)
    assert kept() == {"step": 2, **scores[2]}, "0.3 is better than what came after the resume only"
    train(dataclasses.replace(config, steps=6, optim=OptimSection(1e-3, 1.0, 1e-3)), ONE)
    assert kept() == {"step": 5, **scores[5]}


@pytest.mark.slow
def test_a_killed_run_repeats_the_evaluation_that_its_checkpoint_does_not_know(
    shards: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runs.tiny_config(
        shards, tmp_path / "run", seed=seed, eval_every=1, checkpoint_every=2, steps=4
    )
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, eval_path=str(shards))
    )
    scores = {i: {"abs_rel": v, "loss": v} for i, v in enumerate([0.4, 0.3, 0.1, 0.2], 1)}
    seen = scripted_scores(monkeypatch, scores, config)
    train(config, ONE)
    best = tmp_path / "run" / "best" / "evaluation.json"
    assert json.loads(best.read_text())["step"] == 3
    list_checkpoints(checkpoint_folder(config.out))[0].unlink()  # as if killed after step 3
    best.unlink()
    before = copy.deepcopy(seen)
    train(config, ONE)
    assert json.loads(best.read_text())["step"] == 3
    for name, value in before[3].items():
        assert torch.equal(value, seen[3][name])


@pytest.mark.slow
def test_rates_may_change_on_the_way_and_groups_may_not(
    shards: Path, learned: str, tmp_path: Path
) -> None:
    section = OptimSection(encoder_lr=1e-3, decoder_lr=1e-3, layer_decay=0.9, schedule="constant")
    model = ModelSection(preset="tiny", init=learned)
    config = runs.tiny_config(shards, tmp_path / "run", model=model, optim=section, steps=2)
    train(config, ONE)
    still = dataclasses.replace(section, encoder_lr=0.0, layer_decay=0.8)
    train(dataclasses.replace(config, optim=still, steps=3), ONE)
    first, last = (
        load_checkpoint(path)["model"]
        for path in reversed(list_checkpoints(checkpoint_folder(config.out)))
    )
    changed = {name for name, value in first.items() if not torch.equal(value, last[name])}
    assert changed and not any(name.startswith("pretrained.") for name in changed)
    for change in (
        {"optim": dataclasses.replace(section, layer_decay=1.0)},
        {"optim": dataclasses.replace(section, muon=True)},
        {"model": dataclasses.replace(model, freeze_encoder=True)},
    ):
        with pytest.raises(TrainingStateError, match=r"other groups: optim\.layer_decay.*export"):
            train(dataclasses.replace(config, steps=4, **change), ONE)


@pytest.mark.slow
@pytest.mark.parametrize("resume", ["none", "elsewhere"])
def test_a_restarted_process_continues_for_every_value_of_resume(
    shards: Path, learned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: str
) -> None:
    model = ModelSection(preset="tiny", init=learned)
    config = runs.tiny_config(shards, tmp_path / "run", model=model, steps=1)
    elsewhere = dataclasses.replace(config, out=str(tmp_path / "elsewhere"))
    train(elsewhere, ONE)
    other = list_checkpoints(checkpoint_folder(elsewhere.out))[0]
    config = dataclasses.replace(config, resume=resume if resume == "none" else str(other))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    found = find_checkpoint(config, ONE)  # killed before its first checkpoint: as at the start
    assert (found and found[0]) == (None if resume == "none" else other)
    train(dataclasses.replace(config, steps=2), ONE)
    found = find_checkpoint(config, ONE)
    assert found and found[0] == list_checkpoints(checkpoint_folder(config.out))[0]
    assert found[1]["step"] == 2


@pytest.mark.slow
def test_an_evaluation_that_fails_loses_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluation(*args: Any) -> dict[str, float]:
        raise ValueError("a held-out scene that cannot be read")

    monkeypatch.setattr("dafast.training.tasks.relative.periodic_evaluation", evaluation)
    config = runs.tiny_config(shards, tmp_path / "run", steps=4)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, eval_path=str(shards))
    )
    with pytest.raises(ValueError, match="held-out scene"):
        train(config, ONE)
    assert list_checkpoints(checkpoint_folder(tmp_path / "run"))
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_compiled_run_has_the_gradients_of_the_other(
    tmp_path: Path, fixed_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Inductor, which takes a minute; tests/models/test_compile.py has its gradients."""
    backends: list[str] = []

    def compile_quickly(model: Any, **options: Any) -> Any:
        backends.append("aot_eager")
        return original(model, backend="aot_eager", **options)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile_quickly)
    config = runs.tiny_config(
        tiny.write_shards(tmp_path / "data", 2, 18, fixed_seed), tmp_path / "eager",
        seed=fixed_seed, steps=2, checkpoint_every=0, precision="float32",
        optim=OptimSection(encoder_lr=1e-5, decoder_lr=1e-5),
    )  # fmt: skip
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shapes=((42, 42),)))
    train(config, ONE)
    assert not backends
    train(dataclasses.replace(config, compile=True, out=str(tmp_path / "compiled")), ONE)
    assert backends
    eager, compiled = (runs.metrics(tmp_path / name) for name in ("eager", "compiled"))
    for a, b in zip(eager, compiled, strict=True):
        assert a["grad_norm"] > 0
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3), a["step"]
        # The gradient of a median is that of one pixel, which rounding can exchange for another.
        assert 0.5 < b["grad_norm"] / a["grad_norm"] < 2, a["step"]
