"""Runs in several processes: sharded, accumulating, restarted after a worker's death."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from dafast.distributed import World, distributed_session
from dafast.ops import OPS
from dafast.training.config import ModelSection, OptimSection, TrainConfig
from dafast.training.data import TrainingData, make_loader
from dafast.training.loop import train
from dafast.training.optimizers import Ema, build_optimizer
from dafast.training.parallel import WholeModel, gather, load_weights, shard
from dafast.training.starts import build_model, prepare_model
from dafast.training.state import checkpoint_folder, list_checkpoints, load_checkpoint
from dafast.training.tasks import task_of
from tests.forks import ranks
from tests.tolerances import TOLERANCES
from tests.training import runs, tiny

ONE = World(0, 1, torch.device("cpu"))
TOLERANCE = TOLERANCES[torch.float32].model


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of only this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def taught(model: Any, optimizer: Any, images: torch.Tensor) -> torch.Tensor:
    """One step of something that can be learned; the loss."""
    loss = (model(images) - images.mean(1)).abs().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_sharded_model_is_the_same(
    group: None, checkpointing: bool, frozen: bool, seed: int
) -> None:
    """Losses, weights, moments and the moving average; and its state goes both ways."""
    torch.manual_seed(seed)
    section = OptimSection(encoder_lr=1e-3, decoder_lr=1e-3, layer_decay=0.9)
    plain = prepare_model(tiny.trained_model(), ONE.device, channels_last=False)
    plain.pretrained.requires_grad_(not frozen)
    sharded = copy.deepcopy(plain)
    sharded.pretrained.checkpoint_activations = checkpointing
    average, whole = Ema(sharded, 0.5), WholeModel(sharded, True, ONE)
    for part in (sharded, average.model):
        shard(part, ONE)
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    plain_average = Ema(plain, 0.5)
    optimizers = [build_optimizer(model, section) for model in (plain, sharded)]
    for step in range(2):
        images = torch.rand(2, 3, 42, 56)
        losses = [
            taught(model, optimizer, images)
            for model, optimizer in zip((plain, sharded), optimizers, strict=True)
        ]
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=TOLERANCE)
        average.update(step)
        plain_average.update(step)

    def state(model: Any, average: Ema, optimizer: Any) -> dict[str, Any]:
        parts = (model, average.model, optimizer)
        return gather({str(i): part.state_dict() for i, part in enumerate(parts)}, ONE)

    expected = state(plain, plain_average, optimizers[0])
    found = state(sharded, average, optimizers[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(whole().state_dict(), found["0"], rtol=0, atol=0)

    # What a whole run saved goes into a sharded one.
    load_weights(sharded, expected["0"])
    load_weights(average.model, expected["1"])
    optimizers[1].load_state_dict(expected["2"])
    found = state(sharded, average, optimizers[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_a_sharded_student_has_the_same_losses(
    group: None, shards: Path, learned: str, tmp_path: Path, seed: int
) -> None:
    torch.manual_seed(seed)
    config = runs.student_config(shards, learned, tmp_path, seed=seed, gradient_matching=0.5)
    config = dataclasses.replace(
        config, unlabeled=dataclasses.replace(config.unlabeled, align="start")
    )
    data = TrainingData.open(config)
    (batch,) = make_loader(config, data, ONE, step=0, stop_step=1, position=0, unlabeled_position=0)
    model = build_model(config.model, ONE.device, channels_last=True)
    step = task_of(config).step(model, model, config, torch.float32)
    with torch.no_grad():  # away from the frozen encoder
        for parameter in model.pretrained.parameters():
            parameter += 0.5 * parameter.std() * torch.randn_like(parameter)
    expected = step(batch)
    shard(model, ONE)
    found = step(batch)
    assert list(found) == list(expected)
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=TOLERANCE), name
    found["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def start_config(shards: Path, folder: Path, seed: int, **changes: Any) -> TrainConfig:
    """From weights that have learned something: an untrained map is flat, and rounding counts."""
    torch.manual_seed(seed)
    tiny.trained_model().save_pretrained(folder / "start")
    values = {
        "seed": seed,
        "model": ModelSection(preset="tiny", init=str(folder / "start")),
        "precision": "float32",
        "optim": OptimSection(encoder_lr=1e-4, decoder_lr=1e-4),
        "steps": 4,
        "checkpoint_every": 2,
        **changes,
    }
    return runs.tiny_config(shards, folder / "one", **values)


def assert_same_course(a: Path, b: Path) -> None:
    """The losses within rounding."""
    first, second = runs.metrics(a), runs.metrics(b)
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        # From the second step on the weights differ: a rounding that changes which pixel is the
        # median changes a gradient, and Adam takes small ones as far as large ones.
        rel = TOLERANCE if one["step"] == 1 else 100 * TOLERANCE
        assert other["loss"] == pytest.approx(one["loss"], rel=rel), one["step"]


@pytest.mark.slow
def test_two_sharded_processes_equal_one_and_its_checkpoints_are_those_of_one(
    shards: Path, tmp_path: Path, seed: int
) -> None:
    config = start_config(
        shards, tmp_path, seed, activation_checkpointing=True, gradient_matching=0.5
    )
    train(config, ONE)
    sharded = dataclasses.replace(config, out=str(tmp_path / "sharded"), parallel="fsdp")
    runs.processes(sharded, 2)
    assert_same_course(tmp_path / "one", tmp_path / "sharded")

    # One process loads what two have saved, in the same file as its own.
    ours, theirs = (
        load_checkpoint(list_checkpoints(checkpoint_folder(run.out))[0])
        for run in (config, sharded)
    )
    assert theirs.keys() == ours.keys()
    torch.testing.assert_close(theirs["model"], ours["model"], rtol=0, atol=1e-2)
    torch.testing.assert_close(theirs["ema"], ours["ema"], rtol=0, atol=1e-2)
    shapes = [
        tree_map_only(torch.Tensor, lambda t: t.shape, state["optimizer"])
        for state in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]

    # Sharded, it continues from the middle to the bit; from there also in one process.
    whole = runs.metrics(Path(sharded.out))
    for run in (config, sharded):
        list_checkpoints(checkpoint_folder(run.out))[0].unlink()
    text = runs.processes(sharded, 2).stdout
    assert "resumed from" in text and "at step 2" in text
    again = runs.metrics(Path(sharded.out))
    for line in (*whole, *again):
        del line["images_per_second"]
    assert again == whole, "not equal to the bit"
    list_checkpoints(checkpoint_folder(sharded.out))[0].unlink()
    train(dataclasses.replace(sharded, parallel="ddp"), ONE)
    assert_same_course(tmp_path / "one", tmp_path / "sharded")


@pytest.mark.slow
def test_two_sharded_processes_compute_the_gelu_again(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The MLP that keeps no GELU: loss and gradients are those of one whole model."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from dafast.kernels import bias_gelu as kernel

    calls = dict.fromkeys(("bias_gelu_fwd", "bias_gelu_bwd_with_output"), 0)

    def counted(name: str) -> Any:
        launch = getattr(kernel, name)

        def call(*args: Any) -> Any:
            calls[name] += 1
            return launch(*args)

        return call

    for name in calls:
        monkeypatch.setattr(kernel, name, counted(name))
    # Only this op: interpreted kernels are slow.
    monkeypatch.setattr(OPS["bias_gelu"], "select", lambda *args: "triton")
    start = prepare_model(tiny.trained_model(), ONE.device, channels_last=False)
    images = torch.rand(4, 3, 28, 42)

    def backward(model: Any, images: torch.Tensor, autocast: bool) -> torch.Tensor:
        calls.update(dict.fromkeys(calls, 0))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(images)
        loss = (out.float() - images.mean(1)).square().mean()
        loss.backward()
        # Under checkpointing, the forward of each block runs again in the backward.
        depth = len(model.pretrained.blocks)
        forwards = (1 + model.pretrained.checkpoint_activations) * depth
        assert list(calls.values()) == [forwards, depth]
        return loss.detach()

    expected = []
    for autocast in (False, True):
        plain = copy.deepcopy(start)
        loss = backward(plain, images, autocast)
        gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
        expected.append((loss, gradients))

    def rank() -> None:
        with distributed_session() as world:
            for autocast, (loss, gradients) in zip((False, True), expected, strict=True):
                model = copy.deepcopy(start)
                model.pretrained.checkpoint_activations = not autocast
                shard(model, world)
                own = backward(model, images[2 * world.rank :][:2], autocast)
                bound = 0.02 if autocast else TOLERANCE
                assert world.mean(own).item() == pytest.approx(loss.item(), rel=bound)
                parts = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
                found = gather(parts, world)
                assert found.keys() == gradients.keys()
                for name, wanted in gradients.items() if world.is_main else ():
                    error = (found[name] - wanted).norm() / wanted.norm()
                    assert error < bound, (autocast, name, error.item())

    ranks(rank, 2)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_equal_one(accumulate: int, shards: Path, tmp_path: Path, seed: int) -> None:
    config = start_config(shards, tmp_path, seed, steps=6, checkpoint_every=0)
    train(config, ONE)
    two = dataclasses.replace(config, out=str(tmp_path / "two"), accumulate=accumulate)
    runs.processes(two, 2)
    assert_same_course(tmp_path / "one", tmp_path / "two")
    # The gradient goes through the median, that is through one pixel; where rounding makes it the
    # neighbour the gradient jumps, and the weights differ from then on. So one step must agree.
    both = zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True)
    apart = [abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in both]
    assert min(apart) < TOLERANCE, apart


@pytest.mark.slow
def test_a_killed_worker_is_started_again(shards: Path, tmp_path: Path, seed: int) -> None:
    """The run continues from its last checkpoint, and ends as if nothing had happened."""
    config = start_config(shards, tmp_path, seed, steps=5)
    runs.processes(config, 2)
    broken = dataclasses.replace(config, out=str(tmp_path / "broken"))
    done = runs.torchrun(broken, 2, restarts=1, TINY_KILL="1 3")
    assert "resumed from" in done.stdout and "at step 2" in done.stdout
    whole, resumed = runs.metrics(Path(config.out)), runs.metrics(Path(broken.out))
    for line in (*whole, *resumed):
        del line["images_per_second"]
    assert whole == resumed, "not equal to the bit"
    runs.assert_same_weights(Path(config.out), Path(broken.out))
