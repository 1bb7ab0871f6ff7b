"""Measures tiles and guided upsampling on rendered scenes with exact depth (needs the extra synth).

python scripts/measure_large.py --scenes 8
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import dafast
from dafast.evaluation.alignment import align
from dafast.evaluation.metrics import boundary_f1, depth_errors
from dafast.ops import guided_upsample
from dafast.synthetic import HELD_OUT_SEED, KINDS, render_scene
from dafast.synthetic.sample import NEAR_KINDS

SIZE = (960, 720)
TILE = 300
SHRUNK = 8
CAP = 80.0


def scores(disparity: Tensor, depth: np.ndarray) -> np.ndarray:
    """AbsRel and boundary F1 of a disparity map (H, W) after alignment."""
    mask = torch.from_numpy(np.isfinite(depth) & (depth < CAP))[None]
    truth = torch.where(mask, torch.from_numpy(depth)[None], 1)
    aligned = align(disparity[None], truth, mask, max_depth=CAP)
    error = float(depth_errors(aligned, truth, mask)["abs_rel"])
    return np.array([error, float(boundary_f1(aligned, truth, mask))])


def guided_filter(x: Tensor, guide: Tensor, radius: int, epsilon: float) -> Tensor:
    """The fast guided filter (He and Sun, arXiv 1505.00996) with a gray guide."""
    kernel = torch.ones(1, 1, 2 * radius + 1, 2 * radius + 1)

    def mean(a: Tensor) -> Tensor:
        return F.conv2d(a, kernel, padding=radius) / F.conv2d(
            torch.ones_like(a), kernel, padding=radius
        )

    gray = guide.mean(1, keepdim=True)
    small = F.interpolate(gray, size=x.shape[-2:], mode="area")
    slope = mean(small * x) - mean(small) * mean(x)
    slope = slope / (mean(small * small) - mean(small) ** 2 + epsilon)
    offset = mean(x) - slope * mean(small)
    return smooth(mean(slope), guide) * gray + smooth(mean(offset), guide)


def smooth(x: Tensor, guide: Tensor) -> Tensor:
    """Bilinear enlargement to the size of the guide."""
    return F.interpolate(x, size=guide.shape[-2:], mode="bilinear", align_corners=False)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bilinear": smooth,
    "guided filter, radius 1, epsilon 1e-3": lambda x, g: guided_filter(x, g, 1, 1e-3),
    "guided filter, radius 2, epsilon 1e-4": lambda x, g: guided_filter(x, g, 2, 1e-4),
    "guided_upsample": guided_upsample,
}


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    model = dafast.DepthAnything.from_pretrained(args.model, device="cpu", dtype="float32")
    options = {
        "one pass": {},
        "one pass, guided": dict(guided=True),
        f"tiles of {TILE}": dict(tile=TILE),
        f"tiles of {TILE}, guided": dict(tile=TILE, guided=True),
    }
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*options, *METHODS)}
    kinds = [k for k in KINDS if k not in NEAR_KINDS]
    for i in range(args.scenes):
        scene = render_scene(HELD_OUT_SEED + 900 + i, size=SIZE, kind=kinds[i % len(kinds)])
        for name, chosen in options.items():
            result = model.predict(scene.image, keep_image=False, **chosen)
            found[name].append(scores(torch.from_numpy(result.values), scene.depth))
        truth = torch.from_numpy(scene.disparity)[None, None]
        guide = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None].float() / 255
        size = (SIZE[1] // SHRUNK, SIZE[0] // SHRUNK)
        shrunk = F.interpolate(truth, size=size, mode="area")
        for name, method in METHODS.items():
            found[name].append(scores(method(shrunk, guide)[0, 0], scene.depth))
    print(
        f"{args.scenes} scenes of {SIZE[0]}x{SIZE[1]}; the last four: true disparity at 1/{SHRUNK}"
    )
    for name, values in found.items():
        error, f1 = np.mean(values, axis=0)
        print(f"{name:40} AbsRel {error:.4f}  boundary F1 {f1:.4f}")


if __name__ == "__main__":
    main()
