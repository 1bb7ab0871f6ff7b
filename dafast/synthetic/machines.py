"""Two-wheelers and the clutter of a garage."""

from __future__ import annotations

import numpy as np

from dafast.synthetic import meshes as ms
from dafast.synthetic import things as th
from dafast.synthetic.scene import Scene, of_class


def wheel(w: Scene, radius: float, tyre: float, mat: int, rim: int, *, spokes: int = 10) -> None:
    """A wheel around the origin in the xz plane (its axle along y)."""
    t = ms.rotation(0, 0, np.pi / 2)
    w.add(ms.torus(radius - tyre, tyre, segments=32).transform(t), mat)
    w.add(ms.torus(radius - 2 * tyre, tyre * 0.35, segments=32, sides=6).transform(t), rim)
    a = np.arange(spokes) * 2 * np.pi / spokes
    q = radius - 2 * tyre
    th.bars(
        w, [((0, 0, 0), (q * np.cos(k), 0, q * np.sin(k))) for k in a], max(0.003, tyre * 0.12), rim
    )
    w.add(ms.cylinder(radius * 0.14, tyre * 1.6).move(0, 0, -tyre * 0.8).transform(t), rim)


@of_class("vehicle")
def bike(w: Scene) -> None:
    """A bicycle or motorcycle-like machine along x: wheels, frame, tank, engine, bars."""
    rubber = w.plain(np.full(3, w.lu(0.01, 0.08), np.float32))
    chrome, paint, dark = w.metal(), w.plain(gloss=1.0), w.metal()
    heavy = w.chance(0.65)
    r, base = w.u(0.28, 0.36), w.u(1.0, 1.5)
    tyre = w.u(0.05, 0.09) if heavy else 0.02
    for s in (-1, 1):
        with w.at(s * base / 2, 0, r, yaw=0.0 if s < 0 else w.u(-0.35, 0.35)):
            wheel(w, r, tyre, rubber, chrome, spokes=w.n(5, 9) if heavy else 24)
    head, seat, mid = (base * 0.33, 0, r * 2.6), (-base * 0.25, 0, r * 2.3), (0, 0, r * 0.9)
    k = 0.025 if heavy else 0.016
    th.bars(
        w,
        [
            (head, seat),
            (head, mid),
            (seat, mid),
            (mid, (-base / 2, 0, r)),
            (seat, (-base / 2, 0, r)),
        ],
        k,
        paint,
    )
    for y in (-0.09, 0.09) if heavy else (-0.04, 0.04):
        th.bars(w, [((base / 2, y, r), (head[0], y, head[2] + 0.1))], k, chrome)
    z = head[2] + w.u(0.1, 0.25)
    w.add(
        ms.tube(
            [
                (head[0] - 0.15, -0.36, z),
                (head[0], -0.2, z + 0.03),
                (head[0], 0.2, z + 0.03),
                (head[0] - 0.15, 0.36, z),
            ],
            0.014,
        ),
        chrome,
    )
    w.add(
        ms.superquadric(0.3 if heavy else 0.13, 0.12, 0.05, 0.5, 0.6, segments=16).move(
            seat[0] - 0.05, 0, seat[2] + 0.06
        ),
        dark,
    )
    if not heavy:
        return
    w.add(
        ms.superquadric(0.28, 0.14, 0.13, 0.8, 0.8).displace(w.rng, 0.03, 2).move(0.12, 0, r * 2.5),
        paint,
    )
    w.add(ms.superquadric(0.2, 0.16, 0.17, 0.4, 0.4).move(0.02, 0, r * 1.3), chrome)
    c = [(w.u(-0.2, 0.25), w.u(-0.16, 0.16), w.u(0.7, 1.8) * r) for _ in range(14)]
    w.add(
        ms.boxes(c, w.rng.uniform(0.03, 0.16, (14, 3))),
        np.repeat(w.rng.choice([chrome, dark], 14), 12),
    )
    for z in np.linspace(r * 1.2, r * 1.8, 6):
        w.add(ms.box(0.18, 0.26, 0.012, at=(0.05, 0, z)), chrome)
    pipe = [
        (0.2, 0.13, r * 1.3),
        (0.25, 0.17, r * 0.8),
        (0, 0.18, r * 0.6),
        (-base * 0.55, 0.2, r * 0.8),
    ]
    w.add(ms.tube(pipe, [0.02, 0.025, 0.03, 0.045]), chrome)
    with w.at(base * 0.43, 0, r * 2.5, turn=ms.rotation(0, np.pi / 2)):
        w.add(ms.lathe([(0, 0), (0.09, 0), (0.09, 0), (0.07, -0.12), (0, -0.16)]), chrome)
    for s in (-1, 1):
        a = np.linspace(0.3, 2.6, 12)
        for y in (-0.05, 0.05):
            w.add(
                ms.tube(
                    np.stack(
                        [
                            s * base / 2 + (r + 0.05) * np.cos(a),
                            0 * a + y,
                            r + (r + 0.05) * np.sin(a),
                        ],
                        1,
                    ),
                    0.045,
                ),
                paint,
            )


@of_class("thing")
def clutter(w: Scene) -> None:
    """An object of a garage: tyres, pipes, ladder, barrel, cartons, tools."""
    k = w.n(0, 7)
    if k == 0:
        r, n = w.u(0.25, 0.36), w.n(1, 4)
        w.add(
            ms.merge(
                [
                    ms.torus(r, r * 0.3).move(w.u(-0.03, 0.03), 0, r * 0.3 + i * r * 0.58)
                    for i in range(n)
                ]
            ),
            w.plain(np.full(3, w.lu(0.01, 0.1), np.float32)),
        )
    elif k == 1:
        m = w.metal() if w.chance(0.5) else w.plain()
        n = w.n(1, 7)
        th.bars(
            w,
            [
                ((w.u(-0.3, 0.3), w.u(-0.2, 0.2), 0), (w.u(-0.5, 0.5), w.u(0, 0.5), w.u(0.8, 2.2)))
                for _ in range(n)
            ],
            w.lu(0.008, 0.05),
            m,
        )
    elif k == 2:
        hgt, m = w.u(1.2, 2.4), w.metal() if w.chance(0.5) else w.wood()
        y = w.u(0.1, 0.5)
        th.bars(w, [((s * 0.2, 0, 0), (s * 0.18, y, hgt)) for s in (-1, 1)], 0.022, m)
        th.bars(
            w,
            [((-0.2, y * t, hgt * t), (0.2, y * t, hgt * t)) for t in np.arange(0.1, 1, 0.13)],
            0.014,
            m,
        )
    elif k == 3:
        r, hgt = w.u(0.15, 0.32), w.u(0.3, 0.95)
        w.add(
            ms.lathe([(0, 0), (r, 0), (r, 0), (r * 1.03, hgt * 0.5), (r, hgt), (r, hgt), (0, hgt)]),
            w.paint("plain", "stains", "scratches", "stripes", gloss=0.6),
        )
    elif k == 4:
        z = 0.0
        for _ in range(w.n(1, 4)):
            s = w.u(0.2, 0.5)
            with w.at(0, 0, z, yaw=w.u(-0.3, 0.3)):
                th.carton(w, s * 0.7, s)
            z += s * 0.85
    elif k == 5:
        th.cupboard(w, w.u(0.5, 1.3), w.u(0.6, 1.5), w.u(0.4, 0.6))
    elif k == 6:
        th.table(w, w.u(0.8, 1.6), w.u(0.5, 0.7), w.u(0.7, 0.95))
    else:
        with w.at(0, 0, w.u(0.1, 0.5)):
            th.lump(w, w.u(0.2, 0.8))
