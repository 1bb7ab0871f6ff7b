"""Programs of `torch.export` and AOTInductor, which PyTorch runs without dafast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..runtime import FileFacts
from .tracing import exported_module

FACTS_FILE = "dafast.json"
"""Name of the facts within a `torch.export` file."""

FEWEST_PATCHES = 3
"""The fewest patches a side: with two the decoder's deepest map has one, and a guard fails."""

_MOST = 4096  # patches a side, and images of a batch: a bound that torch.export wants


def exported_program(model: nn.Module, facts: FileFacts) -> Any:
    """A model as a `torch.export.ExportedProgram` that holds for every batch and size.

    Args:
        model: See `ExportedNetwork`.
        facts: What the file is to be.
    """
    module, images = exported_module(model, facts)
    patch = facts.config.patch_size
    sizes: dict[int, Any] = {}
    if facts.batch is None:
        sizes[0] = torch.export.Dim("batch", min=1, max=_MOST)
    if facts.shape is None:
        height = images.ndim - 2
        for axis, name in ((height, "rows"), (height + 1, "columns")):
            sizes[axis] = patch * torch.export.Dim(name, min=FEWEST_PATCHES, max=_MOST)
    with torch.no_grad():
        return torch.export.export(module, (images,), dynamic_shapes=(sizes,), strict=False)


def write_program(
    model: nn.Module, facts: FileFacts, path: Path, _photos: Sequence[Any] = ()
) -> None:
    """Writes a file that `torch.export.load` reads; its facts are in the file `FACTS_FILE`."""
    program = exported_program(model, facts)
    torch.export.save(program, path, extra_files={FACTS_FILE: json.dumps(facts.to_strings())})


def run_program(path: Path, facts: FileFacts) -> Any:
    """Returns a function that runs a file of `write_program`."""
    return _on_tensors(torch.export.load(path).module())


def write_package(
    model: nn.Module, facts: FileFacts, path: Path, _photos: Sequence[Any] = ()
) -> None:
    """Compiles a model with AOTInductor, for this machine's kind of CPU.

    `torch._inductor.aoti_load_package` reads the file; `get_metadata` of what it returns has the
    facts.
    """
    options = {"aot_inductor.metadata": facts.to_strings()}
    torch._inductor.aoti_compile_and_package(
        exported_program(model, facts), package_path=str(path), inductor_configs=options
    )


def run_package(path: Path, facts: FileFacts) -> Any:
    """Returns a function that runs a file of `write_package`."""
    return _on_tensors(torch._inductor.aoti_load_package(str(path)))


def _on_tensors(program: Any) -> Any:
    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [out.numpy() for out in program(torch.from_numpy(images))]

    return run
