"""Things for views from very near: blossoms, mushrooms, hollow vessels, bundles of sticks.

Each is built at the origin and stands on z = 0, unless its docstring says otherwise.
"""

from __future__ import annotations

import numpy as np

from dafast.synthetic import forms, living
from dafast.synthetic import meshes as ms
from dafast.synthetic import things as th
from dafast.synthetic.meshes import F32
from dafast.synthetic.scene import Scene, of_class


def vivid(w: Scene) -> F32:
    """The colour of a petal or a fruit: white, yellow, red, pink, violet or blue."""
    tones = [(0.85, 0.85, 0.8), (0.85, 0.6, 0.03), (0.7, 0.05, 0.04), (0.8, 0.3, 0.45),
             (0.4, 0.12, 0.6), (0.85, 0.3, 0.03), (0.2, 0.25, 0.7)]  # fmt: skip
    return (np.array(tones[w.n(0, 6)]) * w.rng.uniform(0.7, 1.1, 3)).clip(0.01, 0.95).astype("f4")


def _petal(w: Scene, colour: F32, size: float) -> int:
    return w.paint(
        "grass", "gradient", "cloud", "scratches",
        scale=(0.5 / size, 2 / size),
        colours=[colour, colour * w.u(0.5, 0.95), colour * w.u(0.7, 1.1)],
        gloss=0.15,
    )  # fmt: skip


@of_class("plant")
def stem(w: Scene, height: float, thick: float) -> None:
    """A stem from z = 0 down by ``height``, with a few leaves."""
    green = w.foliage()
    bend = w.rng.normal(0, 0.12, 2) * height
    p = forms.smooth([(0, 0, 0.002), (*(bend * 0.3), -height * 0.5), (*bend, -height)], 10)
    w.add(ms.tube(p, thick, sides=8), green)
    n = w.n(0, 6)
    if n:
        k = w.rng.integers(2, 10, n)
        a = w.rng.uniform(0, 6.28, n)
        d = np.stack([np.cos(a), np.sin(a), w.rng.uniform(-0.2, 0.8, n)], 1)
        ln = height * w.rng.uniform(0.2, 0.5, n)
        w.add(forms.petals(p[k], d, ln, ln * w.u(0.1, 0.3), curl=-0.25, cup=0.3), green)


