"""The benchmark of accelerated pipelines: it runs, and a wrong map gets no figure."""

import json

import pytest
import torch

from bench import pipeline

ARGUMENTS = ["--model", "nano", "--size", "28x42", "--rounds", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_runs_and_writes_json(tmp_path, capsys):
    path = tmp_path / "out.json"
    pipeline.main([*ARGUMENTS, "--device", "cpu", "--json", str(path)])
    report = json.loads(path.read_text())
    assert report["error"] <= 1e-4
    for name in ("whole", "network"):
        assert report[name]["transformers_ms"] > 0
        assert report[name]["ratio_low"] <= report[name]["ratio"] <= report[name]["ratio_high"]
    assert "times as fast" in capsys.readouterr().out


@pytest.mark.slow
def test_a_wrong_map_gets_no_figure(monkeypatch):
    from dafast.models.acceleration import FastForward

    monkeypatch.setattr(
        FastForward, "__call__", lambda self, model, x: 2 * torch.rand(x[:, 0].shape)
    )
    with pytest.raises(SystemExit, match="differ"):
        pipeline.main([*ARGUMENTS, "--device", "cpu"])


def test_bad_size(capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["--size", "518"])
    assert "HEIGHTxWIDTH" in capsys.readouterr().err
