"""The folder that transformers.js loads: configuration files and ``onnx/model*.onnx``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..files import whole_files
from ..models.configurations import config_to_transformers, preprocessor_to_transformers
from ..models.network import DepthNetwork
from ..models.saving import check_layout
from .formats import export
from .verify import Check

NAMES = {"float32": "model", "float16": "model_fp16", "int8": "model_quantized"}
"""Names of the files, which transformers.js knows as fp32, fp16 and q8."""


def export_folder(
    model: nn.Module, folder: str | Path, *, calibrate: Sequence[Any] = (), check: bool = True
) -> Iterator[tuple[Path, list[Check]]]:
    """Writes a model as transformers.js reads it: `pipeline("depth-estimation", folder)`.

    Args:
        model: A depth model that transformers has: V1 or V2, relative or V2's metric.
        folder: Created if missing.
        calibrate: Photos for ``onnx/model_quantized.onnx``, which is left out without them.
        check: Whether to verify the files.

    Yields:
        Each ONNX file with its comparisons.

    Raises:
        TypeError: If it is no depth model.
        ValueError: If transformers has no class for the model.
    """
    if not isinstance(model, DepthNetwork):
        raise TypeError(f"{type(model).__name__}: transformers.js reads depth models only")
    config = model.config
    check_layout("transformers", config)
    folder = Path(folder)
    with whole_files(folder) as temporary:
        for name, content in (
            ("config.json", config_to_transformers(config, "float32")),
            ("preprocessor_config.json", preprocessor_to_transformers(config)),
        ):
            text = json.dumps(content, indent=2) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")
    for dtype, name in NAMES.items():
        if dtype != "int8" or calibrate:
            path = folder / "onnx" / f"{name}.onnx"
            yield path, export(model, path, dtype=dtype, check=check, calibrate=calibrate)
