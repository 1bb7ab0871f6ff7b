"""Sections of the second command: tests on the GPU and compute-sanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.meter import Meter, cuda_tool
from bench.gpu.records import Records

ROOT = Path(__file__).resolve().parents[2]

TESTS = (
    "tests/models/test_cuda_machinery.py",
    "tests/models/test_transfer.py",
    "tests/models/test_fp8.py",
    "tests/ops/test_linear_fp8.py",
    "tests/ops/test_quantize_fp8.py",
    "tests/ops/test_affine_invariant_loss_gpu.py",
    "tests/ops/test_flash_attention.py",
    "tests/ops/test_resize_bilinear.py",
    "tests/ops/test_decoder_tail.py",
    "tests/ops/test_bias_gelu.py",
    "tests/ops/test_bias_relu_add.py",
    "tests/ops/test_conv_transpose.py",
    "tests/bench/test_gpu_run.py",
)
"""Those that changed since they last ran on a GPU, most valuable first."""

TOOLS = ("memcheck", "racecheck")


def _run(
    records: Records, what: str, command: Sequence[str], environment: Mapping[str, str], limit: int
) -> None:
    """Runs a command with a limit and adds its exit status and the end of its output."""
    record: dict[str, Any] = {"check": what}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, timeout=limit,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        record |= {"rc": done.returncode, "output": done.stdout[-2000:]}
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
        record |= {"why": f"not done after {limit} s", "output": text[-2000:]}
    records.add(record)


def tests(meter: Meter, records: Records) -> None:
    """The tests marked ``gpu`` that changed since the last run, one file after the other."""
    for name in TESTS[: meter.size(len(TESTS), 1)]:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", name]
        command += meter.size(["-n", "4"], ["--collect-only"])
        _run(records, f"pytest -m gpu {name}", command, {}, 60)


def sanitize(meter: Meter, records: Records) -> None:
    """Every Triton and CUDA kernel at small sizes under compute-sanitizer."""
    tool = cuda_tool("compute-sanitizer")
    for name in TOOLS:
        if tool is None:
            records.add(
                {
                    "check": name,
                    "why": "compute-sanitizer is neither on the PATH nor in the CUDA toolkit",
                }
            )
            continue
        command = [tool, "--tool", name, "--error-exitcode", "1", sys.executable,
                   "scripts/run_small_cases.py"]  # fmt: skip
        # PyTorch's caching allocator would hide accesses past the end of a tensor.
        _run(records, name, command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, 60)
