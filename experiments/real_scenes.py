"""Builds a validation set of real scenes from pictures that packages carry.

Two views of a scene are rectified and matched (semi-global matching, in both directions); only
pixels where both directions agree are kept. Where the angle between the cameras is not known, the
distance of the farthest surface is assumed: 20 m in two winter scenes, 8 m at rocks, 5 m on a
deck, the horizon on a path. Two places have depth that a sensor or a telephone measured. The
pictures stay in the packages; this script only reads them:

    mkdir packages
    (cd packages && apt-get download opencv-doc visp-images-data mrpt-common)
    pip download --no-deps --no-binary :all: -d packages pillow pillow-heif disparity-view
    pip install opencv-python-headless pillow-heif
    python experiments/real_scenes.py --packages packages --out data/real-scenes

The result is a folder with one shard for `data.eval_path` of `dafast train` and `--data` of
`dafast data check shards`, and a sheet of all pictures with their disparity to look at.
The two photos of `dafast eval --data builtin` are not in it.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
from PIL import Image

from dafast.data.sources import label_members

Array = np.ndarray
WIDTH = 640  # of the pictures in the set
# Focal length in pixels of pictures of WIDTH times the distance between the lenses in metres: the
# disparity of a surface at one metre. FinePix Real 3D: 35 mm (of 36 mm) and 0.075 m; Vision Pro.
FUJI = 0.97 * WIDTH * 0.075
VISION = 0.8 * WIDTH * 0.064
_FARTHEST = 1 / 30  # share of the largest disparity that is still kept


def unpack(packages: Path, to: Path) -> None:
    """Unpacks Debian packages and source archives of Python packages."""
    for path in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(path), str(to)], check=True)
    for path in sorted(packages.glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            tar.extractall(to, filter="data")


def find(root: Path, pattern: str) -> Path:
    """The one file below root that ends with a path."""
    found = sorted(root.glob(f"**/{pattern}"))
    if not found:
        raise SystemExit(f"missing {pattern}: is its package among --packages?")
    return found[0]


def rgb(picture: Image.Image) -> Array:
    """A picture of at most WIDTH pixels, uint8 (H, W, 3)."""
    picture = picture.convert("RGB")
    scale = WIDTH / picture.width
    if scale < 1:
        size = WIDTH, round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)


def views_of_mpo(path: Path) -> tuple[Array, Array]:
    """Both pictures of an MPO file, left first."""
    with Image.open(path) as file:
        file.seek(0)
        left = rgb(file)
        file.seek(1)
        return left, rgb(file)


def views_of_heic(path: Path) -> tuple[Array, Array]:
    """Both pictures of an HEIC file."""
    file = pillow_heif.open_heif(path)
    return rgb(file[0].to_pillow()), rgb(file[1].to_pillow())


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


def _matches(left: Array, right: Array) -> tuple[Array, Array]:
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
    a, b = _matches(left, right)
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


def rig(paths: list[tuple[Path, Path]], board: tuple[int, int]) -> list[tuple[Array, Array]]:
    """Rectifies the pairs of two fixed cameras, calibrated with the chessboard that they show."""
    grid = np.zeros((board[0] * board[1], 3), np.float32)
    grid[:, :2] = np.mgrid[: board[0], : board[1]].T.reshape(-1, 2)
    pairs, corners = [], []
    for files in paths:
        views = [rgb(Image.open(f)) for f in files]
        found = [
            cv2.findChessboardCornersSB(cv2.cvtColor(v, cv2.COLOR_RGB2GRAY), board) for v in views
        ]
        pairs.append(views)
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
    r1, r2, p1, p2, *_ = cv2.stereoRectify(k1, d1, k2, d2, size, r, t, alpha=0)
    maps = [
        cv2.initUndistortRectifyMap(k, d, rot, p, size, cv2.CV_32FC1)
        for k, d, rot, p in ((k1, d1, r1, p1), (k2, d2, r2, p2))
    ]
    return [
        (cv2.remap(a, *maps[0], cv2.INTER_AREA), cv2.remap(b, *maps[1], cv2.INTER_AREA))
        for a, b in pairs
    ]


def castle(folder: Path, frame: int) -> tuple[Array, Array]:
    """A frame of ViSP's castle, with the depth of its sensor moved into the picture's camera."""
    raw = (folder / f"depth_image_{frame:04d}.bin").read_bytes()
    h, w = np.frombuffer(raw, "<u4", 2)
    depth = np.frombuffer(raw, "<u2", offset=8).reshape(h, w) / 1000.0
    pose = np.loadtxt(folder.parent / "depth_M_color.txt")
    v, u = np.nonzero(depth)
    z = depth[v, u]
    point = np.stack([(u - 311.48) * z / 476.05, (v - 246.1) * z / 476.05, z, np.ones_like(z)])
    x, y, z = (np.linalg.inv(pose) @ point)[:3]
    image = rgb(Image.open(folder / f"image_{frame:04d}.pgm"))
    column = np.round(615.17 * x / z + 312.19).astype(int)
    row = np.round(615.17 * y / z + 243.44).astype(int)
    inside = (column >= 0) & (column < 640) & (row >= 0) & (row < 480)
    disparity = np.full((480, 640), np.nan, np.float32)
    order = np.argsort(-z[inside])  # the nearest last
    disparity[row[inside][order], column[inside][order]] = 1 / z[inside][order]
    return image, disparity


def scenes(root: Path) -> Iterator[tuple[str, Array, Array]]:
    """Name, picture and disparity (NaN where unknown) of each scene."""
    for name, far in (("frozenpond", 20), ("sugarshack", 20), ("fujifilm", 8)):
        views = views_of_mpo(find(root, f"Tests/images/{name}.mpo"))
        yield name, *_two_views(name, views, FUJI / far)
    heic = "tests/images/heif_other/{}.heic"
    for name, file, pixels in (
        ("path", "nokia/stereo_1200x800", 0.5),
        ("deck", "spatial_photo", VISION / 5),
    ):
        views = views_of_heic(find(root, heic.format(file)))
        if name == "path":
            views = views[::-1]  # its file begins with the right view
        yield name, *_two_views(name, views, pixels)
    pug = pillow_heif.open_heif(find(root, heic.format("pug")))[0]
    image = rgb(pug.to_pillow())
    depth = pug.info["depth_images"][0]
    low, high = depth.info["metadata"]["d_min"], depth.info["metadata"]["d_max"]
    code = np.asarray(depth.to_pillow().resize(image.shape[1::-1]), np.float32) / 255
    yield "pug", image, low + (high - low) * code
    for name, left in (
        ("office", "zed-imgs/left/left_00000.png"),
        ("playtable", "test-imgs/left/left_playtablep.png"),
    ):
        right = left.replace("left", "right")
        pair = (rgb(Image.open(find(root, left))), rgb(Image.open(find(root, right))))
        yield name, pair[0], match(*pair, 0, 128)
    data = find(root, "examples/data/left01.jpg").parent
    files = [
        (data / f"left{k:02d}.jpg", data / f"right{k:02d}.jpg") for k in range(1, 15) if k != 10
    ]
    for k, pair in enumerate(rig(files, (9, 6))):
        if k in (0, 3, 6, 9, 12):
            yield f"laboratory-{k}", pair[0], match(*pair, 0, 160)
    data = find(root, "stereo-calib/0_left.jpg").parent
    files = [(data / f"{k}_left.jpg", data / f"{k}_right.jpg") for k in range(4)]
    for k, pair in enumerate(rig(files, (9, 6))):
        if k == 3:  # the others show little but the board, which repeats
            yield f"board-{k}", pair[0], match(*pair, 0, 192)
    folder = find(root, "castel/castel/image_0000.pgm").parent
    for frame in (0, 29):
        yield f"castle-{frame}", *castle(folder, frame)


def _two_views(name: str, views: tuple[Array, Array], far: float) -> tuple[Array, Array]:
    """Picture and disparity of two parallel cameras.

    Args:
        name: of the scene.
        views: left and right.
        far: disparity of the farthest surface in pixels. Two cameras side by side do not show how
            far their axes turn towards each other, which adds a constant to all disparities.
    """
    left, right = views
    right, known = align_rows(left, right)
    low, high = np.percentile(known, [1, 99])
    print(f"{name}: {len(known)} matches with disparities from {low:.1f} to {high:.1f}")
    lowest = int(np.floor(low - 3))
    disparity = match(left, right, lowest, int(high - lowest) + 12)
    return left, disparity - np.float32(low - far)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True, help="folder of .deb and .tar.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shard")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tiles = []
    with (
        tempfile.TemporaryDirectory() as folder,
        tarfile.open(args.out / "real-000000.tar", "w") as tar,
    ):
        unpack(args.packages, Path(folder))
        for name, image, disparity in scenes(Path(folder)):
            top = float(np.nanpercentile(disparity, 99.8))
            mask = np.isfinite(disparity) & (disparity > top * _FARTHEST) & (disparity <= top * 1.1)
            print(
                f"{name}: {image.shape[1]}x{image.shape[0]}, {mask.mean():.0%} of the pixels known"
            )
            jpg = io.BytesIO()
            Image.fromarray(image).save(jpg, "JPEG", quality=95)
            clean = np.where(mask, disparity / top, 0).astype(np.float32)
            members = {"jpg": jpg.getvalue(), **label_members(clean, mask, {"name": name})}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            shown = cv2.applyColorMap(
                (np.clip(clean, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_MAGMA
            )
            pair = np.concatenate([image, shown[..., ::-1]], 1)
            tiles.append(cv2.resize(pair, (480, 180), interpolation=cv2.INTER_AREA))
    tiles += [tiles[0] * 0] * (-len(tiles) % 3)
    rows = [np.concatenate(tiles[k : k + 3], 1) for k in range(0, len(tiles), 3)]
    Image.fromarray(np.concatenate(rows)).save(args.out / "sheet.png")


if __name__ == "__main__":
    main()
