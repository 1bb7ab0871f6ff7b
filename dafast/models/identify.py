"""Describes tensors that do not fit: names of other networks, and the differences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from .conversion import (
    ENCODER_LAYOUTS,
    LAYOUTS,
    ConvertedWeights,
    Layout,
    detect_layout,
    encoder_size,
)
from .weight_files import SHOWN, CheckpointError, Weights

_ANY_VIEW = (
    "a Depth Anything 3 checkpoint for several views (of Depth Anything 3, DA3MONO-LARGE and "
    "DA3METRIC-LARGE are read)"
)
_SEGMENTATION = "a segmentation model of dafast, which SegmentationModel.from_pretrained reads"
# Parts of names that have to occur together, and the network they belong to. The first that fits.
_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("cam_dec.",), _ANY_VIEW),
    (("camera_token",), _ANY_VIEW),
    (("da3_metric.",), _ANY_VIEW),
    (("resConfUnit_depth.",), "a Prompt Depth Anything checkpoint"),
    (("register_tokens",), "a network on DINOv2 with registers, which Depth Anything does not use"),
    (("pretrained.model.blocks.", "scratch."), "a MiDaS checkpoint"),
    (("dpt.embeddings",), "a DPT checkpoint of transformers"),
    (("image_encoder.", "mask_decoder."), "a Segment Anything checkpoint"),
)
_BINS = ("seed_bin_regressor", "conditional_log_binomial", "attractors.")
_CHUNKED = re.compile(r"(?:^|\.)blocks\.\d+\.\d+\.")


def other_network(weights: Weights) -> str:
    """Names the network that dafast does not read, or returns "" if the weights may be read."""
    names = weights.names

    def has(*parts: str) -> bool:
        return all(any(part in name for name in names) for part in parts)

    for parts, kind in _OTHERS:
        if has(*parts):
            return kind
    if has("motion_modules.") and detect_layout(weights.tensors, LAYOUTS) is None:
        return "a Video-Depth-Anything checkpoint of another form than the published ones"
    if _is_segmentation(names):
        return _SEGMENTATION
    if has("backbone.pretrained.", "head.") and not has("sky_output_conv2."):
        return _ANY_VIEW
    if any(_CHUNKED.search(name) for name in names) and not _is_distill(weights):
        return "a DINOv2 with its blocks in chunks (blocks.0.0., as its own training saves them)"
    if has("mlp.w12.") or has("mlp.weights_in."):
        whole = "Depth Anything" if has("depth_head.") or has("neck.") else "DINOv2"
        return f"a {whole} with ViT-g (giant), whose blocks have a SwiGLU"
    if any(map(has, _BINS)) and detect_layout(weights.tensors, LAYOUTS) is None:
        return "a ZoeDepth metric checkpoint of another encoder"
    return ""


def _is_segmentation(names: Iterable[str]) -> bool:
    """Whether these are the names of `SegmentationModel`, with one of its heads."""
    if any("motion_modules." in name for name in names):  # Video-Depth-Anything
        return False
    starts = ("pretrained.", ("head.bn.", "head.projects."))
    return all(any(name.startswith(start) for name in names) for start in starts)


def _is_distill(weights: Weights) -> bool:
    return detect_layout(weights.tensors, LAYOUTS) is LAYOUTS["distill"]


def looks_like(weights: Weights) -> str:
    """Guesses the network that a set of tensors belongs to."""
    if other := other_network(weights):
        return other
    tensors = weights.tensors
    layout = detect_layout(tensors, LAYOUTS)
    if layout is not None:
        return (
            f"a Depth Anything checkpoint ({encoder_size(tensors, layout)}, {layout.title} layout)"
        )
    for prefix in ("", "pretrained.", "backbone."):
        inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        layout = detect_layout(inner, ENCODER_LAYOUTS)
        if layout is not None:
            return (
                f"a plain DINOv2 backbone ({encoder_size(inner, layout)}, {layout.title} layout) "
                "without a depth head; dafast.models.checkpoint.load_encoder reads it"
            )
    sample = ", ".join(f"{k} {tuple(v.shape)}" for k, v in list(tensors.items())[:3])
    return (
        f"something else than Depth Anything: {len(tensors)} tensors, for example "
        f"{sample or 'none'}"
    )


def unknown(label: str, weights: Weights, expected: str) -> CheckpointError:
    """The error for weights of another network.

    Args:
        label: What the user asked for.
        weights: The tensors.
        expected: The kind of weights that can be read.
    """
    found = looks_like(weights)
    if other := other_network(weights):
        unsupported = "" if other == _SEGMENTATION else ", which is not supported"
        return CheckpointError(
            f"{label}: it looks like {found}{unsupported}; {expected} was expected"
        )
    return CheckpointError(
        f"{label}: it looks like {found}; {expected} was expected. Found: "
        f"{some(sorted(weights.names))}"
    )


def some(names: list[str]) -> str:
    """The first of many names, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# Parts of names that a change of the modules leaves in a state_dict, and how to undo it.
_CHANGES = (
    (
        ("lora_", ".base_layer."),
        "merge the adapters into the weights first (peft: model.merge_and_unload())",
    ),
    (
        ("parametrizations.",),
        (
            "remove the parametrizations first "
            "(torch.nn.utils.parametrize.remove_parametrizations(module, 'weight'))"
        ),
    ),
    (("weight_g",), "remove weight_norm first (torch.nn.utils.remove_weight_norm(module))"),
    (
        ("weight_orig",),
        (
            "make the change permanent first (torch.nn.utils.prune.remove(module, 'weight') or "
            "torch.nn.utils.remove_spectral_norm(module))"
        ),
    ),
    (
        ("_orig_mod.",),
        "save the model that was passed to torch.compile, or compile with module.compile()",
    ),
)


def remedy(names: Iterable[str]) -> str:
    """How to make ordinary weights of those with these unexpected names; "" if that is unknown."""
    text = " ".join(names)
    return next((way for parts, way in _CHANGES if any(part in text for part in parts)), "")


def mismatch(
    label: str,
    wanted: str,
    found: str,
    conversion: ConvertedWeights,
    layout: Layout,
    hint: str = "",
) -> CheckpointError:
    """The error for tensors that do not fit the model."""
    lines = [f"{label}: the weights do not fit {wanted}. It looks like {found}."]
    if conversion.missing:
        lines.append(f"  missing ({len(conversion.missing)}): {some(conversion.missing)}")
    if conversion.unexpected:
        lines.append(f"  unexpected ({len(conversion.unexpected)}): {some(conversion.unexpected)}")
    if conversion.wrong_shapes:
        shapes = [
            f"{name} {list(found_shape)} instead of {list(model_shape)}"
            for name, found_shape, model_shape in conversion.wrong_shapes
        ]
        lines.append(f"  wrong shapes ({len(shapes)}): {some(shapes)}")
    lines.append(f"  names as in the {layout.title} layout{hint}")
    if way := remedy(conversion.unexpected):
        lines.append(f"  before the weights are saved, {way}")
    return CheckpointError("\n".join(lines))


def check_floating(label: str, state: Mapping[str, Tensor], found: str) -> None:
    """Checks that weights are floating-point numbers.

    Raises:
        CheckpointError: If some are not, as in quantised checkpoints.
    """
    wrong = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if wrong:
        kinds = ", ".join(sorted({str(state[name].dtype).removeprefix("torch.") for name in wrong}))
        raise CheckpointError(
            f"{label}: it looks like {found}, but its weights are not floating point ({kinds}; "
            f"quantised?): {some(wrong)}. Save it in float32, float16 or bfloat16"
        )
