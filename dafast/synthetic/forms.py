"""Smooth organic forms: balls with bumps, bodies of elliptical sections, petals, fur, stones."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dafast.synthetic.meshes import F32, TriangleMesh, cross, grid_faces, leaves


def ball(rows: int = 40, cols: int = 48, *, front: float = 1.0) -> TriangleMesh:
    """A unit sphere, its seam at +y; with ``front`` above 1 the columns are denser towards -y."""
    t = np.linspace(-1, 1, cols + 1)
    a = np.pi * np.sign(t) * np.abs(t) ** front
    p = np.linspace(-np.pi / 2, np.pi / 2, rows + 1)[:, None]
    v = np.stack(
        np.broadcast_arrays(np.cos(p) * np.sin(a), -np.cos(p) * np.cos(a), np.sin(p)), -1
    ).reshape(-1, 3)
    uv = np.stack(np.broadcast_arrays(a[None], p), -1).reshape(-1, 2)
    return TriangleMesh(v.astype(np.float32), grid_faces(rows + 1, cols + 1), uv.astype(np.float32))


def bump(x: F32, z: F32, at: tuple[float, float], width: float, height: float) -> F32:
    """A Gaussian of height 1 at (x, z), with standard deviations ``width`` and ``height``."""
    return np.exp(-0.5 * (((x - at[0]) / width) ** 2 + ((z - at[1]) / height) ** 2))


def centres(mesh: TriangleMesh) -> F32:
    """Centres of the faces, (F, 3)."""
    return mesh.vertices[mesh.faces].mean(1)


def keep(mesh: TriangleMesh, faces: NDArray[np.bool_]) -> TriangleMesh:
    """The mesh with only the faces that are marked; vertices stay."""
    return TriangleMesh(mesh.vertices, mesh.faces[faces], mesh.uv)


def smooth(points: ArrayLike, count: int) -> F32:
    """A Catmull-Rom curve through points (K, C), sampled at ``count`` places, ends included."""
    p = np.asarray(points, np.float32)
    q = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, len(p) - 1, count)
    i = np.minimum(t.astype(int), len(p) - 2)
    f = (t - i)[:, None]
    a, b, c, d = q[i], q[i + 1], q[i + 2], q[i + 3]
    out = b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))
    return out.astype(np.float32)


def body(
    sections: ArrayLike,
    *,
    rings: int = 24,
    sides: int = 20,
    up: tuple[float, float, float] = (0, 0, 1),
) -> TriangleMesh:
    """A closed body along a smooth line of elliptical sections.

    Args:
        sections: (K, 5) rows x, y, z of the centre and the half widths across and upwards.
        rings: rings along the line.
        sides: sides of each ring.
        up: the upward direction of the sections; not along the line.
    """
    s = smooth(sections, rings)
    p, r = s[:, :3], np.maximum(s[:, 3:], 1e-4)
    t = np.gradient(p, axis=0)
    across = cross(t, np.asarray([up], np.float32))
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    high = cross(across, t)
    high /= np.maximum(np.linalg.norm(high, axis=1, keepdims=True), 1e-9)
    a = np.linspace(0, 2 * np.pi, sides + 1, dtype=np.float32) - np.float32(np.pi / 2)
    v = p[:, None] + (
        np.cos(a)[None, :, None] * across[:, None] * r[:, None, :1]
        + np.sin(a)[None, :, None] * high[:, None] * r[:, None, 1:]
    )
    v = np.concatenate(
        [np.repeat(p[:1, None], sides + 1, 1), v, np.repeat(p[-1:, None], sides + 1, 1)]
    )
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(p, axis=0), axis=1))])
    length = np.concatenate([length[:1] - r[0, 1], length, length[-1:] + r[-1, 1]])
    uv = np.stack(np.broadcast_arrays(a[None] * r.mean(), length[:, None]), -1)
    return TriangleMesh(
        v.reshape(-1, 3).astype(np.float32),
        grid_faces(len(v), sides + 1),
        uv.reshape(-1, 2).astype(np.float32),
    )


def stone(rng: np.random.Generator, size: ArrayLike, *, rows: int = 14) -> TriangleMesh:
    """A stone of half axes ``size`` (3,): a bumpy ball, cut flat at a few sides."""
    b = ball(rows, rows * 3 // 2)
    n = rng.integers(3, 9)
    v = b.vertices
    normals = rng.normal(size=(n, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for normal, cut in zip(normals, rng.uniform(0.5, 0.95, n), strict=True):
        v = v - np.maximum(v @ normal - cut, 0)[:, None] * normal * 0.9
    mesh = TriangleMesh(v.astype(np.float32), b.faces, b.uv).displace(rng, 0.16, 0.7)
    mesh = mesh.displace(rng, 0.04, 2.5)
    return mesh.transform(np.diag(np.asarray(size, np.float32)))


def fur(
    mesh: TriangleMesh,
    rng: np.random.Generator,
    count: int,
    length: float,
    *,
    lie: ArrayLike = (0, 0, -1),
    rise: float = 0.5,
    width: float = 0.05,
    where: NDArray[np.bool_] | None = None,
) -> tuple[TriangleMesh, NDArray[np.int64]]:
    """Tufts on a closed mesh around the origin's side of its faces, and the face of each.

    Args:
        mesh: what they grow on.
        rng: source of randomness.
        count: number of tufts.
        length: of a tuft, metres.
        lie: the direction in which they lie.
        rise: how far they stand up, 0 flat.
        width: half width as a share of the length.
        where: faces (F,) that have fur; None means all.
    """
    tri = mesh.vertices[mesh.faces]
    normal = cross(tri[:, 1] - tri[:, 0], tri[:, 2] - tri[:, 0])
    area = np.sqrt((normal * normal).sum(1))
    normal = normal / np.maximum(area, 1e-12)[:, None]
    middle = tri.mean(1)
    inside = mesh.vertices.mean(0)
    normal *= np.where(((middle - inside) * normal).sum(1) < 0, -1, 1)[:, None]
    share = area if where is None else area * where
    share = share / max(float(share.sum()), 1e-12)
    if not share.any():
        return TriangleMesh(tri[:0].reshape(0, 3), mesh.faces[:0], mesh.uv[:0]), np.zeros(0, int)
    face = rng.choice(len(share), count, p=share / share.sum())
    a, b = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    t = tri[face]
    base = t[:, 0] * (1 - a) + t[:, 1] * a * (1 - b) + t[:, 2] * a * b
    n = normal[face]
    along = np.asarray(lie, np.float32) + rng.normal(0, 0.3, (count, 3))
    along -= (along * n).sum(1, keepdims=True) * n
    d = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6) + rise * n
    size = length * rng.uniform(0.6, 1.3, count)
    return leaves(base, d, size, size * width, 0.1, shape="blade", rng=rng), face


def petals(
    base: ArrayLike,
    direction: ArrayLike,
    length: ArrayLike,
    width: ArrayLike,
    *,
    cup: float = 0.2,
    curl: float = 0.2,
    tip: float = 0.5,
    axis: ArrayLike = (0, 0, 1),
) -> TriangleMesh:
    """Curved petals as one mesh, 40 faces each.

    Args:
        base: (N, 3) where each begins, metres.
        direction: (N, 3) where it points.
        length: (N,) or one length in metres.
        width: (N,) or one half width in metres.
        cup: how far the edges rise above the middle, as a share of the width.
        curl: how far the end bends towards ``axis``, as a share of the length; may be negative.
        tip: where it is broadest, 0..1.
        axis: the flower's axis, unit length.
    """
    b, d = np.asarray(base, np.float32), np.asarray(direction, np.float32)
    n = len(b)
    d = d / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-6)
    up = np.asarray([axis], np.float32)
    side = cross(d, up + np.array([[1e-3, 2e-3, 0]], np.float32))
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-6)
    top = cross(side, d)
    t, s = np.linspace(0, 1, 6, dtype=np.float32), np.linspace(-1, 1, 5, dtype=np.float32)
    ln = np.broadcast_to(np.asarray(length, np.float32), (n,))[:, None, None, None]
    wd = np.broadcast_to(np.asarray(width, np.float32), (n,))[:, None, None, None]
    k = np.log(0.5) / np.log(np.clip(tip, 0.1, 0.9))
    outline = np.maximum(np.sin(np.pi * (0.06 + 0.9 * t) ** k), 0.06)[None, :, None, None]
    tt, ss = t[None, :, None, None], s[None, None, :, None]
    v = b[:, None, None] + d[:, None, None] * ln * tt + side[:, None, None] * wd * outline * ss
    rise = curl * ln * tt**2 + cup * wd * outline * ss**2
    v = v + top[:, None, None] * rise
    faces = grid_faces(6, 5)[None] + (30 * np.arange(n, dtype=np.int32))[:, None, None]
    uv = np.stack(np.broadcast_arrays(wd[..., 0] * ss[..., 0], ln[..., 0] * tt[..., 0]), -1)
    return TriangleMesh(
        v.reshape(-1, 3).astype(np.float32),
        faces.reshape(-1, 3).astype(np.int32),
        uv.reshape(-1, 2).astype(np.float32),
    )


def sphere_points(count: int) -> F32:
    """Points spread evenly over the unit sphere, (count, 3), from the top down."""
    k = np.arange(count) + 0.5
    z = 1 - 2 * k / count
    a = k * 2.399963
    r = np.sqrt(1 - z * z)
    return np.stack([r * np.cos(a), r * np.sin(a), z], 1).astype(np.float32)
