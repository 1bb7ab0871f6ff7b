"""Builders of scenes with a near thing that fills the picture: heads, animals, blossoms, vessels.

In each the subject is around the z axis and the camera is on the side of -y.
"""

from __future__ import annotations

import numpy as np

from dafast.synthetic import animals as beasts
from dafast.synthetic import birds, closeups, forms, living
from dafast.synthetic import heads as people
from dafast.synthetic import meshes as ms
from dafast.synthetic import outdoors as out
from dafast.synthetic import scenes_indoor as indoor
from dafast.synthetic import things as th
from dafast.synthetic.scene import Light, Scene
from dafast.synthetic.scenes_outdoor import sky, soil


def inside(w: Scene) -> None:
    """A furnished room, empty where the subject and the camera are."""
    lx, ly, h = w.u(3, 6), w.u(3.5, 9), w.u(2.3, 3.0)
    indoor.indoor_light(w, lx, ly, h)
    indoor.shell(w, lx, ly, h)
    for _ in range(w.n(1, 4)):
        k, x, y = w.rng.random(), w.u(-0.4, 0.4) * lx, w.u(0.9, max(1.0, ly * 0.4))
        with w.at(x, y, 0, yaw=w.u(0, 6.28) if w.chance(0.3) else w.n(0, 3) * np.pi / 2):
            if k < 0.3:
                a, b, c = w.u(0.6, 1.6), w.u(0.5, 0.9), w.u(0.4, 0.78)
                th.table(w, a, b, c)
                with w.at(0, 0, c):
                    indoor.set_table(w, a, b, w.n(0, 5))
            elif k < 0.55:
                th.chair(w)
            elif k < 0.7:
                th.sofa(w, w.u(0.9, 2.0))
            elif k < 0.85:
                living.plant(w, w.u(0.5, 1.8))
            else:
                living.person(w, w.u(1.5, 1.9))


def outside(w: Scene) -> None:
    """A garden, park or street under the sky."""
    sky(w)
    w.add(ms.sheet([-80, 80], [-40, 160], 0.0), soil(w, (0.2, 1.5)), of="ground")
    for _ in range(w.n(2, 12)):
        d, a = w.lu(3, 40), w.u(-0.8, 0.8)
        with w.at(d * np.sin(a), d * np.cos(a), 0, yaw=w.u(0, 6.28)):
            k = w.rng.random()
            if k < 0.55:
                out.tree(w, w.u(2, 9), detail=130)
            elif k < 0.75:
                living.plant(w, w.u(0.3, 1.5), pot=False, count=w.n(20, 80))
            elif k < 0.83:
                out.fence(w, w.u(3, 12))
            elif k < 0.93:
                living.person(w, w.u(1.5, 1.9))
            else:
                out.car(w)
    if w.chance(0.4):
        with w.at(w.u(-5, 5), w.lu(5, 50), 0, yaw=w.u(-0.5, 0.5)):
            out.facade(w, w.u(12, 60), w.lu(3, 18))


def studio(w: Scene) -> None:
    """A floor and something right behind."""
    indoor.indoor_light(w, 4, 4, 2.6)
    ground = w.wood() if w.chance(0.5) else w.paint(scale=(0.3, 1.5))
    w.add(ms.floor(8), ground, of="ground")
    indoor.backdrop(w, w.lu(0.35, 3.5))


def surroundings(w: Scene) -> bool:
    """One of the three above; whether it is outside."""
    k = w.rng.random()
    if k < 0.42:
        outside(w)
    elif k < 0.75:
        inside(w)
    else:
        studio(w)
    return k < 0.42


def grass(w: Scene, radius: float, height: float, *, hollow: float = 0.0) -> None:
    """Blades around the origin, denser near it, none nearer than ``hollow``."""
    n = w.n(300, 1100)
    d = hollow + (radius - hollow) * w.rng.random(n) ** 0.8
    a = w.rng.uniform(0, 6.28, n)
    base = np.stack([d * np.cos(a), d * np.sin(a), 0 * d], 1)
    lean = w.rng.normal(0, 0.35, (n, 3)) + np.array([0, 0, 1])
    ln = height * w.rng.uniform(0.4, 1.3, n)
    mesh = ms.leaves(base, lean, ln, ln * w.u(0.015, 0.05), w.u(0, 0.5), shape="blade", rng=w.rng)
    mats = np.array([w.foliage(), w.foliage()])
    w.add(mesh, np.repeat(w.rng.choice(mats, n), 6), of="plant")


