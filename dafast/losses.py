"""Losses as modules over `dafast.ops`."""

from __future__ import annotations

from torch import Tensor, nn

from dafast.ops import affine_invariant_loss


class AffineInvariantLoss(nn.Module):
    """The labeled loss of Depth Anything (Eqs. 1-3): distance of disparity up to scale and shift.

    Each map is centred by its median and scaled by its mean absolute deviation over the valid
    pixels; the loss is the mean absolute difference, averaged over the maps. A map without a valid
    pixel counts as 0.
    """

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compares (B, H, W) disparity maps; `mask` is True where the target is valid."""
        return affine_invariant_loss(prediction, target, mask)
