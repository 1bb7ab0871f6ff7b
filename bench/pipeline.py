"""Times transformers' depth pipeline with and without `dafast.accelerate`, in turn.

`python bench/pipeline.py` takes ViT-S, 518x518 pixels and float32, on a GPU if there is one,
otherwise on the CPU. Both pipelines load the same random weights and see the same photo. If their
maps differ there is no figure. `whole` is the call of the pipeline, with its image processor;
`network` is the model in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from bench.timing import machine

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2, "int8": 1e-1}
"""Largest accepted error over the largest value of the map."""


def pipelines(options: argparse.Namespace, folder: str) -> tuple[Any, Any]:
    """transformers' pipeline and an accelerated one, with the same random weights."""
    from transformers import pipeline

    import dafast

    torch.manual_seed(options.seed)
    model = dafast.DepthAnything(options.model).eval()
    with torch.no_grad():
        # A positive map of order 1, as a trained model predicts: a map of zeros compares nothing.
        last = model.depth_head.scratch.output_conv2[2]
        last.weight.mul_(10)
        last.bias.fill_(1.0)
    model.save_pretrained(folder, layout="transformers")
    made = [
        pipeline(
            "depth-estimation",
            model=folder,
            device=options.device,
            dtype=getattr(torch, options.dtype),
        )
        for _ in range(2)
    ]
    return made[0], dafast.accelerate(made[1], int8=options.int8)


def timed(run: Callable[[], Any], device: str) -> float:
    """Milliseconds of one run."""
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The report: the error, and milliseconds and ratios of the rounds."""
    height, width = options.size
    random = np.random.default_rng(options.seed)
    photo = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        original, accelerated = pipelines(options, folder)
    inputs = original.image_processor(photo, return_tensors="pt").to(
        options.device, getattr(torch, options.dtype)
    )
    with torch.inference_mode():
        expected, got = (
            pipe.model(**inputs).predicted_depth.float() for pipe in (original, accelerated)
        )
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    bound = TOLERANCE["int8" if options.int8 else options.dtype]
    if not error <= bound:
        raise SystemExit(f"the maps differ by {error:.1e} of the largest value: no figures")

    def network(pipe: Any) -> None:
        with torch.inference_mode():
            pipe.model(**inputs)

    def whole(pipe: Any) -> None:
        with torch.inference_mode():
            pipe.postprocess(pipe.forward(pipe.preprocess(photo)))

    report: dict[str, Any] = {"machine": machine(torch.device(options.device)), "error": error}
    report |= {name: getattr(options, name) for name in ("model", "dtype", "int8", "size")}
    for name, run in {"whole": whole, "network": network}.items():
        times: list[tuple[float, float]] = []
        for index in range(options.rounds + 1):
            pairs = [
                timed(lambda pipe=pipe: run(pipe), options.device)  # noqa: B023
                for pipe in (original, accelerated)
            ]
            if index:  # the first warms up
                times.append((pairs[0], pairs[1]))
        low, ratio, high = statistics.quantiles([a / b for a, b in times], n=4, method="inclusive")
        report[name] = {
            "transformers_ms": statistics.median(a for a, _ in times),
            "accelerated_ms": statistics.median(b for _, b in times),
            "ratio": ratio,
            "ratio_low": low,
            "ratio_high": high,
        }
    return report


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns the report that it prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vits", help="preset")
    parser.add_argument("--size", type=_size, default=(518, 518), help="HEIGHTxWIDTH of the photo")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--int8", action="store_true", help="accelerate(int8=True), on a CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"),
                        default="cuda" if torch.cuda.is_available() else "cpu")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    report = measure(options)
    print("  ".join(f"{k} {v}" for k, v in report["machine"].items()))
    size = "x".join(map(str, options.size))
    kind = f"{options.dtype}{', int8' if options.int8 else ''}"
    print(f"{options.model} {size} {kind}: largest difference {report['error']:.0e} of the maximum")
    for name in ("whole", "network"):
        r = report[name]
        print(
            f"{name:8}transformers {r['transformers_ms']:.4g} ms, accelerated "
            f"{r['accelerated_ms']:.4g} ms: {r['ratio']:.2f} times as fast "
            f"({r['ratio_low']:.2f}..{r['ratio_high']:.2f})"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: HEIGHTxWIDTH, for example 518x518")
    return int(height), int(width)


if __name__ == "__main__":
    main()
