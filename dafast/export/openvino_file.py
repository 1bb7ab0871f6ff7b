"""OpenVINO files (.xml with .bin), converted from ONNX."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..optional import MissingPackageError, why_no_module
from ..runtime import FileFacts, OnnxModel
from .onnx_file import write_onnx


def need_openvino() -> None:
    """Raises a `MissingPackageError` unless OpenVINO can be imported."""
    if why := why_no_module("openvino"):
        raise MissingPackageError(
            f"OpenVINO files need the extra openvino: pip install 'dafast[openvino]' ({why})"
        )


def write_openvino(built: Any, facts: FileFacts, path: Path) -> None:
    """Writes an `onnx.ModelProto` as OpenVINO's two files; the facts are in its runtime info.

    Args:
        built: The model.
        facts: Its facts; weights in float16 stay so.
        path: The .xml file; the .bin file is next to it.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        write_onnx(built, facts, source)
        # Not `convert_model`, which starts processes that report its use over the network.
        converted = openvino.Core().read_model(source)
        for name, value in facts.to_strings().items():
            converted.set_rt_info(value, name)
        openvino.save_model(converted, path, compress_to_fp16=facts.dtype == "float16")


def openvino_facts(path: Path) -> FileFacts:
    """The facts of a file of `write_openvino`.

    Raises:
        NotExportedError: If it was not written by `dafast export`.
    """
    import openvino

    info = openvino.Core().read_model(path).get_rt_info()
    strings = {name: value.value for name, value in info.items() if name.startswith("dafast.")}
    return FileFacts.from_strings(strings, str(path))


class OpenvinoModel(OnnxModel):
    """A file of `write_openvino`, with the methods of `OnnxModel`.

    Args:
        path: The .xml file.
    """

    def __init__(self, path: Path) -> None:
        self.facts = openvino_facts(path)
        self.config = self.facts.config
        self._run = run_openvino(path, self.facts)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the file on a batch; see `OnnxModel.run`."""
        return dict(zip(self.facts.output_names, self._run(images), strict=True))


def run_openvino(path: Path, facts: FileFacts) -> Any:
    """Returns a function that runs a file of `write_openvino` on the CPU in float32."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32"}  # by default bfloat16 where the CPU has it
    compiled = openvino.compile_model(path, "CPU", options)
    return lambda images: [compiled(images)[output] for output in compiled.outputs]
