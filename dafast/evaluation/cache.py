"""Predictions on disk, so that an evaluation can be continued, or scored again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..files import whole_file, write_file

if TYPE_CHECKING:
    from ..models import DepthAnything


class PredictionCache:
    """One .npy file per photo, named by a digest of its pixels, in a folder per model and options.

    A folder's name is a digest of all weights and of everything else that changes a prediction,
    so predictions of other weights are never reused. `settings.json` in it lists these settings.

    Args:
        root: Parent of these folders; created if missing.
        model: The model that predicts.
        options: The options that `infer` is called with.
    """

    def __init__(self, root: Path, model: DepthAnything, options: dict[str, Any]) -> None:
        weights = hashlib.sha256(model.config.identity.encode())
        for name, tensor in model.state_dict().items():
            weights.update(name.encode())
            # As bytes: NumPy has no bfloat16.
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
        write_file(self.folder / "settings.json", text)

    def _path(self, image: np.ndarray) -> Path:
        digest = hashlib.sha256(repr((image.shape, image.dtype.str)).encode())
        digest.update(np.ascontiguousarray(image).data)
        return self.folder / f"{digest.hexdigest()[:32]}.npy"

    def read(self, image: np.ndarray) -> np.ndarray | None:
        """The prediction for a photo, float32 (H, W); ``None`` if there is no usable one."""
        try:
            prediction = np.load(self._path(image), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None  # missing or damaged
        return prediction if prediction.shape == image.shape[:2] else None

    def write(self, image: np.ndarray, prediction: np.ndarray) -> None:
        """Stores the prediction for a photo.

        Raises:
            DiskFullError: If there is no room for it.
        """
        with whole_file(self._path(image)) as file:
            np.save(file, prediction)
