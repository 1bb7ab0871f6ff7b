"""Draws docs/images/demo.jpg and video-layouts.jpg with nano.

The first has photos, their depth, their point clouds, and a video, the second a frame in two of
the layouts of `dafast video`.

python scripts/readme_pictures.py
"""

from __future__ import annotations

import numpy as np
from PIL import Image

import dafast
from dafast.video.rendering import Renderer
from scripts.output_pictures import GAP, ROOT, draw
from scripts.scene_pictures import row

OUT = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1200, 260
FRAMES = 5


def crop(picture: np.ndarray) -> np.ndarray:
    """The middle of a picture with sides of 3 to 2."""
    height, width = picture.shape[:2]
    wanted = min(height, width * 2 // 3)
    top = (height - wanted) // 2
    return np.ascontiguousarray(picture[top : top + wanted, : wanted * 3 // 2])


def stack(rows: list[np.ndarray]) -> Image.Image:
    """Rows of about one width, one below the other."""
    parts = []
    for each in rows:
        height = round(each.shape[0] * WIDTH / each.shape[1])
        picture = Image.fromarray(each).resize((WIDTH, height), Image.Resampling.LANCZOS)
        parts += [np.asarray(picture), np.full((GAP, WIDTH, 3), 255, np.uint8)]
    return Image.fromarray(np.concatenate(parts[:-1]))


def pan(photo: np.ndarray, count: int) -> list[np.ndarray]:
    """Frames of a camera that moves over a photo."""
    height, width = photo.shape[0] * 3 // 5, photo.shape[1] * 3 // 5
    height, width = min(height, width * 9 // 16) // 2 * 2, width // 2 * 2
    frames = []
    for i in range(count):
        x = (photo.shape[1] - width) * i // max(count - 1, 1)
        y = (photo.shape[0] - height) // 2
        frames.append(np.ascontiguousarray(photo[y : y + height, x : x + width]))
    return frames


def main() -> None:
    """Draws the sheet."""
    model = dafast.DepthAnything.from_pretrained("nano", device="cpu")
    photos = [
        crop(np.asarray(Image.open(ROOT / f"examples/photos/{name}.jpg").convert("RGB")))
        for name in ("coffee", "meadow", "room")
    ]
    results = [model.predict(photo, fov=60) for photo in photos]
    colors = [result.colored() for result in results]
    clouds = [result.to_depth(ratio=4).point_cloud() for result in results]
    sides = [
        np.asarray(draw(cloud.points, cloud.colors, cloud.intrinsics, photo.shape[1], 14))
        for cloud, photo in zip(clouds, photos, strict=True)
    ]
    frames = list(model.stream(pan(photos[1], 40), stabilize="range"))[:: 40 // FRAMES]
    strip = [frame.image for frame in frames]
    depth = [
        frame.colored(low=frame.display_range[0], high=frame.display_range[1]) for frame in frames
    ]
    rows = [row(photos, HEIGHT), row(colors, HEIGHT), row(sides, HEIGHT), row(strip, HEIGHT // 2)]
    stack([*rows, row(depth, HEIGHT // 2)]).save(OUT / "demo.jpg", quality=86)

    (frame,) = pan(photos[0], 1)
    disparity = model.infer(frame)
    low, high = np.quantile(disparity, (0.005, 0.995))
    layouts = [Renderer(name).render(frame, disparity, low, high) for name in ("side", "sbs")]
    stack(layouts).save(OUT / "video-layouts.jpg", quality=88)


if __name__ == "__main__":
    main()
