"""Scenes that a near thing fills: what is drawn for training only, and relief where it counts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")

from dafast.synthetic import KINDS, closeups, forms, heads
from dafast.synthetic.render import Tracer
from dafast.synthetic.sample import NEAR_KINDS, _draw_kind, worthwhile
from dafast.synthetic.scene import Scene
from dafast.synthetic.textures import bank_for


def cast(
    scene: Scene, origins: list[tuple[float, float, float]], direction: list[float]
) -> np.ndarray:
    """Distances along one direction from several origins."""
    o = np.array(origins, np.float32)
    d = np.broadcast_to(np.array(direction, np.float32), o.shape)
    return Tracer(scene.geometry()).intersect(o, np.ascontiguousarray(d)).depth


def test_only_training_draws_near_kinds() -> None:
    draws = [{_draw_kind(np.random.default_rng(k), near) for k in range(400)} for near in (0, 1)]
    assert draws[0] == set(KINDS) - set(NEAR_KINDS)
    assert draws[1] == set(KINDS)


def test_held_out_scenes_keep_their_kinds() -> None:
    """The kinds of these generators were recorded before the near kinds existed."""
    kinds = ("room", "tabletop", "workshop", "street", "random", "plants", "landscape", "people",
             "corridor", "topdown", "portrait", "upward", "forest")  # fmt: skip
    p = np.array([16, 13, 13, 11, 10, 9, 7, 6, 4, 4, 4, 3, 4]) / 104
    for k in range(50):
        expected = kinds[int(np.random.default_rng(k).choice(13, p=p))]
        assert _draw_kind(np.random.default_rng(k), near=False) == expected


@pytest.mark.parametrize("seed", range(4))
def test_a_face_has_relief(seed: int) -> None:
    """From the front the nose is nearer than the eye sockets, and these than the ears' place."""
    scene = Scene(np.random.default_rng(seed), bank_for(None))
    scene.add(heads._face(scene), 0)
    nose, socket, side = cast(
        scene, [(0, -1, -0.022), (0.031, -1, 0.013), (0.066, -1, 0)], [0, 1, 0]
    )
    assert nose + 0.012 < socket
    assert socket + 0.01 < side


@pytest.mark.parametrize("kind", ["cup", "bowl", "vase", "pot"])
def test_vessels_are_hollow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Straight from above an empty vessel is deeper in its middle than at its rim."""
    monkeypatch.setattr(closeups, "_fill", lambda *args: None)
    monkeypatch.setattr(closeups, "sticks", lambda *args: None)
    scene = Scene(np.random.default_rng(3), bank_for(None))
    radius, height = closeups.vessel(scene, kind)
    x = np.linspace(0.0, 1.3 * radius, 60)
    depth = cast(scene, [(v * 0.6, v * 0.8, 1.0) for v in x], [0, 0, -1])
    assert depth[0] > 1 - 0.3 * height
    assert depth.min() == pytest.approx(1 - height, abs=0.02)


def test_a_near_subject_is_worth_a_picture_only_of_a_close_kind() -> None:
    depth = np.full((24, 32), 30.0)
    y, x = np.mgrid[:24, :32]
    depth[(y - 12) ** 2 + (x - 16) ** 2 < 81] = 0.6
    assert not worthwhile(depth)
    assert worthwhile(depth, close=True)
    depth[12:15, 15:18] = 0.1  # a speck before the lens
    assert not worthwhile(np.where(depth > 0.2, 30.0, depth), close=True)


def test_forms_are_closed_and_finite() -> None:
    rng = np.random.default_rng(0)
    ball = forms.ball(10, 12)
    np.testing.assert_allclose(np.linalg.norm(ball.vertices, axis=1), 1, atol=1e-6)
    curve = forms.smooth([(0, 0, 0), (1, 1, 0), (2, 0, 0)], 5)
    np.testing.assert_allclose(curve[[0, 2, 4]], [(0, 0, 0), (1, 1, 0), (2, 0, 0)], atol=1e-6)
    line = [(0, -1, 0, 0.2, 0.3), (0, 0, 0, 0.2, 0.3), (0, 1, 0, 0.2, 0.3)]
    body = forms.body(line, rings=9, sides=16)
    assert np.abs(body.vertices[:, 0]).max() == pytest.approx(0.2, abs=1e-3)
    assert np.abs(body.vertices[:, 2]).max() == pytest.approx(0.3, abs=1e-3)
    where = forms.centres(ball)[:, 2] > 0.5
    tufts, face = forms.fur(ball, rng, 50, 0.1, where=where)
    assert where[face].all()
    assert np.isfinite(tufts.vertices).all()
    none, _ = forms.fur(ball, rng, 50, 0.1, where=where & False)
    assert len(none.faces) == 0
    leaf = forms.petals([(0, 0, 0)], [(1, 0, 0)], 2.0, 0.5, curl=0.0, cup=0.0)
    assert leaf.vertices[:, 0].max() == pytest.approx(2.0)
    assert np.abs(leaf.vertices[:, 1]).max() <= 0.5
