"""Draws docs/images/output.jpg: what `DepthResult` gives of the example photos.

python scripts/output_pictures.py
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

import dafast
from dafast.camera import Intrinsics
from dafast.surface import Mesh

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ("coffee", "meadow")
WIDTH, HEIGHT, GAP = 330, 220, 6
TURN = 16
"""Degrees that the camera moves around the scene."""


def view(mesh: Mesh, degrees: float) -> Image.Image:
    """A mesh from the side, as corners and points within its triangles."""
    weights = [(i / 4, j / 4, 1 - (i + j) / 4) for i in range(5) for j in range(5 - i)]
    corners, places = mesh.vertices[mesh.faces], mesh.uv[mesh.faces]
    points = np.concatenate([np.tensordot(corners, w, (1, 0)) for w in weights])
    uv = np.concatenate([np.tensordot(places, w, (1, 0)) for w in weights])
    height, width = mesh.texture.shape[:2]
    rows, columns = (uv[:, 1] * height).astype(int), (uv[:, 0] * width).astype(int)
    colors = mesh.texture[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    return draw(points, colors, mesh.intrinsics, width, degrees)


def draw(
    points: np.ndarray, colors: np.ndarray, camera: Intrinsics, width: int, degrees: float
) -> Image.Image:
    """Points from the side, the nearest one of each pixel."""
    middle = np.array((0, 0, np.median(points[:, 2])))
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = (points - middle) @ np.array(((c, 0, -s), (0, 1, 0), (s, 0, c))) + middle
    scale = WIDTH / width
    x = (points[:, 0] / points[:, 2] * camera.fx + camera.cx) * scale
    y = (points[:, 1] / points[:, 2] * camera.fy + camera.cy) * scale
    inside = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT) & (points[:, 2] > 0)
    order = np.argsort(-points[inside, 2])  # the nearest last
    picture = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    x, y = x[inside][order].astype(int), y[inside][order].astype(int)
    picture[y, x] = colors[inside][order]
    return Image.fromarray(picture)


def main() -> None:
    """Draws the sheet."""
    model = dafast.DepthAnything.from_pretrained("nano")
    sheet = Image.new("RGB", (4 * (WIDTH + GAP) - GAP, len(PHOTOS) * (HEIGHT + GAP) - GAP), "white")
    for row, name in enumerate(PHOTOS):
        result = model.predict(ROOT / "examples" / "photos" / f"{name}.jpg")
        near = result.to_depth(ratio=4)
        normals = (near.normals() * (1, -1, -1) + 1) * 127.5
        pictures = [
            Image.fromarray(result.image),
            Image.fromarray(result.colored()),
            Image.fromarray(normals.astype(np.uint8)),
            view(near.mesh(edge_threshold=0.03), TURN),
        ]
        for column, picture in enumerate(pictures):
            place = (column * (WIDTH + GAP), row * (HEIGHT + GAP))
            sheet.paste(picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), place)
    sheet.save(ROOT / "docs" / "images" / "output.jpg", quality=88)


if __name__ == "__main__":
    main()
