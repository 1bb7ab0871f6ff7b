"""Ray casting with Embree and vectorised shading."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dafast.optional import MissingPackageError, why_no_module
from dafast.synthetic.meshes import F32, I32, cross
from dafast.synthetic.scene import Scene, SceneMesh, View
from dafast.synthetic.textures import LEVEL_SIZE, LEVEL_START, LEVELS, SIZE, STRIDE

MISS = 1e20
MAX_DEPTH = 5000.0


@dataclass(frozen=True)
class SceneCamera:
    """A pinhole camera: x right, y down, z forward; pixel centres at (column + 0.5, row + 0.5).

    Attributes:
        width, height: pixels.
        fx, fy, cx, cy: intrinsics in pixels.
        rotation: float32 (3, 3), columns are the camera axes in world coordinates.
        eye: float32 (3,), metres.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    rotation: F32
    eye: F32

    def rays(self) -> F32:
        """World directions of all pixels, float32 (H*W, 3), with camera z = 1: so t is z-depth."""
        x = (np.arange(self.width, dtype=np.float32) + 0.5 - self.cx) / self.fx
        y = (np.arange(self.height, dtype=np.float32) + 0.5 - self.cy) / self.fy
        d = np.ones((self.height, self.width, 3), np.float32)
        d[..., 0], d[..., 1] = x[None], y[:, None]
        return d.reshape(-1, 3) @ np.ascontiguousarray(self.rotation.T)


def camera_from(view: View, size: tuple[int, int]) -> SceneCamera:
    """The camera of a view for an image of (width, height) pixels."""
    w, h = size
    f = 0.5 * max(w, h) / np.tan(np.radians(view.fov) / 2)
    z = view.target - view.eye
    z = z / max(float(np.linalg.norm(z)), 1e-6)
    up = np.array([0, 0, 1.0]) if abs(z[2]) < 0.999 else np.array([0, 1.0, 0])
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    a = np.radians(view.roll)
    x, y = np.cos(a) * x + np.sin(a) * y, np.cos(a) * y - np.sin(a) * x
    r = np.stack([x, y, z], 1).astype(np.float32)
    return SceneCamera(w, h, float(f), float(f), w / 2, h / 2, r, view.eye.astype(np.float32))


@dataclass(frozen=True)
class Hits:
    """First hits: depth (N,) float32 (inf on a miss), face (N,), barycentric u, v, raw normal."""

    depth: F32
    face: NDArray[np.int32]
    u: F32
    v: F32
    normal: F32


def require_embree() -> None:
    """Raises a `MissingPackageError` if the renderer cannot be imported."""
    if why := why_no_module("embreex", "embreex.mesh_construction", "embreex.rtcore_scene"):
        raise MissingPackageError(
            f"dafast.synthetic renders with embreex: pip install 'dafast[synth]' ({why})"
        )


class Tracer:
    """An Embree scene over a geometry.

    Raises:
        MissingPackageError: embreex is not installed.
    """

    def __init__(self, geometry: SceneMesh) -> None:
        require_embree()
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self.scene = EmbreeScene()
        self._mesh = TriangleMesh(self.scene, geometry.vertices, geometry.faces)

    def intersect(self, origins: F32, directions: F32) -> Hits:
        """Nearest hits of rays (N, 3); the depth is in units of each direction's length."""
        out = self.scene.run(origins, directions, query="INTERSECT", output=True)
        depth = out["tfar"].astype(np.float32)
        depth[(out["primID"] < 0) | (depth > MAX_DEPTH)] = np.inf
        return Hits(depth, out["primID"], out["u"], out["v"], out["Ng"])

    def occluded(
        self, origins: F32, directions: F32, reach: F32 | None = None
    ) -> NDArray[np.bool_]:
        """Whether a surface is on the rays (within ``reach``, in units of the directions)."""
        args = (origins, directions) if reach is None else (origins, directions, reach)
        return np.asarray(self.scene.run(*args, query="OCCLUDED")) == 0


def trace(tracer: Tracer, camera: SceneCamera) -> Hits:
    """First hits of all pixels of a camera, row-major."""
    d = camera.rays()
    return tracer.intersect(np.broadcast_to(camera.eye, d.shape).astype(np.float32), d)


def _unit(v: F32) -> F32:
    return v / np.sqrt(np.maximum(np.einsum("ij,ij->i", v, v), 1e-20))[:, None]


