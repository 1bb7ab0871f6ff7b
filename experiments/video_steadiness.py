"""Steadiness and accuracy of `--stabilize`: the table of docs/video.md.

    dafast synth --clip 24 --scenes 6 --size 320 240 --seed 2147483648 --out clips
    python experiments/video_steadiness.py clips [MORE ...] [--model nano] [--cache DIR]

Scores the model's maps of each folder of clips as they are and after stabilization, and the same
maps after a random scale (standard deviation 10%) and shift (10% of the spread of the maps) in each
frame. Needs dafast[synth,flow].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from dafast import DepthAnything
from dafast.evaluation.cache import PredictionCache
from dafast.evaluation.clips import score_maps, stabilized
from dafast.evaluation.protocols import get_protocol
from dafast.evaluation.readers.clips import clips
from dafast.evaluation.scoring import predict_disparity

MODES = ("off", "range", "flow")
SHOWN = ("abs_rel", "tae", "flicker")


def shaken(maps: torch.Tensor, seed: int) -> torch.Tensor:
    """Maps (N, H, W) with a random scale and shift each."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, 0.1, len(maps)))
    shift = rng.normal(0, 0.1 * float(maps.std()), len(maps))
    scale, shift = (torch.from_numpy(a)[:, None, None].to(maps) for a in (scale, shift))
    return scale * maps + shift


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    model = DepthAnything.from_pretrained(args.model)
    options = {"fit": model.config.fit}
    cache = PredictionCache(args.cache, model, options) if args.cache else None
    protocol = get_protocol("paper", None)
    print(f"| clips | maps | stabilize | {' | '.join(SHOWN)} |\n|---|---|---|{'---|' * len(SHOWN)}")
    for folder in args.clips:
        found = clips(folder)
        scores: dict[tuple[str, str], list[list[float]]] = {}
        for index in range(len(found.folders)):
            clip = found.clip(index)
            maps = torch.stack(predict_disparity(model, list(clip.frames), cache, options)).cpu()
            for name, values in (("model", maps), ("shaken", shaken(maps, clip.seed))):
                for mode in MODES:
                    row = score_maps(clip, stabilized(clip.frames, values, mode), protocol)
                    scores.setdefault((name, mode), []).append([row[m] for m in SHOWN])
        for (name, mode), rows in scores.items():
            means = " | ".join(
                f"{x:.4f}" if k == 0 else f"{x:.2f}" for k, x in enumerate(np.mean(rows, axis=0))
            )
            print(f"| {folder.name} ({len(rows)}) | {name} | {mode} | {means} |", flush=True)


if __name__ == "__main__":
    main()
