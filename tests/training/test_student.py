"""The student's step against the formulas, and whole runs: resume, two processes, bad data."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dafast.data.colours import DRAWS, change_colours
from dafast.data.shards import ShardError
from dafast.data.transforms import STRONG, AugmentConfig
from dafast.distributed import World
from dafast.losses import AffineInvariantLoss
from dafast.models.depth_anything import DepthAnything
from dafast.ops import _dispatch, affine_invariant_loss, use_backend
from dafast.training.config import ConfigError, ModelSection, TrainConfig, UnlabeledSection
from dafast.training.data import Batch, TrainingData, UnlabeledBatch, make_loader
from dafast.training.loop import train
from dafast.training.starts import prepare_model
from dafast.training.state import checkpoint_folder, list_checkpoints
from dafast.training.tasks import task_of
from dafast.training.tasks.relative import StudentStep
from tests.tolerances import TOLERANCES
from tests.training import runs, tiny

ONE = World(0, 1, torch.device("cpu"))
TOLERANCE = TOLERANCES[torch.float32].model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    tiny.trained_model().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, run_seed: int) -> Path:
    """Unlabeled shards: only images."""
    return tiny.write_shards(tmp_path_factory.mktemp("photos"), 2, 12, run_seed, labeled=False)


def student_config(shards: Path, photos: Path, teacher: str, out: Path, **changes: Any) -> Any:
    section = UnlabeledSection(
        path=str(photos),
        teacher=teacher,
        align="start",
        augment=dataclasses.replace(STRONG, crop="resized"),
    )
    values = {
        "model": ModelSection(preset="tiny", encoder_init=teacher),
        "unlabeled": section,
        "batch_size": 2,
        **changes,
    }
    return runs.tiny_config(shards, out, **values)


def with_section(config: TrainConfig, **changes: Any) -> TrainConfig:
    return dataclasses.replace(config, unlabeled=dataclasses.replace(config.unlabeled, **changes))


def random_batch(count: int, partners: int, height: int, width: int) -> Batch:
    """A batch of 2 labeled and `count` unlabeled images, with labels and holes in them."""
    n = count + partners
    region = torch.ones(count, height, width, dtype=torch.bool)
    region[::2, 5 : height - 9, 8 : width // 2] = False
    return Batch(
        torch.randint(256, (2, 3, height, width), dtype=torch.uint8),
        torch.rand(2, DRAWS),
        torch.rand(2, height, width),
        torch.rand(2, height, width) > 0.2,
        ["key"] * (2 + n),
        [],
        UnlabeledBatch(
            torch.randint(256, (n, 3, height, width), dtype=torch.uint8),
            torch.rand(n, DRAWS),
            torch.rand(n, height, width),
            torch.rand(n, height, width) > 0.2,
            region,
        ),
    )


def build(config: TrainConfig) -> tuple[DepthAnything, StudentStep]:
    model = prepare_model(tiny.trained_model(), ONE.device, config.channels_last)
    step = task_of(config).step(model, model, config, torch.float32)
    assert isinstance(step, StudentStep)
    return model, step


def disturbed(images: torch.Tensor, colours: torch.Tensor, augment: AugmentConfig) -> torch.Tensor:
    """Each image by itself."""
    pairs = zip(images.split(1), colours.split(1), strict=True)
    return torch.cat([change_colours(image, augment, own) for image, own in pairs])


def normalised(model: DepthAnything, image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in 0..255 to what the network takes."""
    mean = torch.tensor(model.config.mean)[:, None, None]
    std = torch.tensor(model.config.std)[:, None, None]
    return (image / 255.0 - mean)[None] / std


def cosines(
    features: Callable[[torch.Tensor], torch.Tensor], step: StudentStep, batch: Batch
) -> torch.Tensor:
    """Similarity of the student's features and the frozen encoder's, of every token."""
    given, model = batch.unlabeled, step.network
    assert given is not None
    assert step.encoder is not None
    strong = disturbed(given.image, given.colours, step.section.augment)
    result = []
    for i, region in enumerate(given.region):
        j = (i + 1) % len(strong)
        seen = strong[i] * region + strong[j] * ~region
        frozen_sees = seen
        if step.section.align_view == "clean":
            frozen_sees = given.image[i] * region + given.image[j] * ~region
        ours = features(normalised(model, seen))
        theirs = step.encoder(normalised(model, frozen_sees))
        result.append(F.cosine_similarity(ours, theirs, dim=-1).flatten())
    return torch.cat(result)


