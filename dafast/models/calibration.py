"""Prepares an encoder for 8 bits: moves large channels from activations into weights.

One scale for a token serves all its channels. If a few channels are far larger than the others, as
in DINOv2, the others lose their digits. So each channel is divided by a factor, and the weights
that multiply it are multiplied by the factor: the product stays, and both sides have channels of
similar size (Xiao et al., "SmoothQuant", arXiv 2211.10438). Layers whose input comes from a
LayerNorm (``qkv``, ``fc1``) divide in the weight and the bias of the norm; attention passes on the
channels of its values, so ``proj`` divides in the rows of ``qkv`` that make them. GELU cannot be
scaled before, so ``fc2`` stays as it is.

Factors are powers of two: the smoothed blocks compute the same bits before anything is quantised.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..images import as_pixels
from ..layers import Block
from ..ops import preprocess
from .network import DepthNetwork

_STRENGTH = 0.5
"""How much of a channel's size moves into the weights, 0 to 1; SmoothQuant's default."""

_SIDE = 16
"""Height and width of the synthetic picture in patches."""


class _Largest(NamedTuple):
    """Largest magnitude of each input channel (K) of the linear layers of a block."""

    qkv: Tensor
    proj: Tensor
    fc1: Tensor


def photo_inputs(model: DepthNetwork, photos: Sequence[Any]) -> tuple[Tensor, ...]:
    """Network inputs (1, 3, H, W) of photos, as `DepthAnything.infer` prepares them.

    Args:
        model: Gives sizes, dtype and device.
        photos: Any pictures that `DepthAnything.infer` takes.

    Raises:
        ValueError: If there is no photo.
        ImageError: If one cannot be read.
    """
    if isinstance(photos, str | bytes) or not isinstance(photos, Sequence) or not len(photos):
        raise ValueError("calibration= needs a list of at least one photo")
    config = model.config
    pixels = [as_pixels(photo, f"calibration photo {i}") for i, photo in enumerate(photos)]
    return tuple(
        preprocess(
            photo.to(model.device), size=config.image_size, multiple=config.patch_size,
            fit=config.fit, mean=config.mean, std=config.std, dtype=model.dtype,
        )[0]
        for photo in pixels
    )  # fmt: skip


def synthetic_input(model: DepthNetwork) -> Tensor:
    """A picture (1, 3, H, W) of noise with the spectrum of photos, the same in every call.

    The large channels of a vision transformer hardly depend on the picture, so it serves where
    there are no photos.
    """
    side = _SIDE * model.config.patch_size
    generator = torch.Generator().manual_seed(0)
    size = (3, side, side // 2 + 1)
    noise = torch.complex(*(torch.randn(size, generator=generator, device="cpu") for _ in "ri"))
    rows = torch.fft.fftfreq(side, device="cpu")[:, None]
    frequency = (rows.square() + torch.fft.rfftfreq(side, device="cpu").square()).sqrt()
    frequency[0, 0] = 1
    waves = torch.fft.irfft2(noise / frequency, s=(side, side))
    waves = (waves - waves.mean()) / waves.std()
    return waves[None].to(model.device, model.dtype)


def _observe(model: DepthNetwork, inputs: Sequence[Tensor]) -> list[_Largest]:
    """The largest magnitudes in the blocks that the decoder needs."""
    last = max(model.config.out_indices)
    blocks: list[Any] = list(model.pretrained.blocks)[: last + 1]
    watched = [(b.attn.qkv, b.attn.proj, b.mlp.fc1) for b in blocks]
    found: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        most = args[0].detach().float().flatten(0, -2).abs().amax(0)
        found[module] = torch.maximum(most, found[module]) if module in found else most

    handles = [
        layer.register_forward_pre_hook(note) for layers in watched for layer in layers
    ]  # fmt: skip
    try:
        for x in inputs:
            model.pretrained.get_intermediate_layers(x, [last])
    finally:
        for handle in handles:
            handle.remove()
    return [_Largest(*(found[layer] for layer in layers)) for layers in watched]


def _factors(largest: Tensor, weight: Tensor) -> Tensor:
    """Factors (K), powers of two: activations are divided by them, weights (N, K) multiplied."""
    weights = weight.detach().float().abs().amax(0)
    # A channel without activations or weights needs no factor that could overflow.
    sides = [x.clamp_min(1e-5 * float(x.max()) + 1e-30) for x in (largest, weights)]
    power = _STRENGTH * sides[0].log2() - (1 - _STRENGTH) * sides[1].log2()
    return torch.exp2((power - power.mean()).round())


def _smooth(block: Block, largest: _Largest) -> Block:
    """A copy of a block with the same function and channels of similar size."""
    block = copy.deepcopy(block).requires_grad_(False)
    attn, mlp = block.attn, block.mlp

    def divide(module: nn.Module, factors: Tensor, rows: slice = slice(None)) -> None:
        """Divides output channels."""
        for part in (module.weight, module.bias):
            chosen = part[rows]  # type: ignore[index]
            chosen /= factors.view(-1, *[1] * (chosen.ndim - 1)).to(chosen.dtype)

    for norm, linear, most in ((block.norm1, attn.qkv, largest.qkv),
                               (block.norm2, mlp.fc1, largest.fc1)):  # fmt: skip
        factors = _factors(most, linear.weight)
        divide(norm, factors)
        linear.weight *= factors.to(linear.weight.dtype)
    factors = _factors(largest.proj, attn.proj.weight)
    divide(attn.qkv, factors, slice(2 * len(factors), None))
    attn.proj.weight *= factors.to(attn.proj.weight.dtype)
    return block


def smoothed_blocks(model: DepthNetwork, inputs: Sequence[Tensor] = ()) -> list[Block]:
    """Copies of the encoder's blocks for 8 bits, up to the last one that the decoder needs.

    Args:
        model: A model as its configuration builds it.
        inputs: Images (1, 3, H, W) to measure activations with, see `photo_inputs`; without any,
            `synthetic_input`.
    """
    # Outside of inference mode: its tensors could not be written to in a later call.
    with torch.inference_mode(False), torch.no_grad():
        inputs = [x.to(model.device, model.dtype) for x in inputs] or [synthetic_input(model)]
        largest = _observe(model, inputs)
        blocks: list[Any] = list(model.pretrained.blocks)
        return [_smooth(block, most) for block, most in zip(blocks, largest, strict=False)]
