"""The boxes of CutMix: one rectangle, of the shares and aspects that were asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dafast.data.cutmix import cutmix_region

SHAPES = [(168, 168), (168, 294), (294, 168), (518, 518), (14, 280)]


def box(region: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height and width of the False part; checks that it is a rectangle."""
    rows, columns = np.nonzero(~region)
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    assert not region[top : top + height, left : left + width].any()
    assert len(rows) == height * width
    return top, left, height, width


@pytest.mark.parametrize("shape", SHAPES)
def test_box_is_a_rectangle_of_the_share_asked_for(
    shape: tuple[int, int], rng: np.random.Generator
) -> None:
    for _ in range(100):
        region = cutmix_region(shape, rng, probability=1.0, area=(0.02, 0.4), aspect=0.3)
        assert region.shape == shape
        assert region.dtype == bool
        _, _, height, width = box(region)
        rounding = (height + width + 1) / (shape[0] * shape[1])
        share = 1 - region.mean()
        assert 0.02 - rounding <= share <= 0.4 + rounding
        bent = height == shape[0] or width == shape[1]
        slack = 1 + 1 / min(height, width)
        assert bent or 0.3 / slack <= height / width <= slack / 0.3


def test_boxes_are_everywhere_and_in_both_directions(rng: np.random.Generator) -> None:
    shape = (50, 70)
    regions = [cutmix_region(shape, rng, probability=1.0) for _ in range(1500)]
    covered = np.mean([~region for region in regions], axis=0)
    assert covered.any(axis=0).all()
    assert covered.any(axis=1).all()
    boxes = [box(region) for region in regions]
    tall = np.mean([height > width for _, _, height, width in boxes])
    assert 0.35 < tall < 0.65
    shares = np.array([height * width for _, _, height, width in boxes]) / (50 * 70)
    assert shares.mean() == pytest.approx(0.21, abs=0.03)
    bends = [math.log(height / width) for _, _, height, width in boxes]
    assert min(bends) < math.log(0.5)
    assert max(bends) > math.log(2)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_probability(probability: float, rng: np.random.Generator) -> None:
    mixed = [not cutmix_region((28, 28), rng, probability=probability).all() for _ in range(600)]
    assert abs(np.mean(mixed) - probability) < 0.11, "5 standard deviations"


def test_a_function_of_the_generator(seed: int) -> None:
    def draw(seed: int, probability: float) -> tuple[np.ndarray, float]:
        rng = np.random.default_rng(seed)
        return cutmix_region((42, 56), rng, probability=probability), rng.random()

    first, then = draw(seed, 1.0)
    assert np.array_equal(first, draw(seed, 1.0)[0])
    assert then == draw(seed, 0.0)[1], "as many numbers are drawn when nothing is mixed"
