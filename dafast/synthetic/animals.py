"""Quadrupeds that stand, sit or lie on z = 0 and face -y."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dafast.synthetic import forms
from dafast.synthetic import meshes as ms
from dafast.synthetic.meshes import F32, TriangleMesh
from dafast.synthetic.scene import Scene


@dataclass(frozen=True)
class Breed:
    """Proportions of a quadruped, in units of its height at the shoulder, and its looks.

    Attributes:
        height: at the shoulder, metres.
        length, girth: of the trunk; half its height.
        leg: thickness of a leg.
        neck: length; ``carry`` is its angle above the horizontal in radians.
        head: half the width of the skull.
        muzzle, snout: length and half width of the muzzle, in units of ``head``.
        ear: "point", "round", "flop", "long" or "side", and its length in units of ``head``.
        tail: length and thickness.
        fur: length of the tufts; 0 is smooth.
        coats: the coats that it may have.
    """

    height: float
    length: float
    girth: float
    leg: float
    neck: float
    carry: float
    head: float
    muzzle: float
    snout: float
    ear: str
    ear_size: float
    tail: float
    tail_width: float
    fur: float
    coats: tuple[str, ...]
    horns: float = 0.0
    slit: bool = False


_ALL = ("plain", "belly", "patches", "socks", "cloud")
BREEDS = {
    "cat": Breed(0.25, 1.3, 0.26, 0.085, 0.3, 0.7, 0.19, 0.42, 0.5, "point", 1.0, 1.0, 0.05, 0.08,
                 (*_ALL, "tabby", "tabby"), slit=True),
    "dog": Breed(0.5, 1.05, 0.24, 0.075, 0.38, 0.8, 0.15, 1.25, 0.52, "point", 0.95, 0.6, 0.05,
                 0.07, _ALL),
    "hound": Breed(0.45, 1.1, 0.24, 0.075, 0.36, 0.75, 0.15, 1.3, 0.58, "flop", 1.25, 0.6, 0.045,
                   0.05, _ALL),
    "horse": Breed(1.5, 1.0, 0.2, 0.055, 0.55, 0.85, 0.088, 2.0, 0.62, "point", 0.85, 0.5, 0.05,
                   0.0, ("plain", "socks", "patches", "cloud")),
    "cow": Breed(1.35, 1.15, 0.26, 0.065, 0.36, 0.35, 0.105, 1.9, 0.74, "side", 0.95, 0.55, 0.02,
                 0.0, ("plain", "patches", "patches", "socks"), horns=0.7),
    "sheep": Breed(0.7, 1.1, 0.32, 0.06, 0.26, 0.7, 0.12, 1.4, 0.6, "side", 0.9, 0.2, 0.06, 0.1,
                   ("plain", "socks"), horns=0.4),
    "bear": Breed(1.0, 1.2, 0.32, 0.12, 0.24, 0.45, 0.17, 1.0, 0.45, "round", 0.5, 0.05, 0.05,
                  0.07, ("plain", "belly", "cloud")),
    "rabbit": Breed(0.2, 1.1, 0.36, 0.08, 0.16, 0.9, 0.24, 0.6, 0.5, "long", 2.0, 0.15, 0.12,
                    0.1, ("plain", "belly", "patches")),
    "fox": Breed(0.4, 1.2, 0.2, 0.06, 0.34, 0.6, 0.14, 1.5, 0.32, "point", 1.1, 0.9, 0.11, 0.1,
                 ("belly", "socks")),
}  # fmt: skip


def _vary(w: Scene, breed: Breed) -> Breed:
    """The breed with every proportion changed by up to an eighth."""
    values: dict[str, Any] = {
        k: v * w.u(0.88, 1.13) if isinstance(v, float) else v for k, v in vars(breed).items()
    }
    if not w.chance(0.5):
        values["horns"] = 0.0
    return replace(breed, **values)


def _hide(w: Scene) -> F32:
    """A colour of fur: brown, red, grey, black or white."""
    tone = np.array([1, w.u(0.55, 0.95), w.u(0.25, 0.9)], np.float32)
    return (tone * w.lu(0.02, 0.75)).astype(np.float32)


class Coat:
    """Materials of a coat, and which of them each face of a mesh has."""

    def __init__(self, w: Scene, kind: str, size: float) -> None:
        first, second = _hide(w), _hide(w)
        if kind in ("belly", "socks", "patches") and w.chance(0.6):
            second = np.full(3, w.u(0.5, 0.85), np.float32)
        if kind == "tabby":
            second = first * w.u(0.15, 0.4)
        names = ("grass", "scratches", "cloud", "speckle", "stains")
        scale = (1.5 / size, 6 / size)
        self.kind, self.size = kind, size
        self.materials = [
            w.paint(
                *names,
                scale=scale,
                colours=[c, c * w.u(0.4, 0.9), c * w.u(0.6, 1.2)],
                gloss=0.05,
                dirt=0.2,
            )
            for c in (first, second)
        ]
        self.wave = w.rng.normal(size=(3, 6)) * 4 / size
        self.phase = w.rng.uniform(0, 6.28, 6)
        self.share = w.u(-0.5, 0.8)
        self.dense = w.u(14, 30)

    def of(self, mesh: TriangleMesh) -> NDArray[np.integer]:
        """Material of each face (F,), from where it is."""
        c = forms.centres(mesh)
        noise = np.sin(c @ self.wave + self.phase).sum(1)
        if self.kind == "tabby":
            line = np.sin(self.dense * (c[:, 1] + 0.4 * np.abs(c[:, 0])) / self.size + 0.7 * noise)
            second = line > 0.35
        elif self.kind == "patches":
            second = noise > self.share
        elif self.kind == "belly":
            second = c[:, 2] < self.size * (0.45 + 0.04 * noise)
        elif self.kind == "socks":
            second = c[:, 2] < self.size * (0.22 + 0.03 * noise)
        else:
            second = noise > (2.5 if self.kind == "cloud" else 9)
        return np.array(self.materials)[second.astype(int)]


def _eyes(w: Scene, b: Breed, skull: TriangleMesh, h: float) -> None:
    """Two eyes on the skull: in front for a cat, at the sides for grazers."""
    ahead = b.muzzle < 1.6
    iris = np.array([[0.35, 0.25, 0.04], [0.15, 0.3, 0.08], [0.08, 0.04, 0.02], [0.2, 0.35, 0.4]])
    tone = iris[w.n(0, 3) if b.slit else 2] * w.u(0.6, 1.8)
    mats = [w.plain(c.astype(np.float32), gloss=1.0)
            for c in (tone, np.full(3, 0.008))]  # fmt: skip
    r = h * (0.25 if b.slit else 0.17) * w.u(0.9, 1.15)
    ball = forms.ball(24, 24)
    v = forms.centres(ball)
    narrow = w.u(0.15, 0.45) if b.slit else w.u(0.35, 0.6)
    pupil = (v[:, 1] < 0) & ((v[:, 0] / narrow) ** 2 + (v[:, 2] / 0.62) ** 2 < 1)
    kinds = np.array(mats)[np.where(pupil, 1, 0)]
    dark = w.plain(np.full(3, 0.02, np.float32))
    for s in (-1, 1):
        d = np.array([s * (0.46 if ahead else 0.85), -0.8 if ahead else -0.35, 0.28])
        d = d / np.linalg.norm(d)
        far = skull.vertices @ d
        off = np.linalg.norm(skull.vertices - far[:, None] * d, axis=1) + (far < 0)
        k = int(np.argmin(off))
        p = skull.vertices[k] - d * r * 0.55
        turn = ms.rotation(np.arctan2(d[0], -d[1]) * 0.75)
        w.add(ball.transform(turn * r, p), kinds)
        rim = ms.torus(r * 0.93, r * 0.13, segments=18, sides=6).transform(
            ms.rotation(0, 0, np.pi / 2)
        )
        w.add(rim.transform(turn, p - turn @ np.array([0, r * 0.3, 0])), dark)


def _ears(w: Scene, b: Breed, h: float, coat: Coat, inner: int) -> None:
    """Two ears."""
    ln, mat = b.ear_size * h, coat.materials[0]
    t = np.linspace(0, 1, 8)[:, None]
    a = np.linspace(-1.25, 1.25, 9)[None]
    wide = h * {"point": 0.42, "round": 0.4, "flop": 0.36, "long": 0.3, "side": 0.34}[b.ear]
    outline = np.sqrt(np.maximum(1 - t**1.6, 0.0)) if b.ear == "point" else np.sqrt(
        np.maximum(1 - (1.9 * t - 0.9) ** 2 * np.where(t > 0.47, 1, 0.35), 0.0))  # fmt: skip
    shape = np.stack(
        np.broadcast_arrays(
            wide * outline * np.sin(a), wide * 0.8 * outline * np.cos(a) * 0.6, ln * t
        ),
        -1,
    )
    uv = np.stack(np.broadcast_arrays(wide * a, ln * t), -1).reshape(-1, 2)
    mesh = TriangleMesh(
        shape.reshape(-1, 3).astype(np.float32), ms.grid_faces(8, 9), uv.astype(np.float32)
    )
    lean = {"point": w.u(0.25, 0.5), "round": 0.6, "flop": w.u(2.1, 2.6), "long": w.u(0.1, 0.5),
            "side": w.u(1.3, 1.8)}[b.ear]  # fmt: skip
    back = w.u(-0.3, 0.1)
    for s in (-1, 1):
        turn = ms.rotation(-s * 0.3, s * lean, -back)
        at = np.array([s * h * 0.62, h * 0.15, h * 0.62])
        w.add(mesh.transform(turn, at), mat)
        w.add(
            mesh.transform(
                turn @ np.diag([0.8, 0.75, 0.85]), at + np.array([0, -0.05 * h, 0.04 * h])
            ),
            inner,
        )
        if b.horns:
            n = b.horns * h
            line = [
                (s * 0.35 * h, 0.1 * h, 0.8 * h),
                (s * (0.5 * h + n), 0, 0.9 * h),
                (s * (0.6 * h + n), -n * 0.6, 0.9 * h + n),
            ]
            p = forms.smooth(line, 10)
            w.add(
                ms.tube(p, np.linspace(0.2, 0.03, 10) * h, sides=10),
                w.plain(np.array([0.4, 0.33, 0.22], np.float32)),
            )


def animal_head(w: Scene, b: Breed, coat: Coat) -> None:
    """A head whose skull's centre is the origin, facing -y."""
    h = b.head
    ball = forms.ball(44, 44, front=1.3)
    u = ball.vertices
    x, y, z = (u * np.array([1.0, 1.05, 0.92]) * h).T / h
    front = np.clip(-u[:, 1], 0, 1)
    wide = b.snout
    weight = np.exp(-0.5 * ((x / wide) ** 2 + ((z + 0.28) / (wide * 0.8)) ** 2) ** 1.5) * front**0.7
    y = y - b.muzzle * weight
    z = z - 0.25 * b.muzzle * weight * w.u(0.2, 0.6)
    cheek = forms.bump(np.abs(x), z, (0.75, -0.3), 0.3, 0.35) * (u[:, 1] < 0.3)
    x = x * (1 + w.u(0, 0.22) * cheek)
    socket = forms.bump(np.abs(x), z, (0.45, 0.28), 0.2, 0.2) * (front > 0.2)
    y = y + 0.12 * socket + 0.06 * forms.bump(x, z, (0, 0.6), 0.12, 0.4) * front
    # a groove below the nose, and a pad on each side
    pad = forms.bump(np.abs(x), z, (wide * 0.4, -0.5), wide * 0.35, wide * 0.3) * front
    y = y - 0.12 * pad
    skull = TriangleMesh(
        (np.stack([x, y, z], 1) * h).astype(np.float32), ball.faces, ball.uv * np.float32(h)
    )
    c = forms.centres(skull)
    kinds = (
        coat.of(skull.move(0, -0.3, 0.9).transform(np.eye(3) * b.height))
        if coat.kind in ("tabby", "patches", "cloud")
        else np.full(len(c), coat.materials[0])
    )
    if coat.kind in ("belly", "socks", "tabby") and w.chance(0.7):
        pale = (
            coat.materials[1]
            if coat.kind != "tabby"
            else w.plain(np.full(3, w.u(0.4, 0.8), np.float32))
        )
        kinds = np.where((c[:, 2] < -0.15 * h) & (c[:, 1] < -0.5 * h), pale, kinds)
    w.add(skull, kinds)
    tip = skull.vertices[int(np.argmin(skull.vertices[:, 1]))]
    pink = np.array([0.5, 0.22, 0.2], np.float32)
    nose = w.plain(
        pink * w.u(0.4, 1) if w.chance(0.4) else np.full(3, w.lu(0.01, 0.06), np.float32), gloss=0.7
    )
    n = wide * h * (0.34 if b.muzzle < 1.6 else 0.3)
    w.add(
        ms.superquadric(n, n * 0.6, n * 0.7, 0.9, 1.2, segments=16).move(
            0, tip[1] + n * 0.2, tip[2] + n * 0.5
        ),
        nose,
    )
    dark = w.plain(np.full(3, 0.02, np.float32))
    under = tip[2] - n * 1.1
    arc = [
        (-wide * h * 0.8, tip[1] + 0.35 * h, under + 0.02 * h),
        (0, tip[1] + 0.1 * n, under),
        (wide * h * 0.8, tip[1] + 0.35 * h, under + 0.02 * h),
    ]
    w.add(ms.tube(forms.smooth(arc, 11), 0.03 * h, sides=6), dark)
    _eyes(w, b, skull, h)
    _ears(w, b, h, coat, w.plain(pink * w.u(0.4, 1.1)))
    if b.fur:
        mesh, face = forms.fur(
            skull,
            w.rng,
            w.n(500, 1100),
            b.fur * 0.65,
            lie=(0, 0.7, -0.5),
            rise=0.35,
            width=0.05,
        )
        w.add(mesh, np.repeat(kinds[face], 6))
    if b.muzzle < 1.6 and b.fur:
        white = w.plain(np.full(3, 0.7, np.float32))
        for s in (-1, 1):
            for _ in range(w.n(3, 6)):
                p = np.array([s * wide * h * 0.5, tip[1] + 0.25 * h, under + 0.15 * h])
                q = p + np.array([s * w.u(0.8, 1.5), w.u(-0.4, 0.3), w.u(-0.5, 0.4)]) * h
                w.add(
                    ms.tube(
                        forms.smooth([p, (p + q) / 2 + [0, 0, 0.1 * h], q], 5),
                        [0.014 * h, 0.012 * h, 0.01 * h, 0.007 * h, 0.003 * h],
                        sides=4,
                    ),
                    white,
                )


