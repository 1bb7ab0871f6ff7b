"""Loading a model for a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models import DepthAnything


def load_relative_model(name: str, device: str, dtype: str, command: str) -> DepthAnything:
    """Loads a model whose output is disparity.

    Raises:
        CommandError: If the model is metric; ``command`` is named in the message.
    """
    from .. import DepthAnything
    from . import CommandError

    model = DepthAnything.from_pretrained(name, device=device, dtype=dtype)
    if model.config.is_metric:
        raise CommandError(
            f"{name} predicts depth in metres, and `dafast {command}` handles relative disparity; "
            "use `model.infer_metric` from Python"
        )
    return model
