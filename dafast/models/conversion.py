"""Names of the weights in each checkpoint layout.

A layout is a function from an official key (which is a key of our own state_dict) to the names
that it has in a file: one name, or three where the file keeps query, key and value apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import PRESETS
from ..layers.temporal import position_code

Shape = tuple[int, ...]
Names = tuple[str, ...]

OPTIONAL_KEYS = frozenset({"pretrained.mask_token"})
"""Keys that may be missing from a file: only DINOv2's own pre-training reads the mask token, and
transformers drops it with ``use_mask_token=False``. Zeros replace a missing one."""

UNUSED_KEYS = frozenset(
    f"depth_head.scratch.refinenet4.resConfUnit1.conv{i}.{parameter}"
    for i in (1, 2)
    for parameter in ("weight", "bias")
)
"""Weights of V1 and V2 that take part in no prediction; Depth Anything 3 has none of them."""

CODE = ".pos_encoder.pe"
"""End of the names of `position_codes`."""

_TO_OUT = ".to_out.0.bias"
_BINOMIAL = "conditional_log_binomial.log_binomial_transform."


def zoedepth_constants() -> dict[str, Tensor]:
    """Entries of the published metric files that are not weights: they follow from 64 bins."""
    return {
        _BINOMIAL + "k_idx": torch.arange(64).view(1, -1, 1, 1),
        _BINOMIAL + "K_minus_1": torch.tensor([63.0]).view(1, -1, 1, 1),
    }


def position_codes(weights: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
    """Entries of Video-Depth-Anything's files that are not weights: they follow from the sizes.

    Args:
        weights: The weights, in any layout.
        frames: `ModelConfig.temporal_frames`.
    """
    widths = {
        key.removesuffix(_TO_OUT) + CODE: len(bias)
        for key, bias in weights.items()
        if key.endswith(_TO_OUT)
    }
    return {name: position_code(frames, width)[None] for name, width in widths.items()}


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
    if key.startswith(("metric_head.", "depth_head.scratch.sky_", "depth_head.motion_modules.")):
        return (key,)  # transformers has none of them on this model; the name is for messages
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


def da3_names(key: str) -> Names:
    """Names of an official key in the files of Depth Anything 3, without their "model."."""
    if key.startswith("pretrained."):
        return (f"backbone.{key}",)
    return (key.replace("depth_head.", "head.", 1),)


def vda_names(key: str) -> Names:
    """Names of an official key in the files of Video-Depth-Anything."""
    return (key.replace("depth_head.", "head.", 1),)


def distill_names(key: str) -> Names:
    """Names of an official key in Distill-Any-Depth Large: DINOv2's blocks are in one chunk."""
    return (distill_plain_names(key)[0].replace("backbone.blocks.", "backbone.blocks.0.", 1),)


def distill_plain_names(key: str) -> Names:
    """`distill_names` without the chunk."""
    return (re.sub(r"^pretrained\.", "backbone.", key),)


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
        optional: Official keys that a file may lack.
    """

    title: str
    names: Callable[[str], Names]
    optional: frozenset[str] = OPTIONAL_KEYS


LAYOUTS: dict[str, Layout] = {
    "official": Layout("official Depth Anything", official_names),
    "transformers": Layout("transformers", transformers_names),
    "transformers_live": Layout("transformers (state_dict in memory)", transformers_live_names),
    "zoedepth": Layout("Depth Anything V1 metric (ZoeDepth)", zoedepth_names),
    "da3": Layout("Depth Anything 3", da3_names, OPTIONAL_KEYS | UNUSED_KEYS),
    "vda": Layout("Video-Depth-Anything", vda_names),
    "distill": Layout("Distill-Any-Depth Large", distill_names),
    "distill_plain": Layout("Distill-Any-Depth Large (blocks without chunk)", distill_plain_names),
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
    """The layout with the most of a few characteristic keys; None if no layout fits.

    A layout of the whole model counts only if keys of both encoder and decoder are present.
    """
    best, best_count = None, 0
    for title, layout in layouts.items():
        if title == "vda" and not has_temporal(names, layout):
            continue  # a segmentation model has the other names, too
        first = sum(name in names for key in _FIRST_KEYS for name in layout.names(key))
        if layouts is LAYOUTS:
            head = sum(name in names for key in _HEAD_KEYS for name in layout.names(key))
            first = first + head if head else 0
        if first > best_count:
            best, best_count = layout, first
    return best if best_count >= 2 else None


# ----------------------------------------------------------------------------------- conversion


@dataclass
class ConvertedWeights:
    """The result of matching a file's tensors with those of the model.

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
        """Whether everything fits."""
        return not (self.missing or self.unexpected or self.wrong_shapes)


def to_official(
    tensors: Mapping[str, Tensor], layout: Layout, expected: Mapping[str, Shape]
) -> ConvertedWeights:
    """Collects the tensors of a file under official keys.

    Args:
        tensors: By the file's names.
        layout: Of the file.
        expected: Shape of every official key.

    Returns:
        Everything that fits, and everything that does not. A missing key of `Layout.optional` is
        filled with zeros.
    """
    out = ConvertedWeights()
    used: set[str] = set()
    for key, shape in expected.items():
        names = layout.names(key)
        used.update(names)
        absent = [name for name in names if name not in tensors]
        if absent:
            if key in layout.optional:
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
    """Renames official keys to those of a layout, splitting qkv where the layout has it split.

    Weights without an effect that the layout does not have are left out.
    """
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key in layout.optional - OPTIONAL_KEYS:
            continue
        names = layout.names(key)
        out.update(zip(names, tensor.chunk(len(names)), strict=True))
    return out


ANCHORS = sorted(
    {
        name
        for key, layout in (LAYOUTS | ENCODER_LAYOUTS).items()
        if key not in ("distill", "distill_plain")  # also that of a DINOv2 with this prefix
        for name in layout.names("pretrained.cls_token")
    },
    key=len,
    reverse=True,
)
"""Names of the cls token in every layout, the longest first. What precedes one in a file is the
prefix of a network."""


# --------------------------------------------------------------------------- what tensors tell

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
"""Fields of `ModelConfig` that determine encoder and decoder; `max_depth` and `bin_centers`
determine the output."""


def bin_centers(tensors: Mapping[str, Tensor], layout: Layout) -> str:
    """The kind of ZoeDepth's bins in the weights, as in `ModelConfig`; "" without bins."""
    outputs = tensors.get(layout.names("metric_head.attractors.0._net.2.bias")[0])
    if outputs is None:
        return ""
    return "softplus" if len(outputs) == 16 else "normed"


def has_sky(tensors: Mapping[str, Tensor], layout: Layout) -> bool:
    """Whether the weights have the sky output of Depth Anything 3."""
    return layout.names("depth_head.scratch.sky_output_conv2.0.weight")[0] in tensors


def has_temporal(tensors: Mapping[str, Any], layout: Layout) -> bool:
    """Whether the weights have the temporal modules of Video-Depth-Anything."""
    key = "depth_head.motion_modules.0.temporal_transformer.proj_out.weight"
    return layout.names(key)[0] in tensors


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