@of_class("plant")
def blossom(w: Scene, radius: float) -> None:
    """A blossom around the origin that opens towards +z, of one of several kinds."""
    kind, r = w.n(0, 4), w.rng
    main = _petal(w, vivid(w), radius)
    if kind == 0:  # a daisy: a ring or two of petals around a disc
        n, core = w.n(7, 34), radius * w.u(0.18, 0.45)
        for layer in range(w.n(1, 2)):
            a = np.arange(n) / n * 2 * np.pi + layer * np.pi / n + r.normal(0, 0.04, n)
            d = np.stack([np.cos(a), np.sin(a), np.full(n, w.u(-0.1, 0.45)) + 0.25 * layer], 1)
            ln = (radius - core * 0.7) * r.uniform(0.88, 1.05, n)
            base = d * [1, 1, 0] * core * 0.7
            wide = min(3.0 * radius / n, radius * 0.3) * w.u(0.8, 1.3)
            mesh = forms.petals(base, d, ln, wide, cup=w.u(-0.2, 0.5), curl=w.u(-0.4, 0.25),
                                tip=w.u(0.45, 0.75))  # fmt: skip
            w.add(mesh, main)
        disc = _petal(w, vivid(w) * w.lu(0.1, 1), core)
        dome = w.u(0.25, 0.7)
        w.add(ms.superquadric(core, core, core * dome, 1, 1, segments=24), disc)
        p = forms.sphere_points(w.n(120, 300))
        p = p[p[:, 2] > 0] * [core, core, core * dome]
        seeds = [ms.sphere(core * 0.07, segments=6).move(*k) for k in p[:110]]
        w.add(ms.merge(seeds), disc if w.chance(0.6) else _petal(w, vivid(w) * 0.6, core))
    elif kind in (1, 2):  # many narrow (1) or broad (2) petals in a dome: dandelion, rose, dahlia
        n = w.n(110, 240) if kind == 1 else w.n(14, 45)
        p = forms.sphere_points(2 * n)[:n]
        el = np.arcsin(p[:, 2]) if kind == 1 else np.linspace(1.35, w.u(0.05, 0.5), n)
        a = np.arctan2(p[:, 1], p[:, 0])
        d = np.stack([np.cos(a) * np.cos(el), np.sin(a) * np.cos(el), np.sin(el)], 1)
        ln = radius * (r.uniform(0.85, 1.05, n) if kind == 1 else 0.45 + 0.6 * np.cos(el) ** 1.5)
        wide = radius * (w.u(0.03, 0.06) if kind == 1 else w.u(0.2, 0.36))
        mesh = forms.petals(d * radius * 0.05, d, ln, wide, cup=0.2 if kind == 1 else w.u(0.4, 1.0),
                            curl=w.u(-0.1, 0.25) if kind == 1 else w.u(0.1, 0.5),
                            tip=0.7)  # fmt: skip
        w.add(mesh, main)
        w.add(ms.sphere(radius * 0.2, segments=14), main)
    elif kind == 3:  # a cup: tulip, crocus, poppy
        n = w.n(4, 7)
        a = np.arange(2 * n) / n * 2 * np.pi + np.repeat([0, np.pi / n], n)
        up = w.u(0.5, 1.2)
        d = np.stack(
            [np.cos(a) * np.cos(up), np.sin(a) * np.cos(up), np.full(2 * n, np.sin(up))], 1
        )
        mesh = forms.petals(d * radius * 0.06, d, radius * w.u(0.9, 1.3), radius * w.u(0.35, 0.55),
                            cup=w.u(0.4, 0.9), curl=w.u(-0.2, 0.4), tip=w.u(0.5, 0.7))  # fmt: skip
        w.add(mesh, main)
        m = _petal(w, vivid(w) * 0.5, radius)
        for turn in r.uniform(0, 6.28, w.n(5, 14)):
            tip = (0.2 * radius * np.cos(turn), 0.2 * radius * np.sin(turn), 0.55 * radius)
            w.add(ms.tube([(0, 0, 0), tip], radius * 0.012, sides=5), m)
            w.add(ms.sphere(radius * 0.04, segments=6).move(*tip), m)
    else:
        _clock(w, radius)


def _clock(w: Scene, radius: float) -> None:
    """A dandelion clock: seeds on a ball, each with a parachute of fine hairs."""
    r = w.rng
    n = w.n(110, 220)
    p = forms.sphere_points(n) + r.normal(0, 0.06, (n, 3))
    p /= np.linalg.norm(p, axis=1, keepdims=True)
    if w.chance(0.3):
        p = p[p @ [w.u(-1, 1), w.u(-1, 1), w.u(-1, 1)] > -0.6]  # some have flown
    p = p[p[:, 2] > -0.85]
    n = len(p)
    white = w.plain(np.full(3, w.u(0.55, 0.9), np.float32), gloss=0.0)
    brown = w.plain(np.array([0.25, 0.17, 0.08], np.float32))
    core = radius * 0.16
    w.add(ms.sphere(core, segments=14), brown)
    w.add(ms.leaves(p * core, p, radius * 0.25, radius * 0.016, 0.0, shape="leaf", rng=r), brown)
    start = p * radius * 0.62
    w.add(ms.leaves(p * core, p, radius * 0.5, radius * 0.006, 0.0, shape="blade", rng=r), white)
    hairs = w.n(12, 20)
    base = np.repeat(start, hairs, 0)
    d = np.repeat(p, hairs, 0) + r.normal(0, 0.55, (n * hairs, 3))
    ln = radius * r.uniform(0.3, 0.42, n * hairs)
    w.add(ms.leaves(base, d, ln, radius * w.u(0.006, 0.012), 0.0, shape="blade", rng=r), white)


