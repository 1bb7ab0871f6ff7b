"""The single steps of the CPU path with a target, each next to the implementation it must beat.

`bench/model.py --peers` uses them. Both sides of a comparison run in turn in this process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench import registry, timing
from bench.registry import Case
from dafast import DepthAnything, ops
from dafast.ops.linear_int8 import why_slow_int8

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def _in_turn(pair: Pair, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both, without the first run of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for run, seconds in zip(pair, times, strict=True):
            start = time.perf_counter()
            run()
            if number:
                seconds.append(time.perf_counter() - start)
    return times


def _record(what: str, against: str, target: float, ours: float, theirs: float) -> dict[str, Any]:
    return {"what": what, "against": against, "target": target, "ms": 1e3 * ours,
            "against_ms": 1e3 * theirs, "ratio": ours / theirs}  # fmt: skip


def _op(
    what: str, case: Case, dtype: torch.dtype, against: str, target: float, *, backward: bool,
    rounds: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    records = timing.measure(case, dtype, torch.device("cpu"), backward=backward, rounds=rounds,
                             seed=seed)  # fmt: skip
    found = {record["backend"]: record for record in records}
    for name in ("cpp", against):
        if "ms" not in found.get(name, {}):
            why = found.get(name, {}).get("why", "the op has no such backend")
            return {"what": what, "against": against, "target": target, "why": f"{name}: {why}"}
    return _record(what, against, target, found["cpp"]["ms"] / 1e3, found[against]["ms"] / 1e3)


def _photo(seed: int) -> np.ndarray:
    """A picture of 1920x1080 that is smooth with some noise, as a photo is."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:1080, :1920].astype(np.float32)
    image = np.stack(
        [127 + 100 * np.sin(x / s + y / t) for s, t in ((70, 90), (50, 200), (300, 40))]
    )
    image = image.transpose(1, 2, 0) + generator.normal(0, 5, (1080, 1920, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def _opencv(photo: np.ndarray) -> Callable[[], torch.Tensor]:
    """The usual code: OpenCV's resize, torch's normalisation and padding."""
    import cv2

    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406),
                                                          (0.229, 0.224, 0.225)))  # fmt: skip

    def run() -> torch.Tensor:
        height, width = 518, round(photo.shape[1] * 518 / photo.shape[0])
        small = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
        x = torch.from_numpy(small).permute(2, 0, 1).float() / 255
        x = (x - mean) / std
        return F.pad(x[None], (0, -width % 14, 0, -height % 14), mode="replicate")

    return run


def _transformers_processor(photo: np.ndarray) -> Callable[[], Any]:
    from transformers import DPTImageProcessor

    processor = DPTImageProcessor(
        do_resize=True, size={"height": 518, "width": 518}, keep_aspect_ratio=True,
        ensure_multiple_of=14, resample=3, do_normalize=True,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    return lambda: processor(images=photo, return_tensors="pt")


def _against(
    what: str, against: str, target: float, ours: Callable[[], Any],
    theirs: Callable[[], Callable[[], Any]], rounds: int,
) -> dict[str, Any]:  # fmt: skip
    try:
        pair = (ours, theirs())
    except ImportError as error:
        return {"what": what, "against": against, "target": target, "why": str(error)}
    mine, other = _in_turn(pair, rounds)
    return _record(what, against, target, statistics.median(mine), statistics.median(other))


@torch.no_grad()
def _infer(dtype: torch.dtype, photo: np.ndarray, rounds: int) -> dict[str, Any]:
    """`infer` of a photo, compared with the forward that it contains."""
    model = DepthAnything("vits").to(dtype).eval().optimize()
    x, _ = ops.preprocess(torch.from_numpy(photo), dtype=dtype)
    bare = _in_turn((lambda: model.infer(photo), lambda: model(x)), rounds)
    ours, forward = map(statistics.median, bare)
    name = str(dtype).removeprefix("torch.")
    return _record(f"infer, 1920x1080, ViT-S {name}", "its forward", 1.03, ours, forward)


def accuracy() -> list[dict[str, Any]]:
    """Measures the accuracy of fewer bits: nano on the real photos with measured depth.

    Returns:
        For each photo and format: the root mean square of the difference to the float32 map over
        that of the map, and delta_1 after alignment.
    """
    from dafast.evaluation import benchmarks
    from dafast.evaluation.samples import DataMissingError

    def load(dtype: str, int8: bool = False) -> DepthAnything:
        return DepthAnything.from_pretrained("nano", device="cpu", dtype=dtype).optimize(int8=int8)

    models = {"float32": load("float32"), "bfloat16": load("bfloat16")}
    if not why_slow_int8():
        models["int8"] = load("bfloat16", int8=True)
    records = []
    try:
        samples = list(benchmarks.DATA["builtin"]())
        for name, model in models.items():
            _, scores = benchmarks.score(model, samples, "builtin")
            for sample in samples:
                exact, got = (m.infer(sample.image) for m in (models["float32"], model))
                records.append({
                    "photo": sample.name, "format": name,
                    "relative_error": float(np.linalg.norm(got - exact) / np.linalg.norm(exact)),
                    "delta_1": scores[model.config.name][sample.name]["delta_1"],
                })  # fmt: skip
    except DataMissingError as error:
        return [{"photo": "builtin", "why": str(error)}]
    return records


def measure(rounds: int, seed: int) -> Iterator[dict[str, Any]]:
    """Measures every step; one record each."""
    half, single = torch.bfloat16, torch.float32
    attention = registry.attention(1, 1370, 6)
    for dtype, target in ((half, 0.6), (single, 1.0)):
        name = str(dtype).removeprefix("torch.")
        yield _op(f"attention, 1370 tokens, 6x64, {name}", attention, dtype, "sdpa", target,
                  backward=False, rounds=rounds, seed=seed)  # fmt: skip
    yield _op("affine-invariant loss, 8x518x518, forward + backward",
              registry.loss(8, 518), single, "reference", 0.10,
              backward=True, rounds=rounds, seed=seed)  # fmt: skip
    yield _op("feature alignment, 8x1369x384, forward + backward",
              registry.alignment(8, 384), single, "reference", 0.35,
              backward=True, rounds=rounds, seed=seed)  # fmt: skip
    photo = _photo(seed)
    tensor = torch.from_numpy(photo)
    what = "preprocess, 1920x1080"
    yield _against(what, "OpenCV + torch", 0.5, lambda: ops.preprocess(tensor),
                   lambda: _opencv(photo), rounds)  # fmt: skip
    yield _against(f"{what}, fit='official'", "transformers' processor", 0.1,
                   lambda: ops.preprocess(tensor, fit="official"),
                   lambda: _transformers_processor(photo), rounds)  # fmt: skip
    for dtype in (single, half):
        yield _infer(dtype, photo, rounds)
