"""The feed-forward half of a transformer block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import OPS, bias_gelu


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
        weight, bias = self.fc1.weight, self.fc1.bias
        if OPS["bias_gelu"].select(x, bias) == "reference":
            return self.fc2(self.act(self.fc1(x)))
        # The product adds the bias before it rounds; the bias gets its gradient from the GELU.
        hidden = F.linear(x, weight, bias.detach())
        return self.fc2(bias_gelu(hidden, bias, added=True))
