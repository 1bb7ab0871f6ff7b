"""Builders of indoor and close-up scenes."""

from __future__ import annotations

import numpy as np

from dafast.synthetic import living, machines
from dafast.synthetic import meshes as ms
from dafast.synthetic import things as th
from dafast.synthetic.scene import Environment, Light, Scene, of_class

UP = np.array([0, 0, 1], np.float32)


def warm(w: Scene, strength: float) -> np.ndarray:
    """Light of a random colour temperature."""
    t = w.rng.normal(0, 0.12)
    return (np.array([1 + t, 1, 1 - t]) * strength).astype(np.float32)


def indoor_light(w: Scene, lx: float, ly: float, h: float) -> None:
    """One to three lamps in a room of lx by ly by h metres, and a mild ambient."""
    a = warm(w, 1.0)
    w.env = Environment(
        a * w.u(0.6, 1.2), a * w.u(0.6, 1.2), a * w.u(0.3, 1.0), ambient=w.lu(0.12, 0.9)
    )
    size = max(lx, ly, h)
    for _ in range(w.n(1, 3)):
        p = np.array([w.u(-0.45, 0.45) * lx, w.u(-0.45, 0.45) * ly, h * w.u(0.6, 0.97)], np.float32)
        w.lights.append(Light(warm(w, w.lu(0.15, 0.9) * size**2 * 0.4), position=p))
    if w.chance(0.3):
        d = np.array([w.rng.normal(), w.rng.normal(), w.u(0.3, 1.5)], np.float32)
        w.lights.insert(0, Light(warm(w, w.u(0.5, 2.0)), direction=d))


@of_class("wall")
def wall(
    w: Scene, length: float, height: float, mat: int, hole: tuple[float, float, float, float] | None
) -> None:
    """A wall along x in the plane y = 0, optionally with a window hole (x0, x1, z0, z1)."""
    t = 0.15
    if hole is None:
        w.add(ms.box(length, t, height, at=(0, t / 2, height / 2)), mat)
        return
    x0, x1, z0, z1 = hole
    left, right = -length / 2, length / 2
    spans = [(left, x0, 0, height), (x1, right, 0, height), (x0, x1, 0, z0), (x0, x1, z1, height)]
    spans = [s for s in spans if s[1] - s[0] > 1e-3 and s[3] - s[2] > 1e-3]
    w.add(
        ms.boxes(
            [((a + b) / 2, t / 2, (c + d) / 2) for a, b, c, d in spans],
            [(b - a, t, d - c) for a, b, c, d in spans],
        ),
        mat,
    )
    frame = w.plain()
    xs, zs = np.linspace(x0, x1, w.n(2, 4)), np.linspace(z0, z1, w.n(2, 4))
    w.add(
        ms.boxes([(x, t / 2, (z0 + z1) / 2) for x in xs], [(0.05, 0.08, z1 - z0)] * len(xs)), frame
    )
    w.add(
        ms.boxes([((x0 + x1) / 2, t / 2, z) for z in zs], [(x1 - x0, 0.08, 0.05)] * len(zs)), frame
    )
    if w.chance(0.4):
        cloth = w.cloth()
        for s, x in ((-1, x0), (1, x1)):
            u = np.linspace(0, w.u(0.2, 0.5), 24)
            z = np.array([z1 + 0.15, max(z0 - w.u(0, 1), 0.05)])
            y = -0.08 - 0.04 * np.sin(u * w.u(40, 70))
            v = np.stack([np.tile(x + s * (u - 0.1), 2), np.tile(y, 2), np.repeat(z, 24)], 1)
            uv = np.stack([np.tile(u * 1.5, 2), np.repeat(z, 24)], 1)
            w.add(
                ms.TriangleMesh(v.astype(np.float32), ms.grid_faces(2, 24), uv.astype(np.float32)),
                cloth,
            )


