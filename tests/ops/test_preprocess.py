"""Sizes, pixels and the way back, for both fits."""

import logging
import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dafast.config import IMAGENET_MEAN, IMAGENET_STD
from dafast.ops import pad, plan_geometry, postprocess, preprocess, resize_bilinear


def _official_size(width, height, size=518, multiple=14):
    """The official rule written out from its description, on numpy like the script."""
    scale = max(size / height, size / width)
    sides = []
    for side in (height, width):
        rounded = int(np.round(scale * side / multiple) * multiple)
        sides.append(
            rounded if rounded >= size else int(np.ceil(scale * side / multiple)) * multiple
        )
    return tuple(sides)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (400, 300, (518, 686)),
        (300, 400, (686, 518)),
        (518, 518, (518, 518)),
        (640, 480, (518, 686)),
        (1920, 1080, (518, 924)),
        (1242, 375, (518, 1722)),
        (1000, 100, (518, 5180)),
        (37, 41, (574, 518)),
    ],
)
def test_official_sizes(width, height, expected):
    geometry = plan_geometry(height, width, fit="official", max_tokens=10**6)
    assert geometry.resized == geometry.network == expected == _official_size(width, height)
    assert geometry.padding == (0, 0, 0, 0)


def test_official_sizes_at_random(seed):
    rng = np.random.default_rng(seed)
    for width, height in rng.integers(20, 4000, (300, 2)):
        if max(width / height, height / width) < 5:
            geometry = plan_geometry(int(height), int(width), fit="official")
            assert geometry.network == _official_size(int(width), int(height))


def test_pad_sizes_at_random(seed):
    rng = np.random.default_rng(seed)
    for width, height in rng.integers(30, 4000, (300, 2)):
        if max(width / height, height / width) > 5:
            continue
        g = plan_geometry(int(height), int(width))
        scale = 518 / min(width, height)
        assert min(g.resized) == 518
        assert max(g.resized) == round(max(width, height) * scale)
        left, right, top, bottom = g.padding
        assert (right - left, bottom - top) in {(0, 0), (0, 1), (1, 0), (1, 1)}
        assert g.network == (g.resized[0] + top + bottom, g.resized[1] + left + right)
        assert g.network[0] % 14 == g.network[1] % 14 == 0
        assert max(left + right, top + bottom) < 14


@pytest.mark.parametrize("fit", ["pad", "official"])
@pytest.mark.parametrize(("height", "width"), [(500, 10000), (10000, 500), (1, 100000), (7, 9000)])
def test_panoramas_are_scaled_down_with_a_warning(height, width, fit, caplog):
    with caplog.at_level(logging.WARNING, logger="dafast"):
        geometry = plan_geometry(height, width, fit=fit)
    assert "scaled down" in caplog.text
    tokens = geometry.network[0] * geometry.network[1] // 196 + 1
    assert 0.6 * 8192 < tokens <= 8192  # one row of patches more or less is much here
    assert min(geometry.network) >= 14
    smaller = plan_geometry(height, width, fit=fit, max_tokens=1000)
    assert smaller.network[0] * smaller.network[1] // 196 + 1 <= 1000


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 5), {}, "at least one pixel"),
        ((5, 5), {"fit": "strech"}, "use one of pad, official"),
        ((5, 5), {"size": 7}, "smaller than a patch"),
        ((5, 5), {"max_tokens": 1}, "max_tokens"),
    ],
)
def test_bad_geometry(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        plan_geometry(*arguments, **options)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (1333, 777), (60, 50), (518, 518)])
def test_official_pixels_match_opencv(height, width, seed):
    """The official transform in numpy and OpenCV, step by step."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    x, (geometry,) = preprocess(torch.from_numpy(image), fit="official")
    rows, columns = geometry.network
    resized = cv2.resize(
        image.astype(np.float32) / 255, (columns, rows), interpolation=cv2.INTER_CUBIC
    )
    expected = (resized - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert x.shape == (1, 3, rows, columns)
    # 1e-4 on pixel values in 0..1; normalisation divides by 0.22 at least.
    assert np.abs(x[0].permute(1, 2, 0).numpy() - expected).max() < 1e-4 / min(IMAGENET_STD)


@pytest.mark.parametrize("padding", ["constant", "replicate", "reflect"])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (900, 700), (60, 50)])
def test_pad_pixels(height, width, padding, seed):
    image = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )
    x, (g,) = preprocess(image, padding=padding)
    left, _, top, _ = g.padding
    inner = x[..., top : top + g.resized[0], left : left + g.resized[1]]
    as_float = image.permute(2, 0, 1)[None].float() / 255
    expected = F.interpolate(as_float, g.resized, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(inner, (expected - mean) / std, atol=2e-5, rtol=0)
    if left:
        want = {"constant": torch.zeros(()), "replicate": inner[..., 0], "reflect": inner[..., 1]}
        column = x[..., top : top + g.resized[0], left - 1]
        torch.testing.assert_close(column, want[padding].expand_as(column))
    floats, _ = preprocess(as_float[0], padding=padding)
    torch.testing.assert_close(floats, x, atol=2e-5, rtol=0)


@pytest.mark.parametrize("fit", ["pad", "official"])
@pytest.mark.parametrize(("height", "width"), [(480, 643), (91, 70), (518, 518)])
def test_postprocess_undoes_preprocess(height, width, fit):
    """A linear ramp survives the way there and back, borders aside."""
    ramp = torch.linspace(0, 1, width).expand(3, height, width).contiguous()
    x, geometries = preprocess(ramp, fit=fit, mean=(0, 0, 0), std=(1, 1, 1))
    (back,) = postprocess(x[:, 0], geometries)
    assert back.shape == (height, width) and back.dtype == torch.float32
    margin = math.ceil(2 + 2 * width / 518)
    error = (back - ramp[0])[:, margin:-margin].abs().max()
    assert error < 2 / width


def test_batch_and_mixed_sizes():
    a, b = torch.rand(3, 100, 140), torch.rand(3, 200, 280)
    x, geometries = preprocess([a, b], size=140, dtype=torch.bfloat16)
    assert x.shape == (2, 3, 140, 196) and x.dtype == torch.bfloat16
    maps = postprocess(x[:, 0], geometries)
    assert [tuple(m.shape) for m in maps] == [(100, 140), (200, 280)]
    with pytest.raises(ValueError, match="one network size"):
        preprocess([a, torch.rand(3, 140, 100)])
    with pytest.raises(ValueError, match="at least one image"):
        preprocess([])
    with pytest.raises(ValueError, match="the geometry says"):
        postprocess(x[:, 0, :14], geometries)


@pytest.mark.parametrize(
    "image", [torch.zeros(5, 5), torch.zeros(5, 5, 3), torch.zeros(3, 5, 5).int()]
)
def test_bad_image(image):
    with pytest.raises(ValueError, match="preprocess needs uint8"):
        preprocess(image)


def test_pad_and_resize_options():
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert pad(x, (1, 2, 0, 1), mode="replicate")[0, 0, -1].tolist() == [8, 8, 9, 10, 11, 11, 11]
    with pytest.raises(ValueError, match="use mode='replicate'"):
        pad(x, (4, 0, 0, 0), mode="reflect")
    with pytest.raises(ValueError, match="use one of replicate"):
        pad(x, (1, 0, 0, 0), mode="edge")
    corners = resize_bilinear(x, (5, 7), align_corners=True)
    assert corners[0, 0, 0, -1] == 3 and corners[0, 0, -1, -1] == 11
