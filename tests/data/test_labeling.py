"""Pseudo-labels: what is written is what the teacher saw, and nothing finished is lost."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from dafast.cli import main
from dafast.data import labeling
from dafast.data.labeling import encode_label, label_shards
from dafast.data.shards import ShardDataset, minmax
from dafast.models.depth_anything import DepthAnything
from dafast.models.inference import predict_native
from tests.forks import Fork
from tests.tiny import tiny as smallest
from tests.training import tiny


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    tiny.trained_model().save_pretrained(folder)
    return folder


def brightness(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A teacher that can be looked through: the mean colour, at half the resolution."""
    return [image[::2, ::2].mean(-1).astype(np.float32) for image in images]


def label(teacher: Path, photos: Path, out: Path, *extra: str) -> int:
    command = ["label", "--model", str(teacher), "--in", str(photos), "--out", str(out)]
    return main([*command, "--dtype", "float32", "--device", "cpu", *extra])


@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_values_are_off_by_half_a_step_at_most(
    spread: float, shift: float, rng: np.random.Generator, tmp_path: Path
) -> None:
    disparity = (shift + spread * rng.random((37, 52))).astype(np.float32)
    encoded = encode_label(disparity)
    assert encoded is not None
    png, numbers = encoded
    image = tiny.encode(np.zeros((111, 156, 3), np.uint8), "JPEG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tiny.add_member(tar, "x.jpg", image)
        tiny.add_member(tar, "x.disparity.png", png)
        tiny.add_member(tar, "x.json", json.dumps(numbers).encode())
    step = float(disparity.max() - disparity.min()) / 65535
    read = ShardDataset(tmp_path, labels="physical")[0].disparity.astype(np.float64)
    float32 = 2 * np.spacing(np.abs(disparity).max())
    assert np.abs(read - disparity).max() <= 0.5 * step * (1 + 1e-6) + float32
    scaled = ShardDataset(tmp_path)[0].disparity
    everywhere = np.ones(disparity.shape, bool)
    np.testing.assert_allclose(scaled, minmax(disparity, everywhere), atol=1 / 65535)


def test_flat_maps_and_maps_that_are_not_finite() -> None:
    encoded = encode_label(np.full((3, 4), 2.5, np.float32))
    assert encoded is not None
    assert (encoded[1]["disparity_scale"], encoded[1]["disparity_offset"]) == (0.0, 2.5)
    for bad in (np.nan, np.inf):
        assert encode_label(np.array([[0.0, bad]], np.float32)) is None


@pytest.mark.parametrize("size", [None, 28])
def test_labels_are_what_the_teacher_sees(
    teacher: Path, tmp_path: Path, seed: int, size: int | None, capsys: pytest.CaptureFixture
) -> None:
    photos = tiny.write_shards(tmp_path / "photos", 3, 5, seed, labeled=False)
    out = tmp_path / "out"
    assert label(teacher, photos, out, *(["--size", str(size)] if size else [])) == 0
    text = "".join(capsys.readouterr())
    assert "3 shards with 15 images written" in text
    assert "00002.tar  3/3 shards" in text
    names = ["00000.tar", "00001.tar", "00002.tar", "labels.json"]
    assert sorted(p.name for p in out.iterdir()) == names
    model = DepthAnything.from_pretrained(teacher, device="cpu", dtype="float32")
    images, labels = ShardDataset(photos, labels="none"), ShardDataset(out, labels="physical")
    assert len(labels) == len(images) == 15
    for i in range(len(images)):
        assert labels.name(i) == images.name(i)
        assert labels.image_file(i) == images.image_file(i), "the image as it was"
        height, width = images[i].image.shape[:2]
        seen = predict_native(model, [images[i].image], size=size)[0]
        shorter = size or tiny.TINY.image_size
        assert seen.shape == (
            (shorter, round(width * shorter / height))
            if height < width
            else (round(height * shorter / width), shorter)
        )
        extent = float(seen.max() - seen.min())
        assert extent > 0
        assert labels[i].disparity.shape == seen.shape
        # Predicted in another batch: a rounding or two, next to half a step of the 16 bits.
        assert np.abs(labels[i].disparity - seen).max() < 1e-4 * extent + 1e-5 * seen.max()


def test_a_calibrated_teacher_labels_in_inverse_metres(
    teacher: Path, tmp_path: Path, seed: int
) -> None:
    photos = tiny.write_shards(tmp_path / "photos", 1, 1, seed, labeled=False)
    model = DepthAnything.from_pretrained(teacher, dtype="float32")
    model.config = dataclasses.replace(model.config, calibration=(0.01, 0.1))
    model.save_pretrained(tmp_path / "calibrated")
    read = []
    for name, source in (("relative", teacher), ("metres", tmp_path / "calibrated")):
        assert label(source, photos, tmp_path / name) == 0
        read.append(ShardDataset(tmp_path / name, labels="physical"))
    relative, metres = read
    assert (relative.unit(0), metres.unit(0)) == ("relative", "1/metre")
    wanted = 0.01 * relative[0].disparity + 0.1
    np.testing.assert_allclose(metres[0].disparity, wanted, rtol=1e-4)


def test_native_maps_resized_are_those_of_infer(teacher: Path, rng: np.random.Generator) -> None:
    model = DepthAnything.from_pretrained(teacher, device="cpu", dtype="float32")
    image = rng.integers(0, 256, (42, 70, 3), np.uint8)  # as the network sees it
    assert np.array_equal(predict_native(model, [image])[0], model.infer(image))


def test_bad_images_are_named_and_left_out(
    teacher: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    photos = tiny.write_shards(tmp_path / "in", 2, 4, seed, labeled=False, broken=range(1, 3))
    (photos / "00002.tar").write_bytes(b"not a tar" * 200)
    out = tmp_path / "out"
    for _ in range(2):  # the second run finds the shards and still knows what is missing
        assert label(teacher, photos, out) == 1
        text = capsys.readouterr().out
        assert "5 failures" in text
        assert "FAILED 00000.tar/000001: " in text
        assert "FAILED 00002.tar: " in text
    assert "2 already there" in text
    assert not (out / "00002.tar").exists()
    labels = ShardDataset(out)
    assert [labels.name(i) for i in range(len(labels))] == [
        *("00000.tar/000000", "00000.tar/000003", "00001.tar/000004", "00001.tar/000007")
    ]


def test_other_fields_stay_and_an_earlier_label_goes(tmp_path: Path, seed: int) -> None:
    labeled = tiny.write_shards(tmp_path / "in", 1, 3, seed)
    (tmp_path / "out").mkdir()
    report = label_shards(brightness, sorted(labeled.glob("*.tar")), tmp_path / "out")
    assert (report.shards, report.images, report.failures) == (1, 3, [])
    data = ShardDataset(tmp_path / "out", labels="physical")
    assert data.meta(0)["kind"] == "test"
    assert "disparity_max" not in data.meta(0)
    expected = brightness([data[1].image])[0]
    np.testing.assert_allclose(data[1].disparity, expected, atol=0.01)


def test_an_interrupted_shard_is_written_again_and_a_finished_one_is_not(
    tmp_path: Path, seed: int
) -> None:
    photos = tiny.write_shards(tmp_path / "in", 3, 2, seed, labeled=False)
    shards, out = sorted(photos.glob("*.tar")), tmp_path / "out"
    out.mkdir()
    calls = 0

    def dies(images: Sequence[np.ndarray]) -> list[np.ndarray]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return brightness(images)

    with pytest.raises(KeyboardInterrupt):
        label_shards(dies, shards, out)
    assert [p.name for p in out.iterdir()] == ["00000.tar"]
    before = (out / "00000.tar").stat()
    report = label_shards(brightness, shards, out)
    assert (report.shards, report.kept) == (2, 1)
    after = (out / "00000.tar").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(ShardDataset(out)) == 6


@pytest.mark.slow
def test_killed_and_run_again_by_two(teacher: Path, tmp_path: Path, seed: int) -> None:
    """Kill -9 in the middle of a run; then two ranks, as torchrun names them, finish it."""
    photos = tiny.write_shards(tmp_path / "in", 6, 5, seed, labeled=False)
    out = tmp_path / "out"

    def run() -> int:
        command = ["label", "--model", str(teacher), "--in", str(photos), "--out", str(out)]
        return main([*command, "--device", "cpu", "--dtype", "float32"])

    def run_and_die() -> int:
        real, shards = labeling.LabelJob.write, itertools.count()

        def die(images: Sequence[np.ndarray]) -> NoReturn:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        def dying(job: Any, source: Any, file: Any, predict: Any, pool: Any) -> Any:
            return real(job, source, file, die if next(shards) == 2 else predict, pool)

        labeling.LabelJob.write = dying  # only in the child
        return run()

    assert Fork(run_and_die, {}).wait(300) == -signal.SIGKILL
    finished = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    assert len(finished) == 2
    both = [Fork(run, {"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    assert [process.wait(300) for process in both] == [0, 0], both[0].stderr + both[1].stderr
    outputs = [process.stdout for process in both]
    written = [int(text.split()[0]) for text in outputs]
    assert sum(written) == 6 - len(finished), outputs
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert len(ShardDataset(out)) == 30
    assert not list(out.glob(".*.part"))


def test_mistakes_are_named(teacher: Path, tmp_path: Path, seed: int, capsys) -> None:
    photos = tiny.write_shards(tmp_path / "in", 1, 2, seed, labeled=False)
    out = tmp_path / "out"

    def error(*arguments: str) -> str:
        assert main(["label", "--device", "cpu", *arguments]) == 1
        return capsys.readouterr().err

    common = ("--model", str(teacher))
    assert "another folder" in error(*common, "--in", str(tmp_path / "no"), "--out", str(out))
    assert "choose another" in error(*common, "--in", str(photos), "--out", str(photos))
    tiny.write_shards(tmp_path / "in2", 1, 2, seed, labeled=False)
    both = str(tmp_path / "in*" / "*.tar")
    assert "more than one shard called 00000.tar" in error(*common, "--in", both, "--out", str(out))
    assert label(teacher, photos, out) == 0
    capsys.readouterr()
    text = error(*common, "--in", str(photos), "--out", str(out), "--size", "28")
    assert "labels.json: the labels there were made with" in text
    assert "size 42, not 28" in text


def test_a_model_of_depth_labels_nothing(tmp_path: Path, seed: int, capsys) -> None:
    photos = tiny.write_shards(tmp_path / "in", 1, 2, seed, labeled=False)
    DepthAnything(smallest(output="exp", kind="depth")).save_pretrained(tmp_path / "depth")
    command = ["label", "--device", "cpu", "--model", str(tmp_path / "depth")]
    assert main([*command, "--in", str(photos), "--out", str(tmp_path / "out")]) == 1
    assert "predicts depth, and labels are disparity" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
