"""The run that measures everything on a GPU: its sections on the CPU, limits, interruptions."""

from __future__ import annotations

import ast
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_report, gpu_run
from bench.gpu import checks, records
from bench.gpu.meter import Meter, attempt
from bench.gpu_run import FIRST, SECOND, Build, Interrupt, Section

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu_run.py"


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "gpu-run.json").read_text())


def statuses(out: Path) -> dict[str, str]:
    return {s["section"]: s["status"] for s in read(out)["sections"]}


@pytest.fixture
def tf32():
    """Restores a setting that the sections change."""
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.slow
def test_runs_to_its_end_on_the_cpu(tmp_path: Path, monkeypatch, tf32) -> None:
    """All sections with small sizes, in this process, and the tables of their records."""
    pytest.importorskip("transformers")

    def here(command: list[str], limit: float, log: Path, interrupt: Interrupt) -> str:
        assert gpu_run.main(command[2:]) == 0
        return "done"

    monkeypatch.setattr(gpu_run, "run_section", here)
    monkeypatch.setattr(Interrupt, "listen", lambda self: None)  # pytest has handlers of its own
    assert gpu_run.main(["--out", str(tmp_path), "--stub", "--budget", "600"]) == 0
    report = read(tmp_path)
    assert statuses(tmp_path) == {section.name: "done" for section in FIRST}
    assert report["stub"] and report["machine"]["torch"] == torch.__version__
    by_section: dict[str, list[dict[str, Any]]] = {}
    for record in report["records"]:
        by_section.setdefault(record["section"], []).append(record)
        assert record.get("why", "Error").partition(":")[0].endswith("Error"), record
    assert set(by_section) == {section.name for section in FIRST}
    for name in ("model_vits", "model_vitl"):
        measured = {(r["who"], r["batch"]) for r in by_section[name] if "ms" in r}
        for batch in (1, 2):
            for who in ("dafast", "dafast, modules", "transformers, sdpa, torch.compile, graph",
                        "transformers, eager, graph", "transformers, sdpa, graph"):  # fmt: skip
                assert (who, batch) in measured
    assert all("ms" in r for r in by_section["infer"] + by_section["train"])
    tables = gpu_report.blocks(tmp_path, stub=True)
    assert tables["run"].count("\n#### ") == 7  # without clusters and checks
    with pytest.raises(ValueError, match="mean nothing"):
        gpu_report.blocks(tmp_path)


@pytest.mark.exhaustive
def test_both_commands_in_processes(tmp_path: Path) -> None:
    for more, sections in ([], FIRST), (["--second"], SECOND):
        command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--stub",
                   "--budget", "500", *more]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=550)
        assert done.returncode == 0, done.stderr
        for section in sections:
            assert f"{section.name}: done" in done.stdout
    names = {record["section"] for record in read(tmp_path)["records"]}
    assert names == {section.name for section in (*FIRST, *SECOND)}, "the second adds to the first"
    collected = next(r for r in read(tmp_path)["records"] if r["section"] == "tests")
    assert collected["rc"] == 0, collected


FAKE = """
import os, subprocess, sys, time
from pathlib import Path
from bench.gpu.records import Records
found = Records(Path(sys.argv[1]), sys.argv[2])
found.add({"value": 1})
if sys.argv[2] == "crashes":
    os.abort()
if sys.argv[2] == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    found.add({"value": 2, "child": child.pid})
    time.sleep(600)
found.add({"value": 3})
"""


def fake(out: Path, section: Section) -> list[str]:
    return [sys.executable, "-c", FAKE, str(out / "gpu-run.json"), section.name]


