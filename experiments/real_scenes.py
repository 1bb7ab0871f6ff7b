"""Builds a validation set of real scenes from pictures that packages carry.

Two views of a scene are rectified and matched (semi-global matching, in both directions); only
pixels where both directions agree are kept. Where the angle between the cameras is not known, the
distance of the farthest surface is assumed: 20 m in two winter scenes, 8 m at rocks, 5 m on a
deck, 40 m on a road, the horizon on a path. At the church and the hillside one camera moved; its
motion comes from matches (and, at the church, OpenCV's focal length for these photos). The motion
at the chateau is in the package. Five places have depth from a sensor or a phone, and one has
disparity from structured light. The pictures stay in the packages; this script only reads them:

    mkdir packages
    (cd packages && apt-get download opencv-doc visp-images-data mrpt-common python3-pcl)
    (cd packages && apt-get source --download-only --tar-only visp opencv)
    pip download --no-deps --no-binary :all: -d packages pillow pillow-heif disparity-view \\
        kapture geovisio pandora
    pip install opencv-python-headless pillow-heif
    python experiments/real_scenes.py --packages packages --out data/real-scenes

`apt-get source` needs `Types: deb deb-src` in the sources of apt. The result is a folder with one
shard for `data.eval_path` of `dafast train` and `--data` of `dafast data check shards`, and a sheet
of all pictures with their disparity to look at. The two photos of `dafast eval --data builtin` are
not in it.
"""

from __future__ import annotations

import argparse
import gzip
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
from real_views import (
    Panoramas,
    align_rows,
    camera,
    match,
    moved_camera,
    rectified,
    relative,
    rig,
)

from dafast.data.sources import label_members

Array = np.ndarray
WIDTH = 640  # of the pictures in the set
# Focal length in pixels of pictures of WIDTH times the distance between the lenses in metres: the
# disparity of a surface at one metre. FinePix Real 3D: 35 mm (of 36 mm) and 0.075 m; Vision Pro.
FUJI = 0.97 * WIDTH * 0.075
VISION = 0.8 * WIDTH * 0.064
BUMBLEBEE = camera(0.75 * WIDTH, WIDTH / 2, 3 / 8 * WIDTH)  # the road's camera, undistorted
_FARTHEST = 1 / 30  # share of the largest disparity that is still kept


def unpack(packages: Path, to: Path) -> None:
    """Unpacks Debian packages and source archives of Python packages."""
    for path in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(path), str(to)], check=True)
    for path in sorted([*packages.glob("*.tar.gz"), *packages.glob("*.tar.xz")]):
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


def video_frame(path: Path, index: int) -> Array:
    """A frame of a video, uint8 (H, W, 3)."""
    video = cv2.VideoCapture(str(path))
    for _ in range(index):
        video.grab()
    ok, frame = video.read()
    if not ok:
        raise SystemExit(f"{path} has no frame {index}")
    return np.ascontiguousarray(frame[..., ::-1])


def sensor(picture: Path, depth: Path, cameras: tuple[Array, Array]) -> tuple[Array, Array]:
    """A frame of ViSP, with the depth of its sensor moved into the picture's camera.

    Args:
        picture: The picture, 640x480.
        depth: Its depth: height, width and millimetres.
        cameras: The matrices of the picture's and the depth's camera.
    """
    raw = depth.read_bytes()
    h, w = np.frombuffer(raw, "<u4", 2)
    z_of = np.frombuffer(raw, "<u2", offset=8).reshape(h, w) / 1000.0
    (pose_file,) = [*depth.parent.glob("depth_M*"), *depth.parent.parent.glob("depth_M*")]
    pose = np.loadtxt(pose_file)
    v, u = np.nonzero(z_of)
    z = z_of[v, u]
    rays = np.linalg.inv(cameras[1]) @ np.stack([u, v, np.ones_like(u)])
    point = np.linalg.inv(pose) @ np.concatenate([rays * z, np.ones((1, len(z)))])
    column, row, z = cameras[0] @ point[:3]
    column, row = np.round(column / z).astype(int), np.round(row / z).astype(int)
    inside = (column >= 0) & (column < 640) & (row >= 0) & (row < 480)
    disparity = np.full((480, 640), np.nan, np.float32)
    order = np.argsort(-z[inside])  # the nearest last
    disparity[row[inside][order], column[inside][order]] = 1 / z[inside][order]
    return rgb(Image.open(picture)), disparity


