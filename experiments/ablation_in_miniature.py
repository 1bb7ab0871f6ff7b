"""Runs the paper's ablation at nano's scale (docs/ablation.md): one command, a table at the end.

    python experiments/ablation_in_miniature.py --data ablation-data --deadline 470

For each seed a teacher learns from labeled pictures and labels the others; for each seed and row
a student learns, from the same encoder: nano's instead of DINOv2's. All students take the same
number of steps. Each task is a process (experiments/ablation_tasks.py); `--jobs` of them run at a
time. The same command again skips finished tasks.

`--steps` and `--teacher-steps` set the steps. By default the tasks of a stage measure their speed
while all of them run, and all take as many steps as the slowest can before the deadline. At the
deadline the report is written from the finished tasks. Needs dafast[train].
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from ablation_tasks import HELD_OUT, ROWS, Settings

SCRIPT = Path(__file__).resolve().with_name("ablation_tasks.py")
ROOT = SCRIPT.parent.parent

# The training of a stage ends at this fraction of the time after the check of the ops.
TEACHERS_END, STUDENTS_END = 0.25, 0.90
CHECK_SECONDS = 150.0  # mostly for compiling kernels
SETTLE_SECONDS = 8.0  # of training with all tasks, before its speed counts
MARGIN = 0.93  # fraction of the remaining time that is planned for
MOST_STEPS = 20_000
COLUMNS = {
    "seen kinds": ("held-out-labeled",),
    "kinds without labels": ("held-out-unlabeled",),
    "unseen kinds": ("held-out-unseen",),
    "motorcycle": ("motorcycle",),
    "aloe": ("aloe",),
}
LABELS = {
    "labeled": "labeled only",
    "labeled-x3": "labeled only, as many pictures in all",
    "naive": "naive self-training",
    "cutmix": "+ strong view and CutMix",
    "alignment": "+ feature alignment",
    "naive-nano": "naive self-training, labels of `nano`",
    "cutmix-nano": "+ strong view and CutMix, labels of `nano`",
    "alignment-nano": "+ feature alignment, labels of `nano`",
    "teacher": "teacher",
    "scratch": "teacher without nano's encoder",
    "nano": "`nano` of the package",
}


class Run:
    """Starts tasks, watches them, writes the report.

    Args:
        args: Options of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.began = self.checked = time.time()
        self.end = self.began + args.deadline
        self.work = Path(args.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.report = Path(args.report or args.work)
        self.report.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(
            data=str(args.data),
            work=str(self.work),
            device=args.device,
            batch_size=args.batch_size,
            side=args.side,
            limit=args.limit,
        )
        self.retried: set[str] = set()
        self.check: dict[str, Any] = {}

    def at(self, share: float) -> float:
        """The clock time at a fraction of the time between the check and the deadline."""
        return self.checked + share * (self.end - self.checked)

    def say(self, text: str) -> None:
        """Prints a line with the time since the start."""
        print(f"[{time.time() - self.began:5.0f} s] {text}", flush=True)

    def settings_file(self, backend: str) -> Path:
        """Writes the settings for tasks that use a backend; returns the file."""
        path = self.work / f"settings-{backend}.json"
        path.write_text(json.dumps(dataclasses.asdict(self.settings) | {"backend": backend}))
        return path

    def start(self, task: str, backend: str, stop_at: float) -> subprocess.Popen[bytes]:
        """Starts a task; its output goes to its folder."""
        folder = self.work / task
        folder.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # shared by many
        }
        command = [sys.executable, str(SCRIPT), self.settings_file(backend), task, str(stop_at)]
        with open(folder / "log.txt", "ab") as log:
            return subprocess.Popen(
                [str(part) for part in command], stdout=log, stderr=log, env=environment
            )

    def is_done(self, task: str) -> bool:
        """Whether a task has written its result."""
        return (self.work / task / "result.json").exists()

    def check_backends(self) -> None:
        """Tests the fast ops on this device; if they fail, the reference is used."""
        path = self.work / "check.json"
        if path.exists():
            self.check = json.loads(path.read_text())
        else:
            self.check = self.checked_backends()
            path.write_text(json.dumps(self.check))
        self.say(f"fast ops: {json.dumps(self.check)}")
        self.checked = time.time()

    def checked_backends(self) -> dict[str, Any]:
        """The result of the task `check`, or the reason for its absence."""
        process = self.start("check", "auto", 0)
        try:
            code: int | str = process.wait(timeout=CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = "too slow"
        lines = (self.work / "check/log.txt").read_text(errors="replace").splitlines()
        found = [json.loads(line) for line in lines if line.startswith('{"ok"')]
        return (
            {"exit": code, **found[-1]}
            if found
            else {"exit": code, "ok": False, "log": lines[-15:]}
        )

    def stage(self, name: str, tasks: list[str], train_until: float, steps: int = 0) -> None:
        """Runs tasks, `--jobs` at a time, until all have ended or the deadline has passed.

        Args:
            name: Name of the stage, for the file with its steps.
            tasks: Names of the tasks; finished ones are skipped.
            train_until: Clock time by which training should be over.
            steps: Steps of each task; 0 lets the tasks measure their speed.
        """
        waiting = deque(task for task in tasks if not self.is_done(task))
        word = self.work / f"{name}.steps.json"
        if steps and not word.exists():
            word.write_text(json.dumps({"steps": steps}))
        waves = math.ceil(len(waiting) / self.args.jobs)
        agree_by = time.time() + 0.5 * max(20.0, train_until - time.time())
        auto = "auto" if self.check.get("ok", True) else "reference"
        settled = math.inf
        running: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
        self.say(f"{name}: {len(waiting)} of {len(tasks)} to do")
        while waiting or running:
            while waiting and len(running) < self.args.jobs and time.time() < self.end:
                task = waiting.popleft()
                backend = "reference" if task in self.retried else auto
                # A run that exceeds its planned time may use part of the reserve.
                stop_at = train_until + 0.3 * max(0.0, self.end - train_until)
                running[task] = self.start(task, backend, stop_at), backend
            if time.time() > self.end:
                for process, _ in running.values():
                    process.kill()
                self.say(f"deadline: {', '.join([*running, *waiting])} not finished")
                return
            for task, (process, backend) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[task]
                if self.is_done(task):
                    self.say(f"{task} done, {len(running) + len(waiting)} to go")
                    self.write_report()
                    continue
                self.say(f"{task} FAILED ({process.returncode}): {self.last_line(task)}")
                if backend != "reference" and task not in self.retried:
                    self.retried.add(task)
                    waiting.appendleft(task)
            if not word.exists():
                files = [self.work / t / "speed.json" for t in running if t != "nano"]
                known = [f for f in files if f.exists()]
                if len(known) < len(files) or not known:
                    settled = time.time() + SETTLE_SECONDS
                if known and time.time() > min(settled, agree_by):
                    self.agree(word, known, waves, train_until)
            time.sleep(0.1)

    def agree(self, word: Path, speeds: list[Path], waves: int, train_until: float) -> None:
        """Sets the steps of a stage: as many as its slowest task can take in the remaining time."""
        slowest = max(json.loads(path.read_text())["seconds_per_step"] for path in speeds)
        left = MARGIN * max(1.0, train_until - time.time()) / waves
        steps = max(1, min(MOST_STEPS, int(left / slowest)))
        temporary = word.with_suffix(".part")
        temporary.write_text(json.dumps({"steps": steps, "seconds_per_step": slowest}))
        os.replace(temporary, word)
        self.say(f"{word.name}: {steps} steps, {slowest:.3f} s each at the slowest")

    def last_line(self, task: str) -> str:
        """The last line of a task's output."""
        lines = (self.work / task / "log.txt").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"

    # -------------------------------------------------------------------------------- the report

    def results(self) -> dict[str, Any]:
        """The results of the tasks, and the scores so far of unfinished ones."""
        found = {}
        for name in ("partial.json", "result.json"):
            for path in sorted(self.work.glob(f"*/{name}")):
                found[path.parent.name] = json.loads(path.read_text())
        return dict(sorted(found.items()))

    def write_report(self) -> None:
        """Writes `results.json` and `results.md` from the results so far."""
        results = self.results()
        words = {p.name: json.loads(p.read_text()) for p in self.work.glob("*.steps.json")}
        value = {
            "settings": dataclasses.asdict(self.settings),
            "command": sys.argv,
            "seconds": time.time() - self.began,
            "environment": environment(self.args.device),
            "check": self.check,
            "reference_backend": sorted(self.retried),
            "steps": words,
            "results": results,
        }
        text = json.dumps(value, indent=1) + "\n"
        for name, content in (("results.json", text), ("results.md", tables(results))):
            temporary = self.report / f".{name}"
            temporary.write_text(content)
            os.replace(temporary, self.report / name)

    def deliver(self) -> None:
        """Copies the best student and the logs next to the report."""
        logs = []
        for path in sorted(self.work.glob("*/log.txt")):
            logs.append(f"== {path.parent.name}\n{path.read_text(errors='replace')[-3000:]}\n")
            curve = path.with_name("metrics.jsonl")
            if curve.exists():
                logs.append(curve.read_text()[-6000:])
        (self.report / "log.txt").write_text("".join(logs))
        scores = {
            task: mean_of(result, HELD_OUT, "delta_1")
            for task, result in self.results().items()
            if task.rpartition("-")[0] in ROWS
        }
        known = {task: value for task, value in scores.items() if value is not None}
        if known:
            best = max(known, key=known.__getitem__)
            self.say(f"best student on the held-out scenes: {best}")
            shutil.copytree(self.work / best / "export", self.report / "best", dirs_exist_ok=True)
            (self.report / "best/task.txt").write_text(best + "\n")


def environment(device: str) -> dict[str, str]:
    """Versions and the device, for the report."""
    import torch

    names = {"python": platform.python_version(), "torch": torch.__version__}
    if device != "cpu" and torch.cuda.is_available():
        names["device"] = torch.cuda.get_device_name()
    else:
        names["device"] = platform.processor() or platform.machine()
    return names


def mean_of(result: dict[str, Any], sets: tuple[str, ...], metric: str) -> float | None:
    """Mean of a metric over data sets; None if one is missing."""
    scores = result.get("scores", {})
    values = [scores[name]["model"][metric] for name in sets if name in scores]
    return statistics.fmean(values) if len(values) == len(sets) else None


def of_kind(results: dict[str, Any], kind: str) -> dict[str, Any]:
    """Results of a row by seed, without runs that the clock cut short."""
    return {
        task.rpartition("-")[2]: result
        for task, result in results.items()
        if (task == kind or task.rpartition("-")[0] == kind) and result.get("complete", True)
    }


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.4f} ± {statistics.stdev(values):.4f}" if len(values) > 1 else f"{mean:.4f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def tables(results: dict[str, Any]) -> str:
    """The report in Markdown: rows, differences from the first row, every run."""
    parts = []
    for metric, better in (("abs_rel", "lower"), ("delta_1", "higher")):
        rows = []
        for kind, label in LABELS.items():
            found = of_kind(results, kind)
            if not found:
                continue
            cells = [
                spread([v for r in found.values() if (v := mean_of(r, s, metric)) is not None])
                for s in COLUMNS.values()
            ]
            rows.append([label, str(len(found)), *cells])
        for baseline in ("plane", "constant"):
            scores = results.get("nano", {}).get("scores", {})
            if scores:
                cells = [
                    spread([scores[n][baseline][metric] for n in sets if n in scores])
                    for sets in COLUMNS.values()
                ]
                rows.append([f"best {baseline}", "", *cells])
        parts.append(f"{metric} ({better} is better): mean ± standard deviation over seeds\n\n")
        parts.append(table(["", "seeds", *COLUMNS], rows) + "\n")
    first = of_kind(results, "labeled")
    rows = []
    for kind in [k for k in ROWS if k != "labeled"]:
        found = of_kind(results, kind)
        cells = []
        for sets in COLUMNS.values():
            pairs = [
                (mean_of(found[seed], sets, "abs_rel"), mean_of(first[seed], sets, "abs_rel"))
                for seed in found
                if seed in first
            ]
            cells.append(spread([a - b for a, b in pairs if a is not None and b is not None]))
        if found:
            rows.append([LABELS[kind], *cells])
    if rows:
        parts.append("abs_rel less that of `labeled only` with the same seed\n\n")
        parts.append(table(["", *COLUMNS], rows) + "\n")
    rows = []
    for task, result in results.items():
        if "scores" in result:
            values = [mean_of(result, sets, "abs_rel") for sets in COLUMNS.values()]
            cells = ["-" if v is None else f"{v:.4f}" for v in values]
            cut = "" if result.get("complete", True) else " (cut short)"
            rows.append([task, f"{result.get('steps', '-')}{cut}", *cells])
    parts.append("abs_rel, every run\n\n" + table(["", "steps", *COLUMNS], rows))
    return "".join(parts)


def main() -> None:
    """Command line; runs the stages one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("ablation-data"))
    parser.add_argument("--work", type=Path, default=Path("runs/ablation-in-miniature"))
    parser.add_argument("--report", type=Path, help="folder of the report (default: --work)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--jobs", type=int, default=15, help="processes at a time")
    parser.add_argument("--deadline", type=float, default=470.0, metavar="SECONDS")
    parser.add_argument(
        "--steps", type=int, default=0, help="steps of a student (0: as many as time allows)"
    )
    parser.add_argument(
        "--teacher-steps",
        type=int,
        default=0,
        help="steps of a teacher (0: as many as time allows)",
    )
    parser.add_argument("--batch-size", type=int, default=24, help="labeled pictures in a step")
    parser.add_argument("--side", type=int, default=168, help="side of the training crops, pixels")
    parser.add_argument("--limit", type=int, default=0, help="samples of each set (0: all)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    run = Run(args)
    seeds = range(1, args.seeds + 1)
    run.check_backends()
    teachers = [f"{kind}-{seed}" for seed in seeds for kind in ("teacher", "scratch")]
    run.stage("teachers", ["nano", *teachers], run.at(TEACHERS_END), args.teacher_steps)
    ready = [seed for seed in seeds if run.is_done(f"teacher-{seed}")]
    students = [f"{row}-{seed}" for seed in ready for row in args.rows]
    run.stage("students", students, run.at(STUDENTS_END), args.steps)
    run.write_report()
    print((run.report / "results.md").read_text(), flush=True)
    run.deliver()
    missing = [t for t in [*teachers, *students] if not run.is_done(t)]
    run.say("everything is done" if not missing else f"not done: {', '.join(missing)}")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
