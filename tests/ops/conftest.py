"""Fixtures of the tests of ops."""

from __future__ import annotations

import pytest

from tests.ops.parity import poison


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that what a kernel leaves unwritten shows."""
    poison(monkeypatch)
