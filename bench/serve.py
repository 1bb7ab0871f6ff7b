"""Times `dafast serve`: `python bench/serve.py`; `--soak MINUTES` overloads it and checks answers.

Without options: photos a second of 16 clients over those of `infer(list)` on the same photos, and
the time of a lone request over that of `predict`, in turn. The server is another process on the
same processors as the clients.

`--soak` sends twice what the server can answer, from clients that hang up now and then. With
`--kill SECONDS` it ends a worker that has worked for so long, again and again. It fails if an
accepted request has no answer or another one than `infer` gives, or if the memory of the server
grows.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import PIL.Image
import torch

from bench.timing import machine

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"
TOLERANCE = 1e-4  # of the largest value; of 16-bit networks, whose batches round differently, more
TOLERANCE_16 = 5e-2


def make_photos(count: int, mixed: bool) -> list[bytes]:
    """Crops of the example photos as JPEG files, of one size or of many."""
    photos = [PIL.Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    files = []
    for i in range(count):
        photo = photos[i % len(photos)]
        width = 480 + (32 * (i % 7) if mixed else 0)
        height = 360 + (24 * (i % 5) if mixed else 0)
        left, top = 3 * i % 60, 5 * i % 30
        box = (left, top, min(left + width, photo.width), min(top + height, photo.height))
        file = io.BytesIO()
        photo.crop(box).resize((width, height)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


class Server:
    """`dafast serve` in a process of its own."""

    def __init__(self, options: argparse.Namespace, *more: str) -> None:
        command = [sys.executable, "-m", "dafast", "serve", "--port", "0", "--model", options.model]
        command += ["--dtype", options.dtype, *more]
        command += ["--workers", str(options.workers)] if options.workers else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("serving on "):
            raise RuntimeError("the server did not start")
        self.port = int(line.rsplit(":", 1)[1])

    def post(self, data: bytes, connection: http.client.HTTPConnection | None = None) -> Any:
        """Status and body of a request for the map in float32."""
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/v1/depth?format=npy", data)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def is_ready(self) -> bool:
        """Whether a worker has its model."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200

    def workers(self) -> list[int]:
        """Numbers of the worker processes."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
                command = (path.parent / "cmdline").read_text()
            except (OSError, ValueError):
                continue
            if parent == self.process.pid and "spawn_main" in command:
                found.append(int(path.parent.name))
        return found

    def memory(self) -> float:
        """Resident memory of the server and its workers in MiB."""
        total = 0
        for pid in (self.process.pid, *self.workers()):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            total += next((int(x.split()[1]) for x in status.split("\n") if "VmRSS" in x), 0)
        return total / 1024

    def close(self) -> int:
        """Ends it and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


def rate_of_clients(server: Server, photos: list[bytes], clients: int) -> float:
    """Photos a second of some clients, each with a connection of its own."""
    local = threading.local()

    def post(data: bytes) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
        status, _ = server.post(data, local.connection)
        assert status == 200, status

    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        list(pool.map(post, photos))
        return len(photos) / (time.perf_counter() - start)


def compare(options: argparse.Namespace) -> None:
    """Prints the ratios to `infer` and `predict`."""
    from dafast import DepthAnything

    model = DepthAnything.from_pretrained(options.model, dtype=options.dtype)
    server = Server(options, "--batch-wait", str(options.batch_wait))
    try:
        photos = make_photos(options.photos, options.mixed)
        rate_of_clients(server, photos[:16], 16)
        model.infer(photos[:16])
        online, offline, lone, single = [], [], [], []
        for _ in range(options.rounds):
            online.append(rate_of_clients(server, photos, options.clients))
            start = time.perf_counter()
            model.infer(photos)
            offline.append(len(photos) / (time.perf_counter() - start))
            for data in photos[:8]:
                start = time.perf_counter()
                server.post(data)
                lone.append(time.perf_counter() - start)
                start = time.perf_counter()
                model.predict(data)
                single.append(time.perf_counter() - start)
            print(
                f"{online[-1]:.2f} photos/s of {options.clients} clients, "
                f"{offline[-1]:.2f} of infer(list)",
                flush=True,
            )
        ratios = [a / b for a, b in zip(online, offline, strict=True)]
        extra = statistics.median(a - b for a, b in zip(lone, single, strict=True))
        result = {
            "machine": machine(torch.device("cpu")),
            "model": options.model,
            "dtype": options.dtype,
            "clients over infer(list)": round(statistics.median(ratios), 3),
            "lone request, ms": round(1e3 * statistics.median(lone), 1),
            "predict, ms": round(1e3 * statistics.median(single), 1),
            "difference, ms": round(1e3 * extra, 1),
        }
        print(json.dumps(result, indent=2))
    finally:
        server.close()


