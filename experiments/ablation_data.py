"""Creates the data of the ablation in miniature (docs/ablation.md), small enough to copy around.

    python experiments/ablation_data.py --photos FOLDER --out ablation-data

Writes shards of pictures of 208 x 160 pixels:

    labeled              synthetic scenes of `LABELED` kinds
    unlabeled            views cropped from the photographs, and renders of `LABELED` and
                         `UNLABELED` kinds with the photographs as textures
    held-out-labeled     scenes of the kinds that have labels in training, other seeds
    held-out-unlabeled   scenes of the kinds that training sees without labels, other seeds
    held-out-unseen      scenes of kinds that training never sees

FOLDER must not contain the scored photographs (motorcycle, aloe). Training labels are rounded to
10 bits, which halves their size. Existing files stay as they are, so the same command resumes.
Needs dafast[synth].
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dafast.data.shards import ShardDataset
from dafast.data.writing import add_sample, claim
from dafast.synthetic import HELD_OUT_SEED, write_shards

SIZE = (208, 160)
LABELED = ("room", "tabletop", "workshop", "random", "people", "corridor", "topdown")
UNLABELED = ("street", "plants", "portrait")
UNSEEN = ("landscape", "forest", "upward")
HELD_OUT = {"labeled": LABELED, "unlabeled": UNLABELED, "unseen": UNSEEN}

_RENDERS_SEED = 1_000_000  # of the unlabeled renders
_QUALITY = 82


def jpeg(image: Image.Image) -> bytes:
    """Encodes a picture as a small JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def coarse(png: bytes, bits: int) -> bytes:
    """Rounds a 16-bit map to its highest bits."""
    with Image.open(io.BytesIO(png)) as picture:
        code = np.asarray(picture).astype(np.int32)
    step = 1 << (16 - bits)
    rounded = np.minimum((code + step // 2) // step * step, 65536 - step).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(rounded).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random crop with the output's aspect ratio, an eighth to all of the largest one."""
    aspect = SIZE[0] / SIZE[1]
    width = min(image.width, image.height * aspect) * rng.uniform(0.125, 1.0) ** 0.5
    height = width / aspect
    left = rng.uniform(0, image.width - width)
    top = rng.uniform(0, image.height - height)
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    return image.resize(SIZE, Image.Resampling.LANCZOS, box=box)


def views(photos: Path, count: int) -> Iterator[dict[str, bytes]]:
    """The members of `count` views, of each photograph in turn."""
    paths = sorted(
        p for p in photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    )
    if not paths:
        raise SystemExit(f"no .jpg, .png or .webp in {photos}")
    for path in paths:
        turns = len(range(paths.index(path), count, len(paths)))
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        for turn in range(turns):
            rng = np.random.default_rng([paths.index(path), turn])
            meta = {"photo": path.name, "turn": turn}
            yield {"jpg": jpeg(view(image, rng)), "json": json.dumps(meta).encode()}


def smaller(shards: Path, *, labels: bool) -> Iterator[dict[str, bytes]]:
    """The members of rendered samples, compressed more; without labels only the picture."""
    data = ShardDataset(shards, labels="physical")
    for index in range(len(data)):
        with Image.open(io.BytesIO(data.image_file(index))) as picture:
            members = {"jpg": jpeg(picture), "json": json.dumps(data.meta(index)).encode()}
        if labels:
            members["disparity.png"] = coarse(data.label_file(index), bits=10)
        yield members


def write(samples: Iterator[dict[str, bytes]], target: Path) -> None:
    """Writes samples into one shard, unless it exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with claim(target) as file:
        if file is None:
            return
        with tarfile.open(fileobj=file, mode="w") as tar:
            for index, members in enumerate(samples):
                add_sample(tar, f"{target.stem}-{index:06d}", members)
    print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--out", type=Path, default=Path("ablation-data"))
    parser.add_argument(
        "--work", type=Path, help="original renders (default: OUT/../ablation-renders)"
    )
    parser.add_argument("--labeled", type=int, default=1100, metavar="N")
    parser.add_argument("--views", type=int, default=1550, metavar="N")
    parser.add_argument("--renders", type=int, default=500, metavar="N")
    parser.add_argument(
        "--held-out", type=int, default=80, metavar="N", help="scenes of each group"
    )
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    out, work = args.out, args.work or args.out.parent / "ablation-renders"
    common = {"workers": args.workers, "size": SIZE, "shard_size": 50}
    write_shards(work / "labeled", args.labeled, kinds=LABELED, **common)
    write(smaller(work / "labeled", labels=True), out / "labeled/scenes.tar")
    write_shards(
        *(work / "unlabeled", args.renders),
        **common,
        seed=_RENDERS_SEED,
        kinds=(*LABELED, *UNLABELED),
        textures=args.photos,
    )
    write(smaller(work / "unlabeled", labels=False), out / "unlabeled/renders.tar")
    write(views(args.photos, args.views), out / "unlabeled/photos.tar")
    for name, kinds in HELD_OUT.items():
        folder = out / f"held-out-{name}"
        write_shards(folder, args.held_out, seed=HELD_OUT_SEED, kinds=kinds, **common)


if __name__ == "__main__":
    main()
