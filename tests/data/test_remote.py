"""Shards behind URLs: fsspec's http against a server here, and its memory for what is written."""

from __future__ import annotations

import http.server
import json
import re
import secrets
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from dafast.cli import main
from dafast.data import remote
from dafast.data.labeling import label_shards
from dafast.data.remote import (
    Fetcher,
    RemoteError,
    expand_braces,
    is_url,
    local_copy,
    name_of,
    place_of,
    read_range,
)
from dafast.data.shards import ShardDataset, ShardError
from dafast.data.sky import write_sky
from dafast.data.tars import expand_shards
from dafast.data.writing import claim
from tests.training import tiny


@pytest.fixture(autouse=True)
def _quick_and_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    monkeypatch.setenv("DAFAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of fsspec's memory that nobody else has."""
    url = f"memory://bucket-{secrets.token_hex(4)}"
    yield url
    fsspec.filesystem("memory").rm(url, recursive=True)


class Server:
    """Serves a folder over HTTP, with parts of files and listings, and can be made to fail.

    Attributes:
        url: Where.
        requests: How often each path was asked for, HEAD aside.
        parts: How often a part of it was.
        trouble: Given a path, the status of the next answer in place of its content, or 0.
        ranges: Whether it sends parts.
    """

    def __init__(self, folder: Path) -> None:
        self.requests: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        self.trouble: Callable[[str], int] = lambda path: 0
        self.ranges = True
        state = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                state.requests[path] += 1
                if status := state.trouble(path):
                    self.send_error(status)
                    return
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                file = folder / path.lstrip("/")
                if asked is None or not state.ranges or not file.is_file():
                    super().do_GET()
                    return
                state.parts[path] += 1
                data = file.read_bytes()[int(asked[1]) : int(asked[2]) + 1]
                self.send_response(206)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_HEAD(self) -> None:
                if status := state.trouble(self.path):
                    self.send_error(status)
                else:
                    super().do_HEAD()

            def log_message(self, *args) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def shards(tmp_path: Path, seed: int) -> Path:
    return tiny.write_shards(tmp_path / "shards", 3, 4, seed)


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    serving = Server(shards)
    yield serving
    serving.close()


def brightness(images):
    return [image[::2, ::2].mean(-1).astype(np.float32) for image in images]


def same(data: ShardDataset, other: ShardDataset) -> None:
    assert len(data) == len(other) > 0
    for index in np.random.permutation(len(data)):
        a, b = data[index], other[index]
        assert (a.key, a.skipped) == (b.key, b.skipped)
        for x, y in zip(a[1:4], b[1:4], strict=True):
            assert np.array_equal(x, y)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
        ("plain.tar", ["plain.tar"]),
        ("odd{name}.tar", ["odd{name}.tar"]),
    ],
)
def test_braces(text: str, names: list[str]) -> None:
    assert expand_braces(text) == names


def test_braces_of_nothing() -> None:
    with pytest.raises(ShardError, match="the range from 5 to 4 is empty"):
        ShardDataset("memory://a/{5..4}.tar")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        *(("http://a/b.tar", True), ("s3://b/c", True), ("memory://x", True)),
        *(("/a/b", False), ("a:b/c", False), ("C://", True), ("file:///a/b", False)),
    ],
)
def test_what_is_a_url(text: str, url: bool) -> None:
    assert is_url(text) == url
    if not url:
        assert isinstance(place_of(text), Path)


def test_braces_on_a_disk(shards: Path) -> None:
    listed = expand_shards(str(shards / "{00000..00002}.tar"))
    assert listed == sorted(shards.glob("*.tar"))
    with pytest.raises(ShardError, match=r"no such folder or file: .*00003\.tar"):
        expand_shards(str(shards / "{00000..00003}.tar"))
    assert place_of(f"file://{shards}") == shards


@pytest.mark.parametrize("form", ["braces", "folder", "glob", "one by one"])
def test_the_same_as_on_a_disk(server: Server, shards: Path, form: str) -> None:
    names = {
        "braces": f"{server.url}/{{00000..00002}}.tar",
        "folder": server.url + "/",
        "glob": f"{server.url}/*.tar",
        "one by one": [f"{server.url}/0000{i}.tar?signature=a" for i in range(3)],
    }[form]
    write_sky(lambda images: [i[..., 0] > 99 for i in images], expand_shards(shards))
    data = ShardDataset(names, sky="all")
    assert [name_of(shard) for shard in data.shards] == [f"0000{i}.tar" for i in range(3)]
    if form == "one by one":  # a signature is of one file: its masks have no signature
        data, local = ShardDataset(names), ShardDataset(shards)
    else:
        local = ShardDataset(shards, sky="all")
    same(data, local)
    same(ShardDataset(names, labels="none"), ShardDataset(shards, labels="none"))


