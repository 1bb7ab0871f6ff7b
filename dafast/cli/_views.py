"""Parts that ``dafast stereo`` and ``dafast parallax`` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import add_device, add_fit, add_max_tokens, add_model, positive

if TYPE_CHECKING:
    import numpy as np

    from ..models import DepthAnything


def add_view_options(parser: argparse.ArgumentParser, movement: str) -> None:
    """Adds the options of the model and of the views.

    Args:
        parser: Takes the options.
        movement: What divergence measures, for the help text.
    """
    add_model(parser, "nano")
    parser.add_argument(
        "--divergence",
        type=float,
        default=2.5,
        metavar="PERCENT",
        help=f"{movement}, in per cent of the width, 0 to 20 (default: %(default)s)",
    )
    parser.add_argument(
        "--convergence",
        type=float,
        default=0.5,
        metavar="NEARNESS",
        help="what stays in its place: 0 the farthest, 1 the nearest surface, by disparity "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--fov",
        type=float,
        metavar="DEGREES",
        help="horizontal field of view, for models that need the camera (Depth Anything 3 metric) "
        "and photos without a focal length in EXIF data",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_fit(parser)
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="shorter side in pixels that the network sees (default: the model's own)",
    )
    add_max_tokens(parser)
    add_device(parser)


def load_view_model(args: argparse.Namespace) -> DepthAnything:
    """Checks the options, and loads the model."""
    from ..views.stereo import check_divergence
    from ..views.warp import check_convergence
    from ._model import load_model, own_device

    check_divergence(args.divergence)
    check_convergence(args.convergence)
    return load_model(args, own_device(args.device))


def photo_and_nearness(
    model: DepthAnything, photo: Path, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """A photo (H, W, 3), uint8, and its nearness (H, W)."""
    from ..pointcloud import as_bytes
    from ..views import nearness

    options: dict[str, Any] = dict(fit=args.fit, size=args.size, max_tokens=args.max_tokens)
    result = model.predict(photo, fov=args.fov, **options)
    assert result.image is not None
    return as_bytes(result.image), nearness(result.to_disparity().values)
