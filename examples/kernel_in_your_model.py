"""Uses two of dafast's kernels in a transformer block of your own, and checks them.

    python examples/kernel_in_your_model.py

Each op picks the fastest backend for its inputs: Triton or PyTorch's kernels on a GPU, C++ on a
CPU. `dafast.use_backend("reference")` selects the specification in plain PyTorch.
"""

import torch
from torch import Tensor, nn

import dafast
from dafast.ops import bias_gelu, flash_attention


class Block(nn.Module):
    """Attention and an MLP over (batch, tokens, dim)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim)
        self.bias = nn.Parameter(torch.zeros(4 * dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        x = x + self.proj(flash_attention(q, k, v).flatten(2))
        return x + self.fc2(bias_gelu(self.fc1(x), self.bias))


block, x = Block(128, 2), torch.randn(2, 197, 128)
y = block(x)
y.sum().backward()
with dafast.use_backend("reference"):
    error = (block(x) - y).abs().max().item()
print(f"largest difference from the reference: {error:.1e}")
