"""Predicts a video frame by frame, for `DepthAnything.stream`."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .._warnings import WeightsWarning, warn
from ..camera import Intrinsics, check_fov, check_intrinsics, choose_camera
from ..geometry import Geometry
from ..images import as_pixels
from ..result import DepthResult
from ..video.arrays import Recycler
from ..video.frame_result import FrameResult, frame_result
from ..video.reader import open_video
from ..video.source import Frame, Selection, VideoReader
from ..video.stabilization import LOOKAHEAD, StabilizedFrame, Stabilizer, make_stabilizer
from ..video.threads import Workers, staged
from .clips import predict_video
from .inference import InferenceOptions, Predictor, focal_factor, why_not_finite
from .network import DepthNetwork
from .prediction import unit_of
from .transfer import batch_tokens, start_copy

_MOST_WORKERS = 4
"""Forwards at a time on a CPU: each needs memory of its own."""

BATCH_FRAMES = 8
"""Frames of a batch at most; every batch has this number or a power of two below it.

Maps can depend on the size of the batch in their last bits: a run that continues in the middle of a
video begins at a multiple of this number of frames.
"""

_CPU_TOKENS = 1600
"""Tokens of a batch on a CPU: with half of them nano is 10% and ViT-S up to 3% slower, with twice
as many nano is not faster, and the activations need twice the memory."""

_PIXELS = 8 << 20
"""Pixels of the frames of a batch on a CPU, of which several are in memory."""


class _Map(NamedTuple):
    """The network's map of a frame, in the memory of the host."""

    values: np.ndarray  # (H, W) float32
    geometry: Geometry


def predict_frames(
    model: DepthNetwork,
    frames: Iterable[np.ndarray],
    options: InferenceOptions,
    *,
    ahead: bool = True,
) -> Generator[_Map, None, None]:
    """Maps of frames, one after the other.

    On a CPU several frames are computed at the same time, each by a part of the threads. On a GPU
    the host prepares and uploads a batch while the last one is computed and the one before is
    copied back.

    Args:
        model: Any model.
        frames: (H, W, 3) uint8, of one size.
        options: Checked here.
        ahead: Whether to take later frames before the map of a frame is given.
    """
    options.check(model.config)
    if options.flip:
        raise ValueError("flip is an option for photos, not for a video")
    if model.device.type == "cuda":
        return _on_gpu(model, frames, options, ahead)
    return _on_cpu(model, frames, options, ahead)


def _on_cpu(
    model: DepthNetwork, frames: Iterable[np.ndarray], options: InferenceOptions, ahead: bool
) -> Generator[_Map, None, None]:
    predictor = Predictor(model, options)
    model.prepare_inference()
    arrays = Recycler()

    @torch.no_grad()
    def predict(batch: list[np.ndarray]) -> list[_Map]:
        photos = [as_pixels(frame, "frame").to(model.device) for frame in batch]
        return [
            _Map(arrays.copy(values.cpu().numpy()), geometry)
            for values, geometry in predictor.predict_frames(photos)
        ]

    count = min(_MOST_WORKERS, torch.get_num_threads())
    batches = _batches(frames, lambda frame: _size_on_cpu(predictor, frame) if ahead else 1)
    if not ahead or count == 1 or model.device.type != "cpu":
        for batch in batches:
            yield from predict(batch)
        return
    workers = Workers(count)
    try:
        for maps in workers.map(predict, batches):
            while maps:  # a map that is given is not held here
                yield maps.pop(0)
    finally:
        workers.close()


