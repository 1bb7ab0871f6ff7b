"""The SILog loss: against its formula in numpy, its invariances, gradients, edge cases."""

import numpy as np
import pytest
import torch

from dafast.losses import SILogLoss
from tests.tolerances import TOLERANCES


def maps(rng, batch=2, height=7, width=9, valid=0.6):
    prediction = torch.from_numpy(rng.uniform(0.1, 20, (batch, height, width)))
    target = torch.from_numpy(rng.uniform(0.1, 20, (batch, height, width)))
    return prediction, target, torch.from_numpy(rng.random((batch, height, width)) < valid)


@pytest.mark.parametrize("beta", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_its_formula(beta, dtype, rng):
    prediction, target, mask = maps(rng)
    g = np.log(prediction[mask].numpy()) - np.log(target[mask].numpy())
    expected = 10 * np.sqrt(g.var() + beta * g.mean() ** 2)
    got = SILogLoss(beta)(prediction.to(dtype), target.to(dtype), mask)
    assert got.dtype == dtype
    assert float(got) == pytest.approx(expected, rel=TOLERANCES[dtype].model)


def test_by_hand():
    """One pixel right, one twice as far: g = (0, ln 2)."""
    loss = SILogLoss(beta=0.5, weight=1.0)(
        torch.tensor([[[3.0, 2.0]]]), torch.tensor([[[3.0, 1.0]]]), torch.ones(1, 1, 2).bool()
    )
    mean = np.log(2) / 2
    assert float(loss) == pytest.approx(np.sqrt(mean**2 + 0.5 * mean**2), rel=1e-6)


def test_scale_counts_by_beta_alone(rng):
    prediction, target, mask = maps(rng)
    factor = rng.uniform(2, 5)
    free, bound = SILogLoss(0.0), SILogLoss(0.15)
    assert float(free(factor * prediction, target, mask)) == pytest.approx(
        float(free(prediction, target, mask)), rel=1e-9
    )
    scaled = bound(factor * target, target, mask)
    assert float(scaled) == pytest.approx(10 * np.sqrt(0.15) * np.log(factor), rel=1e-9)


def test_gradients(rng):
    prediction, target, mask = maps(rng, height=3, width=4)
    prediction.requires_grad_()
    torch.autograd.gradcheck(lambda p: SILogLoss()(p, target, mask), prediction)
    SILogLoss()(prediction, target, mask).backward()
    assert (prediction.grad[~mask] == 0).all() and (prediction.grad[mask] != 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.15, 1.0])
def test_sums_of_pieces_are_the_whole(beta, rng):
    """The loss of added sums is that of the batch, and so is its gradient."""
    prediction, target, mask = maps(rng)
    prediction.requires_grad_()
    silog = SILogLoss(beta)
    expected = silog(prediction, target, mask)
    (gradient,) = torch.autograd.grad(expected, prediction)
    pieces = zip(*(x.tensor_split(2) for x in (prediction, target, mask)), strict=True)
    sums = torch.stack([silog.sums(*piece) for piece in pieces]).sum(0)
    assert sums.dtype == torch.float64
    loss = silog.of_sums(sums)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    (found,) = torch.autograd.grad(loss, prediction)
    torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-12)
    same = silog.sums(target, target, mask)
    assert float(silog.of_sums(same)) == 0 == float(silog.of_sums(torch.zeros_like(same)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_what_is_invalid_is_not_looked_at(bad, rng):
    prediction, target, mask = maps(rng)
    expected = SILogLoss()(prediction, target, mask)
    target[~mask] = bad
    prediction.requires_grad_()
    loss = SILogLoss()(prediction, target, mask)
    loss.backward()
    assert torch.equal(loss.detach(), expected) and prediction.grad.isfinite().all()


@pytest.mark.parametrize("case", ["empty", "perfect", "one pixel", "zero prediction"])
def test_degenerate_batches_are_finite(case, rng):
    prediction, target, mask = maps(rng)
    if case == "empty":
        mask[:] = False
    elif case == "perfect":
        prediction = target.clone()
    elif case == "one pixel":
        mask[:] = False
        mask[0, 0, 0] = True
    else:
        prediction[0] = 0.0
    prediction.requires_grad_()
    loss = SILogLoss()(prediction, target, mask)
    loss.backward()
    assert loss.isfinite() and prediction.grad.isfinite().all()
    if case in ("empty", "perfect"):
        assert float(loss.detach()) == 0 and (prediction.grad == 0).all()
