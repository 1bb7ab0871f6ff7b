"""NVTX ranges: nothing there when off, around the parts of the model when on."""

import json
import os
import subprocess
import sys
import types
from contextlib import contextmanager

import pytest
import torch

from dafast import profiling


def test_off_gives_the_function_itself():
    def function():
        return 1

    assert profiling.annotate("name")(function) is function or profiling.ENABLED


def test_on_puts_a_range_around_each_call(monkeypatch):
    seen = []

    @contextmanager
    def annotate(name, domain):
        seen.append((domain, name))
        yield
        seen.append("end")

    nvtx = types.ModuleType("nvtx")
    nvtx.annotate = annotate
    monkeypatch.setitem(sys.modules, "nvtx", nvtx)
    monkeypatch.setattr(profiling, "ENABLED", True)
    double = profiling.annotate("name")(lambda x: seen.append("call") or 2 * x)
    assert double(3) == 6
    assert seen == [("dafast", "name"), "call", "end"]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert double(4) == 8
    assert seen[3:] == ["call"]  # no range within a graph


CODE = """
import json, sys
import nvtx
seen = []

class annotate:
    def __init__(self, message, domain):
        seen.append((domain, message))
    def __enter__(self):
        pass
    def __exit__(self, *exc):
        pass

nvtx.annotate = annotate
import torch, dafast
from dafast.losses import AffineInvariantLoss
model = dafast.DepthAnything("nano")
out = model(torch.zeros(1, 3, 28, 28))
AffineInvariantLoss()(out, out)
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_on_marks_blocks_head_and_losses():
    env = {**os.environ, "DAFAST_NVTX": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert {domain for domain, _ in seen} == {"dafast"}
    names = [name for _, name in seen]
    assert names == ["block"] * 6 + ["head", "affine_invariant_loss"]


def test_on_without_the_package_says_so():
    env = {**os.environ, "DAFAST_NVTX": "1"}
    code = "import sys; sys.modules['nvtx'] = None; import dafast.profiling"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "pip install 'dafast[profile]'" in done.stderr
