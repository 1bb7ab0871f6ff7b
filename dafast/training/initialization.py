"""A start for encoders that are trained without pre-trained weights."""

from __future__ import annotations

import torch
from torch import Tensor

from dafast.layers import Block
from dafast.models.vision_transformer import VisionTransformer


@torch.no_grad()
def mimetic_init_(encoder: VisionTransformer) -> None:
    """Gives an encoder the structure that attention has in trained ViTs, in place.

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