@of_class("plant")
def mushroom(w: Scene, height: float) -> None:
    """A mushroom with gills, leaning a little."""
    r, a = height * w.u(0.3, 0.8), height * w.u(0.06, 0.15)
    lean = w.rng.normal(0, 0.1, 2) * height
    pale = w.plain(np.array([0.75, 0.68, 0.55], np.float32) * w.u(0.5, 1.1), gloss=0.1)
    p = forms.smooth([(0, 0, -0.02), (*(lean * 0.4), height * 0.5), (*lean, height)], 10)
    w.add(ms.tube(p, a * np.linspace(w.u(1.0, 1.7), 0.8, 10), sides=14), pale)
    tone = np.array([1, w.u(0.1, 0.8), w.u(0.05, 0.6)], np.float32) * w.lu(0.1, 0.7)
    cap = w.paint(
        "cloud", "speckle", "stains", "dots", scale=(1 / r, 3 / r), colours=[tone], gloss=0.5
    )
    dome = height * w.u(0.1, 0.5)
    t = np.linspace(0, np.pi / 2, 12)
    edge = height * w.u(-0.12, 0.05)
    profile = [(r * np.sin(k), dome * np.cos(k) + edge * np.sin(k) ** 4) for k in t]
    with w.at(*p[-1], turn=ms.rotation(w.u(0, 6), w.rng.normal(0, 0.12))):
        w.add(ms.lathe(profile, 30).displace(w.rng, r * 0.06, 0.5 / r), cap)
        w.add(ms.lathe([profile[-1], (a, edge * 0.3)], 30), pale)
        n = 40
        k = np.linspace(0, 2 * np.pi, n)
        d = np.stack([np.cos(k), np.sin(k), 0 * k], 1)
        gills = ms.boxes(
            d * r * 0.55 + [0, 0, edge * 0.6 - r * 0.03],
            [(r * 0.85, r * 0.015, r * 0.07)] * n,
            np.stack([ms.rotation(float(x)) for x in k]),
        )
        w.add(gills, pale)


def liquid(w: Scene) -> int:
    """Coffee, tea, milk, soup, juice or water."""
    tones = [(0.03, 0.012, 0.005), (0.25, 0.14, 0.07), (0.3, 0.1, 0.02), (0.8, 0.77, 0.7),
             (0.6, 0.3, 0.05), (0.35, 0.35, 0.3), (0.5, 0.08, 0.04)]  # fmt: skip
    c = np.array(tones[w.n(0, 6)], np.float32) * w.u(0.6, 1.2)
    return w.plain(c, gloss=1.0, mirror=w.u(0.0, 0.35))


def _lumps(w: Scene, radius: float) -> None:
    """Food on a disc at z = 0: balls, leaves, noodles, slices."""
    r = w.rng
    k = w.n(0, 4)
    size = radius * w.u(0.12, 0.4)
    n = int(np.clip((radius / size) ** 2 * w.u(0.8, 2.5), 3, 60))
    d, a = radius * 0.8 * np.sqrt(r.random(n)), r.uniform(0, 6.28, n)
    x, y = d * np.cos(a), d * np.sin(a)
    z = size * 0.5 * r.uniform(0.3, 1.6, n) * (1.2 - d / radius)
    mats = [w.paint("cloud", "stains", "speckle", "plain", scale=(0.3 / size, 2 / size),
                    colours=[vivid(w) * w.u(0.3, 1)], gloss=0.5) for _ in range(3)]  # fmt: skip
    if k == 3:  # noodles
        for _ in range(w.n(12, 40)):
            q = np.cumsum(r.normal(0, radius * 0.3, (6, 3)), 0) * [1, 1, 0.15]
            q[:, :2] *= min(1.0, 0.85 * radius / max(np.abs(q[:, :2]).max(), 1e-6))
            q[:, 2] = np.abs(q[:, 2]) + 0.05 * radius
            w.add(ms.tube(forms.smooth(q, 18), radius * 0.025, sides=6), mats[0])
        return
    if k == 4:  # leaves of a salad
        d3 = r.normal(0, 1, (n, 3)) * [1, 1, 0.5] + [0, 0, 0.4]
        base = np.stack([x, y, z], 1) * 0.8
        w.add(forms.petals(base, d3, size * 1.6, size * 0.7, cup=0.5, curl=-0.3), w.foliage())
        return
    for i in range(n):
        s = size * r.uniform(0.6, 1.2)
        if k == 0:
            mesh = ms.superquadric(s * 0.5, s * 0.5, s * 0.45, 1, 1, segments=12)
        elif k == 1:
            mesh = ms.cylinder(s * 0.6, s * 0.2, segments=16)
        else:
            mesh = ms.sphere(s * 0.5, segments=12).displace(r, s * 0.15, 0.6 / s)
        tilt = ms.rotation(r.uniform(0, 6), r.normal(0, 0.5))
        w.add(mesh.transform(tilt, (x[i], y[i], z[i])), mats[i % 3])


