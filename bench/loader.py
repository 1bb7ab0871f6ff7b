"""Times the reading of images from shards: `python bench/loader.py [--shards PATH|URL]`.

One table: the images per second of loader processes at each stage, which includes all stages
before it, and the processor time of one image, measured in this process, so that other work on the
machine does not count.

    read          the sample's image as it is stored
    image         the image as an array
    decode        image and label as arrays
    teacher       cropped and flipped, in batches: the input of a teacher's training
    student       two of three unlabeled, with CutMix's box, in batches
    encode        decoding, and a map as the 16-bit PNG of `dafast label`

It also prints what the student's step adds to an unlabeled image: the time of the colours of a
batch (`dafast.data.colours`) on the training device; on a CPU, processor time.

With --peers the first two stages are compared with `webdataset` pipelines (bench/loader_peers.py).

Without --shards it creates some in a temporary folder: mosaics of the example photos, which have
the detail of photographs, with the maps of `nano`, of the same size, as labels.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import dafast
from bench import loader_peers
from bench.timing import machine
from dafast.data.colours import change_colours, draw_colours
from dafast.data.decode import decode_image
from dafast.data.labeling import encode_label
from dafast.data.shards import ShardDataset
from dafast.data.tars import headers
from dafast.data.transforms import STRONG
from dafast.data.writing import add_sample
from dafast.models.inference import predict_native
from dafast.training.config import DataSection, TrainConfig, UnlabeledSection
from dafast.training.data import Request, StreamSampler, TrainingData, collate

STAGES = ("read", "image", "decode", "teacher", "student", "encode")
_SHARD = 32  # pictures in each that is made


def make_shards(folder: Path, count: int, size: tuple[int, int], seed: int) -> None:
    """Writes labeled shards of pictures (height, width) that are mosaics of the example photos."""
    rng = np.random.default_rng(seed)
    examples = Path(__file__).resolve().parent.parent / "examples" / "photos"
    photos = [Image.open(path).convert("RGB") for path in sorted(examples.glob("*.jpg"))]
    model = dafast.DepthAnything.from_pretrained("nano", device="cpu", dtype="float32")
    height, width = size
    for first in range(0, count, _SHARD):
        with tarfile.open(folder / f"{first:06d}.tar", "w") as tar:
            for index in range(first, min(first + _SHARD, count)):
                page = Image.new("RGB", (width, height))
                top = -int(rng.integers(200))
                while top < height:
                    left, row = -int(rng.integers(200)), height
                    while left < width:
                        photo = photos[int(rng.integers(len(photos)))]
                        page.paste(photo, (left, top))
                        left, row = left + photo.width, min(row, photo.height)
                    top += row
                buffer = io.BytesIO()
                page.save(buffer, "JPEG", quality=95)
                encoded = encode_label(predict_native(model, [np.asarray(page)], size=min(size))[0])
                assert encoded is not None
                members = {"jpg": buffer.getvalue(), "disparity.png": encoded[0]}
                members["json"] = json.dumps(encoded[1]).encode()
                add_sample(tar, f"{index:08d}", members)


class Stage(Dataset[Any]):
    """One stage of the loader, instead of `TrainingData`."""

    def __init__(self, data: TrainingData, name: str) -> None:
        self.data, self.name = data, name

    def __getitem__(self, request: Request) -> Any:
        data = self.data
        if self.name == "read":
            return len(data.labeled.image_file(request.sample))
        if self.name == "image":
            return decode_image(data.labeled.image_file(request.sample)).nbytes
        if self.name == "decode":
            return data.labeled.read(request.sample).image.nbytes
        if self.name == "encode":
            encoded = encode_label(data.labeled.read(request.sample).disparity)
            assert encoded is not None
            return len(encoded[0])
        unlabeled = self.name == "student" and request.position % 3 > 0
        return data[request._replace(unlabeled=unlabeled)]

    @property
    def collate(self) -> Callable[[list[Any]], Any]:
        """Makes a batch of samples as in training, or a list."""
        return collate if self.name in ("teacher", "student") else list


def batches(stage: Stage, shape: int, batch: int, workers: int, seed: int) -> Iterator[Any]:
    """Endless batches of the loader, in random order, as in training."""
    sampler = StreamSampler(len(stage.data.labeled), batch, ((shape, shape),), seed)
    return iter(
        DataLoader(
            stage,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=stage.collate,
            prefetch_factor=2 if workers else None,
        )
    )


def speed(stage: Stage, shape: int, batch: int, workers: int, seconds: float, seed: int) -> float:
    """Images a second in the steady state."""
    stream = batches(stage, shape, batch, workers, seed)
    for _ in range(1 + 2 * workers):  # batches that the workers made while they started
        next(stream)
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(stream)
        images += batch
    return images / (time.perf_counter() - began)


def cost(stage: Stage, shape: int, count: int, seed: int) -> float:
    """Processor time of one image in milliseconds: the smallest of the means of three rounds."""
    turns = []
    for turn in range(3):
        samples = len(stage.data.labeled)
        requests = next(iter(StreamSampler(samples, count, ((shape, shape),), seed)))
        stage[requests[0]]
        began = time.process_time()
        for request in requests:
            stage[request._replace(position=request.position + turn * count)]
        turns.append((time.process_time() - began) / count * 1e3)
    return min(turns)


def colours(shape: int, batch: int, device: torch.device, seed: int) -> float:
    """Time of the strong view of one image in milliseconds: the median of nine rounds."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (batch, shape, shape, 3), np.uint8)
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    turns = []
    for _ in range(10):
        draws = torch.from_numpy(np.stack([draw_colours(rng) for _ in range(batch)]))
        if device.type == "cpu":
            began = time.process_time()
            change_colours(images, STRONG, draws)
            turns.append(time.process_time() - began)
        else:
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            change_colours(images, STRONG, draws)
            torch.cuda.synchronize(device)
            turns.append(time.perf_counter() - began)
    return statistics.median(turns[1:]) / batch * 1e3


