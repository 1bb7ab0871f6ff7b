"""Fine-tuning to metres: what is trained, what it starts from, that it learns and resumes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dafast.data.colours import DRAWS, change_colours
from dafast.data.labeling import label_shards
from dafast.data.shards import ShardDataset
from dafast.data.transforms import STRONG, AugmentConfig
from dafast.evaluation.metrics import depth_errors
from dafast.losses import SILogLoss
from dafast.models.depth_anything import DepthAnything
from dafast.training.config import (
    ConfigError,
    MetricSection,
    ModelSection,
    OptimSection,
    TrainConfig,
)
from dafast.training.config_files import load_toml
from dafast.training.data import Batch, TrainingData, make_loader
from dafast.training.loop import train
from dafast.training.optimizers import backward, build_optimizer
from dafast.training.tasks import task_of
from dafast.training.tasks.metric import build_metric_model, metric_evaluation
from tests.tolerances import TOLERANCES
from tests.training import tiny
from tests.training.runs import ONE, assert_same_weights, metrics, processes, run_until, tiny_config

CPU = torch.device("cpu")
HEADS = ["softplus", "normed", "sigmoid"]
CONFIGS = Path(__file__).parents[2] / "configs"


def metric_run(shards: Path, out: Path, head: str = "softplus", **changes) -> TrainConfig:
    """A small run in metres. The test shards' depths are metres well under 80."""
    settings = dict(
        metric=MetricSection(max_depth=80.0, head=head), augment=AugmentConfig(), ema=0.0
    )
    return tiny_config(shards, out, **{**settings, **changes})


def load(folder: Path) -> DepthAnything:
    return DepthAnything.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "steps"),
    [
        ("softplus", 60),
        ("normed", 2),
        ("sigmoid", 2),
        pytest.param("normed", 60, marks=pytest.mark.exhaustive),
        pytest.param("sigmoid", 60, marks=pytest.mark.exhaustive),
    ],
)
def test_learns_and_exports_metres(head: str, steps: int, tmp_path: Path, fixed_seed: int) -> None:
    """Two steps are enough for the export."""
    shards = tiny.write_shards(tmp_path / "data", 2, 18, fixed_seed)
    config = metric_run(
        shards, tmp_path / "run", head, steps=steps, seed=fixed_seed, checkpoint_every=0
    )
    data = dataclasses.replace(config.data, eval_path=str(shards), eval_samples=4)
    train(dataclasses.replace(config, data=data), ONE)
    lines = metrics(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == steps
    assert steps == 2 or sum(losses[-12:]) < 0.97 * sum(losses[:12]), losses
    assert losses == [line["silog"] for line in lines if "loss" in line]
    assert {"eval/loss", "eval/abs_rel", "eval/delta_1", "eval/rmse"} <= lines[-1].keys()

    model = load(tmp_path / "run/export")
    assert model.config.name == "tiny-metric" and model.config.max_depth == 80
    assert model.config.bin_centers == ("" if head == "sigmoid" else head)
    assert model.config.image_size == 42
    # The evaluation of the exported model is that of the run.
    section = config.metric
    again = metric_evaluation(model, ShardDataset(shards, labels="physical"), 4, section)
    assert again["abs_rel"] == pytest.approx(lines[-1]["eval/abs_rel"], rel=1e-3)


@pytest.mark.slow
def test_resume_is_exact(shards: Path, tmp_path: Path, seed: int) -> None:
    whole = metric_run(shards, tmp_path / "whole", seed=seed, ema=0.9)
    broken = dataclasses.replace(whole, out=str(tmp_path / "broken"))
    train(whole, ONE)
    run_until(broken, 7)
    train(broken, ONE)
    assert tiny.losses(tmp_path / "whole") == tiny.losses(tmp_path / "broken")
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("head", HEADS)
def test_every_trained_weight_gets_a_gradient(
    head: str, shards: Path, tmp_path: Path, seed: int
) -> None:
    """Otherwise several processes would wait for it."""
    torch.manual_seed(seed)
    config = metric_run(shards, tmp_path / "x", head, seed=seed)
    model = build_metric_model(config, CPU)
    data = TrainingData.open(config)
    loader = make_loader(config, data, ONE, step=0, stop_step=1, position=0, unlabeled_position=0)
    task_of(config).step(model, model, config, torch.float32)(next(iter(loader)))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [2, 3])