@of_class("wall")
def picture(w: Scene, width: float, height: float) -> None:
    """A framed photograph in the plane y = 0, facing -y, centred."""
    m = (
        w.photo(fit=True, gloss=0.3)
        if w.chance(0.8)
        else w.paint("collage", "text", "marble", scale=(0.7, 2))
    )
    w.add(ms.quad(width, height, fit=True).move(0, -0.03, 0), m)
    f, b = w.plain(gloss=0.4), w.u(0.015, 0.06)
    w.add(
        ms.boxes(
            [(0, -0.02, s * height / 2) for s in (-1, 1)]
            + [(s * width / 2, -0.02, 0) for s in (-1, 1)],
            [(width + b, 0.04, b)] * 2 + [(b, 0.04, height + b)] * 2,
        ),
        f,
    )


@of_class("wall")
def dress_wall(
    w: Scene, length: float, height: float, hole: tuple[float, float, float, float] | None
) -> None:
    """Furniture and pictures along a wall in the plane y = 0 (room side -y)."""
    x = -length / 2 + w.u(0.2, 0.8)
    while x < length / 2 - 0.6:
        k, wd = w.rng.random(), w.u(0.6, 1.8)
        wd = min(wd, length / 2 - x)
        c = x + wd / 2
        blocked = hole is not None and hole[0] - 0.2 < c < hole[1] + 0.2
        if k < 0.2 and not blocked:
            with w.at(c, -0.3, 0):
                th.shelf(w, wd, w.u(0.8, min(2.3, height - 0.1)), 0.28)
        elif k < 0.42:
            d, h = w.u(0.35, 0.6), w.u(0.5, 0.95) if blocked or w.chance(0.6) else w.u(1.5, 2.1)
            with w.at(c, -d - 0.01, 0):
                th.cupboard(w, wd, h, d)
                if h < 1.2:
                    with w.at(w.u(-0.3, 0.3) * wd, d / 2, h):
                        th.small_thing(w)
                    with w.at(w.u(-0.4, 0.4) * wd, d / 2, h, yaw=w.u(-0.4, 0.4)):
                        th.gadget(w) if w.chance(0.4) else th.small_thing(w)
        elif k < 0.5:
            with w.at(c, -0.55, 0):
                th.sofa(w, max(wd, 0.9))
        elif k < 0.57:
            with w.at(c, -0.4, 0):
                living.plant(w, w.u(0.5, 1.9))
        elif k < 0.63:
            with w.at(c, -0.3, 0):
                th.lamp(w, w.u(1.2, 1.8))
        elif k < 0.7 and not blocked:
            with w.at(c, -0.02, 1.0):
                w.add(ms.box(0.85, 0.05, 2.0), w.wood())
                w.add(ms.sphere(0.03, segments=10).move(0.35, -0.06, 0), w.metal())
        elif k < 0.76:
            with w.at(c, -0.35, 0, yaw=w.u(2, 4)):
                th.chair(w)
        if not blocked and w.chance(0.5):
            a = w.u(0.25, 0.9)
            with w.at(c, 0, w.u(1.4, 1.9)):
                picture(w, a, a * w.u(0.6, 1.5))
        x += wd + w.u(0.05, 0.8)


