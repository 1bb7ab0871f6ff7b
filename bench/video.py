"""Times `dafast video` against the bare network and against transformers' pipeline, in turn.

`python bench/video.py` pans over a photo of examples/photos, 640x360, and prints three ratios:

- frames per second of `dafast video` over those of `model(x)` on the same frames, decoded and
  preprocessed before, with nano and with ViT-S (random weights); also with the preprocessing in the
  loop;
- the same with ViT-S over a loop of PyAV, transformers' pipeline (the faster one of float32 and the
  model's own dtype) and PyAV's encoder;
- peak memory of `dafast video` with 6,000 frames over that with 60 (`--memory`; minutes).

Reading, prediction, stabilization, encoding and the sound are in the time; loading the model is
not. Both sides use all threads, in this process; the memory is that of processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from bench.timing import machine

ROOT = Path(__file__).resolve().parent.parent
SIZE = (640, 360)
TARGETS = {"nano over model(x)": 0.95, "vits over model(x)": 0.95, "vits over transformers": 1.5}


def write_clip(path: Path, count: int) -> list[np.ndarray]:
    """Writes a pan over a photo, and returns its first frames as decoded."""
    import av

    width, height = SIZE
    photo = Image.open(ROOT / "examples" / "photos" / "room.jpg").convert("RGB")
    wide = np.asarray(photo.resize((960, 640)))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(count):
            x, y = abs((2 * i) % 640 - 320), abs(i % 400 - 200)
            part = np.ascontiguousarray(wide[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
        container.mux(stream.encode())
    return decode(path)


def decode(path: Path, count: int = 64) -> list[np.ndarray]:
    """The first frames of a video."""
    import av

    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == count:
                break
    return frames


def save_random(preset: str, folder: Path) -> None:
    """Writes a model with random weights, for dafast and for transformers."""
    from dafast import DepthAnything

    torch.manual_seed(0)
    model = DepthAnything(preset).eval()
    with torch.no_grad():
        # A positive map of order 1, as a trained model predicts.
        last = model.depth_head.scratch.output_conv2[2]
        last.weight.mul_(10)
        last.bias.fill_(1.0)
    model.save_pretrained(folder / "dafast")
    model.save_pretrained(folder / "transformers", layout="transformers")


def command(
    clip: Path, out: Path, model: str, size: int, options: argparse.Namespace
) -> Callable[[], None]:
    """`dafast video` on a clip, with the model loaded before."""
    from dafast.cli import _model, build_parser, video_run

    arguments = ["video", str(clip), "--out", str(out), "--overwrite", "--model", model]
    arguments += ["--dtype", options.dtype] + (["--size", str(size)] if size else [])
    args = build_parser().parse_args([*arguments, "--device", options.device])
    args.traceback, args.quiet = True, True
    loaded = _model.load_model(args, options.device)

    def run() -> None:
        original = video_run.load_model
        video_run.load_model = lambda *_: loaded
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                args.function(args)
        finally:
            video_run.load_model = original

    return run


def bare(frames: list[np.ndarray], model: Any, size: int, whole: bool) -> Callable[[], None]:
    """`model(x)` on frames; with ``whole`` the preprocessing too."""
    from dafast.ops import preprocess

    config = model.config
    options = dict(size=size or config.image_size, fit=config.fit, mean=config.mean, std=config.std)
    photos = [torch.from_numpy(frame).to(model.device) for frame in frames]

    def prepared(photo: torch.Tensor) -> torch.Tensor:
        return preprocess(photo, dtype=model.dtype, **options)[0]

    inputs = [prepared(photo) for photo in photos]
    model.optimize(keep_memory=False)

    def run() -> None:
        with torch.inference_mode():
            for x, photo in zip(inputs, photos, strict=True):
                model(prepared(photo) if whole else x)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def transformers_loop(
    clip: Path, out: Path, folder: Path, dtype: torch.dtype, options: argparse.Namespace
) -> Callable[[], None]:
    """PyAV decodes, transformers' pipeline predicts, PyAV encodes."""
    import av
    from transformers import pipeline

    pipe = pipeline("depth-estimation", model=str(folder), device=options.device, dtype=dtype)

    def run() -> None:
        with av.open(str(clip)) as source, av.open(str(out), "w") as sink:
            stream: Any = sink.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            for frame in source.decode(video=0):
                depth = np.asarray(pipe(frame.to_image())["depth"].convert("L"))
                picture = av.VideoFrame.from_ndarray(np.stack([depth] * 3, -1), format="rgb24")
                sink.mux(stream.encode(picture))
            sink.mux(stream.encode())

    return run


