"""Draws the diagrams of docs/how-it-works.md: docs/images/network.svg and training.svg.

python scripts/site_pictures.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"

Box = tuple[int, int, int, int, str, str]
"""Left, top, width, height, color, text."""

BLUE, GREEN, ORANGE, GRAY = "#c9d8f5", "#cdebd2", "#fbdfb8", "#e4e4e4"

NETWORK: list[Box] = [
    (10, 70, 110, 60, GRAY, "photo\n518 x 686"),
    (150, 70, 110, 60, BLUE, "patches\n14 x 14"),
    (290, 20, 120, 160, BLUE, "encoder\nvision\ntransformer"),
    (440, 15, 120, 34, GREEN, "stride 4"),
    (440, 59, 120, 34, GREEN, "stride 8"),
    (440, 103, 120, 34, GREEN, "stride 16"),
    (440, 147, 120, 34, GREEN, "stride 32"),
    (600, 20, 120, 160, ORANGE, "decoder\nDPT: joins\ncoarse to fine"),
    (760, 70, 110, 60, GRAY, "disparity\nlarge is near"),
]
NETWORK_ARROWS = [
    (120, 100, 150, 100), (260, 100, 290, 100), (720, 100, 760, 100),
    *((x, y, x + d, y) for y in (32, 76, 120, 164) for x, d in ((410, 30), (560, 40))),
]  # fmt: skip

TRAINING: list[Box] = [
    (10, 20, 150, 50, GRAY, "labeled pictures"),
    (10, 150, 150, 50, GRAY, "unlabeled pictures"),
    (210, 75, 130, 50, BLUE, "teacher"),
    (390, 130, 150, 46, GRAY, "pseudo labels"),
    (210, 215, 190, 50, ORANGE, "strong colours,\nblur, CutMix"),
    (600, 85, 130, 60, BLUE, "student"),
    (600, 210, 130, 50, GREEN, "DINOv2, frozen"),
    (780, 90, 110, 50, GRAY, "small, exact\nmodel"),
]
TRAINING_ARROWS = [
    (160, 55, 210, 88), (340, 110, 390, 142), (160, 165, 230, 125), (160, 188, 210, 232),
    (540, 150, 600, 132), (400, 245, 635, 145), (160, 32, 600, 98), (665, 210, 665, 145),
    (730, 115, 780, 115),
]  # fmt: skip


def draw(title: str, boxes: list[Box], arrows: list[tuple[int, int, int, int]]) -> str:
    """A drawing that is readable on light and dark pages."""
    width = max(x + w for x, _, w, *_ in boxes) + 10
    height = max(y + h for _, y, _, h, *_ in boxes) + 10
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'font-family="sans-serif" font-size="15"><title>{escape(title)}</title>'
        ),
        (
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>'
        ),
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
    ]
    for x1, y1, x2, y2 in arrows:
        parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#444" stroke-width="1.6" '
            'marker-end="url(#a)"/>'
        )
    for x, y, w, h, color, text in boxes:
        parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{color}" stroke="#444"/>'
        )
        lines = text.split("\n")
        first = y + h / 2 + 5 - 9 * (len(lines) - 1)
        for i, line in enumerate(lines):
            parts.append(
                f'<text x="{x + w / 2}" y="{first + 18 * i}" text-anchor="middle" fill="#111">'
                f"{escape(line)}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    network = draw("From a photo to a map of disparity", NETWORK, NETWORK_ARROWS)
    (OUT / "network.svg").write_text(network, encoding="utf-8")
    training = draw("How the student learns", TRAINING, TRAINING_ARROWS)
    (OUT / "training.svg").write_text(training, encoding="utf-8")
