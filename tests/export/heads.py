"""A tiny model for every head, with position embeddings that matter."""

from __future__ import annotations

import torch
from torch import nn

from dafast import DepthAnything, SegmentationModel
from dafast.models.segmentation import SegmentationConfig
from tests.tiny import tiny

CONFIGS = {
    "v1": tiny(calibration=(0.5, 0.1)),
    "v2-metric": tiny(max_depth=20.0, output_align_corners=True, fit="official"),
    "transformers": tiny(position_embedding="transformers"),
    "bins": tiny(max_depth=10.0, bin_centers="softplus"),
    "bins-normed": tiny(max_depth=10.0, bin_centers="normed", output_align_corners=True),
    "da3-metric": tiny(
        output="exp", kind="metric", focal_length=300.0, sky_head=True, fit="upper_bound"
    ),
}
HEADS = (*CONFIGS, "linear", "dpt")
CLIPS = tiny(temporal_frames=8, features=16, out_channels=(8, 8, 8, 8))


def build(head: str) -> nn.Module:
    """A model in evaluation mode with random weights."""
    if head in CONFIGS or head == "clips":
        model: nn.Module = DepthAnything(CONFIGS.get(head, CLIPS))
    else:
        model = SegmentationModel(SegmentationConfig(tiny(), ("wall", "floor", "sky"), head))
    with torch.no_grad():
        # In all but the trained size, a position embedding of another rule shows.
        model.pretrained.pos_embed.normal_()
        for name, parameter in model.named_parameters():
            if name.endswith(("output_conv2.2.weight", "conv_seg.weight", "proj_out.weight")):
                parameter.normal_(std=0.5)  # the output varies
            if name.endswith("output_conv2.2.bias"):
                parameter.fill_(2.0)  # above 0, where the ReLU has no effect
        if head == "da3-metric":
            _spread_sky(model)
    return model.eval()


def _spread_sky(model: nn.Module) -> None:
    """Changes the sky head so that about half of the pixels are sky."""
    last = model.depth_head.scratch.sky_output_conv2[2]
    last.bias.fill_(100.0)  # above 0, so that the ReLU has no effect
    sky = model.eval().decoder_outputs(torch.randn(2, 3, 28, 42))[:, 1] - 100
    last.weight.div_(sky.std())
    last.bias.fill_(0.4 - float(sky.median() / sky.std()))
