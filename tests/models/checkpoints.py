"""What the tests of checkpoints share: an odd little model, loading, comparing."""

import pytest
import torch

from dafast import DepthAnything
from dafast.config import ModelConfig
from dafast.devices import on_meta
from dafast.models.checkpoint import CheckpointError
from tests.tiny import tiny

TINY = tiny(
    embed_dim=64,
    num_layers=5,
    num_heads=1,
    out_channels=(8, 12, 16, 20),
    out_indices=(0, 1, 3, 4),
    image_size=56,
    grid_size=4,
    output_align_corners=True,
    mean=(0.5, 0.5, 0.5),
)


def load(path, **options) -> DepthAnything:
    return DepthAnything.from_pretrained(path, **{"device": "cpu", "dtype": "float32"} | options)


def random_state(config: str | ModelConfig) -> dict[str, torch.Tensor]:
    """A state_dict in half precision, without the time that initialising a network takes."""
    with on_meta():
        model = DepthAnything(config)
    return {k: torch.randn(v.shape).half() for k, v in model.state_dict().items()}


def assert_same(a: DepthAnything, b: DepthAnything) -> None:
    first, second = a.state_dict(), b.state_dict()  # of a network, each takes milliseconds
    assert list(first) == list(second)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def error_of(path, **options) -> str:
    """The message of the one error; it names the file."""
    with pytest.raises(CheckpointError) as info:
        load(path, **options)
    text = str(info.value)
    assert str(path) in text
    return text
