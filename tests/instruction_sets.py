"""Runs the kernels of the C++ extension with fewer instructions than the processor has."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator

import pytest
import torch

from dafast.ops import _extension
from dafast.ops._dispatch import forget_choices

needs_extension = pytest.mark.skipif(
    _extension.load() is None, reason=_extension.why_missing() or "it is there"
)

CPP = pytest.param("cpp", marks=needs_extension)
"""The backend as a test parameter; skipped without the extension."""

INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16")
"""The sets that most kernels are compiled for."""

_ON_ARM = platform.machine() in ("aarch64", "arm64")
INT8_SETS = ("dotprod", "i8mm") if _ON_ARM else ("avx2", "avx_vnni", "avx512", "avx512_amx")
"""The sets with kernels in int8."""


def limit_instructions(name: str) -> None:
    """Limits the kernels to a set; "" for all. The ops choose their backends again."""
    module = _extension.load()
    assert module is not None
    module.limit_cpu_capability(name)
    forget_choices()


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Kernels use this set in the block; skips the test if the processor does not have it."""
    module = _extension.load()
    if module is None:
        pytest.skip(_extension.why_missing())
    limit_instructions(name)
    try:
        if module.cpu_capability() != name:
            pytest.skip(f"this processor has {module.cpu_capability()}, not {name}")
        yield
    finally:
        limit_instructions(os.environ.get("DAFAST_CPU_CAPABILITY", ""))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch uses ``count`` threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