class Recorded(torch.nn.Module):
    """A network that answers a batch, and answers a single image of that batch as it did before.

    So a loss taken image by image has the very predictions that the step had: a median hangs the
    gradient on one pixel, and rounding in a second run of the network could make it another.
    """

    def __init__(self, network: DepthAnything) -> None:
        super().__init__()
        self.network, self.config = network, network.config

    def forward(self, images: torch.Tensor, features: bool = False) -> Any:
        outputs = self.network(images, features=features)
        self.images = images
        self.maps, self.features = outputs if features else (outputs, None)
        return outputs

    def row(self, image: torch.Tensor) -> slice:
        """Where the image (1, 3, H, W) stood in the batch; it has to be one of it."""
        distance = (self.images - image).abs().amax(dim=(1, 2, 3))
        row = int(distance.argmin())
        assert distance[row].item() < TOLERANCE, "the step saw another image"
        return slice(row, row + 1)

    def again(self, image: torch.Tensor) -> torch.Tensor:
        return self.maps[self.row(image)]

    def pretrained(self, image: torch.Tensor) -> torch.Tensor:
        return self.features[self.row(image)]


def by_hand(
    step: StudentStep,
    batch: Batch,
    predict: Callable[[torch.Tensor], torch.Tensor],
    features: Callable[[torch.Tensor], torch.Tensor],
    teach: Callable[[torch.Tensor], torch.Tensor] | None,
) -> dict[str, torch.Tensor]:
    """Eqs. 5-9, image by image."""
    given, model = batch.unlabeled, step.network
    assert given is not None
    shown = disturbed(batch.image, batch.colours, step.augment)
    labeled = [
        affine_invariant_loss(predict(normalised(model, image)), disparity[None], mask[None])
        for image, disparity, mask in zip(shown, batch.disparity, batch.mask, strict=True)
    ]
    strong = disturbed(given.image, given.colours, step.section.augment)
    unlabeled = []
    for i, region in enumerate(given.region):
        j = (i + 1) % len(strong)
        if teach is not None:
            target_i, target_j = (
                teach(normalised(step.teacher, given.image[k])).detach() for k in (i, j)
            )
            valid_i = valid_j = torch.ones_like(region)
        else:
            target_i, target_j = given.disparity[i][None], given.disparity[j][None]
            valid_i, valid_j = given.mask[i], given.mask[j]
        seen = strong[i] * region + strong[j] * ~region
        prediction = predict(normalised(model, seen))
        share = region.float().mean()
        own = affine_invariant_loss(prediction, target_i, (valid_i & region)[None])
        partner = affine_invariant_loss(prediction, target_j, (valid_j & ~region)[None])
        unlabeled.append(share * own + (1 - share) * partner)
    parts = {"labeled": torch.stack(labeled).mean(), "unlabeled": torch.stack(unlabeled).mean()}
    if step.encoder is not None:
        cosine = cosines(features, step, batch)
        kept = cosine[cosine <= step.alignment_loss.margin]
        divisor = len(cosine) if step.section.align_reduction == "all" else len(kept)
        parts["alignment"] = (1 - kept).sum() / divisor
    return {"loss": sum(parts.values(), torch.zeros(())) / len(parts), **parts}


