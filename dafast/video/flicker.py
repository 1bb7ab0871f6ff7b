"""The flicker number: how much disparity changes where the picture does not."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .cuts import CutDetector, luma, reduced, unchanged
from .flow import optical_flow, require_flow, warp

SIDE = 256
"""Longer side of the maps that are compared; frames are reduced to it."""

_RANGE = (2, 98)  # percentiles of a map whose distance is the unit


class FlickerMeter:
    """Adds up the flicker of a video, frame by frame, in constant memory.

    For two successive frames of a shot, the optical flow carries the first map to the second. The
    number is the mean absolute difference over the pixels whose brightness stays the same, in
    percent of the range of disparity (2nd to 98th percentile, mean over the video). A scale or
    shift of the whole video does not change it. Objects that come nearer have a true change of
    disparity: the number of a moving scene is not 0 for perfect maps, so compare numbers of one
    video only.

    Raises:
        MissingPackageError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        require_flow()
        self.cuts = CutDetector()
        self.frames, self.cut_count, self.pairs = 0, 0, 0
        self.compared = 0.0
        self.change: np.ndarray | None = None
        self.range: np.ndarray | None = None
        self._grey: np.ndarray | None = None
        self._maps: list[np.ndarray] = []

    def add(self, frame: np.ndarray, *maps: np.ndarray) -> None:
        """Adds a frame with one or more maps, for example the model's and the stabilized one.

        Args:
            frame: RGB, uint8 (H, W, 3).
            *maps: float32 (H, W); as many as in every other call.

        Raises:
            ValueError: Another number of maps than before, or maps of another size.
        """
        if self.change is None or self.range is None:
            self.change, self.range = np.zeros(len(maps)), np.zeros(len(maps))
        if len(maps) != len(self.change):
            raise ValueError(f"{len(maps)} maps, but {len(self.change)} for the frames before")
        if any(m.shape != frame.shape[:2] for m in maps):
            sizes = [m.shape for m in maps]
            raise ValueError(f"maps must have the frame's size {frame.shape[:2]}; got {sizes}")
        small = reduced(frame, SIDE)
        grey, small_maps = luma(small), [reduced(m, SIDE) for m in maps]
        cut = self.cuts.is_cut(small, fits=True)
        for k, current in enumerate(small_maps):
            finite = current[np.isfinite(current)]
            if finite.size:
                low, high = np.percentile(finite, _RANGE)
                self.range[k] += high - low
        if self._grey is not None and not cut:
            self._compare(grey, small_maps)
        self.frames += 1
        self.cut_count += cut
        self._grey, self._maps = grey, small_maps

    def _compare(self, grey: np.ndarray, maps: list[np.ndarray]) -> None:
        assert self._grey is not None and self.change is not None
        back = optical_flow(grey, self._grey)
        same = unchanged(grey, warp(self._grey, back))
        changes = []
        for previous, current in zip(self._maps, maps, strict=True):
            change = np.abs(current - warp(previous, back))[same]
            change = change[np.isfinite(change)]
            if not change.size:
                return
            changes.append(change.mean())
        self.pairs += 1
        self.compared += float(same.mean())
        self.change += changes

    def flicker(self) -> list[float]:
        """The flicker of each map in percent; NaN if no two frames could be compared."""
        if self.change is None or self.range is None or not self.pairs:
            return [float("nan")] * (0 if self.change is None else len(self.change))
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_range = self.range / self.frames
            return [float(x) for x in 100 * self.change / self.pairs / mean_range]

    def result(self) -> dict[str, float]:
        """Result of `measure`; the first map is the one before, the second the one after."""
        names = ("flicker_before", "flicker_after")
        return {
            **dict(zip(names, self.flicker(), strict=False)),
            "frames": self.frames,
            "cuts": self.cut_count,
            "compared": self.compared / max(self.pairs, 1),
        }


def measure(
    frames: Iterable[np.ndarray],
    disparities: Iterable[np.ndarray],
    stabilized: Iterable[np.ndarray] | None = None,
) -> dict[str, float]:
    """Measures the flicker of a video, before and after stabilization.

    The iterables are read in step, one frame at a time: generators of any length work.

    Args:
        frames: RGB, uint8 (H, W, 3) each.
        disparities: The model's maps, float32 (H, W) each.
        stabilized: The stabilized maps.

    Returns:
        ``flicker_before`` and, with ``stabilized``, ``flicker_after``, in percent of the range of
        disparity (`FlickerMeter`); ``frames``; ``cuts``; and ``compared``, the mean fraction of
        the pixels that could be compared.

    Raises:
        MissingPackageError: OpenCV is not installed.
        ValueError: Not as many maps as frames, or of another size.
    """
    meter = FlickerMeter()
    streams = [disparities] if stabilized is None else [disparities, stabilized]
    for frame, *maps in zip(frames, *streams, strict=True):
        meter.add(frame, *maps)
    return meter.result()
