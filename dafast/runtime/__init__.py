"""Predicts photos with files of `dafast export`, without PyTorch: NumPy, Pillow, ONNX Runtime.

`OnnxModel("model.onnx").predict("photo.jpg")` gives the `DepthResult` that the PyTorch model gives,
within 1e-4 of its range. Training, evaluation, tiles, panoramas, known points and guided
upsampling need PyTorch.
"""

from .facts import FileFacts, NotExportedError
from .model import OnnxModel

__all__ = ["FileFacts", "NotExportedError", "OnnxModel"]
