"""Training segmentation models: learning, freezing, resuming, several processes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dafast.data.colours import DRAWS, change_colours
from dafast.data.segmentation import IGNORE
from dafast.data.shards import ShardError
from dafast.data.transforms import STRONG, AugmentConfig
from dafast.distributed import World
from dafast.evaluation.segmentation import score
from dafast.models import DepthAnything, SegmentationModel
from dafast.models.segmentation import SegmentationConfig
from dafast.training.config import (
    ConfigError,
    DataSection,
    ModelSection,
    OptimSection,
    SegmentationSection,
    TrainConfig,
)
from dafast.training.config_files import load_toml
from dafast.training.loop import train
from dafast.training.optimizers import backward
from dafast.training.state import TrainingStateError
from dafast.training.tasks import check_config, segmentation, task_of
from dafast.training.tasks.segmentation import (
    SegmentationBatch,
    SegmentationStep,
    build_segmentation_model,
    open_samples,
)
from tests.notices import Notices
from tests.tolerances import TOLERANCES
from tests.training import tiny
from tests.training.runs import ONE, command, metrics, processes, run_until

ROOT = Path(__file__).parents[2]
COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 220]], np.uint8)


def write_photos(root: Path, count: int, rng: np.random.Generator, ignored: bool = False) -> Path:
    """A list of photos of two or three areas, each of the colour of its class and some noise."""
    root.mkdir(parents=True, exist_ok=True)
    lines = ["image,label"]
    for i in range(count):
        height, width = (60, 80) if i % 2 else (90, 60)
        classes = np.full((height, width), int(rng.integers(3)), np.uint8)
        classes[int(rng.integers(20, height - 20)) :] = int(rng.integers(3))
        classes[:, int(rng.integers(20, width - 20)) :] = int(rng.integers(3))
        image = COLOURS[classes] + rng.integers(0, 30, (height, width, 3)).astype(np.uint8)
        classes[:4] = IGNORE
        if ignored:
            classes[:] = IGNORE
        Image.fromarray(image).save(root / f"{i}.png")
        Image.fromarray(classes).save(root / f"{i}.label.png")
        lines.append(f"{i}.png,{i}.label.png")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, run_seed: int) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), 24, np.random.default_rng(run_seed))


def config_of(
    path: Path, out: Path, seed: int = 0, head: str = "linear", **more: Any
) -> TrainConfig:
    config = TrainConfig(
        model=ModelSection(preset="tiny"),
        data=DataSection(path=str(path), shapes=((42, 42), (42, 56)), workers=0, eval_samples=6),
        segmentation=SegmentationSection(data="list", head=head),  # type: ignore[arg-type]
        augment=AugmentConfig(crop="resized", jitter=0.3),
        optim=OptimSection(encoder_lr=1e-3, decoder_lr=1e-2, warmup_steps=2),
        out=str(out),
        steps=10,
        batch_size=4,
        checkpoint_every=4,
        eval_every=0,
        threads=1,
        seed=seed,
        precision="float32",
    )
    return dataclasses.replace(config, **more)


def exported(run: Path) -> SegmentationModel:
    return SegmentationModel.from_pretrained(run / "export", device="cpu", dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "linear4", "dpt"])
def test_it_learns(head: str, tmp_path: Path, fixed_rng: np.random.Generator) -> None:
    """Colours are no secret to any encoder: the scores of held-out photos pass the constant's."""
    photos = write_photos(tmp_path / "photos", 24, fixed_rng)
    held_out = write_photos(tmp_path / "held-out", 6, fixed_rng)
    config = config_of(photos, tmp_path / "run", 0, head, steps=60)
    data = dataclasses.replace(config.data, eval_path=str(held_out))
    train(dataclasses.replace(config, data=data, eval_every=30), ONE)
    lines = metrics(tmp_path / "run")
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 60
    assert all({"loss", "accuracy", "lr", "grad_norm"} <= set(line) for line in steps)
    assert np.mean([s["loss"] for s in steps[-5:]]) < 0.7 * np.mean([s["loss"] for s in steps[:5]])
    seen = [line for line in lines if "eval/miou" in line]
    assert [line["step"] for line in seen] == [30, 60]
    model = exported(tmp_path / "run")
    assert model.config.classes == ("red", "green", "blue") and model.config.head == head
    samples = open_samples(config, "data.path", str(held_out), training=False)
    result, constant = score(model, samples, "held-out")
    assert result.miou > constant.miou + 0.1
    assert result.miou == pytest.approx(seen[-1]["eval/miou"], abs=1e-6)
    assert result.pixel_accuracy == pytest.approx(seen[-1]["eval/pixel_accuracy"], abs=1e-6)


