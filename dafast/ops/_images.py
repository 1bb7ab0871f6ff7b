"""Tensors that the ops on images (B, C, H, W) pass to the extension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _extension
from ._dispatch import Backend, Check, wrong_dtype


def extension_backends(
    op: str,
    fn: Callable[..., Any],
    cpp_preferred: Check | None = None,
    limits: Check = lambda x, *_: wrong_dtype(x.dtype),
    backward: bool = True,
) -> dict[str, Backend]:
    """The backends ``cuda`` and ``cpp`` of an op whose kernels share one function.

    Args:
        op: Name of the op.
        fn: Calls the extension, which dispatches on the device.
        cpp_preferred: Whether the CPU kernel should serve unasked.
        limits: Whether the kernels can serve the call, on any device.
        backward: Whether they have a backward.
    """
    return {
        "cuda": _extension.backend("cuda", op, fn, limits, backward=backward),
        "cpp": _extension.backend("cpp", op, fn, limits, cpp_preferred, backward=backward),
    }


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
    """``x`` itself if its columns, or its pixels with all channels, are contiguous; else a copy."""
    channels, _, columns = x.stride()[-3:]
    if columns == 1 or (channels == 1 and columns == x.shape[-3]):
        return x
    return x.contiguous()