@of_class("wall")
def shell(
    w: Scene, lx: float, ly: float, h: float, *, walls: tuple[int, ...] = (0, 1, 2, 3)
) -> None:
    """Floor, ceiling and dressed walls of a room centred at the origin."""
    ground = (
        w.wood()
        if w.chance(0.45)
        else w.paint(
            "bricks",
            "checks",
            "cloud",
            "weave",
            "speckle",
            "marble",
            "stains",
            "plain",
            scale=(0.3, 1.5),
        )
    )
    w.add(ms.sheet([-lx / 2, lx / 2], [-ly / 2, ly / 2], 0.0), ground, of="ground")
    w.add(
        ms.sheet([-lx / 2, lx / 2], [-ly / 2, ly / 2], h), w.plain() if w.chance(0.8) else w.wood()
    )
    papers = [
        w.paint("plain", "cloud", "stripes", "bricks", "dots", "stains", "checks", scale=(0.2, 1.2))
        if w.chance(0.6)
        else w.plain()
        for _ in range(2)
    ]
    if w.chance(0.4):
        r = w.u(0.8, 1.8)
        with w.at(w.u(-0.2, 0.2) * lx, w.u(-0.2, 0.2) * ly, 0.012, yaw=w.u(-0.4, 0.4)):
            w.add(ms.sheet([-r, r], [-r * 0.7, r * 0.7], 0.0), w.cloth(), of="ground")
    skirting = w.plain()
    for k, (length, dist) in enumerate(((lx, ly / 2), (ly, lx / 2), (lx, ly / 2), (ly, lx / 2))):
        yaw = -k * np.pi / 2
        hole = None
        if w.chance(0.35) and length > 2:
            a, b = w.u(0.8, min(2.2, length * 0.7)), w.u(-0.3, 0.3) * length
            hole = (
                max(b - a / 2, -length / 2 + 0.2),
                min(b + a / 2, length / 2 - 0.2),
                w.u(0.1, 1.0),
                min(2.2, h - 0.15),
            )
        with w.at(dist * np.sin(-yaw), dist * np.cos(yaw), 0, yaw=yaw):
            wall(w, length, h, papers[int(w.chance(0.3))], hole)
            w.add(ms.box(length, 0.02, w.u(0.05, 0.14), at=(0, -0.01, 0.05)), skirting)
        if hole is not None and w.chance(0.6):
            with w.at(dist * np.sin(-yaw), dist * np.cos(yaw), 0, yaw=yaw):
                far = w.lu(5, 60)
                w.add(
                    ms.quad(far * 1.5, far, fit=True).move(0, far, far * 0.3),
                    w.photo(fit=True, emission=w.u(0.5, 1.5)),
                )
        if k in walls:
            with w.at(dist * np.sin(-yaw), dist * np.cos(yaw), 0, yaw=yaw):
                dress_wall(w, length, h, hole)


def set_table(w: Scene, length: float, width: float, count: int) -> None:
    """Things on a table top centred at the origin at z = 0."""
    for _ in range(count):
        with w.at(w.u(-0.46, 0.46) * length, w.u(-0.46, 0.46) * width, 0, yaw=w.u(0, 6.28)):
            th.small_thing(w) if w.chance(0.85) else th.gadget(w)


def room(w: Scene) -> None:
    """A furnished room seen from inside."""
    lx, ly, h = w.u(2.8, 7), w.u(3, 8), w.u(2.3, 3.2)
    indoor_light(w, lx, ly, h)
    shell(w, lx, ly, h)
    for _ in range(w.n(1, 4)):
        k = w.rng.random()
        with w.at(
            w.u(-0.35, 0.35) * lx,
            w.u(-0.35, 0.35) * ly,
            0,
            yaw=w.u(0, 6.28) if w.chance(0.3) else w.n(0, 3) * np.pi / 2,
        ):
            if k < 0.4:
                a, b, c = w.u(0.6, 1.9), w.u(0.5, 1.0), w.u(0.35, 0.78)
                th.table(w, a, b, c)
                with w.at(0, 0, c):
                    set_table(w, a, b, w.n(0, 6))
                for s in range(w.n(0, 4)):
                    with w.at(
                        w.u(-0.5, 0.5) * a,
                        (b / 2 + 0.25) * (-1) ** s,
                        0,
                        yaw=np.pi * (s % 2) + w.u(-0.4, 0.4) + np.pi,
                    ):
                        th.chair(w)
            elif k < 0.55:
                th.bed(w)
            elif k < 0.7:
                th.sofa(w, w.u(0.9, 2.4))
            elif k < 0.8:
                living.person(w, w.u(1.5, 1.9))
            elif k < 0.9:
                th.chair(w)
            else:
                th.carton(w, 0.2, 0.7)
    for _ in range(w.n(0, 4)):
        with w.at(w.u(-0.45, 0.45) * lx, w.u(-0.45, 0.45) * ly, 0, yaw=w.u(0, 6)):
            th.carton(w, 0.1, 0.5) if w.chance(0.5) else th.small_thing(w)
    if w.chance(0.5):
        z = h - w.u(0.2, 1.0)
        with w.at(w.u(-0.2, 0.2) * lx, w.u(-0.2, 0.2) * ly, z):
            w.add(ms.cylinder(0.008, h - z), w.metal())
            w.add(
                ms.lathe([(0.25, -0.15), (w.u(0.05, 0.24), 0.1)], 20), w.plain(emission=w.u(0, 2))
            )
    e = np.array([w.u(-0.42, 0.42) * lx, -w.u(0.2, 0.45) * ly, w.u(0.5, 1.9)])
    t = np.array([w.u(-0.4, 0.4) * lx, w.u(0.1, 0.5) * ly, w.u(0.2, 1.5)])
    if w.chance(0.5):
        e, t = e * [1, -1, 1], t * [1, -1, 1]
    w.look(e, t, fov=(50, 90))


