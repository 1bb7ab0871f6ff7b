"""Stereo pictures: two planes shift as predicted, layouts, and nearness."""

from __future__ import annotations

import numpy as np
import pytest

from dafast.views import LAYOUTS, Camera, nearness, render_view, stereo_pair, stereo_pictures


def scene(rng, height=40, width=100):
    """A photo, and two planes: a square at nearness 1 before a wall at nearness 0."""
    photo = rng.integers(0, 256, (height, width, 3), np.uint8)
    disparity = np.full((height, width), 2.0, np.float32)
    disparity[10:30, 40:60] = 7.0
    return photo, disparity


@pytest.mark.parametrize(
    ("divergence", "convergence", "square", "wall"),
    [(8, 0.5, 2, -2), (4, 0.0, 2, 0), (4, 1.0, 0, -2), (16, 0.25, 6, -2)],
)
def test_two_planes_shift_by_the_predicted_pixels(divergence, convergence, square, wall, rng):
    """s = divergence / 200 * width * (nearness - convergence), to the right in the left view."""
    photo, disparity = scene(rng)
    views = stereo_pair(
        photo, nearness(disparity), divergence=divergence, convergence=convergence, edge=0
    )
    for view, sign in zip(views, (1, -1), strict=True):
        shift = sign * square
        np.testing.assert_array_equal(view[10:30, 40 + shift : 60 + shift], photo[10:30, 40:60])
        shift = sign * wall
        inner = slice(10 + shift, 90 + shift)
        np.testing.assert_array_equal(view[:10, inner], photo[:10, 10:90])


def test_the_edge_moves_with_the_near_surface(rng):
    photo, disparity = scene(rng)
    left, _ = stereo_pair(photo, nearness(disparity), divergence=8, convergence=0, edge=2)
    np.testing.assert_array_equal(left[8:32, 42:66], photo[8:32, 38:62])


def test_divergence_0_is_the_identity(rng):
    photo, disparity = scene(rng)
    for view in stereo_pair(photo, nearness(disparity), divergence=0):
        np.testing.assert_array_equal(view, photo)


def test_a_flat_scene_does_not_move(rng):
    photo, _ = scene(rng)
    for view in stereo_pair(photo, np.full((40, 100), 0.5, np.float32), divergence=10):
        np.testing.assert_array_equal(view, photo)


def test_nearness_clips_outliers_and_takes_unknown_as_far():
    values = np.linspace(2, 4, 2000, dtype=np.float32).reshape(40, 50)
    values[0, 0], values[0, 1], values[0, 2] = 1000, np.nan, np.inf
    near = nearness(values)
    assert near.dtype == np.float32 and near[0, 0] == 1 and near[0, 1] == near[0, 2] == 0
    np.testing.assert_allclose(near[20, 0], 0.5, atol=0.01)
    assert not nearness(np.full((3, 4), 5.0)).any() and not nearness(np.full((3, 4), np.nan)).any()
    small = np.zeros((100, 100))
    small[0, 0] = 3  # fewer pixels than are clipped
    assert nearness(small)[0, 0] == 1


def test_layouts(rng):
    left, right = rng.integers(0, 256, (2, 6, 8, 3), np.uint8)
    pictures = {name: stereo_pictures(left, right, name) for name in LAYOUTS}
    assert {tuple(made) for made in pictures.values()} == set(LAYOUTS.values())
    np.testing.assert_array_equal(pictures["sbs"]["_SBS"], np.hstack([left, right]))
    np.testing.assert_array_equal(pictures["cross"]["_RL"], np.hstack([right, left]))
    np.testing.assert_array_equal(pictures["tb"]["_TB"], np.vstack([left, right]))
    np.testing.assert_array_equal(pictures["pair"]["_L"], left)
    np.testing.assert_array_equal(pictures["pair"]["_R"], right)
    half = pictures["half-sbs"]["_half_SBS"]
    pairs = np.hstack([left, right]).reshape(6, 8, 2, 3).astype(float).mean(2)
    assert half.shape == (6, 8, 3) and np.abs(half - pairs).max() <= 0.5


def test_anaglyph_shows_each_eye_its_view():
    """Red has the left view, green and blue have the right one; a gray pixel stays gray."""
    gray, black = np.full((2, 2, 3), 200, np.uint8), np.zeros((2, 2, 3), np.uint8)
    both = stereo_pictures(gray, gray, "anaglyph")["_anaglyph"]
    assert np.abs(both.astype(int) - 200).max() <= 8
    red = stereo_pictures(gray, black, "anaglyph")["_anaglyph"][0, 0]
    cyan = stereo_pictures(black, gray, "anaglyph")["_anaglyph"][0, 0]
    assert red[0] > 200 and max(red[1:]) == 0
    assert cyan[0] == 0 and min(cyan[1:]) > 200


def test_odd_and_tiny_photos(rng):
    for shape in ((1, 1), (1, 7), (5, 1), (3, 3)):
        photo = rng.integers(0, 256, (*shape, 3), np.uint8)
        near = rng.random(shape).astype(np.float32)
        left, right = stereo_pair(photo, near, divergence=20)
        for layout in LAYOUTS:
            assert stereo_pictures(left, right, layout)


def test_bad_values_are_refused(rng):
    photo, disparity = scene(rng)
    near = nearness(disparity)
    with pytest.raises(ValueError, match="per cent of the width"):
        stereo_pair(photo, near, divergence=50)
    with pytest.raises(ValueError, match="convergence=2"):
        stereo_pair(photo, near, convergence=2)
    with pytest.raises(ValueError, match="one size"):
        render_view(photo, near[:-1], Camera(right=3))
    with pytest.raises(ValueError, match="half-sbs"):
        stereo_pictures(photo, photo, "sidebyside")
