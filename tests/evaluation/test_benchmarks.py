"""Scoring a model next to the baselines; the real photos; protocols, cache and many processes."""

import dataclasses
import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dafast
from dafast.evaluation import benchmarks, builtin
from dafast.evaluation.metrics import METRICS
from dafast.evaluation.protocols import PROTOCOLS
from dafast.evaluation.samples import DataMissingError, EvaluationSample, Samples
from tests.forks import ranks
from tests.tiny import TINY, tiny

ROOT = Path(__file__).parents[2]


class _Oracle:
    """Stands in for a model: `infer` gives an affine of the truth of the samples it is shown."""

    config = tiny(name="oracle")
    device = torch.device("cpu")

    def __init__(self, samples, scale=3.0, shift=-0.7):
        self.truth = {s.image.tobytes(): s.depth for s in samples}
        self.scale, self.shift = scale, shift
        self.shown = []

    def infer(self, images, *, return_tensors, fit):
        assert return_tensors
        self.shown.append(len(images))
        depths = [self.truth[image.tobytes()] for image in images]
        disparities = [np.where(np.isfinite(d), 1 / d, 0) for d in depths]
        return [torch.from_numpy(self.scale * d + self.shift).float() for d in disparities]


def _samples(seed, count=3):
    rng = np.random.default_rng(seed)
    for i in range(count):
        depth = rng.uniform(1, 9, (20, 30)).astype(np.float32)
        depth[rng.random((20, 30)) < 0.2] = np.inf
        image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        yield EvaluationSample(str(i), image, depth, 10.0)


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


def test_two_sets_of_one_name_are_told_apart(tmp_path, seed, monkeypatch):
    assert benchmarks.names_of(["builtin", "list=a.csv", "kitti=K", "list=b/c.csv"]) == [
        "builtin", "list=a.csv", "kitti", "list=b/c.csv",
    ]  # fmt: skip
    sets = {f"list={tmp_path}/{name}.csv": list(_samples(seed + i)) for i, name in enumerate("ab")}
    monkeypatch.setattr(benchmarks, "open_benchmark", sets.__getitem__)
    model = _Oracle([sample for samples in sets.values() for sample in samples])
    names = {r.data for r in benchmarks.evaluate(model, sets) if "/0" not in r.data[-2:]}
    assert set(sets) <= names
    alone = benchmarks.evaluate(model, list(sets)[:1])
    assert "list" in {r.data for r in alone}


def test_image_without_truth_is_left_out(seed, notices):
    samples = list(_samples(seed))
    blank = EvaluationSample("blank", samples[0].image, samples[0].depth * np.inf, 10.0)
    results, _ = benchmarks.score(_Oracle(samples), [*samples, blank], "toy")
    assert results[0].count == 3 and "toy/blank: no valid pixel" in notices.text
    with pytest.raises(ValueError, match="no image with a valid pixel"):
        benchmarks.score(_Oracle(samples), [blank], "toy")


def test_motorcycle_has_the_published_range():
    """Middlebury's motorcycle stands between 2 and 5 m from the camera."""
    pytest.importorskip("skimage")
    (sample,) = builtin.motorcycle()
    known = np.isfinite(sample.depth)
    assert sample.image.shape == (500, 741, 3) and 0.7 < known.mean() < 1
    assert 2 < sample.depth[known].min() < 2.3 and 4.5 < sample.depth[known].max() < 5.5


def test_aloe_from_a_folder(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(builtin, "ALOE_FOLDERS", ())
    monkeypatch.setenv("DAFAST_OPENCV_SAMPLES", str(tmp_path))
    with pytest.raises(DataMissingError, match="opencv-doc"):
        list(builtin.aloe())
    disparity = np.random.default_rng(seed).integers(0, 200, (6, 8), dtype=np.uint8)
    disparity[0, 0], disparity[0, 1] = 0, 100
    Image.fromarray(disparity).save(tmp_path / "aloeGT.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "aloeL.jpg")
    (sample,) = builtin.aloe()
    assert np.isnan(sample.depth[0, 0])
    assert sample.depth[0, 1] == pytest.approx(3740 * 0.16 / 370)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nyu", r"no data set nyu; there are: builtin, .* kitti=PATH"),
        ("kitti", "kitti is read from a path: give kitti=PATH"),
        ("builtin=x", "builtin is not read from a path: leave out =x"),
    ],
)
def test_unknown_data_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        benchmarks.evaluate(_Oracle([]), [spec])
    with pytest.raises(ValueError, match="no protocol 'zoe'; there are: paper, midas, moge"):
        benchmarks.evaluate(_Oracle([]), [], protocol="zoe")


