"""The sky within a graph: the quantile by counting is that by sorting."""

from __future__ import annotations

import torch

from dafast.export.sky import fill_sky
from dafast.models.sky import fill_sky as by_sorting


def test_counting_finds_the_quantile(seed: int) -> None:
    for i in range(60):
        size = [int(n) for n in torch.randint(1, 40, (2,))]
        depth = torch.rand(2, *size) * 10.0 ** int(torch.randint(-6, 6, (1,)))
        if i % 4 == 1:
            depth = torch.randint(0, 3, depth.shape).float()  # many equal values
        if i % 4 == 2:
            depth = torch.exp(4 * torch.randn(depth.shape))
        sky = torch.rand(depth.shape) * 1.2 * torch.rand(2, 1, 1)
        true = by_sorting(depth, sky)
        # Ranks are rounded to float32, by at most 2**-13 at these sizes.
        bound = 2e-7 * depth.max() + 2**-12 * (depth.max() - depth.min())
        assert (fill_sky(depth, sky) - true).abs().max() <= bound


def test_no_sky_and_only_sky_change_nothing(seed: int) -> None:
    depth = torch.rand(3, 20, 30)
    sky = torch.zeros(3, 20, 30)
    sky[1] = 1
    sky[2, 0, :10] = 1  # ten pixels are too few
    assert torch.equal(fill_sky(depth, sky), depth)
    sky[2, 0, 10] = 1
    assert not torch.equal(fill_sky(depth, sky), depth)
