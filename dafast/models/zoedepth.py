"""ZoeDepth's head: metres from bins, on the encoder and decoder of a relative model.

Bhat et al., "ZoeDepth" (arXiv 2302.12288): every pixel has 64 depths, its bin centres. Seeds come
from the deepest features of the decoder. At each finer level attractors, points predicted from its
features, pull the centres near them. The depth of a pixel is the mean of its centres under a
binomial distribution over the bins, whose two parameters are predicted from the decoder's last
features, its relative depth and the last embedding. This is the variant of Depth Anything V1's
metric models; names and arithmetic follow the published code, which the weights were trained with.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.resize_bilinear import interpolate
from ..profiling import annotate

BINS = 64
EMBEDDING = 128
ATTRACTORS = (16, 8, 4, 1)
MIN_DEPTH = 1e-3
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.0212, 50.0

_SEED_HIDDEN = 256
_TAIL_FEATURES = 32  # of the decoder's output_conv2[1]
# The published configuration says 1000, but its code never passes it on: the default acts.
_ATTRACTION = 300.0
_EPS = 1e-4


class PixelMLP(nn.Module):
    """Two 1x1 convolutions; the layers are under ``_net``, as in the published files.

    Args:
        channels: Input channels.
        hidden: Channels between the two.
        out: Output channels.
        last: Activation of the output, or None.
    """

    def __init__(self, channels: int, hidden: int, out: int, last: nn.Module | None = None) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, out, 1)]
        self._net = nn.Sequential(*layers, *([] if last is None else [last]))

    @property
    def bias(self) -> Tensor:
        """The bias of the output."""
        bias = self._net[2].bias
        assert isinstance(bias, Tensor)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, out, h, w)."""
        return self._net(x)


