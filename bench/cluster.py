"""Times `dafast label` on a Ray cluster of this machine next to one process.

`python bench/cluster.py` prints, for pictures of `--side` pixels and nano: images a second and
processor time per image of one process with all processors and of the cluster, both without the
first third of the shards, in turns; and the memory of the workers in the second and the last
quarter of the run. `--shipped` gives each node a GPU that does not exist: tasks decode and encode
for the models, as on a cluster with GPUs.

`--kills N` then kills N nodes during a run, and prints how many pictures were predicted twice.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from bench.local_cluster import LocalCluster
from bench.timing import machine
from dafast.cluster import RayRunner, connected
from dafast.data.jobs import InOrder
from dafast.data.labeling import LabelReport, label_with
from dafast.models import DepthAnything
from dafast.models.inference import predict_native


class Counting:
    """nano; adds a byte to a file for each picture that it predicts."""

    facts = "nano"

    def __init__(self, size: int, counter: Path) -> None:
        self.model = DepthAnything.from_pretrained("nano", device="cpu")
        self.size, self.counter = size, counter

    def __call__(self, images: list[np.ndarray]) -> list[np.ndarray]:
        with open(self.counter, "ab") as file:  # before: lost work counts too
            file.write(b"." * len(images))
        return predict_native(self.model, images, size=self.size)


def write_shards(folder: Path, shards: int, per_shard: int, side: int) -> list[Path]:
    """Shards of random pictures with shorter sides of about `side` pixels."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / f"{number:05d}.tar" for number in range(shards)]
    for path in paths:
        with tarfile.open(path, "w") as tar:
            for i in range(per_shard):
                height, width = rng.integers(side, 3 * side // 2, 2)
                small = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(small).resize((width, height)).save(buffer, "JPEG")
                info = tarfile.TarInfo(f"{i:06d}.jpg")
                info.size = len(buffer.getvalue())
                buffer.seek(0)
                tar.addfile(info, buffer)
    return paths


class Speed(NamedTuple):
    """Images a second, and milliseconds of a processor per image."""

    rate: float
    processor: float

    def __str__(self) -> str:
        return f"{self.rate:.2f} images/s ({self.processor:.2f} ms of a processor per image)"


def run(
    runner: Any, shards: list[Path], out: Path, seconds: Callable[[], float]
) -> tuple[Speed, LabelReport]:
    """The speed after the first third of the shards, and the report.

    Args:
        runner: Does the job.
        shards: Of images.
        out: A new folder.
        seconds: Tells the processor time that was used.
    """
    out.mkdir()
    moments: list[tuple[float, float]] = []

    def note(line: str) -> None:
        moments.append((time.monotonic(), seconds()))

    report = label_with(runner, shards, out, say=note)
    late = moments[len(moments) // 3 :]
    images = report.images / len(shards) * (len(late) - 1)
    (began, used_before), (ended, used) = late[0], late[-1]
    return Speed(images / (ended - began), 1e3 * (used - used_before) / images), report


def wait_for_models(runner: RayRunner) -> None:
    """Waits until all models are loaded: starting is not part of the measurement."""
    while any(actor.loading is not None for actor in runner._actors):
        runner._wait([])


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--per-shard", type=int, default=32)
    parser.add_argument("--side", type=int, default=168)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--shipped", action="store_true")
    args = parser.parse_args()
    processors = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shards = write_shards(root / "in", args.shards, args.per_shard, args.side)
        counter = root / "counter"
        make = partial(Counting, args.side, counter)
        print(machine(torch.device("cpu")))
        local = make()
        local(np.zeros((2, args.side, args.side, 3), np.uint8))
        options = {"workers": processors, "device": "auto" if args.shipped else "cpu"}
        gpus = int(args.shipped)
        with LocalCluster(nodes=processors, gpus=gpus) as cluster, connected("ray"):
            memory: list[int] = []
            stop = threading.Event()

            def watch() -> None:
                while not stop.wait(0.5):
                    memory.append(cluster.memory())

            for turn in range(args.turns):
                alone = InOrder(local, processors)
                here, _ = run(alone, shards, root / f"here{turn}", time.process_time)
                with RayRunner("label", make, **options) as runner:
                    wait_for_models(runner)
                    memory.clear()
                    stop.clear()
                    thread = threading.Thread(target=watch)
                    thread.start()
                    there, _ = run(runner, shards, root / f"there{turn}", cluster.seconds)
                    stop.set()
                    thread.join()
                quarter = max(1, len(memory) // 4)
                early, late = max(memory[quarter : 2 * quarter]), max(memory[-quarter:])
                print(
                    f"one process {here}, cluster {there}, ratio of the rates "
                    f"{there.rate / here.rate:.2f}; memory of the workers {early / 2**20:.0f} MiB "
                    f"in the second quarter, {late / 2**20:.0f} MiB in the last"
                )
            if args.kills:
                lose_nodes(cluster, make, options, shards, root, args.kills)


def lose_nodes(
    cluster: LocalCluster,
    make: Any,
    options: dict[str, Any],
    shards: list[Path],
    root: Path,
    kills: int,
) -> None:
    """Kills nodes during a run and prints what it cost."""
    counter, out = root / "counter", root / "killed"
    counter.write_bytes(b"")
    lost: list[str] = []
    every = len(shards) // (kills + 1)

    def kill() -> None:
        for number in range(1, kills + 1):
            while len(list(out.glob("*.tar"))) < number * every:
                time.sleep(0.02)
            cluster.kill_node()

    with RayRunner("label", make, say=lost.append, **options) as runner:
        wait_for_models(runner)
        thread = threading.Thread(target=kill)
        thread.start()
        _, report = run(runner, shards, out, cluster.seconds)
        thread.join()
    twice = counter.stat().st_size - report.images
    again = sum("is done again" in line for line in lost)
    print(
        f"{kills} nodes killed: {report.shards} shards with {report.images} images, "
        f"{again / kills:.1f} shards done again and {twice / kills:.1f} images predicted twice "
        f"for each, with {report.images // report.shards} in a shard"
    )


if __name__ == "__main__":
    main()