@pytest.mark.slow
@pytest.mark.parametrize("partners", [0, 1], ids=["one rank", "of several"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"align_view": "clean"},
        {"align_reduction": "kept"},
        {"align": "", "teacher": ""},
    ],
    ids=["online", "clean view", "kept", "offline"],
)
def test_the_losses_are_those_of_the_paper(
    shards: Path,
    photos: Path,
    teacher: str,
    tmp_path: Path,
    seed: int,
    changes: dict[str, Any],
    partners: int,
) -> None:
    torch.manual_seed(seed)
    config = with_section(student_config(shards, photos, teacher, tmp_path), **changes)
    model, step = build(config)
    with torch.no_grad():  # away from where it started, so that features differ
        for parameter in model.pretrained.parameters():
            parameter += 0.5 * parameter.std() * torch.randn_like(parameter)
    batch = random_batch(4, partners, 42, 56)
    if step.encoder is not None:
        assert step.alignment_loss.margin == 0.85
        # Some tokens are kept and some are not, and rounding does not decide about one.
        ordered = cosines(model.pretrained, step, batch).detach().sort().values
        quarter = len(ordered) // 4
        widest = quarter + int(ordered.diff()[quarter:-quarter].argmax())
        step.alignment_loss.margin = ordered[widest : widest + 2].mean().item()
    parts = step(batch)
    expected = by_hand(step, batch, model, model.pretrained, step.teacher)
    assert list(parts) == list(expected)
    for name, value in parts.items():
        assert value.item() > 0, name
        assert value.item() == pytest.approx(expected[name].item(), rel=TOLERANCE), name

    # The gradients: both from one run of the networks, both by the plain losses, so that each map
    # has one median and nothing but smooth sums is left to rounding.
    step.reference, step.network = True, Recorded(model)
    teach = None
    if step.teacher is not None:
        step.teacher = Recorded(step.teacher)
        teach = step.teacher.again
    parts = step(batch)
    with use_backend("reference"):
        expected = by_hand(step, batch, step.network.again, step.network.pretrained, teach)

    def gradients(loss: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss.backward(retain_graph=True)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    ours, theirs = gradients(parts["loss"]), gradients(expected["loss"])
    assert theirs.norm().item() > 0
    assert (ours - theirs).norm().item() < TOLERANCE * theirs.norm().item()
    for frozen in (step.teacher, step.encoder):
        for parameter in frozen.parameters() if frozen is not None else ():
            assert parameter.grad is None


def test_features_within_the_tolerance_pull_no_more(
    shards: Path, photos: Path, teacher: str, tmp_path: Path, seed: int
) -> None:
    """At its start the student has the frozen encoder's features: cosine 1, nothing to align."""
    torch.manual_seed(seed)
    config = student_config(shards, photos, teacher, tmp_path)
    _, step = build(config)
    assert step(random_batch(2, 0, 42, 42))["alignment"].item() == 0.0


@pytest.mark.parametrize("losses", ["auto", "reference"])
def test_losses_by_the_implementation_asked_for(
    shards: Path,
    photos: Path,
    teacher: str,
    tmp_path: Path,
    losses: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forced: list[str | None] = []
    original = AffineInvariantLoss.forward

    def forward(self: Any, *args: Any) -> torch.Tensor:
        forced.append(_dispatch._forced.get())
        return original(self, *args)

    monkeypatch.setattr(AffineInvariantLoss, "forward", forward)
    config = student_config(shards, photos, teacher, tmp_path, losses=losses)
    build(config)[1](random_batch(2, 0, 42, 42))
    assert forced == [None if losses == "auto" else "reference"] * 2


@pytest.mark.parametrize("empty", ["labeled", "unlabeled", "both"])
def test_an_image_without_a_valid_pixel_is_harmless(
    shards: Path, photos: Path, teacher: str, tmp_path: Path, seed: int, empty: str
) -> None:
    torch.manual_seed(seed)
    config = student_config(shards, photos, teacher, tmp_path)
    model, step = build(with_section(config, teacher="", align=""))
    batch = random_batch(2, 0, 42, 42)
    assert batch.unlabeled is not None
    if empty != "unlabeled":
        batch.mask.zero_()
    if empty != "labeled":
        batch.unlabeled.mask.zero_()
    parts = step(batch)
    parts["loss"].backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert bool(norm.isfinite())
    assert (float(norm) == 0) == (empty == "both")
    for name in ("labeled", "unlabeled"):
        assert (parts[name].item() == 0) == (empty in (name, "both"))


def test_the_switches_change_no_other_draw(
    shards: Path, photos: Path, teacher: str, tmp_path: Path, seed: int
) -> None:
    config = student_config(shards, photos, teacher, tmp_path, seed=seed, batch_size=6)

    def first(config: TrainConfig) -> UnlabeledBatch:
        data = TrainingData.open(config)
        loader = make_loader(
            config, data, ONE, step=0, stop_step=1, position=0, unlabeled_position=0
        )
        batch = next(iter(loader))
        assert batch.unlabeled is not None
        assert len(batch.image) == 6
        assert len(batch.keys) == 18
        return batch.unlabeled

    strong = first(config)
    assert strong.image.shape == (12, 3, *strong.region.shape[1:])
    assert strong.colours.shape == (12, DRAWS)
    assert not strong.mask.any(), "no labels in the shards"
    colourless = AugmentConfig(crop="resized")
    plain = first(with_section(config, augment=colourless, cutmix=0.0))
    assert torch.equal(plain.image, strong.image)
    assert torch.equal(plain.colours, strong.colours)
    assert bool(plain.region.all())


@pytest.mark.slow
def test_resume_after_kill_is_exact(
    shards: Path, photos: Path, teacher: str, tmp_path: Path, seed: int
) -> None:
    """Data order, augmentation, CutMix and all: the losses to the bit."""
    config = student_config(
        shards, photos, teacher, tmp_path / "whole", steps=300, seed=seed, checkpoint_every=4
    )
    broken = dataclasses.replace(config, out=str(tmp_path / "broken"))
    killed_at = random.Random(seed).randrange(5, 12)
    runs.start(broken, killed_at).end()
    reached = max(tiny.losses(Path(broken.out)))
    assert killed_at <= reached < 300, "the run was over before the kill"
    end = reached + 3
    runs.run_until(broken, end)
    runs.run_until(config, end)
    whole, resumed = runs.metrics(Path(config.out)), runs.metrics(Path(broken.out))
    assert [line["step"] for line in whole] == list(range(1, end + 1))
    for line in (*whole, *resumed):
        del line["images_per_second"]
    assert whole == resumed, "not equal to the bit"
    assert {"labeled", "unlabeled", "alignment", "loss"} <= set(whole[0])
    runs.assert_same_weights(Path(config.out), Path(broken.out))


@pytest.mark.slow
def test_two_processes_equal_one(
    photos: Path, teacher: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partners across the ranks, batches without a valid pixel and a NaN on one of them."""
    labeled = tiny.write_shards(tmp_path / "labeled", 1, 12, seed, empty=range(0, 12, 2))
    config = student_config(
        labeled,
        photos,
        teacher,
        tmp_path / "one",
        seed=seed,
        model=ModelSection(preset="tiny", init=teacher),
        precision="float32",
        steps=5,
        checkpoint_every=0,
    )
    config = with_section(config, cutmix=0.9, align=teacher, align_margin=1.0)
    config = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, encoder_lr=1e-4, decoder_lr=1e-4)
    )
    bad_call = 5  # of the second loss of the third step, `unlabeled`
    runs.poison(monkeypatch, [bad_call])
    train(config, ONE)
    two = dataclasses.replace(config, out=str(tmp_path / "two"))
    error = runs.processes(two, 2, TINY_POISON=f"1 {bad_call}").stderr
    for rank in range(2):
        assert f"rank {rank} samples: " in error, "each names its own"
    one, both = runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two")
    assert [line["skipped_steps"] for line in one] == [0, 0, 1, 1, 1]
    for a, b in zip(one, both, strict=True):
        assert a["skipped_steps"] == b["skipped_steps"]
        # From the second step on the weights differ: a rounding that changes which pixel is the
        # median changes a gradient, and Adam takes small ones as far as large ones.
        rel = TOLERANCE if a["step"] == 1 else 100 * TOLERANCE
        for name in ("labeled", "unlabeled", "alignment", "loss"):
            assert (a[name] is None) == (a["step"] == 3 and name in ("unlabeled", "loss"))
            expected = a[name] and pytest.approx(a[name], rel=rel, abs=1e-6)
            assert b[name] == expected, (a["step"], name)


@pytest.mark.slow
def test_bad_step_names_the_samples_of_both_streams(
    shards: Path,
    photos: Path,
    teacher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = student_config(shards, photos, teacher, tmp_path / "run", steps=3)
    runs.poison(monkeypatch, [3])  # the second loss of the second step: unlabeled
    train(config, ONE)
    lines = runs.metrics(tmp_path / "run")
    assert [line["loss"] is None for line in lines] == [False, True, False]
    assert lines[1]["labeled"] is not None
    assert [line["skipped_steps"] for line in lines] == [0, 1, 1]
    error = capsys.readouterr().err
    assert "step 2 skipped" in error
    assert error.count(".tar/") == 2 + 4


@pytest.mark.slow
def test_offline_labels(
    shards: Path, photos: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = student_config(shards, photos, teacher, tmp_path / "run", steps=2)
    offline = with_section(config, teacher="")
    with pytest.raises(ShardError, match=r"unlabeled\.path: .*dafast label.*unlabeled\.teacher"):
        train(offline, ONE)
    train(with_section(offline, path=str(shards)), ONE)
    assert all(line["unlabeled"] > 0 for line in runs.metrics(tmp_path / "run"))
    assert "2 labeled and 4 unlabeled" in capsys.readouterr().out


@pytest.mark.slow
def test_mistakes_are_named(shards: Path, photos: Path, teacher: str, tmp_path: Path) -> None:
    config = student_config(shards, photos, teacher, tmp_path / "run", steps=1)
    for changes, message in (
        ({"teacher": "nowhere.pth"}, r"unlabeled\.teacher: .*nowhere\.pth"),
        ({"align": "nowhere.pth"}, r"unlabeled\.align: .*nowhere\.pth"),
        ({"align": "nano"}, r"unlabeled\.align: "),
    ):
        with pytest.raises(ConfigError, match=message):
            train(with_section(config, **changes), ONE)
    with pytest.raises(ShardError, match=r"set unlabeled\.path to"):
        train(with_section(config, path=str(tmp_path / "nope")), ONE)


@pytest.mark.slow
def test_length_is_one_pass_over_the_unlabeled_images(
    shards: Path, photos: Path, teacher: str, tmp_path: Path
) -> None:
    config = student_config(shards, photos, teacher, tmp_path / "run", steps=0, epochs=1.0)
    train(config, ONE)
    assert len(runs.metrics(tmp_path / "run")) == 24 // 4
    newest = list_checkpoints(checkpoint_folder(config.out))[0]
    assert torch.load(newest, weights_only=True)["unlabeled_position"] == 24
