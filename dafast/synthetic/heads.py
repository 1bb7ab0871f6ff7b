"""Human heads with relief, for views from near. Each faces -y, its centre at the origin."""

from __future__ import annotations

import numpy as np

from dafast.synthetic import forms
from dafast.synthetic import meshes as ms
from dafast.synthetic.meshes import F32, TriangleMesh
from dafast.synthetic.scene import Scene, of_class

_HALF = np.array([0.075, 0.095, 0.118], np.float32)  # half axes of the skull, metres


def _relief(w: Scene, x: F32, z: F32) -> F32:
    """How far a face stands out towards -y, in cm, at x, z in cm."""
    b = forms.bump
    side = np.abs(x)
    k = w.rng.uniform(0.6, 1.3, 8)
    out = 0.4 * k[0] * b(side, z, (2.6, 2.7), 1.7, 0.7)  # brow
    out -= 1.25 * k[1] * b(side, z, (3.1, 1.3), 1.35, 0.9)  # eye sockets
    out += 0.5 * k[2] * b(side, z, (4.6, -1.2), 1.5, 1.3)  # cheekbones
    out += 0.55 * k[3] * b(side, z, (0, -4.7), 2.0, 0.9)  # mouth
    out += 0.35 * k[4] * (b(side, z, (0.6, -4.2), 0.9, 0.28) + b(side, z, (0, -5.3), 1.1, 0.33))
    out -= 0.45 * b(side, z, (0, -4.75), 2.1, 0.16)
    out -= 0.4 * b(side, z, (0, -6.2), 1.6, 0.4)
    out += 0.9 * k[5] * b(side, z, (0, -8.2), 1.6, 1.2)  # chin
    low, wide = w.u(-2.9, -2.2), w.u(0.55, 0.85)
    t = np.clip((2.3 - z) / (2.3 - low), 0, 1)
    cut = 1 / (1 + np.exp(np.clip(-(z - low + 0.45) / 0.14, -30, 30)))
    out += (
        (0.35 + (1.3 + 0.7 * k[6]) * t**1.3)
        * cut
        * np.exp(-((x / (wide + 0.4 * t)) ** 2))
        * (z < 6)
        * np.clip((4.0 - z) / 2, 0, 1)
    )
    return out + 0.55 * k[7] * b(side, z, (1.15 + wide * 0.3, low + 0.25), 0.5, 0.45)  # nostrils


def _face(w: Scene) -> TriangleMesh:
    """A bald head without ears, eyes and neck, in metres."""
    ball = forms.ball(66, 60, front=1.45)
    u = ball.vertices
    v = u * _HALF * 100 * w.rng.uniform(0.93, 1.07, 3)
    x, y, z = v.T
    front = np.clip(-u[:, 1] * 1.6 - 0.1, 0, 1)
    front = front * front * (3 - 2 * front)
    jaw = np.clip((-z - 2) / 10, 0, 1)
    x = x * (1 - w.u(0.05, 0.3) * jaw**1.5)
    broad = (
        1
        + 0.13 * forms.bump(z, z, (7.5, 7.5), 3.5, 1e3)
        + 0.12 * forms.bump(z, z, (-7, -7), 3.2, 1e3)
    )
    x, y = x * broad, y * broad
    y = np.where(y > 0, y * (1 - 0.55 * np.clip((-z - 1) / 8, 0, 1)), y * (1 - 0.12 * jaw))
    y = y + 1.0 * np.clip((z - 3) / 9, 0, 1) * front  # the forehead leans back
    y = y - front * _relief(w, x, z)
    v = np.stack([x, y, z], 1) / 100
    uv = np.stack([ball.uv[:, 0] * 0.08, v[:, 2]], 1)
    return TriangleMesh(v.astype(np.float32), ball.faces, uv.astype(np.float32))


