"""The estimate of a GPU's time: what is counted, and what becomes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import estimate
from bench.estimate import H100, Op, Rates, Work
from dafast.config import PRESETS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


@pytest.mark.slow
def test_the_page_is_what_is_printed(capsys) -> None:
    text = estimate.main([])
    assert capsys.readouterr().out == text
    assert f"<!-- estimate -->\n\n{text}\n<!-- end -->" in PAGE.read_text(encoding="utf-8"), (
        "put what `python bench/estimate.py` prints between the marks of docs/scale.md"
    )


def flops(work: Work, kind: str) -> float:
    return sum(op.flops for op in work.ops if op.kind == kind) / work.images


def moved(work: Work, kind: str) -> float:
    return sum(op.bytes for op in work.ops if op.kind == kind) / work.images


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 3])
def test_counts_of_a_forward(images: int, rng: np.random.Generator) -> None:
    """Products and attention by hand; nothing depends on the batch but the number of calls."""
    rows, columns = rng.integers(2, 6, 2).tolist()
    config = PRESETS["vits"]
    work = estimate.forward_work("vits", (14 * rows, 14 * columns), images)
    tokens, width, layers = rows * columns + 1, config.embed_dim, config.num_layers
    assert flops(work, "product") == pytest.approx(24 * tokens * width**2 * layers)
    assert flops(work, "attention") == pytest.approx(4 * tokens**2 * width * layers)
    pixels = 14 * rows * 14 * columns
    assert flops(work, "tail") == pytest.approx(2 * pixels * (9 * config.features // 2 + 1) * 32)
    # Each of two adds, two norms and a GELU a layer moves its tensors, of 2 bytes a value.
    least = layers * tokens * width * 2 * (2 * 5 + 2 * 4)
    other = estimate.forward_work("vits", (14 * rows, 14 * columns), 5)
    more = 5 * moved(other, "glue") - images * moved(work, "glue")  # position embeddings are once
    assert least < more / (5 - images) < 3 * least
    assert (work.calls, work.own_calls) == (other.calls, other.own_calls)
    assert work.own_calls >= 4 * layers


@pytest.mark.slow
def test_counts_of_a_step(rng: np.random.Generator) -> None:
    """A backward is two forwards; the frozen encoder sees two images of three."""
    size = (14 * int(rng.integers(2, 5)), 42)
    forward = estimate.forward_work("vits", size, 3)
    step = estimate.student_work("vits", size, 3)
    product = flops(forward, "product")
    assert flops(step, "product") == pytest.approx((3 + 2 / 3) * product, rel=0.01)
    attention = flops(forward, "attention")
    assert flops(step, "attention") == pytest.approx((1 + 2 / 3) * attention)
    assert flops(step, "attention, backward") == pytest.approx(2.5 * attention)
    assert flops(step, "convolution") > 2.5 * flops(forward, "convolution")
    weights = 24.7e6  # AdamW moves 28 bytes of each
    assert moved(step, "glue") * 3 > 28 * weights


def test_seconds_by_hand() -> None:
    rates = Rates(100.0, 0.5, 0.25, 10.0, 5.0, 20.0, 8.0, 0.5, 2.0, call=1.0, own_call=3.0)
    for op, seconds in (
        (Op("product", 200, 1), 4),  # 200 / (100 * 0.5)
        (Op("product", 1, 40), 10),  # bound by memory: 40 / (8 * 0.5)
        (Op("convolution", 200, 0), 8),
        (Op("attention", 30, 0), 3),
        (Op("attention, backward", 30, 0), 6),
        (Op("tail", 30, 0), 1.5),
        (Op("resize", 0, 30), 15),
        (Op("glue", 0, 40), 10),
    ):
        assert rates.seconds(op) == pytest.approx(seconds), op
    ops = (Op("product", 200, 1), Op("glue", 0, 40))
    assert Work(2, ops, calls=2, own_calls=1).seconds(rates) == pytest.approx(7)
    assert Work(2, ops, calls=20, own_calls=1).seconds(rates) == pytest.approx(11.5), "the host"
    parts = Work(2, ops, calls=2, own_calls=1).by_kind(rates)
    assert (parts["product"], parts["glue"], parts["host"]) == pytest.approx((2, 5, 2.5))


@pytest.mark.slow
def test_the_ends_are_in_order() -> None:
    slow, fast = H100
    for field in dataclasses.fields(Rates):
        low, high = getattr(slow, field.name), getattr(fast, field.name)
        if field.name in ("call", "own_call"):  # seconds; the others are rates
            low, high = high, low
        assert low <= high, field.name
    assert [name for name, *_ in estimate.SOURCES] == [f.name for f in dataclasses.fields(Rates)]
    low, high = estimate.images_per_second("student_rate")
    assert 0 < low < high


@pytest.mark.slow
def test_holds_itself_against_this_machine(tmp_path: Path, capsys, monkeypatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(estimate, "CROP", (28, 42))
    monkeypatch.setattr(estimate, "SIDE", 256)  # some CPUs emulate bfloat16, 100 times slower
    try:
        arguments = ["--here", "--rounds", "1", "--preset", "nano"]
        seen = estimate.main([*arguments, "--json", str(tmp_path / "here.json")])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for dtype in ("float32", "bfloat16"):
        ends = seen[dtype]["estimate"]
        assert ends["slow"] > ends["fast"] > ends["whole"] > 0
        assert min(seen[dtype]["measured"].values()) > 0
        assert f"nano, 28 x 42, {dtype}" in printed
    assert (tmp_path / "here.json").is_file()