def aim(
    w: Scene,
    target: np.ndarray,
    distance: float,
    *,
    elevation: float,
    azimuth: float,
    fov: tuple[float, float] = (38, 65),
    off: float = 0.12,
) -> None:
    """Looks at about ``target`` from ``distance`` metres; never from below z = 0.02.

    Args:
        w: the scene.
        target: the subject's middle.
        distance: metres.
        elevation: of the camera above the target, radians; ``azimuth`` about it.
        azimuth: see ``elevation``; 0 looks along +y.
        fov: range over the longer side, degrees.
        off: standard deviation of the aim, as a share of the distance.
    """
    side = np.cos(elevation)
    d = np.array([np.sin(azimuth) * side, -np.cos(azimuth) * side, np.sin(elevation)])
    eye = target + distance * d
    eye[2] = max(eye[2], 0.02)
    w.look(eye, target + w.rng.normal(0, off * distance, 3), fov=fov)


def fill_light(w: Scene, at: np.ndarray, reach: float) -> None:
    """Sometimes a lamp near the subject, as a photographer sets it."""
    if w.chance(0.35):
        p = at + np.array([w.u(-1.2, 1.2), w.u(-1.2, -0.3), w.u(0.2, 1.4)]) * reach
        w.lights.insert(0, Light(indoor.warm(w, w.lu(0.3, 1.0) * (0.15 + 1.5 * reach**2)),
                                 position=p.astype(np.float32)))  # fmt: skip


def heads(w: Scene) -> None:
    """The heads of one to three people, filling much of the picture."""
    surroundings(w)
    z = w.u(1.1, 1.75)
    with w.at(0, 0, z, yaw=w.rng.normal(0, 0.35)):
        people.bust(w)
    for _ in range(w.n(0, 2) if w.chance(0.4) else 0):
        x = w.u(0.3, 0.6) * (1 if w.chance(0.5) else -1)
        with w.at(x, w.u(-0.05, 0.9), z + w.u(-0.15, 0.12), yaw=w.rng.normal(0, 0.5)):
            people.bust(w)
    at = np.array([0, 0, z - w.u(-0.02, 0.12)])
    fill_light(w, at, 0.8)
    aim(w, at, w.lu(0.4, 1.15), elevation=w.rng.normal(0.03, 0.16), azimuth=w.rng.normal(0, 0.4),
        off=0.07)  # fmt: skip


def animals(w: Scene) -> None:
    """A cat's or another face near, an animal as a whole, a bird, or several on a meadow."""
    k = w.rng.random()
    if k < 0.1:
        _herd(w)
        return
    grown = surroundings(w) and w.chance(0.5)
    if k < 0.28:
        size = w.lu(0.1, 0.45)
        perch = w.u(0.02, 1.2)
        wood = w.wood()
        w.add(ms.tube([(-2, 0.02, perch - 0.02), (2, -0.05, perch - 0.015)], w.u(0.01, 0.03)), wood)
        with w.at(0, 0, perch, yaw=w.u(-1.8, 1.8)):
            birds.bird(w, size)
        at = np.array([0, 0, perch + size * 0.3])
        reach = size
        distance = size * w.lu(0.9, 3.5)
    else:
        name = str(w.rng.choice(["cat", "cat", "cat", "dog", "hound", *beasts.BREEDS]))
        level = 0.0
        if name in ("cat", "rabbit", "dog") and w.chance(0.3):
            level = w.u(0.4, 0.75)
            with w.at(0, 0.25 if level < 0.5 else 0, 0):
                th.sofa(w, w.u(1.0, 2.0)) if level < 0.5 else th.table(w, 1.4, 0.9, level)
            level += 0.1 * (level < 0.5)
        turn = w.rng.normal(0, 0.5) if w.chance(0.75) else w.u(0, 6.28)
        with w.at(0, 0, level, yaw=turn):
            y, z, r = beasts.quadruped(w, name)
        body = beasts.BREEDS[name].height
        at = np.array([-y * np.sin(turn), y * np.cos(turn), z + level])
        distance = r * w.lu(3.9, 11)
        if w.chance(0.3):  # the whole animal
            at = at * [0.4, 0.4, 1] - [0, 0, (z - body * 0.5) * 0.8]
            distance = body * w.lu(1.6, 3.5)
        reach = distance
    if grown:
        grass(w, max(1.5, 3 * reach), w.u(0.03, 0.2) * min(1.0, 4 * reach), hollow=0.0)
    fill_light(w, at, min(reach, 1.0))
    aim(w, at, distance, elevation=w.u(-0.15, 0.6), azimuth=w.rng.normal(0, 0.35))


