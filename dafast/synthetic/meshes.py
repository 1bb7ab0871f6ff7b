"""Triangle meshes of the synthetic scenes: primitives, all vectorised numpy.

Every primitive is built around the origin, z up, in metres. ``uv`` is in metres along the
surface (materials scale it) unless a function says otherwise. Vertices are shared only where the
surface is smooth, so that averaging face normals per vertex gives both smooth and sharp shading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.floating]  # float32 in meshes; colours may come as float64
I32 = NDArray[np.int32]


@dataclass(frozen=True)
class TriangleMesh:
    """A triangle mesh.

    Attributes:
        vertices: float32 (V, 3), metres.
        faces: int32 (F, 3), indices of vertices.
        uv: float32 (V, 2), texture coordinates.
    """

    vertices: F32
    faces: I32
    uv: F32

    def transform(self, matrix: ArrayLike, offset: ArrayLike = (0.0, 0.0, 0.0)) -> TriangleMesh:
        """The mesh with every vertex v replaced by ``matrix @ v + offset``."""
        m = np.asarray(matrix, np.float32)
        return TriangleMesh(
            self.vertices @ m.T + np.asarray(offset, np.float32), self.faces, self.uv
        )

    def move(self, x: float, y: float, z: float) -> TriangleMesh:
        """The mesh shifted by (x, y, z) metres."""
        return TriangleMesh(self.vertices + np.array([x, y, z], np.float32), self.faces, self.uv)

    def displace(self, rng: np.random.Generator, amount: float, frequency: float) -> TriangleMesh:
        """The mesh with vertices pushed by a smooth random vector field.

        Args:
            rng: source of randomness.
            amount: size of the displacement in metres.
            frequency: waves per metre.
        """
        v = self.vertices
        k = rng.normal(size=(3, 5)).astype(np.float32) * np.float32(frequency * 3.0)
        wave = np.sin(v @ k + rng.uniform(0, 6.283, 5).astype(np.float32))
        direction = rng.normal(size=(5, 3)).astype(np.float32) * np.float32(amount * 0.4)
        return TriangleMesh(v + wave @ direction, self.faces, self.uv)


def merge(meshes: Sequence[TriangleMesh]) -> TriangleMesh:
    """One mesh from several."""
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return TriangleMesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + np.int32(s) for m, s in zip(meshes, starts, strict=True)]),
        np.concatenate([m.uv for m in meshes]),
    )


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> F32:
    """Rotation matrix: roll about x, then pitch about y, then yaw about z; radians."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    rz = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    ry = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    rx = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return (rz @ ry @ rx).astype(np.float32)


