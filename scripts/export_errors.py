"""Prints the table of docs/export.md: the errors of exported files by model, format and size.

`python scripts/export_errors.py` exports nano, nano's encoder with every other head (random
weights), and ViT-S with random weights; `--photos FOLDER` calibrates int8 on the photos there.
Takes some minutes; `--with-aoti` takes a few more, and needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dafast import PRESETS, DepthAnything, SegmentationModel
from dafast.evaluation.builtin import builtin
from dafast.export import FORMATS, export

NANO = PRESETS["nano"]
HEADS = {
    "V2 metric": dataclasses.replace(NANO, max_depth=20.0, output_align_corners=True),
    "bins": dataclasses.replace(NANO, max_depth=10.0, bin_centers="softplus"),
    "Depth Anything 3": dataclasses.replace(NANO, output="exp", kind="depth", sky_head=True),
}


def models() -> Iterator[tuple[str, nn.Module]]:
    """Models by name; all but nano with random heads."""
    nano = DepthAnything.from_pretrained("nano", device="cpu", dtype="float32")
    yield "nano", nano
    torch.manual_seed(0)
    for name, config in HEADS.items():
        model = DepthAnything(config)
        model.pretrained = nano.pretrained
        yield f"nano, {name}", model.eval()
    segmentation = SegmentationModel.from_depth(nano, ("wall", "floor", "sky"), "dpt")
    yield "nano, segmentation", segmentation.eval()
    yield "ViT-S (V2)", DepthAnything("v2-vits").eval()


def kinds(name: str, with_aoti: bool) -> list[tuple[str, str, bool]]:
    """Format, dtype, and whether the file takes photos."""
    if name != "nano":
        simple = [("onnx", "float32", False), ("openvino", "float32", False)]
        more = [("onnx", "float16", False), ("torch", "float32", False)]
        return simple + more * (name == "nano, Depth Anything 3")
    chosen = [
        (format, dtype, False)
        for format in ("onnx", "openvino")
        for dtype in ("float32", "float16", "int8")
    ]
    chosen += [("onnx", "float32", True), ("openvino", "float32", True)]
    return [*chosen, ("torch", "float32", False)] + [("aoti", "float32", False)] * with_aoti


def main() -> None:
    """Exports everything and prints a row for each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photos to calibrate int8 with")
    parser.add_argument("--with-aoti", action="store_true")
    args = parser.parse_args()
    photos: list[Any] = sorted(args.photos.iterdir()) if args.photos else []
    photos = photos or [sample.image for sample in builtin()]
    print("| model | file | size of the input: max error, mean error |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models():
            for format, dtype, preprocess in kinds(name, args.with_aoti):
                path = Path(folder) / f"model{FORMATS[format].suffix}"
                options: dict[str, Any] = dict(dtype=dtype, preprocess=preprocess)
                if dtype == "int8":
                    options["calibrate"] = photos
                checks = export(model, path, format, **options)
                sizes = "; ".join(
                    f"{'x'.join(map(str, c.shape))}: {c.maximum / c.range:.0e}, "
                    f"{c.mean / c.range:.0e}"
                    for c in checks
                    if c.output != "sky"
                )
                what = f"{format}, {dtype}" + (", photos" if preprocess else "")
                print(f"| {name} | {what} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