@pytest.mark.slow
def test_a_frozen_encoder_stays(photos: Path, tmp_path: Path, seed: int) -> None:
    start = tiny.trained_model()
    start.save_pretrained(tmp_path / "start")
    config = config_of(photos, tmp_path / "frozen", seed, steps=5)
    model = ModelSection(preset="tiny", init=str(tmp_path / "start"), freeze_encoder=True)
    train(dataclasses.replace(config, model=model), ONE)
    free = dataclasses.replace(model, freeze_encoder=False)
    train(dataclasses.replace(config, model=free, out=str(tmp_path / "free")), ONE)
    before = start.pretrained.state_dict()
    frozen = exported(tmp_path / "frozen").pretrained.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in before.items())
    tuned = exported(tmp_path / "free").pretrained.state_dict()
    assert not torch.equal(tuned["blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"])


@pytest.mark.slow
def test_depth_trains_with_a_frozen_encoder_too(shards: Path, tmp_path: Path, seed: int) -> None:
    config = config_of(shards, tmp_path / "run", seed, steps=3)
    config = dataclasses.replace(
        config,
        segmentation=SegmentationSection(),
        model=ModelSection(preset="tiny", encoder_init="mimetic", freeze_encoder=True),
    )
    train(dataclasses.replace(config, steps=1, out=str(tmp_path / "one")), ONE)
    train(config, ONE)
    one, three = (
        DepthAnything.from_pretrained(tmp_path / run / "export", device="cpu", dtype="float32")
        for run in ("one", "run")
    )
    for (name, a), b in zip(one.named_parameters(), three.parameters(), strict=True):
        unused = "refinenet4.resConfUnit1" in name
        assert torch.equal(a, b) == (name.startswith("pretrained.") or unused), name


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "dpt"])
def test_a_stopped_run_continues_as_if_it_had_not(
    head: str, photos: Path, tmp_path: Path, seed: int
) -> None:
    """To the bit, BatchNorm's statistics and dropout included."""
    whole = config_of(photos, tmp_path / "whole", seed, head, ema=0.9)
    train(whole, ONE)
    parts = dataclasses.replace(whole, out=str(tmp_path / "parts"))
    run_until(parts, 6)
    train(parts, ONE)
    assert tiny.losses(tmp_path / "parts") == tiny.losses(tmp_path / "whole")
    first, second = exported(tmp_path / "whole"), exported(tmp_path / "parts")
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_the_average_has_the_statistics_of_batchnorm(
    photos: Path, tmp_path: Path, seed: int
) -> None:
    """What is exported of a run with an average has seen features, as the model itself has."""
    train(config_of(photos, tmp_path / "run", seed, ema=0.9), ONE)
    path = max((tmp_path / "run/checkpoints").glob("*.pt"))
    state = torch.load(path, weights_only=True)
    for name in ("head.bn.running_mean", "head.bn.running_var"):
        assert torch.equal(state["ema"][name], state["model"][name])
        assert not torch.equal(state["model"][name], torch.full_like(state["model"][name], 0.0))


