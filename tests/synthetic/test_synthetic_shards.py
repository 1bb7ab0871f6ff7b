"""Shards of synthetic scenes: what is written, resuming, failures."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")

from dafast.data.shards import ShardDataset
from dafast.synthetic import render_scene, shards, write_shards

SMALL = (64, 48)


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}


@pytest.mark.slow
def test_round_trip(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, seed=7, workers=1, shard_size=2, size=SMALL, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "synthetic-000000.tar",
        "synthetic-000001.tar",
        "synthetic.json",
    ]
    assert len(ShardDataset(tmp_path)) == len(ShardDataset(f"{tmp_path}/*")) == 3
    members = read(tmp_path / "synthetic-000000.tar") | read(tmp_path / "synthetic-000001.tar")
    assert len(members) == 12
    for k in range(3):
        sample = render_scene(7 + k, size=SMALL)
        meta = json.loads(members[f"{k:08d}.json"])
        assert meta["seed"] == 7 + k
        assert meta["kind"] == sample.kind
        assert (meta["fx"], meta["cy"]) == (sample.fx, sample.cy)
        code = np.asarray(Image.open(io.BytesIO(members[f"{k:08d}.disparity.png"])))
        assert code.dtype == np.uint16
        disparity = code / 65535 * meta["disparity_max"]
        assert np.abs(disparity - sample.disparity).max() <= meta["disparity_max"] / 65535
        assert ((code == 0) | np.isfinite(sample.depth)).all()
        classes = np.asarray(Image.open(io.BytesIO(members[f"{k:08d}.classes.png"])))
        assert np.array_equal(classes, sample.classes)
        image = np.asarray(Image.open(io.BytesIO(members[f"{k:08d}.jpg"])), float)
        assert image.shape == sample.image.shape
        assert np.abs(image - sample.image).mean() < 25


def test_kinds_take_turns(tmp_path: Path) -> None:
    kinds = ["corridor", "topdown"]
    write_shards(tmp_path, 3, seed=5, workers=1, size=SMALL, kinds=kinds, progress=False)
    members = read(tmp_path / "synthetic-000000.tar")
    found = [json.loads(members[f"{k:08d}.json"])["kind"] for k in range(3)]
    assert found == ["topdown", "corridor", "topdown"]
    for other in (kinds[:1], None):
        with pytest.raises(ValueError, match=r"kinds .'corridor', 'topdown'., not"):
            write_shards(tmp_path, 3, seed=5, workers=1, size=SMALL, kinds=other, progress=False)
    with pytest.raises(ValueError, match="unknown kind attic"):
        write_shards(tmp_path / "new", 1, kinds=["attic"], progress=False)


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers_and_resume(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_shards(one, 5, seed=3, workers=1, shard_size=2, size=SMALL, progress=False)
    write_shards(two, 5, seed=3, workers=2, shard_size=2, size=SMALL, progress=False)
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in two.iterdir())
    before = {n: (one / n).read_bytes() for n in names}
    assert before == {n: (two / n).read_bytes() for n in names}
    # a second run renders only what is missing, and grows the last shard
    stamps = {n: (one / n).stat().st_mtime_ns for n in names}
    (one / names[1]).unlink()
    (one / f".{'0' * 32}.part").write_bytes(b"left by a killed run")
    write_shards(one, 6, seed=3, workers=1, shard_size=2, size=SMALL, progress=False)
    assert sorted(p.name for p in one.iterdir()) == names
    assert (one / names[0]).stat().st_mtime_ns == stamps[names[0]]
    assert (one / names[1]).read_bytes() == before[names[1]]
    assert len(read(one / names[2])) == 8


def test_other_seeds_in_the_folder_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, 1, seed=3, workers=1, size=SMALL, progress=False)
    with pytest.raises(ValueError, match=r"synthetic\.json.*seed 3, not 4"):
        write_shards(tmp_path, 1, seed=4, workers=1, size=SMALL, progress=False)
    (tmp_path / "synthetic.json").unlink()  # as folders of older versions are
    with pytest.raises(ValueError, match="begins with seed 3, not 4"):
        write_shards(tmp_path, 1, seed=4, workers=1, size=SMALL, progress=False)
    (tmp_path / "synthetic-000000.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match="is not a shard"):
        write_shards(tmp_path, 1, seed=4, workers=1, size=SMALL, progress=False)


@pytest.mark.slow
def test_what_defines_the_set_is_kept_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.new("RGB", (300, 300), "teal").save(photos / "a.png")
    write_shards(out, 2, workers=1, shard_size=1, size=SMALL, textures=photos)
    assert "already there" not in capsys.readouterr().err
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    write_shards(out, 2, workers=1, shard_size=1, size=SMALL, textures=photos)
    assert capsys.readouterr().err == "synth: 2 of 2 scenes already there\n"
    with pytest.raises(ValueError, match="made with textures"):
        write_shards(out, 2, workers=1, shard_size=1, size=SMALL)
    with pytest.raises(ValueError, match="made with size"):
        write_shards(out, 2, workers=1, shard_size=1, size=(48, 64), textures=photos)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "__version__", "0.0")
        with pytest.raises(ValueError, match="made with version"):
            write_shards(out, 2, workers=1, shard_size=1, size=SMALL, textures=photos)
    Image.new("RGB", (300, 300), "red").save(photos / "b.png")
    with pytest.raises(ValueError, match="made with textures"):
        write_shards(out, 2, workers=1, shard_size=1, size=SMALL, textures=photos)
    assert before == {p.name: p.read_bytes() for p in out.iterdir()}

    (out / "synthetic.json").unlink()
    write_shards(out, 3, workers=1, shard_size=1, size=SMALL)
    assert not (out / "synthetic.json").exists(), "nobody knows what the older scenes are"
    (out / "synthetic.json").write_text("half")
    with pytest.raises(ValueError, match="cannot be read"):
        write_shards(out, 2, workers=1, shard_size=1, size=SMALL)
    for shard in out.glob("*.tar"):
        shard.unlink()
    write_shards(out, 1, seed=9, workers=1, size=SMALL)  # what an empty folder says is forgotten


@pytest.mark.slow
@pytest.mark.parametrize("described", [True, False])
def test_shards_of_another_size_are_refused(described: bool, tmp_path: Path) -> None:
    write_shards(tmp_path, 6, workers=1, shard_size=3, size=SMALL, progress=False)
    if not described:
        (tmp_path / "synthetic.json").unlink()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for scenes, size, message in (
        (6, 2, "000.tar holds 3 scenes, more than 2: .*shard size"),
        (2, 6, "001.tar begins with seed 3, not 6: .*shard size"),
        (6, 6, "001.tar begins with seed 3, not 6"),
    ):
        with pytest.raises(ValueError, match=message):
            write_shards(tmp_path, scenes, workers=1, shard_size=size, size=SMALL, progress=False)
    write_shards(tmp_path, 4, workers=1, shard_size=3, size=SMALL, progress=False)  # has them
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


@pytest.mark.slow
def test_scenes_do_not_depend_on_the_shards(tmp_path: Path) -> None:
    for size in (1, 3):
        out = tmp_path / str(size)
        write_shards(out, 3, workers=1, shard_size=size, size=SMALL, progress=False)
    one: dict[str, bytes] = {}
    for shard in (tmp_path / "1").glob("*.tar"):
        one |= read(shard)
    assert one == read(tmp_path / "3" / "synthetic-000000.tar")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="has no SIGTERM to catch")
def test_sigterm_stops_the_workers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dafast", "synth", "--scenes", "4000", "--workers", "2"]
    command += ["--shard-size", "2000", "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 240
        while len(list(tmp_path.glob(".*.part"))) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(240) == 128 + signal.SIGTERM
    finally:
        process.kill()
    # A worker that still ran would hold the lock on its unfinished shard, which would then stay.
    assert [p.name for p in tmp_path.iterdir()] == ["synthetic.json"]


def test_failing_scene_is_named_and_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seed: int, **_: object) -> None:
        if seed == 12:
            raise FloatingPointError("boom")
        return render_scene(seed, size=SMALL)

    monkeypatch.setattr(shards, "render_scene", fail)
    with pytest.raises(RuntimeError, match=r"seed 12 failed.*boom"):
        write_shards(tmp_path, 4, seed=10, workers=1, shard_size=2, size=SMALL, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["synthetic-000000.tar", "synthetic.json"]


def test_interrupt_leaves_finished_shards_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(seed: int, **_: object) -> None:
        if seed == 3:
            raise KeyboardInterrupt
        return render_scene(seed, size=SMALL)

    monkeypatch.setattr(shards, "render_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, 4, workers=1, shard_size=2, size=SMALL, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["synthetic-000000.tar", "synthetic.json"]


@pytest.mark.slow
def test_worker_error_reaches_the_caller(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"seed [02] failed"):
        write_shards(tmp_path, 4, workers=2, shard_size=2, size=(0, 0), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["synthetic.json"]


def test_textures_that_are_not_there_are_told_first(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"texture folder .*nowhere does not exist"):
        write_shards(tmp_path / "out", 4, textures=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"texture folder .*empty holds no pictures"):
        write_shards(tmp_path / "out", 4, textures=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_worker_that_dies_is_an_error_not_a_hang(tmp_path: Path) -> None:
    task = shards._ShardTask(tmp_path / "synthetic-000000.tar", 0, 1, 0, SMALL, None)
    twin = shards._ShardTask(tmp_path / "synthetic-000001.tar", 1, 1, 0, SMALL, None)
    running = shards._run_parallel([task, twin, _Deadly()], 2)  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match=r"a worker died \(exit code 9\)"):
        list(running)


class _Deadly(shards._ShardTask):
    """A task that ends its worker when it is unpickled there."""

    def __init__(self) -> None:
        super().__init__(Path("synthetic-000002.tar"), 2, 1, 0, SMALL, None)

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (9,)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scenes >= 1"):
        write_shards(tmp_path, 0)
    with pytest.raises(ValueError, match="held-out"):
        write_shards(tmp_path, 3, seed=2**31 - 2)
