"""Two views of a scene: matches, rectification and disparity for `real_scenes.py`."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

Array = np.ndarray


def match(left: Array, right: Array, lowest: int, count: int) -> Array:
    """Disparity of rectified views in pixels, float32 (H, W), NaN where it is not certain."""
    grey = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (left, right)]
    count = -(-count // 16) * 16
    matcher = cv2.StereoSGBM_create(
        minDisparity=lowest, numDisparities=count, blockSize=5, P1=200, P2=1600, disp12MaxDiff=1,
        uniquenessRatio=8, speckleWindowSize=150, speckleRange=2, preFilterCap=31,
        mode=cv2.STEREO_SGBM_MODE_HH,
    )  # fmt: skip
    # A border lets the matcher reach the pixels at the sides.
    pad = count + max(lowest, 0)
    wide = [cv2.copyMakeBorder(g, 0, 0, pad, pad, cv2.BORDER_REPLICATE) for g in grey]
    there = matcher.compute(wide[0], wide[1])[:, pad:-pad].astype(np.float32) / 16
    mirror = [np.ascontiguousarray(g[:, ::-1]) for g in wide]
    back = matcher.compute(mirror[1], mirror[0])[:, ::-1][:, pad:-pad].astype(np.float32) / 16
    w = there.shape[1]
    column = np.arange(w)[None] - there
    inside = (column >= 0) & (column <= w - 1)
    target = np.clip(np.round(column), 0, w - 1).astype(int)
    agree = np.abs(np.take_along_axis(back, target, 1) - there) < 1
    return np.where(inside & agree & (there > lowest), there, np.nan).astype(np.float32)


def matches(left: Array, right: Array) -> tuple[Array, Array]:
    """Corresponding points of two views, float64 (N, 2) each."""
    sift = cv2.SIFT_create(6000)
    a, da = sift.detectAndCompute(cv2.cvtColor(left, cv2.COLOR_RGB2GRAY), None)
    b, db = sift.detectAndCompute(cv2.cvtColor(right, cv2.COLOR_RGB2GRAY), None)
    pairs = cv2.BFMatcher().knnMatch(da, db, k=2)
    good = [m for m, n in pairs if m.distance < 0.75 * n.distance]
    return (
        np.array([a[m.queryIdx].pt for m in good], float),
        np.array([b[m.trainIdx].pt for m in good], float),
    )


def align_rows(left: Array, right: Array) -> tuple[Array, Array]:
    """The right view of two parallel cameras with its rows moved to those of the left view.

    Args:
        left, right: the views, uint8 (H, W, 3).

    Returns:
        The right view, and the disparities of the matches in pixels.

    Raises:
        ValueError: the rows of matches differ by more than half a pixel afterwards.
    """
    a, b = matches(left, right)
    columns = np.stack([b[:, 0], b[:, 1], np.ones(len(b))], 1)
    good = np.abs(a[:, 1] - b[:, 1] - np.median(a[:, 1] - b[:, 1])) < 12
    for limit in (4, 2, 1, 1):
        row, *_ = np.linalg.lstsq(columns[good], a[good, 1], rcond=None)
        rest = np.abs(columns @ row - a[:, 1])
        good = rest < limit
    if good.sum() < 30 or np.median(rest[good]) > 0.5:
        raise ValueError(f"the rows of {good.sum()} matches differ")
    size = left.shape[1], left.shape[0]
    moved = cv2.warpAffine(right, np.stack([[1, 0, 0], row]), size, flags=cv2.INTER_AREA)
    shift = a[good, 0] - b[good, 0]
    middle = np.median(shift)
    return moved, shift[np.abs(shift - middle) < 6 * np.median(np.abs(shift - middle)) + 2]


def rig(pairs: list[tuple[Array, Array]], board: tuple[int, int]) -> list[tuple[Array, Array]]:
    """Rectifies the pairs of two fixed cameras, calibrated with the chessboard that they show."""
    grid = np.zeros((board[0] * board[1], 3), np.float32)
    grid[:, :2] = np.mgrid[: board[0], : board[1]].T.reshape(-1, 2)
    corners = []
    for pair in pairs:
        found = [
            cv2.findChessboardCornersSB(cv2.cvtColor(v, cv2.COLOR_RGB2GRAY), board) for v in pair
        ]
        if all(ok for ok, _ in found):
            corners.append([c for _, c in found])
    size = pairs[0][0].shape[1::-1]
    grids = [grid] * len(corners)
    cameras = [
        cv2.calibrateCamera(grids, [c[i] for c in corners], size, None, None)[1:3] for i in (0, 1)
    ]
    (k1, d1), (k2, d2) = cameras
    sides = [[c[i] for c in corners] for i in (0, 1)]
    error, k1, d1, k2, d2, r, t, *_ = cv2.stereoCalibrate(
        grids, *sides, k1, d1, k2, d2, size, flags=cv2.CALIB_FIX_INTRINSIC
    )
    print(f"rig: {len(corners)} pairs with a board, error {error:.2f} pixels")
    return [rectified(pair, (k1, k2), (d1, d2), r, t) for pair in pairs]


def rectified(
    pair: Sequence[Array],
    cameras: tuple[Array, Array],
    distortions: tuple[Array | None, Array | None],
    rotation: Array,
    translation: Array,
) -> tuple[Array, Array]:
    """Two views with their rows on the same lines, for the motion from the left to the right."""
    (k1, k2), (d1, d2), size = cameras, distortions, pair[0].shape[1::-1]
    r1, r2, p1, p2, *_ = cv2.stereoRectify(k1, d1, k2, d2, size, rotation, translation, alpha=0)
    left, right = (
        cv2.remap(
            view, *cv2.initUndistortRectifyMap(k, d, rot, p, size, cv2.CV_32FC1), cv2.INTER_AREA
        )
        for view, k, d, rot, p in zip(pair, (k1, k2), (d1, d2), (r1, r2), (p1, p2), strict=True)
    )
    return left, right


def camera(focal: float, x: float, y: float) -> Array:
    """The matrix of a camera with its focal length and principal point in pixels."""
    return np.array([[focal, 0, x], [0, focal, y], [0, 0, 1.0]])


def moved_camera(left: Array, right: Array, focal: float) -> tuple[Array, Array]:
    """Rectifies two views of one camera that moved to the right; its focal length is in pixels."""
    h, w = left.shape[:2]
    k = camera(focal, w / 2, h / 2)
    a, b = matches(left, right)
    essential, inside = cv2.findEssentialMat(a, b, k, cv2.RANSAC, 0.999, 1.0)
    count, rotation, translation, _ = cv2.recoverPose(essential, a, b, k, mask=inside)
    if count < 100 or translation[0] > -0.9:
        raise ValueError(f"{count} matches, motion {translation.ravel().round(2)}")
    return rectified((left, right), (k, k), (None, None), rotation, translation)


class Panoramas:
    """Two panoramas of one place, in equirectangular projection.

    The motion of the camera comes from matches near the horizon: directions of the same point in
    both panoramas meet the epipolar constraint, which holds on a sphere as in a plane.

    Args:
        first, second: uint8 (W / 2, W, 3).
    """

    def __init__(self, first: Array, second: Array) -> None:
        self.panoramas = first, second
        h = len(first)
        top, bottom = round(0.35 * h), round(0.63 * h)
        points = matches(first[top:bottom], second[top:bottom])
        a, b = (self._directions(p + np.array([0, top]), 2 * h) for p in points)
        essential, good = _essential(a, b)
        self.rotation, translation = _motion(essential, a[good], b[good])
        self.step = -self.rotation.T @ translation  # from the first camera to the second

    @staticmethod
    def _directions(points: Array, width: int) -> Array:
        """Unit vectors (right, down, forwards) of pixels of a panorama."""
        east, down = ((points / width - (0.5, 0.25)) * 2 * np.pi).T
        return np.stack([np.cos(down) * np.sin(east), np.sin(down), np.cos(down) * np.cos(east)], 1)

    def views(self, focal: float, size: tuple[int, int]) -> tuple[Array, Array]:
        """The rectified views to the left of the motion: that of the first camera, then the second.

        Args:
            focal: Focal length in pixels.
            size: Width and height in pixels.
        """
        forwards = np.cross(self.step, [0, 1.0, 0])
        forwards /= np.linalg.norm(forwards)
        axes = np.stack([self.step, np.cross(forwards, self.step), forwards])
        u, v = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
        rays = np.stack([(u - size[0] / 2) / focal, (v - size[1] / 2) / focal, u * 0 + 1], -1)
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        turned = rays @ axes, rays @ axes @ self.rotation.T
        left, right = (
            self._look(panorama, way) for panorama, way in zip(self.panoramas, turned, strict=True)
        )
        return left, right

    @staticmethod
    def _look(panorama: Array, way: Array) -> Array:
        """The colours of a panorama in directions (H, W, 3)."""
        turn = panorama.shape[1] / (2 * np.pi)
        x = (np.arctan2(way[..., 0], way[..., 2]) + np.pi) * turn
        y = (np.arcsin(way[..., 1]) + np.pi / 2) * turn
        return cv2.remap(
            panorama, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )  # fmt: skip


def _essential(a: Array, b: Array) -> tuple[Array, Array]:
    """The essential matrix of directions (N, 3), and which of them agree to 0.003 rad."""

    def fit(chosen: Array) -> Array:
        rows = (b[chosen, :, None] * a[chosen, None, :]).reshape(-1, 9)
        u, _, v = np.linalg.svd(np.linalg.svd(rows)[2][-1].reshape(3, 3))
        return u @ np.diag([1, 1, 0]) @ v

    def agree(essential: Array) -> Array:
        line = a @ essential.T
        return np.abs((b * line).sum(1)) < 0.003 * np.linalg.norm(line, axis=1)

    draw = np.random.default_rng(0)
    tries = (agree(fit(draw.choice(len(a), 8, replace=False))) for _ in range(3000))
    good = max(tries, key=np.count_nonzero)
    for _ in range(8):
        essential = fit(np.flatnonzero(good))
        good = agree(essential)
    return essential, good


def _motion(essential: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Rotation and unit translation with the most points in front of both cameras."""
    u, _, v = np.linalg.svd(essential)
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    found = []
    for turn in (quarter, quarter.T):
        rotation = u @ turn @ v
        rotation *= np.sign(np.linalg.det(rotation))
        for t in (u[:, 2], -u[:, 2]):
            ahead = a @ rotation.T  # near * ahead + t = far * b
            normal = np.cross(b, ahead)
            near = -(np.cross(b, t) * normal).sum(1)
            far = -(np.cross(ahead, t) * normal).sum(1)
            found.append((np.count_nonzero((near > 0) & (far > 0)), rotation, t))
    _, rotation, translation = max(found, key=lambda one: one[0])
    return rotation, translation


def relative(first: Sequence[float], second: Sequence[float]) -> tuple[Array, Array]:
    """Rotation and translation from one camera to another, of their poses.

    Args:
        first, second: unit quaternion (w, x, y, z) and translation from the world to the camera.
    """

    def rotation(w: float, *axis: float) -> Array:
        length = np.linalg.norm(axis)
        return cv2.Rodrigues(2 * np.arctan2(length, w) * np.array(axis) / length)[0]

    r1, r2 = rotation(*first[:4]), rotation(*second[:4])
    turn = r2 @ r1.T
    return turn, (np.array(second[4:]) - turn @ np.array(first[4:]))[:, None]