def vertex_normals(g: SceneMesh) -> tuple[F32, F32]:
    """Area-weighted vertex normals (V, 3) and doubled-area face normals (F, 3)."""
    a, b, c = (g.vertices[g.faces[:, k]] for k in range(3))
    fn = cross(b - a, c - a)
    n = len(g.vertices)
    idx = g.faces.ravel()
    vn = np.stack([np.bincount(idx, np.repeat(fn[:, k], 3), n) for k in range(3)], 1)
    return vn.astype(np.float32), fn.astype(np.float32)


def _texel(
    bank: NDArray[np.uint8], base: NDArray[np.int32], side: NDArray[np.int32], uv: F32
) -> F32:
    """Bilinear samples with mirrored repeat; uv (N, 2) in textures, result (N, 3) in 0..1."""
    m = np.abs(uv - 2.0 * np.floor(uv * 0.5 + 0.5))  # triangle wave: 0..1..0
    p = m * side[:, None] - 0.5
    i = np.floor(p).astype(np.int32)
    f = (p - i).astype(np.float32)
    last = side - 1
    x0, y0 = np.clip(i[:, 0], 0, last), np.clip(i[:, 1], 0, last)
    x1, y1 = np.clip(i[:, 0] + 1, 0, last), np.clip(i[:, 1] + 1, 0, last)
    r0, r1 = base + y0 * side, base + y1 * side
    fx, fy = f[:, :1], f[:, 1:]
    top = bank[r0 + x0] * (1 - fx) + bank[r0 + x1] * fx
    low = bank[r1 + x0] * (1 - fx) + bank[r1 + x1] * fx
    return (top * (1 - fy) + low * fy) * np.float32(1 / 255)


def sky_colour(scene: Scene, d: F32) -> F32:
    """Environment colour in directions d (N, 3), unit length."""
    e = scene.env
    t = np.clip(d[:, 2:], -1, 1)
    up = np.sqrt(np.clip(t, 0, 1))
    c = e.horizon * (1 - up) + e.zenith * up
    c = np.where(t < 0, e.horizon + (e.ground - e.horizon) * np.minimum(-4 * t, 1), c)
    if e.cloud_row is not None:
        uv = d[:, :2] / (np.maximum(t, 0.0) + 0.25) * 0.35
        n = len(d)
        tex = _texel(
            scene.bank.texels,
            np.full(n, e.cloud_row * STRIDE, np.int32),
            np.full(n, SIZE, np.int32),
            uv,
        )[:, :1]
        k = np.clip((tex - 0.45) * 4, 0, 1) * e.cloud * np.clip(t * 5, 0, 1)
        c = c * (1 - k) + (0.4 + 0.6 * tex) * k * (e.horizon.max() * 1.1)
    return c.astype(np.float32)


def _open_sky(
    scene: Scene,
    tracer: Tracer,
    camera: SceneCamera,
    hit: NDArray[np.bool_],
    origins: F32,
    normals: F32,
    depth: F32,
    noise: np.random.Generator,
) -> F32:
    """Ambient occlusion of hit pixels (M,), 1 = open: a short ray per 2x2 pixels, smoothed."""
    h, w = camera.height, camera.width
    index = np.full(h * w, -1, np.int32)
    index[hit] = np.arange(len(depth), dtype=np.int32)
    coarse = index.reshape(h, w)[::2, ::2]
    some = coarse >= 0
    rows = coarse[some]
    bounce = _unit(noise.standard_normal((len(rows), 3), np.float32)) + normals[rows]
    reach = float(np.clip(0.25 * np.median(depth), 0.05, 4.0)) * scene.u(0.5, 1.5)
    far = np.full(len(rows), reach, np.float32)
    blocked = tracer.occluded(np.ascontiguousarray(origins[rows]), _unit(bounce), far)
    occluded, z = np.zeros(coarse.shape, np.float32), np.full(coarse.shape, 1e9, np.float32)
    occluded[some], z[some] = blocked, depth[rows]
    total, weight = np.zeros_like(z), np.full_like(z, 1e-6)
    rows_2, cols_2 = (h + 1) // 2, (w + 1) // 2
    pad_o, pad_z = np.pad(occluded, 3, "edge"), np.pad(z, 3, "edge")
    for dy in range(7):
        for dx in range(7):
            near = np.abs(pad_z[dy : dy + rows_2, dx : dx + cols_2] - z) < 0.06 * z
            total += pad_o[dy : dy + rows_2, dx : dx + cols_2] * near
            weight += near
    smooth = np.repeat(np.repeat(total / weight, 2, 0), 2, 1)[:h, :w]
    return 1 - np.float32(scene.u(0.5, 1.0)) * smooth.reshape(-1)[hit]


