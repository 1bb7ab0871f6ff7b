"""Digests in files stay equal from one version of dafast to the next."""

from __future__ import annotations

import dafast
from dafast.config import get_preset
from dafast.models.digest import digest_model

# `license` was called `licence` when digests were first written.
NANO = (
    "ModelConfig(name='nano', embed_dim=192, num_layers=6, num_heads=3, features=32, "
    "out_channels=(32, 48, 64, 96), out_indices=(1, 2, 4, 5), image_size=336, grid_size=16, "
    "patch_size=14, max_depth=None, bin_centers='', output_align_corners=False, "
    "position_embedding='official', hub_id='', hub_file='', licence='Apache-2.0', "
    "mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))"
)


def test_identity_of_a_configuration_stays():
    """Results of `run` and `label` and the cache of `eval` have it in their digests."""
    assert get_preset("nano").identity == NANO


def test_digest_of_the_shipped_model_stays():
    """It changes only with the weights: `dafast label` continues what an earlier version began."""
    model = dafast.DepthAnything.from_pretrained("nano", device="cpu", dtype="bfloat16")
    assert digest_model(model) == "732af9384d7007621d1885d3c3ed6190"
