"""Relative disparity of clips, with temporal modules: steady as well as right.

The loss is Video-Depth-Anything's: that of each frame, and temporal gradient matching.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dafast.config import PRESETS
from dafast.data.clips import ClipSet
from dafast.data.colours import draw_colours
from dafast.data.transforms import TrainTransform, sample_generator
from dafast.distributed import World
from dafast.evaluation.clips import score_maps
from dafast.evaluation.protocols import get_protocol
from dafast.evaluation.readers.clips import Clips
from dafast.losses import TemporalGradientMatchingLoss
from dafast.models.depth_anything import DepthAnything
from dafast.ops import affine_invariant_loss
from dafast.optional import why_no_module
from dafast.profiling import annotate
from dafast.training.config import TrainConfig
from dafast.training.data import Batch, LabeledItem, Request, collate
from dafast.training.starts import build_model
from dafast.training.task import Step, Task, autocast, depth_problems
from dafast.training.tasks.relative import LabeledStep

_START = 7  # separates the choice of a clip's first frame from its augmentation


class ClipData:
    """Answers `Request`s with clips; every frame of one is cropped and disturbed alike.

    Args:
        clips: The clips.
        transform: What is done to each frame.
        seed: The run's seed.
    """

    unlabeled = None

    def __init__(self, clips: ClipSet, transform: TrainTransform, seed: int) -> None:
        self.labeled, self.transform, self.seed = clips, transform, seed

    @annotate("sample")
    def __getitem__(self, request: Request) -> list[LabeledItem]:
        """The frames of a clip, in order."""
        rng = sample_generator(self.seed, _START, request.position)
        sample = self.labeled.draw(request.sample, rng)
        items = []
        for frame in zip(sample.images, sample.disparity, sample.mask, strict=True):
            rng = sample_generator(self.seed, request.position)  # the same for every frame
            arrays = self.transform(*frame, request.shape, rng)
            items.append(LabeledItem(sample.key, sample.skipped, draw_colours(rng), *arrays))
        return items

    @staticmethod
    def collate(samples: list[list[LabeledItem]]) -> Batch:
        """Stacks the frames of all clips, one clip after the other."""
        batch = collate([frame for clip in samples for frame in clip])
        skipped = [reason for clip in samples for reason in clip[0].skipped]
        return batch._replace(keys=[clip[0].key for clip in samples], skipped=skipped)


class ClipStep(LabeledStep):
    """Loss of a batch of clips: that of `LabeledStep` for each frame, and the temporal one."""

    def __init__(
        self, network: nn.Module, model: DepthAnything, config: TrainConfig, dtype: torch.dtype
    ) -> None:
        super().__init__(network, model, config, dtype)
        self.section = config.video
        self.temporal_loss = TemporalGradientMatchingLoss()

    @annotate("clip_step")
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the parts of the loss by name; `loss` is their total."""
        disparity, mask = self.to_device(batch.disparity, batch.mask)
        clips = (-1, self.section.frames)
        image = self.seen(batch).unflatten(0, clips)
        with autocast(self.device, self.dtype):
            prediction = self.network(image)
        prediction = prediction.float()
        with self.losses():
            parts = self.compare("labeled", prediction.flatten(0, 1), disparity, mask)
        if self.section.temporal:
            truth, valid = disparity.unflatten(0, clips), mask.unflatten(0, clips)
            matching = self.temporal_loss(prediction, truth, valid)
            parts["temporal"] = self.section.temporal * matching
        return {"loss": sum(parts.values(), prediction.new_zeros(())), **parts}


def video_evaluation(model: DepthAnything, clips: Clips, samples: int) -> dict[str, float]:
    """Evaluates on held-out clips, each as one video through `infer_video`.

    Args:
        model: In any mode, which it has again afterwards.
        clips: What to score it on.
        samples: How many clips, evenly spread; 0 is all.

    Returns:
        `loss`, of each frame by itself, and the scores of `dafast.evaluation.clips.score_maps`:
        `abs_rel` and others after one scale and shift for each clip, `tae`, `flicker`.
    """
    was_training = model.training
    model.eval()
    protocol = get_protocol("paper", None)
    rows: list[dict[str, float]] = []
    count = len(clips.folders)
    for index in np.linspace(0, count - 1, min(samples or count, count)).round().astype(int):
        clip = clips.clip(int(index))
        results = model.infer_video(clip.frames, keep_image=False)
        maps = torch.from_numpy(np.stack([result.values for result in results]))
        with np.errstate(divide="ignore"):
            truth = torch.from_numpy(1 / clip.depth)
        loss = float(affine_invariant_loss(maps, truth, torch.isfinite(truth)))
        rows.append({"loss": loss, **score_maps(clip, maps, protocol)})
    model.train(was_training)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _check(config: TrainConfig) -> Iterator[str]:
    preset, frames = PRESETS[config.model.preset], config.video.frames
    if not preset.temporal_frames:
        yield f"model.preset: {preset.name} has no temporal modules; vda-nano and vda-vits have"
    elif frames < 2 or frames > preset.temporal_frames:
        yield f"video.frames must be from 2 to {preset.temporal_frames}, the window of the preset"
    if preset.is_metric:
        yield f"model.preset: {preset.name} is metric; this run trains relative disparity"
    if config.unlabeled.path or config.metric.max_depth:
        yield "video.frames excludes unlabeled.path and metric.max_depth"
    if config.data.hold_out:
        yield "data.hold_out divides a list of pictures: set data.eval_path to a folder of clips"
    if config.data.eval_path and (why := why_no_module("cv2")):
        yield f"data.eval_path: the flicker number needs OpenCV: pip install 'dafast[flow]' ({why})"
    yield from depth_problems(config)


def _data(config: TrainConfig, world: World) -> tuple[TrainConfig, ClipData]:
    clips = ClipSet(config.data.path, config.video.frames, config.data.max_bad_fraction)
    return config, ClipData(clips, TrainTransform(config.augment), config.seed)


def _model(config: TrainConfig, data: ClipData, device: torch.device) -> DepthAnything:
    model = build_model(config.model, device, config.channels_last)
    model.config = dataclasses.replace(model.config, image_size=config.data.image_size)
    return model


def _step(
    network: nn.Module, model: DepthAnything, config: TrainConfig, dtype: torch.dtype
) -> Step:
    return ClipStep(network, model, config, dtype).to(model.device)


def _evaluation(config: TrainConfig) -> Callable[[DepthAnything], dict[str, float]]:
    held_out = Clips(ClipSet(config.data.eval_path, 2, key="data.eval_path").folders)
    return lambda model: video_evaluation(model, held_out, config.data.eval_samples)


def _identity(config: TrainConfig) -> dict[str, str]:
    return {"model.preset": config.model.preset, "learns": "relative depth of clips"}


TASK = Task(_check, _data, _model, _step, _evaluation, _identity)
