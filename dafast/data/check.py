"""Reads a source from end to end, and draws a sheet of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dafast.data.decode import DECODE_ERRORS, decode_image
from dafast.data.sources import Item, Labeled, SourceError, Unlabeled
from dafast.data.transforms import resize_nearest
from dafast.files import explain_kind
from dafast.palettes import colorize

_HEIGHT = 144  # of a picture on the sheet
_WIDTH = 192  # room for it
_CAPTION = 14
_GAP = 4
_GROUPS = 2  # samples side by side
_UNKNOWN = 128  # the gray of pixels without a label
_PAPER = (224, 224, 224)  # not white: masks are


@dataclass(frozen=True)
class CheckReport:
    """Result of `check`.

    Attributes:
        total: Number of items that were tried.
        corrupt: (name, reason) of those that cannot be read.
        unlabeled: (name, reason) of labels without a valid pixel.
        bare: Number of items without a label that need none.
        coarse: (name, half a step) of coarse labels (`Labeled.half_step`).
        valid_share: Mean fraction of pixels with a label, over the readable labels; 0 without any.
        shown: (name, picture) for the sheet, in order.
    """

    total: int
    corrupt: list[tuple[str, str]]
    unlabeled: list[tuple[str, str]]
    bare: int
    coarse: list[tuple[str, float]]
    valid_share: float
    shown: list[tuple[str, Image.Image]]


def check(
    items: Sequence[Item], *, shown: int = 16, limit: int | None = None, workers: int = 2
) -> CheckReport:
    """Reads all items, or `limit` evenly spread ones.

    Args:
        items: The samples; those without labels are decoded.
        shown: Number of evenly spread items for the sheet; unreadable ones are left out of it.
        limit: Largest number of items to read.
        workers: Number of reading threads.
    """
    chosen = [items[i] for i in _spread(len(items), limit or len(items))]
    kept = set(_spread(len(chosen), shown))

    def read(
        index: int,
    ) -> tuple[float | None, Image.Image | None, list[tuple[str, str]] | None, str]:
        item = chosen[index]
        try:
            if item.read is None:
                image = decode_image(next(iter(item.load().values())))
                picture = _row(Image.fromarray(image)) if index in kept else None
                return None, picture, None, ""
            labeled = item.read()
        except (SourceError, *DECODE_ERRORS) as error:
            # Only its text: the error itself would keep the arrays in memory.
            found = unlabeled if isinstance(error, Unlabeled) else corrupt
            return 0.0, None, found, explain_kind(error)
        if labeled.half_step:
            coarse.append((item.name, labeled.half_step))
        return float(labeled.mask.mean()), _triple(labeled) if index in kept else None, None, ""

    bare = 0
    coarse: list[tuple[str, float]] = []
    corrupt: list[tuple[str, str]] = []
    unlabeled: list[tuple[str, str]] = []
    pictures: list[tuple[str, Image.Image]] = []
    shares: list[float] = []
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(read, range(len(chosen)))
        for item, (share, picture, found, reason) in zip(chosen, results, strict=True):
            if found is not None:
                found.append((item.name, reason))
                continue
            if share is None:
                bare += 1
            else:
                shares.append(share)
            if picture is not None:
                pictures.append((item.name, picture))
    mean = sum(shares) / len(shares) if shares else 0.0
    return CheckReport(len(chosen), corrupt, unlabeled, bare, coarse, mean, pictures)


def draw_sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """The pictures of a report, each under its name."""
    cell_width = 3 * _WIDTH + 3 * _GAP
    cell_height = _HEIGHT + _CAPTION + _GAP
    groups = min(_GROUPS, len(pictures))
    rows = -(-len(pictures) // max(1, groups))
    page = Image.new("RGB", (groups * cell_width + _GAP, rows * cell_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    for index, (name, picture) in enumerate(pictures):
        left = _GAP + index % groups * cell_width
        top = _GAP + index // groups * cell_height
        shortened = name if len(name) <= 90 else f"...{name[-87:]}"
        draw.text((left, top), shortened.encode("ascii", "replace").decode(), fill="black")
        page.paste(picture, (left, top + _CAPTION))
    return page


def _triple(labeled: Labeled) -> Image.Image:
    """Picture, disparity and mask side by side, small."""
    height, width = labeled.image.shape[:2]
    scale = min(_HEIGHT / height, _WIDTH / width)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    image = Image.fromarray(labeled.image).resize((shape[1], shape[0]), Image.Resampling.BOX)
    mask = resize_nearest(labeled.mask, shape)
    colours = colorize(resize_nearest(labeled.disparity, shape))
    colours[~mask] = _UNKNOWN
    return _row(image, Image.fromarray(colours), Image.fromarray(mask.astype(np.uint8) * 255))


def _row(*parts: Image.Image) -> Image.Image:
    """Up to three pictures side by side; large ones are scaled down."""
    row = Image.new("RGB", (3 * _WIDTH + 2 * _GAP, _HEIGHT), _PAPER)
    for column, part in enumerate(parts):
        scale = min(1.0, _HEIGHT / part.height, _WIDTH / part.width)
        if scale < 1:
            shape = max(1, round(part.width * scale)), max(1, round(part.height * scale))
            part = part.resize(shape, Image.Resampling.BOX)
        row.paste(part, (column * (_WIDTH + _GAP), 0))
    return row


def _spread(total: int, wanted: int) -> list[int]:
    """At most `wanted` indices of `total`, evenly spread."""
    count = min(total, wanted)
    return [index * total // count for index in range(count)]
