"""Alignment and metrics by hand-worked cases and properties; the real photos; the baselines."""

import numpy as np
import pytest

from dafast.evaluation import benchmarks
from dafast.evaluation.alignment import align_disparity, constant_baseline, plane_baseline
from dafast.evaluation.metrics import depth_metrics, valid_depth


class _Oracle:
    """Stands in for a model: `infer` gives an affine of the truth of the sample it is shown."""

    class config:  # noqa: N801
        name = "oracle"

    def __init__(self, samples, scale=3.0, shift=-0.7):
        self.truth = {s.image.tobytes(): s.depth for s in samples}
        self.scale, self.shift = scale, shift

    def infer(self, image):
        depth = self.truth[image.tobytes()]
        disparity = np.where(np.isfinite(depth), 1 / depth, 0)
        return (self.scale * disparity + self.shift).astype(np.float32)


def _samples(seed, count=3):
    rng = np.random.default_rng(seed)
    for i in range(count):
        depth = rng.uniform(1, 9, (20, 30)).astype(np.float32)
        depth[rng.random((20, 30)) < 0.2] = np.inf
        image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        yield benchmarks.EvaluationSample(str(i), image, depth, 10.0)


def test_alignment_recovers_scale_and_shift(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((7, 9))
    mask = rng.random((7, 9)) < 0.5
    prediction = (truth - 0.3) / 2.5
    prediction[~mask] = 99  # must not matter
    aligned = align_disparity(prediction, truth, mask)
    np.testing.assert_allclose(aligned[mask], truth[mask], atol=1e-9)


def test_alignment_is_least_squares(seed):
    """No other scale and shift does better."""
    rng = np.random.default_rng(seed)
    prediction, truth = rng.random((2, 8, 8))
    mask = np.ones((8, 8), bool)
    best = ((align_disparity(prediction, truth, mask) - truth) ** 2).sum()
    slope, intercept = np.polyfit(prediction.ravel(), truth.ravel(), 1)
    assert best == pytest.approx(((slope * prediction + intercept - truth) ** 2).sum())


def test_baselines(seed):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:11, 0:13]
    a, b, c = rng.normal(size=3)
    plane = a * columns + b * rows + c
    mask = rng.random((11, 13)) < 0.6
    np.testing.assert_allclose(plane_baseline(plane, mask), plane, atol=1e-9)
    np.testing.assert_allclose(constant_baseline(plane, mask), plane[mask].mean())


def test_constant_prediction_aligns_to_the_mean(seed):
    truth = np.random.default_rng(seed).random((5, 6))
    mask = np.ones((5, 6), bool)
    np.testing.assert_allclose(align_disparity(np.full((5, 6), 7.0), truth, mask), truth.mean())


def test_metrics_by_hand():
    depth = np.array([[1.0, 2.0, 4.0, 100.0]])
    disparity = np.array([[1.0, 1 / 3, -5.0, 1.0]])  # the third is clamped to 1 / 10
    mask = valid_depth(depth, 10.0)
    assert mask.tolist() == [[True, True, True, False]]
    m = depth_metrics(disparity, depth, mask, max_depth=10.0)
    assert m["abs_rel"] == pytest.approx((0 + 0.5 + 1.5) / 3)
    assert m["delta_1"] == pytest.approx(1 / 3)
    assert m["delta_2"] == pytest.approx(2 / 3)
    assert m["delta_3"] == pytest.approx(2 / 3)
    assert m["rmse"] == pytest.approx(np.sqrt((0 + 1 + 36) / 3))
    logs = np.log([1, 1.5, 2.5])
    assert m["log10"] == pytest.approx(logs.mean() / np.log(10))
    assert m["silog"] == pytest.approx(100 * logs.std())


def test_validity():
    depth = np.array([0.0, 1e-4, 0.5, 80.0, np.nan, np.inf, -1.0])
    assert valid_depth(depth, 80.0).tolist() == [False, False, True, False, False, False, False]
    with pytest.raises(ValueError, match="no valid pixel"):
        align_disparity(depth, depth, np.zeros(7, bool))
    with pytest.raises(ValueError, match="no valid pixel"):
        depth_metrics(depth, depth, np.zeros(7, bool), max_depth=1.0)


def test_perfect_prediction_scores_zero_whatever_its_affine(seed):
    samples = list(_samples(seed))
    for scale, shift in ((3.0, -0.7), (0.01, 5.0)):
        results, per_image = benchmarks.score(_Oracle(samples, scale, shift), samples, "toy")
        oracle, plane, constant = results
        assert (oracle.predictor, plane.predictor, constant.predictor) == (
            "oracle", "plane", "constant",
        )  # fmt: skip
        assert oracle.metrics["abs_rel"] < 1e-3 and oracle.metrics["delta_1"] == 1
        assert constant.metrics["abs_rel"] > 0.1 and oracle.count == 3
        mean = np.mean([row["abs_rel"] for row in per_image["plane"].values()])
        assert plane.metrics["abs_rel"] == pytest.approx(mean)


def test_image_without_truth_is_left_out(seed, caplog):
    samples = list(_samples(seed))
    blank = benchmarks.EvaluationSample("blank", samples[0].image, samples[0].depth * np.inf, 10.0)
    results, _ = benchmarks.score(_Oracle(samples), [*samples, blank], "toy")
    assert results[0].count == 3 and "toy/blank: no valid pixel" in caplog.text
    with pytest.raises(ValueError, match="no image with a valid pixel"):
        benchmarks.score(_Oracle(samples), [blank], "toy")


def test_motorcycle_has_the_published_range():
    """Middlebury's motorcycle stands between 2 and 5 m from the camera."""
    pytest.importorskip("skimage")
    (sample,) = benchmarks.motorcycle()
    known = np.isfinite(sample.depth)
    assert sample.image.shape == (500, 741, 3) and 0.7 < known.mean() < 1
    assert 2 < sample.depth[known].min() < 2.3 and 4.5 < sample.depth[known].max() < 5.5


def test_aloe_from_a_folder(tmp_path, monkeypatch, seed):
    from PIL import Image

    monkeypatch.setattr(benchmarks, "ALOE_FOLDERS", ())
    monkeypatch.setenv("DAFAST_OPENCV_SAMPLES", str(tmp_path))
    with pytest.raises(benchmarks.DataMissingError, match="opencv-doc"):
        list(benchmarks.aloe())
    disparity = np.random.default_rng(seed).integers(0, 200, (6, 8), dtype=np.uint8)
    disparity[0, 0], disparity[0, 1] = 0, 100
    Image.fromarray(disparity).save(tmp_path / "aloeGT.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "aloeL.jpg")
    (sample,) = benchmarks.aloe()
    assert np.isnan(sample.depth[0, 0])
    assert sample.depth[0, 1] == pytest.approx(3740 * 0.16 / 370)


def test_unknown_data_is_named():
    with pytest.raises(ValueError, match="no data set nyu; there are: builtin"):
        benchmarks.evaluate(_Oracle([]), ["nyu"])
