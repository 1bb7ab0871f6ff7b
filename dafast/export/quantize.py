"""int8: static quantisation of an ONNX model, calibrated on photos."""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..images import as_pixels
from ..models.prediction import rgb
from ..ops import preprocess, resize_bilinear
from ..runtime import FileFacts
from ..runtime.model import fixed_geometry, network_input

MOST_PHOTOS = 64
"""Photos that calibration looks at; more change the ranges little."""

_LEAST_WEIGHTS = 256  # smaller weights save nothing


def file_inputs(
    facts: FileFacts, photos: Sequence[Any], size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Photos as the input of a file, each a batch of one.

    Args:
        facts: What the file is.
        photos: As for `DepthAnything.infer`.
        size: Height and width that they are stretched to. By default they are resized as
            `dafast.runtime` does: by the model's own rule, or into the fixed shape with padding.

    Yields:
        (1, 3, H, W) float32, or with ``preprocess`` (1, H, W, 3) uint8.
    """
    config = facts.config
    if facts.preprocess:
        size = size or facts.shape
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    for i, photo in enumerate(photos):
        pixels = as_pixels(photo, f"photo {i}")
        if size is None and facts.shape is not None:
            photo = rgb(pixels)
            geometry = fixed_geometry(photo.shape[0], photo.shape[1], facts.shape)
            yield network_input(config, photo, geometry, "pad", "replicate")[None]
            continue
        if size is None and not facts.preprocess:
            options: dict[str, Any] = dict(multiple=config.patch_size, size=config.image_size)
            fit = "pad" if facts.classes else config.fit
            x, _ = preprocess(pixels, fit=fit, mean=config.mean, std=config.std, **options)
            yield x.numpy()
            continue
        plane = pixels.permute(2, 0, 1).float() / 255 if pixels.dtype == torch.uint8 else pixels
        if size is not None:
            plane = resize_bilinear(plane[None], size, antialias=True)[0]
        if facts.preprocess:
            yield (plane * 255).round().to(torch.uint8).permute(1, 2, 0)[None].numpy()
        else:
            yield ((plane - mean) / std)[None].numpy()


def quantize(built: Any, facts: FileFacts, photos: Sequence[Any]) -> Any:
    """Quantises the weights and inputs of convolutions and linear layers to int8.

    Weights have one scale for each output channel, activations one for each tensor, all symmetric,
    as TensorRT needs them. The two last convolutions, the position embeddings and products of two
    activations stay in float32.

    Args:
        built: The `onnx.ModelProto` in float32.
        facts: What the file is to be.
        photos: Of the kind that the model will see, as for `DepthAnything.infer`.

    Returns:
        The quantised `onnx.ModelProto`, with QuantizeLinear and DequantizeLinear.

    Raises:
        ValueError: If there are no photos.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as run_quantization

    if not photos:
        raise ValueError("dtype='int8' needs photos to calibrate with: pass calibrate=")
    photos = photos[:MOST_PHOTOS]
    inputs = file_inputs(facts, photos)
    if facts.shape is not None and not facts.preprocess:  # other programs may stretch photos
        inputs = itertools.chain(inputs, file_inputs(facts, photos, facts.shape))

    class Photos(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(inputs, None)
            return None if x is None else {facts.input_name: x.repeat(facts.batch or 1, 0)}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(built.SerializeToString())
        with _no_hints():
            run_quantization(
                str(source),
                str(target),
                Photos(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=_heavy_nodes(built),
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
            )
        return onnx.load(str(target))


@contextlib.contextmanager
def _no_hints() -> Iterator[None]:
    """Silences the root logger, through which ONNX Runtime advises to optimise the model first.

    Its first message would also give the root logger a handler, which prints dafast's own
    messages a second time.
    """
    root = logging.getLogger()
    silent = logging.NullHandler()
    root.addFilter(_is_error)
    root.addHandler(silent)
    try:
        yield
    finally:
        root.removeHandler(silent)
        root.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _heavy_nodes(built: Any) -> list[str]:
    """Names of the convolutions and products with constant weights, without the last two."""
    weights = {w.name: int(np.prod(w.dims)) for w in built.graph.initializer}
    for node in built.graph.node:
        if node.op_type == "Identity" and node.input[0] in weights:  # shared weights
            weights[node.output[0]] = weights[node.input[0]]
    names = []
    for i, node in enumerate(built.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
        heavy = node.op_type in ("Conv", "MatMul", "Gemm")
        if heavy and weights.get(node.input[1], 0) >= _LEAST_WEIGHTS:
            names.append(node.name)
    return names[:-2]
