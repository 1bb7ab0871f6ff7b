"""Stabilization: no drift, cuts, moving things, the display range, and resuming."""

from __future__ import annotations

import io

import numpy as np
import pytest

from dafast.optional import MissingPackageError
from dafast.video.stabilization import StabilizedFrame, make_stabilizer
from tests.video.scenes import filmed, scene, smooth

SIZE = (36, 48)


def run(stabilizer, frames, maps) -> list[StabilizedFrame]:
    results = []
    for frame, values in zip(frames, maps, strict=True):
        results += stabilizer.push(frame, values)
    return results + stabilizer.flush()


def jittered(rng, disparity, count, *, size=0.15, noise=0.03):
    """Maps of one disparity with noise and a random scale and shift each, and these."""
    scales = np.exp(rng.normal(0, size, count))
    shifts = rng.normal(0, size * disparity.std() * 2, count)
    noisy = disparity + rng.normal(0, noise * disparity.std(), (count, *disparity.shape))
    maps = noisy * scales[:, None, None] + shifts[:, None, None]
    return maps.astype(np.float32), scales, shifts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "count", "walk"), [("range", 600, False), ("flow", 60, False), ("range", 60, True)]
)
def test_a_still_scene_becomes_still_and_does_not_drift(fixed_rng, mode, count, walk):
    picture, disparity = scene(fixed_rng, *SIZE)
    maps, scales, shifts = jittered(fixed_rng, disparity, count)
    if walk:  # the changes add up
        scales, shifts = np.exp(np.cumsum(np.log(scales) / 5)), np.cumsum(shifts / 5)
        maps = (disparity * scales[:, None, None] + shifts[:, None, None]).astype(np.float32)
    frames = (filmed(fixed_rng, picture) for _ in range(count))
    results = run(make_stabilizer(mode), frames, maps)
    assert len(results) == count and not any(result.cut for result in results)
    values = np.stack([result.values for result in results]).astype(np.float64)
    assert maps.var(0).mean() > 10 * values.var(0).mean()
    means, spread = values.mean((1, 2)), values[0].std()
    assert abs(means[-20:].mean() - means[:20].mean()) < 0.02 * spread
    assert abs(means[-20:].mean() - maps[0].mean()) < 0.05 * spread  # the first frame's scale
    assert values[-20:].std((1, 2)).mean() == pytest.approx(spread, rel=0.03)
    steady = [(result.low, result.high) for result in results]
    assert np.ptp(steady, axis=0).max() < 0.3 * spread


def test_a_cut_takes_effect_in_its_frame(fixed_rng):
    first, second = scene(fixed_rng, *SIZE), scene(fixed_rng, *SIZE)
    shots = [(first, 14), (second, 9)]
    frames = [filmed(fixed_rng, picture) for (picture, _), n in shots for _ in range(n)]
    maps = np.concatenate(
        [jittered(fixed_rng, 10**k * d, n)[0] for k, ((_, d), n) in enumerate(shots)]
    )
    for lookahead in (0, 5, 30):
        results = run(make_stabilizer("range", lookahead=lookahead), frames, maps)
        assert [k for k, result in enumerate(results) if result.cut] == [14]
        np.testing.assert_array_equal(results[14].values, maps[14])
        assert (results[14].scale, results[14].shift) == (1, 0)
        before, after = results[:14], results[14:]
        assert max(r.high for r in before) < 3 * maps[0].max()
        assert min(r.high for r in after) > 0.6 * maps[14].max()
        assert np.var([r.values.mean() for r in after]) < np.var(maps[14:].mean((1, 2)))


def test_the_first_picture_after_black_frames_begins_a_shot(rng):
    picture, disparity = scene(rng, *SIZE)
    frames = [np.zeros((*SIZE, 3), np.uint8)] * 4 + [filmed(rng, picture) for _ in range(6)]
    dark = disparity[::-1] * np.float32(0.01)  # what a network makes of black
    maps = [dark] * 4 + [disparity] * 6
    for lookahead in (0, 5):
        results = run(make_stabilizer("range", lookahead=lookahead), frames, maps)
        assert [k for k, result in enumerate(results) if result.cut] == [4]
        ranges = np.array([(r.low, r.high) for r in results])
        expected = np.percentile(disparity, (0.5, 99.5))
        np.testing.assert_allclose(ranges[4:], np.tile(expected, (6, 1)), rtol=1e-4)
        np.testing.assert_allclose(ranges[:4], np.tile(expected * 0.01, (4, 1)), rtol=1e-4)


