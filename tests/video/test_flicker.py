"""Optical flow, unchanged pixels, cuts, and the flicker number."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dafast.optional import MissingPackageError
from dafast.video.cuts import CutDetector, luma, reduced, unchanged
from dafast.video.flicker import FlickerMeter, measure
from dafast.video.flow import optical_flow, warp
from dafast.video.stabilization import make_stabilizer
from tests.video.scenes import filmed, scene

SIZE = (60, 80)


def test_flow_of_a_shifted_picture(fixed_rng):
    picture, _ = scene(fixed_rng, 80, 120)
    grey = luma(picture.astype(np.float32))
    x, y = (int(n) for n in fixed_rng.integers(-3, 4, 2))
    here, there = grey[10:70, 10:110], grey[10 - y : 70 - y, 10 - x : 110 - x]
    flow = optical_flow(here, there)
    assert flow.shape == (60, 100, 2)
    np.testing.assert_allclose(np.median(flow[8:-8, 8:-8], (0, 1)), [x, y], atol=0.2)
    inner = np.s_[8:-8, 8:-8]
    error = np.abs(warp(there, flow) - here)[inner]
    assert np.nanmedian(error) < 0.3 * np.median(np.abs(there - here)[inner]) + 1


def test_warp_is_bilinear_and_tells_what_is_outside(rng):
    image = rng.random((7, 9)).astype(np.float32)
    np.testing.assert_array_equal(warp(image, np.zeros((7, 9, 2), np.float32)), image)
    flow = np.zeros((7, 9, 2), np.float32)
    flow[..., 0] = 0.25
    moved = warp(image, flow)
    expected = 0.75 * image[:, :-1] + 0.25 * image[:, 1:]
    np.testing.assert_allclose(moved[:, :-1], expected, rtol=0, atol=1e-6)
    assert np.isnan(moved[:, -1]).all()
    flow[3, 3] = np.nan
    assert np.isnan(warp(image, flow)[3, 3])


def test_unchanged_is_what_stays_but_for_noise_and_brightness(fixed_rng):
    picture, _ = scene(fixed_rng, *SIZE)
    one, other = (luma(filmed(fixed_rng, p).astype(np.float32)) for p in (picture, picture))
    assert unchanged(one, other + 20).mean() > 0.95
    other[20:40, 30:50] = 255 - other[20:40, 30:50]
    same = unchanged(one, other)
    assert same[:15].mean() > 0.95 and same[24:36, 34:46].mean() < 0.35
    assert not unchanged(one, np.full_like(one, np.nan)).any()


def test_reduced_is_the_mean(rng):
    image = rng.integers(0, 256, (64, 90, 3), np.uint8)
    small = reduced(image, 30)
    blocks = image[:63].reshape(21, 3, 30, 3, 3).mean((1, 3))
    np.testing.assert_allclose(small[:21], blocks, atol=1)  # uint8
    values = rng.random((40, 1000)).astype(np.float32)
    assert reduced(values, 100).shape == (4, 100)
    np.testing.assert_array_equal(reduced(values, 1000), values)
    assert abs(reduced(values, 10).mean() - values.mean()) < 0.05


def test_cuts_are_found_and_movement_and_flashes_are_not(rng):
    detector = CutDetector()
    shots = [scene(rng, 80, 200)[0] for _ in range(3)]
    found = []
    for picture in shots:
        for x in (0, 12, 24, 20, 20):  # a fast pan
            found.append(detector.is_cut(reduced(filmed(rng, picture[:, x : x + 120]), 96), fits=1))
        flash = filmed(rng, picture[:, 20:140] * 1.3 + 30)
        found.append(detector.is_cut(reduced(flash, 96), fits=True))
        found.append(detector.is_cut(np.zeros((64, 96, 3), np.float32), fits=True))  # black
    assert [k for k, cut in enumerate(found) if cut] == [7, 14]


def video(rng, count=12):
    """A pan over a scene with a random scale and shift in each frame."""
    picture, disparity = scene(rng, 60, 120)
    frames, maps = [], []
    for k in range(count):
        part = np.s_[:, 2 * k : 2 * k + 80]
        frames.append(filmed(rng, picture[part]))
        values = disparity[part] * np.exp(rng.normal(0, 0.1)) + rng.normal(0, 0.3)
        maps.append(values.astype(np.float32))
    return frames, maps, disparity


def test_flicker_falls_by_stabilization(fixed_rng):
    frames, maps, _ = video(fixed_rng)
    stabilizer = make_stabilizer("flow", lookahead=2)
    steady = []
    for frame, values in zip(frames, maps, strict=True):
        steady += [result.values for result in stabilizer.push(frame, values)]
    steady += [result.values for result in stabilizer.flush()]
    found = measure(iter(frames), iter(maps), iter(steady))
    assert found["frames"] == 12 and found["cuts"] == 0 and 0.3 < found["compared"] <= 1
    assert found["flicker_after"] < 0.3 * found["flicker_before"]
    scaled = measure(frames, [3 * values - 1 for values in maps])
    assert scaled["flicker_before"] == pytest.approx(found["flicker_before"], rel=1e-4)
    assert "flicker_after" not in scaled


def test_flicker_is_the_change_in_percent_of_the_range(rng):
    picture, disparity = scene(rng, *SIZE)
    frame = filmed(rng, picture)
    low, high = np.percentile(disparity, (2, 98))
    step = np.float32(0.07 * (high - low))
    found = measure([frame] * 5, [disparity + step * (k % 2) for k in range(5)])
    assert found["flicker_before"] == pytest.approx(7, rel=1e-3) and found["compared"] == 1
    # A jump at a cut is no flicker.
    other, far = scene(rng, *SIZE)
    frames = [frame] * 3 + [filmed(rng, other)] * 3
    frames[4] = frames[5] = frames[3]
    found = measure(frames, [disparity] * 3 + [far * 9] * 3)
    assert found["flicker_before"] == 0 and found["cuts"] == 1


def test_flicker_of_one_frame_and_wrong_arguments(rng, monkeypatch):
    picture, disparity = scene(rng, *SIZE)
    frame = filmed(rng, picture)
    assert np.isnan(measure([frame], [disparity])["flicker_before"])
    assert measure([], []) == {"frames": 0, "cuts": 0, "compared": 0}
    with pytest.raises(ValueError, match="zip"):
        measure([frame] * 2, [disparity])
    meter = FlickerMeter()
    meter.add(frame, disparity)
    with pytest.raises(ValueError, match="2 maps, but 1 for the frames before"):
        meter.add(frame, disparity, disparity)
    with pytest.raises(ValueError, match="maps must have the frame's size"):
        meter.add(frame, disparity[:-1])
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'dafast\[flow\]'"):
        measure([frame], [disparity])
