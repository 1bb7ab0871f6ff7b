"""Affine-invariant loss: against plain numpy, its invariances, its gradients, its edge cases."""

import numpy as np
import pytest
import torch

from dafast.ops import affine_invariant_loss, affine_invariant_loss_reference


def _numpy_map(prediction, target, mask):
    """The formula once more, independently: sort for the lower median."""

    def normalise(values):
        values = np.sort(values)[(len(values) - 1) // 2], values
        shift, values = values
        return (values - shift) / max(np.abs(values - shift).mean(), 1e-6)

    if not mask.any():
        return 0.0
    return np.abs(normalise(prediction[mask]) - normalise(target[mask])).mean()


def _inputs(seed, shape=(3, 17, 23), share=0.7):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.rand(shape, generator=generator, dtype=torch.float64)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(shape, generator=generator) < share
    return prediction, target, mask, generator


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 23), (2, 8, 8), (1, 40, 31)])
def test_matches_numpy(shape, seed):
    prediction, target, mask, _ = _inputs(seed, shape)
    expected = np.mean([_numpy_map(*(x[i].numpy() for x in (prediction, target, mask)))
                        for i in range(len(prediction))])  # fmt: skip
    loss = affine_invariant_loss(prediction, target, mask)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    full = affine_invariant_loss(prediction, target)
    assert full.item() == affine_invariant_loss(prediction, target, mask | True).item()


def test_regions_are_area_weighted(seed):
    prediction, target, mask, generator = _inputs(seed)
    regions = torch.zeros_like(mask)
    regions[0, 3:9, 2:15] = True
    regions[1] = True  # the second region is empty
    regions[2] = torch.rand(regions[2].shape, generator=generator) < 0.2
    expected = 0.0
    for i in range(len(prediction)):
        p, t, m, r = (x[i].numpy() for x in (prediction, target, mask, regions))
        expected += r.mean() * _numpy_map(p, t, m & r)
        expected += (1 - r.mean()) * _numpy_map(p, t, m & ~r)
    loss = affine_invariant_loss(prediction, target, mask, regions=regions)
    assert loss.item() == pytest.approx(expected / len(prediction), rel=1e-6)


def test_invariant_to_scale_and_shift(seed):
    prediction, target, mask, _ = _inputs(seed)
    loss = affine_invariant_loss(prediction, target, mask)
    other = affine_invariant_loss(3.7 * prediction - 2, 0.2 * target + 5, mask)
    assert other.item() == pytest.approx(loss.item(), rel=1e-9)
    assert affine_invariant_loss(2 * target + 1, target, mask).item() < 1e-12


def test_gradcheck(seed):
    prediction, target, mask, _ = _inputs(seed, (2, 4, 5))
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: affine_invariant_loss_reference(p, target, mask), [prediction]
    )


def test_gradient_shares_ties_and_skips_masked(seed):
    prediction, target, mask, _ = _inputs(seed, (1, 12, 12))
    prediction = (prediction * 4).floor() / 4  # many pixels equal to the median
    prediction.requires_grad_()
    (grad,) = torch.autograd.grad(affine_invariant_loss(prediction, target, mask), prediction)
    assert (grad[~mask] == 0).all()
    values = prediction[mask]
    tied = values == values.median()
    assert tied.sum() > 1
    # Scale and shift of the prediction do not matter, so the gradient is orthogonal to both.
    assert grad.sum().abs() < 1e-9
    assert (grad * prediction).sum().abs() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_leaks_in_from_masked_pixels(dtype, seed):
    prediction, target, mask, _ = _inputs(seed)
    mask[1] = False  # one map without any valid pixel
    clean = prediction.to(dtype).masked_fill(~mask, 0).requires_grad_()
    dirty = prediction.to(dtype).masked_fill(~mask, float("nan")).requires_grad_()
    losses = [
        affine_invariant_loss(clean, target.masked_fill(~mask, 0), mask),
        affine_invariant_loss(dirty, target.masked_fill(~mask, float("inf")), mask),
    ]
    grads = [
        torch.autograd.grad(loss, x)[0] for loss, x in zip(losses, (clean, dirty), strict=True)
    ]
    assert losses[0].item() == losses[1].item() and losses[0].isfinite()
    assert losses[0].dtype == torch.float32
    assert torch.equal(grads[0], grads[1])
    assert (grads[1][~mask] == 0).all()


@pytest.mark.parametrize("mask_value", [True, False])
def test_degenerate_maps_give_finite_numbers(mask_value):
    prediction = torch.zeros(2, 5, 5, requires_grad=True)
    target = torch.full((2, 5, 5), 0.25)
    mask = torch.full((2, 5, 5), mask_value)
    loss = affine_invariant_loss(prediction, target, mask)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None and (prediction.grad == 0).all()


def test_target_gets_no_gradient(seed):
    prediction, target, mask, _ = _inputs(seed)
    prediction.requires_grad_(), target.requires_grad_()
    affine_invariant_loss(prediction, target, mask).backward()
    assert target.grad is None and prediction.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "one shape"),
        ((torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)), "one shape"),
        ((torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).int()), "floating point"),
        ((torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(1, 2, 3)), "mask must be bool"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        affine_invariant_loss(*arguments)
