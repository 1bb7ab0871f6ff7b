"""Trees, cars, houses and street furniture, standing on z = 0."""

from __future__ import annotations

import numpy as np

from dafast.synthetic import meshes as ms
from dafast.synthetic import things as th
from dafast.synthetic.scene import Scene, of_class


@of_class("plant")
def tree(w: Scene, height: float, *, detail: int = 260) -> None:
    """A tree: trunk, branches and leaves, or blobs, or a conifer, or bare."""
    r, bark = (
        w.rng,
        w.paint(
            "stains",
            "scratches",
            "cloud",
            scale=(0.5, 2),
            colours=[np.array([0.2, 0.14, 0.09], np.float32) * w.lu(0.3, 3)],
        ),
    )
    k = r.random()
    a = height * w.lu(0.007, 0.028)
    bend = r.normal(0, 0.04 * height, 2)
    w.add(
        ms.tube(
            [(0, 0, -0.3), (*(bend * 0.5), height * 0.4), (*bend, height * 0.85)],
            [a * 1.2, a, a * 0.3],
        ),
        bark,
    )
    leaf = w.foliage()
    if k < 0.2:
        n = w.n(3, 7)
        w.add(
            ms.merge(
                [
                    ms.lathe([(height * 0.25 * (1 - i / n), 0), (0.02, height * 0.35)], 10)
                    .displace(r, 0.04 * height, 4 / height)
                    .move(bend[0], bend[1], height * (0.2 + 0.65 * i / n))
                    for i in range(n)
                ]
            ),
            leaf,
        )
        return
    n = w.n(5, 12)
    c = np.stack(
        [*(r.normal(0, 0.17 * height, (2, n)) + bend[:, None]), r.uniform(0.42, 0.95, n) * height],
        1,
    )
    w.add(
        ms.merge(
            [
                ms.tube(
                    [(bend[0] * 0.4, bend[1] * 0.4, height * w.u(0.25, 0.5)), tuple(p)],
                    [a * 0.5, a * 0.12],
                    sides=6,
                )
                for p in c
            ]
        ),
        bark,
    )
    if k < 0.3:
        return
    if k < 0.65:
        w.add(
            ms.merge(
                [
                    ms.sphere(height * w.u(0.1, 0.2), segments=12)
                    .displace(r, 0.06 * height, 5 / height)
                    .move(*p)
                    for p in c
                ]
            ),
            leaf,
        )
    spread = height * w.u(0.07, 0.14)
    b = c[r.integers(0, n, detail)] + r.normal(0, spread, (detail, 3))
    s = height * w.u(0.03, 0.07)
    w.add(
        ms.leaves(
            b,
            r.normal(size=(detail, 3)),
            s * r.uniform(0.6, 1.4, detail),
            s * w.u(0.2, 0.5),
            0.3,
            rng=r,
        ),
        leaf,
    )


@of_class("vehicle")
def car(w: Scene) -> None:
    """A car, van or truck along x."""
    ln, wd, h = w.u(3.4, 5), w.u(1.6, 1.9), w.u(1.35, 2.1)
    body, glass = (
        w.plain(gloss=1.0, mirror=w.u(0, 0.3)),
        w.plain(np.full(3, 0.03, np.float32), gloss=1.0, mirror=0.4),
    )
    z0, hood = 0.25, w.u(0.5, 0.62) * h
    a, b, c, d = -ln / 2, -ln * w.u(0.15, 0.3), ln * w.u(0.2, 0.35), ln / 2
    low = [(a, z0), (d, z0), (d, hood * 0.95), (c + 0.4, hood), (a, hood * w.u(0.95, 1.1))]
    top = [
        (a + w.u(0, 0.5), hood * 0.95),
        (c + 0.3, hood * 0.95),
        (b + w.u(0.6, 1.3), h),
        (b - w.u(0, 0.5), h),
    ]
    turn = ms.rotation(0, 0, np.pi / 2)
    w.add(ms.prism(low, wd).transform(turn, (0, wd / 2, 0)), body)
    w.add(ms.prism(top, wd * 0.84).transform(turn, (0, wd * 0.42, 0)), glass)
    w.add(
        ms.box(top[2][0] - top[3][0], wd * 0.85, 0.05, at=((top[2][0] + top[3][0]) / 2, 0, h)), body
    )
    rubber, rim = w.plain(np.full(3, 0.02, np.float32)), w.metal()
    for x in (a + ln * 0.19, d - ln * 0.19):
        for s in (-1, 1):
            m = (
                ms.cylinder(0.32, 0.2, segments=20)
                .move(0, 0, -0.1)
                .transform(turn, (x, s * (wd / 2 - 0.08), 0.32))
            )
            w.add(m, rubber)
            w.add(
                ms.cylinder(0.2, 0.22, segments=14)
                .move(0, 0, -0.11)
                .transform(turn, (x, s * (wd / 2 - 0.08), 0.32)),
                rim,
            )
    lamp = w.plain(np.array([0.9, 0.85, 0.7], np.float32), gloss=1, emission=w.u(0, 1))
    w.add(
        ms.boxes(
            [(d, s * wd * 0.38, hood * 0.75) for s in (-1, 1)]
            + [(a, s * wd * 0.4, hood * 0.8) for s in (-1, 1)],
            [(0.06, 0.3, 0.14)] * 4,
        ),
        lamp,
    )


