"""Loads weights in every published layout of Depth Anything, and in dafast's own folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._warnings import LicenseWarning, WeightsWarning, warn
from ..config import PRESETS, ModelConfig, get_preset
from ..devices import on_meta, resolve_device, resolve_dtype, warn_if_slow
from ..layers.temporal import position_code
from .config_choice import choose_config
from .configurations import matching_preset
from .conversion import (
    CODE,
    ENCODER_LAYOUTS,
    LAYOUTS,
    Layout,
    Shape,
    bin_centers,
    detect_layout,
    to_official,
    zoedepth_constants,
)
from .hub import HubError, HubOptions
from .identify import check_floating, looks_like, mismatch, other_network, some, unknown
from .mapped_memory import mapped_memory, release_pages
from .network import DepthNetwork
from .saving import save_pretrained
from .sources import Source, locate
from .weight_files import CheckpointError, Weights, read_file, unwrap

__all__ = ["CheckpointError", "load_encoder", "load_pretrained", "save_pretrained"]

Network = TypeVar("Network", bound=DepthNetwork)

DINOV2_HUB_IDS = {
    "vits": "facebook/dinov2-small",
    "vitb": "facebook/dinov2-base",
    "vitl": "facebook/dinov2-large",
}
"""Where `load_encoder(model, "dinov2")` finds the published DINOv2 (Apache-2.0)."""

_warned_licenses: set[str] = set()


def load_pretrained(
    cls: type[Network],
    name_or_path: str | Path,
    *,
    config: str | ModelConfig | None = None,
    unnamed: ModelConfig | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    position_embedding: str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
) -> Network:
    """Loads a model with trained weights.

    Args:
        cls: Class of the model.
        name_or_path: A preset (the package contains ``"nano"``, the others are downloaded), a hub
            id (``"LiheYoung/depth-anything-small-hf"``), a file (``.pth``, ``.bin``,
            ``.safetensors``, ``.ckpt``) or a folder, in the official layout or that of
            transformers, in one file or sharded. The name of a preset has precedence over a file
            of the same name: write ``./vits`` for the file.
        config: The configuration of the weights, as a preset's name or a `ModelConfig`. By
            default it is that of a config.json next to the weights, else of the file's metadata,
            else of the preset or hub id, else what the names of file and folders say
            (docs/checkpoints.md). The weights do not tell V1 from V2 nor relative from metric, so
            names that do not say V1 or V2 are an error, and so are names that say metric without
            a known largest depth.
        unnamed: The configuration of weights that nothing describes; without it they are an error.
        device: ``"auto"`` (CUDA, else MPS, else the CPU) or a value that `torch.device` takes.
        dtype: ``"auto"`` (bfloat16 where the device has it in hardware, else float32),
            ``"float32"``, ``"bfloat16"``, ``"float16"`` or a `torch.dtype`.
        position_embedding: ``"official"`` or ``"transformers"``; replaces the value of the
            configuration, see `ModelConfig`.
        filename: Which file of the hub repository or folder to load.
        revision: Branch, tag or commit of the hub repository.
        cache_dir: Replaces the hub's own cache.
        local_files_only: Whether to load only from the cache, as ``HF_HUB_OFFLINE=1`` does.
        token: Token of the hub for private and gated repositories; by default that of ``HF_TOKEN``
            or ``hf auth login``, with ``False`` none.
        force_download: Whether to download files that are in the cache again.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: If the weights are missing or unreadable, do not belong to this model, or
            nothing says their configuration; also if a file holds code (only tensors and plain
            containers are unpickled).
        ValueError: If ``config``, ``device`` or ``dtype`` does not exist.
    """
    target = resolve_device(device)
    target_dtype = resolve_dtype(dtype, target)
    warn_if_slow(target_dtype, target)
    given = get_preset(config) if isinstance(config, str) else config
    options = HubOptions(revision, cache_dir, local_files_only, token, force_download)
    source, weights = read_weights(name_or_path, filename, options)
    layout = detect_layout(weights.tensors)
    if layout is None or other_network(weights):
        expected = (
            "a Depth Anything V1 or V2 with the official keys (pretrained.*, depth_head.*) or "
            "those of transformers (backbone.*, neck.*, head.*)"
        )
        raise unknown(source.label, weights, expected)
    chosen = given or choose_config(source, weights, layout, unnamed)
    kind = bin_centers(weights.tensors, layout)
    if layout is LAYOUTS["zoedepth"] and kind and chosen.is_metric:
        # The kind of bins is not in the name of a published file; the shapes have it.
        chosen = dataclasses.replace(chosen, bin_centers=kind)
    if position_embedding is not None:
        chosen = dataclasses.replace(chosen, position_embedding=position_embedding)

    with on_meta():
        model = cls(chosen)
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    hint = "" if given else "; pass config= if this configuration is not that of the weights"
    state = _fit(source, weights, layout, shapes, f"the configuration {chosen.name!r}", hint)
    # Copies: a tensor may be in a mapped file, which another process may write to.
    mapped = mapped_memory(source.files)
    for key, tensor in state.items():
        state[key] = tensor.to(target, target_dtype, copy=True).contiguous()
        release_pages(tensor, mapped)
    model.load_state_dict(state, strict=True, assign=True)
    model.loaded_from = str(name_or_path)
    _warn_of_license(chosen)
    return model.eval()


def read_weights(
    name_or_path: str | Path, filename: str | None = None, options: HubOptions | None = None
) -> tuple[Source, Weights]:
    """Finds the files that the user named and reads the tensors of their network.

    Raises:
        CheckpointError: If they are missing or unreadable.
    """
    try:
        source = locate(name_or_path, filename, options or HubOptions())
    except HubError as error:
        raise CheckpointError(str(error)) from error
    data: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for file in source.files:
        entries, extra = read_file(file)
        data.update(entries)
        metadata.update(extra)
    weights = unwrap(data, source.label)
    weights.metadata = metadata
    for name in zoedepth_constants():
        weights.tensors.pop(name, None)
    _drop_position_codes(source.label, weights)
    return source, weights


def _drop_position_codes(label: str, weights: Weights) -> None:
    """Removes the position codes of Video-Depth-Anything if their values are right.

    Raises:
        CheckpointError: If their values differ.
    """
    for name in [name for name in weights.tensors if name.endswith(CODE)]:
        code = weights.tensors.pop(name)
        expected = position_code(*code.shape[-2:]) if code.ndim == 3 else None
        if expected is None or not torch.allclose(code[0].float(), expected, atol=1e-2):
            raise CheckpointError(
                f"{label}: {name} {tuple(code.shape)} has other values than the sinusoids of "
                "Video-Depth-Anything, which is not supported"
            )


def _fit(
    source: Source,
    weights: Weights,
    layout: Layout,
    shapes: Mapping[str, Shape],
    wanted: str,
    hint: str = "",
) -> dict[str, Tensor]:
    """The weights by official key.

    Raises:
        CheckpointError: If they are not exactly those of the shapes, or are not floating point.
    """
    conversion = to_official(weights.tensors, layout, shapes)
    if not conversion.ok:
        found = looks_like(weights)
        raise mismatch(source.label, wanted, found, conversion, layout, hint)
    check_floating(source.label, conversion.state, looks_like(weights))
    if weights.left_out:
        warn(
            WeightsWarning,
            f"{source.label}: {len(weights.left_out)} tensors outside of {weights.place!r} are not "
            f"read: {some(weights.left_out)}",
        )
    return conversion.state


def _warn_of_license(config: ModelConfig) -> None:
    published = matching_preset(config)
    license = config.license or (published.license if published else "")
    if "NC" in license.split("-") and config.name not in _warned_licenses:
        _warned_licenses.add(config.name)
        text = f"The published weights of {config.name} are under {license}"
        warn(LicenseWarning, f"{text}: not for commercial use.")


def load_encoder(
    model: DepthNetwork,
    name_or_path: str | Path = "dinov2",
    *,
    filename: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
) -> None:
    """Loads a DINOv2 into the encoder of a model, in place; the head does not change.

    Training starts with it, of the teacher and of the student.

    Args:
        model: Its ``pretrained`` takes the weights, in its own dtype and on its device.
        name_or_path: ``"dinov2"`` (downloads the published one of the model's size), a hub id,
            a file (``dinov2_vits14_pretrain.pth``) or a folder, in DINOv2's own layout or that
            of transformers' ``Dinov2Model``. Or a Depth Anything in any form that
            `load_pretrained` takes, of which only the encoder is loaded.
        filename: Which file of the hub repository or folder to load.
        revision: Branch, tag or commit of the hub repository.
        cache_dir: Replaces the hub's own cache.
        local_files_only: Whether to load only from the cache.
        token: As for `load_pretrained`.
        force_download: As for `load_pretrained`.

    Raises:
        CheckpointError: If the weights are missing or unreadable, or are not those of a DINOv2 of
            this size (37x37 position embeddings for the published presets).
    """
    if name_or_path == "dinov2":
        name_or_path = published_dinov2(model.config)
    options = HubOptions(revision, cache_dir, local_files_only, token, force_download)
    source, weights = read_weights(name_or_path, filename, options)
    layout = detect_layout(weights.tensors, ENCODER_LAYOUTS) or detect_layout(weights.tensors)
    if layout is None or other_network(weights):
        expected = (
            "a DINOv2 (cls_token, blocks.0.*, or embeddings.cls_token, encoder.layer.0.*) or a "
            "Depth Anything"
        )
        raise unknown(source.label, weights, expected)
    if layout in LAYOUTS.values():
        encoder = ("pretrained.", "backbone.", "core.core.pretrained.")
        weights.tensors = {k: v for k, v in weights.tensors.items() if k.startswith(encoder)}
    shapes = {f"pretrained.{k}": tuple(v.shape) for k, v in model.pretrained.state_dict().items()}
    state = _fit(source, weights, layout, shapes, f"the encoder of {model.config.name!r}")
    state = {key.removeprefix("pretrained."): value for key, value in state.items()}
    model.pretrained.load_state_dict(state, strict=True)


def published_dinov2(config: ModelConfig) -> str:
    """Hub id of the published DINOv2 of a model's size."""
    for name, hub_id in DINOV2_HUB_IDS.items():
        preset = PRESETS[name]
        if (preset.embed_dim, preset.num_layers, preset.grid_size) == (
            config.embed_dim,
            config.num_layers,
            config.grid_size,
        ):
            return hub_id
    raise CheckpointError(
        f"no published DINOv2 has the encoder of {config.name!r} (width {config.embed_dim}, "
        f"{config.num_layers} blocks, grid {config.grid_size})"
    )