@dataclass(frozen=True)
class _Surface:
    """The points that rays hit, one row each.

    Attributes:
        pos: where they are, metres.
        lift: the same, moved off the surface by a little, where further rays begin.
        nrm: smooth normals, towards the camera.
        flat: normals of the triangles, of the same shape.
        view: directions to the camera, unit length.
        depth: along the optical axis, metres.
        dist: from the camera, metres.
        mat: index of the material.
    """

    pos: F32
    lift: F32
    nrm: F32
    flat: F32
    view: F32
    depth: F32
    dist: F32
    mat: I32


def shade(
    scene: Scene,
    g: SceneMesh,
    tracer: Tracer,
    camera: SceneCamera,
    hits: Hits,
    noise: np.random.Generator | None = None,
) -> F32:
    """Linear radiance of all pixels, float32 (N, 3).

    ``noise`` draws the numbers whose count depends on the picture, by default ``scene.rng``.
    """
    noise = noise or scene.rng
    rays = camera.rays()
    length = np.sqrt(np.einsum("ij,ij->i", rays, rays))
    out = np.empty((len(rays), 3), np.float32)
    hit = np.isfinite(hits.depth)
    miss = ~hit
    if miss.any():
        out[miss] = sky_colour(scene, rays[miss] / length[miss][:, None])
    if not hit.any():
        return out
    points, albedo = _surface(scene, g, camera, hits, hit, rays, length)
    e = scene.env
    t = (0.5 + 0.5 * points.nrm[:, 2:]).astype(np.float32)
    ambient = (e.ground * 0.6 * (1 - t) + e.zenith * 0.5 * t + e.horizon * 0.3) * e.ambient
    if scene.chance(0.7):
        open_sky = _open_sky(
            scene, tracer, camera, hit, points.lift, points.nrm, points.depth, noise
        )
        ambient = ambient * open_sky[:, None]
    light, spec = _lamps(scene, tracer, points, ambient.astype(np.float32))
    radiance = albedo * light + spec
    mats, mat = scene.materials, points.mat
    mirror = np.array([m.mirror for m in mats], np.float32)[mat]
    shiny = np.flatnonzero(mirror > 0)
    if len(shiny):
        n, w = points.nrm[shiny], points.view[shiny]
        refl = 2 * np.einsum("ij,ij->i", n, w)[:, None] * n - w
        seen = sky_colour(scene, refl) * (0.6 + 0.4 * np.sin(refl @ _DIRT_K * 3).prod(1))[:, None]
        f = mirror[shiny] * (0.5 + 0.5 * (1 - np.clip((n * w).sum(1), 0, 1)) ** 3)
        radiance[shiny] = radiance[shiny] * (1 - f[:, None]) + seen * f[:, None]
    glow = np.array([m.emission for m in mats], np.float32)[mat]
    if glow.any():
        radiance = radiance + albedo * glow[:, None]
    if e.fog > 0:
        k = 1 - np.exp(-e.fog * points.dist)[:, None]
        radiance = radiance * (1 - k) + e.fog_colour * k
    out[hit] = radiance
    return out


