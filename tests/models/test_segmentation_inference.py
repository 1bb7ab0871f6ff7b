"""Sliding windows, scales and flips, against views put together by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dafast.models import segmentation_inference
from dafast.models.segmentation import SegmentationConfig, SegmentationModel
from dafast.models.segmentation_inference import (
    SegmentationOptions,
    probabilities,
    segment,
    window_starts,
)
from dafast.ops import preprocess
from tests.models.test_segmentation import CLASSES, TINY, build
from tests.tolerances import TOLERANCES

NEAR = TOLERANCES[torch.float32].model


class Pointwise(nn.Module):
    """Logits that depend only on their own pixel, so that all views give one result."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SegmentationConfig(TINY, CLASSES)
        self.mix = nn.Conv2d(3, 3, 1)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.shapes: list[tuple[int, ...]] = []
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return 3 * self.mix(x)


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("trial", range(5))
def test_windows_cover_and_stay_inside(trial: int, rng: np.random.Generator) -> None:
    for _ in range(50):
        window = int(rng.integers(1, 60))
        length = window + int(rng.integers(0, 200))
        stride = int(rng.integers(1, window + 1))
        starts = window_starts(length, window, stride)
        covered = np.zeros(length, int)
        for start in starts:
            assert 0 <= start <= length - window
            covered[start : start + window] += 1
        assert covered.min() >= 1
        assert len(set(starts)) == len(starts)
        assert max(np.diff(starts), default=0) <= stride


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("options", [dict(window=28), dict(window=28, stride=5), dict(window=14)])
def test_a_pointwise_model_does_not_see_the_windows(
    options: dict, flip: bool, rng: np.random.Generator
) -> None:
    """Averages over windows in the wrong place, or of the wrong count, would show."""
    model = Pointwise()
    height, width = (int(n) for n in rng.integers(20, 120, 2))
    image = torch.from_numpy(photo(rng, height, width))
    whole = probabilities(model, image, SegmentationOptions(size=42))
    slid = probabilities(model, image, SegmentationOptions(size=42, flip=flip, **options))
    assert slid.shape == (3, height, width)
    assert (slid - whole).abs().max() < NEAR
    assert all(max(shape[2:]) <= options["window"] for shape in model.shapes[1:])


@pytest.mark.parametrize("head", ["linear", "dpt"])
def test_one_window_as_large_as_the_view_is_the_view(head: str, rng: np.random.Generator) -> None:
    model = build(head)
    image = torch.from_numpy(photo(rng, 28, 28))
    whole = probabilities(model, image)
    assert torch.equal(probabilities(model, image, SegmentationOptions(window=28)), whole)
    assert torch.equal(probabilities(model, image, SegmentationOptions(window=280)), whole)


def test_overlapping_windows_are_averaged(rng: np.random.Generator) -> None:
    """Two windows of 28 pixels, 14 apart, by hand."""
    model = build("linear")
    image = torch.from_numpy(photo(rng, 28, 42))
    x, _ = preprocess(image, size=28)
    left, right = model(x[..., :28])[0], model(x[..., 14:])[0]
    logits = torch.cat([left[..., :14], (left[..., 14:] + right[..., :14]) / 2, right[..., 14:]], 2)
    got = probabilities(model, image, SegmentationOptions(window=28, stride=14))
    assert (got - logits.softmax(0)).abs().max() < NEAR


@torch.no_grad()
def test_views_are_averaged_as_probabilities(rng: np.random.Generator) -> None:
    model = build("linear4")
    array = photo(rng, 28, 42)
    image = torch.from_numpy(array)
    expected = torch.zeros(3, 28, 42)
    for scale in (1.0, 2.0):
        for mirrored in (False, True):
            view = torch.from_numpy(np.ascontiguousarray(array[:, ::-1] if mirrored else array))
            x, _ = preprocess(view, size=int(28 * scale))
            logits = F.interpolate(model(x), (28, 42), mode="bilinear")[0]
            expected += (logits.flip(2) if mirrored else logits).softmax(0) / 4
    got = probabilities(model, image, SegmentationOptions(scales=(1.0, 2.0), flip=True))
    assert (got - expected).abs().max() < NEAR
    assert (got.sum(0) - 1).abs().max() < NEAR


def test_segment_gives_maps_of_the_photos_sizes(rng: np.random.Generator) -> None:
    model = build("linear")
    photos = [photo(rng, 30, 50), photo(rng, 61, 17)]
    maps = model.segment(photos)
    assert [m.shape for m in maps] == [(30, 50), (61, 17)]
    assert all(m.dtype == np.uint8 and m.max() < 3 for m in maps)
    alone = model.segment(photos[1])
    assert np.array_equal(alone, maps[1])
    best = probabilities(model, torch.from_numpy(photos[0])).argmax(0).numpy()
    assert np.array_equal(best, maps[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(window=20), "window=20: not a multiple"),
        (dict(window=28, stride=29), "stride=29: longer than the window"),
        (dict(stride=5), "stride=5: the distance between windows; set window too"),
        (dict(scales=()), "positive factors"),
        (dict(scales=(1.0, -1.0)), "positive factors"),
        (dict(size=-3), "must not be negative"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment(build("linear"), np.zeros((20, 20, 3), np.uint8), SegmentationOptions(**options))


def test_a_model_in_training_mode_is_refused() -> None:
    model = SegmentationModel(SegmentationConfig(TINY, CLASSES))
    with pytest.raises(ValueError, match=r"model\.eval"):
        model.segment(np.zeros((20, 20, 3), np.uint8))


def test_large_views_are_shown_in_batches_of_bounded_size(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three windows of five tokens.
    monkeypatch.setattr(segmentation_inference, "MAX_BATCH_TOKENS", 15)
    model = Pointwise()
    probabilities(
        model, torch.from_numpy(photo(rng, 56, 84)), SegmentationOptions(size=56, window=28)
    )
    assert max(shape[0] for shape in model.shapes) == 3
    assert sum(shape[0] for shape in model.shapes) == 3 * 4  # 56 and 84 pixels, 19 apart
