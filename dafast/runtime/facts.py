"""Facts of an exported file: strings in its metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._version import __version__
from ..config import ModelConfig

_PREFIX = "dafast."


class NotExportedError(ValueError):
    """A file was not written by `dafast export`."""


@dataclass(frozen=True)
class FileFacts:
    """The facts of an exported file.

    Attributes:
        config: Configuration of the model; of a segmentation model that of its encoder.
        classes: Names of the classes of a segmentation model; empty for depth.
        dtype: ``"float32"``, ``"float16"`` or ``"int8"``.
        shape: Height and width of the input; None for any multiples of the patch size (with
            ``preprocess`` any size).
        batch: Number of images, or clips, of a call; None for any.
        frames: Length of the clips that a model with temporal modules takes; 0 for images.
        preprocess: Whether the input is photos, not normalised images.
        weights: Digest of the weights, as in the results of `dafast run`.
        version: The version of dafast that wrote the file.
    """

    config: ModelConfig
    classes: tuple[str, ...] = ()
    dtype: str = "float32"
    shape: tuple[int, int] | None = None
    batch: int | None = None
    preprocess: bool = False
    frames: int = 0
    weights: str = ""
    version: str = __version__

    @property
    def input_name(self) -> str:
        """``"pixel_values"``: (B, 3, H, W) float32, of clips (B, frames, 3, H, W).

        With ``preprocess`` ``"photo"``: (B, H, W, 3) uint8 RGB.
        """
        return "photo" if self.preprocess else "pixel_values"

    @property
    def output_names(self) -> tuple[str, ...]:
        """``"predicted_depth"`` (B, H, W), with ``"sky"`` (B, H, W); or ``"logits"``.

        The depth of clips is (B, frames, H, W).
        """
        if self.classes:
            return ("logits",)
        return ("predicted_depth", "sky") if self.config.sky_head else ("predicted_depth",)

    @property
    def kind(self) -> str:
        """``"disparity"``, ``"depth"``, ``"metric"`` or ``"classes"``."""
        return "classes" if self.classes else self.config.quantity

    def to_strings(self) -> dict[str, str]:
        """The facts as strings by name, for the metadata of a file."""
        config = self.config
        facts: dict[str, Any] = {
            "kind": self.kind,
            "unit": "" if self.classes else config.unit,
            "mean": config.mean,
            "std": config.std,
            "patch": config.patch_size,
            "fit": "pad" if self.classes else config.fit,
            "size": config.image_size,
            "license": config.license,
            "version": self.version,
            "dtype": self.dtype,
            "shape": self.shape or "dynamic",
            "batch": self.batch or "dynamic",
            "preprocess": self.preprocess,
            "frames": self.frames,
            "classes": self.classes,
            "weights": self.weights,
            "config": dataclasses.asdict(config),
        }
        return {
            _PREFIX + name: value if isinstance(value, str) else json.dumps(value)
            for name, value in facts.items()
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], name: str = "the file") -> FileFacts:
        """Reads the facts that `to_strings` wrote.

        Args:
            strings: The metadata of a file.
            name: Name of the file in messages.

        Raises:
            NotExportedError: If they are missing or not valid.
        """
        found = {k.removeprefix(_PREFIX): v for k, v in strings.items() if k.startswith(_PREFIX)}
        try:
            config = json.loads(found["config"])
            tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
            shape, batch = found["shape"], found["batch"]
            return cls(
                ModelConfig.from_dict(tuples),
                tuple(json.loads(found["classes"])),
                found["dtype"],
                None if shape == "dynamic" else tuple(json.loads(shape)),
                None if batch == "dynamic" else int(batch),
                json.loads(found["preprocess"]),
                int(found.get("frames", 0)),
                found["weights"],
                found["version"],
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise NotExportedError(
                f"{name}: not a file of `dafast export`: dafast's facts are missing "
                f"or not valid ({type(error).__name__}: {error})"
            ) from error
