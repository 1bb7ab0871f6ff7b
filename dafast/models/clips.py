"""Videos through a model with temporal modules: in overlapping windows, or frame by frame.

Windows are those of Video-Depth-Anything. With 32 frames a window, each shares 10 with the one
before: the first frame of the video, one from the middle, and the last 8. A scale and a shift per
window, from the first two, remove the freedom of relative disparity; the last 8 are blended. The
memory does not depend on the length of the video: it holds the encoder's features of one window,
and at the size of the video two maps to align to and 8 to blend.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._warnings import WeightsWarning, warn
from ..camera import Intrinsics, check_fov, check_intrinsics, choose_camera
from ..geometry import Geometry
from ..images import as_pixels
from ..layers.temporal import FrameCache
from ..ops import postprocess, preprocess
from ..result import DepthResult
from ..video.restart import Restart
from .inference import InferenceOptions, why_not_finite
from .network import DepthNetwork
from .prediction import rgb, unit_of
from .transfer import batch_tokens, upload


@dataclass(frozen=True)
class Windows:
    """Divides a video into windows of `frames` frames (32 in Video-Depth-Anything).

    Attributes:
        frames: Length of a window.
        blended: Frames that two windows both predict for the result (8).
        keys: Places in a window of the frames that the next one starts with (0, 12, 24, ... 31).
        step: New frames of a window after the first one (22).
        gap: Age of the oldest frame but one that a stream sees (41), see `FrameCache`.
    """

    frames: int = 32

    @property
    def blended(self) -> int:
        return self.frames // 4

    @property
    def keys(self) -> list[int]:
        return [0, self.frames * 3 // 8, *range(self.frames - self.blended, self.frames)]

    @property
    def step(self) -> int:
        return self.frames - len(self.keys)

    @property
    def gap(self) -> int:
        return 2 * self.step - 3


@dataclass
class _Frame:
    """A frame that was read: its pixels, and the encoder's features at the places of the taps."""

    number: int
    photo: Tensor
    geometry: Geometry
    taps: list[Tensor]


class _Frames:
    """Reads frames of one size and encodes them, each once.

    Args:
        model: A model with temporal modules.
        source: Pictures, as `DepthAnything.infer` takes them.
        options: Checked options.
        start: Number of the first frame.
    """

    def __init__(
        self,
        model: DepthNetwork,
        source: Iterable[Any],
        options: InferenceOptions,
        start: int = 0,
    ) -> None:
        self.model, self.options = model, options
        self._source = enumerate(source, start)
        self._shape: tuple[int, ...] | None = None
        limit = options.max_batch_tokens
        self._limit = batch_tokens(model) if limit is None else limit

    def read(self) -> Iterator[tuple[int, Tensor, Tensor, Geometry]]:
        """Yields number, pixels, network input (1, 3, h, w) and geometry of each frame."""
        config, options = self.model.config, self.options
        for number, picture in self._source:
            photo = as_pixels(picture, f"frame {number}")
            shape = photo.shape[:2] if photo.dtype == torch.uint8 else photo.shape[1:]
            if self._shape is None:
                self._shape = tuple(shape)
            if tuple(shape) != self._shape:
                (height, width), first = shape, self._shape
                raise ValueError(
                    f"frame {number} has {width}x{height} pixels, the first one {first[1]}x"
                    f"{first[0]}: resize the frames, or start another video"
                )
            x, (geometry,) = preprocess(
                upload(photo, self.model.device),
                size=options.size_for(config),
                multiple=config.patch_size,
                fit=options.fit_for(config),
                padding=options.padding,
                max_tokens=options.max_tokens,
                mean=config.mean,
                std=config.std,
                dtype=self.model.dtype,
            )
            yield number, photo, x, geometry

    def take(self, count: int) -> list[_Frame]:
        """The next frames with their features, fewer at the end of the video."""
        encode, _ = self.model.parts()
        taken: list[_Frame] = []
        waiting: list[tuple[int, Tensor, Tensor, Geometry]] = []

        def flush() -> None:
            x = torch.cat([each[2] for each in waiting])
            taps = encode(x)
            for i, (number, photo, _, geometry) in enumerate(waiting):
                # Copies: a slice would keep the memory of the whole batch.
                own = [tap[i : i + 1].clone() for tap in taps]
                taken.append(_Frame(number, photo, geometry, own))
            waiting.clear()

        for each in islice(self.read(), count):
            waiting.append(each)
            height, width = each[3].network
            tokens = height * width // self.model.config.patch_size**2 + 1
            if (len(waiting) + 1) * tokens > self._limit:
                flush()
        if waiting:
            flush()
        return taken


