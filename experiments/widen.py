"""Widens a model without changing its function (Net2Net, Chen et al., arXiv 1511.05641).

    python experiments/widen.py nano wide --width 384

Every feature of the encoder gets copies: the encoder's width, its heads (each of the same size) and
the hidden layers of its MLPs grow by the same whole factor. A layer that reads copies has the
weights of the original, divided by the number of copies. Noise makes these parts different, or the
copies would learn the same; it sums to zero over the copies, so that it does not change the
function either. LayerNorm has the same statistics of the copies, and the decoder keeps its size.

The result is an export that `DepthAnything.from_pretrained` loads. The script compares both models
on a random picture.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from torch import Tensor

from dafast.models.depth_anything import DepthAnything

_COPIED = ("cls_token", "pos_embed", "mask_token", "norm", "gamma")  # one value for each feature


def split_inputs(weight: Tensor, copies: int, noise: float) -> Tensor:
    """Weights (out, in, ...) for inputs that have copies: (out, copies * in, ...)."""
    factor = 1 + noise * torch.randn(copies, *weight.shape, dtype=weight.dtype)
    factor += 1 - factor.mean(0)
    return torch.cat([part * weight / copies for part in factor], dim=1)


def widen(model: DepthAnything, copies: int, noise: float = 0.5) -> DepthAnything:
    """A model whose encoder is `copies` times as wide, with the same outputs.

    Args:
        model: In float32, on the CPU.
        copies: Of each feature, with the original.
        noise: Standard deviation of the difference between the weights that read copies, relative
            to the weights.
    """
    config = model.config
    wide = DepthAnything(
        dataclasses.replace(
            config,
            name=f"{config.name}-{config.embed_dim * copies}",
            embed_dim=config.embed_dim * copies,
            num_heads=config.num_heads * copies,
        )
    )
    state = {}
    for key, value in model.state_dict().items():
        encoder = key.startswith("pretrained.")
        if encoder:
            parts = value.chunk(3) if "qkv" in key else (value,)
            features = -1 if any(name in key for name in _COPIED) else 0
            value = torch.cat([part for part in parts for _ in range(copies)], features)
        reads_copies = "projects" in key or (encoder and value.ndim == 2)
        if reads_copies and key.endswith("weight"):
            value = split_inputs(value, copies, noise)
        state[key] = value
    wide.load_state_dict(state)
    return wide.eval()


@torch.no_grad()
def difference(model: DepthAnything, wide: DepthAnything) -> float:
    """Largest difference of the outputs for a random picture, relative to the largest output."""
    side = model.config.grid_size * model.config.patch_size
    picture = torch.randn(1, 3, side, side + 4 * model.config.patch_size)
    first, second = model(picture), wide(picture)
    error, largest = (first - second).abs().max(), first.abs().max()
    return float(error / largest) if largest else float(error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="a preset's name or an export")
    parser.add_argument("out", help="folder of the export to write")
    parser.add_argument("--width", type=int, default=384, help="a multiple of the encoder's width")
    parser.add_argument("--noise", type=float, default=0.5, help="relative to the weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = DepthAnything.from_pretrained(args.model, device="cpu", dtype="float32").eval()
    copies, rest = divmod(args.width, model.config.embed_dim)
    if rest or copies < 2:
        parser.error(f"--width must be a multiple of {model.config.embed_dim} and larger")
    torch.manual_seed(args.seed)
    wide = widen(model, copies, args.noise)
    changed = difference(model, wide)
    if not changed < 1e-4:
        raise SystemExit(f"the outputs differ by {changed:.1e}: this kind of model is not widened")
    wide.save_pretrained(args.out)
    parameters = sum(p.numel() for p in wide.parameters()) / 1e6
    print(f"{args.out}: {parameters:.2f}M parameters; outputs differ by {changed:.1e}")


if __name__ == "__main__":
    main()
