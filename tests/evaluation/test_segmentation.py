"""Mean IoU against torchmetrics, by hand, and through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dafast.cli import main
from dafast.data.segmentation import IGNORE, READERS, SegmentationDataset
from dafast.evaluation.segmentation import (
    confusion_matrix,
    constant_matrix,
    iou,
    open_segmentation,
    score,
    summarize,
)
from dafast.models import DepthAnything
from tests.data.test_segmentation_readers import write_list
from tests.forks import ranks
from tests.models.test_segmentation import TINY, build

ROOT = Path(__file__).parents[2]


def random_maps(rng: np.random.Generator, classes: int) -> tuple[Tensor, Tensor]:
    """Predictions and truth of a few images; some classes occur in one of them or in neither."""
    shape = (4, 17, 23)
    seen = rng.choice(classes, max(1, classes - 2), replace=False)
    truth = torch.from_numpy(rng.choice(seen, shape).astype(np.uint8))
    predicted = torch.from_numpy(rng.integers(0, classes, shape, dtype=np.uint8))
    right = torch.from_numpy(rng.random(shape) < 0.5)
    predicted = torch.where(right, truth, predicted)
    predicted[predicted == seen[0]] = int(seen[-1])
    truth[torch.from_numpy(rng.random(shape) < 0.2)] = IGNORE
    return predicted, truth


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 19, 150])
def test_scores_are_those_of_torchmetrics(classes: int, rng: np.random.Generator) -> None:
    metrics = pytest.importorskip("torchmetrics.classification")
    predicted, truth = random_maps(rng, classes)
    settings = {"num_classes": classes, "ignore_index": IGNORE}
    jaccard = metrics.MulticlassJaccardIndex(average="macro", **settings)
    each = metrics.MulticlassJaccardIndex(average="none", **settings)
    accuracy = metrics.MulticlassAccuracy(average="micro", **settings)
    matrix = torch.zeros((classes, classes), dtype=torch.int64)
    for p, t in zip(predicted, truth, strict=True):  # image by image, as a data set is
        for metric in (jaccard, each, accuracy):
            metric.update(p.long(), t.long())
        matrix += confusion_matrix(p, t, classes)
    names = [f"class {i}" for i in range(classes)]
    result = summarize(matrix, names, "data", "model", 4)
    assert result.miou == pytest.approx(float(jaccard.compute()), abs=1e-6)
    assert result.pixel_accuracy == pytest.approx(float(accuracy.compute()), abs=1e-6)
    per_class = each.compute()
    for name, value in zip(names, per_class.tolist(), strict=True):
        assert result.iou.get(name, 0.0) == pytest.approx(value, abs=1e-6)
    occurring = (matrix.sum(0) + matrix.sum(1)) > 0
    assert len(result.iou) == int(occurring.sum())
    assert torch.equal(iou(matrix).isnan(), ~occurring)


def test_mean_accuracy_counts_the_classes_of_the_truth(rng: np.random.Generator) -> None:
    predicted, truth = random_maps(rng, 7)
    result = summarize(confusion_matrix(predicted, truth, 7), map(str, range(7)), "", "", 4)
    present = truth[truth != IGNORE].unique()
    shares = [float((predicted[truth == c] == c).double().mean()) for c in present]
    assert result.mean_accuracy == pytest.approx(np.mean(shares))


def test_a_case_worked_by_hand() -> None:
    truth = torch.tensor([[0, 0, 0, 1], [1, 2, IGNORE, IGNORE]])
    predicted = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 0]])
    matrix = confusion_matrix(predicted, truth, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    result = summarize(matrix, "abcd", "data", "model", 1)
    assert result.iou == {"a": 2 / 4, "b": 1 / 4, "c": 0.0}  # d occurs nowhere
    assert result.miou == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert result.pixel_accuracy == pytest.approx(3 / 6)
    assert result.mean_accuracy == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_properties(rng: np.random.Generator) -> None:
    predicted, truth = random_maps(rng, 6)
    matrix = confusion_matrix(predicted, truth, 6)
    assert int(matrix.sum()) == int((truth != IGNORE).sum())
    perfect = confusion_matrix(torch.where(truth == IGNORE, 0, truth), truth, 6)
    best = summarize(perfect, "abcdef", "", "", 1)
    assert best.miou == best.pixel_accuracy == best.mean_accuracy == 1.0
    order = torch.from_numpy(rng.permutation(6))
    renamed = torch.where(truth == IGNORE, IGNORE, order[truth.long() % 6])
    other = confusion_matrix(order[predicted.long()], renamed, 6)
    mean = summarize(matrix, "abcdef", "", "", 1).miou
    assert summarize(other, "abcdef", "", "", 1).miou == pytest.approx(mean)


def test_the_constant_is_the_most_frequent_class(rng: np.random.Generator) -> None:
    predicted, truth = random_maps(rng, 5)
    matrix = confusion_matrix(predicted, truth, 5)
    frequent = int(np.bincount(truth[truth != IGNORE].numpy()).argmax())
    expected = confusion_matrix(torch.full_like(truth, frequent), truth, 5)
    assert torch.equal(constant_matrix(matrix), expected)


def test_wrong_maps_are_named() -> None:
    zeros = torch.zeros(2, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"predicted \(2, 3\), but truth \(3, 2\)"):
        confusion_matrix(zeros, zeros.T, 2)
    with pytest.raises(ValueError, match="classes 0 to 4; there are 2"):
        confusion_matrix(zeros + 4, zeros, 2)
    with pytest.raises(ValueError, match="no pixel that counts"):
        summarize(confusion_matrix(zeros, zeros + IGNORE, 2), "ab", "data", "model", 1)


def saved(folder: Path) -> Path:
    """A model of the classes of `write_list`."""
    import dataclasses

    model = build("linear")
    model.config = dataclasses.replace(model.config, classes=("a", "b", "c"))
    model.save_pretrained(folder)
    return folder


def test_score_is_that_of_the_maps(tmp_path: Path, rng: np.random.Generator) -> None:
    from dafast.models import SegmentationModel

    data = READERS["list"](write_list(tmp_path, rng), False)
    model = SegmentationModel.from_pretrained(saved(tmp_path / "m"), device="cpu", dtype="float32")
    results = score(model, data, "list")
    assert [(r.data, r.predictor, r.count) for r in results] == [
        ("list", "tiny-linear", 3),
        ("list", "constant", 3),
    ]
    maps = np.stack(model.segment([s.image for s in data]))
    truth = np.stack([s.classes for s in data])
    counted = truth != IGNORE
    assert results[0].pixel_accuracy == pytest.approx((maps == truth)[counted].mean())
    for i, name in enumerate("abc"):
        both = ((maps == i) & (truth == i))[counted].sum()
        either = ((maps == i) | (truth == i))[counted].sum()
        assert results[0].iou[name] == pytest.approx(both / either)
    other = SegmentationDataset([f"class {i}" for i in range(19)], data.keys, data.load)
    with pytest.raises(ValueError, match=r"its 19 classes \(class 0, .* are not the model's 3"):
        score(model, other, "cityscapes")


def test_synthetic_scenes_need_no_path() -> None:
    pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")
    from dafast.synthetic import CLASSES, HELD_OUT_SEED, render_scene

    data = open_segmentation("synthetic")
    assert len(data) == 500 and data.classes == CLASSES
    scene, sample = render_scene(HELD_OUT_SEED + 3), data.read(3)
    assert np.array_equal(sample.image, scene.image)
    assert np.array_equal(sample.classes, scene.classes)


@pytest.mark.parametrize("spec", ["kitti=x", "cityscapes", "list", "nonsense=y"])
def test_other_data_sets_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"no data set|read from a path"):
        open_segmentation(spec)


def test_the_command(tmp_path: Path, rng: np.random.Generator, capsys) -> None:
    path, model = write_list(tmp_path, rng), saved(tmp_path / "model")
    command = ["eval", "--model", str(model), "--device", "cpu", "--data", f"list={path}"]
    options = ["--window", "28", "--scales", "1", "1.5", "--flip", "--size", "42", "--stride", "20"]
    for extra in ([], options):
        out = tmp_path / "scores" / "out.json"
        assert main([*command, *extra, "--json", str(out)]) == 0
        printed = capsys.readouterr().out
        assert "tiny-linear" in printed and "constant" in printed and "miou" in printed
        entries = json.loads(out.read_text())
        assert [e["predictor"] for e in entries] == ["tiny-linear", "constant"]
        for entry in entries:
            assert entry["count"] == 3
            for metric in ("miou", "pixel_accuracy", "mean_accuracy"):
                assert 0 <= entry[metric] <= 1
        assert f"{entries[0]['miou']:.4f}" in printed
    assert main([*command, "--md"]) == 0
    assert "| list | a | " in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--align", "median"], ["--protocol", "moge"],
                                   ["--fit", "official"], ["--cache", "x"]])  # fmt: skip
def test_options_of_depth_are_refused(given: list[str], tmp_path: Path, capsys) -> None:
    model = saved(tmp_path / "model")
    assert main(["eval", "--model", str(model), "--data", "synthetic", *given]) == 1
    assert re.search(f"segmentation model: leave out {given[0]}", capsys.readouterr().err)


def test_options_of_segmentation_are_refused(tmp_path: Path, capsys) -> None:
    DepthAnything(TINY).save_pretrained(tmp_path / "depth")
    assert main(["eval", "--model", str(tmp_path / "depth"), "--window", "28"]) == 1
    assert "--window is for segmentation models" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path: Path, rng: np.random.Generator) -> None:
    path, model = write_list(tmp_path, rng, count=5), saved(tmp_path / "model")
    arguments = ["eval", "--model", str(model), "--dtype", "float32", "--data", f"list={path}"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert main([*arguments, "--device", "cpu", "--json", str(one)]) == 0
    ranks(lambda: main([*arguments, "--json", str(two)]), 2)
    assert json.loads(one.read_text()) == json.loads(two.read_text())
