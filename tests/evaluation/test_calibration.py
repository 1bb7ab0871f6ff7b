"""`dafast calibrate`: the scale is found, stored, and honoured by other commands."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dafast.cli import main
from dafast.config import ModelConfig
from dafast.evaluation.calibration import calibrate
from dafast.evaluation.samples import EvaluationSample
from dafast.models import DepthAnything
from tests.cli.helpers import save_model
from tests.tiny import TINY, tiny

MODELS = [
    ({}, "scale-shift", (0.5, 0.2)),
    ({}, "scale", (0.3, 0.0)),
    (dict(max_depth=10.0), "scale", (1.3, 0.0)),
    (dict(max_depth=10.0), "scale-shift", (1.3, 0.4)),
    (dict(kind="depth", output="exp"), "scale-shift", (2.0, 0.5)),
    (dict(kind="depth", output="exp", sky_head=True), "scale", (3.0, 0.0)),
]


def samples_of(model, rng, scale, shift, count=3):
    """Photos whose depth is what a calibrated model would predict, with some wrong pixels."""
    infer = model.infer_metric if model.config.is_metric else model.infer
    found = []
    for i in range(count):
        photo = rng.integers(0, 256, (40, 60, 3), np.uint8)
        depth = scale * infer(photo) + shift
        if model.config.quantity == "disparity":
            depth = 1 / depth
        depth[rng.random(depth.shape) < 0.1] *= 3
        depth[:4] = 0
        found.append(EvaluationSample(str(i), photo, depth.astype(np.float32), 1000.0))
    return found


@pytest.fixture
def load(tmp_path):
    def load(**changes):
        return DepthAnything.from_pretrained(
            save_model(tmp_path / "model", tiny(**changes)), device="cpu", dtype="float32"
        )

    return load


@pytest.mark.parametrize(("changes", "fit", "truth"), MODELS)
def test_the_scale_is_found(changes, fit, truth, load, rng):
    model = load(**changes)
    found = calibrate(model, samples_of(model, rng, *truth), fit)
    assert (found.scale, found.shift) == pytest.approx(truth, rel=0.02, abs=0.02)
    assert model.config.calibration == (found.scale, found.shift)
    assert found.images == 3 and found.after < 0.02
    assert (found.before is None) == (not model.config.is_metric)


def test_the_default_fits_what_is_unknown(load, rng):
    relative = load()
    calibrate(relative, samples_of(relative, rng, 0.5, 0.2))
    assert relative.config.calibration[1] != 0
    metric = load(max_depth=10.0)
    calibrate(metric, samples_of(metric, rng, 1.5, 0.0))
    assert metric.config.calibration == pytest.approx((1.5, 0.0), rel=0.02)


@pytest.mark.slow
def test_predictions_honour_it(load, rng):
    photo = rng.integers(0, 256, (40, 60, 3), np.uint8)
    for changes, _, (scale, shift) in MODELS:
        model = load(**changes)
        plain = model.predict(photo)
        model.config = dataclasses.replace(model.config, calibration=(scale, shift))
        result = model.predict(photo)
        np.testing.assert_allclose(result.values, scale * plain.values + shift, rtol=1e-4)
        assert result.unit == ("1/m" if result.near_is_large else "m")
        infer = model.infer_metric if model.config.is_metric else model.infer
        np.testing.assert_allclose(infer(photo), result.values, rtol=1e-4)


def test_a_second_calibration_replaces_the_first(load, rng):
    model = load(max_depth=10.0)
    samples = samples_of(model, rng, 2.0, 0.0)
    first = calibrate(model, samples)
    assert calibrate(model, samples).scale == pytest.approx(first.scale)


@pytest.mark.slow
def test_the_command_stores_it_and_eval_reads_it(tmp_path, rng, capsys):
    source = save_model(tmp_path / "model", TINY)
    model = DepthAnything.from_pretrained(source, device="cpu", dtype="float32")
    rows = ["image,depth"]
    for sample in samples_of(model, rng, 0.5, 0.2):
        Image.fromarray(sample.image).save(tmp_path / f"{sample.name}.png")
        np.save(tmp_path / f"{sample.name}.npy", sample.depth)
        rows.append(f"{sample.name}.png,{sample.name}.npy")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    own = ["--model", source, "--device", "cpu", "--dtype", "float32"]
    command = ["calibrate", *own, "--data", str(tmp_path / "list.csv"), "--out"]
    assert main([*command, str(tmp_path / "new")]) == 0
    (printed,) = re.findall(r"scale (0\.\d+)", capsys.readouterr().out)
    assert float(printed) == pytest.approx(0.5, abs=0.02)
    stored = json.loads((tmp_path / "new" / "config.json").read_text())["model"]["calibration"]
    assert stored == pytest.approx([0.5, 0.2], abs=0.02)
    scored = ["eval", "--model", str(tmp_path / "new"), "--data", f"list={tmp_path / 'list.csv'}"]
    assert main([*scored, "--align", "none", "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores[0]["delta_1"] > 0.85  # a tenth of the depth is wrong
    photo, out = str(tmp_path / "0.png"), tmp_path / "depth"
    formats = ["--formats", "png16,npz,color,ply", "--out", str(out)]
    assert main(["run", photo, "--model", str(tmp_path / "new"), *formats]) == 0
    depth = np.load(out / "0.npz")
    assert depth["kind"] == "depth" and depth["unit"] == "m"
    disparity = 0.5 * model.infer(photo) + 0.2
    np.testing.assert_allclose(depth["depth"], 1 / disparity, rtol=0.1)
    millimetres = np.asarray(Image.open(out / "0_depth.png"))
    np.testing.assert_allclose(millimetres / 1000, depth["depth"], atol=1e-3)
    half = [*command, str(tmp_path / "half"), "--dtype", "bfloat16"]
    assert main(half) == 0
    kept = DepthAnything.from_pretrained(tmp_path / "half", device="cpu", dtype="float32")
    weights = kept.state_dict()
    for name, weight in model.state_dict().items():  # the weights are not rounded
        assert torch.equal(weights[name], weight), name
    assert kept.config.calibration[0] == pytest.approx(0.5, rel=0.1)
    assert main([*command, str(tmp_path / "new")]) == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_a_model_that_needs_the_camera(tmp_path, rng, capsys):
    changes = dict(kind="metric", output="exp", focal_length=300.0)
    source = save_model(tmp_path / "model", tiny(**changes))
    model = DepthAnything.from_pretrained(source, device="cpu", dtype="float32")
    photo = rng.integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", 1.7 * model.predict(photo, fov=50).values)
    (tmp_path / "list.csv").write_text("image,depth\na.png,a.npy\n")
    own = ["--model", source, "--device", "cpu", "--dtype", "float32"]
    command = ["calibrate", *own, "--data", str(tmp_path / "list.csv"), "--out"]
    assert main([*command, str(tmp_path / "new")]) == 1
    assert "pass --fov" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "new"), "--fov", "50"]) == 0
    stored = json.loads((tmp_path / "new" / "config.json").read_text())["model"]["calibration"]
    assert stored == pytest.approx([1.7, 0], rel=1e-4)


@pytest.mark.slow
def test_what_cannot_be_fitted_is_refused(load, rng):
    model = load(kind="metric", output="exp", focal_length=300.0)
    with pytest.raises(ValueError, match="only its scale"):
        calibrate(model, [], "scale-shift")
    with pytest.raises(ValueError, match="no photo"):
        calibrate(load(), [])
    with pytest.raises(ValueError, match="use one of scale"):
        calibrate(load(), [], "shift")
    with pytest.raises(ValueError, match="needs no camera"):
        calibrate(load(), [], fov=60)
    photo = rng.integers(0, 256, (40, 60, 3), np.uint8)
    near = EvaluationSample("a", photo, np.full((40, 60), 2.0, np.float32), 100.0)
    with pytest.raises(ValueError, match=r"does not determine a shift|do not grow"):
        calibrate(load(), [near])  # of one depth


@pytest.mark.parametrize("calibration", [(0.0, 1.0), (1.0,), (-1.0, 0.0), (1.0, float("nan"))])
def test_bad_calibrations_are_refused(calibration):
    with pytest.raises(ValueError, match="a scale above 0 and a shift"):
        ModelConfig(calibration=calibration)


def test_the_transformers_layout_has_no_place_for_it(load, tmp_path):
    model = load()
    model.config = dataclasses.replace(model.config, calibration=(2.0, 0.0))
    with pytest.raises(ValueError, match="has a calibration"):
        model.save_pretrained(tmp_path / "x", layout="transformers")
