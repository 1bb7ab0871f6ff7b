"""Multi-head self-attention with a packed qkv projection."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import flash_attention_qkvpacked, flash_attention_varlen
from .linear import project


def attend(qkv: Tensor, cu_seqlens: Tensor | None = None, max_seqlen: int = 0) -> Tensor:
    """Attention (B, N, 3, heads, C / heads) to (B, N, C); sequences as for `Attention.forward`."""
    if cu_seqlens is None:
        return flash_attention_qkvpacked(qkv).flatten(-2)
    q, k, v = qkv[0].unbind(1)
    return flash_attention_varlen(q, k, v, cu_seqlens, max_seqlen)[None].flatten(-2)


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

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None, max_seqlen: int = 0) -> Tensor:
        """(B, N, C) to (B, N, C).

        With ``cu_seqlens`` x is (1, T, C), several packed sequences, and each attends only to
        itself; see `dafast.ops.flash_attention_varlen`.
        """
        qkv = project(self.qkv, x).unflatten(-1, (3, self.num_heads, -1))
        return project(self.proj, attend(qkv, cu_seqlens, max_seqlen))