def _eye(w: Scene, x: float, y: float, z: float, skin: int, gaze: tuple[float, float]) -> None:
    """An eyeball with lids, its front near y."""
    r = 0.0122
    white = w.plain(np.array([0.75, 0.72, 0.68], np.float32), gloss=1.0)
    tone = np.array([[0.02, 0.01, 0.006], [0.12, 0.06, 0.02], [0.1, 0.2, 0.3], [0.1, 0.2, 0.1]])
    iris = w.plain((tone[w.n(0, 3)] * w.u(0.7, 1.6)).astype(np.float32), gloss=1.0)
    pupil = w.plain(np.full(3, 0.01, np.float32), gloss=1.0)
    ball = forms.ball(24, 24)
    up = forms.centres(ball)[:, 2]
    kinds = np.where(up > 0.965, pupil, np.where(up > 0.87, iris, white))
    turn = ms.rotation(gaze[0]) @ ms.rotation(0, 0, np.pi / 2 + gaze[1])
    with w.at(x, y + r, z):
        w.add(ball.transform(turn * r), kinds)
        shut = w.chance(0.06)
        top, low = (-0.15 if shut else w.u(0.25, 0.6)), (0.15 if shut else w.u(0.5, 0.75))
        lid = ms.lathe(
            [(r * 1.1 * np.cos(a), r * 1.1 * np.sin(a)) for a in np.linspace(top, 1.5, 8)]
        )
        w.add(lid, skin)
        lid = ms.lathe(
            [(r * 1.08 * np.cos(a), -r * 1.08 * np.sin(a)) for a in np.linspace(low, 1.5, 6)]
        )
        w.add(lid, skin)


def _features(w: Scene, face: TriangleMesh, skin: int, hair: int) -> None:
    """Eyes, brows and ears."""
    v = face.vertices
    gaze = (w.rng.normal(0, 0.2), w.rng.normal(0, 0.12))
    scale = w.u(0.9, 1.1)
    for s in (-1, 1):
        near = np.argmin(np.hypot(v[:, 0] - s * 0.031, v[:, 2] - 0.013) + (v[:, 1] > 0))
        _eye(w, s * 0.031, float(v[near, 1]) - 0.0035 * scale, 0.013, skin, gaze)
        arch = [(s * 0.014, 0.025), (s * 0.03, 0.031), (s * 0.047, 0.024)]
        line = []
        for x, z in forms.smooth(arch, 7):
            k = np.argmin(np.hypot(v[:, 0] - x, v[:, 2] - z) + (v[:, 1] > 0))
            line.append((x, v[k, 1] + 0.0005, z))
        w.add(
            ms.tube(line, np.array([0.5, 1, 1, 1, 0.9, 0.6, 0.3]) * w.u(0.0018, 0.0045), sides=6),
            hair,
        )
        wide = float(np.abs(v[np.abs(v[:, 2]) < 0.01, 0]).max())
        out = w.u(0.15, 0.6)
        with w.at(s * (wide + 0.001), 0.012, -0.002, turn=ms.rotation(s * -out, 0, w.u(0.0, 0.25))):
            rim = ms.torus(0.019, 0.0045, segments=20, sides=8)
            w.add(rim.transform(np.diag([1.0, 0.85, 1.35]) @ ms.rotation(0, np.pi / 2)), skin)
            w.add(ms.superquadric(0.005, 0.015, 0.022, 1, 1, segments=14), skin)
            w.add(ms.sphere(0.008, segments=10).move(0, -0.006, -0.024), skin)


def _strands(
    w: Scene, face: TriangleMesh, hair: int, count: int, length: float, rise: float
) -> None:
    """Locks on the scalp."""
    c = forms.centres(face)
    line = w.u(0.055, 0.075)
    where = c[:, 2] > np.where(c[:, 1] < -0.02, line, np.where(c[:, 1] < 0.03, 0.02, -0.05))
    lie = (w.rng.normal(0, 0.5), w.u(-0.6, 1.2), -0.6)
    mesh, _ = forms.fur(
        face, w.rng, count, length, lie=lie, rise=rise, width=w.u(0.04, 0.12), where=where
    )
    w.add(mesh, hair)


