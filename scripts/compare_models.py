"""Draws photos next to the depth that several models predict, for docs/images/nano-photos.jpg.

python scripts/compare_models.py OUT.jpg --models nano FOLDER --photos FOLDER_OR_FILES

Every model takes photos at its own size. Red is near; each map is scaled to its own range.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import dafast

WIDTH, HEIGHT, GAP = 196, 147, 3
SUFFIXES = {".jpg", ".jpeg", ".png"}


def middle(picture: np.ndarray) -> np.ndarray:
    """The middle of a picture with sides of 4 to 3."""
    height, width = picture.shape[:2]
    across, down = min(width, height * 4 // 3), min(height, width * 3 // 4)
    top, left = (height - down) // 2, (width - across) // 2
    return np.ascontiguousarray(picture[top : top + down, left : left + across])


def files_of(names: list[Path]) -> list[Path]:
    """The files, and those in the folders, in the order of their names."""
    files = []
    for name in names:
        inside = sorted(name.iterdir()) if name.is_dir() else [name]
        files += [file for file in inside if file.suffix.lower() in SUFFIXES]
    if not files:
        raise SystemExit(f"no pictures in {', '.join(map(str, names))}: name .jpg or .png files")
    return files


def cell(picture: np.ndarray) -> np.ndarray:
    """A picture in the size of the sheet's cells, with a white margin at the right and below."""
    small = Image.fromarray(picture).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    out = np.full((HEIGHT + GAP, WIDTH + GAP, 3), 255, np.uint8)
    out[:HEIGHT, :WIDTH] = small
    return out


def main() -> None:
    """Draws the sheet: a row for each photo, two photos next to each other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=["nano"], help="as from_pretrained takes")
    parser.add_argument("--photos", nargs="+", type=Path, required=True)
    args = parser.parse_args()
    models = [dafast.DepthAnything.from_pretrained(name, device="cpu") for name in args.models]
    rows = []
    for file in files_of(args.photos):
        photo = middle(np.asarray(Image.open(file).convert("RGB")))
        maps = [model.predict(photo).colored() for model in models]
        rows.append(np.concatenate([cell(each) for each in (photo, *maps)], axis=1))
    if len(rows) % 2:
        rows.append(np.full_like(rows[0], 255))
    half = len(rows) // 2
    sheet = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], axis=1)
    Image.fromarray(sheet[:-GAP, :-GAP]).save(args.out, quality=86)


if __name__ == "__main__":
    main()
