"""Scores on a cluster: workers read the photos and score, actors predict."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dafast.data.jobs import Outcome, Predict, Progress, Runner
from dafast.evaluation.benchmarks import (
    BATCH_IMAGES,
    open_all,
    score_rows,
    summarize,
    with_each_photo,
)
from dafast.evaluation.clips import score_clip, summarize_clips
from dafast.evaluation.readers.clips import Clips
from dafast.evaluation.samples import EvaluationSample
from dafast.evaluation.scoring import Result, Scoring
from dafast.video.flow import require_flow


class ScoringPart(NamedTuple):
    """A batch of photos, or one clip.

    Attributes:
        data: Number of the data set.
        first, last: The photos, or the clips, from the first to before the last.
    """

    data: int
    first: int
    last: int


@dataclass(frozen=True)
class ScoreJob:
    """Scores each `ScoringPart`; outcomes have the rows of `score_rows` or `score_clip` as facts.

    Attributes:
        specs: The data sets, as `open_benchmark` takes them; every worker opens them.
        scoring: How to score.
    """

    specs: tuple[str, ...]
    scoring: Scoring

    def name(self, part: ScoringPart) -> str:
        """The data set with the range of its photos."""
        return f"{self.specs[part.data]} {part.first} to {part.last - 1}"

    def do(self, part: ScoringPart, predict: Predict, pool: Executor) -> Outcome:
        """Scores the photos of a part."""

        def tensors(images: Sequence[np.ndarray], **options: Any) -> list[Tensor]:
            # Copies: Ray's arrays cannot be written to.
            return [torch.from_numpy(np.array(each)) for each in predict(images, **options)]

        name, samples = _opened(self.specs)[part.data]
        chosen = range(part.first, part.last)
        if isinstance(samples, Clips):
            rows: list[Any] = [score_clip(tensors, samples.clip(i), self.scoring) for i in chosen]
        else:
            each = (samples[index] for index in chosen)
            rows = score_rows(tensors, each, name, self.scoring)
        return Outcome(self.name(part), images=len(rows), facts=rows)


@functools.lru_cache(maxsize=1)
def _opened(specs: tuple[str, ...]) -> list[tuple[str, Sequence[EvaluationSample]]]:
    """Opens the data sets, once in each worker."""
    return open_all(specs)


def evaluate_with(
    runner: Runner,
    scoring: Scoring,
    data: Sequence[str],
    say: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Scores a model on data sets by name with a runner, as `benchmarks.evaluate` does here.

    Args:
        runner: Has the model.
        scoring: How to score.
        data: ``NAME`` or ``NAME=PATH``, with paths that every node can read.
        say: Takes a line of progress.

    Raises:
        DataMissingError: If a data set is missing, here or on a node.
        RuntimeError: If a part could not be scored.
        ValueError: If a name is unknown, or a data set has no valid pixel.
    """
    opened, parts = open_all(data), []
    for number, (_, samples) in enumerate(opened):
        if isinstance(samples, Clips):
            require_flow()
            parts += [ScoringPart(number, i, i + 1) for i in range(len(samples.folders))]
            continue
        starts = range(0, len(samples), BATCH_IMAGES)
        parts += [ScoringPart(number, i, min(i + BATCH_IMAGES, len(samples))) for i in starts]
    progress, outcomes = Progress(len(parts), say, "parts"), {}
    for number, outcome in runner.run(ScoreJob(tuple(data), scoring), parts):
        if outcome.state == "failed":  # a mean over the others would be another score
            raise RuntimeError(": ".join(outcome.failures[0]))
        progress.add(outcome)
        outcomes[number] = outcome
    results: list[Result] = []
    for number, (name, samples) in enumerate(opened):
        rows = [r for i, part in enumerate(parts) if part.data == number for r in outcomes[i].facts]
        if isinstance(samples, Clips):
            results += summarize_clips(rows, samples, name, scoring)
        else:
            results += with_each_photo(*summarize(rows, name, scoring))
    return results
