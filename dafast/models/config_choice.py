"""Decides which configuration the weights of a file have.

The weights say neither which blocks the decoder reads (V1 and V2 differ in that) nor whether the
output is relative or metric. So a config.json, the metadata of a file, a preset's name, the digest
of a published file or the names of the file and its folders have to say it; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .._warnings import WeightsWarning, warn
from ..config import PRESETS, ModelConfig
from ..files import explain
from .configurations import (
    METADATA_KEY,
    config_from_json,
    config_from_tensors,
    is_model_config,
    matching_preset,
)
from .conversion import STRUCTURE, Layout, has_sky, has_temporal
from .identify import looks_like
from .names import NameClaim, preset_from_name, read_names
from .sources import Source
from .weight_files import CheckpointError, Weights
from .zoo import by_content

_SIZES = (
    *(name for name in STRUCTURE if name not in ("out_indices", "num_heads")),
    "bin_centers",
    "temporal_frames",
)
_HOW_TO_SAY = (
    "The weights say neither which blocks the decoder reads nor whether the output is metric. Say "
    "it with config= (--config on the command line): config='v2-{0}' or '{0}' (V1) for relative "
    "disparity, 'v2-metric-hypersim-{0}' for metres up to 20, 'v2-metric-vkitti-{0}' up to 80; or "
    'with a config.json next to the file, e.g. {{"encoder": "{0}", "max_depth": 50}}'
)
_HOW_TO_SAY_CUSTOM = (
    "The weights say neither which blocks the decoder reads nor whether the output is metric. Say "
    "it with config= (a ModelConfig with out_indices and max_depth) or with a config.json next to "
    "the file"
)


_DA3 = (
    "Depth Anything 3, and neither a config.json with its model_name nor a published name says "
    "whether it is DA3MONO-LARGE (relative depth, config='da3mono-vitl') or DA3METRIC-LARGE "
    "(metres, config='da3metric-vitl')"
)
_VDA = (
    "Video-Depth-Anything, and no published name says whether it is the relative model "
    "(config='vda-{0}') or the metric one (config='vda-metric-{0}')"
)


def choose_config(
    source: Source, weights: Weights, layout: Layout, unnamed: ModelConfig | None = None
) -> ModelConfig:
    """The configuration of weights for which the caller named none.

    Args:
        source: Where the weights are from.
        weights: The tensors, and what is saved with them.
        layout: Their layout.
        unnamed: The configuration of weights that neither a file nor a name describes.

    Raises:
        CheckpointError: If nothing says it, or a config.json is not readable.
    """
    claim = read_names(source.names)
    described = _from_config_json(source, weights, layout)
    described = described or _from_metadata(weights.metadata, source.label)
    if described is not None:
        _warn_of_contradiction(described, source, weights, claim)
        return described
    if source.preset is not None:
        return source.preset
    published = by_content(source.files[0]) if len(source.files) == 1 else None
    if published is not None:
        return published.config
    sizes = _sizes(weights, layout, source.label)
    if has_sky(weights.tensors, layout):
        return _named_preset(source.names, sizes, source.label, _DA3)
    if has_temporal(weights.tensors, layout):
        return _named_preset(source.names, sizes, source.label, _VDA.format(_encoder(sizes)))
    if sizes.bin_centers:
        return _with_bins(claim, sizes, source.label)
    if unnamed is not None and not _is_decided(claim, weights, unnamed):
        return unnamed
    if weights.is_training_state:
        raise CheckpointError(
            f"{source.label}: a checkpoint of a training run, without the run's export/config.json "
            "that says which model it is: load the run's export/ folder, or pass config="
        )
    return _from_names(claim, weights, sizes, source.label)


def _from_config_json(source: Source, weights: Weights, layout: Layout) -> ModelConfig | None:
    if source.config is None:
        return None
    try:
        data = json.loads(source.config.read_text(encoding="utf-8-sig"))
        if not source.own_config and not is_model_config(data):
            text = f"{source.config}: describes no Depth Anything and is not used"
            warn(WeightsWarning, text)
            return None
        if not isinstance(data, dict):
            raise ValueError(f"a JSON object expected, not a {type(data).__name__}")
        config = config_from_json(data, source.names)
    except (ValueError, TypeError, OSError) as error:
        if not source.own_config and isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            text = f"{source.config}: no readable JSON ({explain(error)}); it is not used"
            warn(WeightsWarning, text)
            return None
        raise CheckpointError(f"{source.config}: {error}") from error
    if not source.own_config:
        sizes = _sizes(weights, layout, source.label)
        if not _same_sizes(sizes, config):
            warn(
                WeightsWarning,
                f"{source.config}: describes a model of another size ({config.name}) than "
                f"{source.label} has; it is not used",
            )
            return None
    return config


def _from_metadata(metadata: Mapping[str, str], label: str) -> ModelConfig | None:
    if METADATA_KEY not in metadata:
        return None
    try:
        data: Any = json.loads(metadata[METADATA_KEY])
        return config_from_json(data)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{label}: metadata {METADATA_KEY}: {error}") from error


def _warn_of_contradiction(
    config: ModelConfig, source: Source, weights: Weights, claim: NameClaim
) -> None:
    """Warns where a config.json says relative and something else says metric."""
    if config.is_metric or claim.relative:
        return
    own = read_names(source.names[:1])
    sign = f"its name says {own.metric!r}" if own.metric else ""
    if weights.scores and not sign:
        sign = f"{', '.join(weights.scores)} is saved with the weights"
    if sign:
        warn(
            WeightsWarning,
            f"{source.label}: {sign}, but its configuration is that of a relative model. If the "
            "model is metric, its output is wrong: pass config= (--config) with its largest depth.",
        )


def _sizes(weights: Weights, layout: Layout, label: str) -> ModelConfig:
    try:
        return config_from_tensors(weights.tensors, layout)
    except KeyError as error:
        raise CheckpointError(
            f"{label}: without the tensor {error} the size of the model is unknown; it looks like "
            f"{looks_like(weights)}"
        ) from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{label}: {error}; it looks like {looks_like(weights)}") from error


def _is_decided(claim: NameClaim, weights: Weights, unnamed: ModelConfig) -> bool:
    """Whether names describe weights without bins, or contradict the expected model."""
    if claim.preset is not None and (claim.preset.is_metric or not weights.scores):
        return True
    if _says_metric(claim, weights):
        return not unnamed.is_metric or bool(claim.data)
    return claim.version in ("v1", "v2")


def _says_metric(claim: NameClaim, weights: Weights) -> bool:
    return bool(claim.metric or weights.scores) and not claim.relative


def _same_sizes(sizes: ModelConfig, config: ModelConfig) -> bool:
    return all(getattr(sizes, name) == getattr(config, name) for name in _SIZES)


def _with_bins(claim: NameClaim, sizes: ModelConfig, label: str) -> ModelConfig:
    """ZoeDepth's bins, which only metric models of V1 have; the names may say the largest depth."""
    if claim.preset is not None and claim.preset.bin_centers:
        return claim.preset
    depths = {"indoor": 10.0, "outdoor": 80.0}
    place = claim.place or {"nyu": "indoor", "kitti": "outdoor"}.get(claim.metric, "")
    config = dataclasses.replace(sizes, max_depth=depths.get(place, sizes.max_depth))
    config = matching_preset(config) or config
    warn(
        WeightsWarning,
        f"{label}: no config.json and no published file name; taken for a V1 metric model up to "
        f"{config.max_depth:g} m by its bins. The largest depth is not in the weights: pass "
        "config= (--config) if it is another, e.g. config='metric-outdoor-vitl'.",
    )
    return config