@pytest.mark.parametrize("head", ["linear", "dpt"])
def test_it_starts_from_what_another_run_exported(
    head: str, photos: Path, tmp_path: Path, seed: int, notices: Notices
) -> None:
    """Head and encoder where classes and head are the same; else only the encoder."""
    torch.manual_seed(seed)
    start = SegmentationModel.from_depth(tiny.trained_model(), ["red", "green", "blue"], "linear")
    start.save_pretrained(tmp_path / "start")
    config = config_of(photos, tmp_path / "run", seed, head, steps=1)
    model = ModelSection(preset="tiny", init=str(tmp_path / "start"))
    config = dataclasses.replace(config, model=model)
    built = build_segmentation_model(("red", "green", "blue"), config, ONE.device)
    encoder = start.pretrained.state_dict()
    assert all(torch.equal(v, encoder[k]) for k, v in built.pretrained.state_dict().items())
    same = head == "linear"
    assert ("the head starts random" in notices.text) == (not same)
    if same:
        trained = start.head.state_dict()
        assert all(torch.equal(v, trained[k]) for k, v in built.head.state_dict().items())
        other = build_segmentation_model(("red", "green", "brown"), config, ONE.device)
        assert not torch.equal(other.head.conv_seg.weight, start.head.conv_seg.weight)
    train(config, ONE)
    assert sorted(tiny.losses(tmp_path / "run")) == [1]
    wrong = dataclasses.replace(model, preset="nano")
    with pytest.raises(ConfigError, match=r"model\.init: .* has embed_dim = 64"):
        train(dataclasses.replace(config, model=wrong, out=str(tmp_path / "x")), ONE)
    depth = dataclasses.replace(config, segmentation=SegmentationSection())
    with pytest.raises(ConfigError, match=r"model\.init: .* is a segmentation model"):
        task_of(depth).model(depth, None, ONE.device)


