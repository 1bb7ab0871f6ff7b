"""The benchmark runs, checks parity first, and gives a wrong backend no figure."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import kernels, timing
from bench.registry import CASES, SMALL_CASES, STATIC_CASES
from dafast.ops import OPS, available_backends
from dafast.ops._dispatch import Backend


def test_every_op_has_a_case():
    assert {case.op for case in CASES} == {case.op for case in SMALL_CASES} == set(OPS)
    with_triton = {name for name, op in OPS.items() if "triton" in op.backends}
    assert {case.op for case in STATIC_CASES} == with_triton


@pytest.mark.slow
def test_small_run_writes_json(tmp_path, seed):
    path = tmp_path / "out.json"
    options = ["--small", "--rounds", "2", "--seed", str(seed % 1000), "--json", str(path)]
    kernels.main([*options, "--leave-out", "triton"])  # interpreted, it takes minutes
    written = json.loads(path.read_text())
    references = [r for r in written["records"] if r["backend"] == "reference"]
    assert references
    assert all(r["ms"] > 0 and r["ratio"] == 1 for r in references)
    assert {r["op"] for r in references} == set(OPS)
    assert written["machine"]["torch"] == torch.__version__
    if "triton" in available_backends()["bias_gelu"]:
        kernels.main([*options, "--op", "bias_gelu"])
        records = json.loads(path.read_text())["records"]
        assert {r["op"] for r in records} == {"bias_gelu"}
        assert all(r["ms"] > 0 for r in records if r["backend"] == "triton")


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda c: c.op)
def test_wrong_result_gets_no_figure(case, monkeypatch, seed):
    op = OPS[case.op]

    def wrong(*args, **kwargs):
        out = op.backends["reference"].fn(*args, **kwargs)
        return tuple(1.5 * o.float() for o in out) if isinstance(out, tuple) else 1.5 * out

    broken = Backend(wrong)
    monkeypatch.setattr(op, "backends", {"xformers": broken, "reference": op.backends["reference"]})
    records = timing.measure(
        case, torch.float32, torch.device("cpu"), backward=False, rounds=2, seed=seed
    )
    by_backend = {r["backend"]: r for r in records}
    assert "ms" in by_backend["reference"]
    assert "ms" not in by_backend["xformers"]
    assert "differs from the reference" in by_backend["xformers"]["why"]


def test_the_parity_gate_forgives_turned_signs_and_nothing_else(seed):
    from bench.timing import largest_error

    expected = torch.randn(8, 200, 200)
    largest = expected.abs().max()
    for worth, gate in [(2.0, 0.0), (1e6, 1e6), (math.nan, math.inf), (math.inf, math.inf)]:
        got = expected.clone()
        got.view(-1)[:3] += worth * largest
        assert largest_error(got, expected, 1e-5) == pytest.approx(gate, rel=1e-4, abs=1e-6), worth
        assert largest_error(got, expected) == pytest.approx(
            worth if worth == 2.0 else gate, rel=1e-4
        )
