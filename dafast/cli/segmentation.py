"""``dafast eval`` of a segmentation model: its scores as a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from ._common import CommandError, positive, table

if TYPE_CHECKING:
    from ..evaluation.segmentation import SegmentationResult

_SCORES = ("miou", "pixel_accuracy", "mean_accuracy")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only segmentation models take."""
    group = parser.add_argument_group(
        "segmentation models",
        "a folder that train.py exported with [segmentation]; scored by mean intersection over "
        "union on cityscapes=FOLDER, ade20k=FOLDER, list=FILE.csv, synthetic: docs/segmentation.md",
    )
    group.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="shorter side in pixels at scale 1 (default: the encoder's own)",
    )
    group.add_argument(
        "--scales",
        type=float,
        nargs="+",
        metavar="S",
        help="views of each photo, averaged (default: 1)",
    )
    group.add_argument(
        "--window",
        type=positive,
        metavar="N",
        help="slide a window of N pixels over each view (default: the whole view at once)",
    )
    group.add_argument(
        "--stride", type=positive, metavar="N", help="between windows (default: 2/3 of one)"
    )


def format_results(results: list[SegmentationResult], markdown: bool = False) -> str:
    """One row for each data set and predictor, then the intersection over union of each class."""
    header = ["data", "predictor", "images", *_SCORES]
    rows = [
        [r.data, r.predictor, str(r.count), *(f"{getattr(r, m):.4f}" for m in _SCORES)]
        for r in results
    ]
    classes = [
        [r.data, name, f"{value:.4f}"]
        for r in results
        if r.predictor != "constant"
        for name, value in r.iou.items()
    ]
    tables = table(header, rows, markdown), table(["data", "class", "iou"], classes, markdown)
    return "\n\n".join(tables)


def evaluate_segmentation(args: argparse.Namespace) -> int:
    """Runs ``dafast eval`` with a segmentation model, in one process or under torchrun in many."""
    from ..distributed import distributed_session
    from ..evaluation.benchmarks import names_of
    from ..evaluation.segmentation import open_segmentation, score
    from ..files import write_file
    from ..models import SegmentationModel
    from ..models.segmentation_inference import SegmentationOptions

    depth_only = {"--align": args.align, "--cache": args.cache, "--config": args.config}
    depth_only |= {"--protocol": args.protocol != "paper", "--fit": args.fit is not None}
    depth_only["--fov"] = args.fov is not None
    depth_only["--cluster"] = args.cluster is not None  # torchrun shares the photos
    given = [name for name, value in depth_only.items() if value]
    if given:
        raise CommandError(f"{args.model} is a segmentation model: leave out {', '.join(given)}")
    options = SegmentationOptions(
        size=args.size or 0,
        scales=tuple(args.scales or (1.0,)),
        flip=args.flip,
        window=args.window or 0,
        stride=args.stride or 0,
    )
    with distributed_session() as world:
        device = args.device
        if world.size > 1 and device == "auto":
            device = str(world.device)
        model = SegmentationModel.from_pretrained(args.model, device=device, dtype=args.dtype)
        options.check(model.config.encoder.patch_size)
        names = ["synthetic"] if args.data == ["builtin"] else args.data
        # Open all before any is scored: a wrong path shows at once, not after hours.
        opened = [
            (name, open_segmentation(spec))
            for name, spec in zip(names_of(names), names, strict=True)
        ]
        results = [r for name, samples in opened for r in score(model, samples, name, options)]
        if not world.is_main:
            return 0
    print(format_results(results, args.md))
    if args.json:
        text = json.dumps([dataclasses.asdict(r) for r in results], indent=2) + "\n"
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_file(args.json, text)
    return 0