def test_accumulation_is_the_larger_batch(
    pieces: int, shards: Path, tmp_path: Path, seed: int
) -> None:
    """Loss and gradients, though the pieces have unequal numbers of valid pixels, one of them none.

    The network computes in float64: the loss is what is compared, not the rounding of batches of
    another size.
    """
    torch.manual_seed(seed)
    config = metric_run(shards, tmp_path / "x", precision="float32")
    model = build_metric_model(config, CPU).double()
    step = task_of(config).step(model, model, config, torch.float32)
    step.normalise.double()
    count = 2 * pieces
    image = torch.randint(0, 256, (count, 3, 42, 56), dtype=torch.uint8)
    disparity = 0.02 + torch.rand(count, 42, 56)
    mask = torch.rand(count, 42, 56) < torch.rand(count, 1, 1)
    mask[:2] = False
    colours = torch.rand(count, DRAWS)
    whole = Batch(image, colours, disparity, mask, ["key"] * count, [])
    parts = [
        Batch(*(x[i : i + 2] for x in (image, colours, disparity, mask)), ["key"] * 2, [])
        for i in range(0, count, 2)
    ]
    results = []
    for batches in ([whole], parts):
        model.zero_grad()
        values = backward(step, model, batches)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((values, gradient))
    (one, expected), (several, found) = results
    assert one.keys() == several.keys()
    tolerance = TOLERANCES[torch.float32].model
    for name, value in one.items():
        assert several[name].item() == pytest.approx(value.item(), rel=tolerance)
    assert expected.norm() > 0
    assert (found - expected).norm() < tolerance * expected.norm()


@pytest.mark.slow
def test_a_run_that_accumulates(shards: Path, tmp_path: Path, seed: int) -> None:
    """The first loss is that of the run that does not; a resume is exact."""
    config = metric_run(
        shards, tmp_path / "one", seed=seed, precision="float32", steps=3, optim=OptimSection()
    )
    train(dataclasses.replace(config, steps=1), ONE)
    pieces = dataclasses.replace(config, accumulate=2, out=str(tmp_path / "two"))
    train(pieces, ONE)
    one, two = tiny.losses(tmp_path / "one"), tiny.losses(tmp_path / "two")
    assert two[1] == pytest.approx(one[1], rel=TOLERANCES[torch.float32].model)
    broken = dataclasses.replace(pieces, out=str(tmp_path / "broken"))
    run_until(broken, 2)
    train(broken, ONE)
    assert tiny.losses(tmp_path / "broken") == two


@pytest.mark.slow
def test_two_processes(shards: Path, tmp_path: Path, seed: int) -> None:
    """Pieces give what the processes' whole batches give."""
    rates = OptimSection(encoder_lr=1e-5, decoder_lr=1e-5)  # Adam enlarges roundings of small sums
    config = metric_run(
        shards, tmp_path / "two", seed=seed, steps=4, checkpoint_every=0, precision="float32",
        optim=rates,
    )  # fmt: skip
    processes(dataclasses.replace(config, accumulate=2), 2)
    processes(dataclasses.replace(config, out=str(tmp_path / "whole")), 2)
    losses, expected = tiny.losses(tmp_path / "two"), tiny.losses(tmp_path / "whole")
    assert sorted(losses) == [1, 2, 3, 4] and all(np.isfinite(v) for v in losses.values())
    for step, loss in losses.items():
        assert loss == pytest.approx(expected[step], rel=1e-3), step