def _size_on_cpu(predictor: Predictor, frame: np.ndarray) -> int:
    tokens = predictor.tokens_of(as_pixels(frame, "frame"))
    return min(_CPU_TOKENS // tokens, _PIXELS // (frame.shape[0] * frame.shape[1]))


def _size_on_gpu(predictor: Predictor, frame: np.ndarray) -> int:
    tokens = predictor.tokens_of(as_pixels(frame, "frame"))
    return batch_tokens(predictor.model) // tokens


def _batches(
    frames: Iterable[np.ndarray], size_for: Callable[[np.ndarray], int]
) -> Iterator[list[np.ndarray]]:
    """Frames in batches of a power of two."""
    batch: list[np.ndarray] = []
    size = 0
    for frame in frames:
        if not size:
            most = min(BATCH_FRAMES, max(1, size_for(frame)))
            size = 1 << (most.bit_length() - 1)
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _on_gpu(
    model: DepthNetwork, frames: Iterable[np.ndarray], options: InferenceOptions, ahead: bool
) -> Generator[_Map, None, None]:
    predictor = Predictor(model, options)
    model.prepare_inference()
    uploads = torch.cuda.Stream(model.device)
    under_way: deque[Callable[[], list[_Map]]] = deque()
    batches = _batches(frames, lambda frame: _size_on_gpu(predictor, frame) if ahead else 1)
    for batch in batches:
        under_way.append(_launch(predictor, batch, uploads))
        if len(under_way) > ahead:  # one batch waits, or none
            yield from under_way.popleft()()
    while under_way:
        yield from under_way.popleft()()


@torch.no_grad()
def _launch(
    predictor: Predictor, frames: Sequence[np.ndarray], uploads: torch.cuda.Stream
) -> Callable[[], list[_Map]]:
    """Starts the upload, the forward and the download of a batch; the function waits for them."""
    device = predictor.model.device
    current = torch.cuda.current_stream(device)
    photos = []
    with torch.cuda.stream(uploads):
        for frame in frames:
            pinned = as_pixels(frame, "frame").pin_memory()
            photos.append(pinned.to(device, non_blocking=True))
    current.wait_stream(uploads)
    for photo in photos:
        photo.record_stream(current)
    started = [
        (*start_copy(values), geometry) for values, geometry in predictor.predict_frames(photos)
    ]

    def finish() -> list[_Map]:
        maps = []
        for host, wait, geometry in started:
            wait()
            maps.append(_Map(host.numpy().copy(), geometry))
        return maps

    return finish


class _Cameras:
    """The camera of the frames, and the conversion to metres for a model that needs it."""

    def __init__(
        self, model: DepthNetwork, intrinsics: Any = None, fov: float | None = None
    ) -> None:
        if intrinsics is not None and fov is not None:
            raise ValueError("intrinsics and fov both describe the camera: pass one of them")
        if fov is not None:
            check_fov(fov)
        if intrinsics is not None:
            intrinsics = check_intrinsics(intrinsics)
        if model.config.focal_length is not None and intrinsics is None and fov is None:
            raise ValueError(
                f"{model.config.name!r} needs the camera's focal length for metres, and videos do "
                "not say it: pass intrinsics=(fx, fy, cx, cy) in pixels or fov= (the horizontal "
                "field of view in degrees)"
            )
        self.intrinsics, self.fov, self.config = intrinsics, fov, model.config

    def camera(self, height: int, width: int) -> tuple[Intrinsics, str]:
        """The camera of frames of this size, and its source."""
        return choose_camera(
            height, width, intrinsics=self.intrinsics, fov=self.fov, focal_35mm=None
        )

    def scaled(self, found: _Map) -> np.ndarray:
        """The values of a map with the model's calibration and the camera."""
        values = found.values
        if self.config.calibration is not None:
            scale, shift = self.config.calibration
            values = values * np.float32(scale) + np.float32(shift)
        if self.config.focal_length is not None:
            camera, _ = self.camera(*values.shape)
            values = values * np.float32(
                focal_factor(self.config.focal_length, camera, found.geometry)
            )
        return values


def raw_results(
    model: DepthNetwork,
    frames: Iterable[np.ndarray],
    options: InferenceOptions,
    *,
    ahead: bool = True,
    intrinsics: Any = None,
    fov: float | None = None,
    state: bytes | None = None,
) -> Generator[Any, None, None]:
    """One result for each frame, as the network predicts it; the results hold no image.

    Args:
        model: Any model.
        frames: As for `predict_frames`.
        options: As for `predict_frames`.
        ahead: As for `predict_frames`.
        intrinsics: As for `DepthAnything.predict`.
        fov: As for `DepthAnything.predict`.
        state: For a model with temporal modules: also gives marks, see
            `dafast.models.clips.predict_video`.
    """
    config = model.config
    if config.temporal_frames:
        return predict_video(
            model,
            frames,
            options,
            streaming=not ahead,
            intrinsics=intrinsics,
            fov=fov,
            keep_image=False,
            state=state,
        )
    cameras = _Cameras(model, intrinsics, fov)
    return _single_results(cameras, predict_frames(model, frames, options, ahead=ahead), model)


def _single_results(
    cameras: _Cameras, found: Generator[_Map, None, None], model: DepthNetwork
) -> Generator[DepthResult, None, None]:
    config, warned = model.config, False
    kind = "disparity" if config.quantity == "disparity" else "depth"
    # Closed here, so that its threads end with this generator.
    with contextlib.closing(found) as maps:
        for number, each in enumerate(maps):
            values = cameras.scaled(each)
            if not warned and not np.isfinite(values).all():
                warned = True
                warn(
                    WeightsWarning,
                    f"the prediction of frame {number} is not finite: {why_not_finite(model)}",
                )
            camera, source = cameras.camera(*values.shape)
            yield DepthResult(
                values,
                kind=kind,
                unit=unit_of(config),
                intrinsics=camera,
                camera_source=source,
                model=config.name,
            )


def stream_results(
    model: Any,
    source: Any,
    options: InferenceOptions,
    *,
    stabilize: str | None = None,
    lookahead: int = LOOKAHEAD,
    selection: Selection,
    keep_image: bool = True,
    intrinsics: Any = None,
    fov: float | None = None,
) -> Iterator[FrameResult]:
    """Results of a video; see `DepthAnything.stream`."""
    stabilizer = stabilizer_for(model, stabilize, lookahead)
    reader = open_video(source, selection, threads=0 if model.device.type == "cuda" else 1)
    read: deque[Frame] = deque()

    def pixels() -> Iterator[np.ndarray]:
        # A source that is still being made must not be read before it is needed. A camera is read
        # all the time: the frames that wait in its buffers would be old.
        frames = reader.frames()
        if lookahead or reader.is_live:
            frames = staged(frames, newest=not lookahead)
        for frame in frames:
            read.append(frame)
            yield frame.pixels

    results = raw_results(
        model, pixels(), options, ahead=lookahead > 0, intrinsics=intrinsics, fov=fov
    )
    return _steady_results(results, read, reader, stabilizer, keep_image)


def _steady_results(
    results: Generator[DepthResult, None, None],
    read: deque[Frame],
    reader: VideoReader,
    stabilizer: Stabilizer,
    keep_image: bool,
) -> Iterator[FrameResult]:
    waiting: deque[tuple[Frame, DepthResult]] = deque()

    def finish(steady: StabilizedFrame) -> FrameResult:
        frame, result = waiting.popleft()
        return frame_result(result, steady, frame, reader.info, keep_image)

    try:
        with contextlib.closing(results):
            for result in results:
                frame = read.popleft()
                waiting.append((frame, result))
                for steady in stabilizer.push(frame.pixels, result.to_disparity().values):
                    yield finish(steady)
        for steady in stabilizer.flush():
            yield finish(steady)
    finally:
        reader.close()


def stabilizer_for(model: DepthNetwork, mode: str | None, lookahead: int) -> Stabilizer:
    """The stabilizer of a model's disparity.

    Metres and the maps of a model with temporal modules keep their scale unless a mode is given.
    """
    own = bool(unit_of(model.config) or model.config.temporal_frames)
    rescale = mode is not None or not own
    return make_stabilizer(mode or "range", lookahead=lookahead, rescale=rescale)
