"""Self-distillation: its parts by hand, and that a short run learns and can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dafast.data.resident import ResidentSet
from dafast.data.shards import ShardDataset
from dafast.models.checkpoint import load_encoder
from dafast.models.depth_anything import DepthAnything
from dafast.training.pretraining import (
    PretrainConfig,
    Pretrainer,
    SelfDistillation,
    contrast,
    patch_pixels,
    pretrain,
    spread,
)
from tests.training import tiny

CPU = torch.device("cpu")
SMALL = PretrainConfig(batch_size=4, large=56, small=28, local_views=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ResidentSet:
    seed = int(torch.randint(2**31, ()))
    print(f"seed of the pictures: {seed}")
    folder = tiny.write_shards(tmp_path_factory.mktemp("pictures"), 1, 8, seed, labeled=False)
    return ResidentSet(ShardDataset(folder, labels="none"), CPU, shape=(60, 80))


def test_contrast_is_pytorchs_cross_entropy(seed: int) -> None:
    ours, theirs = (F.normalize(torch.randn(6, 5), dim=-1) for _ in range(2))
    logits = torch.tensor([[float(a @ b) / 0.2 for b in theirs] for a in ours])
    want = -logits.log_softmax(1).diagonal().mean()
    torch.testing.assert_close(contrast(ours, theirs, 0.2), want)


def test_a_collapse_costs(seed: int) -> None:
    """Where all rows are the same the loss is log M; rows that find their own do better."""
    same = F.normalize(torch.randn(1, 16), dim=-1).expand(32, 16)
    assert float(contrast(same, same, 0.2)) == pytest.approx(float(torch.tensor(32.0).log()))
    rows = F.normalize(torch.randn(32, 16), dim=-1)
    assert float(contrast(rows, rows, 0.2)) < 2.5


def test_spread(seed: int) -> None:
    assert spread(torch.randn(1, 16).expand(50, 16) + 1e-6) == pytest.approx(1.0, abs=0.01)
    line = torch.randn(500, 1) * torch.randn(1, 16)
    assert spread(line) == pytest.approx(1.0, abs=0.01)
    assert 14.5 < spread(torch.randn(5000, 16)) <= 16.001


def test_masked_patches_are_not_seen(seed: int) -> None:
    model = SelfDistillation(DepthAnything("nano").pretrained).eval()
    images = torch.randn(2, 3, 56, 56)
    mask = torch.rand(2, 16) < 0.4
    hidden = mask.view(2, 1, 4, 4).repeat_interleave(14, 2).repeat_interleave(14, 3)
    other = torch.where(hidden, torch.randn_like(images), images)
    with torch.no_grad():
        torch.testing.assert_close(model.tokens(images, mask), model.tokens(other, mask))
        assert not torch.allclose(model.tokens(images), model.tokens(images, ~mask))


def test_pixels_of_patches(seed: int) -> None:
    images = torch.randn(2, 3, 28, 42)
    got = patch_pixels(images, 14)
    assert got.shape == (2, 6, 588)
    want = images[1, :, 14:28, 14:28].reshape(-1)  # the second row's second patch
    want = (want - want.mean()) / (want.var() + 1e-2).sqrt()
    torch.testing.assert_close(got[1, 4], want)


def test_without_a_mask_it_is_the_encoder(seed: int) -> None:
    encoder = DepthAnything("nano").pretrained.eval()
    images = torch.randn(2, 3, 56, 84)
    with torch.no_grad():
        tokens = SelfDistillation(encoder).tokens(images)
        torch.testing.assert_close(tokens[:, 1:], encoder(images), rtol=1e-4, atol=1e-4)


def test_the_teacher_follows_slowly_and_gets_no_gradient(pictures: ResidentSet, seed: int) -> None:
    trainer = Pretrainer(pictures, SMALL, CPU, torch.float32)
    before = [p.detach().clone() for p in trainer.teacher.parameters()]
    trainer.step(0, 0.2)
    student, teacher = list(trainer.student.parameters()), list(trainer.teacher.parameters())
    moved = 0.0
    for old, s, t in zip(before, student, teacher, strict=True):
        assert t.grad is None
        moved += float((s.detach() - old).abs().sum())
        momentum = 1 - 0.01 * 0.5 * (1 + torch.cos(torch.tensor(0.2 * torch.pi)))
        torch.testing.assert_close(t, old + (1 - momentum) * (s - old), rtol=1e-4, atol=1e-7)
    assert moved > 0


def test_a_short_run_learns_and_loads(pictures: ResidentSet, tmp_path: Path, seed: int) -> None:
    config = PretrainConfig(**{**vars(SMALL), "seed": seed % 1000, "lr": 2e-3})
    seen: list[dict[str, float]] = []
    encoder = pretrain(
        pictures,
        config,
        CPU,
        torch.float32,
        lambda step: step / 24,
        lambda step, values: seen.append(values),
        log_every=1,
    )
    losses = [values["loss"] for values in seen if "loss" in values]
    assert len(losses) == 24
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(values["effective_rank"] > 1.5 for values in seen)
    path = tmp_path / "encoder.safetensors"
    save_file({k: v.detach().contiguous() for k, v in encoder.state_dict().items()}, path)
    model = DepthAnything("nano")
    load_encoder(model, path)
    for name, value in encoder.state_dict().items():
        assert torch.equal(model.pretrained.state_dict()[name], value), name