def relative(seed: int, folder: Path) -> DepthAnything:
    torch.manual_seed(seed)
    model = DepthAnything("tiny")
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("head", HEADS)
def test_starts_from_a_relative_model(head: str, shards: Path, tmp_path: Path, seed: int) -> None:
    source = relative(seed, tmp_path / "relative").state_dict()
    section = ModelSection(preset="tiny", init=str(tmp_path / "relative"))
    model = build_metric_model(metric_run(shards, tmp_path / "x", head, model=section), CPU)
    output = "depth_head.scratch.output_conv2.2."
    same = {k for k, v in model.state_dict().items() if k in source and torch.equal(v, source[k])}
    other = source.keys() - same
    if head == "sigmoid":  # whose output is of another kind
        assert other and all(k.startswith(output) for k in other)
    else:
        assert not other
        assert any(k.startswith("metric_head.") for k in model.state_dict())


@pytest.mark.parametrize("first", HEADS)
@pytest.mark.parametrize("second", HEADS)
def test_starts_from_a_metric_model(
    first: str, second: str, shards: Path, tmp_path: Path, seed: int
) -> None:
    torch.manual_seed(seed)
    build_metric_model(metric_run(shards, tmp_path / "x", first), CPU).save_pretrained(
        tmp_path / "first"
    )
    source = load(tmp_path / "first").state_dict()
    section = ModelSection(preset="tiny", init=str(tmp_path / "first"))
    model = build_metric_model(metric_run(shards, tmp_path / "x", second, model=section), CPU)
    state = model.state_dict()
    other = {k for k in source if k not in state or not torch.equal(state[k], source[k])}
    if first == second:
        assert not other
    assert not [k for k in other if k.startswith("pretrained.")]
    kept_output = (first == "sigmoid") == (second == "sigmoid")
    assert kept_output == ("depth_head.scratch.output_conv2.2.weight" not in other)
    # Relative disparity is not what it predicts.
    plain = tiny_config(shards, tmp_path / "y", model=section)
    with pytest.raises(ConfigError, match=r"model\.init: .* predicts metres"):
        train(plain, ONE)


