"""Birds that stand on z = 0 and face -y."""

from __future__ import annotations

import numpy as np

from dafast.synthetic import forms
from dafast.synthetic import meshes as ms
from dafast.synthetic.meshes import F32
from dafast.synthetic.scene import Scene, of_class


@of_class("thing")
def bird(w: Scene, size: float) -> None:
    """A bird of ``size`` metres from head to tail, standing on two legs."""
    first, second, third = (
        w.paint("cloud", "stains", "speckle", "scratches", scale=(1 / size, 5 / size), gloss=0.1)
        for _ in range(3)
    )
    horn = w.plain(np.array([0.8, w.u(0.2, 0.6), 0.05], np.float32) * w.lu(0.05, 1))
    lean, fat = w.u(0.2, 1.0), w.u(0.8, 1.25)
    d = np.array([0, np.cos(lean), -np.sin(lean)])
    leg = w.lu(0.1, 0.5)
    mid = np.array([0, 0, leg + 0.17])
    radii = np.array([0.1, 0.15, 0.17, 0.15, 0.08, 0.035]) * fat
    rows = [
        (*(mid + d * t), r, r * 1.05)
        for t, r in zip((-0.3, -0.2, -0.05, 0.1, 0.25, 0.36), radii, strict=True)
    ]
    with w.at(scale=size):
        trunk = forms.body(rows, rings=26, sides=24, up=(0, 0.3, 1))
        c = forms.centres(trunk)
        coat = np.where(c[:, 2] < mid[2] - 0.04 - 0.4 * c[:, 1], second, first)
        w.add(trunk, coat)
        down, face = forms.fur(trunk, w.rng, w.n(150, 400), 0.05, lie=d, rise=0.15, width=0.2)
        w.add(down, np.repeat(coat[face], 6))
        neck = w.lu(0.04, 0.4) if w.chance(0.35) else 0.04
        head = mid - d * 0.33 + np.array([0, -0.03, 0.06 + neck])
        w.add(
            forms.body(
                [
                    (*(mid - d * 0.25), 0.1, 0.1),
                    (*((mid - d * 0.3 + head) / 2), 0.07, 0.075),
                    (*head, 0.06, 0.065),
                ],
                rings=12,
                sides=16,
                up=(0, 0.8, 0.3),
            ),
            first,
        )
        r = w.u(0.085, 0.11)
        with w.at(*head, turn=ms.rotation(w.rng.normal(0, 0.5), 0, w.rng.normal(0, 0.15))):
            w.add(
                ms.superquadric(r * 0.9, r * 1.1, r, 1, 1, segments=22),
                third if w.chance(0.4) else first,
            )
            ln = w.lu(0.07, 0.3)
            beak = [
                (0, -r * 0.8, -0.01),
                (0, -r - ln * 0.5, -0.005),
                (0, -r - ln, -0.02 - ln * w.u(0, 0.3)),
            ]
            w.add(ms.tube(forms.smooth(beak, 8), np.linspace(0.035, 0.002, 8), sides=10), horn)
            for s in (-1, 1):
                w.add(
                    ms.sphere(0.017, segments=12).move(s * r * 0.72, -r * 0.62, r * 0.25),
                    w.plain(np.full(3, 0.01, np.float32), gloss=1.0),
                )
        _wings(w, mid, d, fat, third if w.chance(0.5) else first)
        for s in (-1, 1):
            foot = (s * 0.06, -0.02, 0.01)
            w.add(
                ms.tube(
                    [(s * 0.07, 0.05, leg + 0.06), (s * 0.065, 0.04, leg * 0.5), foot],
                    [0.025, 0.012, 0.011],
                    sides=7,
                ),
                horn,
            )
            for k in (-0.5, 0, 0.5, 3.1):
                w.add(
                    ms.tube(
                        [foot, (foot[0] + 0.07 * np.sin(k), foot[1] - 0.07 * np.cos(k), 0.006)],
                        0.008,
                        sides=5,
                    ),
                    horn,
                )
        tail = mid + d * 0.3
        x = np.linspace(-0.35, 0.35, 6)
        fan = d + np.stack([x, 0 * x, 0 * x], 1)
        w.add(
            forms.petals(np.tile(tail, (6, 1)), fan, w.u(0.2, 0.4), 0.03, cup=0, curl=0, tip=0.7),
            third,
        )


def _wings(w: Scene, mid: F32, d: F32, fat: float, mat: int) -> None:
    """Two folded wings of feathers along d at the sides of a trunk around mid."""
    n, span = 14, w.u(0.0, 0.15)
    t = np.linspace(0, 1, n)
    for s in (-1, 1):
        base = mid + d * (t[:, None] * 0.3 - 0.12) + np.array([s * 0.145 * fat, 0, 0.05])
        along = np.tile(d + np.array([s * span, 0, -0.1]), (n, 1))
        feathers = forms.petals(
            base, along, 0.26 - 0.08 * t, 0.045, cup=0.1, curl=0.0, tip=0.6, axis=(s, 0, 0)
        )
        w.add(feathers, mat)