def _trunk(w: Scene, b: Breed, pose: str) -> tuple[TriangleMesh, list[tuple[float, float, float]]]:
    """The trunk in units of the shoulder's height, and where its shoulders and hips are."""
    ln, g = b.length, b.girth
    z = {"stand": 1 - g, "sit": 1 - g, "lie": g * 0.95}[pose]
    drop = {"stand": 0.0, "sit": 0.62 * (1 - g), "lie": 0.0}[pose]
    ln = ln * (0.75 if pose == "sit" else 1)
    rows = [
        (0, -ln * 0.5, z + 0.02, g * 0.5, g * 0.7),
        (0, -ln * 0.38, z, g * 0.82, g * 0.98),
        (0, -ln * 0.15, z - drop * 0.25, g * 0.92, g * 1.02),
        (0, ln * 0.15, z - drop * 0.7, g * 0.92, g * 0.92),
        (0, ln * 0.38, z - drop + 0.02, g * 0.85, g * 0.9),
        (0, ln * 0.52, z - drop + 0.02, g * 0.5, g * 0.6),
    ]
    joints = [(g * 0.55, -ln * 0.36, z - g * 0.35), (g * 0.55, ln * 0.38, z - drop - g * 0.2)]
    return forms.body(rows, rings=30, sides=28), joints


