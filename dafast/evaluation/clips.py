"""Scores of a model on videos with exact depth, poses and optical flow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._warnings import is_quiet
from ..synthetic import Clip
from ..video.flow import require_flow
from ..video.stabilization import make_stabilizer
from .alignment import align
from .metrics import METRICS, depth_errors
from .protocols import Protocol
from .readers.clips import MAX_DEPTH, Clips
from .samples import EvaluationSample
from .scoring import DisparityPredictor, Result, Scoring, read_ahead, shared, together
from .temporal import known_flow_flicker, temporal_alignment_error

if TYPE_CHECKING:
    from ..models import DepthAnything

TEMPORAL = ("tae", "flicker")
"""The metrics of videos, next to `METRICS`; both in percent."""


def score_clips(
    model: DepthAnything,
    clips: Clips,
    data: str,
    *,
    protocol: str = "paper",
    alignment: str | None = None,
    cache: Path | None = None,
    fit: str | None = None,
    flip: bool = False,
    fov: float | None = None,
) -> list[Result]:
    """Scores a model on videos, as it is and after stabilization.

    Scale and shift are fitted to the truth once for a whole clip, so that a change from frame to
    frame is an error. The metrics are those of photos over all pixels of a clip, TAE
    (`temporal_alignment_error`, pixels of moving objects left out) and flicker
    (`known_flow_flicker`); each clip counts the same. Each way of stabilization is a predictor,
    ``"NAME, range"``; metres are only scored as they are.

    Args:
        model: A relative or metric model.
        clips: What to score it on.
        data: Name for the results.
        protocol, alignment, cache, fit, flip, fov: As in `score`.

    Raises:
        MissingPackageError: OpenCV is not installed.
        ValueError: As `score`.
    """
    from tqdm import tqdm

    require_flow()
    scoring = Scoring.of(model.config, protocol, alignment, fit, flip, fov)
    predict = DisparityPredictor(model, scoring.options, cache)
    rank, share = shared(range(len(clips.folders)))
    hidden = None if rank == 0 and not is_quiet() else True
    shown = tqdm(share, desc=data, unit="clip", disable=hidden, leave=False)
    with contextlib.closing(read_ahead(map(clips.clip, shown), model.device)) as read:
        rows = [score_clip(predict, clip, scoring) for clip in read]
    return summarize_clips(together(rows), clips, data, scoring)


def summarize_clips(
    rows: Sequence[dict[str, dict[str, float]]], clips: Clips, data: str, scoring: Scoring
) -> list[Result]:
    """The mean results of clips, by predictor, from what `score_clip` gave for each."""
    return [
        Result(
            data,
            predictor,
            scoring.protocol.name,
            len(clips),
            {m: float(np.mean([row[predictor][m] for row in rows])) for m in rows[0][predictor]},
        )
        for predictor in rows[0]
    ]


def score_clip(
    predict: Callable[..., Sequence[Tensor]], clip: Clip, scoring: Scoring
) -> dict[str, dict[str, float]]:
    """Metrics of one clip for each way of stabilization, by predictor.

    Args:
        predict: The model, as `DisparityPredictor` is called.
        clip: The frames and their truth.
        scoring: How to score.
    """
    disparity = torch.stack(list(predict(list(clip.frames), video=True)))
    scores = {}
    for mode in ("off", "range", "flow"):
        if mode != "off" and scoring.is_metric:
            continue
        name = scoring.predictor if mode == "off" else f"{scoring.predictor}, {mode}"
        steady = stabilized(clip.frames, disparity, mode)
        scores[name] = score_maps(clip, steady, scoring.protocol)
    return scores


def stabilized(frames: np.ndarray, disparity: Tensor, mode: str) -> Tensor:
    """The disparity of a whole video after stabilization, (N, H, W) on the same device."""

    def maps() -> Iterator[np.ndarray]:
        stabilizer = make_stabilizer(mode, lookahead=0)
        for frame, values in zip(frames, disparity.float().cpu().numpy(), strict=True):
            yield from (result.values for result in stabilizer.push(frame, values))

    return disparity if mode == "off" else torch.from_numpy(np.stack(list(maps()))).to(disparity)


def score_maps(clip: Clip, disparity: Tensor, protocol: Protocol) -> dict[str, float]:
    """Metrics of one clip: `METRICS` and `TEMPORAL`.

    Args:
        clip: The truth.
        disparity: (N, H, W).
        protocol: How to align and clamp.
    """
    # One scale and shift for the clip: its frames are one tall picture.
    tall = (1, -1, clip.depth.shape[2])
    sample = EvaluationSample(
        clip.name, clip.frames.reshape(-1, *clip.frames.shape[2:]), clip.depth.reshape(tall)[0],
        MAX_DEPTH,
    )  # fmt: skip
    mask = protocol.mask(sample)
    limit = protocol.max_depth(sample, mask, fitted=protocol.alignment != "none")
    truth, valid = (torch.from_numpy(a)[None].to(disparity.device) for a in (sample.depth, mask))
    depth = align(disparity.reshape(tall), truth, valid, protocol.alignment, max_depth=limit)
    errors = {m: float(v) for m, v in depth_errors(depth, truth, valid).items() if m in METRICS}
    maps = depth.reshape(clip.depth.shape).cpu().numpy()
    camera = clip.fx, clip.fy, clip.cx, clip.cy
    errors["tae"] = temporal_alignment_error(maps, clip.poses, camera, ~clip.moving)
    errors["flicker"] = known_flow_flicker(disparity.cpu().numpy(), clip.flow, clip.visible)
    return errors