def _surface(
    scene: Scene,
    g: SceneMesh,
    camera: SceneCamera,
    hits: Hits,
    hit: NDArray[np.bool_],
    rays: F32,
    length: F32,
) -> tuple[_Surface, F32]:
    """The points that rays hit and their albedo, float32 (M, 3)."""
    face, u, v = hits.face[hit], hits.u[hit][:, None], hits.v[hit][:, None]
    depth = hits.depth[hit]
    ray = rays[hit]
    view = -ray / length[hit][:, None]
    dist = depth * length[hit]
    tri = g.faces[face]
    w0 = 1 - u - v
    vn, fn = vertex_normals(g)
    flat = _unit(fn[face])
    flat *= np.where(np.einsum("ij,ij->i", flat, view) < 0, -1, 1).astype(np.float32)[:, None]
    nrm = _unit(vn[tri[:, 0]] * w0 + vn[tri[:, 1]] * u + vn[tri[:, 2]] * v)
    nrm *= np.where(np.einsum("ij,ij->i", nrm, flat) < 0, -1, 1).astype(np.float32)[:, None]
    pos = camera.eye + ray * depth[:, None]
    mat = g.material[face]
    cos = np.maximum(np.einsum("ij,ij->i", flat, view), 0.05)
    uv = g.uv[tri[:, 0]] * w0 + g.uv[tri[:, 1]] * u + g.uv[tri[:, 2]] * v
    e1, e2 = g.uv[g.faces[:, 1]] - g.uv[g.faces[:, 0]], g.uv[g.faces[:, 2]] - g.uv[g.faces[:, 0]]
    uv_area = np.abs(e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0])
    density = np.sqrt(uv_area / np.maximum(np.sqrt((fn**2).sum(1)), 1e-12))
    footprint = dist / camera.fx / np.sqrt(cos) * np.maximum(density[face], 1e-4)
    lift = pos + flat * (2e-3 * np.maximum(depth, 0.3))[:, None]
    return (
        _Surface(pos, lift, nrm, flat, view, depth, dist, mat),
        _albedo(scene, pos, mat, uv, footprint),
    )


def _albedo(scene: Scene, pos: F32, mat: I32, uv: F32, footprint: F32) -> F32:
    """Reflected share of light, float32 (M, 3).

    Args:
        scene: materials and textures.
        pos: the points (M, 3), for dirt.
        mat: index of the material of each.
        uv: texture coordinates (M, 2), before the material's own scale, turn and shift.
        footprint: size of a pixel in these coordinates, (M,).
    """
    mats = scene.materials
    scale = np.array([m.scale for m in mats], np.float32)
    footprint = footprint * scale[mat] * SIZE
    level = np.clip(np.log2(np.maximum(footprint, 1e-3)) + 0.3, 0, LEVELS - 1).astype(np.int32)
    turn = np.array([m.turn for m in mats], np.float32)
    c, s = (np.cos(turn) * scale)[mat], (np.sin(turn) * scale)[mat]
    shift = np.array([m.shift for m in mats], np.float32)[mat]
    uv = np.stack([c * uv[:, 0] - s * uv[:, 1], s * uv[:, 0] + c * uv[:, 1]], 1) + shift
    row = np.array([m.row for m in mats], np.int32)[mat]
    texel = _texel(scene.bank.texels, row * STRIDE + LEVEL_START[level], LEVEL_SIZE[level], uv)
    matrix = np.stack([m.matrix for m in mats])
    photo = (row >= scene.bank.first_photo)[:, None]
    texel = np.where(photo, texel * texel, texel)  # photographs are gamma coded
    albedo = np.stack([m.offset for m in mats]).take(mat, 0)
    for k in range(3):
        albedo += np.ascontiguousarray(matrix[:, :, k]).take(mat, 0) * texel[:, k : k + 1]
    albedo = np.clip(albedo, 0.008, 0.97)
    dirt = np.array([m.dirt for m in mats], np.float32)[mat]
    if dirt.any():
        wave = np.sin(pos @ _DIRT_K * 1.7 + _DIRT_P).prod(1)
        wave += 0.5 * np.sin(pos @ _DIRT_K[:, ::-1] * 6.1 + _DIRT_P).prod(1)
        albedo = albedo * (1 - dirt * np.clip(0.5 + wave, 0, 1))[:, None]
    return albedo.astype(np.float32)