def corridor(w: Scene) -> None:
    """A long narrow room."""
    lx, ly, h = w.u(1.3, 2.6), w.u(8, 25), w.u(2.2, 3.5)
    indoor_light(w, lx, ly, h)
    shell(w, lx, ly, h, walls=(0, 2))
    r = w.rng
    n = w.n(2, 8)
    for k in range(n):
        for s in (-1, 1):
            y = (k + 0.5) / n * ly - ly / 2 + w.u(-0.3, 0.3)
            with w.at(s * (lx / 2), y, 0, yaw=-s * np.pi / 2):
                c = r.random()
                if c < 0.35:
                    w.add(
                        ms.box(0.9, 0.06, 2.05, at=(0, 0, 1.02)),
                        w.wood() if w.chance(0.6) else w.plain(),
                        of="wall",
                    )
                    w.add(ms.box(1.05, 0.04, 2.12, at=(0, 0, 1.06)), w.plain(), of="wall")
                elif c < 0.5:
                    with w.at(0, 0, 1.5):
                        picture(w, w.u(0.4, 1.0), w.u(0.4, 0.9))
                elif c < 0.62 and lx > 1.7:
                    with w.at(0, -0.3, 0):
                        th.cupboard(w, w.u(0.5, 1.2), w.u(0.6, 1.9), 0.28)
                elif c < 0.7:
                    with w.at(0, -0.3, 0):
                        living.plant(w, w.u(0.5, 1.5))
                elif c < 0.78:
                    w.add(ms.cylinder(0.12, h).move(0, -0.05, 0), w.plain(), of="wall")
    for _ in range(w.n(0, 2)):
        with w.at(w.u(-0.25, 0.25) * lx, w.u(-0.3, 0.45) * ly, 0, yaw=w.u(0, 6.28)):
            living.person(w, w.u(1.5, 1.9)) if w.chance(0.6) else th.carton(w, 0.2, 0.6)
    e = np.array([w.u(-0.3, 0.3) * lx, -ly * w.u(0.2, 0.48), w.u(0.6, 2.0)])
    w.look(e, [w.u(-0.8, 0.8) * lx, e[1] + w.u(3, 9), w.u(0.6, 1.8)], fov=(50, 95))


@of_class("wall")
def backdrop(w: Scene, distance: float, *, size: float = 3.0) -> None:
    """Something behind: a wall, a photograph, a curtain, a clutter of boxes, or nothing."""
    k = w.rng.random()
    s = max(distance * size, 2.0)
    with w.at(0, distance, 0, yaw=w.u(-0.35, 0.35)):
        if k < 0.4:
            wall(w, 2 * s, s * 1.3, w.paint(scale=(0.15, 1.5)), None)
            dress_wall(w, 2 * s if s < 5 else 8.0, max(s, 2.4), None) if w.chance(0.5) else None
        elif k < 0.6:
            m = w.photo(scale=(1 / s, 2 / s))
            w.add(ms.quad(2 * s, s * 1.4).move(0, 0, s * 0.5), m)
        elif k < 0.75:
            x, z = np.linspace(-s, s, 90), np.array([0, s * 1.3])
            y = 0.05 * s * np.sin(x * w.u(2, 12) / s * 6) + 0.02 * s * np.sin(x * 31 / s)
            v = np.stack([np.tile(x, 2), np.tile(y, 2), np.repeat(z, 90)], 1)
            uv = v[:, [0, 2]]
            w.add(
                ms.TriangleMesh(v.astype(np.float32), ms.grid_faces(2, 90), uv.astype(np.float32)),
                w.cloth(),
            )
        elif k < 0.92:
            n = w.n(5, 25)
            c = w.rng.uniform([-s, -s * 0.4, 0], [s, s * 0.6, s * 0.7], (n, 3))
            mats = [w.paint() for _ in range(6)]
            w.add(
                ms.boxes(c, w.rng.uniform(0.1, 0.5, (n, 3)) * s),
                np.repeat(w.rng.choice(mats, n), 12),
                of="thing",
            )
            w.add(ms.quad(6 * s, 3 * s).move(0, s, s), w.paint(scale=(0.1, 1)))