def _legs(
    w: Scene, b: Breed, joints: list[tuple[float, float, float]], pose: str, coat: Coat
) -> None:
    """Four legs with paws or hoofs."""
    r = b.leg
    hoof = w.plain(np.full(3, 0.03, np.float32)) if b.head < 0.125 and b.height > 0.6 else 0
    for hind, (x, y, z) in enumerate(joints):
        for s in (-1, 1):
            step = w.u(-0.14, 0.14) if pose == "stand" else 0.0
            if pose == "lie" or (pose == "sit" and hind):
                ahead = -w.u(0.2, 0.4)
                line = [
                    (s * x, y, z),
                    (s * x * 1.5, y + 0.08, r * 1.6),
                    (s * x * 1.4, y + ahead, r),
                ]
            else:
                bend = 0.09 if hind else -0.03
                line = [
                    (s * x, y, z),
                    (s * x, y + bend + step * 0.4, z * 0.52),
                    (s * x * 0.95, y + step, r * 0.8),
                ]
            thick = (
                np.interp(
                    np.linspace(0, 1, 14), [0, 0.15, 0.35, 0.6, 1], [0.8, 2.0, 1.5, 0.95, 0.85]
                )
                * r
            )
            p = forms.smooth(line, 14)
            leg = forms.body(
                np.concatenate([p, thick[:, None] * 0.85, thick[:, None] * 1.15], 1),
                rings=14,
                sides=12,
                up=(0, 1, 0.3),
            )
            w.add(
                leg,
                coat.of(leg.transform(np.eye(3) * b.height)),
            )
            foot = ms.superquadric(r * 1.05, r * 1.4, r * 0.85, 0.9, 0.9, segments=14)
            end = p[-1]
            paw = foot.move(end[0], end[1] - r * 0.6, r * 0.75)
            w.add(paw, hoof or coat.of(paw.transform(np.eye(3) * b.height)))


