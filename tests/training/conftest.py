from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.training import tiny


@pytest.fixture
def seed() -> int:
    """A new seed each time; pytest shows the print when the test fails."""
    value = secrets.randbelow(2**31)
    print(f"seed = {value}")
    return value


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two shards with 36 samples in all."""
    seed = secrets.randbelow(2**31)
    print(f"shards' seed = {seed}")
    folder = tiny.write_shards(tmp_path_factory.mktemp("shards"), 2, 18, seed)
    return folder


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random model whose maps are neither flat nor zero."""
    folder = tmp_path_factory.mktemp("learned")
    tiny.trained_model().save_pretrained(folder)
    return str(folder)
