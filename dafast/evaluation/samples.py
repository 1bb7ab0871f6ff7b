"""Photos with their truth, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class DataMissingError(FileNotFoundError):
    """A data set is missing; the message says how to get it, or its layout."""


@dataclass(frozen=True)
class EvaluationSample:
    """One photo with its truth.

    Attributes:
        name: Key within its data set.
        image: uint8 (H, W, 3), RGB.
        depth: float32 (H, W), metres; 0, inf or NaN where unknown or infinitely far.
        max_depth: Usual cap of the data set in metres; inf without one.
        crop: (top, bottom, left, right) in pixels, bottom and right exclusive: the part that
            benchmarks of this data set measure; ``None`` for all of it.
        sharp: Whether the truth is dense and sharp enough to measure boundaries by.
    """

    name: str
    image: np.ndarray
    depth: np.ndarray
    max_depth: float
    crop: tuple[int, int, int, int] | None = None
    sharp: bool = False


class Samples(Sequence[EvaluationSample]):
    """A data set whose samples are read on access and not kept.

    Args:
        entries: What identifies each sample, in order.
        load: Reads the sample of an entry.
    """

    def __init__(self, entries: Sequence[Any], load: Callable[[Any], EvaluationSample]) -> None:
        self.entries = entries
        self.load = load

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        """One sample, or for a slice the data set that has only those.

        Raises:
            ValueError: If the truth has another size than the photo.
        """
        if isinstance(index, slice):
            return Samples(self.entries[index], self.load)
        sample = self.load(self.entries[index])
        if sample.depth.shape != sample.image.shape[:2]:
            raise ValueError(
                f"{sample.name}: the depth map is {sample.depth.shape} and the image "
                f"{sample.image.shape[:2]} (height, width); they must be of one size"
            )
        return sample
