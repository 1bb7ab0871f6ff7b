"""Weights in and out: every published layout of Depth Anything, and our own folders."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._version import __version__
from ..config import PRESETS, ModelConfig, get_preset
from ..runtime import resolve_device, resolve_dtype
from .conversion import (
    ENCODER_LAYOUTS,
    LAYOUTS,
    Conversion,
    Layout,
    Shape,
    bin_centers,
    config_from_json,
    config_from_tensors,
    config_to_json,
    config_to_transformers,
    detect_layout,
    encoder_size,
    from_official,
    matching_preset,
    preprocessor_to_transformers,
    preset_from_name,
    to_official,
    zoedepth_constants,
)
from .hub import WEIGHT_FILES, HubError, HubOptions
from .network import DepthNetwork
from .weight_files import SHOWN, CheckpointError, Source, locate, read_file, unwrap

logger = logging.getLogger("dafast")

Network = TypeVar("Network", bound=DepthNetwork)

DINOV2_HUB_IDS = {
    "vits": "facebook/dinov2-small",
    "vitb": "facebook/dinov2-base",
    "vitl": "facebook/dinov2-large",
}
"""Where `load_encoder(model, "dinov2")` finds the published DINOv2 (Apache-2.0)."""

_METADATA_KEY = "dafast_config"
_warned_licenses: set[str] = set()


# --------------------------------------------------------------------------------------- loading


def _looks_like(tensors: Mapping[str, Tensor]) -> str:
    """What a foreign set of tensors seems to be."""

    def has(*parts: str) -> bool:
        return all(any(part in name for name in tensors) for part in parts)

    if has("motion_modules"):
        return "a Video Depth Anything checkpoint"
    layout = detect_layout(tensors, LAYOUTS)
    zoe = has("seed_bin_regressor") or has("conditional_log_binomial") or has("attractors.")
    if zoe and layout is None:
        return "a ZoeDepth metric checkpoint of another encoder"
    if layout is not None:
        return (
            f"a Depth Anything checkpoint ({encoder_size(tensors, layout)}, {layout.title} layout)"
        )
    if has("register_tokens"):
        return "a DINOv2 backbone with registers, which Depth Anything does not use"
    for prefix in ("", "pretrained.", "backbone."):
        inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        layout = detect_layout(inner, ENCODER_LAYOUTS)
        if layout is not None:
            return (
                f"a plain DINOv2 backbone ({encoder_size(inner, layout)}, {layout.title} layout) "
                "without a depth head; dafast.models.checkpoint.load_encoder reads such"
            )
    if has("pretrained.model.blocks.", "scratch."):
        return "a MiDaS checkpoint"
    if has("dpt.embeddings"):
        return "a DPT checkpoint of transformers"
    if has("image_encoder.", "mask_decoder."):
        return "a Segment Anything checkpoint"
    sample = ", ".join(f"{k} {tuple(v.shape)}" for k, v in list(tensors.items())[:3])
    return f"something else than Depth Anything: {len(tensors)} tensors such as {sample or 'none'}"


def _some(names: list[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _mismatch(
    label: str, wanted: str, found: str, conversion: Conversion, layout: Layout, hint: str = ""
) -> CheckpointError:
    """The one error for tensors that do not fit the model."""
    lines = [f"{label}: the weights do not fit {wanted}. It looks like {found}."]
    if conversion.missing:
        lines.append(f"  missing ({len(conversion.missing)}): {_some(conversion.missing)}")
    if conversion.unexpected:
        lines.append(f"  unexpected ({len(conversion.unexpected)}): {_some(conversion.unexpected)}")
    if conversion.wrong_shapes:
        shapes = [
            f"{name} {list(found_shape)} instead of {list(model_shape)}"
            for name, found_shape, model_shape in conversion.wrong_shapes
        ]
        lines.append(f"  wrong shapes ({len(shapes)}): {_some(shapes)}")
    lines.append(f"  names as in the {layout.title} layout{hint}")
    return CheckpointError("\n".join(lines))


def _read_config(source: Source) -> ModelConfig | None:
    if source.config is None:
        return None
    try:
        data = json.loads(source.config.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"a JSON object expected, not a {type(data).__name__}")
        return config_from_json(data, source.name)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{source.config}: {error}") from error


def _on_meta(cls: type[Network], config: ModelConfig) -> tuple[Network, dict[str, Shape]]:
    """A model without memory for its weights, and the shapes of these."""
    with torch.device("meta"):
        model = cls(config)
    return model, {key: tuple(t.shape) for key, t in model.state_dict().items()}


def _read_all(files: list[Path], label: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        data, extra = read_file(file)
        tensors.update(unwrap(data, str(file)))
        metadata.update(extra)
    for name in zoedepth_constants():
        tensors.pop(name, None)
    wrong = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if wrong:
        raise CheckpointError(f"{label}: not floating point (quantised?): {_some(wrong)}")
    return tensors, metadata


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
) -> Network:
    """Loads a model with trained weights.

    Args:
        cls: Class of the model.
        name_or_path: A preset (``"nano"`` comes with the package, the others are downloaded), a
            hub id (``"LiheYoung/depth-anything-small-hf"``), a file (``.pth``, ``.bin``,
            ``.safetensors``) or a folder, in the official layout or that of transformers, in
            one file or sharded. A preset's name wins over a file of that name: write ``./vits``.
        config: What the weights are, as a preset's name or a `ModelConfig`. By default the
            config.json beside the weights says it, else the preset or hub id, else the file's
            name if it is a published one, else the shapes of the tensors; these cannot tell V1
            from V2, and V1 is assumed then, with a warning.
        unnamed: What weights without any of these are, instead of assuming V1, if they fit.
        device: ``"auto"`` (CUDA, else MPS, else the CPU) or as `torch.device` takes it.
        dtype: ``"auto"`` (bfloat16 where the device has it in hardware, else float32),
            ``"float32"``, ``"bfloat16"``, ``"float16"`` or a `torch.dtype`.
        position_embedding: ``"official"`` or ``"transformers"``, in place of the
            configuration's; see `ModelConfig`.
        filename: Which file of the hub repository or folder to load.
        revision: Branch, tag or commit of the hub repository.
        cache_dir: In place of the hub's own cache.
        local_files_only: Whether to load from the cache alone, as ``HF_HUB_OFFLINE=1`` does.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: If the weights are not to be had, are unreadable, or are not those of
            such a model; also if a file holds code (only tensors are ever unpickled).
        ValueError: If ``config``, ``device`` or ``dtype`` is not one that exists.
    """
    target = resolve_device(device)
    target_dtype = resolve_dtype(dtype, target)
    given = get_preset(config) if isinstance(config, str) else config
    options = HubOptions(revision, cache_dir, local_files_only)
    try:
        source = locate(name_or_path, filename, options)
    except HubError as error:
        raise CheckpointError(str(error)) from error

    from_json = None if given else _read_config(source)
    tensors, metadata = _read_all(source.files, source.label)
    layout = detect_layout(tensors)
    if layout is None:
        raise CheckpointError(
            f"{source.label}: it looks like {_looks_like(tensors)}. Expected were the keys of an "
            "official Depth Anything (pretrained.*, depth_head.*) or of transformers (backbone.*, "
            f"neck.*, head.*); found: {_some(sorted(tensors))}"
        )
    chosen = given or from_json or _config_from_metadata(metadata, source.label)
    chosen = chosen or source.preset or preset_from_name(source.name)
    if chosen is None and unnamed is not None:
        shapes = _on_meta(cls, unnamed)[1]
        chosen = unnamed if to_official(tensors, layout, shapes).ok else None
    if chosen is None:
        chosen = _infer_config(tensors, layout, source.label)
    kind = bin_centers(tensors, layout)
    if layout is LAYOUTS["zoedepth"] and kind and chosen.is_metric:
        # A published file's name does not say which kind it has; its shapes do.
        chosen = dataclasses.replace(chosen, bin_centers=kind)
    if position_embedding is not None:
        chosen = dataclasses.replace(chosen, position_embedding=position_embedding)

    model, expected = _on_meta(cls, chosen)
    conversion = to_official(tensors, layout, expected)
    if not conversion.ok:
        hint = "" if given else "; config= says what the weights are, if this was guessed wrong"
        wanted = f"the configuration {chosen.name!r}"
        raise _mismatch(source.label, wanted, _looks_like(tensors), conversion, layout, hint)
    # Copies: a tensor may lie in the mapped file, which someone may write to.
    state = {
        key: tensor.to(target, target_dtype, copy=True).contiguous()
        for key, tensor in conversion.state.items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    _warn_of_license(chosen)
    return model.eval()


def _config_from_metadata(metadata: Mapping[str, str], label: str) -> ModelConfig | None:
    if _METADATA_KEY not in metadata:
        return None
    try:
        return config_from_json(json.loads(metadata[_METADATA_KEY]))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{label}: metadata {_METADATA_KEY}: {error}") from error


def _infer_config(tensors: Mapping[str, Tensor], layout: Layout, label: str) -> ModelConfig:
    try:
        config = config_from_tensors(tensors, layout)
    except KeyError as error:
        raise CheckpointError(
            f"{label}: no tensor {error}, so its size cannot be told; it looks like "
            f"{_looks_like(tensors)}"
        ) from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{label}: {error}; it looks like {_looks_like(tensors)}") from error
    if config.bin_centers:
        logger.warning(
            "%s: no config.json and no published file name; taken for a V1 metric model up to %g m "
            "by its shapes. Otherwise pass config=, e.g. config='metric-outdoor-vitl'.",
            label,
            config.max_depth,
        )
        return config
    logger.warning(
        "%s: no config.json and no published file name; taken for a relative V1 model (%s, taps "
        "%s) by its shapes. If it is a V2 or a metric model pass config=, e.g. config='v2-vits'.",
        label,
        config.name,
        config.out_indices,
    )
    return config


def _warn_of_license(config: ModelConfig) -> None:
    published = matching_preset(config)
    license = config.license or (published.license if published else "")
    if "NC" in license.split("-") and config.name not in _warned_licenses:
        _warned_licenses.add(config.name)
        logger.warning(
            "The published weights of %s are under %s: not for commercial use.",
            config.name,
            license,
        )


def load_encoder(
    model: DepthNetwork,
    name_or_path: str | Path = "dinov2",
    *,
    filename: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> None:
    """Loads a DINOv2 into the encoder of a model, in place; the head stays as it is.

    This is how training starts (both the teacher's and the student's).

    Args:
        model: Whose ``pretrained`` takes the weights, in its own dtype and on its device.
        name_or_path: ``"dinov2"`` (downloads the published one of the model's size), a hub id,
            a file (``dinov2_vits14_pretrain.pth``) or a folder, in DINOv2's own layout or that
            of transformers' ``Dinov2Model``. Or a Depth Anything in any form that
            `load_pretrained` takes: its encoder is loaded and its head left.
        filename: Which file of the hub repository or folder to load.
        revision: Branch, tag or commit of the hub repository.
        cache_dir: In place of the hub's own cache.
        local_files_only: Whether to load from the cache alone.

    Raises:
        CheckpointError: If the weights are not to be had, are unreadable, or are not those of
            a DINOv2 of this size (37x37 position embeddings for the published presets).
    """
    if name_or_path == "dinov2":
        config = model.config
        fitting = [
            hub_id
            for name, hub_id in DINOV2_HUB_IDS.items()
            if (PRESETS[name].embed_dim, PRESETS[name].num_layers, PRESETS[name].grid_size)
            == (config.embed_dim, config.num_layers, config.grid_size)
        ]
        if not fitting:
            raise CheckpointError(
                f"no published DINOv2 has the encoder of {config.name!r} (width "
                f"{config.embed_dim}, {config.num_layers} blocks, grid {config.grid_size})"
            )
        name_or_path = fitting[0]
    options = HubOptions(revision, cache_dir, local_files_only)
    try:
        source = locate(name_or_path, filename, options)
    except HubError as error:
        raise CheckpointError(str(error)) from error
    tensors, _ = _read_all(source.files, source.label)
    layout = detect_layout(tensors, ENCODER_LAYOUTS)
    whole = None if layout else detect_layout(tensors)
    if layout is None and whole is None:
        raise CheckpointError(
            f"{source.label}: it looks like {_looks_like(tensors)}; a DINOv2 was expected "
            f"(cls_token, blocks.0...., or embeddings.cls_token, encoder.layer.0....), or a Depth "
            f"Anything. Found: {_some(sorted(tensors))}"
        )
    expected = {f"pretrained.{k}": tuple(v.shape) for k, v in model.pretrained.state_dict().items()}
    if whole is not None:
        layout = whole
        encoder = ("pretrained.", "backbone.", "core.core.pretrained.")
        tensors = {name: value for name, value in tensors.items() if name.startswith(encoder)}
    assert layout is not None
    conversion = to_official(tensors, layout, expected)
    if not conversion.ok:
        wanted = f"the encoder of {model.config.name!r}"
        raise _mismatch(source.label, wanted, _looks_like(tensors), conversion, layout)
    state = {key.removeprefix("pretrained."): value for key, value in conversion.state.items()}
    model.pretrained.load_state_dict(state, strict=True)


# ---------------------------------------------------------------------------------------- saving


def _size_in_bytes(size: int | str) -> int:
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B", size.strip(), re.IGNORECASE)
        if not match:
            raise ValueError(f"max_shard_size={size!r}: use an integer or e.g. '5GB'")
        size = int(float(match[1]) * 1000 ** " KMG".index(match[2].upper() or " "))
    if size <= 0:
        raise ValueError(f"max_shard_size={size!r} must be positive")
    return size


def _split(state: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Greedy shards of at most ``max_bytes`` each, a larger tensor alone in its own."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    return shards


def _sync(path: Path) -> None:
    """Waits until the file is on disk, so that the rename never outruns its contents."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def save_pretrained(
    model: DepthNetwork,
    folder: str | Path,
    *,
    layout: str = "official",
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes config.json and the weights as safetensors into a folder.

    Every file is written beside its place and then renamed, so that none is ever half there.
    Weights of an earlier save in the same folder are replaced; other files are left alone.

    Args:
        model: Any device and dtype.
        folder: Made if it is not there.
        layout: ``"official"`` (the keys of the official checkpoints; `from_pretrained` reads it
            with every field of the configuration), ``"transformers"`` (transformers'
            ``DepthAnythingForDepthEstimation.from_pretrained`` reads it too), or for a model with
            ZoeDepth's bins ``"zoedepth"`` (the keys of the published metric files of V1).
        dtype: Of the weights in the file; the model's own by default.
        max_shard_size: Largest file, in bytes or e.g. ``"5GB"``; more is split into
            ``model-00001-of-00002.safetensors``, ... with an index.

    Raises:
        ValueError: If the layout, dtype or size is not one that exists, or the layout has no place
            for the model.
    """
    from safetensors.torch import save_file

    if layout not in ("official", "transformers", "zoedepth"):
        raise ValueError(f"layout={layout!r}: use 'official', 'transformers' or 'zoedepth'")
    if (layout == "transformers") if model.config.bin_centers else (layout == "zoedepth"):
        raise ValueError(
            f"layout={layout!r}: {model.config.name!r} has "
            f"{'metric' if model.config.bin_centers else 'no metric'} bins; use 'official'"
        )
    max_bytes = _size_in_bytes(max_shard_size)
    target = model.dtype if dtype is None else resolve_dtype(dtype, model.device)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    state = {
        name: tensor.to("cpu", target).contiguous()
        for name, tensor in from_official(state, LAYOUTS[layout]).items()
    }
    if layout == "zoedepth":
        state |= zoedepth_constants()
    own = config_to_json(model.config, __version__)
    extra: dict[str, dict[str, Any]] = {"config.json": own}
    if layout == "transformers":
        dtype_name = str(target).removeprefix("torch.")
        extra["config.json"] = config_to_transformers(model.config, dtype_name)
        extra["preprocessor_config.json"] = preprocessor_to_transformers(model.config)

    shards = _split(state, max_bytes)
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    else:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(t.numel() * t.element_size() for t in state.values())
        extra["model.safetensors.index.json"] = {
            "metadata": {"total_size": total},
            "weight_map": weight_map,
        }

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", _METADATA_KEY: json.dumps(own)}
    written: list[tuple[Path, Path]] = []  # temporary and final path
    try:
        for name, shard in zip(names, shards, strict=True):
            written.append((folder / f".{name}.{os.getpid()}.tmp", folder / name))
            written[-1][0].touch()  # save_file alone would let only the owner read it
            mode = written[-1][0].stat().st_mode
            save_file(shard, written[-1][0], metadata=metadata)
            written[-1][0].chmod(mode)
        for name, content in extra.items():
            written.append((folder / f".{name}.{os.getpid()}.tmp", folder / name))
            text = json.dumps(content, indent=2) + "\n"
            written[-1][0].write_text(text, encoding="utf-8")
        for temporary, _ in written:
            _sync(temporary)
        for temporary, final in written:
            os.replace(temporary, final)
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)
    kept = {final.name for _, final in written}
    stale = [*WEIGHT_FILES, *(p.name for p in folder.glob("model-*-of-*.safetensors"))]
    for name in stale:
        if name not in kept and name.startswith("model"):
            (folder / name).unlink(missing_ok=True)