@of_class("building")
def facade(w: Scene, length: float, height: float) -> None:
    """A house front along x in the plane y = 0, facing -y, 8 m deep."""
    wallm = w.paint("bricks", "plain", "stains", "cloud", "plain", "wood", scale=(0.15, 0.7))
    trim, glass = (
        w.plain(),
        w.plain(np.full(3, w.lu(0.01, 0.2), np.float32), gloss=1, mirror=w.u(0.1, 0.6)),
    )
    w.add(ms.box(length, 8, height, at=(0, 4, height / 2)), wallm)
    floors, cols = max(1, round(height / w.u(2.8, 3.8))), max(1, round(length / w.u(1.6, 3.2)))
    dx, dz = length / cols, height / floors
    a, b = dx * w.u(0.35, 0.7), dz * w.u(0.4, 0.7)
    c = [
        ((i + 0.5) * dx - length / 2, (j + 0.52) * dz)
        for i in range(cols)
        for j in range(floors)
        if j or w.chance(0.6)
    ]
    if c:
        w.add(ms.boxes([(x, -0.01, z) for x, z in c], [(a, 0.06, b)] * len(c)), glass)
        w.add(ms.boxes([(x, -0.03, z) for x, z in c], [(0.06, 0.08, b)] * len(c)), trim)
        w.add(
            ms.boxes(
                [(x, -0.08, z + s * b / 2) for x, z in c for s in (-1, 1)],
                [(a * 1.15, 0.2, 0.12)] * 2 * len(c),
            ),
            trim,
        )
    with w.at(w.u(-0.35, 0.35) * length, 0, 0):
        w.add(ms.box(1.1, 0.16, 2.2, at=(0, 0, 1.1)), w.wood() if w.chance(0.5) else w.plain())
        w.add(ms.box(1.5, 0.5, 0.16, at=(0, -0.1, 0.08)), trim)
    if w.chance(0.4):
        w.add(
            ms.quad(length * 0.7, 0.6, fit=True).move(0, -0.15, min(3.1, height * 0.9)),
            w.paint("text", "collage", scale=(1, 1)),
        )
        w.add(ms.box(length * 0.8, 1.2, 0.06, at=(0, -0.6, 2.75)), w.cloth())
    if floors > 1 and w.chance(0.35):
        for x, z in c[:: w.n(1, 3)]:
            if z > 3:
                w.add(ms.box(dx * 0.8, 0.9, 0.1, at=(x, -0.45, z - b / 2 - 0.2)), trim)
                th.bars(
                    w,
                    [
                        (
                            (x + t * dx * 0.4, -0.88, z - b / 2 - 0.2),
                            (x + t * dx * 0.4, -0.88, z - b / 2 + 0.75),
                        )
                        for t in np.linspace(-1, 1, 7)
                    ],
                    0.02,
                    trim,
                )
                w.add(ms.box(dx * 0.8, 0.04, 0.05, at=(x, -0.88, z - b / 2 + 0.75)), trim)
    w.add(ms.box(length, 0.5, 0.3, at=(0, 0, height)), trim)
    if w.chance(0.5):
        roof = [(-0.5, 0), (8.5, 0), (4, w.u(1.5, 4))]
        t = ms.rotation(np.pi / 2) @ ms.rotation(0, 0, np.pi / 2)
        w.add(
            ms.prism(roof, length).transform(t, (-length / 2, 0, height)),
            w.paint("bricks", "stripes", "plain", scale=(0.3, 1)),
        )


@of_class("thing")
def pole(w: Scene, height: float) -> None:
    """A street lamp, sign post or traffic light."""
    m = w.metal() if w.chance(0.6) else w.plain()
    w.add(ms.cylinder(w.u(0.03, 0.1), height, segments=10), m)
    k = w.n(0, 2)
    if k == 0:
        w.add(ms.tube([(0, 0, height), (0.5, 0, height + 0.3), (1.3, 0, height + 0.3)], 0.04), m)
        w.add(ms.box(0.6, 0.2, 0.1, at=(1.4, 0, height + 0.28)), m)
    elif k == 1:
        w.add(
            ms.box(w.u(0.4, 0.9), 0.03, w.u(0.4, 0.9), at=(0, -0.06, height - 0.4)),
            w.paint("text", "collage", "stripes"),
        )
    else:
        w.add(ms.box(0.28, 0.25, 0.8, at=(0, -0.1, height - 0.5)), m)


@of_class("thing")
def fence(w: Scene, length: float) -> None:
    """A fence along x."""
    h, gap = w.u(0.7, 1.7), w.lu(0.1, 1.5)
    x = np.arange(-length / 2, length / 2, gap)
    m = w.wood() if w.chance(0.6) else w.metal()
    s = min(0.1, gap * 0.6)
    w.add(ms.boxes([(k, 0, h / 2) for k in x], [(s, 0.05, h)] * len(x)), m)
    w.add(ms.boxes([(0, 0, h * t) for t in (0.3, 0.85)], [(length, 0.04, 0.07)] * 2), m)