def vessel(w: Scene, kind: str | None = None) -> tuple[float, float]:
    """A hollow cup, bowl, vase, pot or plate, empty or with something in it.

    Args:
        w: the scene.
        kind: "cup", "bowl", "vase", "pot" or "plate", or "sticks", a cup with sticks in it;
            None draws one.

    Returns:
        Its radius and height in metres.
    """
    holder = kind == "sticks"
    kind = (
        "cup"
        if holder
        else kind or str(w.rng.choice(["cup", "cup", "bowl", "bowl", "vase", "pot", "plate"]))
    )
    a, h = {"cup": (w.u(0.032, 0.05), w.u(0.06, 0.12)), "bowl": (w.u(0.06, 0.13), w.u(0.05, 0.11)),
            "vase": (w.u(0.04, 0.08), w.u(0.15, 0.3)), "pot": (w.u(0.07, 0.15), w.u(0.1, 0.2)),
            "plate": (w.u(0.08, 0.15), w.u(0.012, 0.03))}[kind]  # fmt: skip
    t = np.linspace(0, 1, 12)
    if kind == "bowl":
        rad = a * np.sqrt(np.clip(0.12 + t * w.u(0.9, 1.3), 0, 1.3))
    elif kind == "vase":
        rad = a * (0.75 + 0.3 * np.sin(t * w.u(2.5, 5) + w.u(-0.5, 1.5)))
    elif kind == "plate":
        rad, t = a * np.linspace(0.55, 1, 12), np.linspace(0, 1, 12) ** w.u(1, 2.5)
    else:
        rad = a * (
            w.u(0.65, 1.05) * (1 - t) + w.u(0.9, 1.1) * t + w.u(-0.1, 0.15) * np.sin(np.pi * t)
        )
    wall = min(max(a * w.u(0.04, 0.1), 0.0018), 0.012)
    outer = list(zip(rad, t * h, strict=True))
    inner = [(max(x - wall, 0.002), z) for x, z in outer[::-1] if z >= wall * 1.2]
    floor = min(z for _, z in inner)
    lip = [(rad[-1] - wall * 0.15, h + wall * 0.3), (rad[-1] - wall * 0.85, h + wall * 0.3)]
    outside = w.paint(scale=(1.5, 8), gloss=0.7) if w.chance(0.5) else w.plain(gloss=0.8)
    inside = outside if w.chance(0.5) else w.plain(gloss=0.8)
    w.add(ms.lathe([(0, 0), (rad[0], 0), (rad[0], 0), *outer, *lip], 40), outside)
    w.add(ms.lathe([lip[-1], *inner, (inner[-1][0], floor), (0, floor)], 40), inside)
    if kind == "cup" and w.chance(0.75):
        y = np.array([0.25, 0.2, 0.5, 0.8, 0.75]) * h
        x = rad[6] + np.array([-0.04, 0.42, 0.62, 0.42, -0.04]) * h * w.u(0.6, 1)
        path = forms.smooth(np.stack([x, 0 * x, y], 1), 18)
        w.add(ms.tube(path, h * w.u(0.04, 0.075), sides=10), outside)
    if kind == "cup" and w.chance(0.4):
        plate, r = w.plain(gloss=0.8) if w.chance(0.4) else outside, a * w.u(1.6, 2.1)
        w.add(
            ms.lathe(
                [
                    (0, -0.002),
                    (r * 0.5, -0.002),
                    (r, 0.012),
                    (r, 0.014),
                    (r * 0.5, 0.001),
                    (0, 0.001),
                ],
                32,
            ),
            plate,
        )
        if w.chance(0.5):
            m = w.metal()
            with w.at(0, 0, 0.012, yaw=w.u(0, 6)):
                w.add(
                    ms.tube([(a * 1.2, -0.05, 0.004), (a * 1.3, 0.06, 0.006)], 0.0025, sides=6), m
                )
                w.add(
                    ms.superquadric(0.011, 0.017, 0.003, 1, 1, segments=12).move(
                        a * 1.2, -0.06, 0.004
                    ),
                    m,
                )
    wall_inside = np.array(inner[::-1])
    if holder or (kind == "cup" and w.chance(0.12)):
        sticks(w, wall_inside, h)
    else:
        _fill(w, kind, wall_inside, h)
    return a, h


