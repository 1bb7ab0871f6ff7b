"""Data sets by name, and the scores of a model and two baselines on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from .._warnings import DataWarning, is_quiet, warn
from ..files import explain
from .builtin import aloe, builtin, motorcycle, synthetic
from .clips import score_clips
from .metrics import METRICS
from .protocols import Protocol, get_protocol
from .readers import READERS
from .readers.clips import Clips
from .samples import EvaluationSample
from .scoring import DisparityPredictor, Result, Scoring, read_ahead, score_sample, shared, together

if TYPE_CHECKING:
    from ..models import DepthAnything

BATCH_IMAGES, BATCH_PIXELS = 16, 8_000_000
"""Largest batch: number of samples, and number of their pixels."""

Row = tuple[str, dict[str, dict[str, float]]]
"""A sample's name, and its metrics by predictor."""

DATA: dict[str, Callable[[], Sequence[EvaluationSample]]] = {
    "builtin": builtin,
    "motorcycle": motorcycle,
    "aloe": aloe,
    "synthetic": synthetic,
}
"""The data sets that need no path, by name; `readers.READERS` has those that do."""


def open_benchmark(spec: str) -> Sequence[EvaluationSample]:
    """The data set that ``NAME`` or ``NAME=PATH`` means.

    Raises:
        DataMissingError: If it is missing, or the folder has another layout.
        ValueError: If the name is unknown, a path is missing, or there must be none.
    """
    name, equals, path = spec.partition("=")
    if name in READERS:
        if not path:
            raise ValueError(f"{name} is read from a path: give {name}=PATH")
        return READERS[name](Path(path).expanduser())
    if name not in DATA:
        known = ", ".join([*DATA, *(f"{reader}=PATH" for reader in READERS)])
        raise ValueError(f"no data set {name}; there are: {known}")
    if equals:
        raise ValueError(f"{name} is not read from a path: leave out ={path}")
    return DATA[name]()


def names_of(specs: Sequence[str]) -> list[str]:
    """Names of the data sets in results: NAME, or ``NAME=PATH`` where two share a name.

    Args:
        specs: As `open_benchmark` takes them.
    """
    names = [spec.partition("=")[0] for spec in specs]
    return [
        spec if names.count(name) > 1 else name for name, spec in zip(names, specs, strict=True)
    ]


class _Batch(NamedTuple):
    """Samples with the pixels that count, and the names of those without one."""

    samples: list[tuple[EvaluationSample, np.ndarray]]
    left_out: list[str]


def _batches(samples: Iterable[EvaluationSample], protocol: Protocol) -> Iterator[_Batch]:
    """Batches of samples; the last one may be empty."""
    batch = _Batch([], [])
    for sample in samples:
        mask = protocol.mask(sample)
        if not mask.any():
            batch.left_out.append(sample.name)
            continue
        batch.samples.append((sample, mask))
        pixels = sum(m.size for _, m in batch.samples)
        if len(batch.samples) == BATCH_IMAGES or pixels >= BATCH_PIXELS:
            yield batch
            batch = _Batch([], [])
    yield batch


def score(
    model: DepthAnything,
    samples: Iterable[EvaluationSample],
    data: str,
    *,
    protocol: str = "paper",
    alignment: str | None = None,
    cache: Path | None = None,
    fit: str | None = None,
    flip: bool = False,
    fov: float | None = None,
) -> tuple[list[Result], dict[str, dict[str, dict[str, float]]]]:
    """Scores a model and the two baselines.

    Each prediction is fitted to the truth as the protocol says, image by image, at the photo's
    resolution; metrics are averaged over the images, each counting the same. In a process group
    each process takes its share of a `Sequence`; all get the whole result.

    Args:
        model: A relative model; or a metric one, which is not aligned unless ``alignment`` asks
            for it.
        samples: Photos with truth; one without a valid pixel is left out with a warning.
        data: Name for the results.
        protocol: One of `PROTOCOLS`.
        alignment: One of `ALIGNMENTS` instead of the protocol's; the results name it.
        cache: Folder for predictions; existing ones are reused.
        fit: The size rule of `infer`; by default the model's own.
        flip: Whether to predict the photo's mirror image too and average the two maps.
        fov: Horizontal field of view of all photos in degrees, for a model whose metres depend on
            the camera (`ModelConfig.focal_length`). Every alignment but ``"none"`` cancels it.

    Returns:
        The mean results of the model, the plane and the constant; and the metrics per image,
        `[predictor][sample name]`.

    Raises:
        ValueError: If no sample has a valid pixel, the protocol is unknown, or the camera is
            needed and unknown.
    """
    from tqdm import tqdm

    scoring = Scoring.of(model.config, protocol, alignment, fit, flip, fov)
    predict = DisparityPredictor(model, scoring.options, cache)
    rank, share = shared(samples)
    # A bar on a terminal, nothing in a log.
    hidden = None if rank == 0 and not is_quiet() else True
    shown = tqdm(share, desc=data, unit="image", disable=hidden, leave=False)
    with contextlib.closing(read_ahead(_batches(shown, scoring.protocol), model.device)) as batches:
        rows = _score_batches(predict, batches, data, scoring)
    return summarize(together(rows), data, scoring)


