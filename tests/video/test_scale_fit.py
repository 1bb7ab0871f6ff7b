"""The robust fit of scale and shift between two noisy maps."""

from __future__ import annotations

import numpy as np
import pytest

from dafast.video.scale_fit import POINTS, fit_scale_shift
from tests.video.scenes import scene


def pair(rng, noise, outliers=0.0):
    _, reference = scene(rng, 40, 60)
    scale, shift = rng.uniform(0.3, 3), rng.uniform(-2, 2)
    spread = noise * reference.std()
    values = (reference + rng.normal(0, spread, reference.shape) - shift) / scale
    wrong = rng.random(reference.shape) < outliers
    values[wrong] += rng.uniform(1, 3, wrong.sum()) * values.std()
    ones = np.ones_like(reference)
    return reference + rng.normal(0, spread, reference.shape), values, ones, scale, shift


@pytest.mark.parametrize(("noise", "outliers"), [(0.0, 0.0), (0.1, 0.0), (0.02, 0.2), (0.2, 0.1)])
def test_it_finds_scale_and_shift(fixed_rng, noise, outliers):
    reference, values, ones, scale, shift = pair(fixed_rng, noise, outliers)
    found = fit_scale_shift(reference, values, ones, ones)
    assert found is not None and found.quality > 0.3
    # Errors of a mean over the points, 5 times, and of the outliers that are kept.
    bound = 1e-6 + 5 * noise / np.sqrt(POINTS) + 0.5 * noise * outliers
    assert found.scale == pytest.approx(scale, rel=2 * bound)
    middle = values[values < np.median(values)].mean()
    expected = scale * middle + shift
    got = found.scale * middle + found.shift
    assert got == pytest.approx(expected, abs=3 * bound * reference.std())


def test_a_chain_of_fits_keeps_the_scale(fixed_rng):
    """Ordinary least squares would lose 9% of it in every step here: all but 1% in 50."""
    _, truth = scene(fixed_rng, 40, 60)
    ones = np.ones_like(truth)
    noise = 0.3 * truth.std()
    reference = truth + fixed_rng.normal(0, noise, truth.shape)
    for _ in range(50):
        values = 2 * (truth + fixed_rng.normal(0, noise, truth.shape)) - 1
        found = fit_scale_shift(reference, values, ones, ones)
        reference = found.scale * values + found.shift
    # A random walk of 50 errors of about 0.3 * sqrt(2 / 1024).
    slope = np.polyfit(truth.ravel(), reference.ravel(), 1)[0]
    assert slope == pytest.approx(1, abs=0.35)


def test_a_mean_of_many_maps_counts_as_exact(fixed_rng):
    _, values, ones, _, _ = pair(fixed_rng, 0.3)
    truth = 1.7 * values.astype(np.float64)
    noisy = values + fixed_rng.normal(0, 0.5 * values.std(), values.shape)
    found = fit_scale_shift(truth, noisy, ones, 1000 * ones)
    assert found.scale == pytest.approx(1.7, rel=0.1)  # least squares over noisy values: 1.36


def test_weights_and_missing_pixels(rng):
    reference, values, ones, scale, _ = pair(rng, 0.0)
    weight = ones.copy()
    weight[:, 20:], values[:, 20:] = 0, rng.random((40, 40))
    values[:10], reference[10:15] = np.nan, np.inf
    found = fit_scale_shift(reference, values, weight, ones)
    assert found.scale == pytest.approx(scale, rel=1e-5)
    # Mostly one value, as where the sky is large.
    reference, values, ones, scale, _ = pair(rng, 0.01)
    reference[:30], values[:30] = reference.min(), values.min()
    assert fit_scale_shift(reference, values, ones, ones) is not None


def test_unrelated_maps_have_no_fit(rng):
    reference, values, ones, _, _ = pair(rng, 0.0)
    noise = rng.random(values.shape)
    for other in (noise, np.zeros_like(values), -values, np.full_like(values, np.nan)):
        assert fit_scale_shift(reference, other, ones, ones) is None
    assert fit_scale_shift(reference, values, 0 * ones, ones) is None
    assert fit_scale_shift(np.zeros_like(values), values, ones, ones) is None
    assert fit_scale_shift(reference[:3, :3], values[:3, :3], ones[:3, :3], ones[:3, :3]) is None
