"""The feed-forward half of a transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.bias_gelu import linear_gelu, mlp
from .linear import is_plain, project


class Mlp(nn.Module):
    """Linear, exact GELU, linear.

    Args:
        embed_dim: Width C of the tokens.
        hidden_dim: Width between the two linear layers.
    """

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        # A replaced module (LoRA, a quantised layer) or one with hooks has to be called.
        if is_plain(self.fc1, nn.Linear) and is_plain(self.act, nn.GELU):
            if is_plain(self.fc2, nn.Linear) and self.fc2.bias is not None:
                fc1, fc2 = self.fc1, self.fc2
                return mlp(x, (fc1.weight, fc1.bias), (fc2.weight, fc2.bias))
            return self.fc2(linear_gelu(x, self.fc1.weight, self.fc1.bias))
        return project(self.fc2, self.act(self.fc1(x)))
