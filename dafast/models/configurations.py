"""Configurations read from a config.json or the shapes of tensors, and written to a config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..config import PRESETS, ModelConfig
from .conversion import STRUCTURE, Layout, Shape, bin_centers, has_temporal
from .names import read_names

METADATA_KEY = "dafast_config"
"""Entry of a safetensors file's metadata that holds the config.json of dafast."""

_TEMPORAL_FRAMES = 32  # of Video-Depth-Anything; the weights do not say it
_HEAD_DIM = 64  # of every published DINOv2 without a SwiGLU


_OUTPUT = (
    "max_depth",
    "bin_centers",
    "activation",
    "quantity",
    "focal_length",
    "sky_head",
    "norm_eps",
    "temporal_frames",
)
"""What distinguishes networks of the same `STRUCTURE`."""


def matching_preset(config: ModelConfig) -> ModelConfig | None:
    """The preset with the same network (sizes, taps, output), or None."""
    for preset in PRESETS.values():
        if all(getattr(preset, name) == getattr(config, name) for name in (*STRUCTURE, *_OUTPUT)):
            return preset
    return None


def config_from_tensors(tensors: Mapping[str, Tensor], layout: Layout) -> ModelConfig:
    """Reads the sizes of a network from the shapes of its weights.

    The shapes say neither which blocks the decoder reads nor whether the output of V2 is metric:
    the result has V1's blocks (the last four) and a relative output. With ZoeDepth's bins the
    largest depth is that of the published model with bins of this kind.

    Raises:
        KeyError: If a tensor that this needs is missing.
        ValueError: If the sizes do not make a model.
    """

    def shape(key: str) -> Shape:
        return tuple(tensors[layout.names(key)[0]].shape)

    layers = 0
    while layout.names(f"pretrained.blocks.{layers}.norm1.weight")[0] in tensors:
        layers += 1
    kind = bin_centers(tensors, layout)
    embed_dim = shape("pretrained.cls_token")[-1]
    grid = round((shape("pretrained.pos_embed")[1] - 1) ** 0.5)
    patch = shape("pretrained.patch_embed.proj.weight")[-1]
    config = ModelConfig(
        name="custom",
        embed_dim=embed_dim,
        num_layers=layers,
        num_heads=max(1, embed_dim // _HEAD_DIM),
        features=shape("depth_head.scratch.layer1_rn.weight")[0],
        out_channels=tuple(shape(f"depth_head.projects.{i}.weight")[0] for i in range(4)),  # type: ignore[arg-type]
        out_indices=tuple(range(layers - 4, layers)),  # type: ignore[arg-type]
        image_size=grid * patch,
        grid_size=grid,
        patch_size=patch,
        max_depth={"": None, "softplus": 10.0, "normed": 80.0}[kind],
        bin_centers=kind,
        temporal_frames=_TEMPORAL_FRAMES if has_temporal(tensors, layout) else 0,
    )
    return matching_preset(config) or config


# Defaults of transformers for entries that its config.json leaves out: `DepthAnythingConfig` and
# `Dinov2Config` of transformers 4.38 to 5.23.
_DEPTH_ANYTHING_DEFAULTS: dict[str, Any] = {
    "patch_size": 14,
    "reassemble_factors": [4, 2, 1, 0.5],
    "neck_hidden_sizes": [48, 96, 192, 384],
    "fusion_hidden_size": 64,
    "head_in_index": -1,
    "head_hidden_size": 32,
    "depth_estimation_type": "relative",
    "max_depth": 1,
}
_NO_BACKBONE_CONFIG: dict[str, Any] = {
    "image_size": 518,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "out_indices": [9, 10, 11, 12],
    "reshape_hidden_states": False,
}
_DINOV2_DEFAULTS: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "apply_layernorm": True,
    "reshape_hidden_states": True,
}
_DEPTH_ANYTHING_FIXED = ("patch_size", "reassemble_factors", "head_in_index", "head_hidden_size")
_DINOV2_FIXED = (
    "model_type",
    "mlp_ratio",
    "hidden_act",
    "layer_norm_eps",
    "num_channels",
    "qkv_bias",
    "use_swiglu_ffn",
    "apply_layernorm",
)
# Fields that only dafast has; kept under "dafast" in a transformers config.json.
_EXTRA = (
    "name",
    "image_size",
    "output_align_corners",
    "position_embedding",
    "hub_id",
    "hub_file",
    "license",
    "mean",
    "std",
)


