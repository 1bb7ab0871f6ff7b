"""Times a photo from a cold start: `python bench/startup.py`.

Every run is a new process: it starts, imports, loads the model, predicts one photo and writes a
PNG. The commands run in turn, with all files in the page cache after a first run that does not
count and compiles the modules of the checkout, as pip does for installed packages. All have the
same random weights and the same input size:

    dafast            `dafast run PHOTO --model FOLDER`
    dafast, ONNX      `dafast run PHOTO --model FILE.onnx`, which does not import PyTorch
    transformers      `pipeline("depth-estimation")`
    ONNX Runtime      a session of the file of `dafast export`; Pillow reads and resizes
    OpenVINO          the same file

Memory is the largest resident set of the process; "above imports" is without that of a process
that only imports the same packages. For `dafast run` the working set is measured too: how much the
resident set grows during a second prediction of the same photo in one process. The last column is
the memory above imports without the working set, over the size of the weights in the dtype.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from rich.table import Table

from bench.timing import machine

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "examples/photos/coffee.jpg"

# Each script sees `photo`, `folder`, `out`, `dtype` and `threads`.
_BEFORE = """
import numpy as np
from PIL import Image
image = Image.open(photo).convert("RGB")
scale = 518 / min(image.size)
size = [round(side * scale / 14) * 14 for side in image.size]
small = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
x = ((small / 255 - mean) / std).transpose(2, 0, 1)[None]
"""
_AFTER = """
gray = (255 * (y - y.min()) / (y.max() - y.min())).astype(np.uint8)
Image.fromarray(gray).resize(image.size).save(out + "/depth.png")
"""
_OURS = """
import sys
from dafast.cli import main
sys.argv = ["dafast", "run", photo, "--model", folder + "/{model}", "--out", out, "--overwrite",
            "--quiet", *{options}]
code = main()
assert code == 0, f"dafast run ended with {{code}}"
"""
_SCRIPTS = {
    "dafast": _OURS.format(model="dafast", options='["--device", "cpu", "--dtype", dtype]'),
    "dafast, ONNX": _OURS.format(model="model.onnx", options="[]"),
    "transformers": """
import torch
from transformers import DPTImageProcessorPil, pipeline
torch.set_num_threads(threads)
processor = DPTImageProcessorPil.from_pretrained(folder + "/transformers")
pipe = pipeline("depth-estimation", folder + "/transformers", image_processor=processor,
                dtype=getattr(torch, dtype))
pipe(photo)["depth"].save(out + "/depth.png")
""",
    "ONNX Runtime": _BEFORE + """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(folder + "/model.onnx", options)
y = session.run(None, {session.get_inputs()[0].name: x})[0][0]
""" + _AFTER,
    "OpenVINO": _BEFORE + """
import openvino
from openvino import properties
precision = openvino.Type.f32 if dtype == "float32" else openvino.Type.bf16
settings = {properties.hint.inference_precision: precision,
            properties.inference_num_threads: threads}
