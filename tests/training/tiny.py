"""Small shards, a small model and a small run for the tests.

As a script it is `train.py` with the small preset known: the tests start it as other processes.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from dafast.config import PRESETS  # noqa: E402
from dafast.losses import AffineInvariantLoss  # noqa: E402
from dafast.models.depth_anything import DepthAnything  # noqa: E402
from tests.tiny import tiny  # noqa: E402

TINY = tiny(embed_dim=64, num_heads=1, image_size=42, grid_size=3)
PRESETS["tiny"] = TINY


def encode(array: np.ndarray, kind: str, **options: int) -> bytes:
    """The array as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def sample_members(rng: np.random.Generator, height: int, width: int) -> dict[str, bytes]:
    """A smooth random disparity and an image that shows it, as the files of a sample."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    a, b, c = rng.uniform(0.1, 1.0, 3)
    disparity = a * y + b * x + 0.3 * c * np.sin(9 * c * x)
    disparity -= disparity.min()
    image = np.stack([disparity / disparity.max(), y, rng.random((height, width))], -1)
    return {
        "jpg": encode((image * 255).astype(np.uint8), "JPEG", quality=90),
        "disparity.png": encode(
            np.round(disparity / disparity.max() * 65535).astype(np.uint16), "PNG"
        ),
        "json": json.dumps({"disparity_max": float(disparity.max()), "kind": "test"}).encode(),
    }


def write_shards(
    folder: Path,
    shards: int,
    per_shard: int,
    seed: int,
    *,
    labeled: bool = True,
    empty: range = range(0),
    broken: range = range(0),
) -> Path:
    """Writes shards of random samples in two sizes.

    Those in `empty` have no valid pixel, those in `broken` no image that can be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(per_shard):
                size = (60, 80) if i % 2 else (90, 60)
                members = sample_members(rng, *size)
                if not labeled:
                    members = {"jpg": members["jpg"]}
                if i in empty:
                    members["mask.png"] = encode(np.zeros(size, np.uint8), "PNG")
                if i in broken:
                    members["jpg"] = members["jpg"][:50]
                for suffix, data in members.items():
                    add_member(tar, f"{shard * per_shard + i:06d}.{suffix}", data)
    return folder


def trained_model() -> DepthAnything:
    """A random tiny model whose maps are neither flat nor zero, as a trained one's."""
    model = DepthAnything(TINY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("output_conv2.2.bias"):
                parameter.fill_(3.0)
            elif parameter.ndim > 1:
                parameter.mul_(2.0)
    return model


def losses(run: Path) -> dict[int, float | None]:
    """step -> loss of a run so far; checks that no step is there twice."""
    path = run / "metrics.jsonl"
    result: dict[int, float | None] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # half a line, while the run is writing
        if "loss" in values:
            assert values["step"] not in result, f"step {values['step']} recorded twice"
            result[values["step"]] = values["loss"]
    return result


def poisoned_loss(bad_calls: Container[int]) -> Callable[..., torch.Tensor]:
    """A forward of the affine-invariant loss that gives NaN at some of its calls."""
    calls = itertools.count()
    original = AffineInvariantLoss.forward

    def forward(self: AffineInvariantLoss, *args: torch.Tensor) -> torch.Tensor:
        loss = original(self, *args)
        return loss * float("nan") if next(calls) in bad_calls else loss

    return forward


def command(arguments: list[str]) -> int:
    """`dafast train` with the faults that the environment names; the exit code."""
    from dafast.cli import main
    from dafast.training.loop import train  # noqa: F401 (before anything is replaced)
    from dafast.training.progress import RunLog

    # "RANK CALL": the loss of one call in only one process is NaN.
    if poison := os.environ.get("TINY_POISON"):
        rank, call = poison.split()
        if os.environ["RANK"] == rank:
            AffineInvariantLoss.forward = poisoned_loss([int(call)])
    # "RANK STEP": one process is killed after a step, unless it has been started again.
    if (kill := os.environ.get("TINY_KILL")) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        rank, last = kill.split()
        original = RunLog.step

        def step_and_die(self: Any, step: int, *args: Any) -> None:
            original(self, step, *args)
            if os.environ["RANK"] == rank and step == int(last):
                os.kill(os.getpid(), signal.SIGKILL)

        RunLog.step = step_and_die
    # The data sets do not count what they cannot read; only the run does.
    if os.environ.get("TINY_LENIENT"):
        from dafast.data import shards as shards_module

        shards_module.check_bad_share = lambda *args: None
    # "STEP": the shards lose what is in them after a step.
    if lose := os.environ.get("TINY_LOSE"):
        from dafast.data import remote

        remote.WAITS = (0.0, 0.0)
        whole_step = RunLog.step

        def step_and_lose(self: Any, step: int, *args: Any) -> None:
            whole_step(self, step, *args)
            if step == int(lose):
                for path in Path(os.environ["TINY_SHARDS"]).iterdir():
                    os.truncate(path, 0)

        RunLog.step = step_and_lose
    return main(["train", *arguments])


def succeed(arguments: list[str]) -> None:
    """`command`, which ends its process unless the exit code is 0."""
    if code := command(arguments):
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