def _herd(w: Scene) -> None:
    """Several animals of a kind on a meadow."""
    outside(w)
    name, flock = str(w.rng.choice(list(beasts.BREEDS))), w.chance(0.25)
    body = 0.35 if flock else beasts.BREEDS[name].height
    near = (w.u(-0.3, 0.3), body * w.lu(2.2, 4.5))
    for i in range(w.n(2, 7)):
        a, d = near if i == 0 else (w.u(-0.6, 0.6), body * w.lu(2.5, 14))
        with w.at(d * np.sin(a), d * np.cos(a), 0, yaw=w.u(0, 6.28)):
            birds.bird(w, w.u(0.25, 0.5)) if flock else beasts.quadruped(w, name)
    grass(w, 5 * max(body, 0.4), w.u(0.05, 0.2))
    a, d = near
    target = np.array([d * np.sin(a), d * np.cos(a), body * w.u(0.3, 1.0)])
    eye = np.array([0, 0, body * w.u(0.5, 1.6)])
    w.look(eye, target + w.rng.normal(0, 0.1 * d, 3), fov=(40, 75))


def macro(w: Scene) -> None:
    """Blossoms, mushrooms, hollow vessels or bundles of sticks from very near."""
    k = w.rng.random()
    if k < 0.36:
        _flower(w)
    elif k < 0.44:
        _mushrooms(w)
    else:
        _table(w, "vessel" if k < 0.78 else "sticks" if k < 0.9 else "bundle")


def _flower(w: Scene) -> None:
    """One blossom that fills much of the picture, others behind."""
    surroundings(w)
    r, z = w.lu(0.015, 0.07), w.u(0.12, 1.2)
    lean = w.u(0.0, 1.3)
    with w.at(0, 0, z, turn=ms.rotation(w.rng.normal(0, 0.6), 0, lean)):
        closeups.blossom(w, r)
        closeups.stem(w, z * 1.1, r * w.u(0.04, 0.1))
    for _ in range(w.n(0, 9)):
        d, a, s = w.lu(0.05, 1.5), w.u(-0.9, 0.9), r * w.u(0.5, 1.3)
        tall = z * w.u(0.6, 1.15)
        with w.at(d * np.sin(a), d * np.cos(a), tall, turn=ms.rotation(w.u(0, 6), 0, w.u(0, 1.2))):
            closeups.blossom(w, s)
            closeups.stem(w, tall, s * 0.07)
    if w.chance(0.6):
        grass(w, 0.9, z * w.u(0.4, 1.1), hollow=0.03)
    at = np.array([0, 0, z])
    fill_light(w, at, 0.3)
    aim(w, at, r * w.lu(2.6, 9), elevation=w.u(-0.1, 1.45), azimuth=w.rng.normal(0, 0.4))