class Soak:
    """Clients that ask for more than the server can answer."""

    def __init__(self, options: argparse.Namespace, server: Server) -> None:
        from dafast import DepthAnything

        self.options, self.server = options, server
        self.photos = make_photos(12, True)
        model = DepthAnything.from_pretrained(options.model, dtype=options.dtype)
        self.expected = [model.infer(data) for data in self.photos]
        self.bound = TOLERANCE if options.dtype == "float32" else TOLERANCE_16
        self.counts: Counter[str] = Counter()
        self.end = time.monotonic() + 60 * options.soak

    def client(self, seed: int) -> None:
        """Sends requests until the end; every 20th hangs up."""
        random_ = random.Random(seed)
        while time.monotonic() < self.end:
            i = random_.randrange(len(self.photos))
            connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=600)
            if random_.random() < 0.05:
                connection.request("POST", "/v1/depth?format=npy", self.photos[i])
                time.sleep(random_.random() * 0.3)
                connection.close()
                self.counts["hung up"] += 1
                continue
            try:
                status, body = self.server.post(self.photos[i], connection)
            except OSError as error:
                self.counts[f"LOST: {type(error).__name__}"] += 1
                continue
            if status == 503:
                time.sleep(random_.random() * 0.2)
            elif status == 200:
                right = np.abs(np.load(io.BytesIO(body)) - self.expected[i]).max()
                if right > self.bound * np.abs(self.expected[i]).max():
                    self.counts["WRONG"] += 1
            self.counts[str(status)] += 1

    def run(self) -> int:
        """Runs it, and prints counts and memory each minute."""
        clients = self.options.clients
        threads = [threading.Thread(target=self.client, args=(i,)) for i in range(clients)]
        for thread in threads:
            thread.start()
        memory: list[float] = []
        last_kill = last_line = time.monotonic()
        kills = 0
        while time.monotonic() < self.end:
            time.sleep(0.5)
            memory.append(self.server.memory())
            kill = self.options.kill
            if not self.server.is_ready():
                last_kill = time.monotonic()  # a worker that starts is not killed
            elif kill and time.monotonic() - last_kill > kill and (pids := self.server.workers()):
                os.kill(random.choice(pids), signal.SIGKILL)
                last_kill, kills = time.monotonic(), kills + 1
            if time.monotonic() - last_line > 30:
                last_line = time.monotonic()
                print(f"{memory[-1]:.0f} MiB, {kills} kills, {dict(self.counts)}", flush=True)
        for thread in threads:
            thread.join()
        quarter = max(1, len(memory) // 4)
        second, last = memory[quarter : 2 * quarter], memory[-quarter:]
        early, late = statistics.median(second), statistics.median(last)
        print(f"memory: {early:.0f} MiB in the second quarter, {late:.0f} in the last")
        print(f"{kills} kills, {dict(self.counts)}")
        bad = [name for name in self.counts if name not in ("200", "503", "hung up")]
        if bad or late > 1.05 * early + 20:
            print(f"FAILED: {', '.join(bad) or 'memory grows'}")
            return 1
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mixed", action="store_true", help="photos of many sizes")
    parser.add_argument("--batch-wait", type=float, default=10, metavar="MS")
    parser.add_argument("--workers", type=int, metavar="N", help="default: that of dafast serve")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--kill", type=float, metavar="SECONDS", help="with --soak")
    options = parser.parse_args()
    if not options.soak:
        compare(options)
        return 0
    options.clients *= 2
    server = Server(options, "--queue", str(options.clients // 2), "--timeout", "300")
    try:
        code = Soak(options, server).run()
    finally:
        ended = server.close()
    print(f"exit code of the server: {ended}")
    return code or ended


if __name__ == "__main__":
    sys.exit(main())
