"""The smallest network that has every part, and how tests vary it."""

from __future__ import annotations

import dataclasses
from typing import Any

from dafast.config import ModelConfig

TINY = ModelConfig(
    name="tiny",
    embed_dim=32,
    num_layers=4,
    num_heads=2,
    features=8,
    out_channels=(8, 8, 8, 8),
    out_indices=(0, 1, 2, 3),
    image_size=28,
    grid_size=2,
)
"""A relative-depth model of 2x2 patches: forward in milliseconds."""


def tiny(**changes: Any) -> ModelConfig:
    """`TINY` with some fields changed."""
    return dataclasses.replace(TINY, **changes)