def _mushrooms(w: Scene) -> None:
    """Mushrooms in moss, leaves and grass."""
    outside(w)
    h = w.lu(0.04, 0.16)
    for i in range(w.n(1, 7)):
        x, y = (0.0, 0.0) if i == 0 else (w.rng.normal(0, 1.2) * h, w.u(-0.5, 3) * h)
        with w.at(x, y, 0):
            closeups.mushroom(w, h * (1 if i == 0 else w.u(0.4, 1.2)))
    n = w.n(40, 200)
    base = np.stack([*w.rng.normal(0, 5 * h, (2, n)), np.full(n, 0.003)], 1)
    flat = w.rng.normal(0, 1, (n, 3)) * [1, 1, 0.15]
    mesh = forms.petals(base, flat, w.rng.uniform(0.02, 0.06, n), 0.014, cup=0.3, curl=0.1)
    leaf = w.paint(
        "cloud", "stains", scale=(4, 12), colours=[np.array([0.3, 0.16, 0.05], np.float32)]
    )
    w.add(mesh, leaf if w.chance(0.6) else w.foliage(), of="plant")
    if w.chance(0.6):
        grass(w, 10 * h, h * w.u(0.3, 1.0), hollow=h * 0.5)
    aim(
        w,
        np.array([0, 0, h * 0.6]),
        h * w.lu(1.5, 6),
        elevation=w.u(-0.1, 0.8),
        azimuth=w.rng.normal(0, 0.5),
    )


def _table(w: Scene, what: str) -> None:
    """Vessels or sticks on a table or the ground, seen from above or from the side."""
    grown = surroundings(w)
    level = 0.0 if grown and w.chance(0.5) else w.u(0.4, 0.9)
    if level:
        a, b = w.u(0.5, 1.4), w.u(0.45, 0.8)
        with w.at(0, 0, 0):
            th.table(w, a, b, level)
        with w.at(0, 0, level + 0.001):
            if w.chance(0.3):
                w.add(ms.sheet([-0.3, 0.3], [-0.2, 0.2], 0.001), w.cloth(), of="furniture")
    wide, tall = 0.06, 0.2
    with w.at(0, 0, level + 0.002, yaw=w.u(0, 6.28)):
        if what == "bundle" and w.chance(0.5):
            closeups.bundle(w)
        elif what == "bundle":
            wide, tall = 0.1, 0.06
            with w.at(-0.08, 0, 0.03, turn=ms.rotation(w.u(0, 6), np.pi / 2 - 0.05)):
                closeups.bundle(w)
        elif what == "sticks":
            wide, tall = closeups.vessel(w, "sticks")
            tall *= 1.5
        else:
            wide, tall = closeups.vessel(w)
    for _ in range(w.n(0, 6)):
        d, t = wide + w.u(0.1, 0.4), w.u(0, 6.28)
        with w.at(d * np.cos(t), d * np.sin(t) + 0.1, level + 0.002, yaw=w.u(0, 6.28)):
            closeups.vessel(w) if w.chance(0.5) else th.small_thing(w)
    above = what == "vessel" and w.chance(0.75)
    at = np.array([0, 0, level + tall * (w.u(0.6, 1.0) if above else w.u(0.3, 0.7))])
    fill_light(w, at, 0.5)
    aim(
        w,
        at,
        max(wide, tall * 0.5) * w.lu(2.6, 7),
        elevation=w.u(0.35, 1.57) if above else w.u(0.0, 1.5),
        azimuth=w.rng.normal(0, 0.5),
        off=0.09,
    )


