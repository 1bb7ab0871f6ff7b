"""A look at held-out data while training: how good is the depth, beside trivial baselines."""

from __future__ import annotations

import numpy as np
import torch

from dafast.data.shards import ShardDataset
from dafast.evaluation.alignment import align_disparity, constant_baseline, plane_baseline
from dafast.evaluation.metrics import depth_metrics
from dafast.models.depth_anything import DepthAnything
from dafast.ops import affine_invariant_loss


def periodic_evaluation(
    model: DepthAnything,
    data: ShardDataset,
    samples: int,
    max_depth: float,
) -> dict[str, float]:
    """Evaluates on held-out samples.

    Each image goes through `infer`, as in `dafast eval`. After least-squares
    alignment in disparity per image: AbsRel and delta_1, for the prediction and for the best
    constant and the best plane, whose numbers say what "good" has to beat.

    Args:
        model: In any mode; it is put back.
        data: With physical labels.
        samples: How many, evenly spread; 0 is all.
        max_depth: Farther pixels do not count.

    Returns:
        `loss`, and `abs_rel`, `delta_1` with the same of `constant_` and `plane_` in front.
    """
    was_training = model.training
    model.eval()
    count = min(samples or len(data), len(data))
    losses: list[float] = []
    scores: dict[str, list[float]] = {}
    for index in np.linspace(0, len(data) - 1, count).round().astype(int):
        sample = data[int(index)]
        prediction = torch.from_numpy(model.infer(sample.image))
        disparity = torch.from_numpy(sample.disparity)
        mask = torch.from_numpy(sample.mask)
        losses.append(float(affine_invariant_loss(prediction[None], disparity[None], mask[None])))
        with np.errstate(divide="ignore"):
            depth = 1.0 / sample.disparity
        # Sky has disparity 0: it takes part in the alignment's loss above, but has no depth to
        # score.
        scored = sample.mask & (depth > 1e-3) & (depth < max_depth)
        if np.count_nonzero(scored) < 10:
            continue
        aligned = {
            "": align_disparity(prediction.numpy(), sample.disparity, scored),
            "constant_": constant_baseline(sample.disparity, scored),
            "plane_": plane_baseline(sample.disparity, scored),
        }
        for prefix, values in aligned.items():
            metrics = depth_metrics(values, depth, scored, max_depth=max_depth)
            for name in ("abs_rel", "delta_1"):
                scores.setdefault(prefix + name, []).append(metrics[name])
    model.train(was_training)
    return {
        "loss": float(np.mean(losses)),
        **{name: float(np.mean(v)) for name, v in scores.items()},
    }
