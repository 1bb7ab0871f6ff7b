"""The benchmark of the whole network: it runs, and what computes something else gets no figure."""

import json
import multiprocessing
import os
import shutil
import sys

import numpy as np
import pytest
import torch

from bench import limits, model, peers, targets
from dafast.evaluation import benchmarks
from dafast.evaluation.samples import DataMissingError, EvaluationSample


@pytest.mark.slow
def test_runs_and_writes_json(tmp_path, seed):
    path = tmp_path / "out.json"
    model.main([
        "--model", "nano", "--size", "28x42", "--rounds", "2", "--dtype", "float32",
        "--threads", "1", "--seed", str(seed % 1000), "--json", str(path),
    ])  # fmt: skip
    written = json.loads(path.read_text())
    records = {r["peer"]: r for r in written["records"]}
    assert set(records) == {"dafast, optimized", "dafast, modules"}
    assert all(r["ms"] > 0 and r["error"] < 1e-3 for r in records.values()), records
    assert written["machine"]["torch"] == torch.__version__


class WrongWorker:
    """A peer whose map is off, instead of a process."""

    def __init__(self, peer, folder, image, threads):
        self.expected = np.load(image)

    def output(self):
        return np.ones((1, 28, 28), np.float32) * 50

    def close(self):
        self.closed = True


def test_wrong_map_gets_no_figure(monkeypatch, capsys):
    monkeypatch.setattr(model, "Worker", WrongWorker)
    report = model.main(["--model", "nano", "--size", "28x28", "--dtype", "float32"])
    assert all("ms" not in r and "differs" in r["why"] for r in report["records"])
    assert "differs" in capsys.readouterr().out


def test_a_limit_needs_control_groups(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(limits, "_ROOT", tmp_path / "missing")
    with pytest.raises(SystemExit):
        model.main(["--model", "nano", "--size", "28x28", "--cpus", "1.5"])
    assert "--cpus needs the right to make a control group" in capsys.readouterr().err


@pytest.mark.parametrize("second", [False, True], ids=["v1", "v2"])
def test_a_limit_is_a_control_group(second, monkeypatch, tmp_path):
    parent = tmp_path if second else tmp_path / "cpu"
    parent.mkdir(exist_ok=True)
    if second:
        (tmp_path / "cgroup.controllers").touch()
    monkeypatch.setattr(limits, "_ROOT", tmp_path)
    monkeypatch.setattr(limits.Path, "rmdir", shutil.rmtree)  # files of a real group do not count
    with limits.limited([17], 1.5):
        (group,) = parent.glob("dafast-bench-*")
        written = {path.name: path.read_text() for path in group.iterdir()}
    expected = {"cpu.max": "150000 100000"} if second else {
        "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000",
    }  # fmt: skip
    assert written == {**expected, "cgroup.procs": "17"}
    assert (parent / "cgroup.procs").read_text() == "17"
    assert not group.exists()


@pytest.mark.parametrize("size", ["518", "518x500", "axb", "518x"])
def test_bad_size(size, capsys):
    with pytest.raises(SystemExit):
        model.main(["--size", size])
    assert "multiples of 14" in capsys.readouterr().err


def test_peer_that_is_missing_says_so(tmp_path, monkeypatch):
    """A process whose implementation cannot be imported answers with the reason."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    fork = multiprocessing.get_context("fork")  # a new Python needs seconds for its imports
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    monkeypatch.setitem(sys.modules, "openvino", None)
    missing = peers.PEERS.index(next(p for p in peers.PEERS if p.name == "OpenVINO"))
    image = tmp_path / "image.npy"
    np.save(image, np.zeros((1, 3, 28, 28), np.float32))
    worker = peers.Worker(peers.PEERS[missing], tmp_path / "nothing", image, 1)
    with pytest.raises(RuntimeError, match=r"ModuleNotFoundError.*openvino"):
        worker.output()
    worker.close()


def test_pairs_run_in_turn():
    order = []
    ours, theirs = targets._in_turn((lambda: order.append("a"), lambda: order.append("b")), 3)
    assert order == ["a", "b"] * 4
    assert len(ours) == len(theirs) == 3


@pytest.mark.slow
def test_accuracy_of_one_photo_and_of_none(rng, monkeypatch):
    photo = rng.integers(0, 256, (42, 56, 3), np.uint8)
    depth = rng.uniform(1, 5, (42, 56)).astype(np.float32)
    sample = EvaluationSample("chairs", photo, depth, 10.0)
    monkeypatch.setitem(benchmarks.DATA, "builtin", lambda: [sample])
    records = targets.accuracy()
    assert {record["photo"] for record in records} == {"chairs"}
    assert records[0]["format"] == "float32" and records[0]["relative_error"] == 0
    assert all(0 <= record["delta_1"] <= 1 for record in records)

    def missing():
        raise DataMissingError("no photos; install them")

    monkeypatch.setitem(benchmarks.DATA, "builtin", missing)
    assert targets.accuracy() == [{"photo": "builtin", "why": "no photos; install them"}]
