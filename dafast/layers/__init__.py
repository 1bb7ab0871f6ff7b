"""The building blocks of the encoder, one idea per file."""

from .attention import Attention
from .block import Block
from .layer_norm import LayerNorm
from .layer_scale import LayerScale
from .mlp import Mlp
from .patch_embed import PatchEmbed

__all__ = ["Attention", "Block", "LayerNorm", "LayerScale", "Mlp", "PatchEmbed"]
