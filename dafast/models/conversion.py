"""Names of the weights in each checkpoint layout, and configurations in each config.json.

A layout is a function from an official key (which is a key of our own state_dict) to the names
that it has in a file: one name, or three where the file keeps query, key and value apart.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import PRESETS, ModelConfig

Shape = tuple[int, ...]
Names = tuple[str, ...]

OPTIONAL_KEYS = frozenset({"pretrained.mask_token"})
"""May be missing from a file: only DINOv2's own pre-training reads the mask token, and
transformers drops it with ``use_mask_token=False``. Loaded as zeros then."""

_HEAD_DIM = 64  # of every published DINOv2 without a SwiGLU

_BINOMIAL = "conditional_log_binomial.log_binomial_transform."


def zoedepth_constants() -> dict[str, Tensor]:
    """What the published metric files hold beside weights: numbers that follow from 64 bins."""
    return {
        _BINOMIAL + "k_idx": torch.arange(64).view(1, -1, 1, 1),
        _BINOMIAL + "K_minus_1": torch.tensor([63.0]).view(1, -1, 1, 1),
    }


# ------------------------------------------------------------------------------------- key maps

# Official key -> name in the files of transformers (`convert_depth_anything_to_hf.py` and
# `convert_dinov2_to_hf.py` of transformers, inverted). The first pattern that matches counts.
_TRANSFORMERS_RULES: tuple[tuple[str, str], ...] = (
    (r"pretrained\.cls_token", r"backbone.embeddings.cls_token"),
    (r"pretrained\.mask_token", r"backbone.embeddings.mask_token"),
    (r"pretrained\.pos_embed", r"backbone.embeddings.position_embeddings"),
    (
        r"pretrained\.patch_embed\.proj\.(\w+)",
        r"backbone.embeddings.patch_embeddings.projection.\1",
    ),
    (
        r"pretrained\.blocks\.(\d+)\.attn\.proj\.(\w+)",
        r"backbone.encoder.layer.\1.attention.output.dense.\2",
    ),
    (
        r"pretrained\.blocks\.(\d+)\.ls([12])\.gamma",
        r"backbone.encoder.layer.\1.layer_scale\2.lambda1",
    ),
    (
        r"pretrained\.blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.(\w+)",
        r"backbone.encoder.layer.\1.\2.\3",
    ),
    (r"pretrained\.norm\.(\w+)", r"backbone.layernorm.\1"),
    (
        r"depth_head\.projects\.(\d)\.(\w+)",
        r"neck.reassemble_stage.layers.\1.projection.\2",
    ),
    (
        r"depth_head\.resize_layers\.(\d)\.(\w+)",
        r"neck.reassemble_stage.layers.\1.resize.\2",
    ),
    (r"depth_head\.scratch\.output_conv1\.(\w+)", r"head.conv1.\1"),
    (r"depth_head\.scratch\.output_conv2\.0\.(\w+)", r"head.conv2.\1"),
    (r"depth_head\.scratch\.output_conv2\.2\.(\w+)", r"head.conv3.\1"),
)
_QKV = re.compile(r"pretrained\.blocks\.(\d+)\.attn\.qkv\.(\w+)")
_LAYER_RN = re.compile(r"depth_head\.scratch\.layer([1-4])_rn\.(\w+)")
_REFINENET = re.compile(r"depth_head\.scratch\.refinenet([1-4])\.(.+)")
_RESIDUAL = re.compile(r"resConfUnit([12])\.conv([12])\.(\w+)")


def official_names(key: str) -> Names:
    """The layout of the official `.pth` files and of our own: the key itself."""
    return (key,)


def transformers_names(key: str) -> Names:
    """Names of an official key in the files that transformers reads and writes.

    Raises:
        KeyError: If ``key`` is no official key.
    """
    if key.startswith("metric_head."):
        return (key,)  # transformers has no such head on this model; for messages
    if match := _QKV.fullmatch(key):
        layer, parameter = match.groups()
        return tuple(
            f"backbone.encoder.layer.{layer}.attention.attention.{part}.{parameter}"
            for part in ("query", "key", "value")
        )
    if match := _LAYER_RN.fullmatch(key):
        return (f"neck.convs.{int(match[1]) - 1}.{match[2]}",)
    if match := _REFINENET.fullmatch(key):
        rest = match[2].replace("out_conv.", "projection.")
        rest = _RESIDUAL.sub(r"residual_layer\1.convolution\2.\3", rest)
        return (f"neck.fusion_stage.layers.{4 - int(match[1])}.{rest}",)
    for pattern, replacement in _TRANSFORMERS_RULES:
        if match := re.fullmatch(pattern, key):
            return (match.expand(replacement),)
    raise KeyError(key)


def transformers_live_names(key: str) -> Names:
    """Names of an official key in the ``state_dict()`` of a transformers 5 model in memory."""
    names = []
    for name in transformers_names(key):
        for part in ("query", "key", "value"):
            name = name.replace(f".attention.attention.{part}.", f".attention.{part[0]}_proj.")
        names.append(name.replace(".attention.output.dense.", ".attention.o_proj."))
    return tuple(names)


def zoedepth_names(key: str) -> Names:
    """Names of an official key in `depth_anything_metric_depth_{indoor,outdoor}.pt`."""
    if key.startswith("metric_head."):
        return (key.removeprefix("metric_head."),)
    return (f"core.core.{key}",)


def dinov2_names(key: str) -> Names:
    """Names of an encoder key in DINOv2's own files (`dinov2_vits14_pretrain.pth`)."""
    return (key.removeprefix("pretrained."),)


