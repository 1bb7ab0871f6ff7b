"""Compiled kernels read nothing behind their inputs: memory ends there."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
from typing import Any

import pytest
import torch

from bench.registry import SMALL_CASES, Case, attention_int8
from dafast.ops import _extension, available_backends, use_backend
from tests.forks import Fork

CASES = (*SMALL_CASES, *(attention_int8(1, tokens, 2) for tokens in (1, 16, 37)))


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


def call(case: Case, dtype: torch.dtype, seed: int) -> None:
    arguments = list(case.make(seed, dtype, torch.device("cpu")))
    with torch.no_grad(), use_backend("cpp"):
        case.call(*map(at_the_end_of_memory, arguments))


def test_no_kernel_reads_behind_its_inputs(seed: int) -> None:
    if why := _extension.why_missing():
        pytest.skip(why)
    backends = available_backends()

    def run() -> None:
        faulthandler.disable()  # of pytest, which would print the stack of all threads
        for number, case in enumerate(CASES):
            if "cpp" not in backends.get(case.op, ()):
                continue
            for dtype in (torch.float32, torch.bfloat16):
                if dtype in case.dtypes:
                    print(f"case {number}, {case.op}, {dtype}", flush=True)
                    call(case, dtype, seed)

    process = Fork(run, {})
    assert process.wait(120) == 0, [*process.stdout.splitlines()[-1:], process.stderr]
    assert len(process.stdout.splitlines()) > 20


def test_the_page_behind_them_cannot_be_read(seed: int) -> None:
    x = torch.arange(5.0)

    def run() -> None:
        faulthandler.disable()
        guarded = at_the_end_of_memory(x)
        assert torch.equal(guarded, x)
        ctypes.string_at(guarded.data_ptr() + guarded.nbytes, 1)

    assert Fork(run, {}).wait(60) not in (0, 1)  # a signal
