"""Copies between the host and a GPU for which the host does not wait, and how much fits there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from ..ops._triton import why_missing as triton_missing
from .network import DepthNetwork

MAX_BATCH_TOKENS = 8192
"""Tokens of a batch on a CPU, where a larger one is not faster."""

_MOST_TOKENS = 65536  # then even ViT-S takes longer than the host for its launches
_UNDER_WAY = 4  # maps in pinned memory at a time


def upload(x: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to a device, from the host to a GPU through pinned memory."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def start_copy(x: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """Starts a copy of a tensor on a GPU into pinned memory; the function waits for it."""
    stream, event = torch.cuda.Stream(x.device), torch.cuda.Event()
    stream.wait_stream(torch.cuda.current_stream(x.device))
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    with torch.cuda.stream(stream):  # of its own: the next batch runs meanwhile
        host.copy_(x, non_blocking=True)
        event.record(stream)
    x.record_stream(stream)
    return host, event.synchronize


class Downloads:
    """Tensors on their way to the host.

    Results are ordinary memory: a caller may keep many, and pinned memory is scarce.
    """

    def __init__(self) -> None:
        self._under_way: deque[tuple[int, Tensor, Callable[[], None]]] = deque()
        self._done: dict[int, Tensor] = {}

    def add(self, key: int, x: Tensor) -> None:
        """Starts the copy of a tensor; waits for the oldest one where too many are under way."""
        if x.device.type != "cuda":
            self._done[key] = x.cpu()
            return
        if len(self._under_way) >= _UNDER_WAY:
            self._finish_one()
        self._under_way.append((key, *start_copy(x)))

    def finish(self) -> dict[int, Tensor]:
        """Waits for all copies and returns the tensors by their keys."""
        while self._under_way:
            self._finish_one()
        return self._done

    def _finish_one(self) -> None:
        key, host, wait = self._under_way.popleft()
        wait()
        self._done[key] = host.clone()


def bytes_per_token(model: DepthNetwork) -> int:
    """Memory of a forward without gradients, for each token of the batch, at its peak.

    A token is 14 x 14 pixels, for which the decoder has 4 x 4 values in its finest fused map,
    8 x 8 behind it, and all of them in its last layers unless one kernel computes these.
    """
    config = model.config
    channels, features, pixels = config.embed_dim, config.features, config.patch_size**2
    # The stream, its norm, both sides of the GELU, the taps.
    values = 14 * channels + 200 * features
    single = 4 * pixels  # in float32, as maps and bins are
    half = model.dtype in (torch.float16, torch.bfloat16)
    if not half or config.bin_centers or triton_missing():
        single += pixels * (features // 2 + 64)
    if config.bin_centers:
        single += 6 * 64 * pixels
    return values * model.pretrained.cls_token.element_size() + 4 * single


def batch_tokens(model: DepthNetwork) -> int:
    """Tokens of a batch unasked: on a GPU as many as half of its free memory holds, up to 65536."""
    if model.device.type != "cuda":
        return MAX_BATCH_TOKENS
    free = _free_memory(model.device)
    return max(1, min(_MOST_TOKENS, free // 2 // bytes_per_token(model)))


def _free_memory(device: torch.device) -> int:
    """Bytes that PyTorch can still allocate on a GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept
