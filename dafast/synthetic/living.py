"""Plants and people. Each function builds one at the origin, standing on z = 0."""

from __future__ import annotations

import numpy as np

from dafast.synthetic import meshes as ms
from dafast.synthetic.scene import Scene, of_class


@of_class("plant")
def plant(w: Scene, height: float, *, pot: bool = True, count: int | None = None) -> None:
    """A potted plant: rosette, bush or palm of many leaves."""
    r = w.rng
    base = 0.0
    if pot:
        base = height * w.u(0.2, 0.4)
        a = base * w.u(0.4, 0.7)
        w.add(
            ms.lathe(
                [
                    (0, 0),
                    (a * 0.75, 0),
                    (a * 0.75, 0),
                    (a, base),
                    (a, base),
                    (a * 0.9, base),
                    (0, base * 0.9),
                ]
            ),
            w.paint("plain", "stripes", "cloud", "stains", scale=(2, 8)),
        )
    n = count or w.n(20, 120)
    kind = w.n(0, 2)
    up = height - base
    az = r.uniform(0, 2 * np.pi, n)
    leaf = w.foliage()
    if kind == 0:  # rosette, agave, grass
        el = r.uniform(0.15, 1.5, n)
        d = np.stack([np.cos(az) * np.cos(el), np.sin(az) * np.cos(el), np.sin(el)], 1)
        b = d * 0.02 + [0, 0, base * 0.95]
        ln = up * r.uniform(0.6, 1.15, n)
        m = ms.leaves(b, d, ln, ln * w.u(0.03, 0.13), w.u(0, 0.8), shape="blade", rng=r)
    else:
        stems = w.n(1, 6) if kind == 1 else 1
        tips = np.stack(
            [
                r.normal(0, 0.25 * up, stems),
                r.normal(0, 0.25 * up, stems),
                up * r.uniform(0.7, 1, stems),
            ],
            1,
        )
        w.add(
            ms.merge(
                [
                    ms.tube(
                        [
                            (0, 0, base * 0.9),
                            (*(t[:2] * 0.3), base + t[2] * 0.5),
                            (t[0], t[1], base + t[2]),
                        ],
                        [up * 0.025, up * 0.02, up * 0.008],
                        sides=6,
                    )
                    for t in tips
                ]
            ),
            w.wood(),
        )
        which, t = r.integers(0, stems, n), r.uniform(0.25, 1, n)
        b = tips[which] * t[:, None] ** [1.5, 1.5, 1.0] + [0, 0, base]
        el = r.uniform(-0.5, 1.2, n)
        d = np.stack([np.cos(az) * np.cos(el), np.sin(az) * np.cos(el), np.sin(el)], 1)
        b = b + d * up * 0.1 * (kind == 1)
        ln = up * w.lu(0.07, 0.35) * r.uniform(0.6, 1.4, n)
        m = ms.leaves(
            b,
            d,
            ln,
            ln * w.u(0.12, 0.4),
            w.u(0, 0.6),
            shape=str(r.choice(["leaf", "round"])),
            rng=r,
        )
    mats = np.array([leaf, w.foliage()]) if w.chance(0.4) else np.array([leaf])
    w.add(m, np.repeat(r.choice(mats, n), 6))


@of_class("person")
def person(w: Scene, height: float = 1.75, *, seated: bool = False) -> None:
    """A clothed figure of limbs, facing -y."""
    s = height / 1.75
    skin, top, leg, shoe = (
        w.skin(),
        w.cloth(),
        w.cloth(),
        w.plain(np.full(3, w.lu(0.02, 0.3), np.float32)),
    )
    hair = w.plain(np.array([1, 0.8, 0.6], np.float32) * w.lu(0.01, 0.4))
    fat, hip = w.u(0.85, 1.35), 0.5 if seated else 0.92
    with w.at(0, 0, 0, scale=s):
        for side in (-1, 1):
            x, f = side * 0.1, w.u(-0.25, 0.25)
            if seated:
                knee, foot = (x * 1.5, -0.45, 0.5), (x * 1.5, -0.45 + f * 0.5, 0.08)
            else:
                knee, foot = (x, -f * 0.6 - 0.03, 0.5), (x * 1.1, -f, 0.08)
            w.add(ms.capsule((x, 0, hip), knee, 0.085 * fat, 0.06 * fat), leg)
            w.add(ms.capsule(knee, foot, 0.06 * fat, 0.045), leg)
            w.add(
                ms.superquadric(0.045, 0.13, 0.045, 0.7, 0.7, segments=12).move(
                    foot[0], foot[1] - 0.06, 0.045
                ),
                shoe,
            )
            sh = (side * 0.19 * fat, 0, hip + 0.5)
            a = w.u(-0.6, 0.9)
            lift = w.u(0.3, 1.5) if w.chance(0.15) else 0.0
            el = (
                side * (0.25 + 0.1 * lift),
                -0.28 * np.sin(a),
                hip + 0.5 - 0.28 * np.cos(a) + 0.3 * lift,
            )
            b = a + w.u(0, 1.2)
            hand = (
                el[0] * w.u(0.6, 1),
                el[1] - 0.26 * np.sin(b),
                el[2] - 0.26 * np.cos(b) + 0.3 * lift,
            )
            w.add(ms.capsule(sh, el, 0.055 * fat, 0.045), top)
            w.add(ms.capsule(el, hand, 0.043, 0.035), top if w.chance(0.6) else skin)
            w.add(ms.sphere(0.05, segments=10).move(*hand), skin)
        w.add(
            ms.superquadric(0.19 * fat, 0.12 * fat, 0.33, 0.7, 0.8, segments=20).move(
                0, 0, hip + 0.27
            ),
            top,
        )
        w.add(
            ms.superquadric(0.16 * fat, 0.12 * fat, 0.14, 0.8, 0.8, segments=14).move(
                0, 0, hip + 0.02
            ),
            leg,
        )
        head(w, skin, hair, hip + 0.72)


def head(w: Scene, skin: int, hair: int, z: float) -> None:
    """A head with neck, nose, eyes and hair, its centre at height z, facing -y."""
    w.add(ms.capsule((0, 0.01, z - 0.22), (0, 0, z - 0.1), 0.055), skin)
    w.add(ms.superquadric(0.078, 0.095, 0.115, 0.95, 0.95, segments=20).move(0, 0, z), skin)
    w.add(ms.superquadric(0.014, 0.025, 0.025, 1, 1, segments=10).move(0, -0.095, z - 0.01), skin)
    eye = w.plain(np.full(3, 0.03, np.float32))
    for s in (-1, 1):
        w.add(ms.sphere(0.013, segments=10).move(s * 0.033, -0.083, z + 0.02), eye)
        w.add(ms.superquadric(0.01, 0.02, 0.028, 1, 1, segments=8).move(s * 0.08, 0.005, z), skin)
    if w.chance(0.9):
        h = ms.superquadric(0.088, 0.1, 0.1, 0.95, 0.95, segments=16).displace(w.rng, 0.012, 5)
        w.add(h.move(0, 0.025, z + 0.045), hair)
        if w.chance(0.35):
            w.add(
                ms.superquadric(0.09, 0.05, 0.17, 0.8, 0.8, segments=16)
                .displace(w.rng, 0.02, 4)
                .move(0, 0.07, z - 0.08),
                hair,
            )
