"""What close views show: models of games, and procedural people, animals, plants and things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dafast.synthetic import animals, birds, closeups, heads, living, machines, outdoors, things
from dafast.synthetic.meshes import F32
from dafast.synthetic.scene import Scene
from dafast.synthetic.worlds.furnish import subject_of
from dafast.synthetic.worlds.models import Cast

_MODELS = 0.65  # share of the close views that show a model of a game


@dataclass(frozen=True)
class Target:
    """Something that a camera looks at from near.

    Attributes:
        build: adds it to a scene, standing on z = 0 and facing -y; returns points around its
            head, float32 (N, 3), or None if it has none.
        height, radius: metres.
        open_air: whether it is only placed in the open.
        whole: whether it can be seen whole; a bust has no legs.
        lifted: whether a table may stand below it.
    """

    build: Callable[[Scene], F32 | None]
    height: float
    radius: float
    open_air: bool = False
    whole: bool = True
    lifted: bool = False


def _around(y: float, z: float, half: tuple[float, float, float]) -> F32:
    """Two corners of a box around (0, y, z)."""
    return np.array([[0, y, z], [0, y, z]], np.float32) + np.outer([-1, 1], half).astype(np.float32)


def _person(w: Scene) -> Target:
    tall = w.u(1.2, 1.95)
    if w.chance(0.3):
        z = 1.64 / 1.75 * tall

        def build(s: Scene) -> F32:
            living.person(s, tall)
            return _around(0, z, (0.09, 0.1, 0.13))

        return Target(build, tall, 0.4)

    def bust(s: Scene) -> F32:
        with s.at(0, 0, tall - 0.12):
            heads.bust(s)
        return _around(0, tall - 0.12, (0.09, 0.1, 0.13))

    return Target(bust, tall, 0.4, whole=False)


def _animal(w: Scene) -> Target:
    name = str(w.rng.choice(["cat", "cat", "dog", "hound", *animals.BREEDS]))
    height = animals.BREEDS[name].height

    def build(s: Scene) -> F32:
        y, z, r = animals.quadruped(s, name)
        return _around(y, z, (1.1 * r, 1.4 * r, 1.2 * r))

    return Target(build, 1.5 * height, height, height > 1.2, lifted=height < 0.3)


def _thing(w: Scene) -> Target:
    """A plant, a vessel, a blossom, a bird, a small thing, clutter or a car."""

    def of(build: Callable[[Scene], object]) -> Callable[[Scene], F32 | None]:
        def without_head(s: Scene) -> None:
            build(s)

        return without_head

    def flower(s: Scene) -> None:
        high = s.u(0.15, 0.5)
        with s.at(0, 0, high):
            closeups.stem(s, high, s.u(0.002, 0.005))
            closeups.blossom(s, s.u(0.02, 0.07))

    tall = w.u(0.3, 1.4)
    size = w.u(0.12, 0.45)
    choices: tuple[tuple[float, Target], ...] = (
        (20, Target(of(lambda s: living.plant(s, tall)), tall, 0.4, lifted=tall < 0.6)),
        (20, Target(of(closeups.vessel), 0.3, 0.15, lifted=True)),
        (15, Target(of(flower), 0.5, 0.15, lifted=True)),
        (10, Target(of(lambda s: birds.bird(s, size)), size, size, lifted=True)),
        (15, Target(of(things.small_thing), 0.4, 0.3, lifted=True)),
        (10, Target(of(machines.clutter), 1.0, 0.6)),
        (10, Target(of(outdoors.car), 1.6, 2.3, True)),
    )
    weights = np.array([share for share, _ in choices])
    return choices[int(w.rng.choice(len(choices), p=weights / weights.sum()))][1]


def draw_target(w: Scene, cast: Cast) -> Target:
    """A random target."""
    model = cast.draw(w.rng) if w.chance(_MODELS) else None
    if model is None:
        k = w.rng.random()
        return _person(w) if k < 0.35 else _animal(w) if k < 0.6 else _thing(w)
    subject, pose, scale = subject_of(w, model)
    head = None
    if len(model.faces_of_head):
        head = model.poses[pose][model.faces[model.faces_of_head]].reshape(-1, 3) * scale

    def build(s: Scene) -> F32 | None:
        subject.build(s)
        return head

    small = max(subject.height, 2 * subject.radius) < 1.2
    return Target(build, subject.height, subject.radius, subject.open_air, lifted=small)
