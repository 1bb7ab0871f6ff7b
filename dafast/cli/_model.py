"""Loading a model for a command, and telling models apart."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from ._common import CommandError

if TYPE_CHECKING:
    from ..models import DepthAnything


def load_relative_model(name: str, device: str, dtype: str, command: str) -> DepthAnything:
    """Loads a model whose output is disparity.

    Raises:
        CommandError: If the model is metric; ``command`` is named in the message.
    """
    from ..models import DepthAnything

    model = DepthAnything.from_pretrained(name, device=device, dtype=dtype)
    if model.config.is_metric:
        raise CommandError(
            f"{name} predicts depth in metres, and `dafast {command}` handles relative disparity; "
            "use `model.infer_metric` from Python"
        )
    return model


def own_device(name: str) -> str:
    """What `--device` says; for `auto` under torchrun, the GPU that is this process's own."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if name == "auto" and local and torch.cuda.is_available() else name


def digest_model(model: DepthAnything) -> str:
    """Tells models apart by their first few weights: training changes all of them."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
