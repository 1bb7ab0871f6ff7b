"""The messages between the server and its workers.

The bytes of pictures and files are `PickleBuffer`s in a pickle, so that a `Channel` does not copy
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pickle import PickleBuffer
from typing import Any


@dataclass(frozen=True)
class PredictOptions:
    """The options of a prediction; pictures with the same options share a batch.

    Attributes:
        model: Name of the model.
        size: Side in pixels that the network sees; None for the model's own.
        fit: Size rule; None for the model's own.
        fov: Horizontal field of view in degrees, or None.
    """

    model: str
    size: int | None = None
    fit: str | None = None
    fov: float | None = None


@dataclass(frozen=True)
class Job:
    """One picture and the file to make of it.

    Attributes:
        data: Bytes of the picture file.
        options: How to predict it.
        format: A name of `dafast.serve.encoding.FORMATS`.
        palette: Colours of the format ``color``.
    """

    data: bytes = field(repr=False)
    options: PredictOptions
    format: str = "png16"
    palette: str = "Spectral_r"

    def __reduce__(self) -> tuple[Any, ...]:
        return Job, (PickleBuffer(self.data), self.options, self.format, self.palette)


@dataclass(frozen=True)
class Answer:
    """The answer to a job.

    Attributes:
        status: HTTP status.
        body: The file; for an error its message in UTF-8.
        facts: What the map means, as text for HTTP headers.
    """

    status: int
    body: bytes = field(repr=False)
    facts: dict[str, str] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return Answer, (self.status, PickleBuffer(self.body), self.facts)


def refuse(status: int, message: str) -> Answer:
    """The answer of an error."""
    return Answer(status, message.encode())
