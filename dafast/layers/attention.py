"""Multi-head self-attention with a packed qkv projection."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import flash_attention_qkvpacked


class Attention(nn.Module):
    """Self-attention of a ViT (DINOv2 `layers/attention.py`).

    Args:
        embed_dim: Width C of the tokens.
        num_heads: Number of heads; must divide ``embed_dim``.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        return self.proj(flash_attention_qkvpacked(qkv).flatten(-2))
