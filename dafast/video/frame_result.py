"""The result of one frame of a video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..result import DepthResult
from .source import Frame, VideoInfo
from .stabilization import StabilizedFrame


@dataclass(frozen=True, eq=False, repr=False)
class FrameResult(DepthResult):
    """A `DepthResult` with the place of the frame in its video.

    Attributes:
        number: Number of the frame among those from the start on, from 0; frames that are left out
            count.
        time: Seconds from the start.
        display_range: Smallest and largest disparity to show, smoothed over the frames: `colored`
            and `normalized` of a disparity take it as ``low`` and ``high``.
        cut: Whether another shot begins with the frame.
    """

    number: int = 0
    time: float = 0.0
    display_range: tuple[float, float] = (0.0, 0.0)
    cut: bool = False


def frame_result(
    result: DepthResult,
    steady: StabilizedFrame,
    frame: Frame,
    info: VideoInfo,
    keep_image: bool = False,
) -> FrameResult:
    """The result of a frame with the stabilized values; depth stays depth.

    Args:
        result: What the model predicted.
        steady: Its disparity, stabilized.
        frame: The frame.
        info: Facts of the video.
        keep_image: Whether the result holds the frame.
    """
    values = steady.values
    if result.kind == "depth":
        same = steady.scale == 1 and steady.shift == 0
        values = result.values if same else _inverse(values)
    return FrameResult(
        values,
        kind=result.kind,
        unit=result.unit,
        image=frame.pixels if keep_image else None,
        intrinsics=result.intrinsics,
        camera_source=result.camera_source,
        name=info.name,
        model=result.model,
        number=frame.number,
        time=info.seconds(frame.pts),
        display_range=(steady.low, steady.high),
        cut=steady.cut,
    )


def _inverse(values: np.ndarray) -> np.ndarray:
    """1 / values, NaN where a value is not positive."""
    out = np.full(values.shape, np.nan, np.float32)
    return np.divide(1, values, out=out, where=values > 0)
