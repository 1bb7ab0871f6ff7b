"""Tiles: the layout of a whole pass, the detail of many, no seams, bounded memory."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dafast.evaluation.alignment import align
from dafast.evaluation.metrics import boundary_f1, depth_errors
from dafast.models import DepthAnything
from dafast.models.inference import InferenceOptions
from dafast.models.tiles import OVERLAP, predict_tiled, starts_of, tile_side
from tests.tiny import TINY, tiny

SIDE = 64


class Blurred(DepthAnything):
    """A network that sees the disparity which its input shows, at the resolution of a patch.

    As a real one it blurs, and gives every input another scale and shift.
    """

    def forward(self, x, *args, **kwargs):
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.config.mean, self.config.std))
        shown = (x * std + mean).mean(1, keepdim=True)
        blurred = F.avg_pool2d(shown, 5, stride=1, padding=2, count_include_pad=False)
        low, high = blurred.amin((1, 2, 3), True), blurred.amax((1, 2, 3), True)
        out = (0.1 + (blurred - low) / (high - low + 0.05))[:, 0]
        return 1 / out if self.config.quantity != "disparity" else out


@pytest.fixture(params=[{}, dict(kind="depth", output="exp"), dict(max_depth=10.0)])
def model(request):
    return Blurred(tiny(image_size=84, **request.param)).eval()


def scene(rng, height=300, width=400):
    """A floor with boxes, and a photo whose brightness is the disparity."""
    rows, _ = np.mgrid[:height, :width]
    disparity = 0.1 + 0.25 * rows / height
    for _ in range(14):
        top, left = rng.integers(0, height - 60), rng.integers(0, width - 60)
        tall, wide = rng.integers(20, 60, 2)
        box = disparity[top : top + tall, left : left + wide]
        np.maximum(box, 0.15 + 0.8 * rng.random(), out=box)
    photo = np.repeat((disparity * 255)[..., None], 3, 2).round().astype(np.uint8)
    return photo, 1 / disparity


def scores(values, depth, quantity):
    disparity = values if quantity == "disparity" else 1 / values
    maps = (np.asarray(a, np.float64) for a in (disparity, depth))
    prediction, truth = (torch.from_numpy(a)[None] for a in maps)
    mask = torch.ones_like(truth, dtype=torch.bool)
    aligned = align(prediction, truth, mask, max_depth=100.0)
    f1 = boundary_f1(aligned, truth, mask)
    return float(depth_errors(aligned, truth, mask)["abs_rel"]), float(f1)


def test_boundaries_gain_and_the_layout_stays(model, fixed_rng):
    photo, depth = scene(fixed_rng)
    quantity = model.config.quantity
    whole = scores(model.predict(photo).values, depth, quantity)
    tiled = scores(model.predict(photo, tile=110).values, depth, quantity)
    assert tiled[0] <= whole[0] and tiled[1] > 1.5 * whole[1], (whole, tiled)


@pytest.mark.slow
def test_guided_maps_have_the_edges_of_the_photo(model, fixed_rng):
    """With tiles F1 grows 1.9 to 2.9 times, depending on the scene."""
    photo, depth = scene(fixed_rng)
    quantity = model.config.quantity
    for tile in (None, 110):
        plain, guided = (
            scores(model.predict(photo, tile=tile, guided=way).values, depth, quantity)
            for way in (False, True)
        )
        # Of many scenes the error changes by -2 to +16 per cent.
        assert guided[0] <= 1.4 * plain[0] and guided[1] > 2 * plain[1], (tile, plain, guided)


@pytest.mark.slow
def test_no_seams(fixed_rng):
    """Across the borders of tiles the map is as smooth as next to them.

    The ratio of two means of few lines varies by 3 per cent.
    """
    model = Blurred(tiny(image_size=84)).eval()
    borders, nearby = [], []
    for _ in range(6):
        _, depth = scene(fixed_rng)
        side = int(fixed_rng.integers(90, 150))
        photo = np.repeat((1 / depth)[..., None], 3, 2).astype(np.float32)
        values = model.predict(photo, tile=side).values.astype(np.float64)
        for axis, length in enumerate(values.shape):
            steps = np.abs(np.diff(values, axis=axis))
            steps = np.minimum(steps, np.quantile(steps, 0.9)).mean(1 - axis)
            starts = starts_of(length, side)
            for line in {s - 1 for s in starts[1:]} | {s + side - 1 for s in starts[:-1]}:
                borders.append(steps[line])
                sides = steps[max(0, line - 16) : line - 1], steps[line + 2 : line + 17]
                nearby.append(np.concatenate(sides).mean())
    assert np.sum(borders) / np.sum(nearby) <= 1.05


def test_a_flat_photo_is_flat(model):
    photo = np.full((200, 300, 3), 90, np.uint8)
    whole, tiled = (model.predict(photo, tile=tile).values for tile in (None, 100))
    np.testing.assert_allclose(tiled, whole, rtol=1e-4)


@pytest.mark.parametrize("shape", [(61, 200), (200, 61), (64, 65), (130, 131), (30, 500)])
def test_every_pixel_is_finite(shape, rng):
    model = DepthAnything(TINY).eval()
    photo = rng.integers(0, 256, (*shape, 3), np.uint8)
    values = model.predict(photo, tile=SIDE).values
    assert values.shape == shape and np.isfinite(values).all()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 112, 113, 1000])
def test_starts_cover_the_length_with_overlap(length):
    starts = starts_of(length, SIDE)
    assert starts[0] == 0 and starts[-1] == max(0, length - SIDE)
    assert all(b - a <= SIDE * (1 - OVERLAP) for a, b in itertools.pairwise(starts))


def test_auto_bounds_the_number_of_tiles():
    assert tile_side((400, 600), 518, "auto") is None
    assert tile_side((3000, 4000), 518, "auto") == 1295
    side = tile_side((8660, 11547), 518, "auto")  # 100 megapixels
    assert len(starts_of(11547, side)) <= 9 and len(starts_of(8660, side)) <= 9


def test_small_photos_take_one_pass(rng):
    model = DepthAnything(TINY).eval()
    photo = rng.integers(0, 256, (40, 50, 3), np.uint8)
    whole, auto, side = (model.predict(photo, tile=tile).values for tile in (None, "auto", 64))
    np.testing.assert_array_equal(auto, whole)
    np.testing.assert_array_equal(side, whole)


def test_floating_point_photos_and_lists(rng):
    model = DepthAnything(TINY).eval()
    photo = rng.integers(0, 256, (90, 120, 3), np.uint8)
    one, two = model.predict([photo, photo.astype(np.float32) / 255], tile=SIDE)
    np.testing.assert_allclose(one.values, two.values, rtol=1e-3, atol=1e-4)
    assert one.image.shape == (90, 120, 3)


@pytest.mark.parametrize(
    ("tile", "message"), [("big", "use 'auto'"), (20, "4 x 4 patches"), (1.5, "whole number")]
)
def test_bad_tiles_are_refused(tile, message, rng):
    with pytest.raises(ValueError, match=message):
        DepthAnything(TINY).predict(np.zeros((90, 120, 3), np.uint8), tile=tile)


def peak_of(rows, columns=1024):
    """Bytes of numpy and Python on top of the photo, and of PyTorch's result, that tiling takes."""
    model = Blurred(tiny(image_size=28)).eval()
    photo = np.zeros((rows, columns, 3), np.uint8)
    photo[::7] = 99
    largest = 0
    empty = torch.zeros

    def zeros(*shape, **options):
        nonlocal largest
        out = empty(*shape, **options)
        largest = max(largest, out.numel())
        return out

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "zeros", zeros)
        tracemalloc.start()
        predict_tiled(model, photo, InferenceOptions(), 256)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak, largest


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height():
    """Only the result does, which the photo's own size determines."""
    short, tall = peak_of(512), peak_of(4096)
    assert tall[1] == short[1]
    assert tall[0] < 1.2 * short[0] + 100_000


@pytest.mark.exhaustive
def test_100_megapixels():
    """The peak of the process: the photo, the map, and less than 400 MiB."""
    import resource

    model = DepthAnything(TINY).eval()
    photo = np.zeros((8660, 11547, 3), np.uint8)
    photo[::50] = 200
    model.predict(photo[:1000, :1000], tile=500, keep_image=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = model.predict(photo, tile=1600, keep_image=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert np.isfinite(result.values).all()
    print(f"{(peak - before - result.values.nbytes - photo.nbytes) / 2**20:.0f} MiB")
    assert peak - before < result.values.nbytes + photo.nbytes + 400 * 2**20
