"""Tests whether an encoder that learned depth knows objects: a linear probe next to a random one.

    python experiments/linear_probe.py

Trains a linear head (configs/segmentation-nano.toml) on each of two frozen encoders, that of the
model in the package and a random one, with synthetic scenes and several seeds, and scores it on
scenes that neither has seen. A seed determines the head, the order of the scenes, their crops, and
the random encoder. Everything goes to --work; the same command resumes. Needs
dafast[synth,train].
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dafast.distributed import World  # noqa: E402
from dafast.evaluation.segmentation import open_segmentation, score  # noqa: E402
from dafast.models import SegmentationModel  # noqa: E402
from dafast.synthetic import HELD_OUT_SEED, write_shards  # noqa: E402
from dafast.training.config import TrainConfig  # noqa: E402
from dafast.training.config_files import load_toml  # noqa: E402
from dafast.training.loop import train  # noqa: E402

ENCODERS = {"nano": {"init": "nano"}, "random": {"init": "", "encoder_init": "random"}}
TRAIN_SEED = 5_000_000  # the model in the package has not seen these scenes
METRICS = ("miou", "pixel_accuracy", "mean_accuracy")


def configuration(
    options: argparse.Namespace, encoder: str, head: str, seed: int, out: Path
) -> TrainConfig:
    """The configuration of one probe."""
    base = load_toml(ROOT / "configs/segmentation-nano.toml")
    model = dataclasses.replace(base.model, **ENCODERS[encoder])
    data = dataclasses.replace(base.data, path=str(options.work / "train"), eval_path="")
    segmentation = dataclasses.replace(base.segmentation, head=head)
    return dataclasses.replace(
        base,
        out=str(out),
        steps=options.steps,
        batch_size=options.batch_size,
        seed=seed,
        model=model,
        data=data,
        segmentation=segmentation,
        optim=dataclasses.replace(base.optim, warmup_steps=min(20, options.steps // 5)),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs/linear-probe")
    parser.add_argument("--scenes", type=int, default=800, help="training scenes")
    parser.add_argument("--held-out", type=int, default=200, help="scenes for the scores")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--heads", nargs="+", default=["linear"], choices=("linear", "linear4"))
    options = parser.parse_args()
    write_shards(options.work / "train", options.scenes, seed=TRAIN_SEED, workers=1)
    write_shards(options.work / "held-out", options.held_out, seed=HELD_OUT_SEED, workers=1)
    held_out = open_segmentation(f"synthetic={options.work / 'held-out'}")
    world = World(0, 1, torch.device("cpu"))
    rows, constant = [], None
    for head in options.heads:
        for encoder in ENCODERS:
            results = []
            for seed in options.seeds:
                out = options.work / f"{encoder}-{head}-{seed}"
                train(configuration(options, encoder, head, seed, out), world)
                model = SegmentationModel.from_pretrained(out / "export", dtype="float32")
                result, constant = score(model, held_out, "held-out")
                print(f"{encoder}, {head}, seed {seed}: mIoU {result.miou:.4f}", flush=True)
                results.append(dataclasses.asdict(result))
            rows.append({"encoder": encoder, "head": head, "seeds": options.seeds})
            for metric in METRICS:
                values = [result[metric] for result in results]
                rows[-1][metric] = statistics.mean(values)
                rows[-1][f"{metric}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
            rows[-1]["iou"] = {
                name: statistics.mean(result["iou"].get(name, 0.0) for result in results)
                for name in held_out.classes
            }
    assert constant is not None
    rows.append({"encoder": "constant", "head": "-", **dataclasses.asdict(constant)})
    (options.work / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(f"\n| encoder | head | {' | '.join(METRICS)} |\n|---|---|---:|---:|---:|")
    for row in rows:
        cells = [
            f"{row[m]:.3f}" + (f" ± {row[f'{m}_std']:.3f}" if f"{m}_std" in row else "")
            for m in METRICS
        ]
        print(f"| {row['encoder']} | {row['head']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
