"""Shows that metric depth is learned: nano fine-tuned to metres on synthetic scenes.

    python experiments/metric_on_synthetic.py

Renders scenes, fine-tunes the model in the package on them (configs/metric-nano.toml), and scores
it on scenes that training never saw. For comparison it scores predictors that do not know metres:
nano with the best single scale for all scenes, nano with the best single scale and shift, and the
best single depth. These are fitted on the scored scenes, which is in their favour; so the metric
model is scored both as it is and with a single scale that is fitted in the same way.

Everything goes to --work; each part resumes. Needs dafast[synth,train].
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from dafast import DepthAnything
from dafast.data.shards import ShardDataset
from dafast.evaluation.alignment import align
from dafast.evaluation.metrics import depth_errors

ROOT = Path(__file__).resolve().parent.parent
TRAIN_SEED = 5_000_000  # nano has seen none of them
HELD_OUT_SEED = 2_147_484_648  # the choice of nano's checkpoint did not use them either
MAX_DEPTH = 80.0
METRICS = ("abs_rel", "delta_1", "rmse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "metric-synthetic")
    parser.add_argument("--scenes", type=int, default=600, help="training scenes")
    parser.add_argument("--held-out", type=int, default=100, help="scenes for the scores")
    parser.add_argument("--workers", type=int, default=1, help="rendering processes")
    args, options = parser.parse_known_args()  # other options go to train.py
    work = args.work.resolve()
    for name, count, seed in (
        ("train", args.scenes, TRAIN_SEED),
        ("held-out", args.held_out, HELD_OUT_SEED),
    ):
        scenes = ["--scenes", str(count), "--seed", str(seed), "--workers", str(args.workers)]
        run("-m", "dafast", "synth", *scenes, "--out", str(work / name))
    data = ["--data.path", str(work / "train"), "--data.eval-path", str(work / "held-out")]
    config = ["--config", str(ROOT / "configs" / "metric-nano.toml"), "--out", str(work / "run")]
    run(str(ROOT / "train.py"), *config, *data, *options)
    rows = score(work / "run" / "export", work / "held-out")
    print("| predictor | " + " | ".join(METRICS) + " |\n|---|" + "---:|" * len(METRICS))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[metric]:.3f}" for metric in METRICS) + " |")
    (work / "scores.json").write_text(json.dumps(rows, indent=2) + "\n")


def run(*command: str) -> None:
    """Runs Python with this checkout's package."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    subprocess.run([sys.executable, *command], check=True, env={**os.environ, "PYTHONPATH": path})


def score(export: Path, shards: Path) -> dict[str, dict[str, float]]:
    """Mean metrics over the scenes, by predictor."""
    metric = DepthAnything.from_pretrained(export, dtype="float32")
    nano = DepthAnything.from_pretrained("nano", dtype="float32")
    truths, metres, disparities = [], [], []
    for sample in ShardDataset(shards, labels="physical"):
        with np.errstate(divide="ignore"):
            depth = 1 / sample.disparity
        valid = sample.mask & (depth > 1e-3) & (depth < MAX_DEPTH)
        if valid.any():
            truths.append(depth[valid])
            metres.append(metric.infer_metric(sample.image)[valid])
            disparities.append(nano.infer(sample.image)[valid])

    def rate(depths: Iterable[np.ndarray]) -> dict[str, float]:
        rows = [
            {name: float(v) for name, v in depth_errors(*map(as_map, pair), one(pair[1])).items()}
            for pair in zip(depths, truths, strict=True)
        ]
        return {name: float(np.mean([row[name] for row in rows])) for name in METRICS}

    few = [np.linspace(0, len(t) - 1, 500).astype(int) for t in truths]  # pixels for the searches

    def error(maps: list[np.ndarray], depth: Callable[[np.ndarray], np.ndarray]) -> float:
        """AbsRel of depth computed from predictions, on some pixels of each scene."""
        parts = zip(maps, truths, few, strict=True)
        return float(np.mean([np.mean(np.abs(depth(m[f]) - t[f]) / t[f]) for m, t, f in parts]))

    def line(scale: float, shift: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda d: 1 / np.maximum(scale * d + shift, 1 / MAX_DEPTH)

    scales, shifts = np.geomspace(1e-3, 10, 161), np.geomspace(1 / MAX_DEPTH, 1, 41)
    scale = min(scales, key=lambda s: error(disparities, line(s, 0.0)))
    both = min(
        itertools.product(scales[::4], [0.0, *shifts]), key=lambda p: error(disparities, line(*p))
    )
    constant = min(
        np.geomspace(0.1, 80, 300), key=lambda c: error(truths, lambda t: np.full_like(t, c))
    )
    factor = min(np.geomspace(0.2, 5, 161), key=lambda c: error(metres, lambda m: c * m))
    aligned = [
        align(as_map(d), as_map(t), one(t), max_depth=MAX_DEPTH)[0, 0].numpy()
        for d, t in zip(disparities, truths, strict=True)
    ]
    return {
        "metric, as it is": rate(np.clip(m, 1e-3, MAX_DEPTH) for m in metres),
        "metric, one scale for all scenes": rate(
            np.clip(factor * m, 1e-3, MAX_DEPTH) for m in metres
        ),
        "nano, one scale for all scenes": rate(map(line(scale, 0.0), disparities)),
        "nano, one scale and shift for all": rate(map(line(*both), disparities)),
        "one depth for all": rate(np.full_like(t, constant) for t in truths),
        "nano, scale and shift fitted to each scene": rate(aligned),
    }


def as_map(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))[None, None]


def one(values: np.ndarray) -> torch.Tensor:
    return torch.ones(1, 1, len(values), dtype=torch.bool)


if __name__ == "__main__":
    main()
