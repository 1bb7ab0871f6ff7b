"""Builders of outdoor scenes and of people."""

from __future__ import annotations

import numpy as np

from dafast.synthetic import living, machines
from dafast.synthetic import meshes as ms
from dafast.synthetic import outdoors as out
from dafast.synthetic import things as th
from dafast.synthetic.scene import Environment, Light, Scene
from dafast.synthetic.scenes_indoor import backdrop, indoor_light, warm


def sky(w: Scene) -> None:
    """Sun and sky, clear to overcast, sometimes dusk or fog."""
    blue = np.array([w.u(0.1, 0.5), w.u(0.3, 0.6), w.u(0.5, 1.0)], np.float32)
    haze = np.array([w.u(0.6, 1.1), w.u(0.6, 1.0), w.u(0.6, 1.1)], np.float32)
    g = np.full(3, w.u(0.15, 0.6), np.float32)
    overcast = w.chance(0.3)
    if overcast:
        blue = haze * w.u(0.6, 1.1)
    if w.chance(0.1):
        haze = haze * np.array([1.3, 0.8, 0.5], np.float32)
    w.env = Environment(blue, haze, g, ambient=w.u(0.8, 1.4) if overcast else w.u(0.3, 0.8))
    if w.chance(0.65):
        w.env.cloud_row = w.bank.pick(w.rng, "cloud", "cloud", "stains", "marble")
        w.env.cloud = w.u(0.2, 1)
    if w.chance(0.25):
        w.env.fog, w.env.fog_colour = w.lu(0.001, 0.03), haze * w.u(0.6, 1)
    d = np.array([w.rng.normal(), w.rng.normal(), w.u(0.15, 2)], np.float32)
    w.lights.append(Light(warm(w, w.u(0.05, 0.4) if overcast else w.u(0.8, 2.2)), direction=d))


def soil(w: Scene, scale: tuple[float, float]) -> int:
    """Ground out of doors: grass, earth, sand, stones, snow; sometimes anything."""
    if w.chance(0.2):
        return w.photo(scale=scale)
    names = ("grass", "cloud", "stains", "cells", "speckle")
    if w.chance(0.25):
        return w.paint(*names, scale=scale)
    tints = (
        (0.25, 0.35, 0.08),
        (0.12, 0.25, 0.06),
        (0.35, 0.25, 0.14),
        (0.5, 0.4, 0.25),
        (0.3,) * 3,
    )
    pair = [np.array(tints[w.n(0, 4)], np.float32) * w.lu(0.4, 1.8) for _ in range(2)]
    return w.paint(*names, scale=scale, colours=pair, gloss=0.0)


