"""Commands on a Ray cluster: the files of the local path, whatever is killed meanwhile."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="ray is not installed")

from bench.local_cluster import LocalCluster
from dafast.cli import main
from tests.training import tiny

LIMIT = 300  # seconds


def digests(folder: Path) -> dict[str, str]:
    """The files of a folder; none is unfinished or a lock."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, processors=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    tiny.trained_model().save_pretrained(folder)
    return folder


def killed_while(out: Path, plan: dict[int, str], cluster: LocalCluster) -> threading.Thread:
    """A thread that kills what a plan says when so many shards are complete."""

    def work() -> None:
        end = time.monotonic() + LIMIT
        for shards, what in sorted(plan.items()):
            while len(list(out.glob("*.tar"))) < shards and time.monotonic() < end:
                time.sleep(0.01)
            if what == "node":
                cluster.kill_node()
            else:
                cluster.kill_process({"worker": "ray::dafast label", "actor": "ray::Model"}[what])

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.slow  # workers import PyTorch: 20 s
def test_labels_are_those_of_one_process_in_spite_of_kills(
    cluster: LocalCluster, teacher: Path, tmp_path: Path, seed: int, capsys
) -> None:
    photos = tiny.write_shards(tmp_path / "in", 12, 5, seed, labeled=False, broken=range(2, 3))
    (photos / "00011.tar").write_bytes(b"not a tar" * 200)
    command = ["label", "--model", str(teacher), "--in", str(photos), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "here")]) == 1
    here = capsys.readouterr().out.splitlines()
    out = tmp_path / "there"
    thread = killed_while(out, {1: "actor", 4: "worker", 7: "node"}, cluster)
    there = [*command, "--out", str(out), "--cluster", "ray", "--cluster-models", "1"]
    assert main(there) == 1
    thread.join()
    printed = capsys.readouterr()
    assert digests(tmp_path / "here") == digests(out)
    # The report: the same failures by sample, in the same order.
    assert printed.out.splitlines()[1:] == here[1:]
    assert "11 shards with 44 images" in printed.out
    assert sum("is done again" in line for line in printed.err.splitlines()) >= 2
    assert main(there) == 1
    assert "11 already there" in capsys.readouterr().out


@pytest.mark.slow
def test_x() -> None:
    assert np.ones(1)