@pytest.mark.parametrize("mode", ["range", "flow"])
def test_what_moves_does_not_change_the_scale_of_the_rest(rng, mode):
    picture, disparity = scene(rng, *SIZE)
    thing, _ = scene(rng, *SIZE)
    frames, maps = [], []
    jitter = rng.uniform(0.8, 1.25, 20), rng.uniform(-0.5, 0.5, 20)
    for k, (scale, shift) in enumerate(zip(*jitter, strict=True)):
        now, values = picture.copy(), disparity.copy()
        part = np.s_[8:30, k : k + 18]  # comes nearer as it crosses the picture
        now[part], values[part] = 255 - thing[8:30, :18], 8 + 0.4 * k
        frames.append(filmed(rng, now))
        maps.append((scale * values + shift).astype(np.float32))
    for k, result in enumerate(run(make_stabilizer(mode), frames, maps)):
        scale, shift = jitter[0][k], jitter[1][k]
        assert result.scale == pytest.approx(jitter[0][0] / scale, rel=0.03)
        at_mean = result.scale * (scale * disparity.mean() + shift) + result.shift
        expected = jitter[0][0] * disparity.mean() + jitter[1][0]
        assert at_mean == pytest.approx(expected, abs=0.06 * float(disparity.std()))


def test_flow_carries_the_reference_along(fixed_rng):
    """A pan: nothing stays in its place, and everything stays in the picture for a while."""
    picture, disparity = scene(fixed_rng, 80, 200)
    starts = [3 * k for k in range(24)]
    scales = np.exp(fixed_rng.normal(0, 0.15, len(starts)))
    frames = [filmed(fixed_rng, picture[:, x : x + 120]) for x in starts]
    maps = [
        np.ascontiguousarray(s * disparity[:, x : x + 120], np.float32)
        for s, x in zip(scales, starts, strict=True)
    ]
    ratios = {}
    for mode in ("flow", "range"):
        results = run(make_stabilizer(mode), frames, maps)
        assert not any(result.cut for result in results)
        ratios[mode] = np.array([r.scale * s for r, s in zip(results, scales, strict=True)])
    np.testing.assert_allclose(ratios["flow"], scales[0], rtol=0.15)
    # Without flow a change of what is seen counts as one of scale, a little in each frame.
    steps = np.abs(np.diff(np.log(ratios["range"])))
    assert np.median(steps) < 0.5 * np.median(np.abs(np.diff(np.log(scales))))


def test_a_long_pan_without_flow_stays_near_the_models_scale(fixed_rng):
    """What comes into the picture counts as a change of scale; these changes must not add up."""
    count, width, spreads = 150, 48, []
    for _ in range(4):
        disparity = 1 + 3 * smooth(fixed_rng, 36, width + count, 24)
        picture = 30 + 130 * smooth(fixed_rng, 36, width + count, 40)[
            ..., None
        ] * fixed_rng.uniform(0.4, 1, 3)
        picture += fixed_rng.random((36, width + count, 3)) * 60
        scales = np.exp(fixed_rng.normal(0, 0.1, count))
        frames = [filmed(fixed_rng, picture[:, k : k + width]) for k in range(count)]
        maps = [(s * disparity[:, k : k + width]).astype(np.float32) for k, s in enumerate(scales)]
        results = run(make_stabilizer("range"), frames, maps)
        found = np.log([r.scale * s for r, s in zip(results, scales, strict=True)])
        spreads.append(found[20:].std())
        assert np.diff(found).std() < 0.7 * np.diff(np.log(scales)).std()
    assert np.mean(spreads) < 0.2  # 0.1 is that of the model itself


