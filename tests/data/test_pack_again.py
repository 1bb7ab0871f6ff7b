"""Packing into a folder that has shards: sources that changed, and several processes at once."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafast.cli import main
from dafast.data import pack as packing
from dafast.data.sources import folder_source
from tests.data.packing import make_photos, pack, picture
from tests.data.test_picture_readers import sa1b
from tests.data.test_readers import MAKE


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    return make_photos(tmp_path / "photos", rng)


def depth_list(folder: Path, rng: np.random.Generator, count: int = 5) -> Path:
    """A list of pictures with depth of one size in bytes, and a mask for each."""
    for i in range(count):
        picture(folder / f"{i}.png", rng)
        np.save(folder / f"{i}.npy", rng.uniform(1, 9, (40, 60)))
        mask = (rng.random((40, 60)) > 0.2).astype(np.uint8) * 255
        Image.fromarray(mask).save(folder / f"mask-{i}.png")
    rows = [f"{i}.png,{i}.npy,mask-{i}.png\n" for i in range(count)]
    (folder / "list.csv").write_text("image,depth,mask\n" + "".join(rows))
    return folder / "list.csv"


def same_as_packed_again(out: Path, source: Path, again: Path, *options: str) -> None:
    assert pack(source, again, *options) == 0
    shards = sorted(path.name for path in again.glob("*.tar"))
    assert sorted(path.name for path in out.glob("*.tar")) == shards
    for name in shards:
        assert (out / name).read_bytes() == (again / name).read_bytes()
    assert json.loads((out / "manifest.json").read_text()) == json.loads(
        (again / "manifest.json").read_text()
    )


@pytest.mark.parametrize("kind", ["list", "folder"])
def test_another_set_of_the_same_names_is_told(
    kind: str, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    sources = [tmp_path / where / "photos" for where in "ab"]
    for folder in sources:
        depth_list(folder, rng)
    if kind == "list":
        sources = [folder / "list.csv" for folder in sources]
    out = tmp_path / "out"
    assert pack(sources[0], out) == 0
    before = (out / "shard-000000.tar").read_bytes()
    capsys.readouterr()
    assert pack(sources[1], out) == 1
    message = capsys.readouterr().err
    assert (
        "1 of 1 shards were packed from (shard-000000.tar) have changed in size or date" in message
    )
    assert (out / "shard-000000.tar").read_bytes() == before
    assert pack(sources[0], out) == 0, "its own files are as they were"


@pytest.mark.parametrize("changed", ["3.png", "3.npy", "mask-3.png"])
def test_a_corrected_file_is_packed_again(
    changed: str, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    table, out = depth_list(tmp_path / "in", rng), tmp_path / "out"
    options = ("--shard-size", "2")
    assert pack(table, out, *options) == 0
    other = depth_list(tmp_path / "other", rng).parent
    shutil.copy(other / changed, tmp_path / "in" / changed)
    capsys.readouterr()
    assert pack(table, out, *options) == 1
    message = capsys.readouterr().err
    assert (
        "1 of 3 shards were packed from (shard-000001.tar) have changed in size or date" in message
    )
    assert "remove those shards" in message
    kept = (out / "shard-000000.tar").stat().st_mtime_ns
    (out / "shard-000001.tar").unlink()
    assert pack(table, out, *options) == 0
    assert (out / "shard-000000.tar").stat().st_mtime_ns == kept
    same_as_packed_again(out, table, tmp_path / "again", *options)


def test_a_fixed_file_is_noticed(
    photos: Path, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    (photos / "3.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert pack(photos, out) == 1
    picture(photos / "3.jpg", rng, quality=90)
    capsys.readouterr()
    assert pack(photos, out) == 1
    assert "(shard-000000.tar) have changed in size or date" in capsys.readouterr().err
    (out / "shard-000000.tar").unlink()
    assert pack(photos, out) == 0
    assert "6 samples of 6" in capsys.readouterr().out
    same_as_packed_again(out, photos, tmp_path / "again")


@pytest.mark.parametrize("name", ["irs", "diml", "hrwsi"])
def test_a_data_set_that_changed_is_told(
    name: str, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    made = MAKE[name](tmp_path / "set", rng)
    command = ["data", "pack", name, str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert main([*command, "--shard-size", "1"]) == 0
    label = made[int(rng.integers(len(made)))].label
    content = label.read_bytes()
    label.unlink()
    label.write_bytes(content)  # only its date is new
    capsys.readouterr()
    assert main([*command, "--shard-size", "1"]) == 1
    assert f"1 of {len(made)} shards" in capsys.readouterr().err


def test_pictures_in_an_archive_that_changed(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    sa1b(tmp_path / "set", rng)
    command = ["data", "pack", "sa1b", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert main(command) == 0
    archive = next(iter((tmp_path / "set").rglob("*.tar")))
    content = archive.read_bytes()
    archive.unlink()
    archive.write_bytes(content)
    assert main(command) == 1
    assert "have changed in size or date" in capsys.readouterr().err


def test_a_copy_with_its_dates_goes_on(tmp_path: Path, rng: np.random.Generator) -> None:
    table, out = depth_list(tmp_path / "a" / "in", rng), tmp_path / "out"
    assert pack(table, out, "--shard-size", "2") == 0
    shutil.copytree(table.parent, tmp_path / "b" / "in")  # as cp -a does
    shutil.rmtree(tmp_path / "a")
    (out / "shard-000002.tar").unlink()
    copy = tmp_path / "b" / "in" / "list.csv"
    assert pack(copy, out, "--shard-size", "2") == 0
    same_as_packed_again(out, copy, tmp_path / "again", "--shard-size", "2")


def test_a_manifest_of_an_earlier_version(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert pack(photos, out) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    earlier = {key: value for key, value in manifest.items() if key != "sources"}
    (out / "manifest.json").write_text(json.dumps(earlier))
    assert not caplog.records
    assert pack(photos, out) == 0
    assert "does not record the files of its shards" in caplog.text
    assert json.loads((out / "manifest.json").read_text()) == manifest


def complete(out: Path, count: int) -> None:
    shards = json.loads((out / "manifest.json").read_text())["shards"]
    assert list(shards) == [f"shard-{i:06d}.tar" for i in range(count)]
    for name, shard in shards.items():
        assert shard["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()


def test_a_late_process_keeps_what_another_has_noted(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds two shards; while it looks at the first the other process writes the third."""
    out, items = tmp_path / "out", folder_source(photos)
    held, others_done = threading.Event(), threading.Event()
    real = packing._describe

    class Slow(list):
        def __getitem__(self, index):
            if index == 4:
                others_done.set()
                assert held.wait(60)
            return super().__getitem__(index)

    slow = Slow(items[i] for i in range(len(items)))
    monkeypatch.setattr(packing, "_names", lambda items: "the same")
    monkeypatch.setattr(packing, "_sources", lambda items, *options: ["the same"] * 3)

    def run(items) -> int:
        return packing.pack(items, out, {}, shard_size=2, workers=1)[0]

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, slow)
        assert others_done.wait(60)

        def describe(file):
            if threading.current_thread() is threading.main_thread() and not held.is_set():
                held.set()
                assert first.result(60) == 6
                complete(out, 3)
            return real(file)

        monkeypatch.setattr(packing, "_describe", describe)
        assert run(items) == 6
    assert held.is_set()
    complete(out, 3)


def test_many_at_once_have_one_manifest(photos: Path, tmp_path: Path) -> None:
    out, items = tmp_path / "out", folder_source(photos)
    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(packing.pack, items, out, {}, shard_size=1, workers=2) for _ in range(4)
        ]
        assert max(run.result()[0] for run in runs) == 6
    complete(out, 6)
