"""ONNX files: traced with the reference ops, with the facts in their metadata."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..ops import use_backend
from ..optional import MissingPackageError, why_no_module
from ..runtime import FileFacts
from .tracing import exported_module

OPSET = 18
"""ONNX Runtime from 1.14, OpenVINO from 2023.1 and TensorRT from 8.6 on read it."""


def need_onnx() -> None:
    """Raises a `MissingPackageError` unless the packages of this format can be imported."""
    if why := why_no_module("onnx") or why_no_module("onnxruntime"):
        raise MissingPackageError(
            f"ONNX files need the extra onnx: pip install 'dafast[onnx]' ({why})"
        )


def onnx_model(model: nn.Module, facts: FileFacts) -> Any:
    """A model as an `onnx.ModelProto`, in float32 or float16; int8 starts from float32.

    The exporter is the one of TorchScript: it takes seconds where the one of `torch.export` takes
    minutes, and its graphs hold for every batch and size.

    Args:
        model: See `ExportedNetwork`.
        facts: What the file is to be.
    """
    import onnx

    torch.onnx.register_custom_op_symbolic("aten::addcdiv", _addcdiv, OPSET)
    module, images = exported_module(model, facts)
    names = [facts.input_name, *facts.output_names]
    buffer = io.BytesIO()
    with torch.no_grad(), use_backend("reference"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks of shapes that are constants of the trace
        torch.onnx.export(
            module,
            (images,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: axes for name in names if (axes := _axes_of(name, facts))},
        )
    built = onnx.load_from_string(buffer.getvalue())
    built.producer_name, built.producer_version = "dafast", facts.version
    for output in built.graph.output:
        _name_dimensions(output, facts)
    return built


def _addcdiv(g: Any, x: Any, numerator: Any, denominator: Any, _value: Any) -> Any:
    """`torch.addcdiv` with value=1, which the exporter does not have."""
    return g.op("Add", x, g.op("Div", numerator, denominator))


def _axes_of(name: str, facts: FileFacts) -> dict[int, str]:
    """The dynamic axes of an input or output, with their names."""
    height = (2 if name in ("pixel_values", "logits") else 1) + bool(facts.frames)
    axes = {} if facts.batch else {0: "batch"}
    return axes if facts.shape else {**axes, height: "height", height + 1: "width"}


def _name_dimensions(output: Any, facts: FileFacts) -> None:
    """Sets the sizes of an output that the exporter lost."""
    fixed = facts.shape or ("height", "width")
    dims = output.type.tensor_type.shape.dim
    between = [n for n in (facts.frames, len(facts.classes)) if n]
    sizes = [facts.batch or "batch", *between, *fixed]
    for dim, size in zip(dims, sizes, strict=True):
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size


def set_facts(built: Any, facts: FileFacts) -> None:
    """Writes the facts into the metadata of an `onnx.ModelProto`."""
    import onnx

    onnx.helper.set_model_props(built, facts.to_strings())


def write_onnx(built: Any, facts: FileFacts, path: Path) -> None:
    """Checks a model and writes it, with its facts.

    Raises:
        ValueError: If the model exceeds 2 GB, the limit of one ONNX file.
    """
    import onnx

    set_facts(built, facts)
    if built.ByteSize() >= 2**31:
        raise ValueError(
            f"{path.name}: the model has {built.ByteSize() / 1e9:.1f} GB, and one ONNX file holds "
            "at most 2 GB; use dtype='float16'"
        )
    onnx.checker.check_model(built)
    path.write_bytes(built.SerializeToString())


def run_onnx(path: Path, facts: FileFacts) -> Any:
    """Returns a function that runs a file of `write_onnx` on the CPU."""
    from ..runtime import OnnxModel

    loaded = OnnxModel(path, providers=["CPUExecutionProvider"])
    return lambda images: list(loaded.run(images).values())
