"""Losses that are no ops: the gradient-matching term against its formula, in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dafast.losses import GradientMatchingLoss, normalise_maps
from dafast.ops import use_backend
from dafast.ops.affine_invariant_loss import _normalise, lower_medians
from tests.instruction_sets import CPP
from tests.tolerances import TOLERANCES

DOUBLE = TOLERANCES[torch.float64].op


def normalised(disparity: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(d - t) / s, t the lower median of the valid pixels."""
    valid = np.sort(disparity[mask])
    shift = valid[(len(valid) - 1) // 2]
    return (disparity - shift) / max(np.abs(valid - shift).mean(), 1e-6)


def by_hand(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray, scales: int) -> float:
    """The sum over resolutions and pixels of one map."""
    if not mask.any():
        return 0.0
    residual = normalised(prediction, mask) - normalised(target, mask)
    total = 0.0
    for scale in range(scales):
        r, m = residual[:: 2**scale, :: 2**scale], mask[:: 2**scale, :: 2**scale]
        rows, columns = r.shape
        edges = 0.0
        for y in range(rows):
            for x in range(columns):
                if x + 1 < columns and m[y, x] and m[y, x + 1]:
                    edges += abs(r[y, x + 1] - r[y, x])
                if y + 1 < rows and m[y, x] and m[y + 1, x]:
                    edges += abs(r[y + 1, x] - r[y, x])
        total += edges / max(m.sum(), 1)
    return float(total)


@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 16, 12), (2, 1, 5), (2, 4, 1)])
@pytest.mark.parametrize("scales", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_matching_is_its_formula(
    shape: tuple[int, int, int], scales: int, masked: bool, rng: np.random.Generator
) -> None:
    prediction, target = rng.random(shape), rng.random(shape)
    mask = rng.random(shape) > 0.3 if masked else np.ones(shape, bool)
    expected = np.mean(
        [by_hand(*maps, scales) for maps in zip(prediction, target, mask, strict=True)]
    )
    tensors = [torch.from_numpy(array) for array in (prediction, target, mask)]
    loss = GradientMatchingLoss(scales)
    assert loss(*tensors).item() == pytest.approx(expected, rel=DOUBLE, abs=DOUBLE)
    if not masked:
        assert loss(*tensors[:2]).item() == loss(*tensors).item()


def test_gradient_matching_by_region(rng: np.random.Generator) -> None:
    prediction, target = rng.random((2, 3, 12, 10))
    mask, region = rng.random((2, 3, 12, 10)) > 0.3
    region[2] = True
    expected = np.mean(
        [
            r.mean() * by_hand(p, t, m & r, 4) + (1 - r.mean()) * by_hand(p, t, m & ~r, 4)
            for p, t, m, r in zip(prediction, target, mask, region, strict=True)
        ]
    )
    tensors = [torch.from_numpy(array) for array in (prediction, target, mask, region)]
    assert GradientMatchingLoss()(*tensors).item() == pytest.approx(expected, rel=DOUBLE)


def test_gradient_matching_sees_edges_and_neither_scale_nor_shift(seed: int) -> None:
    target = torch.rand(2, 20, 24, dtype=torch.float64)
    loss = GradientMatchingLoss()
    assert loss(3.0 * target + 5.0, target).item() == pytest.approx(0.0, abs=1e-12)
    disturbed = target + 0.1 * torch.rand_like(target)
    assert loss(disturbed, target).item() > 0.01
    assert loss(7.0 * disturbed - 2.0, target).item() == pytest.approx(
        loss(disturbed, target).item(), rel=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradient_matching_in_float32_inside(dtype: torch.dtype, seed: int) -> None:
    prediction = torch.rand(2, 20, 24).to(dtype).requires_grad_()
    target = torch.rand(2, 20, 24)
    loss = GradientMatchingLoss()(prediction, target)
    assert loss.dtype == torch.float32
    exact = GradientMatchingLoss()(prediction.detach().double(), target.double())
    assert loss.item() == pytest.approx(exact.item(), rel=TOLERANCES[torch.float32].model)
    loss.backward()
    assert prediction.grad is not None and prediction.grad.dtype == dtype
    assert bool(prediction.grad.isfinite().all()) and bool(prediction.grad.any())


def test_gradient_of_gradient_matching(seed: int) -> None:
    mask = torch.rand(2, 6, 7) > 0.2
    gap = 0.0
    while gap < 1e-4:  # gradcheck's steps must not cross a kink: an edge of 0, another median
        target, maps = torch.rand(2, 2, 6, 7, dtype=torch.float64)
        residual = normalise_maps(maps, mask) - normalise_maps(target, mask)
        gap = min(
            torch.pdist(values[valid][:, None]).min().item()
            for both in (maps, residual)
            for values, valid in zip(both, mask, strict=True)
        )
    prediction = maps.requires_grad_()
    target.requires_grad_()
    loss = GradientMatchingLoss(3)
    assert torch.autograd.gradcheck(lambda p: loss(p, target, mask), prediction)
    loss(prediction, target, mask).backward()
    assert target.grad is None


def test_what_is_masked_counts_for_nothing(seed: int) -> None:
    prediction = torch.rand(3, 8, 9, requires_grad=True)
    target, mask = torch.rand(3, 8, 9), torch.rand(3, 8, 9) > 0.3
    mask[1] = False
    poisoned = prediction.detach().clone()
    poisoned[~mask] = float("nan")
    poisoned.requires_grad_()
    holes = target.clone()
    holes[~mask] = float("inf")
    clean = GradientMatchingLoss()(prediction, target, mask)
    dirty = GradientMatchingLoss()(poisoned, holes, mask)
    assert dirty.item() == clean.item() > 0
    for loss in (clean, dirty):
        loss.backward()
    assert prediction.grad is not None and poisoned.grad is not None
    assert torch.equal(prediction.grad, poisoned.grad)
    assert not prediction.grad[~mask].any()
    nothing = torch.zeros_like(mask)
    assert GradientMatchingLoss()(prediction, target, nothing).item() == 0.0
    empty = torch.empty(0, 8, 9, requires_grad=True)
    assert GradientMatchingLoss()(empty, torch.empty(0, 8, 9)).item() == 0.0


@pytest.mark.parametrize("ties", [False, True])
def test_normalised_maps_are_those_of_the_affine_invariant_loss(ties: bool, seed: int) -> None:
    maps = torch.rand(3, 9, 11, dtype=torch.float64)
    if ties:
        maps = (3 * maps).floor()
    mask = torch.rand(3, 9, 11) > 0.3
    weights = torch.rand(3, 9, 11, dtype=torch.float64)
    ours, theirs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    result = normalise_maps(ours, mask)
    (result * weights)[mask].sum().backward()
    for i in range(3):
        expected = _normalise(theirs[i][mask[i]])
        torch.testing.assert_close(result[i][mask[i]], expected, rtol=DOUBLE, atol=DOUBLE)
        (expected * weights[i][mask[i]]).sum().backward()
    assert not result[~mask].any()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)


def test_a_constant_map_is_zero_and_not_noise() -> None:
    mask = torch.ones(1, 30, 31, dtype=torch.bool)
    assert not normalise_maps(torch.full((1, 30, 31), 0.7), mask).any()


@pytest.mark.parametrize("backend", ["reference", CPP])
def test_lower_medians_of_maps_with_ties_and_without_pixels(backend, seed):
    maps = 3 * torch.randn(6, 9, 14).round(decimals=1).transpose(1, 2)
    mask = torch.rand(maps.shape) > 0.4
    mask[1] = False
    mask[2] = False
    mask[2, 3, 4] = True
    with use_backend(backend):
        got = lower_medians(maps, mask)
    wanted = [
        m[valid].median() if valid.any() else m.new_zeros(())
        for m, valid in zip(maps, mask, strict=True)
    ]
    assert torch.equal(got, torch.stack(wanted))