def _cap(w: Scene, face: TriangleMesh, thick: float, *, fringe: float, nape: float) -> TriangleMesh:
    """The part of a head shell that hair or a cloth covers, standing off by ``thick`` metres."""
    v = face.vertices
    grow = 1 + thick / np.linalg.norm(v, axis=1, keepdims=True)
    shell = TriangleMesh((v * grow).astype(np.float32), face.faces, face.uv)
    c = forms.centres(face)
    wave = 0.006 * np.sin(c[:, 0] * w.u(60, 160) + w.u(0, 6))
    t = np.clip((c[:, 1] + 0.07) / 0.08, 0, 1)
    line = fringe * (1 - t) + nape * np.clip((c[:, 1] - 0.02) / 0.05, 0, 1)
    return forms.keep(shell, c[:, 2] > line + wave)


def _drape(w: Scene, top: float, low: float, spread: float, mat: int) -> None:
    """Long hair or a cloth hanging at the sides and the back down to height ``low``."""
    a = np.linspace(w.u(0.75, 1.15), 2 * np.pi - w.u(0.75, 1.15), 40)
    t = np.linspace(0, 1, 14)[:, None]
    z = top + (low - top) * t
    fold = 1 + 0.05 * np.sin(a * w.n(9, 30) + 3 * t) * t
    rx = (0.083 + spread * t) * fold
    ry = (0.098 + 0.5 * spread * t) * fold
    v = np.stack(np.broadcast_arrays(rx * np.sin(a), -ry * np.cos(a) + 0.012, z), -1)
    uv = np.stack(np.broadcast_arrays(a * 0.1, z), -1)
    mesh = TriangleMesh(
        v.reshape(-1, 3).astype(np.float32),
        ms.grid_faces(14, 40),
        uv.reshape(-1, 2).astype(np.float32),
    )
    w.add(mesh.displace(w.rng, 0.012, 5), mat)


def _hair_colour(w: Scene) -> int:
    tone = np.array([1, w.u(0.55, 0.95), w.u(0.3, 0.95)], np.float32) * w.lu(0.008, 0.5)
    colours = [tone, tone * w.u(0.3, 0.8), tone * w.u(0.6, 1.3)]
    return w.paint("scratches", "grass", "wood", scale=(4, 12), colours=colours, gloss=0.4)


def _hair(w: Scene, face: TriangleMesh, hair: int) -> None:
    """Short, long, curly, tied, cropped or no hair."""
    kind = w.rng.random()
    if kind < 0.1:  # bald, perhaps stubble
        if w.chance(0.6):
            w.add(_cap(w, face, 0.0012, fringe=w.u(0.06, 0.11), nape=-0.05), hair)
        return
    thick = w.u(0.004, 0.02)
    cap = _cap(w, face, thick, fringe=w.u(0.02, 0.075), nape=w.u(-0.09, -0.03))
    w.add(cap.displace(w.rng, thick * 0.5, w.u(6, 16)), hair)
    if kind < 0.4:
        _strands(w, face, hair, w.n(150, 500), w.u(0.02, 0.06), w.u(0.25, 1.2))
    elif kind < 0.7:
        _drape(w, w.u(0.03, 0.06), -w.u(0.1, 0.36), w.u(0.0, 0.06), hair)
        _strands(w, face, hair, w.n(80, 300), w.u(0.04, 0.1), w.u(0.15, 0.4))
    elif kind < 0.85:  # curls
        c = forms.centres(cap)
        n = w.n(60, 160)
        spots = c[w.rng.integers(0, len(c), n)] * w.u(1.0, 1.1)
        radii = w.rng.uniform(0.009, 0.022, n)
        balls = [ms.sphere(k, segments=8).move(*p) for k, p in zip(radii, spots, strict=True)]
        w.add(ms.merge(balls), hair)
    else:  # a knot or a tail
        r = w.u(0.03, 0.05)
        knot = ms.sphere(r, segments=16).displace(w.rng, 0.006, 12)
        w.add(knot.move(0, 0.09, w.u(0.03, 0.11)), hair)


