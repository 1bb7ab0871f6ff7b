"""Commands on a Ray cluster write the files of the local path, also if processes are killed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

ray = pytest.importorskip("ray", reason="ray is not installed")

# ruff: noqa: E402
from bench.local_cluster import LocalCluster
from dafast.cli import main
from dafast.data.remote import list_folder, place_of
from tests.data import test_picture_readers as pictures
from tests.training import tiny

ROOT = Path(__file__).resolve().parents[2]
LIMIT, HOUR = 500, 3600  # seconds
# A model on a processor has the title of the part that it does.
TITLES = {
    "worker": "ray::dafast label",
    "actor": "ray::Model",
    "busy actor": "ray::dafast label",
}
# Tasks decode for models on GPUs; models on processors do all of it, as in most tests here.
ON_GPUS, ON_PROCESSORS = [], ["--device", "cpu"]

# s3:// for all processes of the cluster: a folder.
STORE = """
import os
from fsspec import AbstractFileSystem

class Store(AbstractFileSystem):
    protocol = "s3"
    cachable = False

    def _at(self, path):
        return os.path.join(os.environ["DAFAST_TEST_STORE"], self._strip_protocol(path))

    def info(self, path, **options):
        name, status = self._strip_protocol(path), os.stat(self._at(path))
        kind = "directory" if os.path.isdir(self._at(path)) else "file"
        return {"name": name, "size": status.st_size, "type": kind, "mtime": status.st_mtime}

    def ls(self, path, detail=True, **options):
        name = self._strip_protocol(path)
        names = [f"{name}/{each}" for each in sorted(os.listdir(self._at(path)))]
        return [self.info(each) for each in names] if detail else names

    def _open(self, path, mode="rb", **options):
        if "w" in mode:
            os.makedirs(os.path.dirname(self._at(path)), exist_ok=True)
        return open(self._at(path), mode)

    def _rm(self, path):
        os.unlink(self._at(path))
"""


def digests(folder: Path) -> dict[str, str]:
    """All files of a folder, without the empty lock that a killed process may leave."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix != ".lock"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shards_of(printed: str) -> int:
    """The shards of a report: a task that was killed after its last step is found complete."""
    written = re.search(r"(\d+) shards with \d+ images written", printed)
    kept = re.search(r"(\d+) already there", printed)
    return int(written[1]) + (int(kept[1]) if kept else 0)


