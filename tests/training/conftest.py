from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import tiny


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, run_seed: int) -> Path:
    """A folder of two shards with 36 samples in all."""
    return tiny.write_shards(tmp_path_factory.mktemp("shards"), 2, 18, run_seed)


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random model whose maps are neither flat nor zero."""
    folder = tmp_path_factory.mktemp("learned")
    tiny.trained_model().save_pretrained(folder)
    return str(folder)
