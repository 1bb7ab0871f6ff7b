"""The texture bank: procedural patterns and crops of photographs, with mipmaps.

Every texture is 256x256 RGB, kept with all its mipmap levels in one row of a flat array, so that
the renderer fetches the texels of all materials with a single gather. A pattern's three channels
carry different masks; a material turns them into colours with a random 3x3 matrix.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dafast.files import explain
from dafast.images import PHOTO_SUFFIXES, register_heif
from dafast.optional import MissingPackageError

SIZE = 256
LEVELS = 9
LEVEL_SIZE = np.array([SIZE >> k for k in range(LEVELS)], np.int32)
LEVEL_START = np.concatenate([[0], np.cumsum(LEVEL_SIZE.astype(np.int64) ** 2)[:-1]]).astype(
    np.int32
)
STRIDE = int((LEVEL_SIZE.astype(np.int64) ** 2).sum())
PATTERNS = 320
MAX_PHOTOS = 600  # of a caller's folder; two bank rows (0.5 MB) each
BORROWED = 256  # rows for pictures that come and go; a scene uses fewer

#: The photographs that scikit-image ships; the stereo pair motorcycle_* is a test image and
#: never appears here.
SKIMAGE_PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "rocket.jpg", "moon.png", "page.png", "text.png",
    "clock_motion.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg",
)  # fmt: skip

Array = NDArray[np.floating]


def _resize(a: Array, method: Image.Resampling = Image.Resampling.BICUBIC) -> Array:
    return np.asarray(Image.fromarray(a.astype(np.float32)).resize((SIZE, SIZE), method))


def noise(rng: np.random.Generator, cells: int, cells_y: int | None = None) -> Array:
    """Smooth noise in about 0..1 with the given number of cells across (and down)."""
    return _resize(rng.uniform(0, 1, (max(cells_y or cells, 2), max(cells, 2))))


def fbm(rng: np.random.Generator, cells: int, *, gain: float = 0.5, stretch: int = 1) -> Array:
    """Octaves of noise, scaled to 0..1."""
    out, amp, c = np.zeros((SIZE, SIZE), np.float32), 1.0, cells
    while c <= SIZE:
        out = out + amp * noise(rng, c, max(c // stretch, 2))
        amp, c = amp * gain, c * 2
    return _unit(out)


def _unit(a: Array) -> Array:
    lo, hi = float(a.min()), float(a.max())
    return (a - lo) / max(hi - lo, 1e-6)


def _grid() -> tuple[Array, Array]:
    c = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    return np.meshgrid(c, c)


def _voronoi(rng: np.random.Generator, cells: int) -> tuple[Array, Array, Array]:
    """Distances to the nearest and second nearest jittered grid point, and the nearest's value."""
    px, py = rng.uniform(0, 1, (2, cells, cells))
    val = rng.uniform(0, 1, (cells, cells))
    x, y = (g * cells for g in _grid())
    ix, iy = x.astype(int), y.astype(int)
    d1 = np.full((SIZE, SIZE), 9.0)
    d2, who = d1.copy(), np.zeros((SIZE, SIZE))
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            jx, jy = (ix + dx) % cells, (iy + dy) % cells
            d = np.hypot(ix + dx + px[jy, jx] - x, iy + dy + py[jy, jx] - y)
            nearer = d < d1
            d2 = np.where(nearer, d1, np.minimum(d2, d))
            who = np.where(nearer, val[jy, jx], who)
            d1 = np.where(nearer, d, d1)
    return d1.astype(np.float32), d2.astype(np.float32), who.astype(np.float32)


def _cloud(r: np.random.Generator) -> list[Array]:
    c = int(2 ** r.integers(1, 6))
    g = float(r.uniform(0.4, 0.9))
    return [fbm(r, c, gain=g), fbm(r, c, gain=g), fbm(r, 32, gain=0.9)]


