"""Losses as modules over `dafast.ops`."""

from __future__ import annotations

import torch
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


class SILogLoss(nn.Module):
    """The scale-invariant logarithmic loss on depth in metres (Eigen et al., NIPS 2014).

    With g = ln prediction - ln target over all valid pixels of the batch together:
    weight * sqrt(var(g) + beta * mean(g)^2), as AdaBins and ZoeDepth have it. (Their variance is
    divided by n - 1, here by n, so that one pixel alone is no NaN.) A batch without a valid pixel
    counts as 0, and so does a perfect one, with a gradient of 0.

    Args:
        beta: Share of the squared mean error, the error of the overall scale, that counts.
        weight: Factor of the loss.
    """

    def __init__(self, beta: float = 0.15, weight: float = 10.0) -> None:
        super().__init__()
        self.beta, self.weight = beta, weight

    @annotate("silog_loss")
    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Compares (B, H, W) depth maps.

        Args:
            prediction: Depth in metres, 0 or more; raised to 1e-7.
            target: True depth in metres, positive where ``mask``.
            mask: True where the target is valid.
        """
        tiny = 1e-7
        ratio = prediction.clamp(min=tiny).log() - torch.where(mask, target, 1.0).log()
        error = torch.where(mask, ratio, 0.0)  # what is invalid gives no gradient, NaN neither
        count = mask.sum().clamp(min=1)
        mean = error.sum() / count
        variance = torch.where(mask, (error - mean) ** 2, 0.0).sum() / count
        squared = variance + self.beta * mean**2
        zero = squared == 0  # where the root has no slope
        return self.weight * torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


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
