"""What the ops on images (B, C, H, W) share: the tensors that the extension takes, and makes."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the extension's kernels are compiled for; they compute in float32."""


def why_not_dtype(x: Tensor) -> str:
    """Why the extension does not take a tensor of this dtype; an empty string if it does."""
    return "" if x.dtype in DTYPES else f"takes float32, float16 and bfloat16, not {x.dtype}"


def empty_images(x: Tensor, height: int, width: int) -> Tensor:
    """Uninitialised (B, C, height, width) in the dtype, device and memory format of ``x``."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty(
        (x.shape[0], x.shape[1], height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def dense_rows(x: Tensor) -> Tensor:
    """``x`` itself where its columns, or its pixels with all channels, lie side by side."""
    channels, _, columns = x.stride()[-3:]
    if columns == 1 or (channels == 1 and columns == x.shape[-3]):
        return x
    return x.contiguous()