def failures(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("  FAILED ")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes: a head without processors, and two with one processor and one GPU each.

    The GPUs need not exist: without one `--device auto` computes on the processor.
    """
    root = tmp_path_factory.mktemp("store")
    (root / "dafast_test_store.py").write_text(STORE)
    (root / "dafast_test_store-1.dist-info").mkdir()
    entry = "[fsspec.specs]\ns3 = dafast_test_store:Store\n"
    (root / "dafast_test_store-1.dist-info" / "entry_points.txt").write_text(entry)
    metadata = "Metadata-Version: 2.1\nName: dafast-test-store\nVersion: 1\n"
    (root / "dafast_test_store-1.dist-info" / "METADATA").write_text(metadata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAFAST_TEST_STORE", str(root / "objects"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(ROOT)]))
        patch.setenv("DAFAST_CACHE", str(root / "cache"))
        patch.setattr(sys, "path", [str(root), *sys.path])
        with LocalCluster(nodes=2, processors=1, gpus=1) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    tiny.trained_model().save_pretrained(folder)
    return folder


def kill_meanwhile(
    out: Path, plan: list[tuple[int, str]], cluster: LocalCluster, limit: float = LIMIT
):
    """A thread that kills what a plan names once a number of shards is complete."""
    killed: list[str] = []

    def work() -> None:
        end = time.monotonic() + limit
        for shards, what in sorted(plan):
            while len(list(out.glob("*.tar"))) < shards and time.monotonic() < end:
                time.sleep(0.01)
            if what == "node":
                cluster.kill_node()
            else:
                cluster.kill_process(TITLES[what])
            killed.append(what)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, killed


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("device", "plan"),
    [
        (ON_GPUS, [(1, "actor"), (4, "worker"), (7, "node")]),
        (ON_PROCESSORS, [(2, "busy actor"), (6, "node")]),
    ],
    ids=["gpus", "processors"],
)
def test_labels_are_those_of_one_process_in_spite_of_kills(
    cluster: LocalCluster,
    teacher: Path,
    tmp_path: Path,
    seed: int,
    capsys,
    device: list[str],
    plan: list[tuple[int, str]],
) -> None:
    photos = tiny.write_shards(tmp_path / "in", 12, 5, seed, labeled=False, broken=range(2, 3))
    (photos / "00011.tar").write_bytes(b"not a tar" * 200)
    command = ["label", "--model", str(teacher), "--in", str(photos), *device]
    assert main([*command, "--out", str(tmp_path / "here")]) == 1
    here = failures(capsys.readouterr().out)
    out = tmp_path / "there"
    there = [*command, "--out", str(out), "--cluster", "ray", "--cluster-models", "1"]
    thread, killed = kill_meanwhile(out, plan, cluster)
    assert main(there) == 1
    thread.join(LIMIT)
    printed = capsys.readouterr()
    assert killed == [what for _, what in plan]
    assert digests(tmp_path / "here") == digests(out)
    # The report has the same failures by sample in the same order.
    assert failures(printed.out) == here
    assert len(here) == 12
    assert shards_of(printed.out) == 11
    assert "is done again" in printed.err
    assert "min left" in printed.err


@pytest.mark.cluster
def test_a_client_outside_the_cluster(cluster: LocalCluster, tmp_path: Path, seed: int) -> None:
    pytest.importorskip("grpc", reason="ray[client] is not installed")
    photos = tiny.write_shards(tmp_path / "in", 6, 8, seed, labeled=False)
    command = ["label", "--model", "nano", "--size", "42", "--in", str(photos), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "here")]) == 0
    there = [*command, "--out", str(tmp_path / "there"), "--cluster", cluster.client]
    # Another process: Ray's client changes the functions of Ray in its own.
    ended = subprocess.run(
        [sys.executable, "-m", "dafast", *there], capture_output=True, text=True, timeout=LIMIT
    )
    assert ended.returncode == 0, ended.stderr
    assert "6/6 shards" in ended.stderr
    assert shards_of(ended.stdout) == 6
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


def documented(photos: Path, root: Path) -> list[list[str]]:
    """The commands of docs/scale.md that use a cluster, on small data."""
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    block = next(
        text for text in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S) if "--cluster" in text
    )
    commands = [shlex.split(line.replace("/data/", f"{root}/"))[1:] for line in block.splitlines()]
    assert [command[0] for command in commands] == ["data", "label", "data", "eval"]
    return commands


@pytest.mark.cluster
def test_the_documented_commands_run_as_written(
    cluster: LocalCluster, tmp_path: Path, monkeypatch, capsys, rng: np.random.Generator
) -> None:
    transformers = pytest.importorskip("transformers")
    import dafast_test_store  # of the fixture

    fsspec.register_implementation("s3", dafast_test_store.Store, clobber=True)
    monkeypatch.chdir(tmp_path)
    pictures.sa1b(tmp_path / "sa1b", rng)
    tiny.trained_model().save_pretrained(tmp_path / "runs" / "teacher" / "export")
    rows = ["image,depth\n"]
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save(tmp_path / f"{i}.png")
        np.save(tmp_path / f"{i}.npy", rng.uniform(1, 9, (50, 60)))
        rows.append(f"{i}.png,{i}.npy\n")
    (tmp_path / "held-out.csv").write_text("".join(rows))
    labels = {i: f"class {i}" for i in range(150)} | {2: "sky"}
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4}
    config = transformers.SegformerConfig(
        id2label=labels, label2id={v: k for k, v in labels.items()}, decoder_hidden_size=8, **sizes
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    extra = {"sky": ["--model", "segformer", "--size", "64"]}  # nothing is downloaded
    found = {}
    ray.init(log_to_driver=False)  # one connection: the commands share the workers
    for where in ("cluster", "here"):
        store = Path(os.environ["DAFAST_TEST_STORE"])
        for command in documented(tmp_path, tmp_path):
            name = command[1] if command[0] == "data" else command[0]
            words = [*command, *extra.get(name, [])]
            if name == "eval":
                words += ["--json", f"{where}.json"]
            if where == "here":
                words = words[: words.index("--cluster")] + words[words.index("ray") + 1 :]
            assert main(words) == 0, capsys.readouterr()
        found[where] = {
            str(path.relative_to(store)): path.read_bytes()
            for path in sorted(store.rglob("*"))
            if path.is_file()
        }
        for path in sorted(store.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    ray.shutdown()
    assert found["cluster"] == found["here"]
    assert {Path(name).suffix for name in found["here"]} == {".tar", ".json"}
    assert not list_folder(place_of("s3://bucket/labeled/sa1b"))
    scores = [json.loads(Path(f"{where}.json").read_text()) for where in ("cluster", "here")]
    assert scores[0] == scores[1]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("device", "kinds"),
    [(ON_GPUS, ["worker", "actor", "node"] * 10), (ON_PROCESSORS, ["busy actor", "node"] * 10)],
    ids=["gpus", "processors"],
)
def test_5000_pictures_and_kills(
    cluster: LocalCluster, tmp_path: Path, seed: int, capsys, device: list[str], kinds: list[str]
) -> None:
    """Ten workers, if there are any, ten actors and ten nodes are killed at random moments."""
    photos = tiny.write_shards(tmp_path / "in", 200, 25, seed, labeled=False)
    command = ["label", "--model", "nano", "--size", "42", "--in", str(photos), *device]
    assert main([*command, "--out", str(tmp_path / "here")]) == 0
    capsys.readouterr()
    moments = sorted(random.Random(seed).sample(range(1, 190), len(kinds)))
    kinds = random.Random(seed).sample(kinds, len(kinds))
    out = tmp_path / "there"
    thread, killed = kill_meanwhile(out, list(zip(moments, kinds, strict=True)), cluster, HOUR)
    assert main([*command, "--out", str(out), "--cluster", "ray"]) == 0
    thread.join(LIMIT)
    assert sorted(killed) == sorted(kinds)
    printed = capsys.readouterr()
    print(printed.out, "parts done again:", printed.err.count("is done again"))
    assert shards_of(printed.out) == 200
    assert digests(tmp_path / "here") == digests(out)