def _fill(w: Scene, kind: str, inner: F32, h: float) -> None:
    """Puts something into a vessel whose inner wall has the radii and heights ``inner``."""

    def width(z: float) -> float:
        return float(np.interp(z, inner[:, 1], inner[:, 0]))

    k = w.rng.random()
    if kind == "plate":
        with w.at(0, 0, inner[0, 1] + 0.001):
            _lumps(w, width(0.0)) if k < 0.8 else None
        return
    if (kind == "vase" and k < 0.7) or (kind == "pot" and k < 0.2):
        for _ in range(w.n(1, 7)):
            up, r = h * w.u(1.1, 1.9), w.u(0.02, 0.05)
            lean = w.rng.normal(0, 0.25, 2) * h
            turn = ms.rotation(w.u(0, 6), w.rng.normal(0, 0.5), w.rng.normal(0, 0.5))
            with w.at(lean[0], lean[1], up, turn=turn):
                blossom(w, r)
            w.add(
                ms.tube(
                    forms.smooth([(*lean, up), (*(lean * 0.5), h), (0, 0, h * 0.2)], 8),
                    0.0025,
                    sides=6,
                ),
                w.foliage(),
                of="plant",
            )
        return
    if kind == "pot":
        z = h * w.u(0.75, 0.95)
        earth = w.paint(
            "cloud",
            "speckle",
            "cells",
            scale=(4, 12),
            colours=[np.array([0.1, 0.06, 0.035], np.float32)],
        )
        disc = ms.lathe([(width(z), z), (width(z) * 0.5, z + 0.006), (0, z + 0.008)], 24)
        w.add(disc.displace(w.rng, 0.006, 9), earth, of="ground")
        with w.at(0, 0, z):
            if k < 0.75:
                living.plant(w, w.u(0.1, 0.4), pot=False, count=w.n(12, 60))
        return
    if k < 0.8:
        z = h * w.u(0.3, 0.93)
        r = width(z)
        w.add(ms.lathe([(r, z + 0.0008), (r * 0.97, z), (0, z)], 32), liquid(w))
        if kind == "bowl" and w.chance(0.5):
            with w.at(0, 0, z - 0.003):
                _lumps(w, r * 0.9)
        elif w.chance(0.25):  # foam
            foam = ms.lathe([(r * w.u(0.5, 0.97), z + 0.0005), (0, z + 0.004)], 32)
            w.add(
                foam.displace(w.rng, 0.001, 20),
                w.paint(
                    "cloud",
                    "stains",
                    "cells",
                    scale=(6, 20),
                    colours=[np.array([0.8, 0.65, 0.45], np.float32)],
                ),
            )
    elif kind == "bowl":
        z = h * w.u(0.2, 0.7)
        with w.at(0, 0, z):
            _lumps(w, width(z))
            for _ in range(w.n(0, 4)):
                with w.at(w.rng.normal(0, 0.3) * width(z), w.rng.normal(0, 0.3) * width(z)):
                    th.fruit(w)


