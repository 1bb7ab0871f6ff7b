"""Smoothing for 8 bits: the same bits before, less error after, one API for int8 and fp8."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from dafast.models import calibration
from dafast.models.calibration import photo_inputs, smoothed_blocks, synthetic_input
from dafast.ops import linear_fp8, linear_int8, quantize_fp8, quantize_weight
from dafast.ops.linear_int8 import why_slow_int8
from tests.models.packed import SMALL as WIDE
from tests.models.packed import make, ready

SMALL = dataclasses.replace(WIDE, image_size=112)


def planted(dtype=torch.float32):
    """A model with large channels: in a stream, in a norm, and in the values of attention."""
    model = make(SMALL)
    encoder = model.pretrained
    with torch.no_grad():
        encoder.blocks[1].mlp.fc2.bias[5] += 100
        encoder.blocks[3].norm2.weight[7] *= 50
        encoder.blocks[4].attn.qkv.weight[2 * SMALL.embed_dim + 9] *= 400
    return model.to(dtype)


def taps(model, x, blocks=None):
    with torch.no_grad():
        parts = model.pretrained.get_intermediate_layers(x, SMALL.out_indices, blocks)
    return torch.cat(parts, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_smoothed_blocks_compute_the_same_bits(dtype, seed):
    model = planted(dtype)
    before = copy.deepcopy(model.state_dict())
    blocks = smoothed_blocks(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    changed = [
        not torch.equal(old.attn.qkv.weight, new.attn.qkv.weight)
        for old, new in zip(model.pretrained.blocks, blocks, strict=True)
    ]
    assert any(changed)
    x = torch.randn(1, 3, 42, 56).to(dtype)
    assert torch.equal(taps(model, x, blocks), taps(model, x))


def test_large_channels_move_into_the_weights(fixed_seed):
    model = planted()
    x = [synthetic_input(model)]
    with torch.no_grad():
        before = calibration._observe(model, x)
        smooth = copy.deepcopy(model)
        smooth.pretrained.blocks = torch.nn.ModuleList(smoothed_blocks(model))
        after = calibration._observe(smooth, x)

    def outlier(most):
        return float(most.max() / most.median())

    layers = ((2, "qkv"), (3, "fc1"), (4, "proj"))
    for block, layer in layers:
        was, now = (outlier(getattr(found[block], layer)) for found in (before, after))
        # The square root of the outlier moves; factors are powers of two, and weights vary.
        assert was > 10 and now < 4 * was**0.5, f"{layer}: {was:.1f} became {now:.1f}"


def test_int8_loses_less_with_smoothed_channels(fixed_seed):
    """Of one layer, as the whole network's error varies with the photo."""
    model = planted()
    x = torch.randn(200, SMALL.embed_dim)
    x = x / x.std(1, keepdim=True)

    def error(block):
        norm, linear = block.norm2, block.mlp.fc1
        rows = torch.nn.functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
        got = linear_int8(rows, quantize_weight(linear.weight), linear.bias)
        exact = rows.double() @ linear.weight.double().T + linear.bias.double()
        return float((got - exact).square().mean().sqrt() / exact.std())

    with torch.no_grad():
        plain = error(model.pretrained.blocks[3])
        smoothed = error(smoothed_blocks(model)[3])
    assert smoothed < 0.7 * plain


def test_factors_of_channels_without_weights_or_activations(seed):
    largest = torch.rand(8)
    weight = torch.randn(4, 8)
    largest[0], weight[:, 1] = 0, 0
    factors = calibration._factors(largest, weight)
    assert factors.isfinite().all() and (factors > 0).all()
    assert torch.equal(factors.log2(), factors.log2().round())
    assert torch.equal(calibration._factors(torch.zeros(8), torch.zeros(4, 8)), torch.ones(8))


def test_photos_are_prepared_as_infer_does(seed, monkeypatch):
    model = make(SMALL)
    photo = (torch.rand(40, 70, 3) * 255).byte().numpy()
    seen = []

    def noted(shape, fill, read, sky=False):
        seen.append(fill(None))
        return read(torch.ones(1, *shape[2:]))

    monkeypatch.setattr(model, "predict_batch", noted)
    model.infer(photo)
    (x,) = photo_inputs(model, [photo])
    assert torch.equal(x, seen[0])
    for wrong in ([], "photo.jpg", photo[None][:0]):
        with pytest.raises(ValueError, match="list of at least one photo"):
            photo_inputs(model, wrong)


def test_the_synthetic_picture_is_always_the_same(seed):
    model = make(SMALL)
    first = synthetic_input(model)
    torch.manual_seed(seed + 1)
    with torch.device("meta"):
        again = synthetic_input(model)
    assert torch.equal(first, again) and first.shape == (1, 3, 224, 224)
    assert abs(float(first.mean())) < 1e-4 and abs(float(first.std()) - 1) < 1e-4


@pytest.mark.skipif(bool(why_slow_int8()), reason=why_slow_int8() or "it is there")
@torch.no_grad()
def test_optimize_int8_with_photos(seed):
    model = planted()
    ready(model)
    x = torch.randn(1, 3, 56, 70)
    photos = [np.zeros((30, 40, 3), np.uint8), (torch.rand(50, 40, 3) * 255).byte().numpy()]
    before = model.optimize(int8=True)(x)
    first = model._optimized
    after = model.optimize(calibration=photos)(x)
    assert model._optimized is not first and model._optimized.int8
    assert not torch.equal(before, after), "other factors"
    kept = model._optimized
    assert model.optimize()._optimized is kept, "the photos stay"
    with torch.no_grad():
        model.pretrained.blocks[0].mlp.fc1.weight *= 2
    model(x)
    assert model._optimized is not kept and model._optimized.inputs is kept.inputs
    assert model.optimize(int8=False)._optimized.inputs == ()


def test_wrong_choices():
    model = make(SMALL)
    with pytest.raises(ValueError, match="not both"):
        model.optimize(int8=True, fp8="emulate")
    with pytest.raises(ValueError, match="calibration= is for"):
        model.optimize(calibration=[np.zeros((9, 9, 3), np.uint8)])
    assert model._optimized is None


def test_fp8_does_not_depend_on_factors(fixed_seed):
    """They are powers of two, which change no digit of e4m3 above its smallest numbers."""
    x, weight = torch.randn(200, 64), torch.randn(64, 64)
    factors = torch.exp2(torch.randint(-1, 2, (64,)).float())
    out = [
        linear_fp8(quantize_fp8(x / f), quantize_fp8(weight * f), torch.zeros(64)).float()
        for f in (1, factors)
    ]
    exact = x.double() @ weight.double().T
    errors = [float((each - exact).square().mean().sqrt()) for each in out]
    assert 0.8 < errors[0] / errors[1] < 1.25