def test_a_prediction_that_is_not_finite_is_named(seed):
    samples = list(_samples(seed))
    with pytest.raises(ValueError, match="toy/0: the prediction is not finite"):
        benchmarks.score(_Oracle(samples, scale=np.nan), samples, "toy")


def test_protocols_differ_where_they_say(seed):
    """The crop and the cap; a far pixel counts only where there is no cap."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1, 9, (10, 12)).astype(np.float32)
    depth[0, 0], depth[9, 11] = 50.0, np.inf
    image = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
    sample = EvaluationSample("x", image, depth, 10.0, crop=(2, 7, 3, 11))
    counts = {"paper": (5 * 8, 10.0), "midas": (118, 10.0), "moge": (119, 50.0)}
    for name, (pixels, cap) in counts.items():
        protocol = benchmarks.get_protocol(name)
        mask = protocol.mask(sample)
        assert (mask.sum(), protocol.max_depth(sample, mask)) == (pixels, cap)
        (oracle, *_), _ = benchmarks.score(_Oracle([sample]), [sample], "toy", protocol=name)
        assert oracle.protocol == name and oracle.metrics["abs_rel"] < 1e-4


def test_another_alignment_than_the_protocols(seed):
    samples = list(_samples(seed))
    for model, good in ((_Oracle(samples, 3, 0), True), (_Oracle(samples, 3, 2), False)):
        (oracle, *_), _ = benchmarks.score(model, samples, "toy", alignment="median")
        assert oracle.protocol == "paper+median"
        assert (oracle.metrics["abs_rel"] < 1e-4) == good  # the median knows no shift
    with pytest.raises(ValueError, match="no alignment 'mean'; there are: scale_shift"):
        benchmarks.evaluate(_Oracle([]), [], alignment="mean")


def test_samples_are_held_a_few_at_a_time(seed, monkeypatch):
    samples = list(_samples(seed, 7))
    monkeypatch.setattr(benchmarks, "BATCH_IMAGES", 3)
    model = _Oracle(samples)
    assert benchmarks.score(model, iter(samples), "toy")[0][0].count == 7
    assert model.shown == [3, 3, 1]
    monkeypatch.setattr(benchmarks, "BATCH_PIXELS", 601)
    model = _Oracle(samples)
    benchmarks.score(model, samples, "toy")
    assert model.shown == [2, 2, 2, 1]


def test_on_a_gpu_the_next_batch_is_read_meanwhile(seed, monkeypatch, notices):
    monkeypatch.setattr(benchmarks, "BATCH_IMAGES", 2)
    samples = list(_samples(seed, 5))
    samples[1] = dataclasses.replace(samples[1], depth=np.zeros_like(samples[1].depth))
    expected = benchmarks.score(_Oracle(samples), iter(samples), "toy")
    begun, readers = threading.Event(), set()

    def read():
        for i, sample in enumerate(samples):
            readers.add(threading.current_thread())
            if i == 3:  # of the second batch
                begun.set()
            yield sample

    class OnGpu(_Oracle):
        device = torch.device("cuda")

        def infer(self, images, **options):
            assert begun.wait(60)
            return super().infer(images, **options)

    assert benchmarks.score(OnGpu(samples), read(), "toy") == expected
    assert len(readers) == 1 and threading.main_thread() not in readers
    assert "toy/1: no valid pixel" in notices.text
    monkeypatch.setattr(benchmarks, "score_sample", lambda *_: {}["fails"])
    with pytest.raises(KeyError, match="fails"):
        benchmarks.score(OnGpu(samples), read(), "toy")
    assert not any(thread.is_alive() for thread in readers), "an error ends the thread, too"


def test_boundaries_are_measured_where_the_truth_is_sharp(seed):
    samples = [EvaluationSample(s.name, s.image, s.depth, 10.0, sharp=True) for s in _samples(seed)]
    (oracle, plane, _), _ = benchmarks.score(_Oracle(samples), samples, "toy")
    assert oracle.metrics["boundary_f1"] > 0.999 > plane.metrics["boundary_f1"]
    (oracle, *_), _ = benchmarks.score(_Oracle(samples), list(_samples(seed)), "toy")
    assert tuple(oracle.metrics) == METRICS


def test_samples_of_one_name_all_count(seed):
    samples = [EvaluationSample("same", s.image, s.depth, 10.0) for s in _samples(seed)]
    assert benchmarks.score(_Oracle(samples), samples, "toy")[0][0].count == 3


def _model(seed):
    torch.manual_seed(seed)
    model = dafast.DepthAnything(TINY).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("output_conv2.2.bias"):
                parameter.fill_(1.0)  # past the last ReLU
    return model


def test_cache_saves_predictions_and_knows_models(seed, tmp_path, monkeypatch):
    samples = list(_samples(seed))
    model = _model(seed)
    shown = []
    infer = dafast.DepthAnything.infer

    def count(self, images, **options):
        shown.append(len(images))
        return infer(self, images, **options)

    monkeypatch.setattr(dafast.DepthAnything, "infer", count)
    first = benchmarks.score(model, samples[:2], "toy", cache=tmp_path)
    assert shown == [2]
    again = benchmarks.score(model, samples, "toy", cache=tmp_path)
    assert shown == [2, 1]  # only the third is new
    assert benchmarks.score(model, samples, "toy", cache=tmp_path) == again and shown == [2, 1]
    (result, *_), _ = benchmarks.score(model, samples, "toy")  # rounds as a batch of three does
    assert result.metrics == pytest.approx(again[0][0].metrics, rel=1e-3, abs=2e-3)
    benchmarks.score(model, samples[:2], "toy", cache=tmp_path, protocol="moge")
    assert shown == [2, 1, 3]  # another protocol needs no new predictions
    benchmarks.score(model, samples, "toy", cache=tmp_path, fit="official")
    assert shown.pop() == 3
    files = sorted(tmp_path.glob("tiny-*/[!.]*.npy"))
    assert len(files) == 6 and not list(tmp_path.glob("*/.*"))

    for file in files:
        file.write_bytes(file.read_bytes()[:100])  # half written: not to be used
    assert benchmarks.score(model, samples[:2], "toy", cache=tmp_path) == first
    assert shown.pop() == 2
    with torch.no_grad():
        next(model.parameters()).flatten()[-1] += 1  # any weight makes another model
    benchmarks.score(model, samples, "toy", cache=tmp_path)
    assert shown.pop() == 3


def test_metric_models_are_not_aligned(seed, tmp_path, monkeypatch):
    """Their metres are measured as they are, clamped to the cap; from the cache as well."""
    samples = list(_samples(seed))
    model = dafast.DepthAnything(dataclasses.replace(TINY, max_depth=20.0)).eval()
    truth = {s.image.tobytes(): torch.from_numpy(s.depth) for s in samples}
    calls = []

    def infer_metric(self, images, **options):
        calls.append(len(images))
        return [1.1 * truth[i.tobytes()].nan_to_num(posinf=1e6) for i in images]

    monkeypatch.setattr(dafast.DepthAnything, "infer_metric", infer_metric)
    for _ in range(2):
        (result, *_), _ = benchmarks.score(model, samples, "toy", cache=tmp_path)
        assert result.protocol == "paper+none" and result.metrics["silog"] < 1e-3
        assert result.metrics["abs_rel"] == pytest.approx(0.1, rel=1e-4)
    (result, *_), _ = benchmarks.score(model, samples, "toy", cache=tmp_path, alignment="median")
    assert result.protocol == "paper+median" and result.metrics["abs_rel"] < 1e-4
    assert calls == [3]


def test_samples_are_a_sequence(seed):
    samples = list(_samples(seed, 5))
    lazy = Samples(range(5), samples.__getitem__)
    assert len(lazy) == 5 and lazy[4] is samples[4] and list(lazy) == samples
    assert [s.name for s in lazy[1::2]] == ["1", "3"]


def _write_list(folder, count, rng):
    """A list of photos with their depth, as the command line reads it."""
    rows = []
    for i in range(count):
        depth = rng.uniform(1, 9, (24, 31)).astype(np.float32)
        np.save(folder / f"{i}.npy", depth)
        pixels = rng.integers(0, 256, (24, 31, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "depth": f"{i}.npy", "sharp": i % 2})
    (folder / "list.json").write_text(json.dumps(rows))
    return f"list={folder / 'list.json'}"


@pytest.mark.slow
def test_two_processes_score_like_one(seed, tmp_path, rng):
    """Five photos shared by two: the same numbers, in a table that is printed once."""
    _model(seed).save_pretrained(tmp_path / "model")
    command = [
        *("eval", "--model", str(tmp_path / "model"), "--device", "cpu"),
        *("--data", _write_list(tmp_path, 5, rng), "--protocol", "midas", "--json"),
    ]
    from dafast.cli import main

    assert main([*command, str(tmp_path / "one.json")]) == 0
    done = ranks(lambda: main([*command, str(tmp_path / "two.json")]), 2)
    assert done.stdout.count("predictor") == 1
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert [r["predictor"] for r in one] == [r["predictor"] for r in two]
    for a, b in zip(one, two, strict=True):
        assert a["count"] == b["count"] == 5 and b["protocol"] == "midas"
        # Their batches differ and with them the rounding, which may turn a pixel over.
        assert all(b[name] == pytest.approx(a[name], rel=1e-3, abs=2e-3) for name in METRICS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_from_end_to_end_in_numpy(name, seed):
    """Crop, mask, least squares, clamp and errors once more, from the published descriptions."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1, 30, (20, 24)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.2] = 0
    image = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    sample = EvaluationSample("x", image, depth, 20.0, crop=(4, 18, 2, 23))
    prediction = rng.normal(0, 0.3, depth.shape) - 2 / np.maximum(depth, 1)

    counted = depth > 0
    if name != "moge":
        counted &= depth < 20
    if name == "paper":
        counted[:4] = counted[18:] = counted[:, :2] = counted[:, 23:] = False
    d, p = depth[counted].astype(np.float64), prediction[counted].astype(np.float32)
    design = np.stack([p, np.ones_like(p)], 1).astype(np.float64)
    p = design @ np.linalg.lstsq(design, 1 / d, rcond=None)[0]
    p = 1 / np.maximum(p, 1 / (d.max() if name == "moge" else 20.0))
    assert (p == p.max()).sum() > 1 and p.max() < 31  # the clamp takes part

    model = _Oracle([])
    model.infer = lambda images, **options: [torch.from_numpy(prediction).float()]
    (result, *_), _ = benchmarks.score(model, [sample], "toy", protocol=name)
    assert result.metrics["abs_rel"] == pytest.approx(np.mean(np.abs(p - d) / d), rel=1e-9)
    inside = np.mean(np.maximum(p / d, d / p) < 1.25)
    assert result.metrics["delta_1"] == pytest.approx(inside)
    assert result.metrics["rmse"] == pytest.approx(np.sqrt(np.mean((p - d) ** 2)), rel=1e-9)


