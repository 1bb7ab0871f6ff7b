"""The module of a file, and the input that it is traced with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..runtime import FileFacts
from .network import ExportedNetwork
from .photos import PhotoNetwork


def exported_module(model: nn.Module, facts: FileFacts) -> tuple[nn.Module, Tensor]:
    """The module of a file and the images to trace it with.

    Verification uses other sizes than the trace.

    Args:
        model: See `ExportedNetwork`.
        facts: What the file is to be.
    """
    network = ExportedNetwork(model, facts.dtype, facts.frames)
    batch = facts.batch or 2
    generator = torch.Generator().manual_seed(0)
    if facts.preprocess:
        height, width = facts.shape or (90, 130)
        photos = torch.randint(
            0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator
        )
        return PhotoNetwork(network, facts), photos
    patch = facts.config.patch_size
    height, width = facts.shape or (4 * patch, 6 * patch)
    clip = (facts.frames,) if facts.frames else ()
    return network, torch.randn(batch, *clip, 3, height, width, generator=generator)
