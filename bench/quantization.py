"""Measures what int8 and fp8 cost in accuracy, with and without smoothing, on the CPU.

`python bench/quantization.py [--models nano vits vitb] [--json out.json]` prints two tables:

- nano, the trained model of the package, on the photos with measured depth: AbsRel and delta_1 of
  each format, and the error of its maps to those of float32;
- random weights with planted outlier channels, on photos: the errors of the map and of the
  encoder's features, over their spread.

fp8 is emulated by the references of the ops (`optimize(fp8="emulate")`), int8 uses its kernel.
Where openvino and nncf are installed, the last row has NNCF's int8 (transformer preset with
SmoothQuant, float32 elsewhere), calibrated on the photo that calibrates ours.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from bench.gpu.tables import table
from bench.timing import machine
from dafast import DepthAnything
from dafast.evaluation import benchmarks
from dafast.export import export
from dafast.images import load_image
from dafast.models.calibration import photo_inputs
from dafast.models.packed_cpu import OptimizedForward
from dafast.ops.linear_int8 import why_slow_int8

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"
CALIBRATION = "room.jpg"
"""The photo that calibrates; it is not among those that are scored."""

SMOOTHING = ("none", "synthetic", "photo")
CONSTANT, RARE, RARE_TOKENS = 25.0, 300.0, 0.02


@contextlib.contextmanager
def smoothing(kind: str) -> Iterator[dict[str, Any]]:
    """Yields the keywords of `optimize` for a kind of `SMOOTHING`."""
    if kind != "none":
        yield {} if kind == "synthetic" else {"calibration": [PHOTOS / CALIBRATION]}
        return

    def as_they_are(model: DepthAnything, _inputs: Sequence[Tensor]) -> list[Any]:
        return list(model.pretrained.blocks)[: max(model.config.out_indices) + 1]

    with (
        mock.patch("dafast.models.packed_cpu.smoothed_blocks", as_they_are),
        mock.patch("dafast.models.fp8_forward.smoothed_blocks", as_they_are),
    ):
        yield {}


def quantized_by_nncf(model: DepthAnything) -> DepthAnything:
    """A copy of a float32 model whose maps OpenVINO computes in NNCF's int8, on the CPU."""
    import nncf
    import openvino

    (photo,) = photo_inputs(model, [load_image(PHOTOS / CALIBRATION)])
    programs: dict[tuple[int, int], Any] = {}

    def program(height: int, width: int) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export(model, path, shape=(height, width), check=False)
            x = torch.nn.functional.interpolate(photo, (height, width), mode="area").numpy()
            quantized = nncf.quantize(
                openvino.Core().read_model(path), nncf.Dataset([x]),
                model_type=nncf.ModelType.TRANSFORMER, preset=nncf.QuantizationPreset.MIXED,
            )  # fmt: skip
            return openvino.compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def forward(images: Tensor | Sequence[Tensor]) -> Tensor:
        x = images if isinstance(images, Tensor) else torch.stack(list(images))
        height, width = x.shape[-2:]
        if (height, width) not in programs:
            programs[height, width] = program(height, width)
        maps = [torch.from_numpy(programs[height, width](one[None].numpy())[0].copy()) for one in x]
        return torch.cat(maps)

    other = copy.deepcopy(model)
    vars(other)["forward"] = forward
    return other


def formats(model: DepthAnything) -> Iterator[tuple[str, str, DepthAnything]]:
    """The model in every format: name, kind of smoothing, and a copy that runs so."""
    yield "bfloat16", "", copy.deepcopy(model).bfloat16().optimize()
    for name, keywords in (("int8", {"int8": True}), ("fp8", {"fp8": "emulate"})):
        if name == "int8" and why_slow_int8():
            continue
        for kind in SMOOTHING:
            with smoothing(kind) as more:
                yield name, kind, copy.deepcopy(model).optimize(**keywords, **more)
    if all(importlib.util.find_spec(name) for name in ("nncf", "openvino")):
        yield "int8 of NNCF", "photo", quantized_by_nncf(model)


