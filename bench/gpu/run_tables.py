"""Tables of the runs of `bench/gpu_run.py`, and their targets."""

from __future__ import annotations

import glob
import json
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.tables import figure, table

Record = dict[str, Any]
RESULTS = Path(__file__).resolve().parents[1] / "results"
NO_RUN = "Not measured: `bench/gpu_run.py` has not run on a GPU."


class Run:
    """The records of one GPU.

    Args:
        reports: The files of its runs.
    """

    def __init__(self, reports: Sequence[dict[str, Any]]) -> None:
        self.machine: Record = {}
        self.peaks: Record = {}
        self.records: list[Record] = []
        self.sections: list[Record] = []
        for report in reports:
            self.machine |= report["machine"]
            self.peaks |= report["peaks"]
            self.records += report["records"]
            self.sections += report["sections"]

    def find(self, section: str, **wanted: Any) -> Iterator[Record]:
        """The records of a section with these values."""
        for record in self.records:
            if record["section"] == section and wanted.items() <= record.items():
                yield record

    def one(self, section: str, **wanted: Any) -> Record | None:
        """The first of them that has a time."""
        return next((r for r in self.find(section, **wanted) if "ms" in r), None)


def load(folder: Path = RESULTS, stub: bool = False) -> list[Run]:
    """The runs in ``gpu-run-*.json`` by GPU; those of a stub only with ``stub``."""
    by_device: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(glob.glob(str(folder / "gpu-run*.json"))):
        report = json.loads(Path(name).read_text(encoding="utf-8"))
        if report["stub"] and not stub:
            raise ValueError(f"{name}: these figures are of a CPU (--stub) and mean nothing")
        device = report["machine"].get("device", Path(name).stem)
        by_device.setdefault(device, []).append(report)
    return [Run(reports) for reports in by_device.values()]


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        what: The target in words.
        section: Section of `bench/gpu_run.py` that measures it.
        limit: Largest value that meets it.
        measure: Takes a run, returns the value, None if it was not measured.
        estimate: An estimate from counts, or "".
        digits: Digits of the value after the point.
        below: Whether the value has to be less than the limit, not equal.
    """

    what: str
    section: str
    limit: float
    measure: Callable[[Run], float | None]
    estimate: str = ""
    digits: int = 2
    below: bool = False

    def row(self, run: Run | None) -> list[str]:
        """Target, limit, measured, verdict, estimate, section."""
        value = None if run is None else self.measure(run)
        limit = f"{'<' if self.below else '≤'} {self.limit:g}"
        if value is None:
            return [self.what, limit, "", "not measured", self.estimate, self._command()]
        met = (operator.lt if self.below else operator.le)(value, self.limit)
        return [self.what, limit, f"{value:.{self.digits}f}", "met" if met else "missed",
                self.estimate, self._command()]  # fmt: skip

    def _command(self) -> str:
        return f"`--only {self.section}`"


def _ratio(a: Record | None, b: Record | None, key: str = "wall_ms") -> float | None:
    return a[key] / b[key] if a and b and b.get(key) else None


def _photo(run: Run, preset: str) -> Record | None:
    return run.one("model_" + preset, who="dafast", batch=1, size=[518, 518])


def _kernels_ms(run: Run, section: str, batch: int, size: list[int]) -> float | None:
    wanted = {"who": "dafast, kernels", "batch": batch, "size": size}
    return next((r.get("kernels_ms") for r in run.find(section, **wanted)), None)


def _photo_over_kernels(preset: str) -> Callable[[Run], float | None]:
    def measure(run: Run) -> float | None:
        record, kernels = _photo(run, preset), _kernels_ms(run, "model_" + preset, 1, [518, 518])
        return record["wall_ms"] / kernels if record and kernels else None

    return measure


def _photo_ms(preset: str) -> Callable[[Run], float | None]:
    return lambda run: (_photo(run, preset) or {}).get("wall_ms")


def _over_transformers(who: str) -> Callable[[Run], float | None]:
    def measure(run: Run) -> float | None:
        batch = [r for r in run.find("model_vitl", batch=16, size=[518, 518]) if "ms" in r]
        ours = next((r for r in batch if r["who"] == who), None)
        theirs = [r for r in batch if r["who"].startswith("transformers, sdpa, torch.compile")]
        return _ratio(ours, min(theirs, key=lambda r: r["wall_ms"], default=None))

    return measure


def attention_ratios(run: Run) -> list[tuple[Record, float]]:
    """dafast's records of attention, with their time over that of the best of the others."""
    found = []
    for ours in run.find("attention", who="dafast"):
        shape = {key: ours[key] for key in ("batch", "tokens", "heads", "pass")}
        others = [r["ms"] for r in run.find("attention", **shape)
                  if r["who"] != "dafast" and "ms" in r]  # fmt: skip
        if "ms" in ours and others:
            found.append((ours, ours["ms"] / min(others)))
    return found


