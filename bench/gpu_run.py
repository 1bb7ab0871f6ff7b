"""Measures everything on a GPU in one command: `python bench/gpu_run.py --out DIRECTORY`.

Each section is a process of its own with a time limit. Its records are in DIRECTORY/gpu-run.json
after every measurement, so a section that crashes or hangs costs only what it had not measured. The
most valuable sections come first. The C++ extension is built for this GPU's architecture only,
while the sections run that do not use it. `--second` runs the tests that need a GPU and
compute-sanitizer instead. Copy the file to bench/results/gpu-run-NAME.json (the second one to
another NAME) and run `python bench/gpu_report.py --write`.

`--stub` runs everything on the CPU with small sizes: it shows that the command works, and its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.gpu import records

ROOT = Path(__file__).resolve().parent.parent
LEAST = 10.0  # seconds without which a section is not started


@dataclass(frozen=True)
class Section:
    """A part of the run.

    Attributes:
        name: Name of its function in the module.
        module: In `bench.gpu`.
        limit: Most seconds.
        extension: Whether it waits for the build of the extension.
    """

    name: str
    module: str
    limit: float
    extension: bool = True


FIRST = (
    Section("machine", "operations", 40, extension=False),
    Section("model_vits", "networks", 100),
    Section("model_vitl", "networks", 140),
    Section("infer", "networks", 45),
    Section("attention", "operations", 50),
    Section("loss", "operations", 45),
    Section("products", "operations", 35, extension=False),
    Section("train", "networks", 90),
)
SECOND = (Section("tests", "checks", 100), Section("sanitize", "checks", 100))
BUILD_LIMIT = 150.0


def kill(process: subprocess.Popen[Any]) -> None:
    """Ends a process and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Build:
    """Builds the extension for the architecture of this GPU, next to the first sections.

    Args:
        command: The build; None if there is nothing to build.
        log: File of its output.
    """

    def __init__(self, command: Sequence[str] | None, log: Path) -> None:
        self._start = time.monotonic()
        self.status = "" if command else "not built"
        self._process = None
        if command:
            with log.open("w") as output:
                self._process = subprocess.Popen(
                    command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
                    env={**one_architecture(), **os.environ, "MAX_JOBS": str(os.cpu_count() or 1)},
                )  # fmt: skip

    def running(self) -> bool:
        """Whether the build still runs; one that is over its limit is ended."""
        if self._process is None or self.status:
            return False
        seconds = time.monotonic() - self._start
        if self._process.poll() is None and seconds < BUILD_LIMIT:
            return True
        code = self._process.poll()
        self.status = "over its limit" if code is None else f"exit status {code}, {seconds:.0f} s"
        self.end()
        return False

    def end(self) -> None:
        """Ends the build."""
        if self._process is not None:
            kill(self._process)


def one_architecture() -> dict[str, str]:
    """The variable that builds the CUDA kernels only for the first GPU; none if it is unknown."""
    try:
        printed = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"DAFAST_CUDA_ARCHITECTURES": printed.splitlines()[0].strip().replace(".", "")}


class Interrupt:
    """Whether the run was interrupted. A flag: an exception could miss a process that starts."""

    def __init__(self) -> None:
        self.received = False

    def listen(self) -> None:
        """Notes Ctrl-C and SIGTERM from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.received = True


def run_section(command: Sequence[str], limit: float, log: Path, interrupt: Interrupt) -> str:
    """Runs a section and returns how it ended; its errors go to the log."""
    end = time.monotonic() + limit
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stderr=errors, start_new_session=True)
    try:
        while (code := process.poll()) is None:
            if interrupt.received:
                return "interrupted"
            if time.monotonic() > end:
                return f"ended at its limit of {limit:.0f} s"
            time.sleep(0.05)
        return "done" if code == 0 else f"failed with exit status {code}, see {log.name}"
    finally:
        kill(process)


def run_all(
    sections: Sequence[Section], command_of: Callable[[Section], Sequence[str]], out: Path,
    budget: float, build: Build, interrupt: Interrupt,
) -> None:  # fmt: skip
    """Runs sections within a budget of seconds, and adds to the file how each ended."""
    path, start = out / "gpu-run.json", time.monotonic()
    waiting = list(sections)

    def note(section: Section, status: str, seconds: float) -> None:
        report = records.read(path)
        report["sections"] = [s for s in report["sections"] if s["section"] != section.name]
        report["sections"].append(
            {"section": section.name, "status": status, "seconds": round(seconds, 1)}
        )
        report["build"] = build.status or "running"
        records.write(path, report)
        print(f"[{time.monotonic() - start:4.0f} s] {section.name}: {status}", flush=True)

    while waiting and not interrupt.received:
        left = budget - (time.monotonic() - start)
        ready = [s for s in waiting if not (s.extension and build.running())]
        if left < LEAST:
            note(waiting.pop(0), "not started: no time left", 0.0)
            continue
        if not ready:
            time.sleep(0.2)
            continue
        section = ready[0]
        waiting.remove(section)
        limit, began = min(section.limit, left), time.monotonic()
        print(f"[{began - start:4.0f} s] {section.name}: at most {limit:.0f} s", flush=True)
        log = out / f"{section.name}.log"
        status = run_section(command_of(section), limit, log, interrupt)
        note(section, status, time.monotonic() - began)


def _run_here(section: Section, path: Path, stub: bool) -> None:
    """Runs a section in this process."""
    import importlib

    from bench.gpu.meter import Meter

    function = getattr(importlib.import_module(f"bench.gpu.{section.module}"), section.name)
    function(Meter(stub), records.Records(path, section.name))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, also if sections failed, or 130 if interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument(
        "--budget", type=float, help="seconds in all; 510 by default, 200 with --second"
    )
    parser.add_argument("--second", action="store_true", help="run the tests and the sanitizer")
    parser.add_argument("--stub", action="store_true", help="run on the CPU with small sizes")
    parser.add_argument("--no-build", action="store_true", help="use the extension as it is")
    names = {section.name: section for section in (*FIRST, *SECOND)}
    parser.add_argument("--only", action="append", choices=names, help="run only this section")
    parser.add_argument("--here", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    path = options.out / "gpu-run.json"
    if options.here:
        _run_here(names[options.here], path, options.stub)
        return 0

    def command_of(section: Section) -> list[str]:
        command = [sys.executable, __file__, "--out", str(options.out), "--here", section.name]
        return [*command, "--stub"] if options.stub else command

    interrupt = Interrupt()
    interrupt.listen()
    options.out.mkdir(parents=True, exist_ok=True)
    report = records.read(path)
    report["stub"] = options.stub
    records.write(path, report)
    sections = SECOND if options.second else FIRST
    if options.only:
        sections = tuple(names[name] for name in options.only)
    setup = [sys.executable, "setup.py", "build_ext", "--inplace"]
    build = Build(None if options.stub or options.no_build else setup, options.out / "build.log")
    try:
        budget = options.budget or (200.0 if options.second else 510.0)
        run_all(sections, command_of, options.out, budget, build, interrupt)
    finally:
        build.end()
    if interrupt.received:
        print(f"interrupted; {path} has the records until now", flush=True)
        return 130
    print(f"records: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