def shelf(path: Path) -> tuple[Array, Array]:
    """The frame of a depth camera in MRPT's `tests_rgbd.rawlog`: points and a registered image."""
    raw = gzip.decompress(path.read_bytes())
    at = raw.index(b"mrpt::poses::CPose3D") + 119  # the number of points, after the camera's pose
    count = int(np.frombuffer(raw, "<u4", 1, at)[0])
    z = np.frombuffer(raw, "<f4", count, at + 4)  # forwards is x there
    column, row = np.frombuffer(raw, "<u2", 2 * count, at + 4 + 12 * count).reshape(2, count)
    at = raw.index(b"mrpt::img::CImage") + 28
    image = np.frombuffer(raw, "u1", 480 * 640 * 3, at).reshape(480, 640, 3)[..., ::-1]
    disparity = np.full((480, 640), np.nan, np.float32)
    disparity[row, column] = 1 / z
    return np.ascontiguousarray(image), disparity


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
    for k, pair in enumerate(rig(_pairs(files), (9, 6))):
        if k in (0, 3, 6, 9, 12):
            yield f"laboratory-{k}", pair[0], match(*pair, 0, 160)
    data = find(root, "stereo-calib/0_left.jpg").parent
    files = [(data / f"{k}_left.jpg", data / f"{k}_right.jpg") for k in range(4)]
    for k, pair in enumerate(rig(_pairs(files), (9, 6))):
        if k == 3:  # the others show little but the board, which repeats
            yield f"board-{k}", pair[0], match(*pair, 0, 192)
    yield from _of_visp(root)
    yield "shelf", *shelf(find(root, "mrpt/datasets/tests_rgbd.rawlog"))
    data = find(root, "stereo/testdata/imL2.bmp").parent
    for name, file, count in (("tsukuba", "imL2", 16), ("street", "imgKitty", 96)):
        left, right = (rgb(Image.open(data / f"{file}{side}.bmp")) for side in ("l", ""))
        yield name, left, match(left, right, 0, count)
    photos = find(root, "sfm/samples/data/images/resized_IMG_2889.jpg").parent
    views = [
        np.ascontiguousarray(np.rot90(rgb(Image.open(photos / f"resized_IMG_{k}.jpg")), -1))
        for k in (2890, 2889)
    ]
    left, right = moved_camera(*views, focal=350)
    yield "church", left, match(left, right, 16, 160)
    yield from _of_kapture(root)
    photos = find(root, "geovisio-*/tests/data/2.jpg").parent
    pair = [
        np.asarray(Image.open(photos / f"{k}.jpg").convert("RGB").resize((2880, 1440), 1))
        for k in (1, 2)
    ]
    left, right = Panoramas(*pair).views(WIDTH / 2, (WIDTH, 480))
    yield "hillside", left, match(left, align_rows(left, right)[0], 0, 176)
    yield (
        "bottles",
        *bottles(find(root, "correspondence_grouping/milk_cartoon_all_small_clorox.pcd")),
    )
    cones = find(root, "pandora-*/notebooks/data/Cones_LEFT.tif")
    known = np.asarray(Image.open(cones.with_name("Cones_LEFT_GT.tif")))
    yield "cones", rgb(Image.open(cones)), np.where(known > 0, known, np.nan).astype(np.float32)


