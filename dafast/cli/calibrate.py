"""``dafast calibrate``: a model in, the same model with a scale for one's own camera out."""

from __future__ import annotations

import argparse
import dataclasses

from ._common import CommandError, add_device, add_model, named_path


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "calibrate",
        help="fit a model's scale to photos with known depth",
        description="Fits one scale, or a scale and a shift, to a list of photos with depth, and "
        "writes the model with them: all commands and `predict` then use them. A relative model "
        "gives metres from then on, for photos of the same camera and kind of place.",
        epilog="The list is a file as `dafast eval --data list=FILE` reads it; docs/evaluation.md "
        "lists its columns. Measure the result on other photos: dafast eval --model DIR --data "
        "list=OTHER.csv --align none",
    )
    add_model(parser)
    parser.add_argument(
        "--data", type=named_path, required=True, metavar="LIST", help="photos with depth"
    )
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="DIR", help="folder of the new model"
    )
    parser.add_argument(
        "--fit",
        choices=("scale", "scale-shift"),
        help="what is fitted (default: scale-shift of disparity for a model of disparity, else "
        "scale)",
    )
    parser.add_argument(
        "--fov",
        type=float,
        metavar="DEGREES",
        help="horizontal field of view of all photos, for models that need the camera (Depth "
        "Anything 3 metric)",
    )
    add_device(parser)
    parser.set_defaults(function=calibrate)


def calibrate(args: argparse.Namespace) -> int:
    """Runs ``dafast calibrate``."""
    import torch

    from ..evaluation.calibration import calibrate as fit_model
    from ..evaluation.readers.listed import listed
    from ._model import load_model, own_device

    if args.out.exists() and any(args.out.iterdir() if args.out.is_dir() else [args.out]):
        raise CommandError(f"--out {args.out} exists and is not an empty folder; choose another")
    samples = listed(args.data)
    model = load_model(args, own_device(args.device))
    if model.config.focal_length is not None and args.fov is None:
        raise CommandError(
            f"{args.model} needs the camera, which a list does not give: pass --fov with the "
            "horizontal field of view of all photos in degrees"
        )
    found = fit_model(model, samples, args.fit, args.fov)
    calibration = model.config.calibration
    if model.dtype != torch.float32:  # the weights as they were, and not rounded to --dtype
        args.dtype = "float32"
        model = load_model(args, "cpu")
    model.config = dataclasses.replace(model.config, calibration=calibration)
    model.save_pretrained(args.out)
    unit = "1/m" if model.config.quantity == "disparity" else "m"
    before = "" if found.before is None else f", {found.before:.1%} before"
    print(
        f"{args.out}: scale {found.scale:.6g}, shift {found.shift:.6g} {unit}, from {found.images} "
        f"photos; median error of depth {found.after:.1%}{before}"
    )
    if found.outliers > 0.3:
        print(
            f"  warning: {found.outliers:.0%} of the pixels do not agree; one scale may not serve "
            "these photos"
        )
    return 0
