"""What a training starts from, and with which optimizer."""

import copy
import dataclasses
import logging

import pytest
import torch
from safetensors.torch import save_file

from dafast.config import PRESETS
from dafast.models import DepthAnything
from dafast.ops import affine_invariant_loss
from dafast.training.config import ConfigError, ModelSection, OptimSection
from dafast.training.optimizers import build_optimizer
from dafast.training.starts import build_model, mimetic_init_, prepare_model
from tests.tiny import tiny

SMALL = tiny(embed_dim=64, features=24, image_size=56, grid_size=4)
CPU = torch.device("cpu")


def _model(seed):
    torch.manual_seed(seed)
    return prepare_model(DepthAnything(SMALL), CPU, channels_last=False)


def _gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, 3, 56, 56, generator=generator), torch.rand(2, 56, 56)
    model.zero_grad()
    affine_invariant_loss(model(x), target).backward()


def test_mimetic_attention_is_the_structure_it_says(seed):
    torch.manual_seed(seed)
    encoder = DepthAnything(SMALL).pretrained
    mimetic_init_(encoder)
    dim, eye = SMALL.embed_dim, torch.eye(SMALL.embed_dim)
    for block in encoder.blocks:
        query, key, value = block.attn.qkv.weight.split(dim)
        mixed = (block.attn.proj.weight @ value).detach()
        noise = mixed + 0.4 * eye
        assert noise.std() == pytest.approx(0.4 / dim**0.5, rel=0.2), "full rank: exact"
        for rows in (slice(0, 32), slice(32, 64)):  # each head holds its best half of the rank
            product = (query[rows].T @ key[rows]).detach()
            assert 0.3 < product.diagonal().mean() < 0.8
            off = product - torch.diag(product.diagonal())
            assert off.mean().abs() < 0.02


def test_mimetic_positions_make_near_tokens_similar(seed):
    torch.manual_seed(seed)
    encoder = DepthAnything(SMALL).pretrained
    mimetic_init_(encoder)
    grid = encoder.pos_embed[0, 1:].detach().unflatten(0, (4, 4))
    similar = torch.cosine_similarity(grid[0, 0], grid.flatten(0, 1), dim=-1).unflatten(0, (4, 4))
    assert similar[0, 0] == pytest.approx(1, abs=1e-5)
    assert similar[0, 1] > similar[0, 3] and similar[1, 0] > similar[3, 0]
    torch.testing.assert_close(similar, similar.T)


@pytest.mark.parametrize("muon", [False, True])
def test_optimizer_has_every_parameter_once(muon, seed):
    model = _model(seed)
    section = OptimSection(encoder_lr=1e-3, decoder_lr=1e-2, weight_decay=0.1, muon=muon)
    optimizer = build_optimizer(model, section)
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(listed) == len({id(p) for p in listed}) and {id(p) for p in listed} == trained
    encoder = {id(p) for p in model.pretrained.parameters()}
    for group in optimizer.param_groups:
        in_encoder = {id(p) in encoder for p in group["params"]}
        assert len(in_encoder) == 1
        assert group["peak_lr"] == group["lr"] == (1e-3 if in_encoder.pop() else 1e-2)
        if group["weight_decay"] == 0:
            assert all(p.ndim == 1 or p.shape[0] == 1 for p in group["params"])
    kinds = [type(o).__name__ for o in optimizer.optimizers]
    assert kinds == (["AdamW", "Muon"] if muon else ["AdamW"])


@pytest.mark.parametrize("muon", [False, True])
def test_optimizer_state_round_trip_is_exact(muon, seed):
    section = OptimSection(encoder_lr=1e-3, decoder_lr=1e-3, muon=muon)
    model = _model(seed)
    optimizer = build_optimizer(model, section)
    before = copy.deepcopy(model.state_dict())
    for i in range(2):
        _gradients(model, seed + i)
        optimizer.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
    assert moved == {k for k, _ in model.named_parameters()} - frozen
    twin = _model(seed + 1)
    twin.load_state_dict(model.state_dict())
    twin_optimizer = build_optimizer(twin, section)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, twin_optimizer)):
        torch.manual_seed(seed)
        _gradients(m, seed + 9)
        o.step()
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_encoder_from_a_file(seed, tmp_path, monkeypatch):
    """A DINOv2 file fills the encoder and leaves the head random."""
    monkeypatch.setitem(PRESETS, "small", SMALL)
    torch.manual_seed(seed)
    source = DepthAnything(SMALL)
    path = tmp_path / "dinov2_small.pth"
    torch.save(source.pretrained.state_dict(), path)
    model = build_model(ModelSection("small", encoder_init=str(path)), CPU, False)
    loaded = model.pretrained.state_dict()
    for name, value in source.pretrained.state_dict().items():
        assert torch.equal(loaded[name], value), name
    assert not torch.equal(
        model.depth_head.projects[0].weight, source.depth_head.projects[0].weight
    )
    torch.save({"nothing": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match=r"model\.encoder_init"):
        build_model(ModelSection("small", encoder_init=str(path)), CPU, False)
    (problem,) = ModelSection("small", init="x", encoder_init="mimetic").problems()
    assert "brings an encoder" in problem


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_bare_weights_are_what_the_preset_says(suffix, seed, tmp_path, monkeypatch, notices):
    """Shapes do not tell which blocks the decoder reads; the preset does."""
    taps = dataclasses.replace(SMALL, name="taps", num_layers=6, out_indices=(0, 1, 3, 5))
    monkeypatch.setitem(PRESETS, "taps", taps)
    torch.manual_seed(seed)
    source = DepthAnything(taps)
    path = tmp_path / f"mine.{suffix}"
    save = torch.save if suffix == "pth" else save_file
    save(source.state_dict(), path)
    model = build_model(ModelSection("taps", init=str(path)), CPU, False)
    assert model.config.out_indices == taps.out_indices
    image = torch.randn(1, 3, 56, 56)
    assert torch.equal(model.eval()(image), source.eval()(image))
    guesses = [r.message for r in notices.messages if r.levelno >= logging.WARNING]
    assert not guesses
    monkeypatch.setitem(PRESETS, "wider", dataclasses.replace(taps, name="wider", features=48))
    with pytest.raises(ConfigError, match=r"model\.init: .* do not fit the configuration 'wider'"):
        build_model(ModelSection("wider", init=str(path)), CPU, False)
    metric = path.rename(tmp_path / f"mine_metric.{suffix}")
    with pytest.raises(ConfigError, match=r"model\.init: .*probably a metric model"):
        build_model(ModelSection("taps", init=str(metric)), CPU, False)
