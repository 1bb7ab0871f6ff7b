"""``dafast eval``: the scores of a model as a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import segmentation
from ._cluster import add_cluster, cluster_runner
from ._common import CommandError, add_device, add_fit, add_model, named_path, table
from ._log import tell

if TYPE_CHECKING:
    import numpy as np

    from ..evaluation.benchmarks import Result


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "eval",
        help="score a model against measured depth or class maps, next to baselines",
        description="Prints AbsRel, delta_1 and the other scores after alignment to the measured "
        "depth, next to the best constant and the best plane. Under torchrun the images are "
        "shared among the processes.",
    )
    add_model(parser, "nano")
    parser.add_argument(
        "--data",
        nargs="+",
        default=["builtin"],
        metavar="NAME[=PATH]",
        help="builtin (real photos), synthetic, kitti=FOLDER, nyuv2=FOLDER, list=FILE.csv, "
        "clips=FOLDER (of dafast synth --clip), ... (default: builtin); docs/evaluation.md "
        "lists all of them",
    )
    parser.add_argument(
        "--protocol",
        default="paper",
        metavar="NAME",
        help="paper (Depth Anything), midas or moge (default: %(default)s)",
    )
    parser.add_argument(
        "--align",
        metavar="NAME",
        help="scale_shift, scale, median, robust, depth_scale_shift or none (default: that of the "
        "protocol, scale_shift)",
    )
    parser.add_argument(
        "--cache",
        type=named_path,
        metavar="DIR",
        help="keep predictions in this folder, and use those that are already there",
    )
    add_fit(parser)
    parser.add_argument(
        "--flip",
        action="store_true",
        help="also predict the mirror image of each photo, and average",
    )
    parser.add_argument(
        "--fov",
        type=float,
        metavar="DEGREES",
        help="horizontal field of view of all photos, for a model whose metres depend on the "
        "camera (DA3METRIC-LARGE); every --align but none works without it",
    )
    parser.add_argument(
        "--json", type=named_path, metavar="FILE", help="also write the results there"
    )
    parser.add_argument("--md", action="store_true", help="print the table as Markdown")
    add_device(parser)
    add_cluster(parser)
    segmentation.add_options(parser)
    parser.set_defaults(function=evaluate)


def format_table(results: list[Result], markdown: bool = False) -> str:
    """Formats results with one row for each data set and predictor."""
    from ..evaluation.metrics import METRICS

    found = {metric for result in results for metric in result.metrics}
    metrics = [*METRICS, *(m for m in ("boundary_f1", "tae", "flicker") if m in found)]
    header = ["data", "predictor", "images", *metrics]
    rows = [
        [
            *(r.data, r.predictor, str(r.count)),
            *(f"{r.metrics[m]:.4f}" if m in r.metrics else "-" for m in metrics),
        ]
        for r in results
    ]
    return table(header, rows, markdown)


def evaluate(args: argparse.Namespace) -> int:
    """Runs ``dafast eval``, as one process or under torchrun as one of many."""
    from ..distributed import distributed_session
    from ..evaluation.benchmarks import evaluate as run_benchmarks
    from ..files import write_file
    from ..models.segmentation import is_segmentation
    from ._model import load_model

    if args.json and args.json.is_dir():
        raise CommandError(f"--json {args.json} is a folder; name a file")
    if is_segmentation(args.model):
        return segmentation.evaluate_segmentation(args)
    for name in ("size", "scales", "window", "stride"):
        if getattr(args, name):
            raise CommandError(f"--{name} is for segmentation models; {args.model} is not one")
    if args.cluster:
        results = _on_cluster(args)
    else:
        with distributed_session() as world:
            device = args.device
            if world.size > 1 and device == "auto":
                device = str(world.device)
            model = load_model(args, device)
            results = run_benchmarks(model, args.data, cache=args.cache, **_scoring_options(args))
            if not world.is_main:
                return 0
    print(format_table(results, args.md))
    if args.json:
        entries = []
        for entry in map(dataclasses.asdict, results):
            scores = entry.pop("metrics")
            entries.append({**entry, **scores})
        text = json.dumps(entries, indent=2) + "\n"
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_file(args.json, text)
    return 0


def _scoring_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "protocol": args.protocol,
        "alignment": args.align,
        "fit": args.fit,
        "flip": args.flip,
        "fov": args.fov,
    }


class Scored:
    """The model in an actor on a cluster.

    Args:
        args: Of the command.

    Attributes:
        facts: ``"scoring"`` and the floating-point type.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from ..evaluation.scoring import DisparityPredictor, Scoring
        from ._model import load_model

        model = load_model(args, args.device)
        scoring = Scoring.of(model.config, **_scoring_options(args))
        self.facts = {"scoring": scoring, "dtype": str(model.dtype).removeprefix("torch.")}
        self._predict = DisparityPredictor(model, scoring.options, args.cache)

    def __call__(self, images: Sequence[np.ndarray], video: bool = False) -> list[np.ndarray]:
        """Disparity of images."""
        return [each.float().cpu().numpy() for each in self._predict(images, video)]


def _on_cluster(args: argparse.Namespace) -> list[Result]:
    """Scores a model on the cluster of ``--cluster``."""
    from ..cluster.scoring import evaluate_with

    data = []
    for spec in args.data:
        name, equals, path = spec.partition("=")
        data.append(f"{name}={os.path.abspath(os.path.expanduser(path))}" if equals else name)
    if args.cache:
        args.cache = args.cache.absolute()
    with cluster_runner(args, "eval", Scored) as cluster:
        scoring = cluster.facts()["scoring"]
        return evaluate_with(cluster, scoring, data, say=lambda line: tell(f"eval: {line}"))
