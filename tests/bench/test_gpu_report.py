"""docs/gpu.md is made from the records, and each target has its verdict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from bench import gpu_report
from bench.estimate import Op, forward_work
from bench.gpu import estimates, run_tables
from bench.gpu.run_tables import Run
from bench.gpu_run import FIRST


@pytest.mark.slow
def test_the_page_is_made_from_the_records() -> None:
    page = gpu_report.PAGE.read_text(encoding="utf-8")
    assert gpu_report.fill(page, gpu_report.blocks()) == page, (
        "run `python bench/gpu_report.py --write`"
    )


def test_fill() -> None:
    page = "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n"
    full = gpu_report.fill(page, {"x": r"new \1", "y": "2"})
    assert full == "a\n<!-- x -->\n\nnew \\1\n\n<!-- end -->\nb\n<!-- y -->\n\n2\n\n<!-- end -->\n"
    assert gpu_report.fill(full, {"x": r"new \1", "y": "2"}) == full
    for tables in ({"x": "1"}, {"x": "1", "y": "2", "z": "3"}):
        with pytest.raises(ValueError, match="markers"):
            gpu_report.fill(page, tables)
    with pytest.raises(ValueError, match="no end"):
        gpu_report.fill("<!-- x -->\n", {"x": "1"})


def run_of(records: list[dict[str, Any]]) -> Run:
    machine = {"device": "Card"}
    peaks = {"copy_gbytes": 1000.0}
    return Run([{"machine": machine, "peaks": peaks, "sections": [], "records": records}])


def forward(who: str, wall_ms: float, preset: str = "vitl", batch: int = 16) -> dict[str, Any]:
    return {"section": f"model_{preset}", "who": who, "batch": batch, "size": [518, 518],
            "ms": wall_ms, "wall_ms": wall_ms}  # fmt: skip


def kernels(preset: str) -> dict[str, Any]:
    return {"section": f"model_{preset}", "who": "dafast, kernels", "batch": 1,
            "size": [518, 518], "kernels_ms": 1.0}  # fmt: skip


def attend(who: str, ms: float, step: str, heads: int = 6) -> dict[str, Any]:
    return {"section": "attention", "who": who, "batch": 1, "tokens": 1370, "heads": heads,
            "pass": step, "ms": ms}  # fmt: skip


def verdicts(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    text = run_tables.target_table([run_of(records)], {})
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    return [(row[3].strip(), row[4].strip()) for row in rows]


def test_verdicts() -> None:
    """Every target once met and once missed; the worst case of several counts."""
    compiled = "transformers, sdpa, torch.compile"

    def loss(backend: str, kind: str, ms: float) -> dict[str, Any]:
        # 1e6 bytes at 1000 GB/s: 1 us
        return {"section": "loss", "backend": backend, "kind": kind, "maps": 64, "bytes": 1e6,
                "ms": ms}  # fmt: skip

    def step(who: str, kind: str, ms: float, peak: float) -> dict[str, Any]:
        return {"section": "train", "model": "vitl", "step": kind, "who": who, "ms": ms,
                "wall_ms": ms, "peak_bytes": peak}  # fmt: skip

    best = [
        forward("dafast", 1.2, "vits", 1), forward("dafast", 1.3, "vitl", 1),
        kernels("vits"), kernels("vitl"),
        forward("dafast", 7.0), forward("dafast, fp8", 6.0), forward(compiled, 10.0),
        forward(f"{compiled}, graph", 9.5), forward("transformers, sdpa", 1.0),
        attend("dafast", 2.0, "forward"), attend("SDPA cudnn", 2.5, "forward"),
        attend("SDPA flash", 2.0, "forward"), attend("dafast", 9.0, "forward+backward"),
        attend("SDPA cudnn", 9.5, "forward+backward"),
        loss("triton", "noise", 4e-3), loss("triton", "depth-like", 4.5e-3),
        loss("cuda", "noise", 2e-3),
        step("dafast", "teacher", 7.0, 80), step("SDPA and references", "teacher", 10.0, 100),
        step("dafast", "student", 7.5, 99), step("SDPA and references", "student", 10.0, 100),
    ]  # fmt: skip
    assert verdicts(best) == [
        ("1.20", "met"), ("1.30", "met"), ("1.20", "met"), ("1.30", "met"), ("0.74", "met"),
        ("0.63", "met"), ("1.00", "met"), ("4.50", "met"), ("2.00", "met"), ("0.75", "met"),
        ("0.99", "met"),
    ]  # fmt: skip
    worse = [
        forward("dafast", 1.4, "vits", 1), forward("dafast", 4.6, "vitl", 1),
        kernels("vits"), kernels("vitl"),
        forward("dafast", 9.0), forward("dafast, fp8", 7.0), forward(compiled, 10.0),
        attend("dafast", 2.0, "forward"), attend("SDPA cudnn", 2.5, "forward"),
        attend("dafast", 3.0, "forward", 16), attend("SDPA flash", 2.0, "forward", 16),
        loss("triton", "noise", 4e-3), loss("triton", "depth-like", 5e-3),
        loss("cuda", "noise", 2e-3), loss("cuda", "depth-like", 3.5e-3),
        step("dafast", "teacher", 7.0, 80), step("SDPA and references", "teacher", 10.0, 100),
        step("dafast", "student", 9.0, 100), step("SDPA and references", "student", 10.0, 100),
    ]  # fmt: skip
    assert verdicts(worse) == [
        ("1.40", "missed"), ("4.60", "missed"), ("1.40", "missed"), ("4.60", "missed"),
        ("0.90", "missed"), ("0.70", "missed"), ("1.50", "missed"), ("5.00", "missed"),
        ("3.50", "missed"), ("0.90", "missed"), ("1.00", "missed"),
    ]  # fmt: skip
    assert verdicts([]) == [("", "not measured")] * 11
    without = [{"section": "loss", "backend": "cuda", "maps": 64, "bytes": 1e6, "why": "no"},
               forward("dafast", 7.0), attend("dafast", 2.0, "forward")]  # fmt: skip
    assert verdicts(without) == [("", "not measured")] * 11


def _numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"\d+(?:\.\d+)?", text)]


@pytest.mark.slow
def test_estimates_come_from_counts() -> None:
    found = estimates.estimated()
    assert found["triton"].startswith("≥ 3.8") and found["cuda"].startswith("≥ 1.7")
    small, large = (_numbers(found[preset]) for preset in ("vits", "vitl"))
    assert 0.1 < small[0] < small[1] < large[0] < large[1] < 20
    launches = [_numbers(found[f"{preset} over kernels"])[0] for preset in ("vits", "vitl")]
    assert launches[1] - launches[0] == 12 * 8, "a block has eight launches"
    low, high = _numbers(found["batch"])
    assert 0.6 < low < high <= 1
    assert _numbers(found["batch, fp8"])[0] < low
    assert 0.5 < _numbers(found["step"])[0] < 1
    assert _numbers(found["step, memory"])[0] < 0.95, "an MLP keeps one hidden tensor"
    text = run_tables.target_table([], found)
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 11 and all(row[5].strip() for row in rows)
    assert {re.findall("only ([a-z_]+)", row[6])[0] for row in rows} <= {s.name for s in FIRST}


@pytest.mark.parametrize("bias", [False, True])
def test_the_bias_of_a_convolution_is_counted_as_a_pass(bias: bool) -> None:
    conv = torch.nn.Conv2d(2, 4, 3, padding=1, bias=bias)
    x = torch.zeros(1, 2, 5, 7, requires_grad=True)
    with estimates.GpuCounter() as counter:
        out = conv(x)
    grad = torch.ones_like(out)
    with estimates.GpuCounter() as backward:
        torch.autograd.grad(out, [x, *conv.parameters()], grad)
    size = 4 * 4 * 5 * 7
    passes = [[op.bytes for op in c.ops if op.kind == "glue"][:1] for c in (counter, backward)]
    assert passes == ([[2 * size], [size]] if bias else [[], []])
    assert counter.calls == 1 + bias


@pytest.mark.slow
def test_counts_of_own_kernels() -> None:
    """The same products and attention as by PyTorch's operations; fewer passes over memory."""
    own, reference = estimates.own_forward("vits", 1), forward_work("vits", (518, 518), 1)

    def counted(ops: Sequence[Op], kind: str) -> tuple[float, float]:
        chosen = [op for op in ops if op.kind == kind]
        return sum(op.flops for op in chosen), sum(op.bytes for op in chosen)

    assert counted(own.ops, "attention")[0] == counted(reference.ops, "attention")[0]
    assert counted(own.ops, "tail")[0] == counted(reference.ops, "tail")[0]
    arithmetic = [
        sum(counted(ops, kind)[0] for kind in ("product", "convolution"))
        for ops in (own.ops, reference.ops)
    ]  # 1x1 and transposed convolutions are products
    assert arithmetic[0] == pytest.approx(arithmetic[1])
    assert counted(own.ops, "glue")[1] < counted(reference.ops, "glue")[1]