def stream(w: Scene) -> None:
    """Water between rocks of many sizes, seen from standing height and lower."""
    sky(w)
    if w.chance(0.5):  # under trees
        w.env.ambient *= 0.8
    r = w.rng
    half, slope, sway = w.lu(0.5, 3.0), w.u(0.0, 0.09), w.u(0, 1.5)
    p1, p2, rough = w.u(0, 6), w.u(0, 6), w.u(0.05, 0.35)
    rise = w.u(0.15, 0.7)

    def middle(y: float) -> float:
        return float(sway * (np.sin(y * 0.25 + p1) - np.sin(p1)) + 0.3 * np.sin(y * 0.9 + p2))

    def bank(gap: float) -> float:
        """Height above the water, ``gap`` metres from its edge."""
        return float(rise * 6 * (1 - np.exp(-gap / 6))) if gap > 0 else -0.1

    t, s = np.linspace(-1, 1, 90), np.linspace(-0.2, 1, 90)
    x, y = np.sign(t) * t**2 * 40, np.sign(s) * s**2 * 70
    gx, gy = np.meshgrid(x, y)
    level = np.maximum(gy, -2) * slope
    off = np.abs(gx - np.array([middle(v) for v in y])[:, None]) - half
    land = np.where(off > 0, rise * 6 * (1 - np.exp(-off / 6)), 0.4 * np.clip(off / half, -1, 0))
    ripple = np.zeros_like(gx)
    for _ in range(6):
        k, m = r.normal(0, 1.2, 2), r.normal(0, 5, 2)
        wave = np.sin(gx * k[0] + gy * k[1] + w.u(0, 6)) * np.clip(off + 0.6, 0, 1)
        land = land + rough * 0.4 * wave
        ripple += w.u(0.002, 0.008) * np.sin(gx * m[0] + gy * m[1] + w.u(0, 6))
    w.add(ms.sheet(x, y, level + land), soil(w, (0.3, 2)), of="ground")
    sheet = ms.sheet(x, y, level + ripple - 0.05)
    wet = off.ravel() < 0.5 * half + 1.5
    w.add(forms.keep(sheet, wet[sheet.faces].all(1)), _water(w), of="ground")
    mats = [_rock(w) for _ in range(w.n(1, 4))]
    for _ in range(w.n(35, 110)):
        d = w.lu(0.7, 30)
        among = w.chance(0.75)
        side = middle(d) + r.normal(0, 0.9) * (half + 0.2) if among else w.u(-0.7, 0.7) * d
        size = w.lu(0.05, 0.8) * (1 if d > 2 else 0.45)
        away = float(np.hypot(side, d))
        if away < size * 1.8 + 0.3:
            continue
        z = d * slope + bank(abs(side - middle(d)) - half)
        shape = size * r.uniform(0.55, 1.0, 3) * [1, 1, w.u(0.5, 1.0)]
        with w.at(side, d, z + shape[2] * w.u(-0.2, 0.4), yaw=w.u(0, 6.28)):
            rows = int(np.clip(34 * size / away, 7, 18))
            w.add(forms.stone(r, shape, rows=rows), mats[w.n(0, len(mats) - 1)])
    for _ in range(w.n(4, 28)):
        d, gap = w.lu(1.5, 40), w.lu(0.4, 8)
        side = middle(d) + (half + gap) * (1 if w.chance(0.5) else -1)
        with w.at(side, d, d * slope + bank(gap) - 0.05, yaw=w.u(0, 6.28)):
            if w.chance(0.4) and d > 4:
                out.tree(w, w.u(3, 12), detail=130)
            else:
                living.plant(w, w.u(0.2, 1.0), pot=False, count=w.n(15, 60))
    z = w.lu(0.25, 1.8)
    eye = [w.u(-0.4, 0.4) * half, 0, z]
    w.look(eye, [middle(6.0) * 0.7 + w.u(-1, 1), 5, z - w.u(0.3, 2.6)], fov=(42, 80))


def _water(w: Scene) -> int:
    """The surface of running water: dark, green or brown, with foam."""
    tone = np.array([w.u(0.03, 0.15), w.u(0.07, 0.2), w.u(0.06, 0.22)], np.float32)
    foam = np.array([0.7, 0.75, 0.75], np.float32) * w.u(0.5, 1.1)
    colours = [tone, tone * 1.6 if w.chance(0.5) else foam, foam]
    return w.paint("stains", "cloud", "marble", "scratches", scale=(0.3, 1.5), colours=colours,
                   specular=0.8, shininess=60.0, mirror=w.u(0.15, 0.6))  # fmt: skip


def _rock(w: Scene) -> int:
    """The surface of rocks: grey, brown, red or mossy."""
    c = np.array([1, w.u(0.8, 1.0), w.u(0.65, 1.0)], np.float32) * w.lu(0.05, 0.6)
    moss = np.array([0.12, 0.2, 0.04], np.float32) if w.chance(0.35) else c * w.u(0.3, 0.7)
    return w.paint("stains", "cells", "cloud", "marble", "speckle", scale=(0.6, 4),
                   colours=[c, moss, c * w.u(0.4, 1.4)], gloss=0.15, dirt=0.4)  # fmt: skip


BUILDERS = {"heads": heads, "animals": animals, "macro": macro, "stream": stream}
