"""``dafast doctor``: lists installed and missing parts, and the cost of missing ones."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Package(NamedTuple):
    """An optional package.

    Attributes:
        name: Its name for pip.
        module: What is imported.
        extras: The extras of dafast that install it.
        cost: What does not work without it.
    """

    name: str
    module: str
    extras: tuple[str, ...]
    cost: str


REQUIRED = ("torch", "numpy", "Pillow", "safetensors", "huggingface_hub", "tqdm")
OPTIONAL = (
    Package("triton", "triton", ("triton",), "the Triton kernels are off: GPUs are slower"),
    Package("xformers", "xformers", ("xformers",), "no comparison with its attention"),
    Package("flash-attn-4", "flash_attn.cute", ("flash-attn",), "no comparison with its attention"),
    Package("pillow-heif", "pillow_heif", ("heif",), "HEIC and HEIF photos cannot be read"),
    Package("onnx", "onnx", ("onnx", "openvino"), "no ONNX and OpenVINO files of `dafast export`"),
    Package(
        "onnxruntime",
        "onnxruntime",
        ("onnx", "openvino"),
        "no ONNX and OpenVINO files of `dafast export`, no `dafast run --model FILE.onnx`",
    ),
    Package("coremltools", "coremltools", ("coreml",), "no Core ML packages of `dafast export`"),
    Package("openvino", "openvino", ("openvino",), "no OpenVINO files of `dafast export`"),
    Package("av", "av", ("video",), "no `dafast video`, and no MP4 files of `dafast parallax`"),
    Package("fastapi", "fastapi", ("serve",), "no `dafast serve` and `dafast demo`"),
    Package("starlette", "starlette", ("serve",), "no `dafast serve` and `dafast demo`"),
    Package("uvicorn", "uvicorn", ("serve",), "no `dafast serve` and `dafast demo`"),
    Package("python-multipart", "python_multipart", ("serve",), "no forms in `dafast serve`"),
    Package(
        "prometheus-client", "prometheus_client", ("serve",), "no `dafast serve` and `dafast demo`"
    ),
    Package("httptools", "httptools", ("serve",), "`dafast serve` reads requests more slowly"),
    Package("uvloop", "uvloop", ("serve",), "`dafast serve` answers more slowly"),
    Package("ray", "ray", ("ray",), "no `--cluster`"),
    Package("opencv-python-headless", "cv2", ("flow",), "no optical flow between frames of videos"),
    Package(
        "transformers",
        "transformers",
        ("sky", "transformers"),
        "no `dafast data sky`, `dafast.accelerate` and `to_transformers`",
    ),
    Package(
        "scikit-image",
        "skimage",
        ("synth", "eval"),
        "no `dafast synth`, and no picture `motorcycle` of `dafast eval`",
    ),
    Package(
        "h5py",
        "h5py",
        ("eval", "datasets"),
        "no megadepth in `dafast data`; no nyuv2 and hypersim in `dafast eval`",
    ),
    Package("scipy", "scipy.io", ("eval",), "no nyuv2, sunrgbd and ibims1 in `dafast eval`"),
    Package("embreex", "embreex", ("synth",), "no `dafast synth`"),
    Package("tyro", "tyro", ("train",), "no training"),
    Package("kornia", "kornia", ("train",), "training cannot change the colours of pictures"),
    Package("tensorboard", "tensorboard", ("train",), "training writes no TensorBoard files"),
    Package("OpenEXR", "OpenEXR", ("datasets", "exr"), "no irs in `dafast data`"),
    Package("trimesh", "trimesh", ("mesh",), "no `Mesh.to_trimesh`"),
    Package("cmap", "cmap", ("palettes",), "no palettes of cmap"),
    Package("lmdb", "lmdb", ("datasets",), "no lsun in `dafast data`"),
    Package("fsspec", "fsspec", ("remote",), "no shards behind URLs"),
    Package("aiohttp", "aiohttp", ("remote",), "no shards behind http URLs"),
    Package("universal-pathlib", "upath", ("remote",), "no shards behind URLs"),
    Package("nvtx", "nvtx", ("profile",), "no ranges in Nsight Systems (DAFAST_NVTX)"),
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "doctor",
        help="report what is installed, what is missing and what that costs",
        description="Prints versions, devices, the backends that can run, and what each missing "
        "part costs.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for a bug report")
    parser.set_defaults(function=doctor)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    capabilities = {k: v for k, v in torch.cpu.get_capabilities().items() if v is True}
    devices: list[dict[str, Any]] = [
        {
            "device": "cpu",
            "name": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "capabilities": sorted(capabilities),
        }
    ]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            devices.append(
                {
                    "device": f"cuda:{i}",
                    "name": properties.name,
                    "compute_capability": f"{properties.major}.{properties.minor}",
                    "memory_gib": round(properties.total_memory / 2**30, 1),
                }
            )
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU"})
    return devices


def _backend_states() -> dict[str, tuple[bool, str]]:
    """For every kind of backend: whether it can run here, and if not why."""
    import torch

    from ..ops import _extension, _triton
    from ..ops.quantize_fp8 import why_no_fp8
    from ..optional import why_no_module

    gpu = torch.cuda.is_available()
    no_gpu = "PyTorch sees no CUDA GPU here"
    # Missing parts of the extension are reported without a GPU too: both may be wanted.
    lacks = [] if gpu else [no_gpu]
    if why := _extension.why_not("cuda"):
        lacks.append(why)
    reasons = {
        "reference": "",
        "sdpa": "",
        "cpp": _extension.why_not("cpp"),
        "cuda": "; ".join(lacks),
        "triton": _triton.why_missing(),
        "xformers": why_no_module("xformers.ops") if gpu else no_gpu,
        "flash_attn": why_no_module("flash_attn.cute") if gpu else no_gpu,
        "scaled_mm": why_no_fp8(torch.device("cuda", 0)) if gpu else no_gpu,
    }
    return {name: (not why, why) for name, why in reasons.items()}


def _part(part: str, why: str, cost: str) -> dict[str, str]:
    return {"part": part, "why": why, "cost": cost}


def _missing_backends(
    states: dict[str, tuple[bool, str]], ops: dict[str, list[str]]
) -> list[dict[str, str]]:
    """The kinds of backends that are off, why, and what that costs in plain words."""
    from ..ops import _extension

    names = {
        "cpp": "C++ extension",
        "cuda": "CUDA kernels",
        "triton": "Triton kernels",
        "xformers": "xformers",
        "flash_attn": "FlashAttention 4",
        "scaled_mm": "fp8 products",
    }
    parts = []
    for backend, name in names.items():
        on, why = states[backend]
        if on:
            continue
        served = [op for op, backends in ops.items() if backend in backends]
        if not served:
            cost = "nothing: no op has this backend in this version"
        elif backend == "scaled_mm":
            cost = "no optimize(fp8=True)"
        else:
            cost = "slower, with the same results: " + ", ".join(served)
            if "resize_bicubic" in served and backend == "cpp":
                cost += " (fit='official' takes 0.3 s longer on a 50-megapixel photo)"
        parts.append(_part(name, why, cost))
    # The entries of attention share a kernel.
    compiled = {op: "flash_attention" if op.startswith("flash_attention") else op for op in ops}
    stale = [op for op in ops if "cpp" in ops[op] and _extension.why_not("cpp", compiled[op])]
    if states["cpp"][0] and stale:
        why = _extension.why_not("cpp", compiled[stale[0]])
        cost = "slower, with the same results: " + ", ".join(stale)
        parts.append(_part("parts of the C++ extension", why, cost))
    return parts


def _missing_hardware(device: torch.device, dtype: torch.dtype) -> list[dict[str, str]]:
    import torch

    parts = []
    if device.type == "cpu":
        build = "" if torch.version.cuda or torch.version.hip else " (it is a CPU build)"
        cost = "photos take longer, and training anything but `nano` is out of reach"
        parts.append(_part("GPU", f"PyTorch sees none{build}", cost))
    if dtype == torch.float32:
        why = f"this {device.type.upper()} has no bfloat16 arithmetic"
        cost = "the network runs in float32, which is slower and takes more memory"
        parts.append(_part("bfloat16", why, cost))
    return parts


def _broken_packages() -> list[dict[str, str]]:
    """Optional packages that are installed and cannot be imported."""
    from ..optional import why_no_module

    parts = []
    for package in OPTIONAL:
        why = why_no_module(package.module)
        if why and (_version(package.name) or not why.endswith("is not installed")):
            parts.append(_part(package.name, why, package.cost))
    return parts


def _shipped_weights() -> dict[str, Any]:
    folder = Path(__file__).resolve().parent.parent / "weights" / "nano"
    files = {n: folder / n for n in ("config.json", "model.safetensors")}
    absent = [name for name, path in files.items() if not path.is_file()]
    if absent:
        return {"present": False, "folder": str(folder), "absent": absent}
    size = files["model.safetensors"].stat().st_size
    return {"present": True, "folder": str(folder), "megabytes": round(size / 1e6, 1)}


def _inference(device: torch.device, dtype: torch.dtype) -> str:
    """How `infer` and the commands run the network on a device."""
    from ..models.cuda_graphs import MAX_GRAPHS, can_capture
    from ..models.packed_cpu import why_not_on_this_cpu

    if can_capture(device):
        return (
            f"captures a CUDA graph for each size of input from the second time on, up to "
            f"{MAX_GRAPHS}; batches by free memory"
        )
    if device.type != "cpu":
        return "runs the modules"
    why = why_not_on_this_cpu(dtype)
    return f"runs the modules: {why}" if why else "packs the weights once"


def _collect_packages() -> dict[str, Any]:
    from .._version import __version__

    names = (*REQUIRED, *(package.name for package in OPTIONAL))
    return {
        "dafast": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in names},
    }


def _missing_without_torch(why: str) -> list[dict[str, str]]:
    from ..optional import why_no_module

    cost = "all but `dafast run --model FILE.onnx` and `dafast.runtime`"
    parts = [_part("PyTorch", why, cost)]
    if reason := why_no_module("onnxruntime"):
        parts.append(_part("onnxruntime", reason, "these two, too"))
    return parts


def collect() -> dict[str, Any]:
    """Returns the content of the report, ready for JSON; without PyTorch a part of it."""
    from ..optional import why_no_module

    if why := why_no_module("torch"):
        return {**_collect_packages(), "missing": _missing_without_torch(why)}

    from huggingface_hub import constants

    from ..devices import resolve_device, resolve_dtype
    from ..ops import _extension, available_backends

    ops = available_backends()
    states = _backend_states()
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    missing = _missing_backends(states, ops) + _broken_packages()
    missing += _missing_hardware(device, dtype)
    weights = _shipped_weights()
    if not weights["present"]:
        why = f"not in {weights['folder']}: {', '.join(weights['absent'])}"
        cost = "`dafast run` needs a --model that you have or that can be downloaded"
        missing.append(_part("nano weights", why, cost))
    extension = _extension.load()
    return {
        **_collect_packages(),
        "extension": None
        if extension is None
        else {
            "compiler": extension.compiler,
            "torch": extension.torch_version,
            "cuda": extension.cuda,
            "cpu_instructions": getattr(extension, "cpu_capability", lambda: "unknown")(),
            "ops": list(extension.ops),
        },
        "devices": _devices(),
        "auto": {"device": str(device), "dtype": str(dtype).removeprefix("torch.")},
        "inference": _inference(device, dtype),
        "ops": {
            op: [{"backend": b, "on": states[b][0]} for b in backends]
            for op, backends in ops.items()
        },
        "nano": weights,
        "hub": {
            "offline": bool(constants.HF_HUB_OFFLINE),
            "cache": str(constants.HF_HUB_CACHE),
            "endpoint_changed": "HF_ENDPOINT" in os.environ,
        },
        "missing": missing,
    }


def format_report(report: dict[str, Any]) -> str:
    """Formats the report of `collect` as text."""
    extras = {package.name: package.extras for package in OPTIONAL}
    lines = [
        f"dafast {report['dafast']}, Python {report['python']}, {report['system']}",
        "",
        "Packages",
    ]
    broken = {p["part"] for p in report["missing"] if "but its import fails" in p["why"]}
    for name, version in report["packages"].items():
        state = version or ("installed" if name in broken else "not installed")
        if name in broken:
            state += ", but its import fails"
        of = ", ".join(f"[{extra}]" for extra in extras.get(name, ()))
        note = f"  (extra {of})" if of else ""
        lines.append(f"  {name:17} {state}{note}")
    if "devices" in report:
        lines += _format_parts(report)
    lines += ["", "Missing, and what it costs"]
    for part in report["missing"]:
        for text, indent in (
            (f"{part['part']}: {part['why']}", 2),
            (f"costs: {part['cost']}", 4),
        ):
            lines += textwrap.wrap(
                text,
                98,
                initial_indent=" " * indent,
                subsequent_indent=" " * (indent + 2),
                break_long_words=False,
                break_on_hyphens=False,
            )
    if not report["missing"]:
        lines.append("  nothing")
    return "\n".join(lines)


def _format_parts(report: dict[str, Any]) -> list[str]:
    """The lines on the extension, the devices, the backends and the weights."""
    extension = report["extension"]
    if extension is None:
        built = "missing"
    else:
        cuda = "with" if extension["cuda"] else "without"
        built = f"{extension['compiler']}, torch {extension['torch']}, {cuda} CUDA, "
        built += f"CPU kernels for {extension['cpu_instructions']}"
    lines = [f"  {'C++ extension':17} {built}", "", "Devices"]
    for device in report["devices"]:
        what = [device["name"]]
        if "threads" in device:
            what.append(f"{device['threads']} threads")
            what.append(" ".join(device["capabilities"]) or "no vector extensions known")
        if "memory_gib" in device:
            what.append(f"{device['memory_gib']} GiB")
            what.append(f"compute capability {device['compute_capability']}")
        lines += textwrap.wrap(
            f"{device['device']:8} {', '.join(what)}",
            98,
            initial_indent="  ",
            subsequent_indent=" " * 11,
            break_long_words=False,
        )
    auto = report["auto"]
    lines += [f"  {'auto':8} takes {auto['device']} in {auto['dtype']}"]
    lines += [f"  {'infer':8} {report['inference']}", ""]
    lines.append("Backends of each op, the preferred one first; (off) cannot run here")
    for op, backends in report["ops"].items():
        row = ", ".join(b["backend"] + ("" if b["on"] else " (off)") for b in backends)
        lines.append(f"  {op:24} {row}")
    nano = report["nano"]
    lines += ["", "Weights"]
    lines.append(
        f"  nano             in the package ({nano['megabytes']} MB)"
        if nano["present"]
        else "  nano             MISSING"
    )
    hub = report["hub"]
    offline = "offline (HF_HUB_OFFLINE), " if hub["offline"] else ""
    endpoint = ", another endpoint (HF_ENDPOINT)" if hub["endpoint_changed"] else ""
    lines.append(f"  others           {offline}kept in {hub['cache']}{endpoint}")
    return lines


def doctor(args: argparse.Namespace) -> int:
    """Runs ``dafast doctor``."""
    report = collect()
    print(json.dumps(report, indent=2) if args.json else format_report(report))
    return 0
