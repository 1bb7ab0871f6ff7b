"""Writes a model to a folder: config.json and the weights as safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._version import __version__
from .._warnings import WeightsWarning, warn
from ..config import ModelConfig
from ..devices import on_meta, resolve_dtype
from ..files import whole_files
from .configurations import (
    METADATA_KEY,
    config_to_json,
    config_to_transformers,
    preprocessor_to_transformers,
)
from .conversion import LAYOUTS, from_official, position_codes, zoedepth_constants
from .hub import WEIGHT_FILES
from .identify import remedy
from .network import DepthNetwork
from .weight_files import SHOWN


def _size_in_bytes(size: int | str) -> int:
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B", size.strip(), re.IGNORECASE)
        if not match:
            raise ValueError(f"max_shard_size={size!r}: use an integer or e.g. '5GB'")
        size = int(float(match[1]) * 1000 ** " KMG".index(match[2].upper() or " "))
    if size <= 0:
        raise ValueError(f"max_shard_size={size!r} must be positive")
    return size


def _split(state: Mapping[str, Tensor], max_bytes: int) -> dict[str, dict[str, Tensor]]:
    """Shards of at most ``max_bytes`` by file name; a larger tensor has its own."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {
        f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard
        for i, shard in enumerate(shards, 1)
    }


def save_pretrained(
    model: DepthNetwork,
    folder: str | Path,
    *,
    layout: str = "official",
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes config.json and the weights as safetensors into a folder.

    An interrupted call never leaves a partial file. Weights of an earlier save in the same folder
    are replaced; other files stay.

    Args:
        model: On any device, in any dtype.
        folder: Created if missing.
        layout: ``"official"`` (the keys of the official checkpoints; `from_pretrained` reads it
            with every field of the configuration), ``"transformers"`` (transformers'
            ``DepthAnythingForDepthEstimation.from_pretrained`` reads it too), or for a model with
            ZoeDepth's bins ``"zoedepth"`` (the keys of the published metric files of V1), or for
            Depth Anything 3 ``"da3"`` (the keys of its published files, without "model."), or for
            a model with temporal modules ``"vda"`` (those of Video-Depth-Anything).
        dtype: Of the weights in the file; the model's own by default.
        max_shard_size: Largest file, in bytes or e.g. ``"5GB"``; larger weights are split into
            ``model-00001-of-00002.safetensors``, ... with an index.

    Raises:
        ValueError: If the layout, dtype or size does not exist, the layout has no place for the
            model, or the weights are not those of the model's configuration (weight_norm, LoRA).
        DiskFullError: If there is no room for the files; the earlier ones stay.
    """
    from safetensors.torch import save_file

    check_layout(layout, model.config)
    max_bytes = _size_in_bytes(max_shard_size)
    target = model.dtype if dtype is None else resolve_dtype(dtype, model.device)
    with on_meta():
        expected = DepthNetwork(model.config).state_dict()
    check_state(model, expected)
    state = {
        name: tensor.detach().to("cpu", target).contiguous()
        for name, tensor in from_official(model.state_dict(), LAYOUTS[layout]).items()
    }
    if layout == "zoedepth":
        state |= zoedepth_constants()
    if layout == "vda":
        state |= position_codes(state, model.config.temporal_frames)
    own = config_to_json(model.config, __version__)
    texts: dict[str, dict[str, Any]] = {"config.json": own}
    if layout == "transformers":
        dtype_name = str(target).removeprefix("torch.")
        texts["config.json"] = config_to_transformers(model.config, dtype_name)
        if not float(model.config.max_depth or 0).is_integer():
            warn(
                WeightsWarning,
                f"layout='transformers': transformers 5 takes only whole metres as max_depth, not "
                f"{model.config.max_depth:g}, and cannot load this folder; dafast can",
            )
        texts["preprocessor_config.json"] = preprocessor_to_transformers(model.config)
    shards = _split(state, max_bytes)
    if len(shards) > 1:
        texts["model.safetensors.index.json"] = _index(shards)

    metadata = {"format": "pt", METADATA_KEY: json.dumps(own)}
    with whole_files(folder) as temporary:
        for name, shard in shards.items():
            save_file(shard, temporary / name, metadata=metadata)
        for name, content in texts.items():
            text = json.dumps(content, indent=2) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")
    _remove_earlier(Path(folder), {*shards, *texts})


def check_layout(layout: str, config: ModelConfig) -> None:
    allowed = ("official", "transformers", "zoedepth", "da3", "vda")
    if layout not in allowed:
        *first, last = map(repr, allowed)
        raise ValueError(f"layout={layout!r}: use {', '.join(first)} or {last}")
    bins, sky, temporal = bool(config.bin_centers), config.sky_head, config.temporal_frames
    why = ""
    if layout == "zoedepth" and not bins:
        why = "has no metric bins"
    elif layout == "da3" and not sky:
        why = "has no sky head"
    elif layout == "vda" and not temporal:
        why = "has no temporal modules"
    elif layout == "transformers" and config.calibration:
        why = "has a calibration"
    elif layout == "transformers" and (bins or sky or temporal):
        why = "has metric bins" if bins else "has a sky head" if sky else "has temporal modules"
    elif layout == "transformers" and config.activation != (
        "sigmoid" if config.is_metric else "relu"
    ):
        why = f"has the output {config.activation!r}"
    if why:
        raise ValueError(f"layout={layout!r}: {config.name!r} {why}; use 'official'")


def check_state(model: nn.Module, expected: Mapping[str, Tensor]) -> None:
    """Checks before a save that the saved weights can be loaded again.

    Args:
        model: The model to save.
        expected: The state_dict of a model as its configuration makes it.

    Raises:
        ValueError: If the model has other weights; the message says how to make them ordinary.
    """
    state = model.state_dict()
    shapes = {key: tuple(value.shape) for key, value in expected.items()}
    extra = [
        key
        for key, value in state.items()
        if not isinstance(value, Tensor) or shapes.get(key) != tuple(value.shape)
    ]
    lost = [key for key in shapes if key not in state]
    if not extra and not lost:
        return
    way = remedy(extra) or "restore the parts that were replaced, or use torch.save"
    shown = ", ".join([*extra, *(f"no {key}" for key in lost)][:SHOWN])
    raise ValueError(
        f"the model has other weights than its configuration, so from_pretrained could not load "
        f"them ({shown}, {len(extra) + len(lost)} in all): {way}"
    )


def _index(shards: Mapping[str, dict[str, Tensor]]) -> dict[str, Any]:
    """The index of shards, by file name, as transformers writes it."""
    tensors = [tensor for shard in shards.values() for tensor in shard.values()]
    return {
        "metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors)},
        "weight_map": {key: name for name, shard in shards.items() for key in shard},
    }


def _remove_earlier(folder: Path, kept: set[str]) -> None:
    """Removes the weights of an earlier save, which could be read instead of the new ones."""
    stale = [*WEIGHT_FILES, *(p.name for p in folder.glob("model-*-of-*.safetensors"))]
    for name in stale:
        if name not in kept and name.startswith("model"):
            (folder / name).unlink(missing_ok=True)
