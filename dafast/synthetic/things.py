"""Furniture and small things. Each function builds one thing at the origin, standing on z = 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dafast.synthetic import living
from dafast.synthetic import meshes as ms
from dafast.synthetic.scene import Scene, of_class


def bars(
    w: Scene, ends: Sequence[tuple[Sequence[float], Sequence[float]]], r: float, mat: int
) -> None:
    """Round bars between pairs of points."""
    w.add(ms.merge([ms.tube([a, b], r, sides=7) for a, b in ends]), mat)


@of_class("furniture")
def table(w: Scene, length: float, width: float, height: float) -> None:
    """A table: top, four legs or one pedestal, sometimes a shelf below."""
    top, leg = (w.wood() if w.chance(0.6) else w.paint(), w.wood() if w.chance(0.5) else w.metal())
    t = w.u(0.02, 0.06)
    if w.chance(0.2):
        w.add(ms.cylinder(width / 2, t, segments=32).move(0, 0, height - t), top)
        w.add(ms.cylinder(w.u(0.03, 0.08), height - t), leg)
        w.add(ms.cylinder(width * 0.3, 0.03), leg)
        return
    w.add(ms.box(length, width, t, at=(0, 0, height - t / 2)), top)
    s = w.u(0.02, 0.08)
    x, y = length / 2 - s, width / 2 - s
    c = [(sx * x, sy * y, (height - t) / 2) for sx in (-1, 1) for sy in (-1, 1)]
    w.add(ms.boxes(c, [(s, s, height - t)] * 4), leg)
    if w.chance(0.3):
        w.add(ms.box(length * 0.9, width * 0.9, 0.02, at=(0, 0, height * 0.3)), top)
    if w.chance(0.4):
        w.add(ms.box(length - 2 * s, width - 2 * s, 0.1, at=(0, 0, height - t - 0.05)), leg)


@of_class("furniture")
def chair(w: Scene) -> None:
    """A chair with or without arms, sometimes a swivel chair or a stool."""
    seat = w.cloth() if w.chance(0.5) else w.wood()
    frame = w.metal() if w.chance(0.4) else w.wood()
    h, a, b = w.u(0.4, 0.5), w.u(0.36, 0.5), w.u(0.8, 1.05)
    r = w.u(0.01, 0.022)
    w.add(ms.superquadric(a / 2, a / 2, w.u(0.02, 0.05), 0.4, 0.3, segments=16).move(0, 0, h), seat)
    if w.chance(0.2):
        w.add(ms.cylinder(0.03, h), frame)
        ends = [
            ((0, 0, 0.05), (0.28 * np.cos(t), 0.28 * np.sin(t), 0.03)) for t in np.arange(5) * 1.257
        ]
        bars(w, ends, 0.02, frame)
    else:
        p = a / 2 - 0.03
        k = w.u(0, 0.05)
        bars(
            w,
            [
                ((sx * p, sy * p, h), (sx * (p + k), sy * (p + k), 0))
                for sx in (-1, 1)
                for sy in (-1, 1)
            ],
            r,
            frame,
        )
    if w.chance(0.1):
        return
    p, lean = a / 2 - 0.02, w.u(0.02, 0.12)
    bars(w, [((sx * p, p, h), (sx * p, p + lean, b)) for sx in (-1, 1)], r, frame)
    if w.chance(0.5):
        w.add(ms.box(a * 0.95, 0.025, w.u(0.15, 0.42), at=(0, p + lean * 0.7, b - 0.15)), seat)
    else:
        xs = np.linspace(-p, p, w.n(3, 7))
        bars(w, [((x, p, h), (x, p + lean, b)) for x in xs], 0.008, frame)
        w.add(ms.box(a, 0.03, 0.07, at=(0, p + lean, b)), frame)
    if w.chance(0.3):
        z = h + 0.2
        bars(w, [((sx * p, p, z), (sx * p, -p, z)) for sx in (-1, 1)], r * 1.3, frame)


@of_class("thing")
def book_row(w: Scene, length: float, height: float, depth: float) -> None:
    """Upright books from x = 0 to ``length``, leaning a little, with gaps."""
    r = w.rng
    n = max(int(length / 0.035), 1)
    t = r.uniform(0.012, 0.055, n)
    x = np.cumsum(t) - t / 2
    keep = (x < length - 0.02) & (r.random(n) < w.u(0.7, 1))
    t, x = t[keep], x[keep]
    if not len(t):
        return
    h, d = r.uniform(0.55, 0.97, len(t)) * height, r.uniform(0.5, 0.95, len(t)) * depth
    rot = np.stack([ms.rotation(0, a) for a in r.normal(0, 0.04, len(t))])
    mesh = ms.boxes(np.stack([x, d / 2, h / 2], 1), np.stack([t, d, h], 1), rot)
    mats = np.array(
        [
            w.paint("plain", "text", "stripes", "collage", "cloud", scale=(2, 8))
            for _ in range(w.n(3, 9))
        ]
    )
    w.add(mesh, np.repeat(r.choice(mats, len(t)), 12))


@of_class("furniture")
def shelf(w: Scene, width: float, height: float, depth: float) -> None:
    """A shelf along x, its back at y = depth, filled with books and things."""
    mat = w.wood() if w.chance(0.7) else w.plain()
    n = max(2, round(height / w.u(0.28, 0.5)))
    z = np.linspace(0.05, height, n + 1)
    sizes = [(width, depth, 0.025)] * (n + 1) + [(0.025, depth, height)] * 2
    c = [(0, depth / 2, k) for k in z] + [(s * width / 2, depth / 2, height / 2) for s in (-1, 1)]
    w.add(ms.boxes(c, sizes), mat)
    if w.chance(0.7):
        w.add(ms.box(width, 0.01, height, at=(0, depth, height / 2)), mat)
    step = z[1] - z[0]
    for k in z[:-1]:
        with w.at(-width / 2 + 0.04, 0.02, k + 0.015):
            if w.chance(0.65):
                book_row(w, width * w.u(0.4, 0.95), step * 0.9, depth)
            else:
                for x in np.arange(0.1, width - 0.15, w.u(0.15, 0.4)):
                    with w.at(x, depth * 0.5, 0, yaw=w.u(0, 6), scale=min(1.0, step / 0.45)):
                        small_thing(w)


@of_class("thing")
def bottle(w: Scene, scale: float = 1.0) -> None:
    """A random surface of revolution: bottle, vase, jar, cup, bowl, glass."""
    r = w.rng
    kind = w.n(0, 3)
    mat = w.paint(scale=(2, 10), gloss=0.8) if w.chance(0.5) else w.plain(gloss=0.9)
    if kind == 0:  # bottle
        a, h = w.u(0.03, 0.06), w.u(0.18, 0.34)
        p = [
            (0, 0),
            (a, 0),
            (a, 0.01),
            (a, h * 0.55),
            (a * 0.8, h * 0.65),
            (a * 0.35, h * 0.78),
            (a * 0.33, h * 0.97),
            (a * 0.4, h * 0.97),
            (a * 0.4, h),
            (0, h),
        ]
    elif kind == 1:  # vase or jar
        h, a = w.u(0.12, 0.45), w.u(0.05, 0.14)
        t = np.linspace(0, 1, 12)
        rad = a * (0.6 + 0.4 * np.sin(t * w.u(2, 6) + w.u(0, 6))) * (1 - w.u(0, 0.4) * t)
        p = [(0, 0), *zip(rad, t * h, strict=True), (rad[-1] * 0.85, h), (rad[-1] * 0.8, h * 0.6)]
    elif kind == 2:  # cup, glass, can, tin
        a, h = w.u(0.03, 0.06), w.u(0.06, 0.15)
        b = a * w.u(0.7, 1.3)
        p = [
            (0, 0),
            (a, 0),
            (a, 0),
            (b, h),
            (b, h),
            (b * 0.93, h),
            (b * 0.93, h),
            (a * 0.9, h * 0.15),
            (0, h * 0.15),
        ]
        if w.chance(0.5):
            ring = ms.torus(h * 0.28, h * 0.05, segments=16, sides=7).transform(
                ms.rotation(0, 0, np.pi / 2)
            )
            w.add(
                ms.TriangleMesh(ring.vertices * scale, ring.faces, ring.uv).move(
                    scale * (a + b) / 2, 0, scale * h / 2
                ),
                mat,
            )
    else:  # bowl, plate
        a, h = w.u(0.07, 0.16), w.u(0.015, 0.09)
        t = np.linspace(0.3, 1, 7)
        p = [
            (0, 0.0),
            (a * 0.3, 0),
            *zip(a * t, h * t**2, strict=True),
            (a * 0.95, h),
            (a * 0.3, h * 0.2),
            (0, h * 0.2),
        ]
        if w.chance(0.5):
            with w.at(0, 0, h * 0.3 * scale):
                for _ in range(w.n(1, 6)):
                    s = w.u(0.025, 0.045) * scale
                    x, y = r.normal(0, a * 0.3 * scale, 2)
                    w.add(ms.sphere(s, segments=14).move(x, y, s), w.plain(gloss=0.6))
    w.add(ms.lathe(np.array(p) * scale, 20), mat)


@of_class("thing")
def book_stack(w: Scene) -> None:
    """Lying books or boxes, one on the other."""
    z = 0.0
    for _ in range(w.n(1, 6)):
        t, a = w.u(0.012, 0.05), w.u(0.14, 0.3)
        with w.at(0, 0, z + t / 2, yaw=w.u(-0.5, 0.5)):
            cover = (
                w.paint("text", "plain", "collage", scale=(2, 6))
                if w.chance(0.6)
                else w.photo(scale=(3, 6))
            )
            w.add(ms.box(a * w.u(0.6, 0.8), a, t), cover)
        z += t


@of_class("thing")
def carton(w: Scene, low: float = 0.06, high: float = 0.3) -> None:
    """A box: carton, tin, package."""
    s = [w.u(low, high) for _ in range(3)]
    m = (
        w.paint("plain", "text", "collage", "cloud", "wood", scale=(2, 8))
        if w.chance(0.7)
        else w.photo(scale=(2, 6))
    )
    w.add(ms.box(*s, at=(0, 0, s[2] / 2)), m)


@of_class("thing")
def gadget(w: Scene) -> None:
    """A laptop, monitor, keyboard or camera-like thing."""
    dark = w.plain(np.full(3, w.lu(0.02, 0.5), np.float32))
    screen = w.photo(fit=True, gloss=0.5, emission=w.u(0, 1.0))
    a = w.u(0.26, 0.6)
    if w.chance(0.5):
        w.add(ms.box(a, a * 0.68, 0.02, at=(0, 0, 0.01)), dark)
        tilt = ms.rotation(0, 0, -w.u(0.05, 0.5))
        with w.at(0, a * 0.34, 0.02, turn=tilt):
            w.add(ms.box(a, 0.012, a * 0.65, at=(0, 0.008, a * 0.33)), dark)
            w.add(ms.quad(a * 0.92, a * 0.58, fit=True).move(0, 0, a * 0.33), screen)
    else:
        w.add(ms.box(a, 0.04, a * 0.6, at=(0, 0.03, a * 0.42)), dark)
        w.add(ms.quad(a * 0.95, a * 0.55, fit=True).move(0, 0.005, a * 0.42), screen)
        w.add(ms.box(0.05, 0.04, a * 0.2, at=(0, 0.05, a * 0.1)), dark)
        w.add(ms.box(a * 0.4, a * 0.3, 0.015, at=(0, 0.03, 0.008)), dark)


@of_class("thing")
def lamp(w: Scene, height: float) -> None:
    """A lamp with a shade on a foot."""
    m, shade = w.metal(), w.plain(emission=w.u(0, 1.5))
    r = height * w.u(0.1, 0.22) + 0.03
    w.add(ms.cylinder(r * 0.8, 0.02), m)
    w.add(ms.cylinder(0.012, height * 0.85), m)
    w.add(ms.lathe([(r, height * 0.75), (r * w.u(0.4, 0.95), height)], 20), shade)


@of_class("thing")
def lump(w: Scene, size: float) -> None:
    """An abstract shape: superquadric, torus, cone, prism, bumpy ball, rod."""
    k, s = w.n(0, 6), size / 2
    m = w.paint() if w.chance(0.8) else w.metal()
    if k == 0:
        mesh = ms.superquadric(s, s * w.u(0.3, 1), s * w.u(0.3, 1), w.u(0.15, 2), w.u(0.15, 2))
    elif k == 1:
        mesh = ms.torus(s * w.u(0.6, 0.9), s * w.u(0.08, 0.35))
    elif k == 2:
        mesh = ms.cylinder(s * w.u(0.2, 0.9), 2 * s, top=s * w.u(0.01, 0.9)).move(0, 0, -s)
    elif k == 3:
        a = np.linspace(0, 2 * np.pi, w.n(4, 14))[:-1]
        rad = s * w.rng.uniform(0.4, 1, len(a))
        mesh = ms.prism(np.stack([rad * np.cos(a), rad * np.sin(a)], 1), s * w.lu(0.1, 1.5))
    elif k == 4:
        mesh = ms.sphere(s).displace(w.rng, s * w.u(0.1, 0.6), 1.2 / s / 3)
    elif k == 5:
        mesh = ms.box(size * w.u(0.2, 1), size * w.u(0.05, 1), size)
    else:
        p = np.cumsum(w.rng.normal(0, s * 0.35, (7, 3)), 0)
        t = np.linspace(0, 6, 25)
        p = np.stack(
            [
                np.interp(t, np.arange(7), np.convolve(p[:, i], [0.25, 0.5, 0.25], "same"))
                for i in range(3)
            ],
            1,
        )
        mesh = ms.tube(p, s * w.u(0.03, 0.2))
    w.add(mesh.transform(ms.random_rotation(w.rng)), m)


def small_thing(w: Scene) -> None:
    """An object on a table or shelf."""
    k = w.rng.random()
    if k < 0.4:
        bottle(w, w.u(0.8, 1.3))
    elif k < 0.55:
        book_stack(w)
    elif k < 0.68:
        carton(w)
    elif k < 0.78:
        fruit(w)
    elif k < 0.84:
        living.plant(w, w.u(0.15, 0.45))
    elif k < 0.9:
        lamp(w, w.u(0.25, 0.6))
    else:
        s = w.u(0.08, 0.25)
        with w.at(0, 0, s / 2):
            lump(w, s)


@of_class("furniture")
def sofa(w: Scene, length: float) -> None:
    """A sofa or armchair with cushions."""
    m, d, h = w.cloth(), w.u(0.75, 1.0), w.u(0.38, 0.48)
    a, back = w.u(0.1, 0.25), w.u(0.7, 0.95)
    w.add(ms.box(length, d, h - 0.08, at=(0, 0, h / 2)), m)
    n = max(1, round(length / 0.7))
    for k in range(n):
        x = (k + 0.5 - n / 2) * (length - 2 * a) / n
        s = (length - 2 * a) / n / 2
        w.add(ms.superquadric(s, d / 2 * 0.85, 0.09, 0.4, 0.3, segments=16).move(x, -0.05, h), m)
        w.add(
            ms.superquadric(s, 0.1, (back - h) / 2 + 0.05, 0.4, 0.3, segments=16).move(
                x, d / 2 - 0.2, (h + back) / 2
            ),
            m,
        )
    w.add(ms.box(length, 0.15, back, at=(0, d / 2 - 0.08, back / 2)), m)
    for s in (-1, 1):
        w.add(
            ms.superquadric(a / 2, d / 2, 0.32, 0.3, 0.3, segments=16).move(
                s * (length - a) / 2, 0, 0.32
            ),
            m,
        )
    for _ in range(w.n(0, 3)):
        with w.at(
            w.u(-0.4, 0.4) * length,
            0.05,
            h + 0.25,
            turn=ms.rotation(w.u(-0.4, 0.4), 0, w.u(-0.5, 0)),
        ):
            w.add(ms.superquadric(0.22, 0.07, 0.22, 0.6, 0.5, segments=16), w.cloth())


@of_class("furniture")
def bed(w: Scene) -> None:
    """A bed with pillows and a rumpled blanket; the head at +y."""
    wd, ln, h = w.u(0.9, 1.9), w.u(1.9, 2.1), w.u(0.35, 0.6)
    w.add(ms.box(wd, ln, h * 0.5, at=(0, 0, h * 0.35)), w.wood())
    w.add(
        ms.superquadric(wd / 2, ln / 2, h * 0.25, 0.2, 0.15, segments=24).move(0, 0, h * 0.75),
        w.cloth(),
    )
    w.add(
        ms.box(wd + 0.06, 0.06, w.u(0.7, 1.2), at=(0, ln / 2, 0.45)),
        w.wood() if w.chance(0.5) else w.cloth(),
    )
    x, y = (
        np.linspace(-wd / 2 - 0.05, wd / 2 + 0.05, 24),
        np.linspace(-ln / 2 - 0.05, ln * w.u(0, 0.3), 24),
    )
    g = np.minimum(np.abs(x) - wd / 2, 0)[None] * 0
    z = (
        h
        + 0.02
        + g
        + 0.03 * np.sin(np.outer(y, np.ones(24)) * w.u(2, 9) + x * w.u(2, 9) + w.u(0, 6))
    )
    w.add(ms.sheet(x, y, z), w.cloth())
    for s in (-1, 1) if wd > 1.2 else (0,):
        w.add(
            ms.superquadric(0.33, 0.22, 0.1, 0.6, 0.5, segments=16).move(
                s * wd * 0.25, ln / 2 - 0.28, h + 0.09
            ),
            w.cloth(),
        )


@of_class("furniture")
def cupboard(w: Scene, width: float, height: float, depth: float) -> None:
    """A cupboard or chest of drawers, its back at y = depth, with doors and handles."""
    mat = w.wood() if w.chance(0.6) else w.plain()
    front, knob = (mat if w.chance(0.6) else w.paint()), w.metal()
    w.add(ms.box(width, depth, height, at=(0, depth / 2, height / 2)), mat)
    cols, rows = max(1, round(width / w.u(0.4, 0.7))), w.n(1, 4) if height < 1.3 else w.n(1, 2)
    dx, dz = width / cols, height / rows
    c = [
        ((i + 0.5) * dx - width / 2, -0.008, (j + 0.5) * dz)
        for i in range(cols)
        for j in range(rows)
    ]
    w.add(ms.boxes(c, [(dx - 0.02, 0.02, dz - 0.02)] * len(c)), front)
    w.add(ms.boxes([(x + 0.3 * dx, -0.03, z) for x, _, z in c], [(0.02, 0.03, 0.1)] * len(c)), knob)


@of_class("thing")
def fruit(w: Scene) -> None:
    """A fruit, ball or lump."""
    s = w.u(0.03, 0.09)
    m = ms.superquadric(s * w.u(0.8, 1.3), s, s * w.u(0.7, 1.2), 1, 1, segments=18)
    m = m.displace(w.rng, s * w.u(0, 0.25), 2.5 / s / 6)
    w.add(
        m.move(0, 0, s * 0.95),
        w.paint("cloud", "plain", "speckle", "stains", scale=(3, 12), gloss=0.6),
    )
