"""A world that artists made: triangles, textures and baked light."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dafast.synthetic.meshes import F32, I32, cross
from dafast.synthetic.render import Hits, Tracer
from dafast.synthetic.scene import SceneMesh
from dafast.synthetic.worlds.atlas import Atlas

B1 = NDArray[np.bool_]


@dataclass(frozen=True)
class GameWorld:
    """Geometry and looks of a world, in metres, z up.

    Attributes:
        name: as ``openarena/oa_dm1``.
        vertices: float32 (V, 3).
        faces: int32 (F, 3); counter-clockwise from the side that is seen.
        uv: float32 (V, 2), texture coordinates.
        light_uv: float32 (V, 2), coordinates in the lightmap.
        light: float32 (V, 3), baked light of vertices, gamma coded; for faces without a lightmap.
        texture: int32 (F,), row of ``textures``.
        lightmap: int32 (F,), row of ``lightmaps``, or -1.
        sky: bool (F,), faces through which the sky is seen.
        cutout: bool (F,), faces with holes where the texture is transparent; seen from both sides.
        glow: bool (F,), faces that shine by themselves.
        liquid: bool (F,), surfaces of water, slime or lava.
        closed: whether the world has no gaps, so that a ray always hits something; its light is
            baked. The sun lights a world that is not closed.
        textures, lightmaps: pictures.
    """

    name: str
    vertices: F32
    faces: I32
    uv: F32
    light_uv: F32
    light: F32
    texture: I32
    lightmap: I32
    sky: B1
    cutout: B1
    glow: B1
    liquid: B1
    closed: bool
    textures: Atlas
    lightmaps: Atlas | None

    @cached_property
    def tracer(self) -> Tracer:
        """An Embree scene of all faces."""
        zero = np.zeros(len(self.faces), np.int32)
        return Tracer(SceneMesh(self.vertices, self.faces, self.uv, zero, zero, zero))

    @cached_property
    def doubled_normals(self) -> F32:
        """Normals of the faces, as long as twice their area, (F, 3)."""
        a, b, c = (self.vertices[self.faces[:, k]] for k in range(3))
        return cross(b - a, c - a).astype(np.float32)

    @cached_property
    def normals(self) -> F32:
        """Normals of the faces, unit length, (F, 3)."""
        n = self.doubled_normals
        return n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-12).astype(np.float32)

    @cached_property
    def density(self) -> F32:
        """Textures per metre on each face, (F,)."""
        a, b, c = (self.uv[self.faces[:, k]] for k in range(3))
        e, f = b - a, c - a
        area = np.abs(e[:, 0] * f[:, 1] - e[:, 1] * f[:, 0])
        doubled = np.linalg.norm(self.doubled_normals, axis=1)
        return np.sqrt(area / np.maximum(doubled, 1e-9)).astype(np.float32)

    @cached_property
    def floors(self) -> tuple[I32, F32]:
        """Faces on which a person could stand, and the cumulative chance of each."""
        level = (self.normals[:, 2] > 0.7) & ~self.sky & ~self.cutout & ~self.liquid
        rows = np.flatnonzero(level).astype(np.int32)
        area = np.linalg.norm(self.doubled_normals[rows], axis=1) / 2
        weight = np.minimum(area, 40.0)  # a plain does not outweigh all rooms
        return rows, np.cumsum(weight) / max(float(weight.sum()), 1e-9)

    def interpolate(self, values: F32, hits: Hits, rows: NDArray[np.integer]) -> F32:
        """Values of vertices (V, K) at some of the hits, (len(rows), K)."""
        u, v = hits.u[rows, None], hits.v[rows, None]
        a, b, c = (values[self.faces[hits.face[rows], k]] for k in range(3))
        return (a * (1 - u - v) + b * u + c * v).astype(np.float32)

    def intersect(self, origins: F32, directions: F32) -> Hits:
        """Nearest hits of rays, through the holes of foliage and grates.

        Args:
            origins, directions: float32 (N, 3).

        Returns:
            The hits; the depth of a sky face stays finite (see ``sky``).
        """
        hits = self.tracer.intersect(origins, directions)
        if not self.cutout.any():
            return hits
        rows = np.flatnonzero(np.isfinite(hits.depth) & self.cutout[hits.face])
        for _ in range(8):
            if not len(rows):
                break
            face = hits.face[rows]
            uv = self.interpolate(self.uv, hits, rows)
            reach = hits.depth[rows]
            footprint = reach * np.float32(0.004) * self.density[face]
            hole = self.textures.sample(self.texture[face], uv, footprint)[:, 3] < 0.5
            rows, reach = rows[hole], reach[hole] * np.float32(1.0001) + np.float32(0.003)
            if not len(rows):
                break
            o = np.ascontiguousarray(origins[rows] + directions[rows] * reach[:, None], np.float32)
            more = self.tracer.intersect(o, np.ascontiguousarray(directions[rows]))
            hits.depth[rows] = more.depth + reach
            for mine, theirs in (
                (hits.face, more.face), (hits.u, more.u), (hits.v, more.v)
            ):  # fmt: skip
                mine[rows] = theirs
            rows = rows[np.isfinite(more.depth) & self.cutout[more.face]]
        return hits