class BinomialParameters(nn.Module):
    """The distribution over the bins: success probability and temperature of each pixel.

    Args:
        channels: Channels of the features and the embedding together.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 1),
            nn.GELU(),
            nn.Conv2d(channels // 2, 4, 1),
            nn.Softplus(),
        )

    def forward(self, features: Tensor, embedding: Tensor, dtype: torch.dtype) -> Tensor:
        """Probabilities of the bins in each pixel.

        Args:
            features: (B, C, H, W).
            embedding: (B, D, h, w), of any resolution.
            dtype: Data type of the result.

        Returns:
            (B, 64, H, W).
        """
        first, *rest = self.mlp
        assert isinstance(first, nn.Conv2d)
        # The reference enlarges the embedding and stacks both. The convolution is linear and
        # commutes with an interpolation, so most of it can run on a third of the pixels.
        count = int(features.shape[1])  # a traced program keeps it: no slices of weights
        hidden = F.conv2d(features, first.weight[:, :count], first.bias)
        out = hidden + _resize(F.conv2d(embedding, first.weight[:, count:]), features)
        for module in rest:
            out = module(out)
        out = out.to(dtype) + _EPS
        ratio = out[:, ::2] / (out[:, ::2] + out[:, 1::2])  # two pairs, each to one number in 0..1
        temperature = MIN_TEMPERATURE + (MAX_TEMPERATURE - MIN_TEMPERATURE) * ratio[:, 1:]
        return log_binomial(ratio[:, :1], temperature)


def log_binomial(probability: Tensor, temperature: Tensor) -> Tensor:
    """Softmax over the bins of log(C(63, k) p^k (1 - p)^(63 - k)) / t, k = 0 .. 63.

    The binomial coefficient is Stirling's approximation, with which the weights were trained.

    Args:
        probability: (B, 1, h, w), in 0..1.
        temperature: (B, 1, h, w), positive.

    Returns:
        (B, 64, h, w), in the dtype of ``probability``.
    """
    n = BINS - 1 + 1e-7
    k = torch.arange(BINS, dtype=probability.dtype, device=probability.device).view(-1, 1, 1)
    shifted = k + 1e-7
    coefficient = (
        n * math.log(n) - shifted * shifted.log() - (n - shifted) * (n - shifted + 1e-7).log()
    )
    # (63 - k) log(1 - p) without 63 log(1 - p), which is the same for all bins and has no effect
    # on a softmax.
    odds = probability.clamp(_EPS, 1).log() - (1 - probability).clamp(_EPS, 1).log()
    return torch.addcmul(coefficient / temperature, k, odds / temperature).softmax(dim=1)


def attract(centers: Tensor, attractors: Tensor) -> Tensor:
    """Moves bin centres towards attractors: by the mean over these of d / (1 + 300 d^2).

    Args:
        centers: (B, 64, h, w).
        attractors: (B, a, h, w).
    """
    shift, one = torch.zeros_like(centers), centers.new_ones(())
    for attractor in attractors.split(1, dim=1):  # one at a time: all at once is 16 times as much
        distance = attractor - centers
        softened = torch.addcmul(one, distance, distance, value=_ATTRACTION)
        shift = torch.addcdiv(shift, distance, softened)
    return centers + shift / attractors.shape[1]


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, like.shape[2:], align_corners=True)


class MetricBinsHead(nn.Module):
    """Metric depth from the activations of a `dafast.models.dpt.DPTHead`.

    With ``config.bin_centers`` "softplus", centres are any positive metres. With "normed", seeds
    partition the range from `MIN_DEPTH` to ``config.max_depth``, centres and attractors are shares
    of it, and values outside are clipped; the network then has two numbers for each attractor, of
    which only the first has an effect, as in the published code.

    Args:
        config: Width of the decoder, kind of the bins, largest depth.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.max_depth is None or config.bin_centers not in ("softplus", "normed"):
            raise ValueError(f"the configuration {config.name!r} has no metric bins")
        self.normed = config.bin_centers == "normed"
        self.max_depth = config.max_depth
        features = config.features
        positive = nn.ReLU if self.normed else nn.Softplus
        self.conv2 = nn.Conv2d(features, features, 1)
        self.seed_bin_regressor = PixelMLP(features, _SEED_HIDDEN, BINS, positive())
        self.seed_projector = PixelMLP(features, EMBEDDING, EMBEDDING)
        self.projectors = nn.ModuleList(PixelMLP(features, EMBEDDING, EMBEDDING) for _ in range(4))
        self.attractors = nn.ModuleList(
            PixelMLP(EMBEDDING, EMBEDDING, count * (2 if self.normed else 1), positive())
            for count in ATTRACTORS
        )
        self.conditional_log_binomial = BinomialParameters(_TAIL_FEATURES + 1 + EMBEDDING)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights, with seeds spread over the range at equal ratios.

        The published start has all bins at 0.7 m. Attraction falls with the distance, so bins that
        start together take many steps to reach far depths.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        if self.normed:
            return  # equal shares of the range, as published
        if self.conv2.weight.is_meta:
            return  # nothing to fill
        near = self.max_depth / 100
        with torch.no_grad():
            for mlp, count in [
                (self.seed_bin_regressor, BINS),
                *zip(self.attractors, ATTRACTORS, strict=True),
            ]:
                place = (torch.arange(count, dtype=torch.float64) + 0.5) / count
                center = near * (self.max_depth / near) ** place
                assert isinstance(mlp, PixelMLP)
                mlp.bias.copy_(center + torch.log(-torch.expm1(-center)))  # softplus, inverted

    @annotate("metric_head")
    def forward(self, relative: Tensor, features: Tensor, fused: list[Tensor]) -> Tensor:
        """Predicts depth in metres.

        Args:
            relative: The decoder's own map (B, 1, H, W).
            features: The features that the map was computed from (B, 32, H, W).
            fused: The decoder's deepest map and its four fused ones, the coarsest first,
                (B, F, h, w) each.

        Returns:
            (B, 1, H, W), float32 for any dtype of the weights (float64 for float64 weights).
        """
        wide = torch.promote_types(relative.dtype, torch.float32)
        bottleneck = self.conv2(fused[0])
        centers = self._seeds(self.seed_bin_regressor(bottleneck).to(wide))
        embedding = self.seed_projector(bottleneck)
        for level, projector, attractor in zip(
            fused[1:], self.projectors, self.attractors, strict=True
        ):
            projected = projector(level)
            points = attractor(projected + _resize(embedding, projected)).to(wide)
            if self.normed:
                points = points[:, ::2] + 1e-3
            centers = attract(_resize(centers, points), points)
            embedding = projected
        if self.normed:
            centers = MIN_DEPTH + (self.max_depth - MIN_DEPTH) * centers
            centers = centers.sort(dim=1).values.clamp(MIN_DEPTH, self.max_depth)
        last = torch.cat([features, relative.to(features.dtype)], dim=1)
        share = self.conditional_log_binomial(last, embedding, wide)
        return (share * _resize(centers, last)).sum(dim=1, keepdim=True)

    def _seeds(self, out: Tensor) -> Tensor:
        """Centres (B, 64, h, w) from the regressor's output: metres, or shares of the range."""
        if not self.normed:
            return out
        widths = out + 1e-3
        widths = widths / widths.sum(dim=1, keepdim=True)
        return widths.cumsum(dim=1) - 0.5 * widths