def random_rotation(rng: np.random.Generator) -> F32:
    """A rotation drawn uniformly from SO(3)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q.astype(np.float32)


def cross(a: F32, b: F32) -> F32:
    """Cross product over the last axis of (N, 3) arrays; several times faster than np.cross."""
    (a0, a1, a2), (b0, b1, b2) = a.T, b.T
    return np.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], 1)


@lru_cache(maxsize=256)
def grid_faces(rows: int, cols: int) -> I32:
    """Faces of a (rows, cols) vertex grid in row-major order; int32 (2(rows-1)(cols-1), 3)."""
    i = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
    a, b, c, d = i[:-1, :-1].ravel(), i[:-1, 1:].ravel(), i[1:, :-1].ravel(), i[1:, 1:].ravel()
    return np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])


_CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32) * 0.5


def _box_template() -> tuple[F32, I32, NDArray[np.int64]]:
    verts, axes = [], []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        if axis == 0:
            u, v = 1, 2
        elif axis == 1:
            u, v = 0, 2
        for sign in (-0.5, 0.5):
            p = np.zeros((4, 3), np.float32)
            p[:, axis], p[:, u], p[:, v] = sign, _CORNERS[:, 0], _CORNERS[:, 1]
            verts.append(p)
            axes += [(u, v)] * 4
    faces = [
        [4 * k + a, 4 * k + b, 4 * k + c] for k in range(6) for a, b, c in ((0, 1, 2), (0, 2, 3))
    ]
    return np.concatenate(verts), np.array(faces, np.int32), np.array(axes)


_BOX_V, _BOX_F, _BOX_AXES = _box_template()


def boxes(centers: ArrayLike, sizes: ArrayLike, rotations: ArrayLike | None = None) -> TriangleMesh:
    """Many boxes as one mesh, 12 faces each, in order.

    Args:
        centers: (N, 3) metres.
        sizes: (N, 3) full side lengths in metres.
        rotations: (N, 3, 3) or None.
    """
    c = np.asarray(centers, np.float32).reshape(-1, 1, 3)
    s = np.asarray(sizes, np.float32).reshape(-1, 1, 3)
    v = _BOX_V[None] * s
    n = len(v)
    i = np.arange(24)
    uv = np.stack([v[:, i, _BOX_AXES[:, 0]], v[:, i, _BOX_AXES[:, 1]]], -1)
    uv = uv + c[:, :, :2] * 0.37  # neighbours do not show the same piece of texture
    if rotations is not None:
        v = v @ np.asarray(rotations, np.float32).transpose(0, 2, 1)
    faces = _BOX_F[None] + (24 * np.arange(n, dtype=np.int32))[:, None, None]
    return TriangleMesh(
        (v + c).reshape(-1, 3), faces.reshape(-1, 3), uv.reshape(-1, 2).astype(np.float32)
    )


def box(x: float, y: float, z: float, *, at: ArrayLike = (0.0, 0.0, 0.0)) -> TriangleMesh:
    """A box of full sides x, y, z with its centre at ``at``."""
    return boxes(np.asarray(at), [[x, y, z]])


def quad(width: float, height: float, *, fit: bool = False) -> TriangleMesh:
    """A rectangle in the xz plane facing -y, centred; with ``fit`` its uv run over 0..1."""
    v = np.zeros((4, 3), np.float32)
    v[:, 0], v[:, 2] = _CORNERS[:, 0] * width, _CORNERS[:, 1] * height
    uv = _CORNERS * np.array([1, -1], np.float32) + 0.5 if fit else v[:, [0, 2]]
    return TriangleMesh(v, np.array([[0, 1, 2], [0, 2, 3]], np.int32), uv.astype(np.float32))


def sheet(xs: ArrayLike, ys: ArrayLike, z: ArrayLike) -> TriangleMesh:
    """A height field over the grid xs (C,) by ys (R,), z of shape (R, C)."""
    x, y = np.meshgrid(np.asarray(xs, np.float32), np.asarray(ys, np.float32))
    v = np.stack([x, y, np.broadcast_to(np.asarray(z, np.float32), x.shape)], -1).reshape(-1, 3)
    return TriangleMesh(v, grid_faces(*x.shape), v[:, :2].copy())


def floor(size: float) -> TriangleMesh:
    """A square ground at z = 0 with half side ``size`` metres."""
    return sheet([-size, size], [-size, size], 0.0)


def lathe(profile: ArrayLike, segments: int = 20) -> TriangleMesh:
    """Surface of revolution about z.

    Args:
        profile: (K, 2) radius and height in metres; a point given twice makes a sharp edge.
        segments: number of segments around.
    """
    p = np.asarray(profile, np.float32)
    a = np.linspace(0, 2 * np.pi, segments + 1, dtype=np.float32)
    r, z = p[:, :1], np.broadcast_to(p[:, 1:], (len(p), segments + 1))
    v = np.stack([r * np.cos(a), r * np.sin(a), z], -1).reshape(-1, 3)
    s = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(p, axis=0).T))])
    u = np.broadcast_to(a * max(float(p[:, 0].max()), 1e-3), z.shape)
    uv = np.stack([u, np.broadcast_to(s[:, None], z.shape)], -1).reshape(-1, 2)
    return TriangleMesh(v, grid_faces(len(p), segments + 1), uv.astype(np.float32))


def cylinder(
    radius: float, height: float, *, top: float | None = None, segments: int = 18
) -> TriangleMesh:
    """A capped cylinder (or frustum, with radius ``top`` above) standing on z = 0."""
    t = radius if top is None else top
    return lathe(
        [(0, 0), (radius, 0), (radius, 0), (t, height), (t, height), (0, height)], segments
    )


def sphere(radius: float, *, segments: int = 24) -> TriangleMesh:
    """A sphere around the origin."""
    a = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
    return lathe(np.stack([np.cos(a), np.sin(a)], 1) * radius, segments)


def superquadric(
    rx: float, ry: float, rz: float, e1: float, e2: float, *, segments: int = 24
) -> TriangleMesh:
    """A superquadric with half axes rx, ry, rz and exponents e1, e2 (1 = ellipsoid, ->0 = box)."""
    a = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1, dtype=np.float32)[:, None]
    b = np.linspace(-np.pi, np.pi, segments + 1, dtype=np.float32)[None]

    def power(x: F32, e: float) -> F32:
        return np.sign(x) * np.abs(x) ** np.float32(e)

    ca = power(np.cos(a), e1)
    v = np.stack(
        [
            rx * ca * power(np.cos(b), e2),
            ry * ca * power(np.sin(b), e2),
            np.broadcast_to(rz * power(np.sin(a), e1), (len(a), b.shape[1])),
        ],
        -1,
    ).reshape(-1, 3)
    uv = np.stack(np.broadcast_arrays(b * max(rx, ry), a * rz), -1).reshape(-1, 2)
    return TriangleMesh(v.astype(np.float32), grid_faces(len(a), b.shape[1]), uv.astype(np.float32))


def torus(major: float, minor: float, *, segments: int = 28, sides: int = 10) -> TriangleMesh:
    """A torus around z."""
    a = np.linspace(0, 2 * np.pi, segments + 1, dtype=np.float32)[:, None]
    b = np.linspace(0, 2 * np.pi, sides + 1, dtype=np.float32)[None]
    r = major + minor * np.cos(b)
    v = np.stack(
        [r * np.cos(a), r * np.sin(a), np.broadcast_to(minor * np.sin(b), r.shape) + 0 * a], -1
    )
    uv = np.stack(np.broadcast_arrays(a * major, b * minor), -1)
    return TriangleMesh(
        v.reshape(-1, 3).astype(np.float32),
        grid_faces(segments + 1, sides + 1),
        uv.reshape(-1, 2).astype(np.float32),
    )


def tube(points: ArrayLike, radius: float | ArrayLike, *, sides: int = 8) -> TriangleMesh:
    """A tube along a polyline.

    Args:
        points: (K, 3) centre line, K >= 2.
        radius: one radius or (K,) radii in metres.
        sides: sides of the cross-section.
    """
    p = np.asarray(points, np.float32)
    step = p[1:] - p[:-1]
    t = np.concatenate([step[:1], step[:-1] + step[1:], step[-1:]])
    t /= np.maximum(np.sqrt((t * t).sum(1, keepdims=True)), 1e-9)
    ref = np.eye(3, dtype=np.float32)[np.argmin(np.abs(t).sum(0))]
    n = cross(t, ref[None])
    n /= np.maximum(np.sqrt((n * n).sum(1, keepdims=True)), 1e-9)
    b = cross(t, n)
    a = np.linspace(0, 2 * np.pi, sides + 1, dtype=np.float32)
    r = np.broadcast_to(np.asarray(radius, np.float32), (len(p),))[:, None, None]
    ring = np.cos(a)[None, :, None] * n[:, None] + np.sin(a)[None, :, None] * b[:, None]
    v = p[:, None] + r * ring
    s = np.concatenate([[0], np.cumsum(np.sqrt((step * step).sum(1)))])
    uv = np.empty((len(p), sides + 1, 2), np.float32)
    uv[..., 0], uv[..., 1] = a * float(r.max()), s[:, None]
    return TriangleMesh(
        v.reshape(-1, 3).astype(np.float32),
        grid_faces(len(p), sides + 1),
        uv.reshape(-1, 2).astype(np.float32),
    )


def capsule(p0: ArrayLike, p1: ArrayLike, r0: float, r1: float | None = None) -> TriangleMesh:
    """A limb from p0 to p1 with round ends of radius r0 and r1."""
    a, b = np.asarray(p0, np.float32), np.asarray(p1, np.float32)
    r1 = r0 if r1 is None else r1
    d = b - a
    d = d / max(float(np.linalg.norm(d)), 1e-6)
    q = np.array([-1.0, -0.87, -0.5, 0.0])
    h = np.sqrt(1 - q**2)
    pts = np.concatenate([a + d * r0 * q[:, None], b - d * r1 * q[::-1, None]])
    return tube(pts, np.concatenate([r0 * h, r1 * h[::-1]]) + 1e-4, sides=12)


def prism(polygon: ArrayLike, height: float) -> TriangleMesh:
    """A star-shaped polygon (N, 2) in the xy plane, extruded from z = 0 to ``height``."""
    p = np.asarray(polygon, np.float32)
    n = len(p)
    q = np.roll(p, -1, 0)
    side = np.stack([p, q, q, p], 1)
    z = np.broadcast_to(np.array([0, 0, height, height], np.float32), (n, 4))[..., None]
    v = np.concatenate([side, z], -1).reshape(-1, 3)
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(q - p, axis=1))]).astype(np.float32)
    u = np.stack([s[:-1], s[1:], s[1:], s[:-1]], 1).reshape(-1)
    parts_v, parts_uv = [v], [np.stack([u, v[:, 2]], 1)]
    k = 4 * np.arange(n, dtype=np.int32)[:, None]
    faces = [k + np.array([0, 1, 2], np.int32), k + np.array([0, 2, 3], np.int32)]
    start = 4 * n
    for h in (0.0, height):
        ring = np.concatenate([p, p.mean(0, keepdims=True)])
        parts_v.append(np.concatenate([ring, np.full((n + 1, 1), h, np.float32)], 1))
        parts_uv.append(ring)
        i = np.arange(n, dtype=np.int32)
        faces.append(np.stack([start + i, start + (i + 1) % n, np.full(n, start + n, np.int32)], 1))
        start += n + 1
    return TriangleMesh(
        np.concatenate(parts_v).astype(np.float32),
        np.concatenate(faces).astype(np.int32),
        np.concatenate(parts_uv).astype(np.float32),
    )


_LEAF_T = np.array([0.0, 0.3, 0.65, 1.0], np.float32)
_LEAF_W = {
    "leaf": np.array([0.15, 1.0, 0.8, 0.04], np.float32),
    "blade": np.array([1.0, 0.9, 0.6, 0.05], np.float32),
    "round": np.array([0.5, 1.0, 1.0, 0.4], np.float32),
}


def leaves(
    base: ArrayLike,
    direction: ArrayLike,
    length: ArrayLike,
    width: ArrayLike,
    droop: ArrayLike = 0.3,
    *,
    shape: str = "leaf",
    rng: np.random.Generator,
) -> TriangleMesh:
    """Many bent leaves as one mesh, 6 faces each.

    Args:
        base: (N, 3) where each leaf starts, metres.
        direction: (N, 3) where it points (normalised here).
        length: (N,) or one length in metres.
        width: (N,) or one half width in metres.
        droop: how far the tip falls, as a share of the length.
        shape: "leaf", "blade" or "round".
        rng: turns each leaf about its own axis.
    """
    b = np.asarray(base, np.float32)
    n = len(b)
    d = np.asarray(direction, np.float32)
    d = d / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-6)
    side = cross(d, np.array([[0.03, 0.02, 1]], np.float32)) + rng.normal(0, 0.35, (n, 3))
    side -= (side * d).sum(1, keepdims=True) * d
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-6)
    ln = np.broadcast_to(np.asarray(length, np.float32), (n,))[:, None, None]
    wd = np.broadcast_to(np.asarray(width, np.float32), (n,))[:, None, None]
    dr = np.broadcast_to(np.asarray(droop, np.float32), (n,))[:, None, None]
    t = _LEAF_T[None, :, None]
    mid = b[:, None] + d[:, None] * ln * t
    mid = mid - np.array([0, 0, 1], np.float32) * (dr * ln * t * t)
    off = side[:, None] * wd * _LEAF_W[shape][None, :, None]
    v = np.stack([mid - off, mid + off], 2).reshape(n, 8, 3)
    faces = grid_faces(4, 2)[None] + (8 * np.arange(n, dtype=np.int32))[:, None, None]
    wu = wd * np.array([-1, 1], np.float32)[None, None] * _LEAF_W[shape][None, :, None]
    uv = np.stack(np.broadcast_arrays(wu, ln * t), -1).reshape(n * 8, 2)
    uv = uv + np.repeat(rng.uniform(0, 1, (n, 2)), 8, 0)
    return TriangleMesh(
        v.reshape(-1, 3).astype(np.float32),
        faces.reshape(-1, 3).astype(np.int32),
        uv.astype(np.float32),
    )