def _without_backbone(names: Callable[[str], Names], prefix: str) -> Callable[[str], Names]:
    return lambda key: tuple(prefix + name.removeprefix("backbone.") for name in names(key))


@dataclass(frozen=True)
class Layout:
    """One way to name the weights.

    Attributes:
        title: For messages.
        names: From an official key to the names in the file.
    """

    title: str
    names: Callable[[str], Names]


LAYOUTS: dict[str, Layout] = {
    "official": Layout("official Depth Anything", official_names),
    "transformers": Layout("transformers", transformers_names),
    "transformers_live": Layout("transformers (state_dict in memory)", transformers_live_names),
    "zoedepth": Layout("Depth Anything V1 metric (ZoeDepth)", zoedepth_names),
}
ENCODER_LAYOUTS: dict[str, Layout] = {
    "dinov2": Layout("official DINOv2", dinov2_names),
    "dinov2_transformers": Layout(
        "transformers Dinov2Model", _without_backbone(transformers_names, "")
    ),
    "dinov2_transformers_live": Layout(
        "transformers Dinov2Model (state_dict in memory)",
        _without_backbone(transformers_live_names, ""),
    ),
    "dinov2_transformers_prefixed": Layout(
        "transformers Dinov2", _without_backbone(transformers_names, "dinov2.")
    ),
    "dinov2_transformers_prefixed_live": Layout(
        "transformers Dinov2 (state_dict in memory)",
        _without_backbone(transformers_live_names, "dinov2."),
    ),
}

_FIRST_KEYS = (
    "pretrained.cls_token",
    "pretrained.pos_embed",
    "pretrained.patch_embed.proj.weight",
    "pretrained.norm.weight",
    "pretrained.blocks.0.attn.proj.weight",
    "pretrained.blocks.0.attn.qkv.weight",
)
_HEAD_KEYS = ("depth_head.projects.0.weight", "depth_head.scratch.layer1_rn.weight")


def detect_layout(
    names: Mapping[str, Any], layouts: Mapping[str, Layout] = LAYOUTS
) -> Layout | None:
    """The layout that most of a few telling keys are found in; None if none is found.

    A layout of the whole model is only considered if keys of both halves are there.
    """
    best, best_count = None, 0
    for layout in layouts.values():
        first = sum(name in names for key in _FIRST_KEYS for name in layout.names(key))
        if layouts is LAYOUTS:
            head = sum(name in names for key in _HEAD_KEYS for name in layout.names(key))
            first = first + head if head else 0
        if first > best_count:
            best, best_count = layout, first
    return best if best_count >= 2 else None


# ----------------------------------------------------------------------------------- conversion


@dataclass
class Conversion:
    """What came of matching a file's tensors with the model's.

    Attributes:
        state: Tensors by official key.
        missing: Names that the file lacks, in the file's layout.
        unexpected: Names that the model has no place for.
        wrong_shapes: (name, shape in the file, shape in the model).
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shapes: list[tuple[str, Shape, Shape]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything fitted."""
        return not (self.missing or self.unexpected or self.wrong_shapes)


