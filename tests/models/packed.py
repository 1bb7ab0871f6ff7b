"""Networks for the tests of the packed forward on a CPU."""

import dataclasses

import pytest
import torch

import dafast
from dafast.config import get_preset
from dafast.models.packed_cpu import why_not_packed
from tests.tolerances import TOLERANCES

SMALL = dataclasses.replace(
    get_preset("vits"), name="small", embed_dim=128, num_heads=2, num_layers=6,
    out_indices=(1, 2, 3, 5), features=32, out_channels=(16, 32, 48, 64), grid_size=8,
)  # fmt: skip
METRIC = dataclasses.replace(SMALL, max_depth=20.0)
DTYPES = (torch.float32, torch.bfloat16)


def make(config, dtype=torch.float32):
    model = dafast.DepthAnything(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # every bias, gamma and norm counts
            p += 0.1 * torch.randn_like(p) / max(1, p[0].numel()) ** 0.5
    return model.to(dtype)


def ready(model) -> bool:
    reason = why_not_packed(model)
    if reason:
        pytest.skip(reason)
    return True


def close(got, expected, dtype):
    assert got.dtype == expected.dtype == torch.float32
    scale = expected.abs().max()
    assert scale > 0
    assert (got - expected).abs().max() <= TOLERANCES[dtype].model * scale