def config_from_json(data: Mapping[str, Any], names: Sequence[str] = ()) -> ModelConfig:
    """Reads a config.json of dafast, of the official repositories or of transformers.

    Args:
        data: The parsed file.
        names: Names of the weights' file and of the folders or the repository it is in; they tell
            V2 from V1 where the official config.json does not.

    Raises:
        ValueError: If it describes another kind of model, or a variant that is not supported.
    """
    if data.get("model_type") == "dafast":
        model = data.get("model")
        if not isinstance(model, dict):
            raise ValueError("this version cannot read config.json: no 'model'")
        try:
            return ModelConfig.from_dict(model)
        except ValueError as error:
            raise ValueError(f"this version cannot read config.json: {error}") from error
    if data.get("model_type") == "depth_anything":
        return _config_from_transformers(data)
    if "encoder" in data:
        return _config_from_official(data, names)
    if is_da3(data):
        return _config_from_da3(data)
    named = read_names(names).preset
    if named is not None and named.sky_head:
        return named  # a config.json of Depth Anything 3 without the name of the model
    kind = data.get("model_type") or data.get("architectures") or sorted(data)[:8]
    raise ValueError(f"config.json describes no Depth Anything model but {kind!r}")


def is_model_config(data: Any) -> bool:
    """Whether a parsed config.json means to describe a Depth Anything, supported or not."""
    return isinstance(data, dict) and (
        data.get("model_type") in ("dafast", "depth_anything") or "encoder" in data or is_da3(data)
    )