def tabletop(w: Scene) -> None:
    """Things on a table, seen from near."""
    a, b = w.u(0.6, 1.6), w.u(0.5, 1.0)
    d = w.lu(0.35, 1.4)
    indoor_light(w, 4, 4, 2.6)
    for k in range(len(w.lights)):
        lamp = w.lights[k]
        if lamp.position is not None:
            w.lights[k] = Light(
                lamp.colour, position=lamp.position - np.array([0, 0, 0.75], np.float32)
            )
    with w.at(0, 0, -0.75):
        th.table(w, a, b, 0.75)
        w.add(ms.floor(4), w.wood() if w.chance(0.5) else w.paint(scale=(0.3, 1.5)), of="ground")
        if w.chance(0.75):
            backdrop(w, b / 2 + w.lu(0.05, 2.5))
        for _ in range(w.n(0, 3)):
            with w.at(w.u(-1.5, 1.5), w.u(0.8, 2), 0, yaw=w.u(0, 6)):
                th.chair(w)
    if w.chance(0.25):
        x, y = np.linspace(-a / 2, a / 2, 16), np.linspace(-b / 2, b / 2, 12)
        w.add(
            ms.sheet(x, y, 0.004 + 0.003 * np.sin(np.add.outer(y * 9, x * 11))),
            w.cloth(),
            of="furniture",
        )
    set_table(w, a, b, w.n(4, 22))
    el, az = w.u(0.05, 0.9), w.u(-0.8, 0.8)
    t = np.array([w.u(-0.25, 0.25) * a, w.u(-0.2, 0.2) * b, w.u(0, 0.2)])
    w.look(
        t + d * np.array([np.cos(el) * np.sin(az), -np.cos(el) * np.cos(az), np.sin(el)]),
        t,
        fov=(38, 75),
    )


def topdown(w: Scene) -> None:
    """A view straight or steeply down on a table, desk or floor."""
    a, b = w.u(0.8, 2.0), w.u(0.6, 1.2)
    indoor_light(w, 3, 3, 3.0)
    drop = w.u(0.3, 0.9)
    with w.at(0, 0, -drop):
        th.table(w, a, b, drop)
        w.add(ms.floor(5), w.wood() if w.chance(0.4) else w.paint(scale=(0.3, 1.5)), of="ground")
        for _ in range(w.n(0, 5)):
            with w.at(w.u(-1.6, 1.6), w.u(-1.3, 1.3), 0, yaw=w.u(0, 6)):
                th.chair(w) if w.chance(0.5) else th.carton(w, 0.15, 0.5)
    set_table(w, a, b, w.n(4, 20))
    d, yaw = w.lu(0.7, 2.2), w.u(0, 6.28)
    t = np.array([w.u(-0.5, 0.5) * a, w.u(-0.5, 0.5) * b, 0])
    off = w.u(0.02, 0.8)
    w.look(t + d * np.array([off * np.cos(yaw), off * np.sin(yaw), 1]), t, roll=15)


def plants(w: Scene) -> None:
    """Plants with many leaves in front of cloth, wall or clutter, and other things."""
    indoor_light(w, 4, 4, 2.6)
    d, h = w.lu(0.5, 2.5), w.lu(0.3, 1.4)
    w.add(ms.floor(6), w.paint(scale=(0.3, 3)) if w.chance(0.6) else w.wood(), of="ground")
    backdrop(w, w.lu(0.15, 2.0) + h * 0.3, size=2.5)
    for k in range(w.n(1, 4)):
        x = 0.0 if k == 0 else w.u(-1, 1) * h * 1.5
        with w.at(x, w.u(-0.3, 0.3) * h * (k > 0), 0):
            living.plant(w, h * w.u(0.6, 1.2), count=w.n(25, 400))
    for _ in range(w.n(0, 6)):
        with w.at(w.u(-1, 1) * h, w.u(-0.6, 0.5) * h, 0, yaw=w.u(0, 6), scale=w.u(0.7, 1.5)):
            th.small_thing(w)
    az, el = w.u(-0.6, 0.6), w.u(-0.05, 0.9)
    t = np.array([w.u(-0.2, 0.2) * h, 0, h * w.u(0.35, 0.8)])
    e = t + d * np.array([np.sin(az) * np.cos(el), -np.cos(az) * np.cos(el), np.sin(el)])
    w.look([e[0], e[1], max(e[2], 0.06)], t, fov=(38, 70))


