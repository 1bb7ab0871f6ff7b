"""Geometry is tested with images that carry their own coordinates in their colours."""

from __future__ import annotations

import numpy as np
import pytest

from dafast.data.shards import minmax
from dafast.data.transforms import (
    AugmentConfig,
    TrainTransform,
    resize_nearest,
    sample_generator,
)

GEOMETRY = [
    AugmentConfig(crop="paper"),
    AugmentConfig(crop="resized", area=(0.35, 1.0)),
    AugmentConfig(crop="resized", area=(0.2, 0.5), aspect_jitter=1.3),
]


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with column in red and row in green, and as disparity both in one number."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * (x + 0.5) / width, 255 * (y + 0.5) / height
    image = np.stack([red, green, np.zeros_like(red)], -1)
    return np.rint(image).astype(np.uint8), (y * width + x).astype(np.float32), x % 7 > 0


@pytest.mark.parametrize("config", GEOMETRY, ids=["paper", "resized", "bent"])
@pytest.mark.parametrize("size", [(240, 320), (320, 240), (180, 320), (256, 256), (97, 101)])
@pytest.mark.parametrize("shape", [(168, 168), (168, 294), (224, 168)])
def test_image_and_labels_move_together(
    config: AugmentConfig, size: tuple[int, int], shape: tuple[int, int], seed: int
) -> None:
    height, width = size
    image, disparity, mask = coordinates(height, width)
    for position in range(6):
        rng = sample_generator(seed, position)
        pixels, d, m = TrainTransform(config)(image, disparity, mask, shape, rng)
        assert pixels.shape == (*shape, 3)
        assert d.shape == m.shape == shape
        assert (pixels.dtype, d.dtype, m.dtype) == (np.uint8, np.float32, bool)
        assert np.isin(d, disparity).all(), "disparity values are never mixed"
        index = d.astype(np.int64)
        x, y = index % width, index // width
        assert np.array_equal(m, mask[y, x]), "the mask moves with the disparity"
        # How far the colours are from those of the source pixel that the label was taken from: to
        # a pixel, and on average none. (Its colours as stored: 8 bits of a ramp of 256 rows are off
        # by up to half a row, all to one side.) The outermost rows and columns are left out: the
        # filter is cut off at the border there.
        inner = (slice(3, -3), slice(3, -3))
        off = (pixels.astype(np.float64) - image[y, x])[inner] / 255
        off_x, off_y = off[..., 0] * width, off[..., 1] * height
        assert np.abs(off_x).max() < 1.5 + width / 255
        assert np.abs(off_y).max() < 1.5 + height / 255
        assert abs(off_x.mean()) < 0.3
        assert abs(off_y.mean()) < 0.3


def test_flip_alone_is_exact(seed: int) -> None:
    image, disparity, mask = coordinates(168, 224)
    transform = TrainTransform(AugmentConfig(flip=1.0))
    pixels, d, m = transform(image, disparity, mask, (168, 224), sample_generator(seed, 0))
    assert np.array_equal(pixels, image[:, ::-1])
    assert np.array_equal(d, disparity[:, ::-1])
    assert np.array_equal(m, mask[:, ::-1])