def street(w: Scene) -> None:
    """A street along y with houses, cars, trees, lamps and people."""
    sky(w)
    half, walk = w.u(2.5, 6), w.u(1.2, 4)
    road = w.paint(
        "plain", "stains", "speckle", "cloud", "bricks", scale=(0.2, 1), contrast=w.u(0.05, 0.5)
    )
    w.add(ms.sheet([-60, 60], [-20, 220], 0.0), road, of="ground")
    pave = w.paint("bricks", "checks", "plain", "speckle", "stains", scale=(0.3, 1))
    line = w.plain(np.full(3, 0.7, np.float32))
    y = np.arange(-18, 120, w.u(4, 9))
    w.add(ms.boxes([(0, k, 0.004) for k in y], [(0.14, 2.2, 0.008)] * len(y)), line, of="ground")
    for s in (-1, 1):
        w.add(ms.box(walk, 240, 0.16, at=(s * (half + walk / 2), 100, 0.06)), pave, of="ground")
        k, open_side = -15.0, w.chance(0.15)
        while k < 130 and not open_side:
            ln = w.u(5, 20)
            if w.chance(0.9):
                with w.at(
                    s * (half + walk + w.u(0, 0.5) + 4 * w.chance(0.15)),
                    k + ln / 2,
                    0,
                    yaw=-s * np.pi / 2,
                ):
                    out.facade(w, ln, w.lu(3, 18))
            elif k > 0:
                with w.at(s * (half + walk + 3), k + ln / 2, 0):
                    out.tree(w, w.u(4, 9), detail=120)
            k += ln + w.u(0, 2) * w.chance(0.3)
        spots = np.arange(w.u(-4, 8), 60, w.u(5, 9))
        for p in spots:
            c = w.rng.random()
            if c < 0.4:
                with w.at(s * (half - 1.0), p, 0, yaw=np.pi / 2 * s + w.u(-0.04, 0.04)):
                    out.car(w)
            elif c < 0.6:
                with w.at(s * (half + 0.5), p, 0):
                    out.tree(w, w.u(3, 8), detail=150)
            elif c < 0.8:
                with w.at(s * (half + 0.3), p, 0, yaw=0 if s < 0 else np.pi):
                    out.pole(w, w.u(2.2, 7))
            elif c < 0.88:
                with w.at(s * (half + walk * 0.5), p, 0, yaw=w.u(0, 6)):
                    machines.bike(w) if w.chance(0.4) else th.carton(w, 0.4, 1.0)
    if not w.chance(0.3):
        with w.at(w.u(-4, 4), w.u(50, 140), 0, yaw=w.u(-0.2, 0.2)):
            out.facade(w, 40, w.u(5, 20))
    for _ in range(w.n(0, 6)):
        with w.at(w.u(-1, 1) * (half + walk), w.lu(3, 40), 0.0, yaw=w.u(0, 6.28)):
            living.person(w, w.u(1.4, 1.9))
    if w.chance(0.3):
        with w.at(w.u(-1.5, 1.5), w.u(6, 25), 0, yaw=np.pi / 2 + w.u(-0.3, 0.3)):
            out.car(w)
    x = w.u(-0.9, 0.9) * (half + walk)
    z = w.u(1.0, 2.2) if w.chance(0.75) else w.lu(2.5, 10)
    yaw = w.rng.normal(0, 0.35)
    w.look(
        [x, w.u(-3, 3), z],
        [x + 10 * np.sin(yaw), 10, z + w.u(-2.5, 1.5) - max(0, z - 2) * 0.5],
        fov=(45, 90),
    )