def workshop(w: Scene) -> None:
    """A machine or big object close up in front of a cluttered garage."""
    lx, ly, h = w.u(3, 6), w.u(4, 7), w.u(2.4, 3.5)
    indoor_light(w, lx, ly, h)
    shell(w, lx, ly, h)
    for _ in range(w.n(6, 26)):
        with w.at(w.u(-0.48, 0.48) * lx, w.u(0.0, 0.48) * ly, 0, yaw=w.u(0, 6)):
            machines.clutter(w)
    d = w.lu(1.0, 2.6)
    with w.at(w.u(-0.3, 0.3), -0.1 * ly, 0, yaw=w.u(-0.7, 0.7) + np.pi * w.n(0, 1)):
        if w.chance(0.6):
            machines.bike(w)
        elif w.chance(0.5):
            with w.at(0, 0, 0.8):
                for _ in range(w.n(3, 8)):
                    with w.at(w.u(-0.4, 0.4), w.u(-0.4, 0.4), w.u(-0.6, 0.5)):
                        th.lump(w, w.u(0.2, 0.9))
        else:
            th.table(w, 1.4, 0.6, 0.85)
            with w.at(0, 0, 0.85):
                set_table(w, 1.4, 0.6, w.n(4, 12))
    az = w.u(-0.9, 0.9)
    t = np.array([w.u(-0.3, 0.3), -0.1 * ly, w.u(0.3, 0.9)])
    e = t + np.array([d * np.sin(az), -d * np.cos(az), w.u(-0.1, 0.9)])
    e = np.clip(e, [-lx / 2 + 0.15, -ly / 2 + 0.15, 0.15], [lx / 2 - 0.15, ly / 2, h - 0.2])
    w.look(e, t, fov=(45, 85))


def random(w: Scene) -> None:
    """Floating, stacked and intersecting shapes at many distances."""
    r = w.rng
    near = w.lu(0.5, 4)
    indoor_light(w, 8 * near, 8 * near, 6 * near)
    n = w.n(8, 60)
    dist = near * np.exp(r.uniform(0, w.u(0.8, 2.8), n))
    ang = r.uniform(-0.9, 0.9, (2, n))
    x, y, z = dist * np.tan(ang[0]), dist, dist * np.tan(ang[1]) * 0.8
    for k in range(n):
        with w.at(x[k], y[k], z[k]):
            th.lump(w, dist[k] * w.lu(0.05, 0.7) if k else near * 0.4)
    if w.chance(0.7):
        with w.at(
            0, dist.max() * w.u(0.7, 1.3), 0, turn=ms.rotation(w.u(-0.6, 0.6), 0, w.u(-0.5, 0.5))
        ):
            w.add(
                ms.quad(30 * near * 4, 25 * near * 4),
                w.paint(scale=(0.05 / near, 0.5 / near)),
                of="wall",
            )
    else:
        w.env.cloud_row = w.bank.pick(r, "cloud", "photo")
        w.env.cloud = w.u(0, 1)
    if w.chance(0.5):
        with w.at(0, 0, -near * w.u(0.3, 1.0), turn=ms.rotation(0, w.u(-0.2, 0.2), w.u(-0.2, 0.2))):
            w.add(ms.floor(60 * near), w.paint(scale=(0.1 / near, 1 / near)), of="ground")
    w.look([0, 0, 0], [w.u(-0.2, 0.2), 1, w.u(-0.2, 0.2)], roll=12)


BUILDERS = {"room": room, "corridor": corridor, "tabletop": tabletop, "topdown": topdown,
            "plants": plants, "workshop": workshop, "random": random}  # fmt: skip