@pytest.mark.parametrize("protocol", ["paper", "moge"])
def test_metres_are_not_clamped_to_the_truth(protocol, seed, monkeypatch):
    """Where the set has no cap: 40 m where all is 2 m away is twenty times too far."""
    samples = [
        dataclasses.replace(s, depth=np.full_like(s.depth, 2.0), max_depth=math.inf)
        for s in _samples(seed)
    ]
    model = dafast.DepthAnything(dataclasses.replace(TINY, max_depth=80.0)).eval()
    monkeypatch.setattr(
        dafast.DepthAnything,
        "infer_metric",
        lambda self, images, **options: [torch.full(i.shape[:2], 40.0) for i in images],
    )
    (result, *_), _ = benchmarks.score(model, samples, "toy", protocol=protocol)
    assert result.metrics["abs_rel"] == pytest.approx(19.0, rel=1e-3)


def test_a_model_whose_metres_depend_on_the_camera(seed):
    config = tiny(output="exp", kind="metric", focal_length=300.0, sky_head=True, fit="upper_bound")
    model = dafast.DepthAnything(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    samples = list(_samples(seed))

    def scores(**options) -> dict[str, float]:
        return benchmarks.score(model, samples, "toy", **options)[0][0].metrics

    with pytest.raises(ValueError, match=r"--fov.*--align median"):
        scores()
    wide, narrow = (scores(fov=fov)["abs_rel"] for fov in (90.0, 30.0))
    assert wide != pytest.approx(narrow, rel=1e-3)
    aligned = scores(alignment="median")
    assert aligned == pytest.approx(scores(alignment="median", fov=20.0), rel=1e-3)
    with pytest.raises(ValueError, match="needs no camera"):
        benchmarks.score(dafast.DepthAnything(tiny()), samples, "toy", fov=60.0)


def test_missing_photos_are_named_once(seed, monkeypatch, notices):
    def absent():
        raise DataMissingError("aloe is not here")

    monkeypatch.setattr(builtin, "aloe", absent)
    monkeypatch.setattr(builtin, "motorcycle", lambda: list(_samples(seed)))
    assert len(builtin.builtin()) == 3 and notices.messages == ["builtin: aloe is not here"]
    notices.clear()
    monkeypatch.setattr(builtin, "motorcycle", absent)
    with pytest.raises(DataMissingError, match="aloe is not here; aloe is not here"):
        builtin.builtin()
    assert not notices.messages
