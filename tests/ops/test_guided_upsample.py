"""`guided_upsample`: edges of the photo, and C++ against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dafast.evaluation.metrics import boundary_f1
from dafast.ops import guided_upsample, use_backend
from tests.instruction_sets import CPP, needs_extension, threads
from tests.pairwise import grid

BACKENDS = ["reference", CPP]


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned):
    with use_backend(request.param):
        yield request.param


def scene(rng, height=96, width=128):
    """Disparity of boxes, and a photo in which each surface has its colour."""
    disparity = torch.full((1, 1, height, width), 0.2)
    photo = torch.full((1, 3, height, width), 0.5)
    for _ in range(10):
        top, left = int(rng.integers(0, height - 30)), int(rng.integers(0, width - 30))
        tall, wide = (int(n) for n in rng.integers(12, 30, 2))
        place = (..., slice(top, top + tall), slice(left, left + wide))
        disparity[place] = 0.25 + 0.7 * float(rng.random())
        photo[place] = torch.from_numpy(rng.random((1, 3, 1, 1)).astype(np.float32))
    return disparity, photo


def test_edges_are_those_of_the_photo(backend, rng):
    disparity, photo = scene(rng)
    photo = photo + 0.01 * torch.randn(photo.shape)
    small = F.interpolate(disparity, scale_factor=1 / 8, mode="area")
    plain = F.interpolate(small, size=photo.shape[-2:], mode="bilinear", align_corners=False)
    guided = guided_upsample(small, photo)
    mask = torch.ones(1, *photo.shape[-2:], dtype=torch.bool)
    f1 = [float(boundary_f1(1 / x[:, 0], 1 / disparity[:, 0], mask)) for x in (plain, guided)]
    error = [float((x - disparity).abs().mean()) for x in (plain, guided)]
    assert f1[1] > f1[0] + 0.2 and error[1] < error[0], (f1, error)


def test_a_constant_stays(backend, seed):
    out = guided_upsample(torch.full((1, 1, 5, 7), 3.0), torch.rand(1, 3, 40, 50))
    torch.testing.assert_close(out, torch.full((1, 1, 40, 50), 3.0))


def test_results_are_within_the_map(backend, seed):
    x = torch.rand(1, 1, 6, 8)
    out = guided_upsample(x, torch.rand(1, 3, 31, 47))
    assert out.min() >= x.min() - 1e-6 and out.max() <= x.max() + 1e-6


def test_a_photo_of_one_colour_gives_a_smooth_map(backend):
    """A ramp stays a ramp: the weights of distance are symmetric."""
    x = torch.arange(12.0).expand(1, 1, 12, 12).contiguous()
    out = guided_upsample(x, torch.full((1, 3, 96, 96), 0.5))[0, 0, 48]
    wanted = (torch.arange(96) + 0.5) / 8 - 0.5
    assert (out - wanted)[24:72].abs().max() < 0.1


@needs_extension
@grid(
    {
        "shape": [(1, 5, 7), (2, 1, 1), (1, 9, 4), (0, 3, 3)],
        "size": [(40, 57), (9, 4), (1, 13)],
        "channels": [1, 3],
        "dtype": [torch.float32, torch.uint8],
        "layout": ["contiguous", "channels_last"],
        "align_corners": [False, True],
    }
)
def test_cpp_matches_the_reference(shape, size, channels, dtype, layout, align_corners, poisoned):
    x = torch.rand(shape[0], 1, *shape[1:])
    guide = torch.rand(shape[0], channels, *size)
    guide = (guide * 255).byte() if dtype == torch.uint8 else guide
    if layout == "channels_last":
        guide = guide.contiguous(memory_format=torch.channels_last)
    options = dict(sigma=0.3, align_corners=align_corners)
    with use_backend("reference"):
        exact = guided_upsample(x.double(), guide, **options)
    with use_backend("cpp"):
        out = guided_upsample(x, guide, **options)
        with threads(3):
            again = guided_upsample(x, guide, **options)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)
    assert torch.equal(out, again)


@needs_extension
def test_opcheck(seed):
    inputs = (torch.rand(1, 1, 4, 5), torch.rand(1, 3, 9, 8), torch.rand(1, 3, 4, 5), 0.1, False)
    torch.library.opcheck(torch.ops.dafast.guided_upsample.default, inputs)


def test_gradient(seed):
    x = torch.rand(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    guide = torch.rand(1, 3, 6, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: guided_upsample(x, guide, sigma=0.3), [x])


@pytest.mark.parametrize(
    ("x", "guide", "sigma", "message"),
    [
        ((1, 2, 4, 5), (1, 3, 8, 9), 0.1, "x must be"),
        ((1, 1, 4, 5), (2, 3, 8, 9), 0.1, "guide must be"),
        ((1, 1, 4, 5), (1, 3, 0, 9), 0.1, "guide must be"),
        ((1, 1, 4, 5), (1, 3, 8, 9), 0.0, "sigma must be positive"),
    ],
)
def test_errors_name_what_was_given(x, guide, sigma, message):
    with pytest.raises(ValueError, match=message):
        guided_upsample(torch.zeros(x), torch.zeros(guide), sigma=sigma)
    with pytest.raises(ValueError, match="int64"):
        guided_upsample(torch.zeros(1, 1, 4, 5), torch.zeros(1, 3, 8, 9, dtype=torch.int64))