def scale_and_shift(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Least squares for y = scale * x + shift over all pixels; (1, 0) if x is constant.

    Args:
        x: A map of any shape.
        y: Its target, of the same shape.
    """
    x, y = x.flatten().double(), y.flatten().double()
    xx, xy = torch.dot(x, x), torch.dot(x, y)
    sx, sy, count = x.sum(), y.sum(), len(x)
    determinant = float(xx * count - sx * sx)
    if determinant == 0:
        return 1.0, 0.0
    scale, shift = xy * count - sx * sy, xx * sy - sx * xy
    return float(scale) / determinant, float(shift) / determinant


class _Joined:
    """The maps of successive windows as those of one video.

    Args:
        windows: How the video is cut.
        metric: Whether maps are in metres, which need no scale and shift.
    """

    def __init__(self, windows: Windows, metric: bool) -> None:
        self.windows, self.metric = windows, metric
        self._reference: list[Tensor] = []  # the first frame of the video, and the middle frame
        self._latest: list[Tensor] = []

    def add(self, maps: Iterator[Tensor]) -> Iterator[Tensor]:
        """Takes the maps of a window and yields those that are final, in order.

        The first yields its frames up to the blended ones, every other one the blended frames of
        the window before, then the same. `rest` has the others.
        """
        windows, start, old = self.windows, 0, self._latest
        scale, shift = 1.0, 0.0
        first = not self._reference
        if not first:
            start = 2
            given = torch.stack([next(maps), next(maps)])
            if not self.metric:
                scale, shift = scale_and_shift(given, torch.stack(self._reference))
        latest = []
        for place, each in enumerate(maps, start):
            out = each if first else (each * scale + shift).clamp_(min=0)
            if place == windows.keys[1]:
                self._reference[1:] = [out]
            if not first and place < 2 + windows.blended:
                weight = (place - 2) / (windows.blended - 1)
                out = (1 - weight) * old[place - 2] + weight * out
            if first and place == 0:
                self._reference[:] = [out]
            if place < windows.frames - windows.blended:
                yield out
            else:
                latest.append(out)
        self._latest = latest

    def rest(self) -> list[Tensor]:
        """The last frames of the last window."""
        return self._latest

    def state(self) -> list[Tensor]:
        """The state that `add` continues from."""
        return [*self._reference, *self._latest]

    def restore(self, state: list[Tensor]) -> None:
        """Goes on with a `state`."""
        self._reference, self._latest = state[:2], state[2:]


@dataclass
class _Boundary:
    """The frames that later windows need from a window and from those before it.

    Attributes:
        start: The number of its first frame.
        keys: The frames that the next window starts with. The last of them have no final map yet:
            they are read again.
        maps: The state of `_Joined`.
    """

    start: int
    keys: list[_Frame]
    maps: list[Tensor]

    def save(self) -> bytes:
        """As a file of PyTorch, without the pixels of the frames."""
        facts = [(key.number, astuple(key.geometry)) for key in self.keys]
        taps = [key.taps for key in self.keys]
        file = io.BytesIO()
        torch.save({"start": self.start, "facts": facts, "taps": taps, "maps": self.maps}, file)
        return file.getvalue()

    @classmethod
    def load(cls, saved: bytes, device: torch.device) -> _Boundary:
        """Restores the state that `save` returned."""
        found = torch.load(io.BytesIO(saved), map_location=device, weights_only=True)
        keys = [
            _Frame(number, torch.empty(0), Geometry(*geometry), taps)
            for (number, geometry), taps in zip(found["facts"], found["taps"], strict=True)
        ]
        return cls(found["start"], keys, found["maps"])


_Maps = Iterator["tuple[Tensor, Tensor] | Restart"]
"""Pixels and map (H, W) of each frame, and marks."""


@torch.no_grad()
def _windowed(
    model: DepthNetwork, source: Iterable[Any], options: InferenceOptions, state: bytes = b""
) -> _Maps:
    """Predicts in windows, from the first frame or from a mark's state on."""
    config = model.config
    windows = Windows(config.temporal_frames)
    joined = _Joined(windows, config.is_metric)
    waiting: list[_Frame] = []  # frames without a final map; their maps come in this order
    start = 0  # of the window, among the new frames
    if state:
        boundary = _Boundary.load(state, model.device)
        joined.restore(boundary.maps)
        waiting = boundary.keys[-windows.blended :]
        frames = _Frames(model, source, options, waiting[0].number)
        for frame, (_, photo, *_) in zip(waiting, frames.read(), strict=False):
            frame.photo = photo
        start = boundary.start + windows.step
        window = boundary.keys + (new := frames.take(windows.step))
    else:
        frames = _Frames(model, source, options)
        new = window = frames.take(windows.frames)
    while new or waiting:
        waiting += new
        last = waiting[-1]
        is_whole = len(window) == windows.frames
        window = window + [last] * (windows.frames - len(window))
        for out in joined.add(_window_maps(model, window)):
            if waiting:  # else it is of the last frame, repeated
                yield waiting.pop(0).photo, out
        if is_whole:
            keys = [window[key] for key in windows.keys]
            yield Restart(_Boundary(start, keys, joined.state()).save)
        start += windows.step
        new = frames.take(windows.step)
        if not new and last.number <= start + 2:  # another window would change nothing
            for frame, out in zip(waiting, joined.rest(), strict=False):
                yield frame.photo, out
            return
        window = [window[key] for key in windows.keys] + new


def _window_maps(model: DepthNetwork, window: list[_Frame]) -> Iterator[Tensor]:
    """The maps of a window at the size of the video."""
    _, decode = model.parts()
    taps = [torch.cat(each) for each in zip(*(frame.taps for frame in window), strict=True)]
    geometry = window[0].geometry
    rows, columns = (side // model.config.patch_size for side in geometry.network)
    outputs = decode(taps, rows, columns, len(window), None)
    del taps
    for output in outputs:
        yield _at_video_size(model, output, geometry)


def _at_video_size(model: DepthNetwork, output: Tensor, geometry: Geometry) -> Tensor:
    """The decoder's output (1, h, w) as the map (H, W) of a frame, in memory of its own."""
    align_corners = model.config.output_align_corners
    (out,) = postprocess(output, [geometry], align_corners=align_corners)
    shared = out.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
    return (out.clone() if shared else out).float()


@torch.no_grad()
def _streamed(model: DepthNetwork, source: Iterable[Any], options: InferenceOptions) -> _Maps:
    """Predicts each frame before the next one is read."""
    windows = Windows(model.config.temporal_frames)
    cache = FrameCache(windows.frames, windows.gap)
    for _, photo, x, geometry in _Frames(model, source, options).read():
        yield photo, _at_video_size(model, model.predict_next(x, cache), geometry)


def predict_video(
    model: DepthNetwork,
    frames: Iterable[Any],
    options: InferenceOptions,
    *,
    streaming: bool,
    intrinsics: Sequence[float] | np.ndarray | None = None,
    fov: float | None = None,
    keep_image: bool = True,
    state: bytes | None = None,
) -> Generator[Any, None, None]:
    """Predicts a video; see `DepthAnything.infer_video`.

    With a `state` there are marks between the results of windows. It is that of the mark behind
    which the frames begin, or empty at the beginning of a video.
    """
    config = model.config
    model.check_temporal()
    options.check(config)
    if options.flip or options.return_tensors:
        raise ValueError("a video has no flip and no return_tensors: leave them out")
    if intrinsics is not None and fov is not None:
        raise ValueError("intrinsics and fov both describe the camera: pass one of them")
    if fov is not None:
        check_fov(fov)
    camera = None if intrinsics is None else check_intrinsics(intrinsics)
    model.prepare_inference()
    if streaming:
        maps = _streamed(model, frames, options)
    else:
        maps = _windowed(model, frames, options, state or b"")
        if state is None:
            maps = (each for each in maps if not isinstance(each, Restart))
    return _results(model, maps, camera, fov, keep_image)


def _results(
    model: DepthNetwork,
    maps: _Maps,
    intrinsics: Intrinsics | None,
    fov: float | None,
    keep_image: bool,
) -> Generator[DepthResult | Restart, None, None]:
    config, warned, number = model.config, False, -1
    for found in maps:
        if isinstance(found, Restart):
            yield found
            continue
        photo, out = found
        number += 1
        values = out.cpu().numpy()
        if not warned and not np.isfinite(values).all():
            warned = True
            text = f"the prediction of frame {number} is not finite: {why_not_finite(model)}"
            warn(WeightsWarning, text)
        if config.calibration is not None:
            scale, shift = config.calibration
            values = values * np.float32(scale) + np.float32(shift)
        camera, source = choose_camera(*values.shape, intrinsics=intrinsics, fov=fov)
        yield DepthResult(
            values,
            kind="disparity" if config.quantity == "disparity" else "depth",
            unit=unit_of(config),
            image=rgb(photo) if keep_image else None,
            intrinsics=camera,
            camera_source=source,
            name=f"frame {number}",
            model=config.name,
        )