def _of_kapture(root: Path) -> Iterator[tuple[str, Array, Array]]:
    """The scenes in kapture's samples: a house that someone walked past, a road from a car."""
    folder = find(
        root, "maupertuis_openMVG/kapture_ChateauMaupertuisTest/sensors/sensors.txt"
    ).parent
    lines = [
        line for line in (folder / "trajectories.txt").read_text().splitlines() if line[0] != "#"
    ]
    poses = [[float(x) for x in line.split(",")[2:]] for line in lines]
    files = folder / "records_data/ChateauMaupertuisTest"
    pair = [rgb(Image.open(files / f"MaupertuisTest_0{k}.jpg")) for k in (1, 2)]
    lens = camera(1668.8 * WIDTH / 1600, 827.3 * WIDTH / 1600, 602.8 * WIDTH / 1600)
    bent = np.array([-0.1506, 0.1978, 0, 0])
    left, right = rectified(pair, (lens, lens), (bent, bent), *relative(*poses[:2]))
    yield "chateau", left, _textured(left, match(left, right, 0, 32))
    folder = find(root, "utbm/*_bb2_kapture/sensors/sensors.txt").parent
    views = []
    for line in (folder / "sensors.txt").read_text().splitlines()[2:]:
        name, _, _, _, *numbers = (x.strip() for x in line.split(","))
        width, _, fx, fy, x, y, *bend = map(float, numbers)
        # Red and blue are swapped in these files.
        view = rgb(Image.open(folder / f"records_data/{name}/frame_000000001.jpg"))[..., ::-1]
        lens = np.array([[fx, 0, x], [0, fy, y], [0, 0, width / WIDTH]]) * WIDTH / width
        views.append(
            cv2.undistort(np.ascontiguousarray(view), lens, np.array(bend), None, BUMBLEBEE)
        )
    # The distance between the lenses is 0.12 m.
    yield "road", *_two_views("road", (views[0], views[1]), BUMBLEBEE[0, 0] * 0.12 / 40)


def _textured(picture: Array, disparity: Array) -> Array:
    """Removes the disparity of smooth areas, mainly the sky, where a match means nothing."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = cv2.blur(grey, (9, 9))
    deviation = np.sqrt(np.maximum(cv2.blur(grey**2, (9, 9)) - mean**2, 0))
    return np.where(deviation > 2.5, disparity, np.nan).astype(np.float32)


def bottles(path: Path) -> tuple[Array, Array]:
    """The picture and the depth of a depth camera in a compressed PCD file of 640x480 points."""
    raw = path.read_bytes()
    at = raw.index(b"DATA binary_compressed\n") + 23
    size, full = np.frombuffer(raw, "<u4", 2, at)
    data = raw[at + 8 : at + 8 + int(size)]
    out = bytearray()  # LZF: literal bytes, or copies of bytes before
    k = 0
    while k < len(data):
        code = data[k]
        if code < 32:
            out += data[k + 1 : k + code + 2]
            k += code + 2
            continue
        length = code >> 5
        if length == 7:
            length += data[k + 1]
            k += 1
        start = len(out) - ((code & 31) << 8) - data[k + 1] - 1
        k += 2
        for j in range(start, start + length + 2):
            out.append(out[j])
    assert len(out) == full, path
    z, colour = np.frombuffer(out, "<f4").reshape(4, 480, 640)[2], np.frombuffer(out, "u1")
    image = colour.reshape(4, 480, 640, 4)[3, ..., 2::-1]
    disparity = np.where(np.isfinite(z) & (z < 0), -1 / np.where(z < 0, z, -1), np.nan)
    return np.ascontiguousarray(image), disparity.astype(np.float32)


def _pairs(files: list[tuple[Path, Path]]) -> list[tuple[Array, Array]]:
    """The pictures of pairs of files."""
    return [(rgb(Image.open(left)), rgb(Image.open(right))) for left, right in files]


def _of_visp(root: Path) -> Iterator[tuple[str, Array, Array]]:
    """The scenes in ViSP's data and tutorials."""
    folder = find(root, "castel/castel/image_0000.pgm").parent
    both = camera(615.17, 312.19, 243.44), camera(476.05, 311.48, 246.1)
    for k in (0, 29):
        files = folder / f"image_{k:04d}.pgm", folder / f"depth_image_{k:04d}.bin"
        yield f"castle-{k}", *sensor(*files, both)
    folder = find(root, "generic-rgbd/data/color_image_0000.jpg").parent
    both = camera(614.95, 320.2, 241.46), camera(383.97, 320.5, 235.6)
    files = folder / "color_image_0000.jpg", folder / "depth_image_0000.bin"
    yield "desk", *sensor(*files, both)
    folder = find(root, "generic-stereo/teabox_left.mp4").parent
    pair = [video_frame(folder / f"teabox_{side}.mp4", 0) for side in ("left", "right")]
    pose = np.loadtxt(folder / "cRightMcLeft.txt")
    both = camera(680.4, 338.1, 247.2), camera(682.2, 320.1, 225.4)
    left, right = rectified(pair, both, (None, None), pose[:3, :3], pose[:3, 3:].copy())
    yield "turntable", left, match(left, right, 16, 144)


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