def test_one_request_a_sample_and_one_fetch_a_shard_ever(server: Server, shards: Path) -> None:
    data = ShardDataset(f"{server.url}/{{00000..00002}}.tar")
    assert server.requests == {f"/0000{i}.tar": 1 for i in range(3)}, "fetched to be scanned"
    for index in range(len(data)):
        data.read(index)
    assert server.parts == {f"/0000{i}.tar": 4 for i in range(3)}
    server.requests.clear()
    again = ShardDataset(f"{server.url}/{{00000..00002}}.tar")
    assert not server.requests, "known from the cache"
    same(again, data)
    tiny.write_shards(shards, 1, 40, 1)  # another shard of that name
    assert len(ShardDataset(f"{server.url}/00000.tar")) == 40


BATCHES = """
import sys
import torch
from dafast.training.config import DataSection, TrainConfig
from dafast.training.data import TrainingData, make_loader
from dafast.distributed import World

near, far = sys.argv[2:]
for path, workers in ((near, 0), (far, 0), (far, 2)):
    section = DataSection(path=path, shapes=((28, 28),), workers=workers)
    config = TrainConfig(data=section, batch_size=3, seed=int(sys.argv[1]))
    data = TrainingData.open(config)
    loader = make_loader(config, data, World(0, 1, torch.device("cpu")), step=0, stop_step=4,
                         position=0, unlabeled_position=0)
    for batch in loader:
        sums = batch.image.sum().item(), batch.disparity.double().sum().item()
        print(batch.keys, batch.skipped, *sums)
"""


