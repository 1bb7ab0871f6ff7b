"""Computes the plan of labelling 62M images from a table of inputs: `python bench/scale.py`.

It prints the tables of docs/scale.md. `--set NAME=VALUE` changes an input. The images per second of
a GPU are those of `bench/gpu_run.py` (bench/results/gpu-run-*.json). One that was not measured is
estimated (bench/estimate.py), with a slow and a fast end: the tables use the middle and also list
the results for both ends. `--set teacher_rate=...` replaces it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import estimate
from bench.gpu import run_tables

GPUS = (8, 64, 512)
DAYS = (1, 3, 7, 30)

IMAGES = {
    "SA-1B": 11.1e6,
    "ImageNet-21K": 13.1e6,
    "LSUN": 9.8e6,
    "BDD100K": 8.2e6,
    "Open Images V7": 7.8e6,
    "Places365": 6.5e6,
    "Google Landmarks": 4.1e6,
    "Objects365": 1.7e6,
}
"""The unlabeled images of Depth Anything, Table 1."""


@dataclass(frozen=True)
class Input:
    """An input of the plan.

    Attributes:
        name: Name for `--set`.
        value: The figure; None for the rate of a GPU: measured, else estimated.
        unit: Its unit.
        basis: Its source: measured or estimated, with the command; assumed; or published.
    """

    name: str
    value: float | None
    unit: str
    basis: str


@dataclass(frozen=True)
class Span:
    """A figure with its range; all three are equal if the figure is known.

    Attributes:
        low: The lower end.
        middle: The value that is shown.
        high: The upper end.
    """

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.middle:g}"
        return f"{self.middle:g} ({self.low:g} to {self.high:g})"


_LOADER = "measured: `bench/loader.py`"
_ESTIMATED = "not measured; **estimated**: `bench/estimate.py`, H100, bfloat16"

INPUTS = (
    Input("image_kb", 139.0, "kB", f"{_LOADER} (JPEG, quality 95)"),
    Input("label_kb", 505.0, "kB", f"{_LOADER} (16-bit PNG)"),
    Input("decode_ms", 1.9, "ms of a processor", f"{_LOADER} (only the image)"),
    Input("encode_ms", 12.7, "ms of a processor", f"{_LOADER} (`encode` less `decode`)"),
    Input("student_ms", 9.7, "ms of a processor", f"{_LOADER}, crops of 518"),
    Input("scan_ms", 52.5, "ms a shard", "measured: `bench/loader.py`, 1000 labeled samples"),
    Input(
        "kept_ms", 1.3, "ms a shard", "measured: `bench/loader.py`, from what an earlier start kept"
    ),
    Input("index_bytes", 116.0, "bytes an image", "measured: `bench/loader.py`"),
    Input("teacher_rate", None, "images/s and GPU", f"{_ESTIMATED}, ViT-L, 518 x 690"),
    Input("small_teacher_rate", None, "images/s and GPU", f"{_ESTIMATED}, ViT-S, 518 x 690"),
    Input("student_rate", None, "images/s and GPU", f"{_ESTIMATED}, ViT-L, 518 x 518"),
    Input("busy", 0.9, "", "assumed: share of the time that a GPU computes"),
    Input("gpu_price", 2.5, "$ an hour", "assumed: a rented H100 with its share of a node"),
    Input("storage_price", 23.0, "$ a TB and month", "assumed: object storage at its list price"),
    Input("shard_images", 1000.0, "", "assumed: `dafast data pack --shard-size`, its default"),
)

Values = dict[str, Span]


def with_measured(
    chosen: Sequence[Input], runs: Sequence[run_tables.Run] | None = None
) -> list[Input]:
    """The inputs, with the rates of a GPU that were measured.

    Args:
        chosen: The inputs.
        runs: Those of `bench/gpu_run.py`; by default the ones in bench/results.
    """
    rates = run_tables.plan_rates(run_tables.load() if runs is None else runs)
    found = []
    for entry in chosen:
        if entry.value is None and entry.name in rates:
            rate, device = rates[entry.name]
            basis = entry.basis.replace(_ESTIMATED, f"measured: `bench/gpu_run.py`, {device}")
            entry = dataclasses.replace(entry, value=float(f"{rate:.3g}"), basis=basis)
        found.append(entry)
    return found


def total_images() -> float:
    """All images of the plan."""
    return sum(IMAGES.values())


def needed(values: Values) -> list[list[str]]:
    """The load of every GPU, of the network and of the processors by the days of the run."""
    rows = [["days", "images/s", *(f"a GPU of {count}" for count in GPUS), "read MB/s",
             "written MB/s", "processors"]]  # fmt: skip
    for days in DAYS:
        rate = total_images() / (days * 86400)
        per_gpu = (f"{rate / count:,.2f}" for count in GPUS)
        rows.append([f"{days}", f"{rate:,.0f}", *per_gpu, *_traffic(values, rate)])
    return rows


def _traffic(values: Values, rate: float) -> tuple[str, str, str]:
    """MB/s read and written, and busy processors, for `rate` images per second."""
    image, label = _middle(values, "image_kb"), _middle(values, "label_kb")
    cpu = _middle(values, "decode_ms") + _middle(values, "encode_ms")
    return (
        f"{rate * image / 1e3:,.0f}",
        f"{rate * (image + label) / 1e3:,.0f}",
        f"{rate * cpu / 1e3:,.1f}",
    )


def stored(values: Values) -> list[list[str]]:
    """Bytes and objects that the run reads and writes, and the cost of storing them."""
    image, label = _middle(values, "image_kb"), _middle(values, "label_kb")
    price, shard = _middle(values, "storage_price"), _middle(values, "shard_images")
    images = total_images()
    rows = [["", "TB", "a shard, MB", "$ a month"]]
    for name, kb in (
        ("images, packed", image),
        ("labels only", label),
        ("labeled shards (images and labels)", image + label),
    ):
        tb = images * kb / 1e9
        rows.append([name, f"{tb:.1f}", f"{shard * kb / 1e3:.0f}", f"{tb * price:,.0f}"])
    rows.append([f"objects: {images / shard:,.0f} shards each", "", "", ""])
    return rows


def start(values: Values) -> list[list[str]]:
    """Time and memory of a process that trains on all of it, before its first step."""
    shards = total_images() / _middle(values, "shard_images")
    first, later = (shards * _middle(values, name) / 6e4 for name in ("scan_ms", "kept_ms"))
    memory = total_images() * _middle(values, "index_bytes") / 1e9
    return [
        ["", "first start, minutes", "later ones, minutes", "memory, GB"],
        ["local shards", f"{first:.0f}", f"{later:.1f}", f"{memory:.1f}"],
    ]


def runs(values: Values, rate: str) -> list[list[str]]:
    """Time, cost, traffic and processors of a run; `rate` names the rate of a GPU."""
    rows = [["GPUs", "images/s", "hours", "GPU hours", "$", "read MB/s", "written MB/s",
             "processors", "hours, between", "$, between"]]  # fmt: skip
    for count in GPUS:

        def hours(per_gpu: float, count: int = count) -> float:
            return total_images() / (count * per_gpu * _middle(values, "busy")) / 3600

        def price(per_gpu: float, count: int = count) -> float:
            return hours(per_gpu, count) * count * _middle(values, "gpu_price")

        speed, middle = count * values[rate].middle * _middle(values, "busy"), values[rate].middle
        rows.append([f"{count}", f"{speed:,.0f}", f"{hours(middle):,.2f}",
                     f"{hours(middle) * count:,.0f}", f"{price(middle):,.0f}",
                     *_traffic(values, speed), _between(values[rate], hours, ",.2f"),
                     _between(values[rate], price, ",.0f")])  # fmt: skip
    return rows


def student(values: Values) -> list[list[str]]:
    """The pass of a student over the labels, with half as many labeled images."""
    rows = [["GPUs", "images/s", "days", "$", "read MB/s", "processors", "days, between",
             "$, between"]]  # fmt: skip
    images, rate = 1.5 * total_images(), values["student_rate"]
    for count in GPUS:

        def days(per_gpu: float, count: int = count) -> float:
            return images / (count * per_gpu * _middle(values, "busy")) / 86400

        def price(per_gpu: float, count: int = count) -> float:
            return days(per_gpu, count) * 24 * count * _middle(values, "gpu_price")

        speed = count * rate.middle * _middle(values, "busy")
        kb = _middle(values, "image_kb") + _middle(values, "label_kb")
        rows.append([
            f"{count}", f"{speed:,.0f}", f"{days(rate.middle):,.2f}", f"{price(rate.middle):,.0f}",
            f"{speed * kb / 1e3:,.0f}", f"{speed * _middle(values, 'student_ms') / 1e3:,.0f}",
            _between(rate, days, ",.2f"), _between(rate, price, ",.0f"),
        ])  # fmt: skip
    return rows


def _between(rate: Span, figure: Callable[[float], float], form: str) -> str:
    """A result for the fast and for the slow end of a rate."""
    ends = [format(figure(end), form) for end in (rate.high, rate.low)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def inputs(chosen: Sequence[Input]) -> list[list[str]]:
    """The table of inputs."""
    rows = [["input", "value", "unit", "from"]]
    values = spans(chosen)
    for entry in chosen:
        rows.append([f"`{entry.name}`", f"{values[entry.name]}", entry.unit, entry.basis])
    rows.append(
        ["images", f"{total_images() / 1e6:.1f}M", "", "published: Depth Anything, Table 1"]
    )
    return rows


def spans(chosen: Sequence[Input]) -> Values:
    """Every input with its range; the middle of an estimate is the geometric mean."""
    values = {}
    for entry in chosen:
        if entry.value is None:
            low, high = estimate.images_per_second(entry.name)
            values[entry.name] = Span(low, float(f"{math.sqrt(low * high):.2g}"), high)
        else:
            values[entry.name] = Span(entry.value, entry.value, entry.value)
    return values


def report(chosen: Sequence[Input]) -> str:
    """All tables of docs/scale.md."""
    values = spans(chosen)
    parts = (
        ("Inputs", inputs(chosen)),
        ("What a deadline needs", needed(values)),
        ("Bytes", stored(values)),
        ("Labelling with ViT-L", runs(values, "teacher_rate")),
        ("Labelling with ViT-S", runs(values, "small_teacher_rate")),
        ("The student's pass", student(values)),
        ("The student's start", start(values)),
    )
    return "\n\n".join(f"### {title}\n\n{_markdown(rows)}" for title, rows in parts) + "\n"


def _middle(values: Values, name: str) -> float:
    return values[name].middle


def _markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)] if head[0] != "input" else ["---"] * len(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def main(argv: Sequence[str] | None = None) -> str:
    """Command line; returns the report that it prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="change an input")  # fmt: skip
    options = parser.parse_args(argv)
    chosen = {entry.name: entry for entry in with_measured(INPUTS)}
    for text in options.set:
        name, _, value = text.partition("=")
        if name not in chosen:
            parser.error(f"no input {name!r}; there are: {', '.join(chosen)}")
        try:
            number = float(value)
        except ValueError:
            parser.error(f"--set {text}: {value!r} is not a number")
        if not number > 0:
            parser.error(f"--set {text}: must be more than 0")
        basis = f"given: --set {text}"
        chosen[name] = dataclasses.replace(chosen[name], value=number, basis=basis)
    text = report(list(chosen.values()))
    print(text, end="")
    return text


if __name__ == "__main__":
    main()