def to_official(
    tensors: Mapping[str, Tensor], layout: Layout, expected: Mapping[str, Shape]
) -> Conversion:
    """Gathers the tensors of a file under official keys.

    Args:
        tensors: By the file's names.
        layout: Of the file.
        expected: Shape of every official key.

    Returns:
        Everything that fits, and everything that does not. A missing key of `OPTIONAL_KEYS` is
        filled with zeros.
    """
    out = Conversion()
    used: set[str] = set()
    for key, shape in expected.items():
        names = layout.names(key)
        used.update(names)
        absent = [name for name in names if name not in tensors]
        if absent:
            if key in OPTIONAL_KEYS:
                out.state[key] = torch.zeros(shape)
            else:
                out.missing += absent
            continue
        part_shape = (shape[0] // len(names), *shape[1:]) if shape else shape
        wrong = [
            (name, tuple(tensors[name].shape), part_shape)
            for name in names
            if tuple(tensors[name].shape) != part_shape
        ]
        out.wrong_shapes += wrong
        if not wrong:
            parts = [tensors[name] for name in names]
            out.state[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
    out.unexpected = [name for name in tensors if name not in used]
    return out


def from_official(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Renames official keys to those of a layout, splitting qkv where the layout has it split."""
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        names = layout.names(key)
        parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
        out.update(zip(names, parts, strict=True))
    return out


# ------------------------------------------------------------------------------- configurations

STRUCTURE = (
    "embed_dim",
    "num_layers",
    "num_heads",
    "features",
    "out_channels",
    "out_indices",
    "grid_size",
    "patch_size",
)
"""Fields of `ModelConfig` that say which weights encoder and decoder have and how they are joined;
`max_depth` and `bin_centers` say what is behind."""


def matching_preset(config: ModelConfig) -> ModelConfig | None:
    """The preset with the same network (sizes, taps, output), or None."""
    for preset in PRESETS.values():
        same = all(getattr(preset, name) == getattr(config, name) for name in STRUCTURE)
        if same and (preset.max_depth, preset.bin_centers) == (
            config.max_depth,
            config.bin_centers,
        ):
            return preset
    return None


def config_from_tensors(tensors: Mapping[str, Tensor], layout: Layout) -> ModelConfig:
    """Reads the sizes of a network off its weights.

    Which blocks the decoder reads and whether V2's output is metric cannot be seen in them: V1's
    taps (the last four blocks) and a relative model are assumed. With ZoeDepth's bins the largest
    depth cannot be seen: that of the published model with bins of their kind is taken.

    Raises:
        KeyError: If a tensor that is needed for that is not there.
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
    )
    return matching_preset(config) or config


def bin_centers(tensors: Mapping[str, Tensor], layout: Layout) -> str:
    """The kind of ZoeDepth's bins that the weights are of, as in `ModelConfig`; "" without any."""
    outputs = tensors.get(layout.names("metric_head.attractors.0._net.2.bias")[0])
    if outputs is None:
        return ""
    return "softplus" if len(outputs) == 16 else "normed"


def encoder_size(tensors: Mapping[str, Tensor], layout: Layout) -> str:
    """Which DINOv2 the weights are, for messages: ``"vits"``, ..., or its width and depth."""
    name = layout.names("pretrained.cls_token")[0]
    if name not in tensors:
        return "an encoder of unknown size"
    width, layers = tensors[name].shape[-1], 0
    while layout.names(f"pretrained.blocks.{layers}.norm1.weight")[0] in tensors:
        layers += 1
    for preset in ("vits", "vitb", "vitl", "nano"):
        config = PRESETS[preset]
        if (config.embed_dim, config.num_layers) == (width, layers):
            return preset
    return "vitg" if (width, layers) == (1536, 40) else f"width {width}, {layers} blocks"


_FILE_NAME = re.compile(
    r"depth[_-]anything[_-](?P<v2>v2[_-])?(?:metric[_-](?P<data>hypersim|vkitti)[_-])?"
    r"(?P<encoder>vit[sbl])(?:14)?(?![a-z])",
    re.IGNORECASE,
)
_TRANSFORMERS_ID = re.compile(
    r"depth-anything-(?P<v2>v2-)?(?:metric-(?P<data>indoor|outdoor)-)?(?P<size>small|base|large)-hf",
    re.IGNORECASE,
)
_METRIC_DATA = {"indoor": "hypersim", "outdoor": "vkitti"}
_ZOEDEPTH_FILE = re.compile(
    r"depth[_-]anything[_-]metric[_-]depth[_-](?P<place>indoor|outdoor)", re.IGNORECASE
)


def preset_from_name(name: str) -> ModelConfig | None:
    """The preset that a published file name or hub id stands for, or None.

    For instance ``depth_anything_v2_metric_vkitti_vitl.pth``, ``LiheYoung/depth_anything_vits14``
    or ``depth-anything/Depth-Anything-V2-Small-hf``.
    """
    for preset in PRESETS.values():
        if preset.hub_id and preset.hub_id.lower() == name.lower():
            return preset
    if match := _ZOEDEPTH_FILE.search(name):
        return PRESETS[f"metric-{match['place'].lower()}-vitl"]
    if match := _TRANSFORMERS_ID.search(name):
        encoder = "vit" + match["size"][0].lower()
        data = _METRIC_DATA.get((match["data"] or "").lower())
    elif match := _FILE_NAME.search(name):
        encoder = match["encoder"].lower()
        data = (match["data"] or "").lower()
    else:
        return None
    if data:
        return PRESETS[f"v2-metric-{data}-{encoder}"]
    return PRESETS[f"v2-{encoder}" if match["v2"] else encoder]


# What transformers assumes for what its config.json leaves out: `DepthAnythingConfig` and
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
# Ours alone; kept under "dafast" in a transformers config.json.
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


def config_from_json(data: Mapping[str, Any], name: str = "") -> ModelConfig:
    """Reads a config.json: ours, the official V1 repositories' or transformers'.

    Args:
        data: The parsed file.
        name: File name or hub id of the weights; tells V2 from V1 where the official
            config.json does not.

    Raises:
        ValueError: If it describes another kind of model, or a variant that is not supported.
    """
    if data.get("model_type") == "dafast":
        model = data.get("model")
        if not isinstance(model, dict):
            raise ValueError("config.json is not one that this version reads: no 'model'")
        try:
            return ModelConfig.from_dict(model)
        except ValueError as error:
            raise ValueError(f"config.json is not one that this version reads: {error}") from error
    if data.get("model_type") == "depth_anything":
        return _config_from_transformers(data)
    if "encoder" in data:
        return _config_from_official(data, name)
    kind = data.get("model_type") or data.get("architectures") or sorted(data)[:8]
    raise ValueError(f"config.json describes no Depth Anything model but {kind!r}")


def _config_from_official(data: Mapping[str, Any], name: str) -> ModelConfig:
    encoder = data["encoder"]
    if encoder not in ("vits", "vitb", "vitl"):
        raise ValueError(f"config.json: encoder {encoder!r}; supported: vits, vitb, vitl")
    if data.get("use_bn") or data.get("use_clstoken"):
        raise ValueError("config.json: use_bn and use_clstoken are not supported; none published")
    preset = preset_from_name(name)
    if preset is None or not preset.name.endswith(encoder):
        preset = PRESETS[encoder]
    return dataclasses.replace(
        preset,
        features=data.get("features", preset.features),
        out_channels=data.get("out_channels", preset.out_channels),
        max_depth=data.get("max_depth", preset.max_depth),
    )


def _config_from_transformers(data: Mapping[str, Any]) -> ModelConfig:
    backbone = data.get("backbone_config") or _NO_BACKBONE_CONFIG
    top = {**_DEPTH_ANYTHING_DEFAULTS, **data}
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
        raise ValueError("config.json asks for what is not supported: " + ", ".join(wrong))
    indices = backbone.get("out_indices")
    if indices is None:  # older files have the names alone
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
    """Our own config.json."""
    return {
        "model_type": "dafast",
        "dafast_version": version,
        "model": dataclasses.asdict(config),
    }


def config_to_transformers(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json from which transformers builds `DepthAnythingForDepthEstimation`.

    What transformers has no field for is kept under ``"dafast"``, which it carries along.
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