def in_turn(runs: dict[str, Callable[[], None]], count: int, rounds: int) -> dict[str, float]:
    """Median frames per second of each, after a round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                rates[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in rates.items()}


def measure_speed(preset: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Frames per second with one model, and ratios."""
    from dafast import DepthAnything

    count = options.frames if preset == "nano" else max(8, options.frames // 6)
    # transformers' processor scales 640x360 to 518x294 and not to 924x518, as the official code.
    size = 294 if preset != "nano" and options.peers else 0
    clip, out = folder / f"{preset}.mp4", folder / "out.mp4"
    frames = write_clip(clip, count)[:count]
    frames = (frames * (count // len(frames) + 1))[:count]
    name = preset
    if preset != "nano":
        save_random(preset, folder)
        name = str(folder / "dafast")
    model = DepthAnything.from_pretrained(name, device=options.device, dtype=options.dtype)
    runs = {
        "dafast video": command(clip, out, name, size, options),
        "model(x)": bare(frames, model, size, False),
        "preprocess, model(x)": bare(frames, model, size, True),
    }
    if preset != "nano" and options.peers:
        # Its pipeline fails in bfloat16: NumPy has no such dtype.
        runs["transformers float32"] = transformers_loop(
            clip, out, folder / "transformers", torch.float32, options
        )
    rates = in_turn(runs, count, options.rounds)
    ours = rates["dafast video"]
    ratios = {f"{preset} over {key}": ours / rates[key] for key in list(runs)[1:3]}
    peers = [rate for key, rate in rates.items() if key.startswith("transformers")]
    if peers:
        ratios[f"{preset} over transformers"] = ours / max(peers)
    return {"preset": preset, "dtype": str(model.dtype), "fps": rates, "ratios": ratios}


_PEAK = """
import re, sys, dafast.cli
code = dafast.cli.main(sys.argv[1:])
status = open("/proc/self/status").read()
print("PEAK", int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024)
sys.exit(code)
"""
# Not getrusage: its ru_maxrss begins with the memory of the process that started this one.


def peak_memory(clip: Path, out: Path, raw: bool) -> int:
    """Bytes of a process that converts a clip with nano, at its peak."""
    arguments = ["video", str(clip), "--out", str(out), "--overwrite", "--device", "cpu"]
    arguments += ["--raw", str(out.with_suffix(".npz"))] if raw else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", _PEAK, *arguments], capture_output=True, text=True, env=environment
    )
    if found.returncode:
        raise RuntimeError(found.stderr)
    return int(found.stdout.rsplit("PEAK", 1)[1])


def measure_memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Peaks with few and with many frames."""
    peaks = {}
    for count in (60, options.memory):
        clip = folder / f"{count}.mp4"
        write_clip(clip, count)
        peaks[count] = peak_memory(clip, folder / "out.mp4", options.raw)
    return {"peaks": peaks, "ratio": peaks[options.memory] / peaks[60]}


def main() -> None:
    """Measures, and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", default=["nano", "vits"])
    parser.add_argument("--dtype", default="auto", help="of dafast; transformers has float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=120, help="with nano; a sixth with others")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument(
        "--memory", type=int, nargs="?", const=6000, default=0, metavar="N",
        help="also compare the peak memory of N frames with that of 60",
    )  # fmt: skip
    parser.add_argument("--raw", action="store_true", help="with --raw in the runs of --memory")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(torch.device(options.device)), "speed": []}
    for preset in options.models:
        with tempfile.TemporaryDirectory() as folder:
            report["speed"].append(measure_speed(preset, Path(folder), options))
    if options.memory:
        with tempfile.TemporaryDirectory() as folder:
            report["memory"] = measure_memory(Path(folder), options)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(report["machine"])
    for found in report["speed"]:
        for name, rate in found["fps"].items():
            print(f"{found['preset']:5} {found['dtype']:15} {name:28} {rate:8.2f} frames/s")
        for name, ratio in found["ratios"].items():
            target = f"  (target {TARGETS[name]})" if name in TARGETS else ""
            print(f"  {name}: {ratio:.2f}{target}")
    if options.memory:
        for count, peak in report["memory"]["peaks"].items():
            print(f"memory of {count:5} frames: {peak / 2**20:.0f} MiB")
        print(f"  ratio {report['memory']['ratio']:.3f} (target at most 1.05)")


if __name__ == "__main__":
    main()
