"""Running the kernels of the C++ extension with less than the processor has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from dafast.ops import _extension

needs_extension = pytest.mark.skipif(
    _extension.load() is None, reason=_extension.why_missing() or "it is there"
)

CPP = pytest.param("cpp", marks=needs_extension)
"""The backend as a parameter of a test."""

INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16")


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Kernels use this set within the block; the test is skipped where the processor lacks it."""
    module = _extension.load()
    if module is None:
        pytest.skip(_extension.why_missing())
    module.limit_cpu_capability(name)
    try:
        if module.cpu_capability() != name:
            pytest.skip(f"this processor has {module.cpu_capability()}, not {name}")
        yield
    finally:
        module.limit_cpu_capability("")


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch uses so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
