"""Compares an exported file with the model at sizes and batches that it was not traced with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..config import SKY_FILLED
from ..runtime import FileFacts
from .network import ExportedNetwork
from .photos import photo_outputs
from .quantize import file_inputs

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Runs an exported file: its input to its outputs."""

TOLERANCES = {"float32": (1e-3, 2e-4), "float16": (0.1, 0.02), "int8": (0.5, 0.05)}
"""The largest accepted maximum and mean error by data type, as fractions of the output's range."""


class VerificationError(ValueError):
    """An exported file does not give the results of the model."""


@dataclass(frozen=True)
class Check:
    """The comparison of one output for one batch.

    Attributes:
        output: Name of the output.
        shape: Shape of the input.
        maximum: Largest absolute difference.
        mean: Mean absolute difference.
        range: Largest minus smallest value of the model's own output.
    """

    output: str
    shape: tuple[int, ...]
    maximum: float
    mean: float
    range: float

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return (
            f"{self.output} of {size}: max error {self.maximum:.2e}, mean {self.mean:.2e} "
            f"(range {self.range:.3g})"
        )

    @property
    def relative(self) -> tuple[float, float]:
        """The maximum and the mean as fractions of the range; of a constant output as they are."""
        scale = self.range or 1.0
        return self.maximum / scale, self.mean / scale

    def is_within(self, dtype: str) -> bool:
        """Whether the errors are finite and at most `TOLERANCES`."""
        pairs = zip(self.relative, TOLERANCES[dtype], strict=True)
        return all(error <= bound for error, bound in pairs)  # False for NaN


def checked_sizes(facts: FileFacts, least: int = 1) -> list[tuple[int, int, int]]:
    """Chooses batch, height and width of the inputs of a verification.

    Five different sizes with batches of 1 to 3, among them the trained one; for a
    file with a fixed size only that size.
    """
    grid, patch = max(facts.config.grid_size, least), facts.config.patch_size
    large = max(grid, 10)  # so that the sizes differ for small grids, too
    patches = [
        (grid, grid),
        (grid, grid + 5),
        (3, 7),
        (grid + 3, 3),
        (large // 2 + 3, large // 3 + 9),
    ]
    sizes = [(max(rows, least) * patch, max(columns, least) * patch) for rows, columns in patches]
    if facts.preprocess:
        sizes = [(200, 301), (301, 200), (97, 97), (33, 420), (171, 128)]
    batches: tuple[int, ...] = (1, 1, 2, 3, 2)
    if facts.shape is not None:
        sizes, batches = [facts.shape] * 3, (1, 2, 3)
    if facts.batch is not None:
        sizes = list(dict.fromkeys(sizes))
        batches = (facts.batch,) * len(sizes)
    return [(b, *size) for b, size in zip(batches, sizes, strict=True)]


def compare(
    facts: FileFacts, images: np.ndarray, outputs: Sequence[np.ndarray], truth: Sequence[np.ndarray]
) -> list[Check]:
    """Compares the outputs of a file with the outputs of the model for one input.

    Depth is compared where both fill the sky, or both do not: rounding decides at the threshold.
    The sky itself is compared everywhere.
    """
    checks = []
    same: Any = slice(None)
    if "sky" in facts.output_names and outputs[1].shape == truth[1].shape:
        same = (outputs[1] >= SKY_FILLED) == (truth[1] >= SKY_FILLED)
    for name, out, true in zip(facts.output_names, outputs, truth, strict=True):
        if out.shape != true.shape:
            raise VerificationError(
                f"{name} of {images.shape} has the shape {out.shape}; the model gives {true.shape}"
            )
        error = np.abs(out.astype(np.float64) - true)
        if name != "sky":
            error = error[same]
        span = float(true.max() - true.min())
        checks.append(
            Check(
                name,
                images.shape,
                float(error.max(initial=0)),
                float(error.mean() if error.size else 0),
                span,
            )
        )
    return checks


def verify(
    model: nn.Module,
    facts: FileFacts,
    run: Run,
    *,
    photos: Sequence[Any] = (),
    least: int = 1,
    seed: int = 1,
) -> tuple[list[Check], list[Check]]:
    """Runs a file and the model, which uses PyTorch's own path, on the same images.

    Args:
        model: See `ExportedNetwork`.
        facts: What the file is.
        run: Runs the file.
        photos: Images to use, stretched to the sizes, or padded to a fixed one as
            `dafast.runtime` does; random ones by default. A quantised file is only right for images
            like those that it was calibrated with.
        least: The fewest patches a side that the file takes.
        seed: Of the random images.

    Returns:
        All comparisons, and those outside of `TOLERANCES`.
    """
    random = np.random.default_rng(seed)
    reference = ExportedNetwork(model, frames=facts.frames)
    clip = (facts.frames,) if facts.frames else ()
    checks: list[Check] = []
    for batch, height, width in checked_sizes(facts, least):
        if photos:
            chosen = [photos[i % len(photos)] for i in range(batch)]
            size = (height, width) if facts.shape is None else None
            images = np.concatenate(list(file_inputs(facts, chosen, size)))
        elif facts.preprocess:
            images = random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        else:
            shape = (batch, *clip, 3, height, width)
            images = random.standard_normal(shape, dtype=np.float32)
        if facts.preprocess:
            truth = photo_outputs(reference, facts, images)
        else:
            with torch.no_grad():
                truth = [out.numpy() for out in reference(torch.from_numpy(images))]
        checks += compare(facts, images, run(images), truth)
    return checks, [check for check in checks if not check.is_within(facts.dtype)]