model = openvino.Core().compile_model(folder + "/model.onnx", "CPU", settings)
y = np.asarray(model(x)[0])[0]
""" + _AFTER,
}  # fmt: skip
_IMPORTS = {
    "dafast": "import dafast.cli.run_photos, dafast.models",
    "dafast, ONNX": "import dafast.cli.run_photos, onnxruntime",
    "transformers": "from transformers import DPTImageProcessorPil, pipeline;"
                    " from transformers import DepthAnythingForDepthEstimation",
    "ONNX Runtime": "import numpy, onnxruntime; from PIL import Image",
    "OpenVINO": "import numpy, openvino; from PIL import Image",
}  # fmt: skip
# Not the usage that the parent sees, which includes the parent's memory before the exec.
_PEAK = """
with open("/proc/self/status") as file:
    print("peak", next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""
# Prints the largest growth during a prediction in a process that has made one before.
_WORKING_SET = """
import torch
from dafast import DepthAnything
from dafast.devices import return_freed_memory
from dafast.images import load_image
torch.set_num_threads(threads)
model = DepthAnything.from_pretrained(folder + "/dafast", device="cpu", dtype=dtype)
model.prepare_inference(keep_weights=False)
image = load_image(photo)
def resident(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
model.predict(image)
return_freed_memory()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts again
before = resident("VmRSS")
model.predict(image)
print("peak", resident("VmHWM") - before)
"""
_ONLY_FLOAT32 = ("dafast, ONNX", "ONNX Runtime")


def prepare(preset: str, folder: Path, wanted: set[str], seed: int) -> int:
    """Writes a random model in both layouts and as ONNX; returns the bytes of its weights.

    Args:
        preset: Of the model.
        folder: Gets the files.
        wanted: Which files the commands read; that of dafast is always written.
        seed: Of the weights.
    """
    from dafast import DepthAnything
    from dafast.models.saving import save_pretrained

    torch.manual_seed(seed)
    model = DepthAnything(preset).eval()
    save_pretrained(model, folder / "dafast")
    if "transformers" in wanted:
        save_pretrained(model, folder / "transformers", layout="transformers")
    if "model.onnx" in wanted:
        from dafast.export import export

        export(model, folder / "model.onnx", check=False)
    return (folder / "dafast/model.safetensors").stat().st_size


def run(script: str, threads: int) -> tuple[float, float, int]:
    """Runs a script in a new process; returns its seconds, processor time and the bytes it prints.

    Raises:
        RuntimeError: If it fails, with the end of what it printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT),
                   "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}  # fmt: skip
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # see the top of this file
    with tempfile.TemporaryFile() as printed:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=printed, stderr=printed
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        text = printed.read().decode(errors="replace").strip()
        if process.returncode:
            raise RuntimeError(text[-300:])
    peak = next(line for line in text.splitlines() if line.startswith("peak "))
    return seconds, usage.ru_utime + usage.ru_stime, 1024 * int(peak.split()[1])


def measure(preset: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs all commands in turn; one record each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"dafast": "dafast", "transformers": "transformers"}
        wanted = {files.get(peer, "model.onnx") for peer in options.only or _SCRIPTS}
        weights = prepare(preset, folder, wanted, options.seed)
        records: dict[tuple[str, str], dict[str, Any]] = {}
        scripts = {}
        for dtype in options.dtype or ["float32", "bfloat16"]:
            for peer in options.only or _SCRIPTS:
                if dtype != "float32" and peer in _ONLY_FLOAT32:
                    continue
                key = (peer, dtype)
                values = {"photo": str(options.photo), "folder": str(folder), "out": str(folder),
                          "dtype": dtype, "threads": options.threads}  # fmt: skip
                head = "".join(f"{k} = {v!r}\n" for k, v in values.items())
                scripts[key] = head + _SCRIPTS[peer] + _PEAK
                records[key] = {"model": preset, "peer": peer, "dtype": dtype, "weights": weights}
                try:
                    _, _, imported = run(_IMPORTS[peer] + _PEAK, options.threads)
                    _, _, peak = run(scripts[key], options.threads)
                    records[key].update(peak=peak, above_imports=peak - imported)
                    if peer == "dafast":
                        _, _, growth = run(head + _WORKING_SET, options.threads)
                        held = weights if dtype == "float32" else weights / 2
                        rest = peak - imported - growth
                        records[key].update(working_set=growth, times_weights=rest / held)
                except RuntimeError as error:
                    records[key]["why"] = str(error).splitlines()[-1]
                    del scripts[key]
        seconds: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in scripts}
        for _ in range(options.rounds):
            for key, script in scripts.items():
                seconds[key].append(run(script, options.threads)[:2])
    for key, found in seconds.items():
        wall, cpu = zip(*found, strict=True)
        records[key].update(seconds=statistics.median(wall), cpu_seconds=statistics.median(cpu))
    return list(records.values())


def print_report(report: dict[str, Any]) -> None:
    """Prints the records as a table."""
    table = Table(title="  ".join(f"{k} {v}" for k, v in report["machine"].items()))
    for column in ("model", "dtype", "command", "s", "processor s", "peak MB", "above imports MB",
                   "weights MB", "working set MB", "times the weights"):  # fmt: skip
        table.add_column(column, overflow="fold")
    for r in report["records"]:
        figures = (
            (f"{r['seconds']:.2f}", f"{r['cpu_seconds']:.2f}", f"{r['peak'] / 1e6:.0f}",
             f"{r['above_imports'] / 1e6:.0f}", f"{r['weights'] / 1e6:.0f}")
            if "seconds" in r else (r["why"], "", "", "", "")
        )  # fmt: skip
        if "working_set" in r:
            figures += (f"{r['working_set'] / 1e6:.0f}", f"{r['times_weights']:.2f}")
        table.add_row(r["model"], r["dtype"], r["peer"], *figures)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns the report that it prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vits", help="preset; vits by default")
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--only", action="append", choices=tuple(_SCRIPTS), help="repeat for more")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    options = parser.parse_args(argv)
    about = {**machine(torch.device("cpu")), "threads": options.threads}
    report = {"machine": about, "records": measure(options.model, options)}
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
