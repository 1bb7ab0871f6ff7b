"""`pytest --seed=N` repeats every random input, for any selection of tests and any processes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CASES = """
import random
import numpy as np
import pytest
import torch

def draw():
    return torch.rand(1).item(), np.random.rand(), random.random()

@pytest.fixture(scope="module")
def shared():
    return draw()

def test_first(shared):
    print("\\nFIRST", draw())

def test_second(shared, rng):
    print("\\nSECOND", shared, draw(), rng.random())

def test_fails(seed):
    assert seed is None
"""


def drawn(pytester: pytest.Pytester, *seeds: int) -> list[str]:
    """What the second test draws with each seed, in one process."""
    calls = [f"pytest.main(['-s', '-k', 'second', '--seed={seed}'])" for seed in seeds]
    result = pytester.runpython_c("import pytest; " + "; ".join(calls))
    return re.findall("SECOND.*", result.stdout.str())


@pytest.mark.slow
def test_seed_repeats_a_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(root), os.environ.get("PYTHONPATH", ""))))
    conftest = (root / "tests" / "conftest.py").read_text(encoding="utf-8")
    pytester.makepyfile(**{"tests/conftest": conftest, "tests/test_cases": CASES})
    whole = pytester.runpytest_subprocess("-rP", "-p", "xdist", "-n", "1")
    (seed,) = set(re.findall(r"repeat with --seed=(\d+)", whole.stdout.str()))
    (line,) = re.findall("SECOND.*", whole.stdout.str())
    same, other = drawn(pytester, int(seed), int(seed) + 1)
    assert same == line != other