def quadruped(
    w: Scene, name: str | None = None, *, pose: str | None = None
) -> tuple[float, float, float]:
    """A cat, dog, horse, cow, sheep, bear, rabbit or fox.

    Args:
        w: the scene.
        name: one of ``BREEDS``; None draws one.
        pose: "stand", "sit" or "lie"; None draws one.

    Returns:
        y and z of its head's centre and half the width of its skull, metres.
    """
    name = name or str(w.rng.choice(list(BREEDS)))
    b = _vary(w, BREEDS[name])
    poses = ("stand", "sit", "lie") if b.height < 1.1 else ("stand", "stand", "lie")
    pose = pose or poses[w.n(0, 2)]
    coat = Coat(w, str(w.rng.choice(b.coats)), b.height)
    trunk, joints = _trunk(w, b, pose)
    if name == "sheep":
        trunk = trunk.displace(w.rng, 0.05, 2.5)
    with w.at(scale=b.height):
        kinds = coat.of(trunk.transform(np.eye(3) * b.height))
        w.add(trunk, kinds)
        if b.fur:
            mesh, face = forms.fur(
                trunk, w.rng, w.n(400, 900), b.fur, lie=(0, 0.8, -0.5), rise=0.3, width=0.06
            )
            w.add(mesh, np.repeat(kinds[face], 6))
        _legs(w, b, joints, pose, coat)
        carry = b.carry + w.u(-0.35, 0.3)
        start = np.array([0, joints[0][1] - 0.02, joints[0][2] + b.girth * 0.75])
        step = np.array([0, -np.cos(carry), np.sin(carry)]) * b.neck
        end = start + step
        thick = np.array([b.girth * 0.75, b.girth * 0.6, b.head * 0.85, b.head * 0.8])
        p = forms.smooth([start - step * 0.25, start + step * 0.35, end, end + step * 0.1], 4)
        neck = forms.body(
            np.concatenate([p, thick[:, None] * 0.8, thick[:, None]], 1),
            rings=16,
            sides=20,
            up=(0, 0.6, 0.8),
        )
        w.add(neck, coat.of(neck.transform(np.eye(3) * b.height)))
        if name == "horse":
            c = forms.centres(neck)
            mane, _ = forms.fur(
                neck,
                w.rng,
                260,
                0.14,
                lie=(0.6, 0.2, -1),
                rise=0.25,
                where=(np.abs(c[:, 0]) < 0.04) & (c[:, 2] > p[1:3, 2].mean()),
            )
            w.add(mane, w.plain(_hide(w)))
        tail_at = np.array([0, joints[1][1] + 0.12, joints[1][2] + b.girth * 0.6])
        sway = w.u(-0.4, 0.4)
        up = w.u(-0.9, 0.6) if b.height < 0.7 else -0.95
        q = forms.smooth(
            [
                tail_at,
                tail_at + np.array([sway * 0.2, 0.3 * b.tail, up * 0.2]),
                tail_at + np.array([sway, 0.45 * b.tail, up * b.tail]),
            ],
            10,
        )
        q[:, 2] = np.maximum(q[:, 2], 0.03)
        w.add(
            ms.tube(
                q, b.tail_width * np.array([1, 1.1, 1.1, 1.1, 1, 1, 1, 0.9, 0.7, 0.2]), sides=10
            ),
            coat.materials[0],
        )
        look = ms.rotation(w.rng.normal(0, 0.45), w.rng.normal(0, 0.12), w.u(-0.15, 0.3))
        with w.at(*end, turn=look):
            animal_head(w, b, coat)
    return float(end[1] * b.height), float(end[2] * b.height), b.head * b.height
