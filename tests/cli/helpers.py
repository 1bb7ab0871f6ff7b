"""Models, photos and folders for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dafast
from dafast.config import ModelConfig


def save_model(folder: Path, config: ModelConfig) -> str:
    torch.manual_seed(0)
    model = dafast.DepthAnything(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Random weights at their initialisation give a map that is nearly constant, or zero.
            if name.endswith("output_conv2.2.bias"):
                parameter.fill_(1.0)
            elif parameter.ndim > 1:
                parameter.mul_(1.5)
    model.save_pretrained(folder)
    return str(folder)


def photo(path: Path, rng: np.random.Generator, size=(37, 53)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}
