"""Scores models on real scenes and on held-out rendered scenes, as docs/nano.md reports them.

    python experiments/real_scenes.py --packages packages --out data/real-scenes
    python experiments/score_nano.py nano runs/mine/export --real data/real-scenes \
        --held-worlds data/held-worlds --held-procedural data/held-procedural --sizes 168 224 336

Real pictures: AbsRel and delta_1 after alignment in disparity, in float32, of the mean of a picture
and its mirror image, with those of the best plane and the best constant. Some places have several
pictures, named `PLACE-NUMBER`, so there is a mean over the pictures and one over the places.

Rendered pictures: AbsRel, delta_1 and the boundary F1 of Depth Pro, without mirror images.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dafast.data.shards import ShardDataset
from dafast.evaluation.benchmarks import score
from dafast.evaluation.builtin import SYNTHETIC_MAX_DEPTH
from dafast.evaluation.samples import EvaluationSample, Samples
from dafast.models.depth_anything import DepthAnything

Scores = dict[str, dict[str, dict[str, float]]]  # [predictor][sample][metric]
BASELINES = ("plane", "constant")


def read(folder: Path, limit: int, sharp: bool) -> Samples:
    """Pictures of shards with their depth; `limit` evenly spread ones, or all with 0."""
    data = ShardDataset(folder, labels="physical")

    def load(index: int) -> EvaluationSample:
        sample = data.read(index)
        disparity = np.where(sample.mask, sample.disparity, 0)
        with np.errstate(divide="ignore"):
            depth = (1 / disparity).astype(np.float32)  # inf where unknown: these do not count
        return EvaluationSample(sample.key, sample.image, depth, SYNTHETIC_MAX_DEPTH, sharp=sharp)

    count = min(limit or len(data), len(data))
    return Samples(np.linspace(0, len(data) - 1, count).round().astype(int).tolist(), load)


def place_of(name: str) -> str:
    """The place of a picture: "laboratory" of "laboratory-3"."""
    return re.sub(r"-\d+$", "", name)


def means(rows: dict[str, dict[str, float]], metric: str) -> tuple[float, float]:
    """A metric's mean over the pictures, and the mean over the places of theirs."""
    places: dict[str, list[float]] = {}
    for name, row in rows.items():
        places.setdefault(place_of(name), []).append(row[metric])
    each = [value for values in places.values() for value in values]
    return float(np.mean(each)), float(np.mean([np.mean(values) for values in places.values()]))


def real_cells(rows: dict[str, dict[str, float]]) -> list[str]:
    """AbsRel and delta_1 over the pictures, then over the places."""
    abs_rel, delta = means(rows, "abs_rel"), means(rows, "delta_1")
    return [f"{value:.3f}" for k in (0, 1) for value in (abs_rel[k], delta[k])]


def rendered_cells(rows: dict[str, dict[str, float]]) -> list[str]:
    """AbsRel, delta_1 and the boundary F1 over the pictures."""
    names = ("abs_rel", "delta_1", "boundary_f1")
    return [f"{means(rows, name)[0]:.3f}" for name in names]


def scores_by_size(
    names: list[str], sizes: list[int], samples: Samples, data: str, flip: bool
) -> Iterator[tuple[str, int, Scores]]:
    """The scores of each model at each size, with those of the baselines."""
    for name in names:
        model = DepthAnything.from_pretrained(name, dtype="float32")
        for size in sizes or [model.config.image_size]:
            model.config = dataclasses.replace(model.config, image_size=size)
            _, scores = score(model, samples, data, flip=flip)
            yield name, size, scores


def print_row(*cells: object) -> None:
    """A row of a table in Markdown."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a preset's name or an export")
    parser.add_argument("--real", type=Path, help="folder of experiments/real_scenes.py")
    parser.add_argument("--held-worlds", type=Path, help="shards of dafast synth --worlds")
    parser.add_argument("--held-procedural", type=Path, help="shards of dafast synth")
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="shorter sides in pixels")
    parser.add_argument("--limit", type=int, default=0, help="pictures of each set; 0 for all")
    args = parser.parse_args()
    if args.real:
        samples = read(args.real, args.limit, sharp=False)
        places = len({place_of(samples[k].name) for k in range(len(samples))})
        print(f"\nReal: {len(samples)} pictures, then {places} places\n")
        print_row("model", "side", "AbsRel", "delta_1", "AbsRel", "delta_1")
        print_row("---", "---:", *["---:"] * 4)
        scores: Scores = {}
        for name, size, scores in scores_by_size(args.models, args.sizes, samples, "real", True):
            model = next(key for key in scores if key not in BASELINES)
            print_row(name, size, *real_cells(scores[model]))
        for baseline in BASELINES:
            print_row(f"best {baseline}", "", *real_cells(scores[baseline]))
    for data, folder in (("worlds", args.held_worlds), ("procedural", args.held_procedural)):
        if not folder:
            continue
        samples = read(folder, args.limit, sharp=True)
        print(f"\nHeld-out {data}: {len(samples)} pictures\n")
        print_row("model", "side", "AbsRel", "delta_1", "boundary F1")
        print_row("---", "---:", *["---:"] * 3)
        for name, size, scores in scores_by_size(args.models, args.sizes, samples, data, False):
            model = next(key for key in scores if key not in BASELINES)
            print_row(name, size, *rendered_cells(scores[model]))
        for baseline in BASELINES:
            print_row(f"best {baseline}", "", *rendered_cells(scores[baseline]))


if __name__ == "__main__":
    main()
