"""Fixtures for all tests: fresh random inputs whose seed is printed when a test fails."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch

SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="seed of the random inputs, to repeat a failure"
    )


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for every test (or that of ``--seed``), set for torch's global generator too."""
    value = request.config.getoption("--seed")
    if value is None:
        value = secrets.randbits(31)
    request.node.stash[SEED] = value
    torch.manual_seed(value)
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """NumPy generator made from `seed`."""
    return np.random.default_rng(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.failed and SEED in item.stash:
        report.sections.append(("Random seed", f"repeat with --seed={item.stash[SEED]}"))
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU; PyTorch sees none here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
