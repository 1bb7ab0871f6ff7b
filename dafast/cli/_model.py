"""Loads the model of a command."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import explain
from ._common import CommandError

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..models import DepthAnything


def is_exported(model: str) -> bool:
    """Whether the value of ``--model`` is a file of `dafast export`, which needs no PyTorch."""
    return model.endswith(".onnx")


def load_model(args: argparse.Namespace, device: str) -> DepthAnything:
    """Loads the model of ``--model``, ``--config`` and ``--dtype``."""
    from ..models import DepthAnything

    config = None if args.config is None else _read_config(args.config)
    return DepthAnything.from_pretrained(args.model, config=config, device=device, dtype=args.dtype)


def _read_config(name: str) -> str | ModelConfig:
    """Reads ``--config``: a preset, or the configuration in a file.

    Raises:
        CommandError: If it is neither.
    """
    from ..config import PRESETS
    from ..models.configurations import config_from_json

    if name in PRESETS:
        return name
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise CommandError(
            f"--config {name}: neither a file nor a preset; the presets are {', '.join(PRESETS)}"
        )
    try:
        return config_from_json(json.loads(path.read_text(encoding="utf-8")), path.parts)
    except (ValueError, TypeError, AttributeError) as error:
        raise CommandError(
            f"--config {name}: not the configuration of a model ({explain(error)})"
        ) from None


def load_relative_model(args: argparse.Namespace, command: str) -> DepthAnything:
    """Loads a model without a unit; under torchrun on the process's own GPU.

    Its output is disparity, or depth, the inverse of which is a disparity.

    Raises:
        CommandError: If the model is metric; ``command`` is named in the message.
    """
    model = load_model(args, own_device(args.device))
    if model.config.is_metric:
        raise CommandError(
            f"{args.model} predicts depth in metres, and `dafast {command}` handles relative "
            "disparity; use `model.infer_metric` from Python"
        )
    return model


def own_device(name: str) -> str:
    """The device of ``--device``; for ``auto`` under torchrun, this process's own GPU."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if name == "auto" and local and torch.cuda.is_available() else name
