"""The start of a training run: trained weights, a trained encoder, or random weights."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dafast.config import PRESETS, ModelConfig
from dafast.layers import Block
from dafast.models.checkpoint import CheckpointError, load_encoder, load_pretrained
from dafast.models.conversion import STRUCTURE
from dafast.models.depth_anything import DepthAnything
from dafast.models.segmentation import is_segmentation
from dafast.models.vision_transformer import VisionTransformer
from dafast.training.config import ConfigError, ModelSection

UNUSED_UNIT = "scratch.refinenet4.resConfUnit1"
"""Part of a DPT decoder whose weights take part in no prediction."""

_LAST = "depth_head.scratch.output_conv2.2."  # the decoder's last convolution


def build_model(
    section: ModelSection,
    device: torch.device,
    channels_last: bool,
    start: DepthAnything | None = None,
) -> DepthAnything:
    """Builds the model with the initial weights that `section` names, ready for training.

    Args:
        section: What it starts from, and which size it must have.
        device: Where it is trained.
        channels_last: Whether kernels and maps are channels-last in memory.
        start: The model that `section.init` names, where it is loaded already.

    Raises:
        ConfigError: If it cannot start from that.
    """
    preset = PRESETS[section.preset]
    if section.init:
        model = _as_disparity(start or _load_start(section), preset)
        model = _with_time(model, preset)
        for name in STRUCTURE:
            if getattr(model.config, name) != getattr(preset, name):
                raise ConfigError(
                    f"model.init: {section.init} has {name} = {getattr(model.config, name)}, but "
                    f"the preset {section.preset} has {getattr(preset, name)}"
                )
    else:
        model = DepthAnything(preset)
        if section.encoder_init == "mimetic":
            mimetic_init_(model.pretrained)
        elif section.encoder_init != "random":
            start_encoder(model, section.encoder_init, "model.encoder_init")
    model = prepare_model(model, device, channels_last)
    if section.freeze_encoder:
        model.pretrained.requires_grad_(False)
    return model


def _load_start(section: ModelSection) -> DepthAnything:
    """The model that `model.init` names; bare weights are read as the preset, if they fit it."""
    if is_segmentation(section.init):
        raise ConfigError(
            f"model.init: {section.init} is a segmentation model: only a run with "
            "segmentation.data starts from it"
        )
    try:
        return load_pretrained(
            DepthAnything,
            section.init,
            device="cpu",
            dtype="float32",
            unnamed=PRESETS[section.preset],
        )
    except CheckpointError as error:
        raise ConfigError(f"model.init: {error}") from error


def _as_disparity(model: DepthAnything, preset: ModelConfig) -> DepthAnything:
    """A model of relative depth as one of the preset's disparity, with a new last convolution.

    All other models are returned as they are.
    """
    config = model.config
    if config.quantity != "depth" or preset.quantity == "depth":
        return model
    sizes = {name: getattr(config, name) for name in (*STRUCTURE, "norm_eps")}
    new = DepthAnything(dataclasses.replace(preset, **sizes))
    foreign = (_LAST, "depth_head.scratch.sky_output_conv2.")
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(foreign)}
    new.load_state_dict(state, strict=False)
    return new


def _with_time(model: DepthAnything, preset: ModelConfig) -> DepthAnything:
    """A model of pictures as one with the preset's temporal modules, which start as the identity.

    All other models are returned as they are.
    """
    if model.config.temporal_frames or not preset.temporal_frames:
        return model
    config = dataclasses.replace(
        model.config,
        name=preset.name,
        temporal_frames=preset.temporal_frames,
        hub_id="",
        hub_file="",
    )
    new = DepthAnything(config)
    new.load_state_dict(model.state_dict(), strict=False)
    return new


def start_encoder(model: DepthAnything, source: str, key: str) -> None:
    """`load_encoder`, whose errors name the setting `key`."""
    try:
        load_encoder(model, source)
    except CheckpointError as error:
        raise ConfigError(f"{key}: {error}") from error


def prepare_model(model: DepthAnything, device: torch.device, channels_last: bool) -> DepthAnything:
    """Puts a model into the state that training expects."""
    model.config = dataclasses.replace(model.config, calibration=None)
    model.to(device=device, dtype=torch.float32).train().requires_grad_(True)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # The deepest fusion block has no skip input, so this unit has weights (the official checkpoints
    # hold them) but never a gradient; DDP would wait for one.
    model.depth_head.get_submodule(UNUSED_UNIT).requires_grad_(False)
    return model


@torch.no_grad()
def mimetic_init_(encoder: VisionTransformer) -> None:
    """Gives an encoder the structure of attention in trained ViTs, in place.

    After Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (arXiv
    2305.09828): per head W_q^T W_k is close to a multiple of the identity, so that tokens attend to
    similar and to near ones from the first step on, and W_proj W_v close to a negative one;
    sinusoidal position embeddings make near tokens similar.

    Args:
        encoder: Its embed_dim must be a multiple of 4.
    """
    dim = encoder.pos_embed.shape[-1]
    encoder.pos_embed[0, 1:] = 0.5 * _sinusoids(encoder.grid_size, dim)
    for block in encoder.blocks:
        assert isinstance(block, Block)
        attention = block.attn
        width = dim // attention.num_heads
        query, key, value = attention.qkv.weight.split(dim)
        for head in range(attention.num_heads):
            rows = slice(head * width, (head + 1) * width)
            left, right = _factors(0.7, 0.7, dim)
            query[rows], key[rows] = left[:width], right[:width]
        left, right = _factors(0.4, -0.4, dim)
        attention.proj.weight.copy_(left.T)
        value.copy_(right)


def _factors(noise: float, identity: float, dim: int) -> tuple[Tensor, Tensor]:
    """L, R (dim, dim) with L^T R = noise * Z + identity * I, Z of variance 1 / dim; the rows are
    in the order of the singular values, so that the first k give the best approximation of rank k.
    """
    target = noise * torch.randn(dim, dim) / dim**0.5 + identity * torch.eye(dim)
    u, s, vh = torch.linalg.svd(target)
    return s.sqrt()[:, None] * u.T, s.sqrt()[:, None] * vh


def _sinusoids(grid: int, dim: int) -> Tensor:
    """(grid * grid, dim): sines and cosines of the row, then of the column."""
    frequency = 100.0 ** -(torch.arange(dim // 4) / (dim // 4))
    angle = torch.arange(grid, dtype=torch.float32)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