def test_the_best_is_that_of_the_largest_miou(
    photos: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(photos, tmp_path / "run", seed, steps=4, eval_every=1, best_by="miou")
    data = dataclasses.replace(config.data, eval_path=str(photos))
    scores = iter([0.2, 0.5, 0.3, 0.4])
    task = dataclasses.replace(
        segmentation.TASK, evaluation=lambda _: lambda _: {"loss": 1.0, "miou": next(scores)}
    )
    monkeypatch.setattr(segmentation, "TASK", task)
    train(dataclasses.replace(config, data=data), ONE)
    best = json.loads((tmp_path / "run" / "best" / "evaluation.json").read_text())
    assert (best["step"], best["miou"]) == (2, 0.5)
    with pytest.raises(ConfigError, match="best_by = miou is a score of segmentation"):
        check_config(dataclasses.replace(config, segmentation=SegmentationSection()))


def step_of(
    augment: AugmentConfig | None = None, head: str = "linear"
) -> tuple[SegmentationModel, SegmentationStep]:
    config = TrainConfig(augment=augment or AugmentConfig())
    model = SegmentationModel(SegmentationConfig(tiny.TINY, ("a", "b", "c"), head)).train()
    return model, SegmentationStep(model, model, config, torch.float32)


def batch_of(classes: torch.Tensor) -> SegmentationBatch:
    image = torch.randint(0, 256, (len(classes), 3, *classes.shape[1:]), dtype=torch.uint8)
    return SegmentationBatch(
        image, torch.rand(len(image), DRAWS), classes, ["key"] * len(classes), []
    )


@pytest.mark.parametrize("augment", [AugmentConfig(), STRONG], ids=["plain", "strong"])
def test_the_loss_is_cross_entropy_over_what_counts(augment: AugmentConfig, seed: int) -> None:
    model, step = step_of(augment)
    classes = torch.randint(0, 3, (2, 28, 42)).to(torch.uint8)
    classes[torch.rand(2, 28, 42) < 0.4] = IGNORE
    batch = batch_of(classes)
    parts = step(batch)
    mean, std = (torch.tensor(v)[:, None, None] for v in (tiny.TINY.mean, tiny.TINY.std))
    seen = change_colours(batch.image, augment, batch.colours)
    logits = model((seen / 255 - mean) / std)
    counted = classes != IGNORE
    chances = logits.softmax(1).permute(0, 2, 3, 1)[counted]
    truth = classes[counted].long()
    expected = -chances.gather(1, truth[:, None]).log().mean()
    assert parts["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    # Rounding may decide about a pixel whose two best classes are equally likely.
    assert float(parts["accuracy"]) == pytest.approx(
        float((logits.argmax(1)[counted] == truth).float().mean()), abs=2.5 / len(truth)
    )
    reference = F.cross_entropy(logits, classes.long(), ignore_index=IGNORE)
    assert expected.item() == pytest.approx(reference.item(), rel=1e-4)


@pytest.mark.parametrize("pieces", [2, 3])
def test_accumulation_is_the_larger_batch(pieces: int, seed: int) -> None:
    """The mean over the pixels of the step, of which the pieces have unequal numbers, one none.

    With fixed statistics in BatchNorm, which training would take from each piece, and without
    dropout.
    """
    model, step = step_of(head="dpt")
    model.eval().double()
    step.normalise.double()
    count = 2 * pieces
    classes = torch.randint(0, 3, (count, 28, 42)).to(torch.uint8)
    classes[torch.rand(count, 28, 42) < torch.rand(count, 1, 1)] = IGNORE
    classes[:2] = IGNORE
    whole = batch_of(classes)
    parts = [
        SegmentationBatch(
            whole.image[i : i + 2], whole.colours[i : i + 2], classes[i : i + 2], ["key"] * 2, []
        )
        for i in range(0, count, 2)
    ]
    results = []
    for batches in ([whole], parts):
        model.zero_grad()
        values = backward(step, model, batches)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((values, gradient))
    (one, expected), (several, found) = results
    tolerance = TOLERANCES[torch.float32].model
    assert one.keys() == several.keys()
    for name, value in one.items():
        assert float(several[name]) == pytest.approx(float(value), rel=tolerance), name
    assert expected.norm() > 0
    assert (found - expected).norm() < tolerance * expected.norm()


def test_a_run_that_accumulates(photos: Path, tmp_path: Path, seed: int) -> None:
    config = config_of(photos, tmp_path / "whole", seed, accumulate=2, steps=4)
    train(config, ONE)
    assert sorted(tiny.losses(tmp_path / "whole")) == [1, 2, 3, 4]
    broken = dataclasses.replace(config, out=str(tmp_path / "broken"))
    run_until(broken, 2)
    train(broken, ONE)
    assert tiny.losses(tmp_path / "broken") == tiny.losses(tmp_path / "whole")


def test_a_batch_without_a_label_is_harmless(tmp_path: Path, seed: int) -> None:
    model, step = step_of(STRONG)
    parts = step(batch_of(torch.full((2, 28, 28), IGNORE, dtype=torch.uint8)))
    assert parts["loss"].item() == 0.0
    parts["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    path = write_photos(tmp_path / "blank", 4, np.random.default_rng(seed), ignored=True)
    train(config_of(path, tmp_path / "run", seed, steps=2), ONE)
    assert tiny.losses(tmp_path / "run") == {1: 0.0, 2: 0.0}
    assert metrics(tmp_path / "run")[-1]["skipped_steps"] == 0


def test_unreadable_photos_are_named_and_counted(tmp_path: Path, seed: int, capsys) -> None:
    path = write_photos(tmp_path / "photos", 8, np.random.default_rng(seed))
    (path.parent / "3.png").write_bytes(b"no picture")
    config = config_of(path, tmp_path / "run", seed, steps=4)
    with pytest.raises(ShardError, match=r"1 of 8 samples cannot be read.*3\.png"):
        train(config, ONE)
    lenient = dataclasses.replace(config.data, max_bad_fraction=0.2)
    train(dataclasses.replace(config, data=lenient, out=str(tmp_path / "lenient")), ONE)
    assert max(tiny.losses(tmp_path / "lenient")) == 4


def test_processes_share_one_mean(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shares of two processes, of which the mean is taken, are those of all pixels."""
    _, step = step_of()
    own, other = (torch.randint(0, 3, (2, 28, 28)).to(torch.uint8) for _ in range(2))
    other[torch.rand(2, 28, 28) < 0.7] = IGNORE
    counts = [int((classes != IGNORE).sum()) for classes in (own, other)]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    shares = []
    for classes, elsewhere in ((own, counts[1]), (other, counts[0])):
        monkeypatch.setattr(
            "torch.distributed.all_reduce", lambda total, more=elsewhere: total.add_(more)
        )
        shares += step.begin([batch_of(classes)])
    assert shares == pytest.approx([2 * count / sum(counts) for count in counts])


def test_the_export_is_shown_what_training_was(photos: Path, tmp_path: Path) -> None:
    config = config_of(photos, tmp_path / "run", steps=1)
    data = dataclasses.replace(config.data, shapes=((56, 84), (42, 42)))
    train(dataclasses.replace(config, data=data), ONE)
    assert exported(tmp_path / "run").config.encoder.image_size == 56


@pytest.mark.slow
def test_two_processes_train(photos: Path, tmp_path: Path, seed: int) -> None:
    """Losses near those of one process: on CPUs each normalises its own share of the batch."""
    config = config_of(photos, tmp_path / "two", seed, "dpt", steps=3)
    processes(config, 2)
    train(dataclasses.replace(config, out=str(tmp_path / "one")), ONE)
    one, two = tiny.losses(tmp_path / "one"), tiny.losses(tmp_path / "two")
    assert two.keys() == one.keys()
    assert two[1] == pytest.approx(one[1], rel=0.2)
    assert exported(tmp_path / "two")(torch.zeros(1, 3, 28, 28)).isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"segmentation": {"data": "voc"}}, r"segmentation\.data must be one of .*'cityscapes'"),
        ({"segmentation": {"head": "mask"}}, r"segmentation\.head must be one of"),
        ({"segmentation": {"classes": 3}}, r"unknown key segmentation\.classes"),
        (
            {"segmentation": {"data": "list"}, "unlabeled": {"path": "data/x"}},
            "segmentation.data and unlabeled.path exclude each other",
        ),
    ],
)
def test_wrong_configurations_are_named(values: dict, message: str, tmp_path: Path) -> None:
    tomli_w = pytest.importorskip("tomli_w")
    path = tmp_path / "wrong.toml"
    path.write_text(tomli_w.dumps({"model": {"preset": "nano"}, **values}))
    with pytest.raises(ConfigError, match=message):
        check_config(load_toml(path))


@pytest.mark.parametrize("key", ["path", "eval_path"])
def test_a_wrong_path_names_its_setting(key: str, photos: Path, tmp_path: Path) -> None:
    config = config_of(photos, tmp_path / "run")
    data = dataclasses.replace(config.data, **{key: str(tmp_path / "nothing.csv")})
    with pytest.raises(ConfigError, match=rf"data\.{key}: .*nothing\.csv: does not exist"):
        train(dataclasses.replace(config, data=data), ONE)


def test_a_run_of_depth_is_not_continued(photos: Path, shards: Path, tmp_path: Path) -> None:
    config = config_of(photos, tmp_path / "run", steps=1)
    depth = dataclasses.replace(
        config, segmentation=SegmentationSection(), data=DataSection(path=str(shards), workers=0,
                                                                     shapes=((42, 42),))
    )  # fmt: skip
    train(depth, ONE)
    with pytest.raises(TrainingStateError, match="is of another model"):
        train(config, ONE)


@pytest.mark.slow
def test_workers_change_nothing(photos: Path, tmp_path: Path, seed: int) -> None:
    none = config_of(photos, tmp_path / "none", seed, steps=3)
    train(none, ONE)
    two = dataclasses.replace(none.data, workers=2)
    train(dataclasses.replace(none, data=two, out=str(tmp_path / "two")), ONE)
    assert tiny.losses(tmp_path / "two") == tiny.losses(tmp_path / "none")


def test_settings_are_kept_with_the_run(photos: Path, tmp_path: Path) -> None:
    train(config_of(photos, tmp_path / "run", steps=1), World(0, 1, torch.device("cpu")))
    kept = json.loads((tmp_path / "run/config.json").read_text())
    assert kept["segmentation"] == {"data": "list", "head": "linear"}


@pytest.mark.slow
def test_the_command_line_reads_the_section(photos: Path, tmp_path: Path) -> None:
    from dafast.training.command import parse_args

    path = command(config_of(photos, tmp_path / "run"))[2]
    assert parse_args(["--config", path, "--segmentation.head", "dpt"]).segmentation.head == "dpt"