def _plain(r: np.random.Generator) -> list[Array]:
    a = float(r.uniform(0.02, 0.25))
    base = 0.5 + a * (fbm(r, 2) - 0.5)
    return [base, 0.5 + a * (fbm(r, 8, gain=0.8) - 0.5), 0.5 + a * (noise(r, 256) - 0.5)]


def _wood(r: np.random.Generator) -> list[Array]:
    x, y = _grid()
    warp = fbm(r, 2) + 0.25 * fbm(r, 4)
    f = float(r.uniform(4, 25))
    rings = 0.5 + 0.5 * np.sin(6.283 * (f * (x + 0.25 * warp) + 0.4 * np.sin(y * 3)))
    grain = _unit(noise(r, 200, 6) + 0.5 * noise(r, 100, 12))
    planks = int(r.integers(0, 2)) * int(r.integers(2, 9))
    if not planks:
        return [0.7 * rings + 0.3 * grain, grain, fbm(r, 2)]
    i = np.floor(x * planks).astype(int)
    seam = (np.abs(x * planks - i - 0.5) > 0.5 - 0.004 * planks).astype(np.float32)
    ends = np.abs((y + r.uniform(0, 1, planks + 1)[i]) % 1.0 - 0.5) < 0.004
    tone = r.uniform(0, 1, planks + 1)[i].astype(np.float32)
    return [0.5 * tone + 0.3 * rings + 0.2 * grain, grain, np.maximum(seam, ends)]


def _marble(r: np.random.Generator) -> list[Array]:
    x, y = _grid()
    w = fbm(r, 3, gain=0.6)
    v = np.abs(np.sin(6.283 * (r.uniform(0.5, 3) * x + r.uniform(0.5, 3) * y + 1.5 * w)))
    return [v ** float(r.uniform(0.3, 1.5)), w, fbm(r, 16)]


def _bricks(r: np.random.Generator) -> list[Array]:
    x, y = _grid()
    rows = 2 * int(r.integers(2, 9))
    cols = max(1, round(rows * float(r.uniform(0.3, 1.0))))
    shift = float(r.choice([0.5, 0.5, 0.33, 0.0]))
    j = np.floor(y * rows).astype(int)
    xs = x * cols + shift * (j % 2)
    i = np.floor(xs).astype(int)
    g = float(r.uniform(0.01, 0.05))
    fx, fy = np.abs(xs - i - 0.5), np.abs(y * rows - j - 0.5)
    mortar = np.maximum(fx > 0.5 - g, fy > 0.5 - g * rows / cols).astype(np.float32)
    tone = r.uniform(0, 1, (rows + 1, cols + 2))[j, i].astype(np.float32)
    return [np.clip(mortar + 0.15 * fbm(r, 16), 0, 1), tone, fbm(r, 16, gain=0.8)]


def _checks(r: np.random.Generator) -> list[Array]:
    x, y = _grid()
    n, m = int(r.integers(2, 16)), int(r.integers(2, 16))
    m = n if r.random() < 0.6 else m
    c = ((np.floor(x * n) + np.floor(y * m)) % 2).astype(np.float32)
    return [c, fbm(r, 4), noise(r, 128)]


def _stripes(r: np.random.Generator) -> list[Array]:
    x, y = _grid()
    a = float(r.choice([0, np.pi / 2, r.uniform(0, np.pi)]))
    t = x * np.cos(a) + y * np.sin(a) + 0.03 * r.integers(0, 2) * fbm(r, 3)
    widths = np.sort(r.uniform(-1, 2, int(r.integers(6, 50))))
    band = np.searchsorted(widths, t.ravel()).reshape(t.shape)
    tone = r.uniform(0, 1, (2, len(widths) + 1)).astype(np.float32)
    return [tone[0][band], tone[1][band], noise(r, 128)]


