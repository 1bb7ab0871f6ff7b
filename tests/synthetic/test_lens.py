"""Depth of field."""

from __future__ import annotations

import numpy as np

from dafast.synthetic.lens import focused


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A bright square at 1 m before a dark checkered wall at 10 m."""
    y, x = np.mgrid[:60, :80]
    wall = 0.1 + 0.1 * ((x // 2 + y // 2) % 2)
    near = (abs(x - 40) < 15) & (abs(y - 30) < 15)
    linear = np.where(near, 5 + (x % 2), wall)[..., None].repeat(3, 2).astype(np.float32)
    return linear, np.where(near, 1.0, 10.0).astype(np.float32)


def test_background_blurs_without_halo_and_the_subject_stays() -> None:
    linear, depth = scene()
    out = focused(linear, depth, focus=1.0, blur=6.0)
    near = depth == 1
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out[near], linear[near])
    assert out[~near].std() < 0.5 * linear[~near].std()
    assert out[~near].max() < 0.6  # the square is 5 and more


def test_a_thing_before_the_focus_spreads_over_its_edge() -> None:
    linear, depth = scene()
    out = focused(linear, depth, focus=10.0, blur=3.0)
    assert np.abs(out[30, 24] - linear[30, 24]).max() > 0.2  # next to the square
    np.testing.assert_allclose(out[5, 5], linear[5, 5])  # far from it


def test_sky_blurs_and_a_closed_aperture_changes_nothing() -> None:
    linear, depth = scene()
    depth[depth == 10] = np.inf
    assert np.isfinite(focused(linear, depth, focus=1.0, blur=4.0)).all()
    assert focused(linear, depth, focus=1.0, blur=0.3) is linear
