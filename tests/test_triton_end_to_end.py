"""The whole model and one training step on Triton's kernels, against the reference backend."""

from __future__ import annotations

import copy

import pytest
import torch

from dafast import DepthAnything
from dafast.losses import AffineInvariantLoss, FeatureAlignmentLoss
from dafast.ops import use_backend
from tests.tiny import tiny

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture
def model(seed):
    """A small network with the heads of the published ones; interpreted kernels are slow."""
    model = DepthAnything(tiny(embed_dim=64, num_heads=1)).train()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and factors that are not 0 or 1
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.depth_head.scratch.output_conv2[2].bias.fill_(0.5)  # alive behind the ReLU
    return model


def _batch(seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 3, 42, 28, generator=generator)
    disparity = torch.rand(2, 42, 28, generator=generator)
    mask = torch.rand(2, 42, 28, generator=generator) < 0.8
    regions = torch.zeros_like(mask)
    regions[:, 10:30, 4:20] = True
    frozen = torch.randn(2, 6, 64, generator=generator)
    return [x.to(device) for x in (image, disparity, mask, regions, frozen)]


def _student_losses(model, batch):
    """Prediction and the losses of the labeled and unlabeled halves of the student's step."""
    image, disparity, mask, regions, frozen = batch
    prediction = model(image)
    features = model.get_intermediate_layers(image, [3])[0]
    loss = AffineInvariantLoss()(prediction, disparity, mask)
    loss = loss + AffineInvariantLoss()(prediction, disparity, mask, regions)
    return prediction, loss + FeatureAlignmentLoss()(features, frozen)


def _step(model, batch, backend):
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with use_backend(backend):
        prediction, loss = _student_losses(model, batch)
    loss.backward()
    optimizer.step()
    return prediction.detach(), loss.detach(), model


def _compare(got, expected, bound):
    prediction, loss, stepped = got
    wanted, wanted_loss, wanted_step = expected
    assert (prediction - wanted).abs().max() <= bound * wanted.abs().max()
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=10 * bound)
    for (name, p), (_, q) in zip(
        stepped.named_parameters(), wanted_step.named_parameters(), strict=True
    ):
        assert (p - q).abs().max() <= 10 * bound * max(q.abs().max().item(), 1.0), name


@pytest.mark.slow
def test_forward_and_training_step(model, seed):
    batch = _batch(seed)
    _compare(_step(model, batch, "triton"), _step(model, batch, "reference"), 1e-4)


def test_inference(model, seed, device):
    image = _batch(seed, device)[0]
    model = model.eval().to(device)
    with torch.no_grad():
        with use_backend("reference"):
            expected = model(image)
        with use_backend("triton"):
            got = model(image)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.gpu
def test_on_a_gpu(model, seed):
    model = model.cuda()
    batch = _batch(seed, "cuda")
    _compare(_step(model, batch, "triton"), _step(model, batch, "reference"), 1e-3)
