"""The runtime's resizes and rules against the ops of the PyTorch path."""

import numpy as np
import pytest
import torch

from dafast.geometry import FITS, plan_geometry
from dafast.ops import postprocess, preprocess, resize_bicubic, resize_bilinear
from dafast.ops.resize_area import resize_area
from dafast.runtime import resizing
from dafast.runtime.model import fixed_geometry

CLOSE = 1e-4  # of values in 0..1


def sizes(seed, count, least=1, most=300):
    return np.random.default_rng(seed).integers(least, most, (count, 2)).tolist()


def test_matrices_are_those_of_the_ops(seed):
    random = np.random.default_rng(seed)
    for source, target in sizes(seed, 20):
        row = random.random((1, source), dtype=np.float32)
        x = torch.from_numpy(row)[None, None]
        for matrix, true in (
            (resizing.antialiased_matrix, resize_bilinear(x, (1, target), antialias=True)),
            (resizing.cubic_matrix, resize_bicubic(x, (1, target))),
            (resizing.bilinear_matrix, resize_bilinear(x, (1, target))),
        ):
            out = row @ matrix(source, target).T
            assert np.abs(out - true[0, 0].numpy()).max() <= CLOSE, (matrix, source, target)
        corners = resizing.bilinear_matrix(source, target, align_corners=True)
        true = resize_bilinear(x, (1, target), align_corners=True)
        assert np.abs(row @ corners.T - true[0, 0].numpy()).max() <= CLOSE, (source, target)
        if target <= source:
            out = row @ resizing.area_matrix(source, target).T
            assert np.abs(out - resize_area(torch.from_numpy(row), (1, target)).numpy()).max() <= (
                CLOSE
            )


@pytest.mark.parametrize("fit", FITS)
def test_photos_are_resized_as_the_ops_resize_them(fit, seed):
    random = np.random.default_rng(seed)
    for height, width in sizes(seed, 6, 15, 250):
        photo = random.random((height, width, 3), dtype=np.float32)
        geometry = plan_geometry(height, width, size=70, fit=fit)
        x, _ = preprocess(
            torch.from_numpy(photo).permute(2, 0, 1), size=70, fit=fit, mean=(0,) * 3, std=(1,) * 3
        )
        left, _, top, _ = geometry.padding
        rows, columns = geometry.resized
        true = x[0, :, top : top + rows, left : left + columns].numpy()
        assert np.abs(resizing.resize_photo(photo, geometry, fit) - true).max() <= CLOSE


def test_uint8_photos_are_rounded_between_the_two_resizes():
    # Few sizes and no new pictures: a value at .5 may be rounded either way.
    photo = np.random.default_rng(1).integers(0, 256, (90, 61, 3), dtype=np.uint8)
    geometry = plan_geometry(90, 61, size=70, fit="upper_bound")
    x, _ = preprocess(
        torch.from_numpy(photo), size=70, fit="upper_bound", mean=(0,) * 3, std=(1,) * 3
    )
    out = resizing.resize_photo(photo, geometry, "upper_bound")
    assert np.abs(out - x[0].numpy()).max() <= CLOSE
    assert np.abs(out * 255 - (out * 255).round()).max() < 1e-3


def test_maps_are_resized_as_the_ops_resize_them(seed):
    random = np.random.default_rng(seed)
    for size in sizes(seed, 6, 1, 120):
        values = random.random((56, 70), dtype=np.float32)
        geometry = plan_geometry(*size, size=56, fit="official", max_tokens=2**30)
        network = random.random(geometry.network, dtype=np.float32)
        for align_corners in (False, True):
            true = postprocess(
                torch.from_numpy(network)[None], [geometry], align_corners=align_corners
            )[0].numpy()
            out = resizing.resize_map(network, tuple(size), align_corners)
            assert np.abs(out - true).max() <= CLOSE
        assert resizing.resize_map(values, values.shape, False) is values


def test_photos_fit_into_fixed_inputs(seed):
    for height, width in sizes(seed, 50, 1, 2000):
        geometry = fixed_geometry(height, width, (140, 210))
        rows, columns = geometry.resized
        left, right, top, bottom = geometry.padding
        assert (rows + top + bottom, columns + left + right) == (140, 210)
        assert min(left, right, top, bottom) >= 0
        assert rows == 140 or columns == 210
