"""Errors by hand-worked cases, against implementations of others, and by their properties."""

import numpy as np
import pytest
import torch

from dafast.evaluation.alignment import align
from dafast.evaluation.metrics import (
    BOUNDARY_THRESHOLDS,
    METRICS,
    boundary_f1,
    depth_errors,
    depth_metrics,
    valid_depth,
)


def _maps(rng, batch=3):
    depth = torch.from_numpy(rng.uniform(1, 9, (batch, 12, 10)))
    predicted = depth * torch.from_numpy(rng.uniform(0.6, 1.7, depth.shape))
    mask = torch.from_numpy(rng.random(depth.shape) < 0.7)
    return predicted, depth.where(mask, torch.nan), mask


def test_by_hand():
    depth = np.array([[1.0, 2.0, 4.0, 100.0]])
    disparity = np.array([[1.0, 1 / 3, -5.0, 1.0]])  # the third is clamped to 1 / 10
    mask = valid_depth(depth, 10.0)
    assert mask.tolist() == [[True, True, True, False]]
    m = depth_metrics(disparity, depth, mask, max_depth=10.0)
    assert tuple(m) == METRICS
    assert m["abs_rel"] == pytest.approx((0 + 0.5 + 1.5) / 3)
    assert m["delta_1"] == pytest.approx(1 / 3)
    assert m["delta_2"] == pytest.approx(2 / 3)
    assert m["delta_3"] == pytest.approx(2 / 3)
    assert m["rmse"] == pytest.approx(np.sqrt((0 + 1 + 36) / 3))
    logs = np.log([1, 1.5, 2.5])
    assert m["rmse_log"] == pytest.approx(np.sqrt((logs**2).mean()))
    assert m["log10"] == pytest.approx(logs.mean() / np.log(10))
    assert m["silog"] == pytest.approx(100 * logs.std())


def test_validity():
    depth = np.array([0.0, 1e-4, 0.5, 80.0, np.nan, np.inf, -1.0])
    assert valid_depth(depth, 80.0).tolist() == [False, False, True, False, False, False, False]
    with pytest.raises(ValueError, match="no valid pixel"):
        depth_metrics(depth[None], depth[None], np.zeros((1, 7), bool), max_depth=1.0)
    with pytest.raises(ValueError, match="share one shape"):
        depth_errors(*(torch.ones(2, 3, dtype=torch.bool),) * 3)


@pytest.mark.slow
def test_against_torchmetrics(rng):
    regression = pytest.importorskip("torchmetrics.regression")
    predicted, depth, mask = _maps(rng)
    errors = depth_errors(predicted, depth, mask)
    for i in range(len(depth)):
        p, d = predicted[i][mask[i]], depth[i][mask[i]]
        expected = {
            "abs_rel": regression.MeanAbsolutePercentageError()(p, d),
            "rmse": regression.MeanSquaredError(squared=False)(p, d),
            "rmse_log": regression.MeanSquaredError(squared=False)(p.log(), d.log()),
            "log10": regression.MeanAbsoluteError()(p.log10(), d.log10()),
        }
        for name, value in expected.items():
            assert float(errors[name][i]) == pytest.approx(float(value), rel=1e-5), name


def test_against_numpy(rng):
    predicted, depth, mask = _maps(rng)
    errors = depth_errors(predicted.float(), depth.float(), mask)
    for i in range(len(depth)):
        m = mask[i].numpy()
        p, d = predicted[i].float().double().numpy()[m], depth[i].float().double().numpy()[m]
        for k in (1, 2, 3):
            inside = np.count_nonzero((p < d * 1.25**k) & (d < p * 1.25**k))
            assert float(errors[f"delta_{k}"][i]) == pytest.approx(inside / m.sum())
        assert float(errors["silog"][i]) == pytest.approx(100 * np.std(np.log(p) - np.log(d)))


def test_a_perfect_prediction(rng):
    _, depth, mask = _maps(rng)
    for name, values in depth_errors(depth, depth, mask).items():
        assert values.tolist() == [1.0 if name.startswith("delta") else 0.0] * 3, name


@pytest.mark.parametrize(("scale", "shift"), [(5.0, -2.0), (0.01, 300.0)])
def test_affine_changes_leave_the_scores(scale, shift, rng):
    predicted, depth, mask = _maps(rng)
    scores = [
        depth_errors(align(p, depth, mask, max_depth=20.0), depth, mask)
        for p in (1 / predicted, scale / predicted + shift)
    ]
    for name in METRICS:
        torch.testing.assert_close(scores[0][name], scores[1][name], rtol=1e-8, atol=0)


def test_silog_knows_no_scale_and_the_mask_hides(rng):
    predicted, depth, mask = _maps(rng)
    errors = depth_errors(predicted, depth, mask)
    scaled = depth_errors(predicted * 3, depth, mask)
    torch.testing.assert_close(errors["silog"], scaled["silog"])
    assert (errors["abs_rel"] != scaled["abs_rel"]).all()
    hidden = depth_errors(predicted.where(mask, torch.nan), depth, mask)
    assert all(torch.equal(errors[name], hidden[name]) for name in METRICS)


def _boundary_f1_by_loops(p, d, mask):
    """Pair by pair, as the paper words it."""
    height, width = d.shape
    total = 0.0
    for t in BOUNDARY_THRESHOLDS:
        precisions, recalls = [], []
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            found = true = both = 0
            for y in range(max(0, -dy), height - max(0, dy)):
                for x in range(max(0, -dx), width - max(0, dx)):
                    if mask[y, x] and mask[y + dy, x + dx]:
                        a = p[y + dy, x + dx] / p[y, x] > t
                        b = d[y + dy, x + dx] / d[y, x] > t
                        found, true, both = found + a, true + b, both + (a and b)
            precisions.append(both / max(found, 1))
            recalls.append(both / max(true, 1))
        precision, recall = np.mean(precisions), np.mean(recalls)
        if precision + recall:
            total += t * 2 * precision * recall / (precision + recall)
    return total / sum(BOUNDARY_THRESHOLDS)


def test_boundary_f1_is_its_definition(rng):
    depth = torch.from_numpy(rng.uniform(1, 1.6, (2, 9, 8)))
    predicted = depth * torch.from_numpy(rng.uniform(0.9, 1.1, depth.shape))
    mask = torch.from_numpy(rng.random(depth.shape) < 0.8)
    scores = boundary_f1(predicted, depth.where(mask, torch.nan), mask)
    for i in range(2):
        expected = _boundary_f1_by_loops(predicted[i].numpy(), depth[i].numpy(), mask[i].numpy())
        assert 0 < expected < 1
        assert float(scores[i]) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(boundary_f1(7 * predicted, depth, mask), scores)


def test_boundary_f1_by_hand():
    square = torch.full((1, 6, 6), 4.0, dtype=torch.float64)
    square[0, 2:4, 2:4] = 1.0  # a boundary in all four directions
    everything = torch.ones_like(square, dtype=torch.bool)
    assert boundary_f1(square, square, everything).tolist() == pytest.approx([1.0])
    flat = torch.ones_like(square)
    assert boundary_f1(flat, square, everything).tolist() == [0.0]
    # The square moved right by one: of the two rows' edges above and below one pixel of two is
    # right, of those left and right none.
    assert boundary_f1(square.roll(1, -1), square, everything).tolist() == pytest.approx([0.25])
