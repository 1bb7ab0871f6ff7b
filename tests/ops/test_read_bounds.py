"""Compiled kernels read nothing behind their inputs, and write nothing behind their memory."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.packed_cases import attention_int8, conv3x3, encoder_rows, linear_packed
from bench.registry import SMALL_CASES
from dafast.ops import BackendError, _extension, available_backends, use_backend
from tests.forks import Fork

CASES = (
    *SMALL_CASES, *(attention_int8(1, tokens, 2) for tokens in (1, 16, 37)),
    linear_packed(100, 3000, 16), encoder_rows(1, 100, 64), conv3x3(40, 16),
)  # fmt: skip
"""The last ones are large enough to fill the memory of a thread."""

ROOT = Path(__file__).resolve().parents[2]


def at_the_end_of_memory(x: Any) -> Any:
    """A copy of a tensor; to read one byte behind it ends the process."""
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided or not x.numel():
        return x
    page, bytes_ = mmap.PAGESIZE, x.numel() * x.element_size()
    size = -(-bytes_ // page) * page
    memory = mmap.mmap(-1, size + page)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), page, 0) == 0
    copy = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=size - bytes_)
    return copy.view(x.shape).copy_(x)


def call_all(seed: int, prepare: Any) -> None:
    """Calls the C++ kernels of all cases, with prepared arguments."""
    faulthandler.disable()  # of pytest, which would print the stack of all threads
    backends = available_backends()
    for number, case in enumerate(CASES):
        if "cpp" not in backends.get(case.op, ()):
            continue
        for dtype in (torch.float32, torch.bfloat16):
            if dtype in case.dtypes:
                print(f"case {number}, {case.op}, {dtype}", flush=True)
                arguments = map(prepare, case.make(seed, dtype, torch.device("cpu")))
                with torch.no_grad(), use_backend("cpp"), contextlib.suppress(BackendError):
                    case.call(*arguments)  # if this processor has the instructions


@pytest.fixture(autouse=True)
def _extension_is_there() -> None:
    if why := _extension.why_missing():
        pytest.skip(why)


def test_no_kernel_reads_behind_its_inputs(seed: int) -> None:
    process = Fork(lambda: call_all(seed, at_the_end_of_memory), {})
    assert process.wait(120) == 0, [*process.stdout.splitlines()[-1:], process.stderr]
    assert len(process.stdout.splitlines()) > 20


@pytest.mark.slow  # a new Python: glibc takes its allocator at the start
def test_no_kernel_writes_behind_its_memory(seed: int) -> None:
    """glibc looks at the byte behind each block of memory when it is freed."""
    library = "libc_malloc_debug.so.0"
    try:
        ctypes.CDLL(library)
    except OSError:
        pytest.skip(f"needs {library} of glibc")
    code = f"from tests.ops.test_read_bounds import call_all; call_all({seed}, lambda x: x)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": library}
    environment["GLIBC_TUNABLES"] = "glibc.malloc.check=3"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, [*done.stdout.splitlines()[-1:], done.stderr[-2000:]]
    assert len(done.stdout.splitlines()) > 20


def test_the_page_behind_them_cannot_be_read(seed: int) -> None:
    x = torch.arange(5.0)

    def run() -> None:
        faulthandler.disable()
        guarded = at_the_end_of_memory(x)
        assert torch.equal(guarded, x)
        ctypes.string_at(guarded.data_ptr() + guarded.nbytes, 1)

    assert Fork(run, {}).wait(60) not in (0, 1)  # a signal