def over_spread(got: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over the standard deviation of the exact values."""
    return float((got.float() - exact).square().mean().sqrt() / exact.std())


def features(model: DepthAnything, x: Tensor) -> Tensor:
    """What the decoder reads, less the mean of each channel: (1, N, channels)."""
    now = model._optimized
    x = x.to(model.dtype)
    if isinstance(now, OptimizedForward):
        taps = now.encode(x)
    else:
        blocks = None if now is None else now.blocks
        taps = model.pretrained.get_intermediate_layers(x, model.config.out_indices, blocks)
    return torch.cat([tap.float() for tap in taps], -1)


def nano() -> list[dict[str, Any]]:
    """Scores of nano on the photos with measured depth, and its errors to float32."""
    model = DepthAnything.from_pretrained("nano", device="cpu", dtype="float32")
    samples = list(benchmarks.DATA["builtin"]())
    exact = {s.name: torch.from_numpy(model.infer(s.image)) for s in samples}
    records = []
    for name, kind, other in (("float32", "", model), *formats(model)):
        _, scores = benchmarks.score(other, samples, "builtin")
        for sample in samples:
            got = torch.from_numpy(other.infer(sample.image))
            found = scores[model.config.name][sample.name]
            records.append({
                "photo": sample.name, "format": name, "smoothing": kind,
                "abs_rel": found["abs_rel"], "delta_1": found["delta_1"],
                "map": over_spread(got, exact[sample.name]),
            })  # fmt: skip
    return records


@torch.no_grad()
def plant(model: DepthAnything, x: Tensor, seed: int) -> None:
    """Plants outlier channels of the size of DINOv2's in random weights.

    After the second block two channels are ``CONSTANT`` in all tokens, and two reach ``RARE`` and
    half of it in some 2% of the tokens: more than 100 and than 1000 times the median, as massive
    activations are defined (Sun et al., arXiv 2402.17762). Norms and LayerScale vary by channel.
    """
    generator = torch.Generator().manual_seed(seed)
    width = model.config.embed_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for name, p in model.named_parameters():
        if ".norm" in name:
            p.copy_(torch.exp(0.5 * normal(*p.shape)) if p.mean() > 0.5 else 0.1 * normal(*p.shape))
        elif name.endswith("gamma"):
            p.copy_(torch.exp(0.3 * normal(*p.shape)))
    channels = torch.randperm(width, generator=generator)[:4]
    block: Any = model.pretrained.blocks[1]
    gamma, fc1, fc2 = block.ls2.gamma[channels], block.mlp.fc1, block.mlp.fc2
    fc2.bias[channels[:2]] = torch.tensor([CONSTANT, -CONSTANT]) / gamma[:2]
    # One hidden unit that only few tokens excite.
    direction = normal(width)
    fc1.weight[0], fc1.bias[0] = direction / direction.norm(), 0
    seen: list[Tensor] = []
    handle = fc1.register_forward_hook(lambda module, args, out: seen.append(out[..., 0].flatten()))
    model(x)
    handle.remove()
    threshold = seen[0].quantile(1 - RARE_TOKENS)
    gain = 10 / (seen[0].max() - threshold)
    fc1.weight[0] *= gain
    fc1.bias[0] = -threshold * gain
    fc2.weight[:, 0] = 0
    fc2.weight[channels[2:], 0] = torch.tensor([RARE, -RARE / 2]) / 10 / gamma[2:]
    last: Any = model.depth_head.scratch.output_conv2[2]  # a positive map, as a trained model's
    last.weight *= 10
    last.bias.fill_(1.0)


@torch.no_grad()
def random_weights(preset: str, size: int, seed: int) -> list[dict[str, Any]]:
    """Errors of a preset with planted outliers, on the photos but the one that calibrates."""
    torch.manual_seed(seed)
    model = DepthAnything(preset).eval()
    samples = {s.name: s.image for s in benchmarks.DATA["builtin"]()}
    others = sorted(path for path in PHOTOS.glob("*.jpg") if path.name != CALIBRATION)
    samples |= {path.stem: load_image(path) for path in others}
    inputs = {}
    for name, image in samples.items():
        (x,) = photo_inputs(model, [image])
        inputs[name] = torch.nn.functional.interpolate(x, (size, size), mode="area")
    plant(model, inputs["motorcycle"], seed)
    exact = {name: (model(x), features(model, x)) for name, x in inputs.items()}
    records = []
    for name, kind, other in formats(model):
        for photo, x in inputs.items():
            expected, taps = exact[photo]
            error = None
            if "forward" not in vars(other):  # NNCF's has only maps
                got = features(other, x)
                error = over_spread(got - got.mean(1), taps - taps.mean(1))
            records.append({
                "model": preset, "photo": photo, "format": name, "smoothing": kind,
                "map": over_spread(other(x.to(other.dtype)), expected),
                "features": error,
            })  # fmt: skip
    return records


def mean_table(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table of the means over the photos, a row for each format."""
    rows: list[list[str]] = [["model", "format", "smoothing", *columns]]
    keys = dict.fromkeys((r["model"], r["format"], r["smoothing"]) for r in records)
    for key in keys:
        mine = [r for r in records if (r["model"], r["format"], r["smoothing"]) == key]
        cells = []
        for column in columns:
            found = [r[column] for r in mine if r[column] is not None]
            mean = sum(found) / len(found) if found else None
            cells.append("" if mean is None else f"{mean:.4f}" if mean else "0")
        rows.append([*key, *cells])
    return table(rows)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["nano", "vits", "vitb"], metavar="NAME")
    parser.add_argument("--size", type=int, default=518, help="side of the random models' input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"machine": machine(torch.device("cpu")), "nano": [], "random": []}
    for name in options.models:
        if name == "nano":
            report["nano"] = [{"model": "nano", **record} for record in nano()]
            print(mean_table(report["nano"], ("abs_rel", "delta_1", "map")), flush=True)
        else:
            found = random_weights(name, options.size, options.seed)
            report["random"] += found
            print(mean_table(found, ("map", "features")), flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