def _attention(run: Run) -> float | None:
    return max((ratio for _, ratio in attention_ratios(run)), default=None)


def loss_over_bytes(run: Run, record: Record) -> float | None:
    """Time of a record of the loss over that of moving its bytes once."""
    copy = run.peaks.get("copy_gbytes")
    return record["ms"] / (record["bytes"] / copy / 1e6) if copy and "ms" in record else None


def _loss(backend: str) -> Callable[[Run], float | None]:
    def measure(run: Run) -> float | None:
        found = [
            loss_over_bytes(run, r) for r in run.find("loss", backend=backend, maps=64)
        ]  # of noise and of depth-like maps
        known = [ratio for ratio in found if ratio is not None]
        return max(known, default=None)

    return measure


def _training(key: str) -> Callable[[Run], float | None]:
    def measure(run: Run) -> float | None:
        ratios = []
        for step in ("teacher", "student"):
            ours, theirs = (run.one("train", model="vitl", step=step, who=who)
                            for who in ("dafast", "SDPA and references"))  # fmt: skip
            ratio = _ratio(ours, theirs, key)
            if ratio is not None:
                ratios.append(ratio)
        return max(ratios, default=None)

    return measure


def targets(estimates: dict[str, str]) -> tuple[Target, ...]:
    """All targets; ``estimates`` are those of `bench.gpu.estimates`."""
    names = {"vits": "ViT-S", "vitl": "ViT-L"}
    photo = "one photo 518x518, bfloat16, graph"
    known = defaultdict(str, estimates)
    return (
        *(Target(f"{photo}, {name}: time over the sum of its kernels", f"model_{preset}", 1.3,
                 _photo_over_kernels(preset), known[f"{preset} over kernels"])
          for preset, name in names.items()),
        *(Target(f"{photo}, {names[preset]}: ms", f"model_{preset}", limit, _photo_ms(preset),
                 known[preset])
          for preset, limit in (("vits", 1.2), ("vitl", 4.5))),
        Target("ViT-L, batch 16, bfloat16: time over transformers with SDPA and torch.compile",
               "model_vitl", 0.83, _over_transformers("dafast"), known["batch"]),
        Target("the same, with fp8", "model_vitl", 0.67, _over_transformers("dafast, fp8"),
               known["batch, fp8"]),
        Target("attention: time over the best of cuDNN and flash-attn, worst of all shapes",
               "attention", 1.0, _attention, known["attention"]),
        Target("affine-invariant loss, 64 maps, both passes, Triton (T1): time over moving its "
               "bytes once", "loss", 4.5, _loss("triton"), known["triton"]),
        Target("the same, CUDA (T2)", "loss", 3.0, _loss("cuda"), known["cuda"]),
        Target("a training step, ViT-L: time over SDPA and reference ops", "train", 0.75,
               _training("wall_ms"), known["step"]),
        Target("the same: peak memory", "train", 1.0, _training("peak_bytes"),
               known["step, memory"], below=True),
    )  # fmt: skip