def _plaid(r: np.random.Generator) -> list[Array]:
    a, b = _stripes(r)[0], r.uniform(0, 1, int(r.integers(4, 30)))
    x, y = _grid()
    rows = b[(y * len(b)).astype(int)].astype(np.float32)
    cols = b[(x * len(b)).astype(int)].astype(np.float32)
    weave = (((x * SIZE).astype(int) + (y * SIZE).astype(int)) % 4 < 2).astype(np.float32)
    return [0.5 * rows + 0.5 * cols, 0.3 * a + 0.7 * cols, weave]


def _speckle(r: np.random.Generator) -> list[Array]:
    n = noise(r, int(r.integers(24, 160)))
    t = float(r.uniform(0.5, 0.8))
    return [(n > t).astype(np.float32), (n < 1 - t).astype(np.float32), fbm(r, 8)]


def _cells(r: np.random.Generator) -> list[Array]:
    d1, d2, who = _voronoi(r, int(r.integers(3, 40)))
    if r.random() < 0.5:
        return [np.clip((d2 - d1) * 4, 0, 1), who, fbm(r, 16)]
    return [np.clip(1.2 - d1, 0, 1), who, np.clip((d2 - d1) * 10, 0, 1)]


def _dots(r: np.random.Generator) -> list[Array]:
    x, y = _grid()
    n = int(r.integers(3, 20))
    shift = 0.5 * (np.floor(y * n) % 2) * r.integers(0, 2)
    d = np.hypot((x * n + shift) % 1 - 0.5, (y * n) % 1 - 0.5)
    return [(d < r.uniform(0.15, 0.42)).astype(np.float32), fbm(r, 4), noise(r, 128)]


def _weave(r: np.random.Generator) -> list[Array]:
    x, y = _grid()
    f = float(r.uniform(30, 110))
    a, b = np.sin(6.283 * f * x), np.sin(6.283 * f * y)
    return [0.5 + 0.5 * a * b, 0.5 + 0.4 * a, fbm(r, 4, gain=0.7)]


def _grass(r: np.random.Generator) -> list[Array]:
    streak = _unit(noise(r, 250, 40) + noise(r, 120, 25) + 0.6 * noise(r, 60))
    return [streak, fbm(r, 4), fbm(r, 64, gain=0.9)]


