"""Trains nano with temporal modules on rendered clips and compares it with nano (docs/video.md).

    python experiments/video_in_miniature.py --data video-data --seeds 0 1 2

Renders the clips first, unless they are there. For each seed a run of configs/video-nano.toml
starts from nano; then all models predict the held-out clips at the size of the training: nano and
the trained ones frame by frame, and the trained ones in windows and as a stream. The same command
again continues where it stopped. Needs dafast[train,synth,flow].
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from dafast import DepthAnything
from dafast.distributed import distributed_session
from dafast.evaluation.clips import score_maps
from dafast.evaluation.protocols import get_protocol
from dafast.evaluation.readers.clips import Clips
from dafast.files import write_file
from dafast.synthetic import clip_folders, write_clips
from dafast.training.command import parse_args
from dafast.training.config_files import load_toml
from dafast.training.loop import train

COLUMNS = ("abs_rel", "delta_1", "tae", "flicker")
SIZE = (224, 168)
HELD_OUT_SEED = 900_000  # as in configs/video-nano.toml


def render(data: Path, clips: int, held_out: int, workers: int) -> None:
    """Renders the training and the held-out clips that are missing."""
    for name, count, frames, seed in (
        ("train", clips, 20, 0),
        ("held-out", held_out, 40, HELD_OUT_SEED),
    ):
        if len(clip_folders(data / name)) < count:
            write_clips(data / name, count, frames, seed=seed, size=SIZE, workers=workers)


def scores_of(model: DepthAnything, clips: Clips) -> dict[str, dict[str, float]]:
    """Scores by how the model is used, means over the clips."""
    protocol, temporal = get_protocol("paper", None), model.config.temporal_frames > 0
    rows: dict[str, list[dict[str, float]]] = {}
    for index in range(len(clips.folders)):
        clip = clips.clip(index)
        maps = {"frame by frame": model.infer(list(clip.frames))}
        if temporal:
            windows = model.infer_video(clip.frames, keep_image=False)
            stream = model.stream(clip.frames, lookahead=0, stabilize="off", keep_image=False)
            maps["windows"] = [result.values for result in windows]
            maps["stream"] = [result.values for result in stream]
        for name, values in maps.items():
            scores = score_maps(clip, torch.from_numpy(np.stack(values)), protocol)
            rows.setdefault(f"{model.config.name}, {name}", []).append(scores)
    return {
        name: {c: statistics.mean(row[c] for row in found) for c in COLUMNS}
        for name, found in rows.items()
    }


def scored(folder: Path, model: str, clips: Clips, side: int) -> dict[str, dict[str, float]]:
    """`scores_of` a model, from a file if they are there already."""
    file = folder / "scores.json"
    if not file.is_file():
        network = DepthAnything.from_pretrained(model, dtype="float32")
        network.config = dataclasses.replace(network.config, image_size=side)
        found = scores_of(network, clips)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(found, indent=2).encode())
    return json.loads(file.read_text())


def main(argv: list[str] | None = None) -> None:
    """Renders, trains, scores and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("video-data"))
    parser.add_argument("--out", type=Path, default=Path("runs/video-in-miniature"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--clips", type=int, default=72, help="training clips to render")
    parser.add_argument("--held-out", type=int, default=3, help="held-out clips")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--config", default="video-nano")
    args = parser.parse_args(argv)
    render(args.data, args.clips, args.held_out, args.workers)
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
    clips = Clips(clip_folders(args.data / "held-out")[: args.held_out])
    rows: dict[str, list[dict[str, float]]] = {}
    models = {args.out / "nano": "nano"} | {run: str(run / "export") for run in runs.values()}
    side = load_toml(args.config).data.image_size  # the same for all
    for folder, model in models.items():
        for name, scores in scored(folder, model, clips, side).items():
            rows.setdefault(name, []).append(scores)
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
