"""Alignment against numpy.linalg.lstsq, against plain numpy, and by its properties."""

import numpy as np
import pytest
import torch

from dafast.evaluation.alignment import (
    ALIGNMENTS,
    align,
    align_disparity,
    constant_baseline,
    plane_baseline,
)

CAP = 50.0


def _batch(rng, batch=3, height=11, width=13):
    """Predictions that look like the truth, some pixels unknown."""
    depth = rng.uniform(1, 9, (batch, height, width))
    prediction = 1 / depth + rng.normal(0, 0.05, depth.shape) + 0.4
    mask = rng.random(depth.shape) < 0.6
    prediction[~mask] = 99  # must not matter
    depth[~mask] = np.nan
    return torch.from_numpy(prediction), torch.from_numpy(depth), torch.from_numpy(mask)


def _lower_median(x):
    return np.sort(x)[(len(x) - 1) // 2]


def _by_numpy(p, d, method):
    """What the docstrings say, for one image's valid pixels; gives depth."""
    y, one = 1 / d, np.ones_like(d)
    if method == "scale_shift":
        p = np.stack([p, one], 1) @ np.linalg.lstsq(np.stack([p, one], 1), y, rcond=None)[0]
    elif method == "scale":
        p = p * np.linalg.lstsq(p[:, None], y, rcond=None)[0]
    elif method == "median":
        p = p * _lower_median(y) / _lower_median(p)
    elif method == "robust":
        center, target = _lower_median(p), _lower_median(y)
        p = (p - center) / np.abs(p - center).mean() * np.abs(y - target).mean() + target
    elif method == "depth_scale_shift":
        design = np.stack([1 / np.maximum(p, p.max() / 1000), one], 1)
        return np.clip(design @ np.linalg.lstsq(design, d, rcond=None)[0], CAP / 1000, CAP)
    return 1 / np.maximum(p, 1 / CAP)


@pytest.mark.parametrize("method", ALIGNMENTS)
def test_every_method_is_what_numpy_says(method, rng):
    prediction, depth, mask = _batch(rng)
    aligned = align(prediction, depth, mask, method, max_depth=CAP)
    assert aligned.shape == prediction.shape and aligned.dtype == torch.float64
    for i in range(len(prediction)):
        m = mask[i].numpy()
        expected = _by_numpy(prediction[i].numpy()[m], depth[i].numpy()[m], method)
        np.testing.assert_allclose(aligned[i].numpy()[m], expected, rtol=1e-9)


@pytest.mark.parametrize("method", ALIGNMENTS)
def test_a_batch_is_its_images(method, rng):
    prediction, depth, mask = _batch(rng)
    caps = torch.tensor([4.0, 10.0, 80.0])
    together = align(prediction.float(), depth.float(), mask, method, max_depth=caps)
    for i in range(3):
        one = (t[i : i + 1] for t in (prediction.float(), depth.float(), mask))
        alone = align(*one, method, max_depth=float(caps[i]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("method", "scale", "shift"),
    [
        ("scale_shift", -3.0, 8.0),  # least squares turns an upside-down map round
        ("scale_shift", 0.02, -5.0),
        ("robust", 7.0, -2.0),
        ("scale", 7.0, 0.0),
        ("median", 0.3, 0.0),
        ("depth_scale_shift", 4.0, 0.0),
    ],
)
def test_an_affine_change_changes_nothing(method, scale, shift, rng):
    prediction, depth, mask = _batch(rng)
    before = align(prediction, depth, mask, method, max_depth=CAP)
    after = align(scale * prediction + shift, depth, mask, method, max_depth=CAP)
    torch.testing.assert_close(before[mask], after[mask], rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", ALIGNMENTS)
def test_the_truth_stays_the_truth(method, rng):
    _, depth, mask = _batch(rng)
    disparity = torch.where(mask, 1 / depth, 0)
    aligned = align(disparity, depth, mask, method, max_depth=CAP)
    torch.testing.assert_close(aligned[mask], depth[mask], rtol=1e-9, atol=0)


def test_clamping_is_to_the_cap():
    depth = torch.tensor([[[1.0, 2.0, 4.0]]])
    disparity = torch.tensor([[[1.0, -0.5, 0.05]]])
    mask = torch.ones_like(depth, dtype=torch.bool)
    aligned = align(disparity, depth, mask, "none", max_depth=10.0)
    assert aligned.flatten().tolist() == pytest.approx([1.0, 10.0, 10.0])


@pytest.mark.parametrize("value", [0.0, 7.0, 1e-30])
def test_a_constant_gets_the_constant_fit(value, rng):
    _, depth, mask = _batch(rng)
    aligned = align(torch.full_like(depth, value), depth, mask, max_depth=CAP)
    for i in range(3):
        mean = (1 / depth[i][mask[i]]).mean()
        torch.testing.assert_close(1 / aligned[i], mean.expand_as(aligned[i]))


@pytest.mark.parametrize("method", ALIGNMENTS)
def test_a_map_of_zeros_breaks_nothing(method, rng):
    _, depth, mask = _batch(rng)
    aligned = align(torch.zeros_like(depth), depth, mask, method, max_depth=CAP)
    assert aligned.isfinite().all() and (aligned > 0).all()


def test_bad_input_is_named(rng):
    prediction, depth, mask = _batch(rng)
    with pytest.raises(ValueError, match="no alignment 'mean'; there are: scale_shift"):
        align(prediction, depth, mask, "mean", max_depth=CAP)
    with pytest.raises(ValueError, match="share one shape"):
        align(prediction[0], depth[0], mask[0], max_depth=CAP)
    with pytest.raises(ValueError, match="no valid pixel"):
        align(prediction, depth, mask & False, max_depth=CAP)
    prediction[mask] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        align(prediction, depth, mask, max_depth=CAP)


def test_one_map_in_numpy(rng):
    """`align_disparity` is the least squares of `numpy.linalg.lstsq`, and ignores the rest."""
    prediction, truth = rng.random((2, 7, 9)).astype(np.float32)
    mask = rng.random((7, 9)) < 0.5
    prediction[~mask] = 99
    design = np.stack([prediction[mask], np.ones(mask.sum())], 1)
    scale, shift = np.linalg.lstsq(design, truth[mask], rcond=None)[0]
    aligned = align_disparity(prediction, truth, mask)
    np.testing.assert_allclose(aligned, scale * prediction + shift, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        align_disparity((truth.astype(np.float64) - 0.3) / 2.5, truth, mask), truth, atol=1e-7
    )
    with pytest.raises(ValueError, match="no valid pixel"):
        align_disparity(prediction, truth, np.zeros_like(mask))


def test_baselines(rng):
    rows, columns = np.mgrid[0:11, 0:13]
    a, b, c = rng.normal(size=3)
    plane = a * columns + b * rows + c
    mask = rng.random((11, 13)) < 0.6
    np.testing.assert_allclose(plane_baseline(plane, mask), plane, atol=1e-9)
    np.testing.assert_allclose(constant_baseline(plane, mask), plane[mask].mean())
    noisy = plane + rng.normal(size=plane.shape)
    design = np.stack([columns[mask], rows[mask], np.ones(mask.sum())], 1)
    weights = np.linalg.lstsq(design, noisy[mask], rcond=None)[0]
    expected = weights[0] * columns + weights[1] * rows + weights[2]
    np.testing.assert_allclose(plane_baseline(noisy, mask), expected, atol=1e-8)
    # A plane through one column of pixels is not unique; any that fits will do.
    one = np.zeros_like(mask)
    one[:, 4] = True
    np.testing.assert_allclose(plane_baseline(plane, one)[one], plane[one], atol=1e-8)
