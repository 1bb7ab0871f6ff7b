"""Core ML packages of one fixed size. They are converted on any machine and run only on a Mac."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..ops import use_backend
from ..optional import MissingPackageError, why_no_module
from ..runtime import FileFacts
from .network import ExportedNetwork
from .tracing import exported_module

_NOT_IN_COREML = (torch.ops.aten.addcmul, torch.ops.aten.addcdiv)


def need_coreml() -> None:
    """Raises a `MissingPackageError` unless coremltools can be imported."""
    if why := why_no_module("coremltools"):
        raise MissingPackageError(
            f"Core ML packages need the extra coreml: pip install 'dafast[coreml]' ({why})"
        )


def write_coreml(
    model: nn.Module, facts: FileFacts, path: Path, _photos: Sequence[Any] = ()
) -> None:
    """Writes a Core ML package (ML program, iOS 16 and macOS 13 on) of a fixed size.

    Args:
        model: See `ExportedNetwork`.
        facts: What the file is to be, with a shape and a batch.
        path: The .mlpackage folder.

    Raises:
        ValueError: If the size or the batch is not fixed, or the model has metric bins or takes
            clips.
    """
    import coremltools

    if facts.shape is None or facts.batch is None:
        raise ValueError("Core ML packages have a fixed size: pass shape and batch")
    if facts.frames:
        raise ValueError("Core ML packages of clips are not supported: use another format")
    if facts.config.bin_centers and not facts.classes:
        raise ValueError(f"{facts.config.name!r} has metric bins, which coremltools cannot convert")
    # In float32; the converter chooses where float16 is enough.
    module, images = exported_module(model, dataclasses.replace(facts, dtype="float32"))
    assert isinstance(module, ExportedNetwork)
    _fix_position_embeddings(module, facts)
    with torch.no_grad(), use_backend("reference"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (images,), strict=False)
        decomposed = torch._decomp.get_decompositions(_NOT_IN_COREML)
        converted = coremltools.convert(
            program.run_decompositions(decomposed),
            outputs=[coremltools.TensorType(name) for name in facts.output_names],
            convert_to="mlprogram",
            compute_precision=getattr(coremltools.precision, facts.dtype.upper()),
            minimum_deployment_target=coremltools.target.iOS16,
        )
    converted.user_defined_metadata.update(facts.to_strings())
    converted.save(str(path))


def _fix_position_embeddings(module: ExportedNetwork, facts: FileFacts) -> None:
    """Interpolates the position embeddings for the only size, outside of the program."""
    assert facts.shape is not None
    encoder, patch = module.network.pretrained, facts.config.patch_size
    fixed = encoder.interpolate_pos_embed(facts.shape[0] // patch, facts.shape[1] // patch)
    module.register_buffer("positions", fixed.detach().clone())
    encoder.interpolate_pos_embed = lambda rows, columns: module.positions
