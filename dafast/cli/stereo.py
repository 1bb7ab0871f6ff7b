"""``dafast stereo``: photos in, stereo pictures out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import make_folder, named_path
from ._process import interrupted
from ._views import add_view_options, load_view_model, photo_and_nearness

if TYPE_CHECKING:
    import numpy as np

LAYOUTS = ("sbs", "half-sbs", "tb", "anaglyph", "cross", "pair")
"""`dafast.views.LAYOUTS`, which the parser must know without an import of torch."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "stereo",
        help="make stereo pictures from photos",
        description="Predicts the depth of photos, and renders what the left and the right eye see "
        "from both sides of the camera. Writes for each photo NAME_SBS, NAME_half_SBS, NAME_TB, "
        "NAME_RL (crossed eyes), NAME_anaglyph, or NAME_L and NAME_R: the ends by which players of "
        "3D and VR pictures recognise the layout.",
        epilog="Existing files stay, and are counted, unless --overwrite is given. A photo that "
        "cannot be read does not stop the others; the exit code is then 1.",
    )
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO|FOLDER|GLOB", help="files, folders, quoted patterns"
    )
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="DIR", help="where to write"
    )
    parser.add_argument(
        "--layout",
        default="sbs",
        choices=LAYOUTS,
        help="side by side (sbs; half-sbs: each half as wide, for 3D televisions), top and bottom "
        "(tb), red-cyan glasses (anaglyph), side by side for crossed eyes (cross), or two pictures "
        "(pair) (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        default="jpg",
        choices=("jpg", "png"),
        help="of the pictures (default: %(default)s)",
    )
    parser.add_argument("--recursive", action="store_true", help="also read subfolders")
    add_view_options(parser, "parallax between the nearest and the farthest surface")
    parser.set_defaults(function=stereo)


def stereo(args: argparse.Namespace) -> int:
    """Runs ``dafast stereo``."""
    from ..views import stereo_pair, stereo_pictures
    from ..views.stereo import LAYOUTS as ENDS
    from ._common import name_failures
    from .photos import find_photos
    from .run_photos import reason_of

    found = find_photos(args.photos, args.recursive)
    failures = list(found.problems)
    sources = {photo.path.resolve() for photo in found.photos}
    plans = {
        photo: {end: args.out / f"{photo.result}{end}.{args.format}" for end in ENDS[args.layout]}
        for photo in found.photos
    }
    waiting = [
        photo
        for photo, paths in plans.items()
        if args.overwrite or not all(path.is_file() for path in paths.values())
    ]
    if waiting:
        make_folder(args.out)
    model = load_view_model(args) if waiting else None
    facts = {k: getattr(args, k) for k in ("layout", "divergence", "convergence", "model")}
    written = 0
    for photo in waiting:
        assert model is not None
        try:
            if any(path.resolve() in sources for path in plans[photo].values()):
                raise ValueError("the result would replace a photo; choose another --out")
            pixels, near = photo_and_nearness(model, photo.path, args)
            views = stereo_pair(
                pixels,
                near,
                divergence=args.divergence,
                convergence=args.convergence,
                device=model.device,
            )
            for end, picture in stereo_pictures(*views, args.layout).items():
                _save(plans[photo][end], picture, {**facts, "photo": photo.path.name})
            written += 1
        except Exception as error:  # one photo never stops the rest
            if interrupted():
                raise KeyboardInterrupt from error
            if args.traceback:
                raise
            failures.append((str(photo.path), reason_of(error, photo.path)))
        if interrupted():
            raise KeyboardInterrupt
    kept = len(found.photos) - len(waiting)
    results = f", {found.results} left out as results of earlier runs" if found.results else ""
    there = f", {kept} already there (--overwrite replaces them)" if kept else ""
    failed = f", {len(failures)} failed" if failures else ""
    print(f"{written} written to {args.out}{there}{results}{failed}")
    name_failures(failures, "this run")
    return 1 if failures else 0


def _save(path: Path, picture: np.ndarray, facts: dict[str, Any]) -> None:
    from PIL import Image

    from ..formats.jpeg import write_jpeg
    from ..formats.png import write_png

    path.parent.mkdir(parents=True, exist_ok=True)
    write = write_png if path.suffix == ".png" else write_jpeg
    write(path, Image.fromarray(picture), facts)
