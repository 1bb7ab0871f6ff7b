"""Steady disparity: one scale and shift for a shot, and a display range that changes slowly.

A relative model's disparity has another scale and shift in every frame. `make_stabilizer` returns
an object that removes them. It keeps a small reference of the shot: for each pixel the mean of the
stabilized disparity since the pixel last moved, and its brightness. Each frame is fitted to the
reference (`scale_fit`). The reference and not the last frame, since the errors of a chain of fits
add up; the mean over time, since its own errors become small.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from .arrays import Recycler
from .cuts import CutDetector, luma, reduced, unchanged
from .flow import optical_flow, require_flow, warp
from .scale_fit import ScaleFit, fit_scale_shift

MODES = ("range", "flow", "off")
"""What `make_stabilizer` accepts."""

LOOKAHEAD = 8
"""Frames that the display range looks ahead by default."""

_SIDE = {"range": 96, "flow": 192}  # longer side of the maps that are fitted
_GREY_RATE = 1 / 16  # how fast the reference's brightness follows
_LONGEST = 256  # frames of the mean of a pixel that stays
_CARRIED = 24  # the same where flow carries the mean along: interpolation blurs it
_TRUSTED = 32  # frames of the mean that give a pixel full weight
_ENOUGH = 0.2  # fraction of the pixels that must stay so that they decide
_FEW = 0.05  # fraction that must match at least
_ONE_DISPARITY = 0.1  # spread of disparity that they must have, as a fraction of that of the map
_LEAK = 0.01  # how fast a shot in which nothing stays returns to the model's own scale
_LEAK_UNMATCHED = 0.15  # added to it if flow carries nothing along either
_ENOUGH_STILL = 0.5  # fraction of pixels from which on it does not
_PATIENCE = 8  # frames without a fit after which the reference is given up
_PERCENTILES = (0.5, 99.5)  # of the display range
_RANGE_FRAMES = 8  # over which the display range changes, at least


@dataclass(frozen=True, eq=False)
class StabilizedFrame:
    """One frame's map and how to show it.

    Attributes:
        values: float32 (H, W), in the scale of the shot.
        low: The value that is shown as 0 (black).
        high: The value that is shown as 1 (white), at least ``low``.
        cut: Whether the frame begins another shot than the frame before.
        scale: What the model's map was multiplied by.
        shift: What was added then.
    """

    values: np.ndarray
    low: float
    high: float
    cut: bool
    scale: float = 1.0
    shift: float = 0.0


class Stabilizer(Protocol):
    """The interface of stabilizers; `make_stabilizer` makes one."""

    def push(self, frame: np.ndarray, disparity: np.ndarray) -> list[StabilizedFrame]:
        """Takes the next frame and returns those that are finished, in order.

        Args:
            frame: RGB, uint8 (H, W, 3).
            disparity: float32 (H, W).

        Raises:
            ValueError: A wrong shape or type, or another size than the frames before.
        """

    def flush(self) -> list[StabilizedFrame]:
        """Returns the frames that are left at the end of the video."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs to continue exactly here, as arrays for `numpy.savez`."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from the ``state`` of a stabilizer with the same settings."""


def make_stabilizer(
    mode: str = "range", *, lookahead: int = LOOKAHEAD, rescale: bool = True
) -> Stabilizer:
    """Creates a stabilizer. Its memory does not depend on the length of the video.

    Args:
        mode: ``"range"``: fits scale and shift to the pixels that did not move, and smooths the
            display range. ``"flow"``: also to those that moved, by optical flow; needs OpenCV.
            ``"off"``: leaves the maps as they are, each with its own display range.
        lookahead: Frames by which the display range knows the future, and by which results are
            late; with 0 each call of `Stabilizer.push` returns its own frame.
        rescale: Whether to change scale and shift. False for metres: only the display range is
            smoothed.

    Raises:
        MissingPackageError: ``"flow"`` without OpenCV.
        ValueError: Another mode, or a negative ``lookahead``.
    """
    if mode not in MODES:
        raise ValueError(f"no stabilization {mode!r}; there are: {', '.join(MODES)}")
    if lookahead < 0:
        raise ValueError(f"lookahead must be at least 0, got {lookahead}")
    if mode == "off":
        return _Unchanged()
    if mode == "flow":
        require_flow()
    return _Stabilizer(mode == "flow", lookahead, rescale, _SIDE[mode])


class _Unchanged:
    """Leaves the maps as they are."""

    def push(self, frame: np.ndarray, disparity: np.ndarray) -> list[StabilizedFrame]:
        _check(frame, disparity, ())
        finite = disparity[np.isfinite(disparity)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        return [StabilizedFrame(disparity, low, high, False)]

    def flush(self) -> list[StabilizedFrame]:
        return []

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        pass


class _Stabilizer:
    """Fits each frame to the shot, and smooths the display range."""

    def __init__(self, flow: bool, lookahead: int, rescale: bool, side: int) -> None:
        self.rescale = rescale
        self.side = side
        self.size: tuple[int, ...] = ()
        self.cuts = CutDetector()
        self.shot = _Shot(flow)
        self.display = _DisplayRange(lookahead)

    def push(self, frame: np.ndarray, disparity: np.ndarray) -> list[StabilizedFrame]:
        self.size = _check(frame, disparity, self.size)
        small = reduced(frame, self.side)
        grey, values = luma(small), reduced(disparity, self.side)
        scale, shift = 1.0, 0.0
        if self.rescale:
            match = self.shot.match(grey, values)
            found = match.fit()
            cut = self.cuts.is_cut(small, fits=found is not None)
            if cut:
                self.shot.begin(grey, values)
            else:
                self.shot.add(match, found)
            scale, shift = self.shot.scale, self.shot.shift
        else:
            cut = self.cuts.is_cut(small, fits=True)
        low, high = _percentiles(_affine(values, scale, shift))
        return self.display.push(StabilizedFrame(disparity, low, high, cut, scale, shift))

    def flush(self) -> list[StabilizedFrame]:
        return self.display.flush()

    def state(self) -> dict[str, np.ndarray]:
        state = {"size": np.array(self.size, np.int64)}
        for part in ("cuts", "shot", "display"):
            state |= {f"{part}.{name}": a for name, a in getattr(self, part).state().items()}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.size = tuple(int(n) for n in state["size"])
        for part in ("cuts", "shot", "display"):
            own = {k.partition(".")[2]: a for k, a in state.items() if k.startswith(f"{part}.")}
            getattr(self, part).restore(own)


@dataclass(frozen=True, eq=False)
class _Match:
    """A frame and the shot's reference as the frame sees it, all (h, w).

    Attributes:
        mean, count, grey: As those of `_Shot`.
        still: Pixels that did not move.
        matched: These, and those whose reference the flow carried along.
        frame: The frame's brightness.
        values: The model's map.
    """

    mean: np.ndarray
    count: np.ndarray
    grey: np.ndarray
    still: np.ndarray
    matched: np.ndarray
    frame: np.ndarray
    values: np.ndarray

    def fit(self) -> ScaleFit | None:
        """Computes the scale and shift that bring the map to the reference.

        Pixels that did not move decide. If they are few or of one disparity, those that the flow
        carries along serve too: an object that comes nearer would change the scale of the rest.
        If these are not enough either, all pixels serve: neighbours are often of similar
        disparity, and the fit leaves out those that are not.
        """
        trust = np.minimum(self.count, _TRUSTED) / _TRUSTED
        known = self.mean[np.isfinite(self.mean)]
        least = _ONE_DISPARITY * float(known.std()) if known.size else 0.0
        for chosen, share in ((self.still & self.matched, _ENOUGH), (self.matched, _FEW)):
            if chosen.mean() >= share and float(self.mean[chosen].std()) > least:
                weight = np.where(chosen, trust, 0)
                if found := fit_scale_shift(self.mean, self.values, weight, self.count):
                    return found
        same = np.ones_like(self.count)
        return fit_scale_shift(self.mean, self.values, same, same)


class _Shot:
    """The reference of a shot, and the scale and shift that bring the last frame to it.

    Attributes:
        scale, shift: From the model's values to the shot's.
        failures: Frames without a fit, up to now.
        mean: The reference, float32 (h, w).
        count: How many frames each of its pixels is the mean of, float32.
        grey: Brightness of each of its pixels, float32.
        last: The last frame's brightness, float32.
    """

    _MAPS = ("mean", "count", "grey", "last")

    def __init__(self, flow: bool) -> None:
        self.flow = flow
        self.scale, self.shift, self.failures = 1.0, 0.0, 0
        self.mean = self.count = self.grey = self.last = np.empty((0, 0), np.float32)

    def begin(
        self, grey: np.ndarray, values: np.ndarray, scale: float = 1.0, shift: float = 0.0
    ) -> None:
        """Makes a frame the reference, by default in the model's own scale."""
        self.scale, self.shift, self.failures = scale, shift, 0
        self.mean, self.count = _affine(values, scale, shift), np.ones_like(values)
        self.grey = self.last = grey

    def match(self, grey: np.ndarray, values: np.ndarray) -> _Match:
        """Finds the reference of each pixel of a frame: where it was, or where flow carries it.

        Args:
            grey: The frame's brightness, float32 (h, w).
            values: The model's map, float32 (h, w).
        """
        if not self.mean.size:
            self.begin(grey, values)
        still = unchanged(grey, self.grey)
        mean, count, reference_grey, matched = self.mean, self.count, self.grey, still
        if self.flow and not still.all():
            back = optical_flow(grey, self.last)
            last = warp(self.last, back)
            carried = ~still & unchanged(grey, last)
            mean = np.where(carried, warp(mean, back), mean)
            count = np.where(carried, np.minimum(warp(count, back), _CARRIED), count)
            reference_grey = np.where(carried, last, reference_grey)
            matched = still | carried
        matched = matched & np.isfinite(mean)
        count = np.where(matched, count, 1).astype(np.float32)
        return _Match(mean, count, reference_grey, still, matched, grey, values)

    def add(self, match: _Match, found: ScaleFit | None) -> None:
        """Adds a frame to the reference.

        Without a fit the last scale and shift stay, and the reference too, for a while.
        """
        self.last = match.frame
        if found is None:
            self.failures += 1
            if self.failures > _PATIENCE:
                self.begin(match.frame, match.values, self.scale, self.shift)
            return
        self.failures = 0
        values = _affine(match.values, found.scale, found.shift)
        known = match.matched & np.isfinite(values)
        count = np.where(known, np.minimum(match.count + 1, _LONGEST), match.count)
        mean = np.where(known, match.mean + (values - match.mean) / count, match.mean)
        self.mean = np.where(match.matched, mean, values)
        self.count = count
        grey = match.grey + np.float32(_GREY_RATE) * (match.frame - match.grey)
        self.grey = np.where(match.matched, grey, match.frame)
        self._leak(found, float(match.still.mean()), float(match.matched.mean()))

    def _leak(self, found: ScaleFit, still: float, matched: float) -> None:
        """Returns a little to the model's own scale where few pixels of the reference are left.

        The errors of the fits add up as the reference is replaced: this bounds them. They are large
        where nothing matches, as in a pan without flow: what comes into the picture then counts as
        a change of scale. The reference changes with the scale, so that the next fit does not undo
        it.
        """
        leak = _LEAK * max(0.0, 1 - still / _ENOUGH_STILL)
        leak += _LEAK_UNMATCHED * max(0.0, 1 - matched / _ENOUGH_STILL)
        self.scale, self.shift = found.scale ** (1 - leak), found.shift * (1 - leak)
        if leak:
            gain = self.scale / found.scale
            self.mean = _affine(self.mean, gain, self.shift - gain * found.shift)

    def state(self) -> dict[str, np.ndarray]:
        """The state that `restore` takes."""
        numbers = np.array([self.scale, self.shift, self.failures], np.float64)
        return {"numbers": numbers, **{name: getattr(self, name) for name in self._MAPS}}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from a `state`."""
        self.scale, self.shift, failures = (float(x) for x in state["numbers"])
        self.failures = int(failures)
        for name in self._MAPS:
            setattr(self, name, state[name])


class _DisplayRange:
    """Smooths the display ranges of a shot's frames, which wait until the future is known.

    They wait with the model's own maps, so that each map is in memory once.
    """

    def __init__(self, lookahead: int) -> None:
        self.lookahead = lookahead
        self.rate = 1 / max(_RANGE_FRAMES, lookahead / 2)
        self.waiting: deque[StabilizedFrame] = deque()
        self.current: tuple[float, float] | None = None
        self.arrays = Recycler()

    def push(self, frame: StabilizedFrame) -> list[StabilizedFrame]:
        """Takes a frame with its own range, and returns those whose range is known."""
        finished = []
        if frame.cut:
            finished = self.flush()
            self.current = None
        self.waiting.append(frame)
        if len(self.waiting) > self.lookahead:
            finished.append(self._next())
        return finished

    def flush(self) -> list[StabilizedFrame]:
        """Returns the frames that wait."""
        return [self._next() for _ in range(len(self.waiting))]

    def _next(self) -> StabilizedFrame:
        low = float(np.mean([frame.low for frame in self.waiting]))
        high = float(np.mean([frame.high for frame in self.waiting]))
        if self.current is not None:
            old_low, old_high = self.current
            low = old_low + self.rate * (low - old_low)
            high = old_high + self.rate * (high - old_high)
        self.current = low, high
        frame = self.waiting.popleft()
        values = _affine(frame.values, frame.scale, frame.shift, self.arrays)
        return replace(frame, values=values, low=low, high=high)

    def state(self) -> dict[str, np.ndarray]:
        """The state that `restore` takes."""
        rows = [(f.low, f.high, f.cut, f.scale, f.shift) for f in self.waiting]
        return {
            "current": np.array(self.current or (), np.float64),
            "rows": np.array(rows, np.float64).reshape(-1, 5),
            **{f"values{i}": frame.values for i, frame in enumerate(self.waiting)},
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from a `state`."""
        low_high = [float(x) for x in state["current"]]
        self.current = (low_high[0], low_high[1]) if low_high else None
        self.waiting = deque(
            StabilizedFrame(
                state[f"values{i}"], float(low), float(high), bool(cut), float(scale), float(shift)
            )
            for i, (low, high, cut, scale, shift) in enumerate(state["rows"])
        )


def _affine(
    values: np.ndarray, scale: float, shift: float, arrays: Recycler | None = None
) -> np.ndarray:
    if scale == 1 and shift == 0:
        return values
    out = None if arrays is None else arrays.empty(values.shape, np.float32)
    result = np.multiply(values, np.float32(scale), out=out)
    result += np.float32(shift)
    return result


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    """Computes the display range of one map; 0 and 0 if no pixel has a value."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, _PERCENTILES)
    return float(low), float(high)


def _check(frame: np.ndarray, disparity: np.ndarray, size: tuple[int, ...]) -> tuple[int, ...]:
    """The size of a frame and its map, after a check."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"frame must be RGB, uint8 (H, W, 3); got {frame.dtype} {frame.shape}")
    if disparity.dtype != np.float32 or disparity.shape != frame.shape[:2]:
        raise ValueError(
            f"disparity must be float32 of the frame's size {frame.shape[:2]}; got "
            f"{disparity.dtype} {disparity.shape}"
        )
    if size and disparity.shape != size:
        raise ValueError(
            f"the frames before were {size} (height, width), this one is {disparity.shape}: "
            "use another stabilizer for another video"
        )
    return disparity.shape
