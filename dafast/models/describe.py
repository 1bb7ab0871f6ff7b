"""Describes a file with weights: `dafast models info`."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..config import ModelConfig
from ..devices import on_meta
from . import zoo
from .checkpoint import read_weights
from .config_choice import choose_config
from .configurations import matching_preset
from .conversion import LAYOUTS, detect_layout, encoder_size, to_official
from .identify import check_floating, looks_like, other_network
from .network import DepthNetwork
from .weight_files import CheckpointError


@dataclass
class Description:
    """The description of weights.

    Attributes:
        files: Paths of the weights.
        looks_like: What the tensors seem to be, in words.
        layout: Name of the keys' layout; "" if it is no Depth Anything.
        encoder: ``"vits"``, ``"vitb"``, ``"vitl"``, or width and depth.
        config: The configuration that `from_pretrained` would choose; None if it would refuse.
        problem: Why it would refuse, or "".
        dtypes: Number of tensors by dtype.
        parameters: Number of values in all tensors.
        license: Of the published model with this configuration, or "".
        license_note: What the sources say about the license.
        extra: Keys that the model has no place for.
        missing: Keys that the file lacks.
    """

    files: list[str]
    looks_like: str
    layout: str = ""
    encoder: str = ""
    config: ModelConfig | None = None
    problem: str = ""
    dtypes: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    license: str = ""
    license_note: str = ""
    extra: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def describe(name_or_path: str | Path) -> Description:
    """Reads and describes weights, also if `from_pretrained` would refuse them.

    Args:
        name_or_path: A file, a folder, a hub id, or an id or alias of `dafast.models.zoo`, as for
            `from_pretrained`.

    Raises:
        CheckpointError: If the file is missing or unreadable.
    """
    source, weights = read_weights(name_or_path)
    tensors = weights.tensors
    result = Description([str(file) for file in source.files], looks_like(weights))
    result.dtypes = dict(
        Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    )
    result.parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    layout = detect_layout(tensors)
    if layout is None or other_network(weights):
        result.problem = f"it looks like {result.looks_like}"
        return result
    result.layout = next(name for name, each in LAYOUTS.items() if each is layout)
    result.encoder = encoder_size(tensors, layout)
    try:
        config = choose_config(source, weights, layout)
    except CheckpointError as error:
        result.problem = str(error)
        return result
    result.config = config
    with on_meta():
        state = DepthNetwork(config).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    conversion = to_official(tensors, layout, shapes)
    result.extra, result.missing = conversion.unexpected, conversion.missing
    try:
        check_floating(source.label, conversion.state, result.looks_like)
    except CheckpointError as error:
        result.problem = str(error)
    if not conversion.ok:
        result.problem = f"the weights do not fit the configuration {config.name!r}"
    entry = zoo.find(config.name) or zoo.find((matching_preset(config) or config).name)
    result.license = config.license
    if entry is not None:
        result.license = result.license or entry.config.license
        result.license_note = entry.license_note
    return result