def _beard(w: Scene, face: TriangleMesh, hair: int) -> None:
    """A beard or a moustache."""
    c = forms.centres(face)
    lips = (np.abs(c[:, 0]) < 0.027) & (np.abs(c[:, 2] + 0.048) < 0.009)
    area = (c[:, 1] < 0.0) & (c[:, 2] < -0.028 - 0.02 * (np.abs(c[:, 0]) < 0.012)) & ~lips
    area &= np.abs(c[:, 0]) > (0.0 if w.chance(0.7) else 0.2)
    area |= (np.abs(c[:, 0]) < 0.03) & (np.abs(c[:, 2] + 0.037) < 0.004) & (c[:, 1] < -0.03)
    long = w.lu(0.003, 0.035)
    shell = TriangleMesh(face.vertices * np.float32(1 + 0.2 * long), face.faces, face.uv)
    w.add(forms.keep(shell, area), hair)
    mesh, _ = forms.fur(face, w.rng, w.n(200, 500), long + 0.004, rise=0.4, where=area)
    w.add(mesh, hair)


def _wear(w: Scene, face: TriangleMesh) -> None:
    """Sometimes glasses and sometimes something on the head."""
    if w.chance(0.25):
        m = w.metal() if w.chance(0.4) else w.plain(gloss=0.7)
        r = w.u(0.019, 0.027)
        v = face.vertices
        y = float(v[np.argmin(np.hypot(v[:, 0], v[:, 2] - 0.014) + (v[:, 1] > 0)), 1]) - 0.005
        turn = ms.rotation(0, 0, np.pi / 2)
        dark = w.chance(0.3)
        for s in (-1, 1):
            at = (s * 0.032, y, 0.012)
            ring = ms.torus(r, w.u(0.001, 0.0025), segments=24, sides=6)
            w.add(ring.transform(turn, at), m)
            if dark:
                lens = w.plain(np.full(3, 0.015, np.float32), gloss=1, mirror=w.u(0.1, 0.5))
                w.add(ms.cylinder(r, 0.001).transform(turn, at), lens)
            w.add(
                ms.tube([(s * (0.032 + r), y, 0.015), (s * 0.079, 0.01, 0.012)], 0.0015, sides=6), m
            )
        w.add(ms.tube([(-0.032 + r, y, 0.016), (0.032 - r, y, 0.016)], 0.0015, sides=6), m)
    k = w.rng.random()
    cloth = w.cloth() if k < 0.22 else 0
    line = w.u(0.035, 0.06)
    if k < 0.08:  # a knitted cap
        w.add(_cap(w, face, 0.02, fringe=line, nape=-0.02).displace(w.rng, 0.006, 5), cloth)
        w.add(ms.torus(0.09, 0.014).transform(np.diag([0.93, 1.15, 1.3]), (0, 0.006, line)), cloth)
    elif k < 0.15:  # a hat or a cap with a brim
        h, b = w.u(0.07, 0.13), w.u(0.11, 0.2)
        crown = ms.lathe([(0.095, 0), (0.09, h * 0.8), (0.07, h), (0, h * w.u(0.9, 1.05))], 28)
        brim = ms.lathe([(0.09, 0), (b, w.u(-0.02, 0.02)), (b, 0.004), (0.09, 0.006)], 28)
        if w.chance(0.5):
            c = forms.centres(brim)
            brim = forms.keep(brim, c[:, 1] < -0.02)
        with w.at(0, 0.008, line + 0.012, turn=ms.rotation(0, 0, w.u(-0.15, 0.1))):
            w.add(crown.transform(np.diag([0.92, 1.12, 1.0])), cloth)
            w.add(brim.transform(np.diag([0.95, 1.15, 1.0])), cloth)
    elif k < 0.22:  # a scarf over the head
        w.add(_cap(w, face, 0.018, fringe=w.u(0.05, 0.08), nape=-0.11), cloth)
        _drape(w, 0.05, -0.2, 0.05, cloth)


