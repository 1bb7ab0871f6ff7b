"""The pre-norm transformer block of DINOv2."""

from __future__ import annotations

from torch import Tensor, nn

from ..profiling import annotate
from .attention import Attention
from .layer_norm import LayerNorm
from .layer_scale import LayerScale
from .mlp import Mlp


class Block(nn.Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))).

    A residual add is fused with the LayerNorm that follows it. The last one of a block is followed
    by the norm of the next module, so the encoder passes that norm in and its output on.

    Args:
        embed_dim: Width C of the tokens.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = LayerNorm(embed_dim, feeds_product=True)
        self.attn = Attention(embed_dim, num_heads)
        self.ls1 = LayerScale(embed_dim)
        self.norm2 = LayerNorm(embed_dim, feeds_product=True)
        self.mlp = Mlp(embed_dim, mlp_ratio * embed_dim)
        self.ls2 = LayerScale(embed_dim)

    @annotate("block")
    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int = 0,
        *,
        normed: Tensor | None = None,
        next_norm: LayerNorm | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, N, C) to (B, N, C).

        Args:
            x: Tokens.
            cu_seqlens: As for `Attention.forward`.
            max_seqlen: As for `Attention.forward`.
            normed: norm1(x), where the block before has computed it.
            next_norm: Norm of the output, to be returned as well.

        Returns:
            The tokens (B, N, C), or with ``next_norm`` the tokens and their norm.
        """
        branch = self.attn(self.norm1(x) if normed is None else normed, cu_seqlens, max_seqlen)
        x, normed = self.norm2.add(x, branch, self.ls1)
        branch = self.mlp(normed)
        if next_norm is None:
            return x + self.ls2(branch)
        return next_norm.add(x, branch, self.ls2)
