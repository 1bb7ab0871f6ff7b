"""The plan of the full run: its arithmetic, and that the page shows what the script prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import estimate, scale
from bench.gpu import run_tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


@pytest.mark.slow
def test_the_page_is_what_is_printed(capsys) -> None:
    text = scale.main([])
    assert capsys.readouterr().out == text
    assert f"<!-- tables -->\n\n{text}\n<!-- end -->" in PAGE.read_text(encoding="utf-8"), (
        "put what `python bench/scale.py` prints between the marks of docs/scale.md"
    )


def rows(text: str, title: str) -> list[list[str]]:
    part = text.split(f"### {title}\n\n")[1].split("\n\n")[0]
    return [re.split(r"\s*\|\s*", line.strip("| ")) for line in part.splitlines()[2:]]


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_hand_worked(capsys) -> None:
    """100 images a second on each GPU that is always busy, 2 and 3 MB an image, 10 + 40 ms."""
    arguments = []
    for name, value in {
        "teacher_rate": 100,
        "busy": 1,
        "image_kb": 2000,
        "label_kb": 3000,
        "decode_ms": 10,
        "encode_ms": 40,
        "gpu_price": 2,
        "student_rate": 50,
        "student_ms": 20,
    }.items():
        arguments += ["--set", f"{name}={value}"]
    text = scale.main(arguments)
    assert scale.total_images() == pytest.approx(62.3e6)
    for gpus, row in zip(scale.GPUS, rows(text, "Labelling with ViT-L"), strict=True):
        hours = 62.3e6 / (gpus * 100) / 3600
        expected = [
            *(gpus, gpus * 100, hours, 62.3e6 / 100 / 3600, 62.3e6 / 100 / 3600 * 2),
            *(gpus * 100 * 2, gpus * 100 * 5, gpus * 100 * 0.05),
        ]
        assert [number(cell) for cell in row[:8]] == pytest.approx(expected, rel=0.01, abs=0.06)
        assert row[8:] == [row[2], row[4]], "a rate that is given has no ends"
    day = rows(text, "What a deadline needs")[0]
    assert number(day[1]) == pytest.approx(62.3e6 / 86400, rel=0.001)
    assert number(day[2]) == pytest.approx(62.3e6 / 86400 / 8, rel=0.001)
    assert number(rows(text, "Bytes")[2][1]) == pytest.approx(62.3e6 * 5e6 / 1e12, rel=0.001)
    student = rows(text, "The student's pass")[0]
    assert number(student[2]) == pytest.approx(1.5 * 62.3e6 / 400 / 86400, rel=0.01)
    assert "given: --set teacher_rate=100" in text and "**estimated**" in text


def test_what_follows_from_both_ends() -> None:
    """The middle lies between the ends, and the slow end takes longer and costs more."""
    text = scale.main([])
    for title, figure, between in (
        *(("Labelling with ViT-L", 2, 8), ("Labelling with ViT-L", 4, 9)),
        *(
            ("Labelling with ViT-S", 2, 8),
            ("The student's pass", 2, 6),
            ("The student's pass", 3, 7),
        ),
    ):
        row = rows(text, title)[0]
        fast, slow = map(number, row[between].split(" to "))
        assert fast < number(row[figure]) < slow
    low, high = estimate.images_per_second("teacher_rate")
    entry = next(row for row in rows(text, "Inputs") if row[0] == "`teacher_rate`")
    assert entry[1].endswith(f"({low:g} to {high:g})") and entry[3].startswith(
        "not measured; **estimated**"
    )
    hours = rows(text, "Labelling with ViT-L")[0][8].split(" to ")
    expected = [scale.total_images() / (8 * rate * 0.9) / 3600 for rate in (high, low)]
    assert list(map(number, hours)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("text", ["speed=1", "busy=x", "busy=0", "busy", "busy=-1", "busy=nan"])
def test_mistakes(text: str, capsys) -> None:
    with pytest.raises(SystemExit):
        scale.main(["--set", text])
    assert text.partition("=")[0] in capsys.readouterr().err


def test_measured_rates_replace_the_estimate() -> None:
    """The records of a GPU serve, an input without one stays estimated."""
    record = {"who": "dafast", "ms": 1.0, "images_s": 123.456}
    records = [
        {"section": "model_vitl", "batch": 16, "size": [518, 518], **record, "images_s": 1.0},
        {"section": "model_vitl", "batch": 16, "size": [518, 700], **record},
        {"section": "train", "model": "vitl", "step": "student", **record, "images_s": 45.0},
    ]
    report = {"machine": {"device": "Card"}, "peaks": {}, "sections": [], "records": records}
    found = {e.name: e for e in scale.with_measured(scale.INPUTS, [run_tables.Run([report])])}
    assert found["teacher_rate"].value == 123.0 and found["student_rate"].value == 45.0
    assert found["teacher_rate"].basis == "measured: `bench/gpu_run.py`, Card, ViT-L, 518 x 690"
    assert found["small_teacher_rate"].value is None
    text = scale.report(list(found.values()))
    row = next(row for row in rows(text, "Inputs") if row[0] == "`teacher_rate`")
    assert row[1] == "123" and "estimated" not in row[3]
