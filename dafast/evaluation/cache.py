"""Predictions on disk, so that an evaluation goes on where it stopped, or is scored anew."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from ..models import DepthAnything


class PredictionCache:
    """One .npy file for each photo, by a digest of its pixels; a folder for each model and option.

    A folder's name is a digest of all weights and of whatever else changes a prediction, so that
    what a new training predicts is never taken for what the old one did. `settings.json` in it
    says what it belongs to.

    Args:
        root: Where the folders lie; made if missing.
        model: The model that predicts.
        options: The options of `infer` it is used with.
    """

    def __init__(self, root: Path, model: DepthAnything, options: dict[str, Any]) -> None:
        weights = hashlib.sha256(repr(model.config).encode())
        for name, tensor in model.state_dict().items():
            weights.update(name.encode())
            # As bytes, for numpy has no bfloat16.
            weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        settings = {
            "model": model.config.name,
            "weights": weights.hexdigest()[:32],
            "dtype": str(model.dtype).removeprefix("torch."),
            **options,
        }
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder = root / f"{model.config.name}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / "settings.json", text.encode())

    def _path(self, image: np.ndarray) -> Path:
        digest = hashlib.sha256(repr((image.shape, image.dtype.str)).encode())
        digest.update(np.ascontiguousarray(image).data)
        return self.folder / f"{digest.hexdigest()[:32]}.npy"

    def read(self, image: np.ndarray) -> np.ndarray | None:
        """The prediction for a photo, float32 (H, W), or ``None`` if there is none to use."""
        try:
            prediction = np.load(self._path(image), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None  # missing, or not a whole file
        return prediction if prediction.shape == image.shape[:2] else None

    def write(self, image: np.ndarray, prediction: np.ndarray) -> None:
        """Keeps the prediction for a photo."""
        path = self._path(image)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.npy")
        np.save(temporary, prediction)
        os.replace(temporary, path)


def _replace(path: Path, data: bytes) -> None:
    """Writes under another name first: another process may be reading."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