def test_paper_crop_of_a_square_keeps_the_shorter_side(seed: int) -> None:
    image, disparity, mask = coordinates(240, 320)
    transform = TrainTransform(AugmentConfig(flip=0.0))
    lefts = set()
    for position in range(30):
        _, d, _ = transform(image, disparity, mask, (168, 168), sample_generator(seed, position))
        index = d.astype(np.int64)
        assert (index // 320).min() == 0
        assert (index // 320).max() == 239
        columns = index % 320
        assert columns.max() - columns.min() in (238, 239, 240)
        lefts.add(int(columns.min()))
    assert len(lefts) > 5


def test_area_and_aspect_of_the_resized_crop(seed: int) -> None:
    image, disparity, mask = coordinates(240, 320)
    transform = TrainTransform(AugmentConfig(crop="resized", area=(0.3, 0.6), flip=0.0))
    for position in range(30):
        _, d, _ = transform(image, disparity, mask, (168, 168), sample_generator(seed, position))
        index = d.astype(np.int64)
        height = int((index // 320).max() - (index // 320).min()) + 1
        width = int((index % 320).max() - (index % 320).min()) + 1
        assert abs(height - width) <= 3
        assert 0.3 * 0.95 <= height * width / 240**2 <= 0.6 * 1.05


def test_flip_probability(seed: int) -> None:
    image, disparity, mask = coordinates(14, 14)
    transform = TrainTransform(AugmentConfig(flip=0.25))
    flips = 0
    for position in range(600):
        rng = sample_generator(seed, position)
        flips += transform(image, disparity, mask, (14, 14), rng)[1][0, 0] > 0
    assert 90 < flips < 210  # 5.6 standard deviations around 150


def test_same_generator_same_sample(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    disparity, mask = rng.random((60, 80), np.float32), rng.random((60, 80)) > 0.5
    config = AugmentConfig(crop="resized", rotate=5.0)

    def make(position: int) -> np.ndarray:
        generator = sample_generator(seed, position)
        return TrainTransform(config)(image, disparity, mask, (42, 56), generator)[0]

    assert np.array_equal(make(7), make(7))
    assert not np.array_equal(make(7), make(8))


def test_resize_nearest_picks_centres() -> None:
    values = np.arange(16.0).reshape(4, 4)
    assert resize_nearest(values, (2, 2)).tolist() == [[5, 7], [13, 15]]
    assert np.array_equal(resize_nearest(values, (4, 4)), values)
    assert np.array_equal(resize_nearest(values, (8, 8)), values.repeat(2, 0).repeat(2, 1))


def test_minmax(seed: int) -> None:
    rng = np.random.default_rng(seed)
    disparity = rng.uniform(3, 900, (30, 40)).astype(np.float32)
    mask = rng.random((30, 40)) > 0.3
    disparity[~mask] = np.nan
    result = minmax(disparity, mask)
    assert result[mask].min() == 0.0
    assert result[mask].max() == pytest.approx(1.0)
    assert (result[~mask] == 0).all()
    low, high = disparity[mask].min(), disparity[mask].max()
    expected = (disparity[mask] - low) / (high - low)
    np.testing.assert_allclose(result[mask], expected, atol=1e-6)
    assert (minmax(np.full((3, 3), 7.0, np.float32), np.ones((3, 3), bool)) == 0).all()
    assert (minmax(disparity, np.zeros_like(mask)) == 0).all()


@pytest.mark.parametrize("config", GEOMETRY, ids=["paper", "resized", "bent"])
@pytest.mark.parametrize("scale", [0.5, 2])
def test_labels_of_another_resolution_move_along(
    config: AugmentConfig, scale: float, seed: int
) -> None:
    image, _, _ = coordinates(240, 320)
    height, width = round(240 * scale), round(320 * scale)
    _, disparity, mask = coordinates(height, width)
    for position in range(6):
        rng = sample_generator(seed, position)
        pixels, d, m = TrainTransform(config)(image, disparity, mask, (168, 196), rng)
        index = d.astype(np.int64)
        x, y = index % width, index // width
        assert np.array_equal(m, mask[y, x])
        colour_x = 255 * (x + 0.5) / width
        colour_y = 255 * (y + 0.5) / height
        inner = (slice(3, -3), slice(3, -3))
        assert np.abs(pixels[..., 0] - colour_x)[inner].max() < 255 * 1.5 / min(width, 320) + 1
        assert np.abs(pixels[..., 1] - colour_y)[inner].max() < 255 * 1.5 / min(height, 240) + 1


def test_colours_are_left_aside(seed: int) -> None:
    """They are changed later, in batches: the settings of one have no say in the geometry."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    disparity, mask = rng.random((60, 80), np.float32), rng.random((60, 80)) > 0.5
    strong = TrainTransform(AugmentConfig(crop="resized", jitter=1, grayscale=1, blur=1, noise=1))
    plain = TrainTransform(AugmentConfig(crop="resized"))
    ours = strong(image, disparity, mask, (42, 56), sample_generator(seed, 3))
    theirs = plain(image, disparity, mask, (42, 56), sample_generator(seed, 3))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("label_scale", [1, 2])
def test_rotation_turns_picture_and_label_alike(seed: int, label_scale: int) -> None:
    """Colours say where a pixel came from, and so does its label; the corners are not valid."""
    height, width = 120, 160
    image, _, _ = coordinates(height, width)
    rows, columns = height * label_scale, width * label_scale
    _, label, mask = coordinates(rows, columns)
    transform = TrainTransform(AugmentConfig(rotate=20.0, flip=0.0))
    turned = 0
    for position in range(5):
        rng = sample_generator(seed, position)
        pixels, d, m = transform(image, label, mask, (height, width), rng)
        index = d.astype(np.int64)
        y, x = index // columns, index % columns
        red, green = 255 * (x + 0.5) / columns, 255 * (y + 0.5) / rows
        inside = m & (pixels[..., :2].min(-1) > 8)  # the border mixes with black
        assert np.abs(pixels[..., 0] - red)[inside].max() < 6
        assert np.abs(pixels[..., 1] - green)[inside].max() < 6
        outside = ~m & (index == 0)
        turned += outside.sum() > 100
    assert turned >= 2
    same = transform(image, label, mask, (height, width), sample_generator(seed, 0))
    again = transform(image, label, mask, (height, width), sample_generator(seed, 0))
    assert all(np.array_equal(a, b) for a, b in zip(same, again, strict=True))
