"""`dafast run` decodes the next photo during a prediction, where the CPU is free."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from dafast._warnings import filtered
from dafast.cli import ahead, predictors
from tests.cli.helpers import contents, photo


@pytest.fixture
def folder(tmp_path, rng):
    """Photos of several kinds; one cannot be read."""
    for i in range(3):
        photo(tmp_path / "in" / f"{i}.png", rng)
    (tmp_path / "in" / "1b.png").write_bytes(b"not a picture")
    deep = rng.integers(0, 65536, (20, 30)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "in" / "3.png")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[41989] = 35  # FocalLengthIn35mmFilm
    exif[274] = 6  # a quarter turn
    picture = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    picture.save(tmp_path / "in" / "4.jpg", exif=exif)
    return tmp_path / "in"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the photos that are decoded ahead, as on a GPU."""
    decode, names = ahead.decode, []

    def noted(path, name):
        names.append(path.name)
        assert threading.current_thread() is not threading.main_thread()
        return decode(path, name)

    monkeypatch.setattr(ahead, "decode", noted)
    monkeypatch.setattr(predictors, "computes_elsewhere", lambda device: True)
    return names


def said_of_photos(text, out):
    lines = [line.replace(str(out), "OUT") for line in text.splitlines()]
    return [line.split("  ")[0] if "->" in line else line for line in lines if "/in/" in line]


OPTIONS = [
    ["--side-by-side", "--npy"], ["--common-range", "--side-by-side"], ["--guided"],
    ["--intrinsics", "exif", "--formats", "ply"], ["--tile", "56"],
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_results_and_failures_are_the_same(options, run, folder, tmp_path, monkeypatch):
    plain = run(folder, *options, out=tmp_path / "plain")
    monkeypatch.setattr(predictors, "computes_elsewhere", lambda device: True)
    fast = run(folder, *options, out=tmp_path / "fast")
    assert plain[0] == fast[0] == 1 and "FAILED" in fast[1]
    said = said_of_photos(fast[1], tmp_path / "fast")
    assert said == said_of_photos(plain[1], tmp_path / "plain") and len(said) >= 7
    assert contents(tmp_path / "fast") == contents(tmp_path / "plain") != {}


def test_one_photo_ahead(run, folder, decoded, monkeypatch):
    predict, seen = predictors.DepthPredictor.predict, []

    def noted(self, image, name, keep_image):
        names = ["0.png", "1.png", "1b.png", "2.png", "3.png", "4.jpg"]
        position = names.index(name)
        following = names[1 : position + 2]
        deadline = threading.Event()
        for _ in range(12_000):  # the next one is decoded during this prediction
            if decoded == following:
                break
            deadline.wait(0.01)
        assert decoded == following, "one photo ahead, not two"
        seen.append((name, type(image).__name__))
        return predict(self, image, name, keep_image)

    monkeypatch.setattr(predictors.DepthPredictor, "predict", noted)
    assert run(folder)[0] == 1
    assert [kind for name, kind in seen if name not in ("0.png", "1b.png")] == 4 * [
        "DecodedPicture"
    ]


def test_finished_photos_are_not_decoded(run, folder, decoded):
    (folder / "1b.png").unlink()
    assert run(folder)[0] == 0 and decoded.pop() == "4.jpg"
    decoded.clear()
    assert run(folder)[0] == 0 and decoded == []


def test_an_interrupted_run_ends_the_thread(run, folder, decoded, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictors.DepthPredictor, "predict", interrupt)
    code, text = run(folder)
    assert code == 130 and "interrupted with 6 left" in text
    assert not [t for t in threading.enumerate() if t.name.startswith("dafast-decode")]


def test_pipes_and_dropped_photos(folder):
    decoder = ahead.Ahead()
    decoder.start(folder / "0.png")
    decoder.start(folder / "1.png")
    assert decoder.take(folder / "0.png") is None, "only the newest waits"
    np.testing.assert_array_equal(
        decoder.take(folder / "1.png").pixels, np.asarray(Image.open(folder / "1.png"))
    )
    decoder.start(None)
    decoder.start(folder / "1b.png")
    assert decoder.take(folder / "1b.png") is None, "read again, for its error"
    decoder.close()


def test_threads_leave_the_filters_of_warnings():
    before, inside, leave = list(warnings.filters), threading.Event(), threading.Event()

    def first():
        with filtered("ignore"):
            inside.set()
            leave.wait(0.2)  # without a lock the second enters now

    def second():
        inside.wait()
        with filtered("error"):
            leave.set()
            threads[0].join()  # and leaves last

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before