def _text(r: np.random.Generator) -> list[Array]:
    rows, cols = int(r.integers(8, 40)), int(r.integers(20, 90))
    ink = (r.uniform(0, 1, (rows, cols)) < 0.75).astype(np.float32)
    ink *= np.arange(cols)[None] < r.integers(cols // 2, cols + 1, (rows, 1))
    ink = np.asarray(Image.fromarray(ink).resize((SIZE, SIZE), Image.Resampling.NEAREST))
    y = _grid()[1]
    ink = ink * ((y * rows) % 1 > 0.45) * (noise(r, 200) > 0.35)
    return [ink.astype(np.float32), fbm(r, 3), np.floor(y * 4) / 4]


def _collage(r: np.random.Generator) -> list[Array]:
    out = np.stack([fbm(r, 2), fbm(r, 3), fbm(r, 4)])
    x, y = _grid()
    for _ in range(int(r.integers(4, 40))):
        cx, cy = r.uniform(0, 1, 2)
        w, h = r.uniform(0.02, 0.3, 2)
        a = float(r.uniform(0, 3.14)) * int(r.integers(0, 2))
        u, v = (
            (x - cx) * np.cos(a) + (y - cy) * np.sin(a),
            (y - cy) * np.cos(a) - (x - cx) * np.sin(a),
        )
        m = (u / w) ** 2 + (v / h) ** 2 < 1 if r.random() < 0.4 else (abs(u) < w) & (abs(v) < h)
        out[:, m] = r.uniform(0, 1, (3, 1))
    return list(out)


def _stains(r: np.random.Generator) -> list[Array]:
    n = fbm(r, int(2 ** r.integers(1, 5)), gain=0.65)
    k = int(r.integers(2, 6))
    return [np.floor(n * k) / k, np.clip((n - 0.55) * 8, 0, 1), fbm(r, 32, gain=0.9)]


def _scratches(r: np.random.Generator) -> list[Array]:
    s = int(r.choice([8, 20, 40]))
    a, b = fbm(r, 64, gain=0.8, stretch=s), fbm(r, 32, gain=0.8, stretch=s).T
    return [a, b, fbm(r, 4)]


def _gradient(r: np.random.Generator) -> list[Array]:
    x, y = _grid()
    return [y + 0.05 * fbm(r, 4), x, 0.5 + 0.2 * (noise(r, 200) - 0.5)]


GENERATORS: dict[str, tuple[int, Callable[[np.random.Generator], list[Array]]]] = {
    "cloud": (5, _cloud), "plain": (5, _plain), "wood": (5, _wood), "marble": (2, _marble),
    "bricks": (4, _bricks), "checks": (2, _checks), "stripes": (3, _stripes),
    "plaid": (2, _plaid), "speckle": (3, _speckle), "cells": (3, _cells), "dots": (1, _dots),
    "weave": (3, _weave), "grass": (3, _grass), "text": (2, _text), "collage": (3, _collage),
    "stains": (3, _stains), "scratches": (3, _scratches), "gradient": (1, _gradient),
}  # fmt: skip


def _assign() -> list[str]:
    names = [n for n, (weight, _) in GENERATORS.items() for _ in range(weight)]
    return [names[i % len(names)] for i in range(PATTERNS)]


def _mipmaps(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    levels, level = [rgb.reshape(-1, 3)], rgb.astype(np.float32)
    for _ in range(LEVELS - 1):
        n = len(level) // 2
        level = level.reshape(n, 2, n, 2, 3).mean((1, 3))
        levels.append((level + 0.5).astype(np.uint8).reshape(-1, 3))
    return np.concatenate(levels)


def list_photos(folder: str | Path) -> list[Path]:
    """Photographs under a folder, sorted; stereo test pairs of scikit-image are left out.

    Raises:
        FileNotFoundError: the folder is missing or holds no picture.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"texture folder {root} does not exist or is not a folder")
    found = sorted(
        p
        for p in root.rglob("*")
        if p.suffix.lower() in PHOTO_SUFFIXES
        and p.is_file()
        and not p.name.startswith("motorcycle_")
    )
    if not found:
        raise FileNotFoundError(
            f"texture folder {root} holds no pictures ({', '.join(sorted(PHOTO_SUFFIXES))})"
        )
    if len(found) > MAX_PHOTOS:
        found = [found[i * len(found) // MAX_PHOTOS] for i in range(MAX_PHOTOS)]
    return found


class TextureBank:
    """All textures of one process, made when first used.

    Args:
        folder: further photographs (recursive), or None.

    Attributes:
        texels: uint8 (rows * STRIDE, 3), all mipmap levels of all textures.
        first_photo: rows from here on are photographs.
        by_name: bank rows of each pattern name, and of "photo" (every row of a photograph).
        first_borrowed: rows from here on are those of `borrow`.
        alpha: uint8 (BORROWED, SIZE, SIZE), alpha channels of the borrowed rows.
        holes: bool (rows,), whether a row has transparent parts.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._names = _assign()
        self._paths = shipped_photos() + (list_photos(folder) if folder is not None else [])
        self.first_borrowed = PATTERNS + 2 * len(self._paths)
        rows = self.first_borrowed + BORROWED
        self.texels = np.empty((rows * STRIDE, 3), np.uint8)
        self.first_photo = PATTERNS
        self._ready = np.zeros(rows, bool)
        self.by_name: dict[str, list[int]] = {name: [] for name in GENERATORS}
        for i, name in enumerate(self._names):
            self.by_name[name].append(i)
        self.by_name["photo"] = list(range(PATTERNS, self.first_borrowed))
        self.alpha = np.empty((BORROWED, SIZE, SIZE), np.uint8)
        self.holes = np.zeros(rows, bool)
        self._borrowed: dict[bytes, int] = {}  # the least recently used is the first

    def pick(self, rng: np.random.Generator, *names: str) -> int:
        """A random bank row among the named patterns, made ready for use."""
        row = int(rng.choice(self.by_name[names[int(rng.integers(len(names)))]]))
        if not self._ready[row]:
            self._make(row)
        return row

    def borrow(self, rgba: NDArray[np.uint8]) -> int:
        """The row of a picture that does not belong to the bank.

        It takes the row of the picture that was used least recently, and keeps it while the
        ``BORROWED - 1`` following calls with other pictures do not.

        Args:
            rgba: uint8 (SIZE, SIZE, 4), gamma coded.
        """
        key = hashlib.blake2b(rgba.tobytes(), digest_size=16).digest()
        row = self._borrowed.pop(key, None)
        if row is None:
            row = self.first_borrowed + len(self._borrowed)
            if len(self._borrowed) == BORROWED:
                row = self._borrowed.pop(next(iter(self._borrowed)))
            self._store(row, rgba[..., :3])
            self.alpha[row - self.first_borrowed] = rgba[..., 3]
            self.holes[row] = bool((rgba[..., 3] < 128).any())
        self._borrowed[key] = row
        return row

    def _make(self, row: int) -> None:
        if row < PATTERNS:
            rng = np.random.default_rng([7919, row])
            rgb = np.stack(GENERATORS[self._names[row]][1](rng), -1)
            self._store(row, (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8))
            return
        k = (row - PATTERNS) // 2
        rng = np.random.default_rng([104729, k])
        register_heif()
        try:
            with Image.open(self._paths[k]) as image:
                image.draft("RGB", (768, 768))
                photo = image.convert("RGB")
        except OSError as error:
            raise OSError(f"texture {self._paths[k]} cannot be read: {explain(error)}") from error
        photo.thumbnail((512, 512), Image.Resampling.BILINEAR)
        w, h = photo.size
        s = int(min(w, h) * rng.uniform(0.4, 0.7))
        x, y = int(rng.integers(0, w - s + 1)), int(rng.integers(0, h - s + 1))
        first = PATTERNS + 2 * k
        whole = photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        crop = photo.crop((x, y, x + s, y + s)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        self._store(first, np.asarray(whole))
        self._store(first + 1, np.asarray(crop))

    def _store(self, row: int, rgb: NDArray[np.uint8]) -> None:
        self.texels[row * STRIDE : (row + 1) * STRIDE] = _mipmaps(rgb)
        self._ready[row] = True


def shipped_photos() -> list[Path]:
    """The photographs of ``SKIMAGE_PHOTOS`` that this installation of scikit-image holds.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            "dafast.synthetic takes photographs from scikit-image: pip install 'dafast[synth]' "
            "(scikit-image is not installed)"
        )
    data = Path(spec.submodule_search_locations[0]) / "data"
    return [data / name for name in SKIMAGE_PHOTOS if (data / name).is_file()]


def texture_digest(folder: str | Path | None = None) -> str:
    """A digest of a set of photographs, from their names and sizes in bytes.

    Raises:
        FileNotFoundError: the folder is missing or holds no picture.
    """
    photos = [(p.name, p) for p in shipped_photos()]
    if folder is not None:
        photos += [(p.relative_to(folder).as_posix(), p) for p in list_photos(folder)]
    listing = "".join(f"{name}\0{path.stat().st_size}\0" for name, path in photos)
    return hashlib.sha256(os.fsencode(listing)).hexdigest()[:16]


@lru_cache(maxsize=2)
def bank(folder: str | None = None) -> TextureBank:
    """The texture bank of this process for a folder (an absolute path) or for None."""
    return TextureBank(folder)


def bank_for(folder: str | os.PathLike[str] | None) -> TextureBank:
    """The bank for a folder in any spelling."""
    return bank(None if folder is None else os.path.abspath(folder))