def gone(pid: int) -> bool:
    """Whether a process has ended, or waits to be reaped, within a minute."""
    for _ in range(3000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_section_that_crashes_or_hangs_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    class Clock:
        """Jumps by an hour as soon as the section hangs, so that no speed is assumed."""

        sleep = staticmethod(time.sleep)

        @staticmethod
        def monotonic() -> float:
            file = tmp_path / "gpu-run.json"
            return time.monotonic() + 3600 * (file.exists() and "child" in file.read_text())

    monkeypatch.setattr(gpu_run, "time", Clock)
    sections = [Section(name, "", 300) for name in ("crashes", "hangs", "works")]
    command = functools.partial(fake, tmp_path)
    build = Build(None, tmp_path / "build.log")
    gpu_run.run_all(sections, command, tmp_path, 9000, build, Interrupt())
    found = statuses(tmp_path)
    assert found["crashes"].startswith("failed with exit status -6")
    assert found["hangs"] == "ended at its limit of 300 s" and found["works"] == "done"
    values = [(r["section"], r["value"]) for r in read(tmp_path)["records"]]
    assert values == [("crashes", 1), ("hangs", 1), ("hangs", 2), ("works", 1), ("works", 3)]
    assert gone(next(r["child"] for r in read(tmp_path)["records"] if "child" in r))
    gpu_run.run_all(sections[2:], command, tmp_path, 0.1, build, Interrupt())
    assert statuses(tmp_path)["works"] == "not started: no time left"
    assert len(read(tmp_path)["records"]) == len(values)


def test_sections_without_the_extension_run_while_it_is_built(tmp_path: Path, monkeypatch) -> None:
    order: list[str] = []

    def run_section(command: list[str], limit: float, log: Path, interrupt: Interrupt) -> str:
        order.append(log.stem + (" (built)" if build.status else ""))
        (tmp_path / log.stem).touch()
        return "done"

    monkeypatch.setattr(gpu_run, "run_section", run_section)
    sections = [Section("first", "", 9), Section("early", "", 9, extension=False)]
    code = (
        f"import os, time\nwhile not os.path.exists({str(tmp_path / 'early')!r}): time.sleep(0.02)"
    )
    build = Build([sys.executable, "-c", code], tmp_path / "build.log")
    gpu_run.run_all(sections, lambda s: [], tmp_path, 100, build, Interrupt())
    assert order == ["early", "first (built)"]
    assert read(tmp_path)["build"].startswith("exit status 0")
    monkeypatch.setattr(gpu_run, "BUILD_LIMIT", 0.2)
    build = Build([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "build.log")
    gpu_run.run_all(sections, lambda s: [], tmp_path, 100, build, Interrupt())
    assert read(tmp_path)["build"] == "over its limit" and not build.running()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_file(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-u", str(SCRIPT), "--out", str(tmp_path), "--stub",
               "--only", "machine"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "machine: at most" in process.stdout.readline()
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(60) == 130
    assert "interrupted" in rest and statuses(tmp_path) == {"machine": "interrupted"}


def test_records_are_complete_after_each(tmp_path: Path, capsys) -> None:
    path = tmp_path / "gpu-run.json"
    found = records.Records(path, "loss")
    found.add({"a": 1.23456789})
    attempt(found, {"b": 1}, lambda: {"ms": 2.0})
    attempt(found, {"c": 1}, lambda: {}["missing"])
    assert "a 1.235" in capsys.readouterr().out
    values = [{k: v for k, v in r.items() if k != "section"} for r in read(tmp_path)["records"]]
    assert values == [{"a": 1.23456789}, {"b": 1, "ms": 2.0},
                      {"c": 1, "why": "KeyError: 'missing'"}]  # fmt: skip
    records.Records(path, "other").add({"d": 1})
    records.Records(path, "loss")  # a repeated section replaces its records
    assert [r["section"] for r in read(tmp_path)["records"]] == ["other"]
    assert os.listdir(tmp_path) == ["gpu-run.json"]


def test_a_check_that_takes_too_long_is_a_record(tmp_path: Path) -> None:
    found = records.Records(tmp_path / "gpu-run.json", "tests")
    code = "import sys, time; print('begun', flush=True); time.sleep(float(sys.argv[1]))"
    checks._run(found, "quick", [sys.executable, "-c", code, "0"], {}, 300)
    for limit in (1, 10, 100):  # how long Python takes to start depends on the machine
        checks._run(found, "slow", [sys.executable, "-c", code, "600"], {}, limit)
        quick, *_, slow = read(tmp_path)["records"]
        assert "rc" not in slow and slow["why"] == f"not done after {limit} s"
        if "begun" in slow["output"]:
            break
    assert "begun" in slow["output"]
    assert quick["rc"] == 0 and quick["output"] == "begun\n"


def test_listed_tests_exist() -> None:
    for name in checks.TESTS:
        assert "gpu" in (ROOT / name).read_text(), name
    assert sum(s.limit for s in SECOND) <= 200 and sum(s.limit for s in FIRST) < 560


@pytest.mark.slow
def test_meter_on_the_cpu() -> None:
    meter = Meter(stub=True)
    found = meter.time(lambda: time.sleep(0.002))
    assert found["ms"] == found["wall_ms"] >= 2
    x = torch.ones(64, 64)
    assert sum(meter.kernels(lambda: x @ x).values()) > 0
    assert meter.size(518, 28) == 28 and Meter.size(Meter(), 518, 28) == 518


def test_architectures_of_the_build(monkeypatch) -> None:
    """`DAFAST_CUDA_ARCHITECTURES` chooses what setup.py builds for."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    wanted = [
        node for node in tree.body
        if (isinstance(node, ast.FunctionDef) and node.name == "cuda_architectures")
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CUDA_ARCHITECTURES")
    ]  # fmt: skip
    scope: dict[str, Any] = {"os": os, "sys": sys}
    exec(compile(ast.Module(wanted, []), "setup.py", "exec"), scope)
    for text, expected in {
        "": list(scope["CUDA_ARCHITECTURES"]), "90": ["90"], "10.0;9.0": ["90", "100"],
        "90, 80 90": ["80", "90"],
    }.items():  # fmt: skip
        monkeypatch.setenv("DAFAST_CUDA_ARCHITECTURES", text)
        assert scope["cuda_architectures"]() == expected
    for text in ("sm_90", "7.5", "90 hopper"):
        monkeypatch.setenv("DAFAST_CUDA_ARCHITECTURES", text)
        with pytest.raises(SystemExit, match="DAFAST_CUDA_ARCHITECTURES"):
            scope["cuda_architectures"]()


@pytest.mark.gpu
def test_meter_on_a_gpu() -> None:
    meter = Meter()
    x = torch.randn(256, 256, device="cuda")
    w = torch.randn(256, 256, device="cuda", requires_grad=True)

    def run() -> torch.Tensor:
        return torch.autograd.grad((x @ w).square().sum(), w)[0]

    expected = run()
    replay = meter.capture(run)
    torch.testing.assert_close(replay(), expected)
    found = meter.time(replay, 20)
    assert 0 < found["ms_low"] <= found["ms"] <= found["ms_high"] and found["wall_ms"] > 0
    assert sum(meter.kernels(run).values()) > 0
    assert meter.peak_bytes(lambda: torch.empty(2**24, device="cuda")) >= 2**26


@pytest.mark.gpu
def test_a_capture_that_fails_leaves_the_device_usable(tmp_path: Path) -> None:
    meter, x = Meter(), torch.ones(64, device="cuda")
    found = records.Records(tmp_path / "gpu-run.json", "loss")
    attempt(found, {}, lambda: meter.time(meter.capture(lambda: x.sum().item())))
    assert "Error" in read(tmp_path)["records"][0]["why"]
    assert meter.capture(lambda: x.sum())().item() == 64