def target_table(runs: Sequence[Run], estimates: dict[str, str]) -> str:
    """One line per target, for each GPU."""
    parts = []
    for run in runs or [None]:
        rows = [["target", "limit", "measured", "", "estimated from counts",
                 "`bench/gpu_run.py`"]]  # fmt: skip
        rows += [target.row(run) for target in targets(estimates)]
        title = "" if run is None else f"{run.machine.get('device', 'unknown')}:\n\n"
        parts.append(title + table(rows))
    return "\n".join(parts)


def _why(record: Record) -> str:
    return record.get("why", "").replace("|", "/")


def _model_rows(run: Run) -> list[list[str]]:
    rows = [["model", "batch, size", "implementation", "ms", "of its kernels, ms", "images/s",
             "peak, MB", "error"]]  # fmt: skip
    for section in ("model_vits", "model_vitl"):
        for r in run.find(section):
            if r["who"] == "dafast, kernels":
                continue
            kernels = _kernels_ms(run, section, r["batch"], r["size"])
            shape = f"{r['batch']}, {'x'.join(map(str, r['size']))}"
            if "ms" not in r:
                rows.append([r["model"], shape, r["who"], _why(r), "", "", "", ""])
                continue
            rows.append([r["model"], shape, r["who"], figure(r["wall_ms"]),
                         figure(kernels) if r["who"] == "dafast" else "",
                         f"{r['images_s']:,.1f}",
                         f"{r['peak_bytes'] / 1e6:,.0f}", f"{r['error']:.1e}"])  # fmt: skip
    return rows


def _infer_rows(run: Run) -> list[list[str]]:
    rows = [["what", "model", "graphs", "ms", "images/s"]]
    for r in run.find("infer"):
        graphs = {True: "yes", False: "no"}.get(r.get("graphs"), "")
        time = figure(r["wall_ms"]) if "wall_ms" in r else _why(r)
        rate = f"{r['images_s']:,.1f}" if "images_s" in r else ""
        rows.append([r.get("what") or r["copy"], r.get("model", ""), graphs, time, rate])
    return rows


def _attention_rows(run: Run) -> list[list[str]]:
    names = list(dict.fromkeys(r["who"] for r in run.find("attention")))
    ratios = {id(record): ratio for record, ratio in attention_ratios(run)}
    rows = [["tokens, heads", "pass", *names, "TFLOP/s", "over the best other"]]
    for ours in run.find("attention", who="dafast"):
        shape = {key: ours[key] for key in ("batch", "tokens", "heads", "pass")}
        times = {r["who"]: r.get("ms") for r in run.find("attention", **shape)}
        ratio = ratios.get(id(ours))
        rows.append([
            f"{ours['batch']} x {ours['tokens']}, {ours['heads']}", ours["pass"],
            *(figure(times.get(name)) or "none" for name in names),
            figure(ours.get("tflops")), "" if ratio is None else f"{ratio:.2f}",
        ])  # fmt: skip
    return rows


def _loss_rows(run: Run) -> list[list[str]]:
    rows = [["maps", "kind", "backend", "in a graph, ms", "over its bytes", "call, ms",
             "launches, us"]]  # fmt: skip
    for r in run.find("loss"):
        if not ({"call_ms", "why"} & r.keys()):
            continue
        same = {key: r[key] for key in ("maps", "kind", "backend")}
        launches = next(
            (x["kernels_us"] for x in run.find("loss", **same) if "kernels_us" in x), {}
        )
        ratio = loss_over_bytes(run, r)
        longest = sorted(launches.items(), key=lambda item: -item[1])[:8]
        row = [
            str(r["maps"]), r["kind"], r["backend"], figure(r["ms"]) if "ms" in r else _why(r),
            "" if ratio is None else f"{ratio:.1f}", figure(r.get("call_ms")),
            "; ".join(f"{name[:40]} {us:.1f}" for name, us in longest).replace("|", "/"),
        ]  # fmt: skip
        if row not in rows:
            rows.append(row)
    return rows


def _product_rows(run: Run) -> list[list[str]]:
    rows = [["shape", "implementation", "ms", "TFLOP/s", "GB/s"]]
    for r in run.find("products"):
        if "host" in r:
            continue
        kind = next(k for k in ("product", "convolution", "rows") if k in r)
        shape = f"{kind} {'x'.join(map(str, r[kind]))}"
        time = figure(r["ms"]) if "ms" in r else _why(r)
        rates = [figure(r.get(key)) for key in ("tflops", "gbytes_s")]
        rows.append([shape, r["who"], time, *rates])
    return rows


