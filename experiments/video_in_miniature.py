"""Trains nano with temporal modules on rendered clips and compares it with nano (docs/video.md).

    python experiments/video_in_miniature.py --data video-data --seeds 0 1 2

Renders the clips first, unless they are there. For each seed a run of configs/video-nano.toml
starts from nano; then all models predict the held-out clips: nano frame by frame, as it is and
stabilized, and the trained ones in windows and as a stream. The same command again continues where
it stopped. Needs dafast[train,synth,flow].
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch

from dafast import DepthAnything
from dafast.distributed import distributed_session
from dafast.evaluation.clips import score_clips, score_maps
from dafast.evaluation.protocols import get_protocol
from dafast.evaluation.readers.clips import Clips
from dafast.synthetic import HELD_OUT_SEED, clip_folders, write_clips
from dafast.training.command import parse_args
from dafast.training.loop import train

COLUMNS = ("abs_rel", "delta_1", "tae", "flicker")
SIZE = (224, 168)


def render(data: Path, clips: int, workers: int) -> None:
    """Renders the training and the held-out clips that are missing."""
    for name, count, frames, seed in (
        ("train", clips, 20, 0),
        ("held-out", max(2, clips // 7), 40, HELD_OUT_SEED),
    ):
        if len(clip_folders(data / name)) < count:
            write_clips(data / name, count, frames, seed=seed, size=SIZE, workers=workers)


def stream_scores(model: DepthAnything, clips: Clips) -> dict[str, float]:
    """Scores of the streaming mode, means over the clips."""
    rows = []
    for index in range(len(clips.folders)):
        clip = clips.clip(index)
        frames = model.stream(clip.frames, lookahead=0, stabilize="off", keep_image=False)
        values = [result.values for result in frames]
        rows.append(
            score_maps(clip, torch.from_numpy(np.stack(values)), get_protocol("paper", None))
        )
    return {name: statistics.mean(row[name] for row in rows) for name in COLUMNS}


def main(argv: list[str] | None = None) -> None:
    """Renders, trains, scores and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("video-data"))
    parser.add_argument("--out", type=Path, default=Path("runs/video-in-miniature"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--clips", type=int, default=72, help="training clips to render")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--config", default="video-nano")
    args = parser.parse_args(argv)
    render(args.data, args.clips, args.workers)
    runs = {}
    for seed in args.seeds:
        runs[seed] = args.out / f"seed-{seed}"
        settings = {
            "data.path": args.data / "train", "data.eval_path": "", "out": runs[seed],
            "seed": seed, "steps": args.steps,
        }  # fmt: skip
        flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        with distributed_session() as world:
            train(parse_args(["--config", args.config, *flags]), world)
    clips = Clips(clip_folders(args.data / "held-out"))
    nano = DepthAnything.from_pretrained("nano", dtype="float32")
    rows: dict[str, list[dict[str, float]]] = {}
    for result in score_clips(nano, clips, "clips"):
        rows[f"frame by frame: {result.predictor}"] = [result.metrics]
    for run in runs.values():
        model = DepthAnything.from_pretrained(run / "export", dtype="float32")
        for result in score_clips(model, clips, "clips"):
            rows.setdefault(f"windows: {result.predictor}", []).append(result.metrics)
        rows.setdefault("stream: vda-nano", []).append(stream_scores(model, clips))
    print(f"{len(clips.folders)} held-out clips; mean and range over {len(runs)} seeds")
    print("| model | AbsRel | delta_1 | TAE % | flicker % |\n|---|---|---|---|---|")
    for name, scores in rows.items():
        cells = []
        for column in COLUMNS:
            values = [score[column] for score in scores]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