def _shoulders(w: Scene, skin: int) -> None:
    """Neck, shoulders, chest and upper arms down to 0.9 m below the head's centre."""
    fat, top = w.u(0.85, 1.25), w.cloth()
    w.add(
        ms.tube(
            forms.smooth([(0, 0.012, -0.07), (0, 0.02, -0.13), (0, 0.025, -0.2)], 6),
            np.array([1.0, 0.93, 0.92, 0.95, 1.05, 1.3]) * 0.054 * fat**0.5,
            sides=20,
        ),
        skin,
    )
    z0 = -0.135 - w.u(0, 0.025)
    rows = [
        (0.062, 0.062, 0.0), (0.085, 0.07, -0.012), (0.15, 0.08, -0.045), (0.2, 0.095, -0.085),
        (0.215, 0.11, -0.14), (0.2, 0.125, -0.25), (0.185, 0.12, -0.42), (0.18, 0.125, -0.75),
    ]  # fmt: skip
    s = forms.smooth([(x * fat, y * fat, z) for x, y, z in rows], 30)
    a = np.linspace(0, 2 * np.pi, 41) + np.pi / 2
    v = np.stack(
        np.broadcast_arrays(s[:, :1] * np.cos(a), s[:, 1:2] * np.sin(a) + 0.03, s[:, 2:] + z0), -1
    )
    uv = np.stack(np.broadcast_arrays(a * 0.17, s[:, 2:]), -1)
    chest = TriangleMesh(
        v.reshape(-1, 3).astype(np.float32),
        ms.grid_faces(30, 41),
        uv.reshape(-1, 2).astype(np.float32),
    )
    low = w.chance(0.25)  # an open neck
    kinds = np.where(forms.centres(chest)[:, 2] > z0 - 0.05, skin, top) if low else top
    w.add(chest.displace(w.rng, 0.006, 5), kinds)
    if w.chance(0.55):
        r = w.u(0.006, 0.022)
        ring = ms.torus(0.066 * fat**0.5 + r * 0.5, r, segments=28)
        w.add(ring.transform(ms.rotation(0, 0, 0.25), (0, 0.02, z0 + 0.004)),
              top if w.chance(0.6) else w.cloth())  # fmt: skip
    if w.chance(0.3):  # a placket or lapels
        m = w.cloth()
        for s_ in (-1, 1):
            strip = [
                (s_ * 0.05, -0.05, z0),
                (s_ * 0.035, -0.1 * fat, z0 - 0.14),
                (0, -0.105 * fat, z0 - 0.4),
            ]
            w.add(ms.tube(forms.smooth(strip, 12), w.u(0.008, 0.02), sides=6), m)
    for side in (-1, 1):
        shoulder = (side * 0.19 * fat, 0.03, z0 - 0.11)
        elbow = (side * (0.22 * fat + w.u(0, 0.12)), w.u(-0.1, 0.08), z0 - 0.4)
        hand = (elbow[0] * w.u(0.3, 1), w.u(-0.3, 0), z0 - w.u(0.3, 0.66))
        w.add(ms.capsule(shoulder, elbow, 0.062 * fat, 0.05), top)
        w.add(ms.capsule(elbow, hand, 0.047, 0.036), top if w.chance(0.6) else skin)
        w.add(ms.superquadric(0.04, 0.03, 0.055, 1, 1, segments=12).move(*hand), skin)


@of_class("person")
def bust(w: Scene) -> None:
    """A person from the head, whose centre is the origin, down to the hips, facing -y."""
    tone = np.array([1, w.u(0.5, 0.8), w.u(0.3, 0.68)], np.float32) * w.lu(0.09, 0.85)
    skin = w.plain(tone, gloss=0.35)
    lips = w.plain(
        tone * np.array([w.u(0.7, 1.0), w.u(0.4, 0.7), w.u(0.45, 0.8)], np.float32), gloss=0.5
    )
    hair = _hair_colour(w)
    face = _face(w)
    scale = w.u(0.88, 1.06)
    turn = ms.rotation(w.rng.normal(0, 0.35), w.rng.normal(0, 0.1), w.rng.normal(0, 0.13))
    with w.at(scale=scale):
        _shoulders(w, skin)
        with w.at(turn=turn):
            c = forms.centres(face) * 100
            mouth = forms.bump(np.abs(c[:, 0]), c[:, 2], (0, -4.75), 1.6, 0.62) > 0.5
            w.add(face, np.where(mouth & (c[:, 1] < -5), lips, skin))
            _features(w, face, skin, hair)
            _hair(w, face, hair)
            if w.chance(0.2):
                _beard(w, face, hair)
            _wear(w, face)