@pytest.mark.slow
def test_trains_from_a_url(server: Server, shards: Path, seed: int) -> None:
    """Worker processes too: a connection must not be shared over a fork.

    In a process of its own, for here the server's threads run, over which none should fork.
    """
    far = f"{server.url}/{{00000..00002}}.tar"
    done = subprocess.run(
        [sys.executable, "-c", BATCHES, str(seed), str(shards), far],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 12 and "[]" in lines[0]
    assert lines[4:8] == lines[:4], "without worker processes"
    assert lines[8:] == lines[:4], "with worker processes"


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_stumbles_is_asked_again(server: Server, shards: Path, status: int) -> None:
    data = ShardDataset(f"{server.url}/00000.tar")
    answers = [status, status, 0]
    server.trouble = lambda path: answers.pop(0) if answers else 0
    assert np.array_equal(data.read(1).image, ShardDataset(shards).read(1).image)
    assert not answers


def test_a_server_that_is_down_stops_it(server: Server, caplog) -> None:
    """It is no damaged sample that the next one stands in for, and it is said after a few tries."""
    data = ShardDataset(f"{server.url}/00000.tar", max_bad_fraction=1.0)
    tries = 0

    def broken(path: str) -> int:
        nonlocal tries
        tries += 1
        return 503

    server.trouble = broken
    with pytest.raises(RemoteError, match=r"00000\.tar: .*503.*\(tried 3 times\)"):
        data[0]
    assert tries == 3 and data.bad == {}
    assert "trying again in 0 s" in caplog.text
    server.close()
    with pytest.raises(RemoteError, match=r"cannot read http://.*tried 3 times"):
        data[0]


def test_what_will_not_get_better_is_not_tried_again(server: Server) -> None:
    asked = Counter[str]()

    def missing(path: str) -> int:
        asked[path] += 1
        return 403

    with pytest.raises(RemoteError, match=r"cannot read .*/nothing\.tar: FileNotFoundError"):
        ShardDataset(f"{server.url}/nothing.tar")
    server.trouble = missing
    with pytest.raises(RemoteError, match="403"), local_copy(place_of(f"{server.url}/00000.tar")):
        pass
    assert asked["/00000.tar"] == 1
    with pytest.raises(RemoteError, match=r"nosuch://a/b\.tar cannot be opened"):
        ShardDataset("nosuch://a/b.tar")
    server.trouble = lambda path: 0
    with pytest.raises(ShardError, match=r"no shards .*at .*/empty.*shard-\{000000\.\.000099\}"):
        ShardDataset(f"{server.url}/empty")


def test_a_server_without_parts_says_so(server: Server) -> None:
    server.ranges = False
    data = ShardDataset(f"{server.url}/00000.tar")
    with pytest.raises(RemoteError, match="does not send parts of a file"):
        data.read(0)


def test_a_damaged_remote_shard(server: Server, shards: Path) -> None:
    whole = (shards / "00001.tar").read_bytes()
    (shards / "00001.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match=r"http://.*/00001\.tar is truncated"):
        ShardDataset(f"{server.url}/{{00000..00002}}.tar")


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_labels_the_others_when_a_shard_is_missing(
    server: Server, tmp_path: Path, missing: int
) -> None:
    urls = [f"{server.url}/0000{i}.tar" for i in range(3)]
    urls[missing] = f"{server.url}/gone.tar"
    out = tmp_path / "out"
    out.mkdir()
    for run in range(2):
        report = label_shards(brightness, expand_shards(urls), out)
        assert (report.shards, report.kept) == ((2, 0), (0, 2))[run]
        assert [name for name, _ in report.failures] == ["gone.tar"]
        assert "FileNotFoundError" in report.failures[0][1]
    assert len(ShardDataset(out)) == 8
    assert len(list(out.iterdir())) == 2, "nothing half written stays"


def test_labels_from_one_store_to_another(
    server: Server, shards: Path, bucket: str, tmp_path: Path
) -> None:
    """Needs no parts of files; what was put stays when the next cannot be put."""
    server.ranges = False
    system = fsspec.filesystem("memory")
    put, failing = system.put_file, ["00001.tar"]

    def fails(source: str, target: str, **options) -> None:
        if target.rpartition("/")[2] in failing:
            raise OSError("the store is full")
        put(source, target, **options)

    system.put_file = fails
    try:
        inputs, out = expand_shards(f"{server.url}/{{00000..00002}}.tar"), place_of(bucket)
        report = label_shards(brightness, inputs, out)
        assert (report.shards, report.images) == (2, 8)
        (name, reason) = report.failures[0]
        assert name == "00001.tar" and "the store is full (tried 3 times)" in reason
        before = system.created(f"{bucket}/00000.tar")
        failing.clear()
        report = label_shards(brightness, inputs, out)
        assert (report.shards, report.kept, report.failures) == (1, 2, [])
    finally:
        system.put_file = put
    assert system.created(f"{bucket}/00000.tar") == before, "existing files are unchanged"
    (tmp_path / "near").mkdir()
    label_shards(brightness, expand_shards(shards), tmp_path / "near")
    same(ShardDataset(bucket), ShardDataset(tmp_path / "near"))


def test_failures_are_kept_in_the_store(bucket: str, tmp_path: Path, seed: int) -> None:
    photos = tiny.write_shards(tmp_path / "in", 1, 4, seed, labeled=False, broken=range(1, 3))
    for kept in (0, 1):
        report = label_shards(brightness, expand_shards(photos), place_of(bucket))
        assert report.kept == kept
        assert [name for name, _ in report.failures] == ["00000.tar/000001", "00000.tar/000002"]
    fsspec.filesystem("memory").rm(f"{bucket}/00000.tar")
    tiny.write_shards(photos, 1, 4, seed, labeled=False)
    assert label_shards(brightness, expand_shards(photos), place_of(bucket)).failures == []
    assert [p.name for p in remote.list_folder(place_of(bucket))] == ["00000.tar"]


@pytest.mark.slow
def test_the_commands(bucket: str, server: Server, tmp_path: Path, seed: int, capsys, monkeypatch):
    """pack to a store, label from there to there, check it, as the documentation has them."""
    monkeypatch.chdir(tmp_path)
    tiny.trained_model().save_pretrained("teacher")
    rng = np.random.default_rng(seed)
    Path("photos").mkdir()
    for i in range(5):
        image = rng.integers(0, 256, (50, 60, 3), np.uint8)
        Path(f"photos/{i}.jpg").write_bytes(tiny.encode(image, "JPEG"))
    packed = f"{bucket}/packed"
    pack = ["data", "pack", "photos", "--out", packed, "--shard-size", "2"]
    for _ in range(2):
        assert main(pack) == 0
        assert f"5 samples of 5 in {packed}" in capsys.readouterr().out
    system = fsspec.filesystem("memory")
    manifest = json.loads(system.cat_file(f"{packed}/manifest.json"))
    assert [shard["samples"] for shard in manifest["shards"].values()] == [2, 2, 1]
    created = system.created(f"{packed}/shard-000000.tar")
    system.rm(f"{packed}/shard-000001.tar")
    assert main(pack) == 0
    assert json.loads(system.cat_file(f"{packed}/manifest.json")) == manifest
    assert system.created(f"{packed}/shard-000000.tar") == created
    system.rm(f"{packed}/manifest.json")
    capsys.readouterr()
    assert main(pack) == 1
    assert "has shards but no manifest.json" in capsys.readouterr().err
    command = ["label", "--model", "teacher", "--in", packed, "--out", f"{bucket}/labeled"]
    for text in ("3 shards with 5 images written", "3 already there"):
        assert main([*command, "--device", "cpu", "--dtype", "float32"]) == 0
        assert text in capsys.readouterr().out
    assert main([*command, "--device", "cpu", "--dtype", "bfloat16"]) == 1
    assert "dtype float32, not bfloat16" in capsys.readouterr().err
    assert main([*command[:-1], packed, "--device", "cpu"]) == 1
    assert "is the folder of the images" in capsys.readouterr().err
    for path, kind in ((packed, "not labeled"), (f"{bucket}/labeled", "labeled")):
        assert main(["data", "check", "shards", path]) == 0
        text = capsys.readouterr().out
        assert f"shards: {kind}\n" in text and "5 read: 5 good, 0 damaged" in text
    assert main(["data", "check", "shards", f"{server.url}/{{00000..00002}}.tar"]) == 0
    assert "12 read: 12 good" in capsys.readouterr().out
    assert main(["data", "pack", packed, "--out", "out"]) == 1
    assert "packed from a local disk" in capsys.readouterr().err
    assert main(["data", "check", packed]) == 1
    assert f"dafast data check shards {packed}" in capsys.readouterr().err
    assert (
        main(["label", "--model", "teacher", "--in", f"{server.url}/gone.tar", "--out", "x"]) == 1
    )
    assert "FAILED gone.tar: cannot read http" in capsys.readouterr().out


def test_masks_of_sky_in_a_store(bucket: str, shards: Path) -> None:
    system = fsspec.filesystem("memory")
    system.put(str(shards), f"{bucket}/", recursive=True)
    folder = f"{bucket}/{shards.name}"

    def bright(images):
        return [image[..., 0] > 99 for image in images]

    for written, kept in ((3, 0), (0, 3)):
        report = write_sky(bright, expand_shards(folder))
        assert (report.written, report.kept, report.failures) == (written, kept, [])
    write_sky(bright, expand_shards(shards))
    same(ShardDataset(folder, sky="all"), ShardDataset(shards, sky="all"))


def test_damaged_shards_are_found_by_check(tmp_path: Path, seed: int, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_shards(tmp_path / "some", 2, 4, seed, broken=range(1, 2), empty=range(2, 3))
    assert main(["data", "check", "shards", "some"]) == 1
    text = capsys.readouterr().out
    assert "8 read: 4 good, 2 damaged, 2 without a label" in text
    assert "FAILED 00001.tar/000005: " in text


def test_an_unreachable_store_is_not_an_empty_one(server: Server) -> None:
    """Otherwise a second run would start again."""
    place = place_of(f"{server.url}/00000.tar")
    assert remote.exists(place) and not remote.exists(place_of(f"{server.url}/none.tar"))
    server.trouble = lambda path: 503
    with pytest.raises(RemoteError, match="cannot look for"):
        remote.exists(place)
    with pytest.raises(RemoteError, match="cannot look for"), claim(place):
        pass


def test_the_next_is_fetched_while_one_is_in_use(server: Server, tmp_path: Path) -> None:
    places = expand_shards(f"{server.url}/{{00000..00002}}.tar")
    with Fetcher(places, lambda place: not place.name.startswith("00001")) as fetcher:
        with fetcher.local(0) as copy:
            assert copy.name == "00000.tar" and copy.exists()
        assert not copy.exists()
        with fetcher.local(2) as copy:
            assert copy.name == "00002.tar"
    assert server.requests == {"/00000.tar": 1, "/00002.tar": 1}, "what is not wanted is left"
    with Fetcher(places, lambda place: True) as fetcher, fetcher.local(0):
        assert any((tmp_path / "temporary").iterdir())
    assert not any((tmp_path / "temporary").iterdir()), "also what was fetched for nothing"


def test_parts(server: Server, shards: Path, rng: np.random.Generator) -> None:
    data, place = (shards / "00000.tar").read_bytes(), place_of(f"{server.url}/00000.tar")
    for _ in range(10):
        first, last = sorted(int(i) for i in rng.choice(len(data), 2, replace=False))
        assert read_range(place, first, last - first) == data[first:last]
    with pytest.raises(RemoteError, match="received 10 bytes of 20"):
        read_range(place, len(data) - 10, 20)