def _named_preset(names: Sequence[str], sizes: ModelConfig, label: str, why: str) -> ModelConfig:
    """The relative or the metric model of a family in which only the names of files say which.

    Raises:
        CheckpointError: If no name is that of a published one with these sizes; with ``why``.
    """
    for preset in map(preset_from_name, names):
        if preset is not None and _same_sizes(sizes, preset):
            return preset
    raise CheckpointError(
        f"{label}: {why}, which have the same weights' names and shapes. Say it with config= "
        "(--config on the command line)"
    )


def _encoder(sizes: ModelConfig) -> str:
    """Name of the published encoder with these sizes, or ""."""
    for name in ("vits", "vitb", "vitl"):
        preset = PRESETS[name]
        if (preset.embed_dim, preset.num_layers) == (sizes.embed_dim, sizes.num_layers):
            return name
    return ""


def _from_names(claim: NameClaim, weights: Weights, sizes: ModelConfig, label: str) -> ModelConfig:
    """Chooses V1 or V2, relative or metric, by the names of a model without bins.

    Raises:
        CheckpointError: If they say neither V1 nor V2, or say metric without the largest depth.
    """
    if claim.preset is not None and (claim.preset.is_metric or not weights.scores):
        return claim.preset
    encoder = _encoder(sizes)
    how = _HOW_TO_SAY.format(encoder) if encoder else _HOW_TO_SAY_CUSTOM
    if claim.data and encoder and claim.version in ("v2", ""):
        config = _v2(sizes, encoder, PRESETS[f"v2-metric-{claim.data}-{encoder}"].max_depth)
        warn(
            WeightsWarning,
            f"{label}: its name says V2 metric ({claim.data}); it is read as {config.name!r}, for "
            f"depths up to {config.max_depth:g} m, which the weights do not say. Otherwise pass "
            "config= (--config).",
        )
        return config
    if _says_metric(claim, weights):
        sign = f"its name says {claim.metric!r}" if claim.metric else ""
        sign = sign or f"{', '.join(weights.scores)} is saved with the weights"
        raise CheckpointError(f"{label}: {sign}: probably a metric model. {how}.")
    if _same_sizes(sizes, PRESETS["nano"]):
        config = PRESETS["nano"]
        version = "no config.json and no published file name, but nano's size"
    elif claim.version == "v1":
        config, version = sizes, "its name says V1"
    elif claim.version == "v2" and encoder:
        config, version = _v2(sizes, encoder, None), "its name says V2"
    else:
        said = f"its name says {claim.version}" if claim.version else "no config.json, no metadata"
        said += "" if claim.version else " and no name that says V1 or V2"
        raise CheckpointError(f"{label}: {said}. {how}.")
    metric = f"config='v2-metric-vkitti-{encoder}'" if encoder else "a ModelConfig with max_depth"
    warn(
        WeightsWarning,
        f"{label}: {version}; it is read as the relative model {config.name!r}, whose decoder "
        f"reads the blocks {config.out_indices}. The weights do not say that: pass config= "
        f"(--config) if it is another, for a metric one e.g. {metric}.",
    )
    return config


def _v2(sizes: ModelConfig, encoder: str, max_depth: float | None) -> ModelConfig:
    config = dataclasses.replace(
        sizes,
        name="custom",
        hub_id="",
        hub_file="",
        out_indices=PRESETS[f"v2-{encoder}"].out_indices,
        output_align_corners=True,
        max_depth=max_depth,
    )
    return matching_preset(config) or config
