"""Shards of synthetic scenes: what is written, resuming, failures."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")

from dafast.data.synthetic import render_scene, shards, write_shards

SMALL = (64, 48)


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}


def test_round_trip(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, seed=7, workers=1, shard_size=2, size=SMALL, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "synthetic-000000.tar",
        "synthetic-000001.tar",
    ]
    members = read(tmp_path / "synthetic-000000.tar") | read(tmp_path / "synthetic-000001.tar")
    assert len(members) == 9
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
        image = np.asarray(Image.open(io.BytesIO(members[f"{k:08d}.jpg"])), float)
        assert image.shape == sample.image.shape
        assert np.abs(image - sample.image).mean() < 25


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
    (one / ".synthetic-000001.tar.999999999.tmp").write_bytes(b"left by a killed run")
    write_shards(one, 6, seed=3, workers=1, shard_size=2, size=SMALL, progress=False)
    assert sorted(p.name for p in one.iterdir()) == names
    assert (one / names[0]).stat().st_mtime_ns == stamps[names[0]]
    assert (one / names[1]).read_bytes() == before[names[1]]
    assert len(read(one / names[2])) == 6


def test_other_seeds_in_the_folder_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, 1, seed=3, workers=1, size=SMALL, progress=False)
    with pytest.raises(ValueError, match="begins with seed 3, not 4"):
        write_shards(tmp_path, 1, seed=4, workers=1, size=SMALL, progress=False)
    (tmp_path / "synthetic-000000.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match="is not a shard"):
        write_shards(tmp_path, 1, seed=4, workers=1, size=SMALL, progress=False)


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
    assert [p.name for p in tmp_path.iterdir()] == ["synthetic-000000.tar"]


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
    assert [p.name for p in tmp_path.iterdir()] == ["synthetic-000000.tar"]


def test_worker_error_reaches_the_caller(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"seed [02] failed.*does not exist"):
        write_shards(
            tmp_path,
            4,
            workers=2,
            shard_size=2,
            size=SMALL,
            textures=tmp_path / "x",
            progress=False,
        )
    assert list(tmp_path.iterdir()) == []


def test_worker_that_dies_is_an_error_not_a_hang(tmp_path: Path) -> None:
    task = shards._Task(tmp_path / "synthetic-000000.tar", 0, 1, 0, SMALL, None)
    twin = shards._Task(tmp_path / "synthetic-000001.tar", 1, 1, 0, SMALL, None)
    running = shards._run_parallel([task, twin, _Deadly()], 2)  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match=r"a worker died \(exit code 9\)"):
        list(running)


class _Deadly(shards._Task):
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
