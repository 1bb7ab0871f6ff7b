from __future__ import annotations

import errno
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafast.data import remote
from dafast.data.shards import SampleError, ShardDataset, ShardError
from tests.notices import Notices


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def members(rng: np.random.Generator, *, mask: bool = False) -> dict[str, bytes]:
    shape = (int(rng.integers(5, 30)), int(rng.integers(5, 30)))
    values = {
        "png": png(rng.integers(0, 256, (*shape, 3), np.uint8)),
        "disparity.png": png(rng.integers(0, 65536, shape, np.uint16)),
        "json": json.dumps({"disparity_max": float(rng.uniform(0.1, 3))}).encode(),
    }
    if mask:
        values["mask.png"] = png((rng.random(shape) > 0.5).astype(np.uint8) * 255)
    return values


def write(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def image_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_reads_back_what_was_written(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = {f"{i:04d}": members(rng, mask=i % 2 == 0) for i in range(9)}
    items = list(samples.items())
    write(tmp_path / "a.tar", dict(items[:4]))
    write(tmp_path / "b.tar", dict(items[4:]))
    data = ShardDataset(tmp_path)
    physical = ShardDataset(str(tmp_path / "*.tar"), labels="physical")
    assert len(data) == len(physical) == 9
    for i in rng.permutation(9):
        key, files = items[i]
        sample = data[int(i)]
        assert sample.key == f"{'a' if i < 4 else 'b'}.tar/{key}"
        assert np.array_equal(sample.image, image_of(files["png"]))
        raw = image_of(files["disparity.png"]).astype(np.float64)
        mask = image_of(files["mask.png"]) > 0 if "mask.png" in files else np.ones(raw.shape, bool)
        assert np.array_equal(sample.mask, mask)
        low, high = raw[mask].min(), raw[mask].max()
        np.testing.assert_allclose(
            sample.disparity[mask], (raw - low)[mask] / (high - low), atol=1e-6
        )
        unit = json.loads(files["json"])["disparity_max"] / 65535
        np.testing.assert_allclose(physical[int(i)].disparity, raw * unit, rtol=1e-6)
        assert sample.disparity.dtype == np.float32
    copy = pickle.loads(pickle.dumps(data))  # what a spawned worker gets
    assert np.array_equal(copy[3].image, data[3].image)
    assert np.array_equal(data[-1].image, data[8].image)
    with pytest.raises(IndexError):
        data[9]


def test_more_shards_than_may_be_open(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dafast.data.shards._MAX_OPEN_SHARDS", 2)
    rng = np.random.default_rng(seed)
    for i in range(5):
        write(tmp_path / f"{i}.tar", {"x": members(rng)})
    data = ShardDataset(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for i in [0, 1, 2, 3, 4, 0, 2, 4]:
        assert data[i].key == f"{i}.tar/x"
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_missing_folder_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no such folder.*nowhere.*dafast synth.*another folder"):
        ShardDataset(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"or set data\.eval_path to where"):
        ShardDataset(tmp_path / "nowhere", key="data.eval_path")
    with pytest.raises(ShardError, match="no shards"):
        ShardDataset(tmp_path)
    with pytest.raises(ShardError, match="pattern"):
        ShardDataset(str(tmp_path / "*.tar"))
    write(tmp_path / "a.tar", {})
    with pytest.raises(ShardError, match="empty"):
        ShardDataset(tmp_path)


def test_truncated_anywhere_is_noticed(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = write(tmp_path / "a.tar", {f"{i}": members(rng) for i in range(4)})
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        found = tar.getmembers()
    last = found[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    cuts = [int(cut) for cut in rng.integers(1, end, 12)]
    cuts += [member.offset for member in found[1:]] + [end]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match=r"a\.tar"):
            ShardDataset(path)
    path.write_bytes(b"not a tar at all" * 100)
    with pytest.raises(ShardError, match=r"a\.tar"):
        ShardDataset(path)


@pytest.mark.parametrize("suffix", ["png", "disparity.png", "json"])
def test_missing_member_is_named(tmp_path: Path, seed: int, suffix: str) -> None:
    rng = np.random.default_rng(seed)
    files = members(rng)
    del files[suffix]
    write(tmp_path / "a.tar", {"good": members(rng), "bad": files})
    with pytest.raises(ShardError, match=r"a\.tar has no member bad\."):
        ShardDataset(tmp_path)


@pytest.mark.parametrize("kind", ["garbage", "cut", "shape", "mode"])
def test_bad_sample_is_named_counted_and_replaced(tmp_path: Path, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    samples = {f"{i}": members(rng) for i in range(6)}
    bad = samples["2"]
    if kind == "garbage":
        bad["png"] = b"\x00" * 400
    elif kind == "cut":
        bad["disparity.png"] = bad["disparity.png"][: len(bad["disparity.png"]) // 2]
    elif kind == "shape":
        bad["disparity.png"] = png(np.zeros((40, 40), np.uint16))
    else:
        bad["disparity.png"] = png(np.zeros((40, 40), np.uint8))
    write(tmp_path / "a.tar", samples)
    data = ShardDataset(tmp_path, max_bad_fraction=0.2)
    with pytest.raises(SampleError, match=r"a\.tar/2"):
        data.read(2)
    for _ in range(2):
        sample = data[2]
        assert sample.key == "a.tar/3"
        assert len(sample.skipped) == 1
        assert sample.skipped[0].startswith("a.tar/2:")
    assert list(data.bad) == [2]
    with pytest.raises(ShardError, match=r"1 of 6 .*a\.tar/2"):
        ShardDataset(tmp_path)[2]


def test_many_shards_are_scanned_once(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, notices
) -> None:
    monkeypatch.setattr("dafast.data.tars._MANY", 3)
    monkeypatch.setenv("DAFAST_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(seed)
    for i in range(3):
        write(tmp_path / f"{i}.tar", {f"{j}": members(rng) for j in range(2)})
    first = ShardDataset(tmp_path)
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 3
    with monkeypatch.context() as patched:
        patched.setattr("tarfile.open", None)
        again = ShardDataset(tmp_path)
    for a, b in zip(first, again, strict=True):
        assert a.key == b.key and np.array_equal(a.image, b.image)
    with monkeypatch.context() as patched:  # what another version kept may lack members
        patched.setattr("dafast.data.tars._INDEX_FORMAT", 0)
        ShardDataset(tmp_path)
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 6
    next((tmp_path / "cache").rglob("*.json")).write_text('{"half of')
    write(tmp_path / "1.tar", {"other": members(rng)})
    assert [ShardDataset(tmp_path).key(i) for i in range(5)] == ["0", "1", "other", "0", "1"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DAFAST_CACHE", str(tmp_path / "file"))
    assert len(ShardDataset(tmp_path)) == 5 and "cannot be written" in notices.text


def test_a_shard_that_becomes_another_is_no_damaged_sample(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = write(tmp_path / "a.tar", {f"{i}": members(rng) for i in range(3)})
    data = ShardDataset(tmp_path, max_bad_fraction=1.0)
    os.truncate(path, 1024)
    with pytest.raises(ShardError, match=r"a\.tar has changed: .*restore it"):
        data[2]
    assert not data.bad


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("comes_back", [False, True])
def test_a_shard_that_is_gone_is_tried_again_and_named(
    opened: bool, comes_back: bool, tmp_path: Path, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch, notices: Notices,
) -> None:  # fmt: skip
    """An error of the disk too: another descriptor may be good where the open one is not."""
    path = write(tmp_path / "a.tar", {f"{i}": members(rng) for i in range(3)})
    data = ShardDataset(tmp_path, max_bad_fraction=1.0)
    if opened:
        data[0]
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if comes_back and len(waited) == 2:
            monkeypatch.undo()
            if not opened:
                (tmp_path / "away").rename(path)

    def stale(*args: int) -> bytes:
        raise OSError(errno.ESTALE, "stale file handle")

    monkeypatch.setattr(remote.time, "sleep", wait)
    if opened:
        monkeypatch.setattr(os, "pread", stale)
    else:
        path.rename(tmp_path / "away")
    if comes_back:
        assert data[1].key == "a.tar/1"
    else:
        with pytest.raises(ShardError, match=r"cannot read the shard .*a\.tar.*restore it"):
            data[1]
    assert waited == list(remote.WAITS)[: 2 if comes_back else None]
    assert not data.bad


def test_unlabeled_samples_need_the_image_alone(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = {f"{i}": members(rng) for i in range(4)}
    samples["1"] = {"png": samples["1"]["png"]}
    write(tmp_path / "a.tar", samples)
    with pytest.raises(ShardError, match=r"a\.tar has no member 1\.disparity"):
        ShardDataset(tmp_path)
    data = ShardDataset(tmp_path, labels="none")
    assert len(data) == 4
    for i, files in enumerate(samples.values()):
        assert np.array_equal(data[i].image, image_of(files["png"]))
        assert data.image_file(i) == files["png"]
        assert not data[i].mask.any()
        assert data.meta(i) == (json.loads(files["json"]) if "json" in files else {})
    write(tmp_path / "a.tar", {key: {"png": files["png"]} for key, files in samples.items()})
    with pytest.raises(ShardError, match="It is unlabeled: `dafast label`"):
        ShardDataset(tmp_path)


def test_labels_of_another_resolution_say_so(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    code = rng.integers(0, 65536, (7, 9), np.uint16)
    meta = {"disparity_scale": 0.5, "disparity_offset": -3.0, "disparity_size": [7, 9]}
    good = {"png": png(rng.integers(0, 256, (21, 27, 3), np.uint8)), "disparity.png": png(code)}
    bad = {**good, "json": json.dumps({**meta, "disparity_size": [8, 9]}).encode()}
    good["json"] = json.dumps(meta).encode()
    write(tmp_path / "a.tar", {"good": good, "bad": bad})
    data = ShardDataset(tmp_path, labels="physical")
    assert np.array_equal(data.read(0).disparity, code.astype(np.float32) * 0.5 - 3.0)
    with pytest.raises(SampleError, match=r"a\.tar/bad"):
        data.read(1)


@pytest.mark.parametrize("path", ["a/list.csv", "http://127.0.0.1:9/list.jsonl?x=1", "b.json"])
def test_a_list_is_no_shards(path: str) -> None:
    """The error comes before anything is opened or a server is asked."""
    with pytest.raises(ShardError, match=r"is a list of pictures; .*`dafast data pack .*--out"):
        ShardDataset(path)


def test_the_unit_of_labels(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    says: dict[str, tuple[dict[str, object], str]] = {
        "a": ({"disparity_max": 1.0}, ""),
        "b": ({"disparity_max": 1.0, "disparity_unit": "1/metre"}, "1/metre"),
        "c": ({"disparity_scale": 0.1, "disparity_unit": "relative"}, "relative"),
        "d": ({"disparity_scale": 0.1}, "relative"),
    }
    samples = {key: {**members(rng), "json": json.dumps(meta).encode()}
               for key, (meta, _) in says.items()}  # fmt: skip
    write(tmp_path / "a.tar", samples)
    data = ShardDataset(tmp_path)
    assert [data.unit(i) for i in range(4)] == [unit for _, unit in says.values()]