@of_class("thing")
def sticks(w: Scene, inner: F32, rim: float) -> None:
    """Pencils, brushes, straws or twigs that stand in a vessel.

    Args:
        w: the scene.
        inner: radii and heights of the vessel's inner wall, (K, 2), metres.
        rim: height of the rim, metres.
    """
    kind = w.n(0, 3)
    n = w.n(4, 22)
    palette = [w.plain(gloss=0.5) if w.chance(0.6) else w.wood() for _ in range(w.n(1, 5))]
    tips = [w.plain(gloss=0.2) for _ in range(3)]
    metal = w.metal()
    low, z, high = inner[0, 0] * 0.8, inner[0, 1] + 0.003, inner[-1, 0] * 0.9
    for i in range(n):
        a = w.u(0, 6.28)
        b = a + np.pi + w.rng.normal(0, 0.7)
        k, m = low * w.u(0, 1), high * w.u(0.3, 1)
        p = np.array([k * np.cos(b), k * np.sin(b), z])
        q = np.array([m * np.cos(a), m * np.sin(a), rim])
        end = p + (q - p) * w.u(1.15, 2.3)
        stick(w, p, end, kind, palette[i % len(palette)], tips[i % 3], metal)


def stick(w: Scene, p: F32, end: F32, kind: int, body: int, tip: int, metal: int) -> None:
    """One pencil (0), brush (1), straw (2) or twig (3) from p to end, metres."""
    d = end - p
    size = float(np.linalg.norm(d))
    d = d / size
    r = w.u(0.0028, 0.0045)
    if kind == 0:
        w.add(ms.tube([p, end], r, sides=6), body)
        w.add(ms.tube([end, end + d * 0.016], [r, 0.001], sides=6), tip)
        w.add(ms.tube([end + d * 0.011, end + d * 0.017], [0.0014, 0.0003], sides=6), metal)
    elif kind == 1:
        fat = r * w.u(0.7, 3.0)
        w.add(ms.tube([p, p + d * size * 0.5, end], [r * 0.6, r * 1.3, fat * 0.75], sides=8), body)
        w.add(ms.tube([end, end + d * 0.025], [fat * 0.8, fat], sides=12), metal)
        t = np.array([0.02, 0.03, 0.04, 0.05, 0.06])[:, None] * w.u(0.8, 1.3)
        w.add(ms.tube(end + d * t, fat * np.array([0.9, 1.25, 1.2, 0.75, 0.05]), sides=14), tip)
        base = np.repeat((end + d * 0.022)[None], 40, 0) + w.rng.normal(0, fat * 0.4, (40, 3))
        w.add(
            ms.leaves(
                base,
                d + w.rng.normal(0, 0.1, (40, 3)),
                0.045,
                0.0006,
                0.0,
                shape="blade",
                rng=w.rng,
            ),
            tip,
        )
    elif kind == 2:
        w.add(ms.tube([p, end], r, sides=10), body)
    else:
        mid = (p + end) / 2 + w.rng.normal(0, 0.006, 3)
        w.add(ms.tube(forms.smooth([p, mid, end], 8), np.linspace(r, r * 0.3, 8), sides=6), body)


@of_class("thing")
def bundle(w: Scene) -> None:
    """A bundle of equal sticks, brushes or pencils along z, from 0 to about 0.2 m, perhaps tied."""
    n, kind = w.n(12, 60), w.n(0, 3)
    length = w.u(0.12, 0.24)
    k = np.arange(n)
    r = 0.0046 * np.sqrt(k + 0.3)
    x, y = r * np.cos(k * 2.4), r * np.sin(k * 2.4)
    palette = [w.plain(gloss=0.5) if w.chance(0.5) else w.wood() for _ in range(w.n(1, 8))]
    tips, metal = [w.plain(gloss=0.2) for _ in range(3)], w.metal()
    spread = w.u(0.0, 0.6) * length
    top = length + w.rng.normal(0, w.u(0.0, 0.02), n)
    for i in range(n):
        p = np.array([x[i], y[i], w.rng.normal(0, 0.003)])
        q = np.array([x[i], y[i], top[i]]) + np.array([x[i], y[i], 0]) / r.max() * spread
        stick(w, p, q, kind, palette[i % len(palette)], tips[i % 3], metal)
    if w.chance(0.5):
        w.add(ms.torus(float(r.max()) + 0.005, 0.003).move(0, 0, length * 0.3), w.cloth())