def terrain(w: Scene, size: float, rough: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights over a grid that is fine near the camera (at the origin, looking along +y)."""
    n = 90
    t = np.linspace(-1, 1, n)
    x = np.sign(t) * np.abs(t) ** 2.2 * size
    y = np.linspace(-0.12, 1, n) ** 1 * 1.0
    y = np.sign(y) * np.abs(y) ** 2.2 * size * 1.5
    gx, gy = np.meshgrid(x, y)
    z = np.zeros_like(gx)
    wave = size * w.u(0.1, 0.6)
    amp = rough * wave
    for _ in range(7):
        a, p = w.u(0, 6.28), w.u(0, 6.28)
        z += amp * np.sin(
            (gx * np.cos(a) + gy * np.sin(a)) / wave * 6.28 + p + np.sin(gx / wave * 2 + p)
        )
        wave, amp = wave * 0.55, amp * 0.5
    fade = np.clip(np.hypot(gx, gy) / (0.15 * size), 0.02, 1)
    return x, y, (z - z[n // 10, n // 2]) * fade


def ground_at(field: tuple[np.ndarray, np.ndarray, np.ndarray], px: float, py: float) -> float:
    """Height of the terrain at a point (nearest bilinear by rows)."""
    x, y, z = field
    j = int(np.clip(np.searchsorted(y, py), 1, len(y) - 1))
    row = [np.interp(px, x, z[k]) for k in (j - 1, j)]
    t = (py - y[j - 1]) / (y[j] - y[j - 1])
    return float(row[0] * (1 - t) + row[1] * t)


def landscape(w: Scene) -> None:
    """Hills, fields, rocks, trees, fences, a house, under the sky."""
    sky(w)
    size = w.lu(60, 1200)
    f = terrain(w, size, w.lu(0.002, 0.1) if w.chance(0.75) else 0.0)
    w.add(ms.sheet(*f), soil(w, (0.02, 0.5)), of="ground")
    if w.chance(0.5):
        w.add(
            ms.sheet([-size, size], [-1, size * 1.4], float(np.percentile(f[2], w.u(2, 30)))),
            w.plain(np.array([0.05, 0.12, 0.16], np.float32), gloss=1, mirror=0.6),
            of="ground",
        )
    for _ in range(round(w.lu(2, 45))):
        d, a = w.lu(4, size * 0.6), w.u(-0.8, 0.8)
        x, y = d * np.sin(a), d * np.cos(a)
        z, k = ground_at(f, x, y), w.rng.random()
        with w.at(x, y, z, yaw=w.u(0, 6.28)):
            if k < 0.45:
                out.tree(w, w.u(2, 12), detail=90)
            elif k < 0.65:
                s = w.lu(0.2, 2.5)
                w.add(
                    ms.superquadric(
                        s, s * w.u(0.5, 1), s * w.u(0.4, 0.9), w.u(0.5, 1), w.u(0.5, 1), segments=16
                    ).displace(w.rng, s * 0.4, 0.6 / s),
                    w.paint("stains", "cells", "cloud", "marble", scale=(0.3, 2)),
                )
            elif k < 0.78:
                living.plant(w, w.u(0.4, 2), pot=False, count=w.n(20, 70))
            elif k < 0.86:
                out.fence(w, w.u(5, 30))
            elif k < 0.92 and d > 15:
                out.facade(w, w.u(6, 14), w.u(3, 7))
            elif k < 0.96:
                living.person(w)
            else:
                out.car(w)
    h = w.u(1.0, 2.5) if w.chance(0.75) else w.lu(3, 30)
    z = ground_at(f, 0, 0) + h
    w.look(
        [0, 0, z],
        [w.u(-0.4, 0.4) * 10, 10, z + w.rng.normal(-0.6, 1.6) - (h > 3) * w.u(0, 6)],
        fov=(40, 85),
    )


def forest(w: Scene) -> None:
    """Among trees and undergrowth."""
    sky(w)
    f = terrain(w, 60, w.u(0, 0.06))
    w.add(ms.sheet(*f), soil(w, (0.3, 2)), of="ground")
    for _ in range(w.n(15, 40)):
        d, a = w.lu(2.8, 50), w.u(-0.9, 0.9)
        with w.at(
            d * np.sin(a),
            d * np.cos(a),
            ground_at(f, d * np.sin(a), d * np.cos(a)),
            yaw=w.u(0, 6.28),
        ):
            out.tree(w, w.u(4, 14), detail=130)
    for _ in range(w.n(5, 25)):
        d, a = w.lu(0.8, 15), w.u(-0.8, 0.8)
        with w.at(
            d * np.sin(a),
            d * np.cos(a),
            ground_at(f, d * np.sin(a), d * np.cos(a)),
            yaw=w.u(0, 6.28),
        ):
            living.plant(w, w.u(0.2, 1.3), pot=False, count=w.n(15, 60))
    z = ground_at(f, 0, 0) + w.u(0.4, 2)
    w.look([0, 0, z], [w.u(-3, 3), 10, z + w.u(-2.5, 4)], fov=(45, 90))


def people(w: Scene) -> None:
    """People at different distances, in a square, a park or a hall."""
    outside = w.chance(0.6)
    sky(w) if outside else indoor_light(w, 10, 10, 4)
    w.add(ms.sheet([-60, 60], [-30, 150], 0.0), w.paint(scale=(0.2, 1.2)), of="ground")
    far = w.lu(4, 40)
    if not outside or w.chance(0.6):
        with w.at(0, far, 0, yaw=w.u(-0.4, 0.4)):
            out.facade(w, far * 4 + 20, w.lu(3, 20))
    for _ in range(w.n(0, 8)):
        with w.at(w.u(-1, 1) * far, w.lu(2, far), 0, yaw=w.u(0, 6)):
            k = w.rng.random()
            out.tree(w, w.u(2.5, 7), detail=120) if k < 0.4 else out.pole(
                w, w.u(2, 6)
            ) if k < 0.6 else th.chair(w) if k < 0.8 else out.car(w)
    for _ in range(w.n(1, 12)):
        d, a = w.lu(1.3, far * 0.95), w.u(-0.6, 0.6)
        with w.at(d * np.sin(a), d * np.cos(a), 0, yaw=w.u(0, 6.28)):
            if w.chance(0.12):
                th.chair(w)
            seated = w.chance(0.12)
            living.person(w, w.u(1.1, 1.95), seated=seated)
    z = w.u(0.8, 2.0)
    w.look([0, 0, z], [w.u(-2, 2), 8, z + w.u(-2, 0.8)], fov=(42, 80))


def portrait(w: Scene) -> None:
    """One or two people near, the background far or near."""
    outside = w.chance(0.5)
    if outside:
        sky(w)
        w.add(ms.sheet([-60, 60], [-30, 150], 0.0), w.paint(scale=(0.2, 1.2)), of="ground")
        for _ in range(w.n(3, 12)):
            with w.at(w.u(-8, 8), w.lu(2.5, 30), 0, yaw=w.u(0, 6)):
                out.tree(w, w.u(2, 7), detail=150) if w.chance(0.6) else out.car(w) if w.chance(
                    0.4
                ) else living.person(w)
        if w.chance(0.6):
            with w.at(0, w.lu(5, 40), 0, yaw=w.u(-0.4, 0.4)):
                out.facade(w, 60, w.lu(3, 20))
    else:
        indoor_light(w, 4, 4, 2.6)
        w.add(ms.floor(8), w.wood(), of="ground")
        backdrop(w, w.lu(0.4, 4))
        for _ in range(w.n(0, 4)):
            with w.at(w.u(-2, 2), w.u(0.5, 3), 0, yaw=w.u(0, 6)):
                th.chair(w) if w.chance(0.5) else living.plant(w, w.u(0.5, 1.8))
    for k in range(w.n(1, 3)):
        with w.at(
            (k * 0.55 + w.u(-0.1, 0.1)) * (-1) ** k, w.u(-0.1, 0.4) * k, 0, yaw=w.u(-0.8, 0.8)
        ):
            living.person(w, w.u(1.55, 1.85))
    d = w.lu(0.6, 2.2)
    w.look(
        [w.u(-0.4, 0.4), -d, w.u(1.2, 1.8)],
        [w.u(-0.15, 0.15), 0, 1.55 - 0.25 * d * w.u(0, 1)],
        fov=(40, 70),
    )


def upward(w: Scene) -> None:
    """Looking up at houses, trees and poles, or at a ceiling of beams and lamps."""
    sky(w)
    w.add(ms.floor(80), w.paint(scale=(0.2, 1)), of="ground")
    for _ in range(w.n(2, 9)):
        d, a = w.lu(2.5, 25), w.u(-1.0, 1.0)
        k = w.rng.random()
        with w.at(d * np.sin(a), d * np.cos(a), 0, yaw=w.u(-0.6, 0.6) if k < 0.4 else w.u(0, 6.28)):
            if k < 0.4 and d > 5:
                out.facade(w, w.u(5, 15), w.u(6, 25))
            elif k < 0.8:
                out.tree(w, w.u(4, 14), detail=260)
            else:
                out.pole(w, w.u(4, 9))
    if w.chance(0.3):
        h = w.u(2.6, 5)
        w.env.ambient = max(w.env.ambient, 0.8)
        m = w.wood()
        for y in np.arange(-2, 14, w.u(0.6, 2)):
            w.add(ms.box(14, 0.15, w.u(0.1, 0.4), at=(0, y, h)), m, of="wall")
        if w.chance(0.6):
            w.add(ms.sheet([-7, 7], [-3, 15], h + 0.3), w.wood(), of="wall")
        for _ in range(w.n(1, 6)):
            w.add(
                ms.sphere(w.u(0.1, 0.3), segments=16).move(w.u(-3, 3), w.u(0, 8), h - w.u(0.3, 1)),
                w.plain(emission=1.5),
            )
    w.look([0, 0, w.u(0.5, 2)], [w.u(-2, 2), 4, w.u(2.2, 5)], fov=(45, 95), roll=6)


BUILDERS = {"street": street, "landscape": landscape, "forest": forest, "people": people,
            "portrait": portrait, "upward": upward}  # fmt: skip
