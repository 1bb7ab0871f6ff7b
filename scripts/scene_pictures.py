"""Draws docs/images/scenes-*.jpg: stereo, moving cameras, large photos and panoramas of nano.

python scripts/scene_pictures.py  (the panorama needs the extra synth)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dafast
from dafast.evaluation.alignment import align_disparity
from dafast.palettes import colorize
from dafast.panorama import PanoramaResult, directions_of
from dafast.synthetic.render import SceneCamera, Tracer, camera_from, shade, trace
from dafast.synthetic.sample import _BUILDERS, bank_for
from dafast.synthetic.scene import Scene
from dafast.views import Camera as Place
from dafast.views import nearness, render_view, stereo_pair, stereo_pictures

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "images"
GAP = 6
SIDE = 420  # of a face of the panorama
SEED = 11


def row(pictures: list[np.ndarray], height: int) -> np.ndarray:
    """Pictures of one height, side by side."""
    shown = []
    for picture in pictures:
        width = round(picture.shape[1] * height / picture.shape[0])
        size = (width, height)
        shown += [
            np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)),
            np.full((height, GAP, 3), 255, np.uint8),
        ]
    return np.concatenate(shown[:-1], axis=1)


def save(name: str, rows: list[np.ndarray]) -> None:
    """Writes rows, one below the other, at the width of the narrowest."""
    width = min(picture.shape[1] for picture in rows)
    gap = np.full((GAP, width, 3), 255, np.uint8)
    parts = [part for picture in rows for part in (picture[:, :width], gap)]
    Image.fromarray(np.concatenate(parts[:-1])).save(OUT / f"scenes-{name}.jpg", quality=88)


def stereo(model: dafast.DepthAnything) -> None:
    """The views of both eyes, and the anaglyph."""
    result = model.predict(ROOT / "examples/photos/coffee.jpg")
    left, right = stereo_pair(result.image, nearness(result.values), divergence=4)
    anaglyph = stereo_pictures(left, right, "anaglyph")["_anaglyph"]
    save("stereo", [row([left, right, anaglyph], 260)])


def parallax(model: dafast.DepthAnything) -> None:
    """The photo from the left, from the right, and from nearer."""
    result = model.predict(ROOT / "examples/photos/room.jpg")
    near = nearness(result.values)
    places = (Place(right=-12), Place(right=12), Place(forward=0.15))
    views = [render_view(result.image, near, place) for place in places]
    save("parallax", [row([result.image, *views], 320)])


def large(model: dafast.DepthAnything) -> None:
    """One pass, tiles, and both with the edges of the photo."""
    photo = ROOT / "examples/photos/room.jpg"
    results = [
        model.predict(photo, tile=tile, guided=guided)
        for tile, guided in ((None, False), (200, False), (200, True))
    ]
    save("tiles", [row([results[0].image, *(r.colored() for r in results)], 380)])


def room() -> tuple[np.ndarray, np.ndarray]:
    """A synthetic room as six faces: the equirectangular photo and its distances."""
    scene = Scene(np.random.default_rng([20240119, SEED, 0]), bank_for(None))
    _BUILDERS["room"](scene)
    geometry = scene.geometry()
    tracer = Tracer(geometry)
    base = camera_from(scene.view, (SIDE, SIDE))
    forward = base.rotation[:, 2] * (1, 1, 0)
    forward /= np.linalg.norm(forward)
    down = np.array((0, 0, -1.0))
    right = np.cross(down, forward)
    height = SIDE
    world = directions_of(range(height), height, 2 * height) @ np.stack([right, down, forward])
    image = np.zeros((height, 2 * height, 3), np.float32)
    distance = np.zeros((height, 2 * height), np.float32)
    axes = [(right, forward), (-forward, right), (-right, -forward), (forward, -right)]
    faces = [(x, down, z) for x, z in axes] + [(right, -forward, down), (right, forward, -down)]
    for face in faces:
        rotation = np.stack(face, 1).astype(np.float32)
        camera = SceneCamera(SIDE, SIDE, SIDE / 2, SIDE / 2, SIDE / 2, SIDE / 2, rotation, base.eye)
        hits = trace(tracer, camera)
        colours = shade(scene, geometry, tracer, camera, hits).reshape(SIDE, SIDE, 3)
        u, v, z = np.moveaxis(world @ rotation, -1, 0)
        here = z >= np.maximum(np.abs(u), np.abs(v)) - 1e-9
        columns, rows = (
            np.clip(((a[here] / z[here] + 1) / 2 * SIDE - 0.5).round().astype(int), 0, SIDE - 1)
            for a in (u, v)
        )
        image[here] = colours[rows, columns]
        distance[here] = hits.depth.reshape(SIDE, SIDE)[rows, columns] / z[here]
    exposed = np.clip(image / np.quantile(image, 0.95), 0, 1) ** (1 / 2.2)
    return (exposed * 255).astype(np.uint8), distance


def panorama(model: dafast.DepthAnything) -> None:
    """A room, its true inverse distance, and nano's."""
    photo, distance = room()
    result = model.predict(photo, panorama=True)
    assert isinstance(result, PanoramaResult)
    truth, mask = 1 / distance, np.isfinite(distance)
    fitted = align_disparity(result.values, truth, mask)
    error = np.abs(1 / np.maximum(fitted, 1e-2) - distance)[mask] / distance[mask]
    print(f"panorama: AbsRel {error.mean():.3f} after alignment of inverse distance")
    low, high = np.quantile(truth[mask], [0.01, 0.99])
    shown = [colorize((x - low) / (high - low)) for x in (truth, fitted)]
    save("panorama", [row([photo], 300), row(shown, 149)])
    turned = np.roll(result.values, distance.shape[1] // 2, axis=1)  # the borders in the middle
    jump = np.abs(np.diff(turned, axis=1))
    print(f"at the border {jump[:, distance.shape[1] // 2 - 1].mean() / jump.mean():.2f} of a step")


def main() -> None:
    """Draws all sheets."""
    model = dafast.DepthAnything.from_pretrained("nano", device="cpu", dtype=torch.float32)
    for draw in (stereo, parallax, large, panorama):
        draw(model)


if __name__ == "__main__":
    main()