@pytest.mark.slow
def test_a_video_is_resumed_exactly(rng):
    shots = [scene(rng, *SIZE) for _ in range(2)]
    frames = [filmed(rng, p) for p, _ in shots for _ in range(9)]
    maps = np.concatenate([jittered(rng, d, 9)[0] for _, d in shots])
    for mode, rescale in (("range", True), ("flow", True), ("range", False), ("off", True)):
        whole = run(make_stabilizer(mode, lookahead=3, rescale=rescale), frames, maps)
        for stop in (0, 2, 11):
            first = make_stabilizer(mode, lookahead=3, rescale=rescale)
            parts = []
            for k in range(stop):
                parts += first.push(frames[k], maps[k])
            file = io.BytesIO()
            np.savez(file, **first.state())
            file.seek(0)
            second = make_stabilizer(mode, lookahead=3, rescale=rescale)
            with np.load(file, allow_pickle=False) as state:
                second.restore(state)
            parts += run(second, frames[stop:], maps[stop:])
            for one, other in zip(whole, parts, strict=True):
                np.testing.assert_array_equal(one.values, other.values)
                assert (one.low, one.high, one.cut) == (other.low, other.high, other.cut)
                assert (one.scale, one.shift) == (other.scale, other.shift)


def test_lookahead_is_the_delay_and_memory_is_constant(rng):
    picture, disparity = scene(rng, *SIZE)
    frame = filmed(rng, picture)
    for lookahead in (0, 4):
        stabilizer = make_stabilizer("range", lookahead=lookahead)
        sizes = []
        for k in range(12):
            assert len(stabilizer.push(frame, disparity)) == (k >= lookahead)
            sizes.append(sum(array.nbytes for array in stabilizer.state().values()))
        assert len(stabilizer.flush()) == lookahead and stabilizer.flush() == []
        assert len(set(sizes[5:])) == 1


def test_metres_stay_as_they_are_and_their_display_range_is_smooth(fixed_rng):
    picture, depth = scene(fixed_rng, *SIZE)
    maps = list(jittered(fixed_rng, depth, 40)[0])
    frames = [filmed(fixed_rng, picture) for _ in maps]
    results = run(make_stabilizer("range", rescale=False), frames, maps)
    assert all(result.values is values for result, values in zip(results, maps, strict=True))
    own = np.array([np.percentile(values, 99.5) for values in maps])
    assert np.diff([r.high for r in results]).std() < 0.2 * np.diff(own).std()


def test_off_leaves_everything(rng):
    picture, disparity = scene(rng, *SIZE)
    disparity[:4] = np.inf
    (result,) = make_stabilizer("off").push(filmed(rng, picture), disparity)
    assert result.values is disparity and not result.cut
    assert (result.low, result.high) == (disparity[4:].min(), disparity[4:].max())


@pytest.mark.parametrize("mode", ["range", "flow"])
def test_maps_without_values_and_black_frames(rng, mode):
    picture, disparity = scene(rng, *SIZE)
    holes = disparity.copy()
    holes[:9], holes[9:12] = np.inf, np.nan
    black = np.zeros((*SIZE, 3), np.uint8)
    empty = np.full(SIZE, np.nan, np.float32)
    frame = filmed(rng, picture)
    frames = [frame, frame, black, black, frame, frame, frame]
    maps = [disparity, 2 * holes, 0 * disparity, empty, 3 * disparity, empty, 2 * disparity]
    results = run(make_stabilizer(mode), frames, maps)
    assert not any(result.cut for result in results)
    for result in results:
        assert np.isfinite([result.low, result.high, result.scale, result.shift]).all()
    for k in (1, 4, 6):
        known = np.isfinite(maps[k])
        np.testing.assert_allclose(results[k].values[known], disparity[known], rtol=1e-3)


def test_wrong_arguments(rng, monkeypatch):
    picture, disparity = scene(rng, *SIZE)
    frame = filmed(rng, picture)
    with pytest.raises(ValueError, match=r"no stabilization 'on'; there are: range, flow, off"):
        make_stabilizer("on")
    with pytest.raises(ValueError, match="lookahead must be at least 0, got -1"):
        make_stabilizer("range", lookahead=-1)
    for mode in ("range", "off"):
        stabilizer = make_stabilizer(mode)
        with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\); got float64"):
            stabilizer.push(picture, disparity)
        with pytest.raises(ValueError, match=r"float32 of the frame's size .*; got float64"):
            stabilizer.push(frame, disparity.astype(np.float64))
        with pytest.raises(ValueError, match="float32 of the frame's size"):
            stabilizer.push(frame, disparity[:-1])
    stabilizer = make_stabilizer()
    stabilizer.push(frame, disparity)
    with pytest.raises(ValueError, match="use another stabilizer"):
        stabilizer.push(frame[:-1], disparity[:-1])
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'dafast\[flow\]'"):
        make_stabilizer("flow")
