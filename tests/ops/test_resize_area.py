"""The area resize of Depth Anything 3, against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from dafast.geometry import plan_geometry
from dafast.ops.resize_area import resize_area, resize_in_two

SIZES = [((40, 60), (20, 30)), ((41, 67), (14, 28)), ((30, 50), (30, 23)), ((9, 7), (1, 1))]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_equals_opencv(source, target, rng):
    plane = rng.random(source, dtype=np.float32)
    expected = cv2.resize(plane, target[::-1], interpolation=cv2.INTER_AREA)
    got = resize_area(torch.from_numpy(plane), target)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(90, 131), (30, 44)], ids=["shrinks", "grows"])
def test_two_resizes_equal_opencv(dtype, shape, rng):
    values = rng.integers(0, 256, (*shape, 3), np.uint8)
    photo = values if dtype == np.uint8 else (values / np.float32(255)).astype(np.float32)
    geometry = plan_geometry(*shape, size=56, multiple=14, fit="upper_bound")
    expected = photo
    for height, width in (geometry.first, geometry.resized):
        grows = height > expected.shape[0] or width > expected.shape[1]
        how = cv2.INTER_CUBIC if grows else cv2.INTER_AREA
        if (height, width) != expected.shape[:2]:
            expected = cv2.resize(expected, (width, height), interpolation=how)
    got = resize_in_two(torch.from_numpy(photo).permute(2, 0, 1), geometry)
    assert got.shape == (3, *geometry.resized) and got.numpy().dtype == dtype
    difference = got.float().numpy() - expected.transpose(2, 0, 1).astype(np.float32)
    # OpenCV computes uint8 in fixed point, which may round the other way, twice.
    assert np.abs(difference).max() <= (2 if dtype == np.uint8 else 1e-5)
