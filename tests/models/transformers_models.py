"""Small transformers models with random weights, and the comparison of their maps."""

from __future__ import annotations

import copy

import torch
from torch import nn

import dafast
from tests.tiny import tiny
from tests.tolerances import TOLERANCES

TOLERANCE = TOLERANCES[torch.float32].model
CONFIGS = {
    "v1": tiny(),
    "v2": tiny(num_layers=6, out_indices=(1, 2, 3, 5), output_align_corners=True),
    "metric": tiny(max_depth=80.0, output_align_corners=True),
}


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Compares two maps, relative to the largest value."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert expected.float().std() > 0
    error = (got.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= tolerance, f"{error:.1e} of the largest value"


def original_of(model: nn.Module) -> nn.Module:
    return dafast.restore(copy.deepcopy(model))