def test_the_step_compares_metres(shards: Path, tmp_path: Path, seed: int) -> None:
    """By hand: labels as they are on disk, out of range ones left out."""
    section = MetricSection(max_depth=4.0, min_depth=1.0, beta=0.3)
    augment = dataclasses.replace(STRONG, crop="resized")
    config = metric_run(shards, tmp_path / "x", seed=seed, metric=section, augment=augment)
    data = TrainingData.open(config)
    loader = make_loader(config, data, ONE, step=0, stop_step=1, position=0, unlabeled_position=0)
    batch = next(iter(loader))
    model = build_metric_model(config, CPU).eval()
    step = task_of(config).step(model, model, config, torch.float32)
    seen = change_colours(batch.image, augment, batch.colours)
    with torch.no_grad():
        parts = step(batch)
        predicted = model(step.normalise(seen))
    depth = 1 / batch.disparity
    valid = batch.mask & (depth > 1) & (depth < 4)
    assert 0 < valid.sum() < valid.numel()
    expected = SILogLoss(0.3)(predicted, torch.where(valid, depth, 1.0), valid)
    assert float(parts["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_evaluation_is_without_alignment(shards: Path, tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = build_metric_model(metric_run(shards, tmp_path / "x"), CPU)
    data = ShardDataset(shards, labels="physical")
    section = MetricSection(max_depth=80.0, flip=False)
    got = metric_evaluation(model, data, 3, section)
    assert model.training
    expected = []
    for i in (0, round((len(data) - 1) / 2), len(data) - 1):
        sample = data[i]
        with np.errstate(divide="ignore"):
            depth = torch.from_numpy(1 / sample.disparity)[None]
        valid = (depth < 80) & (depth > 1e-3)
        prediction = torch.from_numpy(model.eval().infer_metric(sample.image))[None]
        expected.append(float(depth_errors(prediction.clamp(1e-3, 80), depth, valid)["abs_rel"]))
    assert got["abs_rel"] == pytest.approx(np.mean(expected), rel=1e-5)
    flipped = metric_evaluation(model, data, 3, MetricSection(max_depth=80.0))
    assert flipped["abs_rel"] != got["abs_rel"]
    nothing = metric_evaluation(model, data, 3, MetricSection(max_depth=1e-2))
    assert nothing.keys() == {"loss"} and np.isnan(nothing["loss"])


def test_encoder_has_its_own_rate(shards: Path, tmp_path: Path) -> None:
    model = build_metric_model(metric_run(shards, tmp_path / "x"), CPU)
    optimizer = build_optimizer(model, OptimSection(encoder_lr=1e-5, decoder_lr=5e-4))
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rate[id(parameter)] == (1e-5 if name.startswith("pretrained.") else 5e-4), name


@pytest.mark.parametrize("place", ["nyu", "kitti"])
def test_published_settings(place: str) -> None:
    config = load_toml(CONFIGS / f"metric-{place}.toml")
    assert config.optim.decoder_lr == 1.61e-4
    assert config.optim.encoder_lr == pytest.approx(config.optim.decoder_lr / 50)
    assert (config.batch_size, config.epochs, config.optim.grad_clip) == (16, 5, 0.1)
    assert config.data.shapes == {"nyu": ((392, 518),), "kitti": ((378, 770),)}[place]
    assert config.metric.max_depth == {"nyu": 10, "kitti": 80}[place]
    assert config.metric.beta == 0.15 and config.metric.flip


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--metric.max-depth -1", r"metric\.max_depth must not be negative"),
        ("--metric.max-depth 5 --metric.min-depth 5", r"metric\.min_depth must be under"),
        ("--metric.beta 2", r"metric\.beta must be in \[0, 1\]"),
        ("--metric.max-depth 5 --unlabeled.path x", "exclude each other"),
        ("--augment.rotate -1", r"augment\.rotate must be in"),
        ("--model.preset v2-metric-vkitti-vits", "Set metric.max_depth to train metres"),
    ],
)
def test_values_that_cannot_work(option: str, message: str) -> None:
    from dafast.training.command import parse_args

    with pytest.raises(ConfigError, match=message):
        parse_args(option.split())


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("key", ["path", "eval_path"])
def test_labels_of_a_teacher_are_refused(
    says: bool, key: str, shards: Path, tmp_path: Path, seed: int
) -> None:
    """`dafast label` writes that they are relative; those of earlier versions are known too."""
    report = label_shards(
        lambda images: [image[..., 0] / np.float32(255) + 0.1 for image in images],
        sorted(shards.iterdir())[:1],
        tmp_path,
    )
    assert report.images == 18
    (shard,) = tmp_path.glob("*.tar")
    if not says:
        text = b', "disparity_unit": "relative"'
        shard.write_bytes(shard.read_bytes().replace(text, b" " * len(text)))
    data = ShardDataset(shard, labels="physical")
    assert {data.unit(i) for i in range(len(data))} == {"relative"}
    assert ("disparity_unit" in data.meta(0)) == says
    config = metric_run(shards, tmp_path / "run")
    data_section = dataclasses.replace(config.data, **{key: str(shard)})
    with pytest.raises(ConfigError, match=rf"data\.{key}: .* not in metres but relative.*measured"):
        train(dataclasses.replace(config, data=data_section), ONE)


def test_labels_that_are_no_metres_are_refused(shards: Path, tmp_path: Path) -> None:
    config = metric_run(shards, tmp_path / "run")
    near = dataclasses.replace(config.metric, min_depth=1e-6, max_depth=1e-5)
    with pytest.raises(ConfigError, match="none of 36 samples has a depth between"):
        train(dataclasses.replace(config, metric=near), ONE)