def sizes(data: ShardDataset, count: int) -> dict[str, float]:
    """Mean bytes and pixels of images, and bytes of labels as `dafast label` writes them."""
    images, pixels, labels = [], [], []
    for index in np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int):
        sample = data.read(int(index))
        encoded = encode_label(sample.disparity)
        assert encoded is not None
        images.append(len(data.image_file(int(index))))
        pixels.append(sample.image.shape[0] * sample.image.shape[1])
        labels.append(len(encoded[0]))
    means = (float(np.mean(values)) for values in (images, pixels, labels))
    return dict(zip(("image_bytes", "pixels", "label_bytes"), means, strict=True))


def start(folder: Path, count: int = 1000) -> dict[str, float]:
    """The cost of opening a labeled shard of `count` samples, in milliseconds and bytes.

    `scan_ms` is the time to find the samples, `kept_ms` the time to read the kept index, and
    `index_bytes` the memory that the index takes for each sample.
    """
    shard = folder / "start.tar"
    with tarfile.open(shard, "w") as tar:
        for index in range(count):
            members = {"jpg": bytes(9000), "disparity.png": bytes(9000), "json": bytes(120)}
            add_sample(tar, f"{index:08d}", members)
    with mock.patch.dict(os.environ, DAFAST_CACHE=str(folder / "cache")):
        headers(shard, keep=True)
        times = {}
        for name, keep in (("scan_ms", False), ("kept_ms", True)):
            turns = []
            for _ in range(5):
                began = time.process_time()
                headers(shard, keep)
                turns.append((time.process_time() - began) * 1e3)
            times[name] = min(turns)
    data = ShardDataset(shard)
    arrays = [value for value in vars(data).values() if isinstance(value, np.ndarray)]
    shard.unlink()
    return {**times, "index_bytes": sum(array.nbytes for array in arrays) / count}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns the report that it prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", help="labeled shards: folder, pattern or URL")
    parser.add_argument(
        "--pictures", type=int, default=48, help="number of pictures to create without --shards"
    )
    parser.add_argument("--size", type=_size, default=(518, 690), help="their size: HEIGHTxWIDTH")
    parser.add_argument("--shape", type=int, default=518, help="side of the crops")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--stage", action="append", choices=STAGES, help="only this stage")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of one figure")
    parser.add_argument("--images", type=int, default=24, help="images for the processor time")
    parser.add_argument("--peers", action="store_true", help="compare with webdataset")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each loader with --peers")
    parser.add_argument("--device", default="cpu", help="device for the colours: cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    options = parser.parse_args(argv)
    if options.batch < 3:
        parser.error("--batch: a student's batch has at least three images")
    torch.set_num_threads(1)  # as in a worker
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory(prefix="dafast-bench-") as folder:
        opening = start(Path(folder))
        path = options.shards
        if path is None:
            make_shards(Path(folder), options.pictures, options.size, options.seed)
            path = folder
        config = TrainConfig(
            data=DataSection(path=path), unlabeled=UnlabeledSection(path=path), seed=options.seed
        )
        data = TrainingData.open(config)
        records = []
        for name in options.stage or STAGES:
            stage = Stage(data, name)
            record: dict[str, Any] = {"stage": name}
            record["ms"] = cost(stage, options.shape, options.images, options.seed)
            record["images_per_second"] = {
                workers: speed(
                    stage, options.shape, options.batch, workers, options.seconds, options.seed
                )
                for workers in options.workers
            }
            records.append(record)
        report = {
            "machine": {**machine(device), "cpus": os.cpu_count()},
            "shape": options.shape,
            "colours_ms": colours(options.shape, options.batch, device, options.seed),
            "sizes": sizes(data.labeled, options.images),
            "start": opening,
            "records": records,
        }
        if options.peers:
            pictures = loader_peers.pictures_alone(data.labeled, Path(folder), options.pictures)
            report["peers"] = loader_peers.compare(
                *(pictures, options.batch, options.workers, options.seconds, options.rounds),
                seed=options.seed,
            )
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def print_report(report: dict[str, Any]) -> None:
    """Prints the report, with the tables as Markdown."""
    print(", ".join(f"{k} {v}" for k, v in report["machine"].items()))
    size = report["sizes"]
    print(
        f"pictures of {size['pixels'] / 1e6:.2f} megapixels, {size['image_bytes'] / 1e3:.0f} kB; "
        f"labels {size['label_bytes'] / 1e3:.0f} kB; crops of {report['shape']} pixels\n"
    )
    workers = list(report["records"][0]["images_per_second"])
    header = "".join(f" images/s, {count} workers |" for count in workers)
    print(f"| stage | processor ms/image |{header}")
    print("|---|---:|" + "---:|" * len(workers))
    for record in report["records"]:
        speeds = " | ".join(f"{record['images_per_second'][w]:.1f}" for w in workers)
        print(f"| {record['stage']} | {record['ms']:.2f} | {speeds} |")
    opening = report["start"]
    print(f"\ncolours of an image on the training device: {report['colours_ms']:.2f} ms")
    print(
        f"a shard of 1000 labeled samples: {opening['scan_ms']:.1f} ms to scan, "
        f"{opening['kept_ms']:.1f} ms from the kept index; {opening['index_bytes']:.0f} bytes of "
        "memory per sample"
    )
    if "peers" in report:
        print(f"\n{loader_peers.table(report['peers'])}")


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.lower().split("x"))
        if min(height, width) < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH") from None
    return height, width


if __name__ == "__main__":
    main()
