"""A list of images of different sizes in one packed sequence: the same as one by one."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util

import numpy as np
import pytest
import torch

from dafast import DepthAnything
from dafast.config import PRESETS
from dafast.models import inference
from dafast.ops import use_backend

SIZES = [(42, 28), (28, 28), (14, 70), (42, 28)]
BACKENDS = [
    "reference",
    "sdpa",
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("triton") is None, reason="Triton is not installed"
        ),
    ),
]


@pytest.fixture
def model(seed):
    """Nano with four blocks, so that interpreted kernels finish soon."""
    config = dataclasses.replace(PRESETS["nano"], num_layers=4, out_indices=(0, 1, 2, 3))
    model = DepthAnything(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and factors that are not 0 or 1
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.depth_head.scratch.output_conv2[2].bias.fill_(0.5)  # alive behind the ReLU
    return model


def _images(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in SIZES]


def _gradients(model, run):
    """Maps of a fresh copy, and the gradients of all its parameters."""
    model = copy.deepcopy(model)
    maps = run(model)
    sum(m.square().sum() * (i + 1) for i, m in enumerate(maps)).backward()
    return maps, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_one_by_one_with_gradients(model, backend, seed):
    images = _images(seed)
    with use_backend("reference"):
        expected, wanted = _gradients(model, lambda m: [m(image[None])[0] for image in images])
    with use_backend(backend):
        maps, grads = _gradients(model, lambda m: m(images))
    assert isinstance(maps, list) and [tuple(m.shape) for m in maps] == SIZES
    for got, exact in zip(maps, expected, strict=True):
        torch.testing.assert_close(got, exact, atol=1e-4 * exact.abs().max().item(), rtol=0)
    for name, exact in wanted.items():
        if exact is None:
            assert grads[name] is None, name
        else:
            bound = 1e-3 * max(exact.abs().max().item(), 1e-3)
            torch.testing.assert_close(grads[name], exact, atol=bound, rtol=0, msg=name)


def test_images_do_not_see_each_other(model, seed):
    images = _images(seed)
    before = model(images)[0]
    images[1] = images[1] + 100.0
    torch.testing.assert_close(model(images)[0], before)


def test_features_of_a_list(model, seed):
    images = _images(seed)
    features = model.get_intermediate_layers(images, [1, 3])
    for i, image in enumerate(images):
        for got, exact in zip(
            features, model.get_intermediate_layers(image[None], [1, 3]), strict=True
        ):
            torch.testing.assert_close(got[i], exact[0], atol=1e-4, rtol=1e-4)
    maps = model.get_intermediate_layers(images, [3], reshape=True)[0]
    assert [tuple(m.shape[1:]) for m in maps] == [(h // 14, w // 14) for h, w in SIZES]


def test_empty_list_and_bad_image(model):
    assert model([]) == []
    with pytest.raises(ValueError, match="multiples of 14"):
        model([torch.zeros(3, 28, 28), torch.zeros(3, 28, 30)])
    with pytest.raises(ValueError, match="list of"):
        model([torch.zeros(1, 3, 28, 28)])


def test_infer_in_mixed_batches(model, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    shapes = [(60, 83), (83, 60), (60, 83), (90, 60), (31, 200)]
    photos = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    one_by_one = [model.infer(photo, size=42) for photo in photos]
    seen = []
    hook = model.pretrained.blocks[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[:2].numel())
    )
    made = inference.Predictor.__init__

    def mixed(self, *args, **options):
        made(self, *args, **options)
        self.mixed = True  # as on a GPU

    monkeypatch.setattr(inference.Predictor, "__init__", mixed)
    for budget, calls in ((1, 5), (80, 2), (10**6, 1)):
        seen.clear()
        maps = model.infer(photos, size=42, max_batch_tokens=budget)
        for got, expected in zip(maps, one_by_one, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-4)
        assert budget == 1 or max(seen) <= budget
        assert len(seen) == calls
    hook.remove()


@pytest.mark.gpu
def test_on_a_gpu(model, seed):
    model = model.cuda().eval()
    images = [image.cuda() for image in _images(seed)]
    with torch.no_grad(), use_backend("triton"):
        maps = model(images)
    with torch.no_grad(), use_backend("reference"):
        for got, image in zip(maps, images, strict=True):
            exact = model(image[None])[0]
            torch.testing.assert_close(got, exact, atol=1e-3 * exact.abs().max().item(), rtol=0)
