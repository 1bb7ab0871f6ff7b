"""From pixels to tokens."""

from __future__ import annotations

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """A strided convolution over non-overlapping patches.

    Args:
        patch_size: Side of a patch in pixels.
        embed_dim: Width C of the tokens.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H/patch * W/patch, C), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)
