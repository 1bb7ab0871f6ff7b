"""A command starts and ends quickly: the garbage collector, and the libraries of PyTorch."""

from __future__ import annotations

import gc
import importlib.machinery
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dafast.cli import main
from dafast.cli._startup import no_collections, preload_torch

ROOT = Path(__file__).resolve().parents[2]


def python(script: str) -> str:
    """Runs a script in a new process; returns what it prints."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_collections_leaves_the_collector_as_it_was():
    script = """
import gc
from dafast.cli import main
from dafast.cli._startup import no_collections

def is_young(wanted):
    return any(found is wanted for found in gc.get_objects(generation=0))

for switch in (gc.enable, gc.disable):
    switch()
    before = gc.isenabled()
    with no_collections():
        made = [[] for _ in range(5000)]  # more than the limit of the youngest generation
        assert not gc.isenabled() and is_young(made)
    assert gc.isenabled() == before
    assert gc.get_freeze_count() == 0
    assert gc.is_tracked(made) and not is_young(made)
"""
    python(script)


def test_no_collections_restores_the_collector_after_an_error():
    before = gc.isenabled()
    with pytest.raises(ImportError), no_collections():
        raise ImportError
    assert gc.isenabled() == before


def test_no_collections_leaves_frozen_objects_frozen():
    """A server that forks freezes its objects, and may call a command."""
    script = """
import gc
from dafast.cli import main
from dafast.cli._startup import no_collections
kept = [[]]
gc.freeze()
with no_collections():
    pass
assert gc.get_freeze_count() > 1000
"""
    python(script)


def test_the_end_of_a_process_searches_no_cycles():
    script = """
import atexit, gc, os
gc.disable()
from dafast.cli import main
from dafast.cli._startup import end_quickly
{}
class Cycle:
    def __del__(self):
        os.write(1, b"searched ")
cycle = Cycle()
cycle.itself = cycle
del cycle
atexit.register(os.write, 1, b"registered ")
print("printed", end=" ")
"""
    usual = ["printed", "registered", "searched"]
    assert sorted(python(script.format("")).split()) == usual
    assert sorted(python(script.format("end_quickly()")).split()) == usual[:2]
    with_triton = 'import sys; sys.modules["triton"] = sys; end_quickly()'
    assert sorted(python(script.format(with_triton)).split()) == usual


def test_only_a_process_of_its_own_ends_quickly(tmp_path, monkeypatch, capsys):
    """A program that calls `main` may rely on the end of its files."""
    called = []
    monkeypatch.setattr("dafast.cli.run.end_quickly", lambda: called.append(True))
    words = ["run", str(tmp_path / "missing.jpg"), "--out", str(tmp_path / "out")]
    assert main(words) == 1
    assert not called
    monkeypatch.setattr(sys, "argv", ["dafast", *words])
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert main() == 1
    finally:
        signal.signal(signal.SIGINT, handler)
    assert called


@pytest.mark.skipif(sys.platform != "linux", reason="other systems load no libraries ahead")
def test_libraries_are_loaded_ahead_of_the_import():
    script = """
import sys, threading
from dafast.cli import main
from dafast.cli._startup import preload_torch
preload_torch()
for thread in threading.enumerate():
    if thread.name == "dafast-preload":
        thread.join()
assert "torch" not in sys.modules
print("libtorch_cpu.so" in open("/proc/self/maps").read())
"""
    import torch

    folder = Path(torch.__file__).parent / "lib"
    of_cpu = not any((folder / f"libtorch_{name}.so").exists() for name in ("cuda", "hip", "xpu"))
    assert python(script) == f"{of_cpu}\n"


@pytest.mark.parametrize("extra", ["cuda", "hip", "xpu", None])
def test_builds_for_other_devices_and_incomplete_ones_load_themselves(extra, tmp_path, monkeypatch):
    names = ["global_deps"] if extra is None else ["global_deps", "cpu", extra]
    (tmp_path / "lib").mkdir()
    for name in names:
        (tmp_path / "lib" / f"libtorch_{name}.so").touch()
    spec = importlib.machinery.ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    monkeypatch.delitem(sys.modules, "torch")
    started = []
    monkeypatch.setattr(threading, "Thread", lambda **given: started.append(given))
    preload_torch()
    assert not started


@pytest.mark.skipif(sys.platform != "linux", reason="other systems load no libraries ahead")
def test_a_missing_pytorch_and_one_that_is_loaded_start_no_thread(monkeypatch):
    started = []
    monkeypatch.setattr(threading, "Thread", lambda **given: started.append(given))
    preload_torch()  # the tests have imported it
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    preload_torch()
    assert not started
