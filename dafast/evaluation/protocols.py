"""Protocols: how published tables turn predictions into scores.

docs/evaluation.md has the sources, and what they do not specify.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .alignment import ALIGNMENTS
from .metrics import MIN_DEPTH
from .samples import EvaluationSample


@dataclass(frozen=True)
class Protocol:
    """Which pixels count, how a prediction is fitted to them, and where it is clamped.

    Attributes:
        name: As in `PROTOCOLS`.
        alignment: One of `alignment.ALIGNMENTS`.
        crop: Whether the data set's usual crop is applied (Garg's of KITTI, Eigen's of NYUv2).
        cap: ``"data"``: truth beyond the data set's maximal depth does not count, and predictions
            are clamped to it. ``"truth"``: all known truth counts, and predictions are clamped to
            the largest true depth of the image.
    """

    name: str
    alignment: str = "scale_shift"
    crop: bool = True
    cap: str = "data"

    def mask(self, sample: EvaluationSample) -> np.ndarray:
        """Pixels that count, bool (H, W)."""
        limit = sample.max_depth if self.cap == "data" else math.inf
        with np.errstate(invalid="ignore"):
            mask = (sample.depth > MIN_DEPTH) & (sample.depth < limit)
        if self.crop and sample.crop is not None:
            top, bottom, left, right = sample.crop
            inside = np.zeros_like(mask)
            inside[top:bottom, left:right] = True
            mask &= inside
        return mask

    def max_depth(
        self, sample: EvaluationSample, mask: np.ndarray, *, fitted: bool = True
    ) -> float:
        """The depth that predictions are clamped to, metres: the largest true depth without a cap.

        Predictions that are not fitted to the truth are not clamped to its largest depth.
        """
        if self.cap == "data" and math.isfinite(sample.max_depth):
            return sample.max_depth
        if not fitted:
            return 1e4  # keeps 1 / 0 finite
        return float(sample.depth[mask].max())


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("paper"),
        Protocol("midas", crop=False),
        Protocol("moge", crop=False, cap="truth"),
    )
}
"""The presets by name."""


def get_protocol(name: str, alignment: str | None = None) -> Protocol:
    """The preset of this name, with another alignment if one is given: "paper+median".

    Raises:
        ValueError: If the preset or the alignment is unknown.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; there are: {', '.join(PROTOCOLS)}")
    if alignment is None:
        return PROTOCOLS[name]
    if alignment not in ALIGNMENTS:
        raise ValueError(f"no alignment {alignment!r}; there are: {', '.join(ALIGNMENTS)}")
    return replace(PROTOCOLS[name], name=f"{name}+{alignment}", alignment=alignment)
