"""Prints the table of docs/export.md: the errors of exported files by model, format and size.

`python scripts/export_errors.py` exports nano, nano's encoder with every other head (random
weights), and ViT-S with random weights; `--photos FOLDER` calibrates int8 on the photos there, and
`--only NAME` prints the rows of one model. Takes some minutes; `--with-aoti` takes a few more, and
needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dafast import PRESETS, DepthAnything, SegmentationModel
from dafast.evaluation.builtin import builtin
from dafast.export import FORMATS, export

BOTH = ("onnx float32", "openvino float32")
HALF = (*BOTH, "onnx float16", "openvino float16")
INT8 = ("onnx int8", "openvino int8")
PROGRAM = ("torch float32",)
PHOTOS = ("onnx float32 photos", "openvino float32 photos")
FRAMES = 8
"""Length of the clips."""


def nano() -> DepthAnything:
    """The model in the package."""
    return DepthAnything.from_pretrained("nano", device="cpu", dtype="float32")


def with_head(**changes: Any) -> Callable[[], nn.Module]:
    """Makes nano with other fields of its configuration: its encoder and a random head."""

    def make() -> nn.Module:
        model = DepthAnything(dataclasses.replace(PRESETS["nano"], **changes))
        model.pretrained = nano().pretrained
        for name, parameter in model.named_parameters():
            if name.endswith("proj_out.weight"):  # of the temporal modules; 0 would hide them
                nn.init.normal_(parameter, std=0.1)
        return model

    return make


def segmentation(head: str) -> Callable[[], nn.Module]:
    """Makes a segmentation model with the encoder of nano."""
    return lambda: SegmentationModel.from_depth(nano(), ("wall", "floor", "sky"), head)


DA3 = {"output": "exp", "sky_head": True, "norm_eps": 1e-5, "fit": "upper_bound"}
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "nano": (nano, (*HALF, *INT8, *PHOTOS, *PROGRAM)),
    "nano, V2": (with_head(output_align_corners=True), HALF),
    "nano, V2 metric": (with_head(max_depth=20.0, output_align_corners=True), (*HALF, *INT8)),
    "nano, bins": (with_head(max_depth=10.0, bin_centers="softplus"), (*HALF, *PROGRAM)),
    "nano, Depth Anything 3": (with_head(kind="depth", **DA3), (*HALF, *PROGRAM)),
    "nano, Depth Anything 3 metric": (
        with_head(kind="metric", focal_length=300.0, **DA3),
        (*BOTH, "onnx float16"),
    ),
    "nano, segmentation": (segmentation("dpt"), (*HALF, *INT8)),
    "nano, linear segmentation": (segmentation("linear"), BOTH),
    f"nano, clips of {FRAMES}": (with_head(temporal_frames=FRAMES), (*HALF, *PROGRAM)),
    "ViT-S (V1)": (lambda: DepthAnything("vits"), BOTH),
    "ViT-S (V2)": (lambda: DepthAnything("v2-vits"), (*BOTH, "onnx float16", *INT8)),
}
"""What makes a model, and its files: format, dtype and whether they take photos."""


def main() -> None:
    """Exports everything and prints a row for each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photos to calibrate int8 with")
    parser.add_argument("--with-aoti", action="store_true")
    parser.add_argument("--only", choices=list(MODELS), metavar="NAME", help="rows of one model")
    args = parser.parse_args()
    photos: list[Any] = sorted(args.photos.iterdir()) if args.photos else []
    photos = photos or [sample.image for sample in builtin()]
    print("| model | file | size of the input: max error, mean error |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, files) in MODELS.items():
            if args.only and name != args.only:
                continue
            torch.manual_seed(0)
            model = make().eval()
            more = ("aoti float32",) if args.with_aoti and name == "nano" else ()
            for file in (*files, *more):
                format, dtype, *preprocess = file.split()
                path = Path(folder) / f"model{FORMATS[format].suffix}"
                options: dict[str, Any] = dict(dtype=dtype, preprocess=bool(preprocess))
                if dtype == "int8":
                    options["calibrate"] = photos
                sizes = "; ".join(
                    f"{'x'.join(map(str, check.shape))}: "
                    + ", ".join(f"{error:.0e}" for error in check.relative)
                    for check in export(model, path, format, **options)
                    if check.output != "sky"
                )
                print(f"| {name} | {', '.join(file.split())} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