def score_rows(
    predict: Callable[..., Sequence[Tensor]],
    samples: Iterable[EvaluationSample],
    data: str,
    scoring: Scoring,
) -> list[Row]:
    """The metrics of each sample with a valid pixel.

    Args:
        predict: The model, as `DisparityPredictor` is called.
        samples: Photos with truth.
        data: Name for messages.
        scoring: How to score.
    """
    return _score_batches(predict, _batches(samples, scoring.protocol), data, scoring)


def _score_batches(
    predict: Callable[..., Sequence[Tensor]], batches: Iterable[_Batch], data: str, scoring: Scoring
) -> list[Row]:
    rows: list[Row] = []
    for batch, left_out in batches:
        for name in left_out:
            warn(DataWarning, f"{data}/{name}: no valid pixel; left out")
        if not batch:
            continue
        predictions = predict([s.image for s, _ in batch])
        for (sample, mask), prediction in zip(batch, predictions, strict=True):
            try:
                scores = score_sample(scoring.predictor, prediction, sample, mask, scoring.protocol)
            except ValueError as error:
                raise ValueError(f"{data}/{sample.name}: {explain(error)}") from error
            rows.append((sample.name, scores))
    return rows


def summarize(
    rows: list[Row], data: str, scoring: Scoring
) -> tuple[list[Result], dict[str, dict[str, dict[str, float]]]]:
    """Mean results and metrics per image, as `score` returns them, from all rows.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError(f"{data}: no image with a valid pixel")
    if len({name for name, _ in rows}) < len(rows):  # a list may name a photo twice
        rows = [(f"{i}: {name}", scores) for i, (name, scores) in enumerate(rows)]
    per_image = {
        predictor: {name: scores[predictor] for name, scores in rows} for predictor in rows[0][1]
    }
    results = []
    for predictor, scores in per_image.items():
        names = [m for m in (*METRICS, "boundary_f1") if all(m in s for s in scores.values())]
        means = {m: float(np.mean([s[m] for s in scores.values()])) for m in names}
        results.append(Result(data, predictor, scoring.protocol.name, len(scores), means))
    return results, per_image


def evaluate(model: DepthAnything, data: Iterable[str], **options: Any) -> list[Result]:
    """Scores a model on data sets by name; a set of two to four is also reported photo by photo.

    Clips are scored as videos (`score_clips`).

    Args:
        model: A relative or a metric model.
        data: ``NAME`` from `DATA` or ``NAME=PATH`` with a name from `readers.READERS`.
        **options: ``protocol``, ``alignment``, ``cache``, ``fit``, ``flip`` and ``fov``, as in
            `score`.

    Returns:
        One result per data set and predictor.

    Raises:
        DataMissingError: If a data set is missing, or its folder has another layout.
        ValueError: If a name or an option is unknown.
    """
    get_protocol(options.get("protocol", "paper"), options.get("alignment"))
    results = []
    for name, samples in open_all(list(data)):
        if isinstance(samples, Clips):
            results += score_clips(model, samples, name, **options)
        else:
            results += with_each_photo(*score(model, samples, name, **options))
    return results


def open_all(specs: Sequence[str]) -> list[tuple[str, Sequence[EvaluationSample]]]:
    """Data sets with their names in results; a wrong path shows at once, not after hours.

    Raises:
        DataMissingError: If a data set is missing, or its folder has another layout.
        ValueError: If a name is unknown.
    """
    return [(name, open_benchmark(spec)) for name, spec in zip(names_of(specs), specs, strict=True)]


def with_each_photo(
    means: list[Result], per_image: dict[str, dict[str, dict[str, float]]]
) -> list[Result]:
    """The mean results; before them those of each photo if there are two to four."""
    first = means[0]
    if not 1 < first.count <= 4:
        return means
    each = [
        Result(f"{first.data}/{key}", predictor, first.protocol, 1, metrics)
        for predictor, rows in per_image.items()
        for key, metrics in rows.items()
    ]
    return each + means