def _host_rows(run: Run) -> list[list[str]]:
    rows = [["call", "us of the host"]]
    for r in run.find("products"):
        if "host" in r:
            rows.append([r["host"], f"{r['call_us']:.1f}" if "call_us" in r else _why(r)])
    return rows


def _training_rows(run: Run) -> list[list[str]]:
    rows = [["model", "step", "images", "implementation", "ms", "images/s", "peak, GB"]]
    for r in run.find("train"):
        images = f"{r['labeled']} + {r['unlabeled']}" if r["unlabeled"] else str(r["labeled"])
        cells = (
            [figure(r["wall_ms"]), f"{r['images_s']:,.1f}", f"{r['peak_bytes'] / 1e9:.1f}"]
            if "ms" in r
            else [_why(r), "", ""]
        )
        rows.append([r["model"], r["step"], images, r["who"], *cells])
    return rows


def _check_rows(run: Run) -> list[list[str]]:
    rows = [["check", "exit status"]]
    for section in ("tests", "sanitize"):
        rows += [[r["check"], str(r.get("rc", _why(r)))] for r in run.find(section)]
    return rows


def _cluster_rows(run: Run) -> list[list[str]]:
    rows = [["shared memory a block, KB", "blocks a cluster", "resident clusters"]]
    for r in run.find("machine", what="resident clusters"):
        rows += [[f"{c['shared_bytes'] // 1024}", str(c["cluster"]), str(c["clusters"])]
                 for c in r.get("resident", [])]  # fmt: skip
    return rows


PARTS: tuple[tuple[str, Callable[[Run], list[list[str]]]], ...] = (
    ("The forward, bfloat16, random weights", _model_rows),
    ("`infer` of 1920x1080 JPEGs, bfloat16", _infer_rows),
    ("Attention in a graph, bfloat16, ms", _attention_rows),
    ("The affine-invariant loss, both passes, float32, 20% masked", _loss_rows),
    ("Products and convolutions in a graph, bfloat16", _product_rows),
    ("Calls on the host", _host_rows),
    ("A training step, bfloat16 autocast", _training_rows),
    ("Resident clusters of thread blocks", _cluster_rows),
    ("Checks", _check_rows),
)


def run_tables(runs: Sequence[Run]) -> str:
    """All tables of all runs."""
    if not runs:
        return NO_RUN + "\n"
    parts = []
    for run in runs:
        about = ", ".join(f"{k} {v}" for k, v in run.machine.items() if k != "device")
        parts.append(f"### {run.machine.get('device', 'unknown')}\n\n{about}.\n")
        if run.peaks:
            peaks = ", ".join(f"{k} {v:,.0f}" for k, v in run.peaks.items())
            parts.append(f"Peaks: {peaks}.\n")
        bad = [f"{s['section']} ({s['status']})" for s in run.sections if s["status"] != "done"]
        if bad:
            parts.append(f"Incomplete: {', '.join(bad)}.\n")
        for title, make in PARTS:
            rows = make(run)
            if len(rows) > 1:
                parts.append(f"#### {title}\n\n{table(rows)}")
    return "\n".join(parts)


def plan_rates(runs: Sequence[Run]) -> dict[str, tuple[float, str]]:
    """Images per second and source of the measured rates of docs/scale.md, the first GPU's."""
    found: dict[str, tuple[float, str]] = {}
    for run in runs:
        records = {
            "teacher_rate": run.one("model_vitl", who="dafast", batch=16, size=[518, 700]),
            "small_teacher_rate": run.one("model_vits", who="dafast", batch=16, size=[518, 700]),
            "student_rate": run.one("train", model="vitl", step="student", who="dafast"),
        }
        device = run.machine.get("device", "unknown")
        for name, record in records.items():
            if record:
                found.setdefault(name, (record["images_s"], device))
    return found