def is_da3(data: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of Depth Anything 3's repositories."""
    return str(data.get("model_name", "")).lower().startswith("da3")


def _config_from_da3(data: Mapping[str, Any]) -> ModelConfig:
    models = {"da3mono-large": "da3mono-vitl", "da3metric-large": "da3metric-vitl"}
    name = str(data["model_name"]).lower()
    if name not in models:
        raise ValueError(f"config.json: model_name {name!r}; supported: {', '.join(models)}")
    return PRESETS[models[name]]


def _config_from_official(data: Mapping[str, Any], names: Sequence[str]) -> ModelConfig:
    encoder = data["encoder"]
    if encoder not in ("vits", "vitb", "vitl"):
        raise ValueError(f"config.json: encoder {encoder!r}; supported: vits, vitb, vitl")
    if data.get("use_bn") or data.get("use_clstoken"):
        raise ValueError("config.json: use_bn and use_clstoken are not supported; none published")
    claim = read_names(names)
    if claim.preset is not None and claim.preset.name.endswith(encoder):
        preset = claim.preset
    elif data.get("max_depth") is not None or claim.version == "v2":
        preset = PRESETS[f"v2-{encoder}"]  # only V2's constructor takes a max_depth
    else:
        preset = PRESETS[encoder]
    config = dataclasses.replace(
        preset,
        features=data.get("features", preset.features),
        out_channels=data.get("out_channels", preset.out_channels),
        max_depth=data.get("max_depth", preset.max_depth),
    )
    return matching_preset(config) or dataclasses.replace(
        config, name="custom", hub_id="", hub_file=""
    )


def _config_from_transformers(data: Mapping[str, Any]) -> ModelConfig:
    backbone = data.get("backbone_config") or _NO_BACKBONE_CONFIG
    top = {**_DEPTH_ANYTHING_DEFAULTS, **data}
    if "depth_estimation_type" not in data and "depth_estimation" in data:
        top["depth_estimation_type"] = data["depth_estimation"]  # so in a published config.json
    vit = {**_DINOV2_DEFAULTS, **backbone}
    wrong = [
        f"{key}={values[key]!r} (only {defaults[key]!r})"
        for values, defaults, keys in (
            (top, _DEPTH_ANYTHING_DEFAULTS, _DEPTH_ANYTHING_FIXED),
            (vit, _DINOV2_DEFAULTS, _DINOV2_FIXED),
        )
        for key in keys
        if values[key] != defaults[key]
    ]
    if wrong:
        raise ValueError("config.json has settings that are not supported: " + ", ".join(wrong))
    indices = backbone.get("out_indices")
    if indices is None:  # older files have only the names
        stages = backbone.get("out_features") or []
        indices = [int(stage.removeprefix("stage")) for stage in stages]
    metric = top["depth_estimation_type"] == "metric"
    if not metric and top["max_depth"] not in (None, 1):
        # The documentation says that it is ignored, the code multiplies by it.
        raise ValueError(
            f"config.json: a relative model with max_depth={top['max_depth']!r}; only 1 is read"
        )
    patch = vit["patch_size"]
    grid = vit["image_size"] // patch
    layers = vit["num_hidden_layers"]
    taps = tuple(index - 1 for index in indices)  # there 0 is the patch embedding
    config = ModelConfig(
        name="custom",
        embed_dim=vit["hidden_size"],
        num_layers=layers,
        num_heads=vit["num_attention_heads"],
        features=top["fusion_hidden_size"],
        out_channels=top["neck_hidden_sizes"],
        out_indices=taps,  # type: ignore[arg-type]
        image_size=grid * patch,
        grid_size=grid,
        patch_size=patch,
        max_depth=float(top["max_depth"]) if metric else None,
        output_align_corners=taps != tuple(range(layers - 4, layers)),  # V2 spreads its taps
    )
    config = matching_preset(config) or config
    extra = dict(data.get("dafast") or {})
    if "licence" in extra:  # its name in older files
        extra.setdefault("license", extra["licence"])
    return dataclasses.replace(config, **{key: extra[key] for key in _EXTRA if key in extra})


def config_to_json(config: ModelConfig, version: str) -> dict[str, Any]:
    """The config.json of dafast."""
    return {
        "model_type": "dafast",
        "dafast_version": version,
        "model": dataclasses.asdict(config),
    }


def config_to_transformers(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json from which transformers builds `DepthAnythingForDepthEstimation`.

    Fields that transformers does not have are kept under ``"dafast"``, which transformers ignores
    and keeps.
    """
    # transformers 5 wants an integer and refuses a float.
    max_depth = 1.0 if config.max_depth is None else config.max_depth
    return {
        "architectures": ["DepthAnythingForDepthEstimation"],
        "model_type": "depth_anything",
        "backbone_config": {
            "model_type": "dinov2",
            "hidden_size": config.embed_dim,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "image_size": config.grid_size * config.patch_size,
            "patch_size": config.patch_size,
            "out_indices": [index + 1 for index in config.out_indices],
            "out_features": [f"stage{index + 1}" for index in config.out_indices],
            "apply_layernorm": True,
            "reshape_hidden_states": False,
        },
        "patch_size": config.patch_size,
        "reassemble_hidden_size": config.embed_dim,
        "reassemble_factors": [4, 2, 1, 0.5],
        "neck_hidden_sizes": list(config.out_channels),
        "fusion_hidden_size": config.features,
        "head_in_index": -1,
        "head_hidden_size": 32,
        "depth_estimation_type": "metric" if config.is_metric else "relative",
        "max_depth": int(max_depth) if float(max_depth).is_integer() else max_depth,
        "dtype": dtype,
        "dafast": {key: getattr(config, key) for key in _EXTRA},
    }


def preprocessor_to_transformers(config: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json with the values of the published transformers repositories."""
    return {
        "image_processor_type": "DPTImageProcessor",
        "do_normalize": True,
        "do_pad": False,
        "do_rescale": True,
        "do_resize": True,
        "ensure_multiple_of": config.patch_size,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "keep_aspect_ratio": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": config.image_size, "width": config.image_size},
        "size_divisor": None,
    }
