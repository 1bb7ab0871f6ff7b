"""``dafast export``: a model as a file that runs without dafast."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import CommandError, add_model, named_path, positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..export import Check

FORMATS = ("onnx", "openvino", "torch", "aoti", "coreml", "transformers.js")
"""The names that ``--format`` takes: those of `dafast.export.FORMATS`, and a folder."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "export",
        help="write a model as ONNX, OpenVINO, a PyTorch program or for Core ML",
        description="Writes a model to a file that runs without dafast, runs the file at five "
        "sizes and batches of 1 to 3 that it was not traced with, and prints the errors. A file "
        "that differs from the model is not kept. docs/export.md describes the files.",
    )
    add_model(parser, "nano")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="kind of the file; transformers.js: a folder with onnx/model.onnx, model_fp16.onnx "
        "and, with --calibrate, model_quantized.onnx (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="FILE", help="where to write"
    )
    parser.add_argument(
        "--shape",
        type=_shape,
        metavar="dynamic|HxW",
        help="size of the input in pixels: any multiples of 14, or one size (default: dynamic)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="dynamic|N",
        help="number of images of a call: any, or one number (default: dynamic)",
    )
    parser.add_argument(
        "--frames",
        type=positive,
        metavar="N",
        help="length of the clips, for a model with temporal modules (default: its longest)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="data type of the weights and of the arithmetic (default: %(default)s)",
    )
    parser.add_argument(
        "--with-preprocess",
        action="store_true",
        help="the file takes photos of any size, uint8 (B, H, W, 3), and gives maps of their size",
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the file with the model, and print the errors (default: yes)",
    )
    parser.add_argument(
        "--calibrate",
        nargs="+",
        metavar="PHOTO|FOLDER",
        help="photos like those that the model will see, for --dtype int8",
    )
    parser.set_defaults(function=export)


def _shape(text: str) -> tuple[int, int] | None:
    """Parses "dynamic" or "HxW"."""
    if text == "dynamic":
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: 'dynamic' or a size such as 420x560")
    return int(match[1]), int(match[2])


def _batch(text: str) -> int | None:
    """Parses "dynamic" or a number."""
    return None if text == "dynamic" else positive(text)


def export(args: argparse.Namespace) -> int:
    """Runs ``dafast export``."""
    from ..export import export as run_export

    model = _load(args)
    photos = _photos(args)
    if args.format == "transformers.js":
        return _export_folder(args, model, photos)
    if args.dtype == "int8" and not photos:
        raise CommandError("--dtype int8 needs --calibrate PHOTO|FOLDER: photos to calibrate with")
    if args.format == "coreml" and args.verify:
        raise CommandError("--format coreml: packages run only on a Mac; add --no-verify")
    checks = run_export(
        model,
        args.out,
        args.format,
        shape=args.shape,
        batch=args.batch,
        dtype=args.dtype,
        preprocess=args.with_preprocess,
        frames=args.frames,
        check=args.verify,
        calibrate=photos,
    )
    _print_checks(args.out, checks)
    if args.dtype == "int8":
        _print_builtin(args.out, model)
    return 0


def _load(args: argparse.Namespace) -> Any:
    """The model in float32 on the CPU."""
    from ..models.segmentation import SegmentationModel, is_segmentation
    from ._model import load_model

    if is_segmentation(args.model):
        return SegmentationModel.from_pretrained(args.model, device="cpu", dtype="float32")
    return load_model(argparse.Namespace(**{**vars(args), "dtype": "float32"}), "cpu")


def _photos(args: argparse.Namespace) -> list[Path]:
    """The photos of ``--calibrate``."""
    from .photos import find_photos

    if not args.calibrate:
        return []
    found = find_photos(args.calibrate, recursive=True)
    if found.problems:
        name, reason = found.problems[0]
        raise CommandError(f"--calibrate {name}: {reason}")
    return [photo.path for photo in found.photos]


def _export_folder(args: argparse.Namespace, model: Any, photos: Sequence[Any]) -> int:
    from ..export.transformers_js import export_folder

    refused = {"--shape": args.shape, "--batch": args.batch, "--frames": args.frames}
    refused |= {"--with-preprocess": args.with_preprocess, "--dtype": args.dtype != "float32"}
    given = [name for name, value in refused.items() if value]
    if given:
        raise CommandError(f"--format transformers.js: leave out {', '.join(given)}")
    for path, checks in export_folder(model, args.out, calibrate=photos, check=args.verify):
        _print_checks(path, checks)
    if photos:
        _print_builtin(args.out / "onnx" / "model_quantized.onnx", model)
    else:
        print("no onnx/model_quantized.onnx: it needs --calibrate PHOTO|FOLDER")
    return 0


def _print_checks(path: Path, checks: Sequence[Check]) -> None:
    files = path.rglob("*") if path.is_dir() else (path, path.with_suffix(".bin"))
    size = sum(file.stat().st_size for file in files if file.is_file())
    print(f"{path}  {size / 1e6:.1f} MB")
    for check in checks:
        print(f"  {check}")
    if checks:
        most, mean = (max(errors) for errors in zip(*(c.relative for c in checks), strict=True))
        print(f"  verified: max error {most:.1e} of the range, mean {mean:.1e}")


def _print_builtin(path: Path, model: Any) -> None:
    """Prints the error of a quantised file on the photos of ``dafast eval --data builtin``."""
    from ..evaluation.builtin import builtin
    from ..evaluation.samples import DataMissingError
    from ..export.errors import photo_errors
    from ..models.segmentation import SegmentationModel

    try:
        samples = builtin()
    except DataMissingError as error:
        print(f"  no builtin photos to measure the error of int8 on: {error}")
        return
    errors = photo_errors(path, model, [sample.image for sample in samples])
    for sample, (most, mean) in zip(samples, errors, strict=True):
        if isinstance(model, SegmentationModel):
            print(f"  {sample.name}: int8 gives another class at {mean:.2%} of the pixels")
        else:
            of = "of the range in the mean"
            print(f"  {sample.name}: int8 differs by {mean:.2%} {of}, {most:.1%} at most")
