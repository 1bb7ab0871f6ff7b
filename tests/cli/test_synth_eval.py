"""`dafast synth` and `dafast eval`; the data sets have their own tests."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dafast.cli import evaluate, main

ROOT = Path(__file__).resolve().parents[2]


def test_synth_writes_shards(tmp_path, capsys):
    command = ["synth", "--scenes", "2", "--out", str(tmp_path), "--seed", "3", "--workers", "1"]
    assert main(command) == 0
    assert list(tmp_path.glob("*.tar"))


def test_eval_prints_and_writes(tmp_path, capsys, monkeypatch, model_folder, rng):
    from dafast.evaluation import benchmarks

    depth = rng.uniform(1, 5, (30, 40)).astype(np.float32)
    image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    sample = benchmarks.EvaluationSample("one", image, depth, 10.0)
    monkeypatch.setitem(benchmarks.DATA, "mine", lambda: [sample])
    path = tmp_path / "new" / "scores.json"
    command = ["eval", "--model", model_folder, "--data", "mine", "--json", str(path), "--md"]
    assert main(command) == 0
    results = json.loads(path.read_text())
    assert {r["predictor"] for r in results} == {"tiny", "constant", "plane"}
    assert {r["protocol"] for r in results} == {"paper"} and results[0]["count"] == 1
    table = capsys.readouterr().out.strip().splitlines()
    assert len(table) == 2 + len(results)
    assert len({line.count("|") for line in table}) == 1
    for result in results:
        row = next(line for line in table if f"| {result['predictor']} |" in line)
        assert f"{result['abs_rel']:.4f}" in row

    for options in ([], ["-q"]):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", terminal)
            assert main([*command, *options]) == 0
        assert ("0/1" in terminal.getvalue()) == (not options)  # the progress bar
        assert capsys.readouterr().out.strip().splitlines() == table

    assert main(["eval", "--model", model_folder, "--data", "nope"]) == 1
    assert "mine" in capsys.readouterr().err
    assert main(["eval", "--model", model_folder, "--data", "mine", f"kitti={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert "no split file; expected:" in error and "eigen_test_files.txt" in error


def test_eval_on_a_cluster_scores_as_here(tmp_path, capsys, monkeypatch, model_folder, rng):
    """With a cluster of this process: the actor's model, and the jobs of the workers."""
    from dafast.cluster import scoring
    from dafast.evaluation import benchmarks

    monkeypatch.setattr(scoring, "_opened", scoring._opened.__wrapped__)  # it keeps data sets

    depth = rng.uniform(1, 5, (30, 40)).astype(np.float32)
    image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    sample = benchmarks.EvaluationSample("one", image, depth, 10.0)
    monkeypatch.setitem(benchmarks.DATA, "mine", lambda: [sample])
    asked = []

    @contextlib.contextmanager
    def cluster(args, command, make):
        asked.append((args.cluster, command, args.cache.is_absolute()))
        model = make(args)
        run = lambda job, parts: ((i, job.do(p, model, None)) for i, p in enumerate(parts))  # noqa: E731
        yield SimpleNamespace(facts=lambda: model.facts, run=run)

    monkeypatch.setattr(evaluate, "cluster_runner", cluster)
    monkeypatch.chdir(tmp_path)
    command = ["eval", "--model", model_folder, "--data", "mine", "--dtype", "float32", "--json"]
    assert main([*command, "here.json"]) == 0
    assert main([*command, "there.json", "--cluster", "ray", "--cache", "cache"]) == 0
    here, there = (json.loads(Path(f"{name}.json").read_text()) for name in ("here", "there"))
    assert here == there and len(here) > 2
    assert asked == [("ray", "eval", True)]
    assert main([*command, "none.json", "--cluster", "ray", "--size", "28"]) == 1
    assert "--size is for segmentation models" in capsys.readouterr().err