def _lamps(scene: Scene, tracer: Tracer, points: _Surface, ambient: F32) -> tuple[F32, F32]:
    """Diffuse light, the ambient included, and highlights of all lamps, float32 (M, 3) each."""
    glossy = np.array([m.specular for m in scene.materials], np.float32)[points.mat]
    shine = np.array([m.shininess for m in scene.materials], np.float32)[points.mat]
    nrm, flat, view, lift = points.nrm, points.flat, points.view, points.lift
    light, spec = ambient, np.zeros_like(ambient)
    for k, lamp in enumerate(scene.lights[:3]):
        if lamp.direction is not None:
            to = np.broadcast_to(_unit(lamp.direction[None]), lift.shape)
            power, reach = np.ones(len(lift), np.float32), None
        else:
            assert lamp.position is not None, "a light has a direction or a position"
            d = lamp.position - lift
            r2 = np.einsum("ij,ij->i", d, d)
            reach = np.sqrt(r2)
            to, power = d / reach[:, None], 1.0 / (0.15 + r2)
        lam = np.clip(np.einsum("ij,ij->i", nrm, to), 0, None) * power
        lam *= np.einsum("ij,ij->i", flat, to) > 0
        if lamp.shadow and k < 2:
            lit = np.flatnonzero(lam > 1e-4)
            if len(lit):
                o = np.ascontiguousarray(lift[lit], np.float32)
                q = np.ascontiguousarray(to[lit], np.float32)
                limit = None if reach is None else (reach[lit] * 0.98).astype(np.float32)
                lam[lit[tracer.occluded(o, q, limit)]] = 0
        light += lam[:, None] * lamp.colour
        shiny = np.flatnonzero((glossy > 0) & (lam > 1e-4))
        if len(shiny) and k < 2:
            half = _unit(to[shiny] + view[shiny])
            nh = np.clip(np.einsum("ij,ij->i", nrm[shiny], half), 0, 1)
            p = shine[shiny]
            b = glossy[shiny] * nh**p * (p + 8) / 40 * power[shiny]
            spec[shiny] += b[:, None] * lamp.colour
    return light, spec


_DIRT_K = np.array([[0.9, -0.5, 0.3], [0.4, 1.1, -0.6], [-0.3, 0.7, 1.2]], np.float32)
_DIRT_P = np.array([0.3, 1.7, 4.1], np.float32)


def develop(
    rng: np.random.Generator,
    linear: F32,
    size: tuple[int, int],
    grain_rng: np.random.Generator | None = None,
) -> NDArray[np.uint8]:
    """Radiance (N, 3) to an 8-bit picture (H, W, 3), as a random camera would.

    ``grain_rng`` draws the grain, by default ``rng``, which draws the camera.
    """
    from PIL import Image, ImageFilter

    w, h = size
    x = linear.reshape(h, w, 3)
    lum = x.mean(-1)
    key = float(np.exp(np.log(np.maximum(lum, 1e-4)).mean()) * 0.5 + np.median(lum) * 0.5)
    x = x * np.float32(np.clip(np.exp(rng.normal(np.log(0.18), 0.45)), 0.05, 0.6) / max(key, 1e-4))
    x = x * np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)  # white balance
    if rng.random() < 0.3:
        yy, xx = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype(np.float32)
        x = x * (1 - np.float32(rng.uniform(0.1, 0.5)) * (xx**2 + yy**2)[..., None] * 0.5)
    if rng.random() < 0.4:
        x = 1.2 * x * (1 + x / np.float32(rng.uniform(1.2, 3.0)) ** 2) / (1 + x)  # filmic shoulder
    x = np.maximum(x, 0) ** np.float32(1 / rng.uniform(1.8, 2.4))
    if rng.random() < 0.75:  # the contrast that cameras give: darkest and brightest parts spread
        low, high = np.percentile(x[::3, ::3], [rng.uniform(0.2, 3), rng.uniform(95, 99.7)])
        gain = min(float(rng.uniform(0.85, 1.02)) / max(float(high - low), 0.1), 2.5)
        x = (x - np.float32(low)) * np.float32(gain) + np.float32(rng.uniform(0, 0.05))
    x = np.clip(x, 0, 1)
    k = float(rng.uniform(-0.1, 0.4))
    x = x - k * x * (1 - x) * (1 - 2 * x) * 2
    if rng.random() < 0.1:
        x = np.repeat((x @ np.array([0.3, 0.59, 0.11], np.float32))[..., None], 3, -1)
    elif rng.random() < 0.3:
        g = x.mean(-1, keepdims=True)
        x = g + (x - g) * np.float32(rng.uniform(0.4, 1.5))
    image = (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.35:
        blurred = Image.fromarray(image).filter(
            ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.3)))
        )
        image = np.asarray(blurred)
    if rng.random() < 0.6:
        sigma = float(rng.exponential(3.0))
        grain = (grain_rng or rng).standard_normal((h, w, 3), np.float32) * np.float32(
            min(sigma, 14.0)
        )
        image = np.clip(image + grain + 0.5, 0, 255).astype(np.uint8)
    return image


__all__ = [
    "SceneCamera",
    "Hits",
    "Tracer",
    "camera_from",
    "develop",
    "shade",
    "sky_colour",
    "trace",
]
