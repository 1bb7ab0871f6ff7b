"""Losses as modules over `dafast.ops`."""

from __future__ import annotations

from torch import Tensor, nn

from dafast.ops import affine_invariant_loss, feature_alignment_loss
from dafast.profiling import annotate


class AffineInvariantLoss(nn.Module):
    """The loss of Depth Anything on disparity (Eqs. 1-3, 7-8): distance up to scale and shift.

    Each map is centred by its median and scaled by its mean absolute deviation over the valid
    pixels; the loss is the mean absolute difference, averaged over the maps. A map without a valid
    pixel counts as 0.
    """

    @annotate("affine_invariant_loss")
    def forward(
        self,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        regions: Tensor | None = None,
    ) -> Tensor:
        """Compares (B, H, W) disparity maps.

        Args:
            prediction: Disparity (B, H, W).
            target: Disparity (B, H, W).
            mask: True where the target is valid; everywhere by default.
            regions: True in the first of two regions that are compared apart (CutMix).
        """
        return affine_invariant_loss(prediction, target, mask, regions=regions)


class FeatureAlignmentLoss(nn.Module):
    """Keeps the student encoder's features near those of a frozen one (Eq. 9).

    Args:
        margin: Tokens with a larger cosine similarity are near enough and take no part.
        reduction: Divide by ``"all"`` tokens or by those ``"kept"``.
    """

    def __init__(self, margin: float = 0.85, reduction: str = "all") -> None:
        super().__init__()
        self.margin, self.reduction = margin, reduction

    @annotate("feature_alignment_loss")
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares (B, N, C) features; the gradient goes to the student alone."""
        return feature_alignment_loss(
            student, teacher, margin=self.margin, reduction=self.reduction
        )
