"""Losses as modules over `dafast.ops`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dafast.ops import affine_invariant_loss, feature_alignment_loss
from dafast.ops.affine_invariant_loss import MIN_SCALE, lower_medians
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
            regions: True in the first of two regions that are compared separately (CutMix).
        """
        return affine_invariant_loss(prediction, target, mask, regions=regions)


class GradientMatchingLoss(nn.Module):
    """MiDaS's multi-scale gradient-matching term: edges where the target has them.

    With d_hat as in `AffineInvariantLoss` and R = d_hat_prediction - d_hat_target, the sum over
    `scales` resolutions, each with every second pixel of the one before, of
    (1/M) sum (|R(x + 1, y) - R(x, y)| + |R(x, y + 1) - R(x, y)|), over neighbours that are both
    valid; M is the number of valid pixels at that resolution (Ranftl et al., TPAMI 2022, Eq. 11).
    The maps are averaged; one without a valid pixel counts as 0, in the gradient too.

    Where the paper leaves a choice: M counts the pixels of a map, not of the batch, and pixels are
    taken, not averaged, on the way to a coarser resolution.

    Args:
        scales: Resolutions, the full one included.
    """

    def __init__(self, scales: int = 4) -> None:
        super().__init__()
        self.scales = scales

    @annotate("gradient_matching_loss")
    def forward(
        self,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        regions: Tensor | None = None,
    ) -> Tensor:
        """Compares (B, H, W) disparity maps; in float32 inside, or float64 for float64.

        Args:
            prediction: Disparity (B, H, W).
            target: Disparity (B, H, W); it gets no gradient.
            mask: Bool, True where the target is valid; everywhere by default.
            regions: Bool, True in the first of two regions that are compared separately, each
                weighted by its share of the map (CutMix).
        """
        compute = torch.promote_types(prediction.dtype, torch.float32)
        prediction, target = prediction.to(compute), target.detach().to(compute)
        if prediction.numel() == 0:
            return prediction.sum()  # 0, with a graph
        if mask is None:
            mask = torch.ones_like(prediction, dtype=torch.bool)
        if regions is None:
            return self._maps(prediction, target, mask).mean()
        share = regions.to(compute).mean(dim=(1, 2))
        inside = self._maps(prediction, target, mask & regions)
        outside = self._maps(prediction, target, mask & ~regions)
        return (share * inside + (1.0 - share) * outside).mean()

    def _maps(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The loss of each map (B,)."""
        residual = normalise_maps(prediction, mask) - normalise_maps(target, mask)
        total = residual.new_zeros(len(residual))
        for scale in range(self.scales):
            step = 2**scale
            r, m = residual[:, ::step, ::step], mask[:, ::step, ::step]
            across = (r[:, :, 1:] - r[:, :, :-1]).abs() * (m[:, :, 1:] & m[:, :, :-1])
            down = (r[:, 1:] - r[:, :-1]).abs() * (m[:, 1:] & m[:, :-1])
            pixels = m.sum(dim=(1, 2)).clamp_min(1)
            total = total + (across.sum(dim=(1, 2)) + down.sum(dim=(1, 2))) / pixels
        return total


class TemporalGradientMatchingLoss(nn.Module):
    """Video-Depth-Anything's temporal term: disparity changes from frame to frame as it should.

    The prediction of each clip is fitted to the target by one least-squares scale and shift, with
    their gradient. The loss is the mean of |change of the prediction - change of the target| from
    frame to frame, over all pixels of the batch that are valid in both frames and whose target
    changes by less than `threshold` of the range of the later frame. Moving edges, where a pixel
    shows another object, do not count. Without a pixel that counts it is 0.

    Args:
        threshold: Fraction of the range of the target in a frame.
    """

    def __init__(self, threshold: float = 0.05) -> None:
        super().__init__()
        self.threshold = threshold

    @annotate("temporal_gradient_matching_loss")
    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compares (B, T, H, W) disparity maps; in float32 inside, or float64 for float64.

        Args:
            prediction: Disparity (B, T, H, W).
            target: Disparity (B, T, H, W); it gets no gradient.
            mask: Bool, True where the target is valid; everywhere by default.
        """
        compute = torch.promote_types(prediction.dtype, torch.float32)
        prediction, target = prediction.to(compute), target.detach().to(compute)
        if mask is None:
            mask = torch.ones_like(prediction, dtype=torch.bool)
        target = target.where(mask, 0.0)
        change = self._fitted(prediction.where(mask, 0.0), target, mask).diff(dim=1)
        wanted = target.diff(dim=1)
        low = target.masked_fill(~mask, torch.inf).amin(dim=(2, 3), keepdim=True)
        high = target.masked_fill(~mask, -torch.inf).amax(dim=(2, 3), keepdim=True)
        limit = self.threshold * (high - low)[:, 1:]
        counted = mask[:, 1:] & mask[:, :-1] & (wanted.abs() < limit)
        error = (change - wanted).abs().where(counted, 0.0)
        return error.sum() / counted.sum().clamp_min(1)

    @staticmethod
    def _fitted(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The prediction with the scale and the shift of each clip; 0 where none are determined."""
        over = (1, 2, 3)
        count = mask.sum(dim=over, keepdim=True)
        mean = prediction.sum(dim=over, keepdim=True) / count.clamp_min(1)
        wanted = target.sum(dim=over, keepdim=True) / count.clamp_min(1)
        centred = (prediction - mean).where(mask, 0.0)
        product = (centred * target).sum(dim=over, keepdim=True)
        square = centred.square().sum(dim=over, keepdim=True)
        scale = count * product / (count * square + 1e-6)
        return (scale * (prediction - mean) + wanted).where(square > 0, 0.0)


def normalise_maps(disparity: Tensor, mask: Tensor) -> Tensor:
    """(d - t) / s of maps (B, H, W) over their valid pixels, 0 elsewhere (Depth Anything, Eq. 2).

    t is the lower median, s the mean of |d - t|, at least 1e-6. Invalid pixels may hold any value,
    also NaN. The gradient through t is divided equally over the pixels equal to it.
    """
    count = mask.sum(dim=(1, 2), keepdim=True)
    disparity = disparity.where(mask, 0.0)
    middle = lower_medians(disparity.detach(), mask)[:, None, None]
    ties = mask & (disparity == middle)
    share = ties.to(disparity.dtype) / ties.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    # The sum is exactly 0; it is there for its gradient.
    shift = middle + (share * (disparity - middle)).sum(dim=(1, 2), keepdim=True)
    centred = (disparity - shift).where(mask, 0.0)
    scale = centred.abs().sum(dim=(1, 2), keepdim=True) / count.clamp_min(1)
    return centred / scale.clamp_min(MIN_SCALE)


class SILogLoss(nn.Module):
    """The scale-invariant logarithmic loss on depth in metres (Eigen et al., NIPS 2014).

    With g = ln prediction - ln target over all valid pixels of the batch together:
    weight * sqrt(var(g) + beta * mean(g)^2), as AdaBins and ZoeDepth have it. (Their variance is
    divided by n - 1, here by n, so that a single pixel gives no NaN.) A batch without a valid pixel
    counts as 0, and so does a perfect one, with a gradient of 0.

    The loss of a batch is not the mean of the losses of its pieces, but a function of three sums
    over its pixels: `of_sums` of the `sums` of all pieces is the loss of the whole.

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
        error = self._error(prediction, target, mask)
        count = mask.sum().clamp(min=1)
        mean = error.sum() / count
        variance = torch.where(mask, (error - mean) ** 2, 0.0).sum() / count
        return self._root(variance + self.beta * mean**2)

    def sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """(3,) float64: the number of valid pixels, the sum of g and that of g^2.

        The arguments are those of `forward`.
        """
        error = self._error(prediction, target, mask).double()
        return torch.stack([mask.sum().double(), error.sum(), error.square().sum()])

    def of_sums(self, sums: Tensor) -> Tensor:
        """The loss from `sums`, added up over the pieces of a batch: a float64 scalar."""
        count, total, squares = sums.unbind()
        mean, square = total / count.clamp(min=1), squares / count.clamp(min=1)
        return self._root(square - (1.0 - self.beta) * mean**2)

    @staticmethod
    def _error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        ratio = prediction.clamp(min=1e-7).log() - torch.where(mask, target, 1.0).log()
        return torch.where(mask, ratio, 0.0)  # NaN where invalid gives no gradient either

    def _root(self, squared: Tensor) -> Tensor:
        zero = squared <= 0  # where the root has no slope; below 0 only by rounding
        return self.weight * torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


class FeatureAlignmentLoss(nn.Module):
    """Keeps the student encoder's features near those of a frozen one (Eq. 9).

    Args:
        margin: Tokens with a larger cosine similarity are ignored.
        reduction: Divide by ``"all"`` tokens or by those ``"kept"``.
    """

    def __init__(self, margin: float = 0.85, reduction: str = "all") -> None:
        super().__init__()
        self.margin, self.reduction = margin, reduction

    @annotate("feature_alignment_loss")
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares (B, N, C) features; only the student gets a gradient."""
        return feature_alignment_loss(
            student, teacher, margin=self.margin, reduction=self.reduction
        )
