"""The implementations that `bench/model.py` times, each in its own process.

Separate processes keep thread pools, allocators and compilers apart, and a failure affects only
one row.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Peer:
    """An implementation of the whole network.

    Attributes:
        name: Name in the table.
        dtype: Dtype of the computation: ``"float32"``, ``"bfloat16"`` or ``"int8"``.
        load: Takes the folder of a model and the normalised images (B, 3, H, W); returns a
            function that computes the maps (B, H, W).
        ours: Whether it belongs to this project.
        device: Device of the computation; a run on ``"cuda"`` includes the copy to the host.
    """

    name: str
    dtype: str
    load: Callable[[Path, np.ndarray], Run]
    ours: bool = False
    device: str = "cpu"


def _torch_run(model: Any, x: Any, pick: Callable[[Any], Any]) -> Run:
    import torch

    @torch.inference_mode()
    def run() -> np.ndarray:
        return pick(model(x)).float().cpu().numpy()

    return run


def _dafast(dtype: str, optimize: bool, int8: bool = False) -> Callable[[Path, np.ndarray], Run]:
    def load(folder: Path, x: np.ndarray) -> Run:
        import torch

        import dafast

        model = dafast.DepthAnything.from_pretrained(folder / "dafast", device="cpu", dtype=dtype)
        if optimize:
            model.optimize(int8=int8)
        return _torch_run(model.eval(), torch.from_numpy(x).to(model.dtype), lambda y: y)

    return load


def _on_cuda(dtype: str, transformers: bool, compile: bool) -> Callable[[Path, np.ndarray], Run]:
    """Modules as their users run them; compiled ones with CUDA graphs."""

    def load(folder: Path, x: np.ndarray) -> Run:
        import torch

        import dafast

        if transformers:
            model = _transformers_model(folder).to("cuda", getattr(torch, dtype))
        else:
            model = dafast.DepthAnything.from_pretrained(
                folder / "dafast", device="cuda", dtype=dtype
            ).eval()
        if compile:
            model = torch.compile(model, mode="reduce-overhead", dynamic=False)
        return _torch_run(model, torch.from_numpy(x).to("cuda", getattr(torch, dtype)),
                          lambda y: y.predicted_depth if transformers else y)  # fmt: skip

    return load


def _transformers_model(folder: Path) -> Any:
    from transformers import DepthAnythingForDepthEstimation

    return DepthAnythingForDepthEstimation.from_pretrained(folder / "transformers").eval()


def _transformers(dtype: str, compile: bool) -> Callable[[Path, np.ndarray], Run]:
    def load(folder: Path, x: np.ndarray) -> Run:
        import torch

        model = _transformers_model(folder).to(getattr(torch, dtype))
        if compile:
            # Freezing packs the weights, as `optimize` does.
            model = torch.compile(model, options={"freezing": True})
        return _torch_run(model, torch.from_numpy(x).to(getattr(torch, dtype)),
                          lambda y: y.predicted_depth)  # fmt: skip

    return load


def _onnx(folder: Path, x: np.ndarray) -> Path:
    """Exports transformers' model, once for each size; returns the file."""
    import torch

    path = folder / f"model-{x.shape[2]}x{x.shape[3]}.onnx"
    if not path.exists():

        class Bare(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = _transformers_model(folder)
                self.eval()

            def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
                return self.model(pixel_values=pixel_values).predicted_depth

        torch.onnx.export(Bare(), (torch.from_numpy(x),), path, dynamo=True, verbose=False,
                          input_names=["pixel_values"], output_names=["depth"])  # fmt: skip
    return path


def _onnxruntime(folder: Path, x: np.ndarray) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(
        str(_onnx(folder, x)), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"pixel_values": x})[0]


def _openvino(precision: str) -> Callable[[Path, np.ndarray], Run]:
    def load(folder: Path, x: np.ndarray) -> Run:
        import openvino
        from openvino import properties

        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(_onnx(folder, x)), "CPU",
            {
                properties.hint.inference_precision: getattr(openvino.Type, precision),
                properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
                properties.inference_num_threads: int(os.environ["OMP_NUM_THREADS"]),
            },
        )  # fmt: skip
        return lambda: np.asarray(compiled(x)[0])

    return load


def _quantised(name: str) -> Callable[[Path, np.ndarray], Run]:
    """int8 of the others, calibrated on the timed image: OpenVINO's by NNCF, ONNX Runtime's."""

    def openvino_run(folder: Path, x: np.ndarray) -> Run:
        import nncf
        import openvino
        from openvino import properties

        core = openvino.Core()
        model = nncf.quantize(
            core.read_model(_onnx(folder, x)), nncf.Dataset([x]),
            model_type=nncf.ModelType.TRANSFORMER, preset=nncf.QuantizationPreset.MIXED,
        )  # fmt: skip
        precision = openvino.Type.bf16 if name == "bfloat16" else openvino.Type.f32
        compiled = core.compile_model(
            model, "CPU",
            {
                properties.hint.inference_precision: precision,
                properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
                properties.inference_num_threads: int(os.environ["OMP_NUM_THREADS"]),
            },
        )  # fmt: skip
        return lambda: np.asarray(compiled(x)[0])

    def onnxruntime_run(folder: Path, x: np.ndarray) -> Run:
        import onnxruntime
        from onnxruntime.quantization import quantize_dynamic

        path = folder / "int8.onnx"
        quantize_dynamic(_onnx(folder, x), path, per_channel=True, op_types_to_quantize=["MatMul"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, {"pixel_values": x})[0]

    return onnxruntime_run if name == "onnxruntime" else openvino_run


PEERS = (
    Peer("dafast, optimized", "float32", _dafast("float32", True), ours=True),
    Peer("dafast, modules", "float32", _dafast("float32", False), ours=True),
    Peer("transformers", "float32", _transformers("float32", False)),
    Peer("transformers, torch.compile", "float32", _transformers("float32", True)),
    Peer("ONNX Runtime", "float32", _onnxruntime),
    Peer("OpenVINO", "float32", _openvino("f32")),
    Peer("dafast, optimized", "bfloat16", _dafast("bfloat16", True), ours=True),
    Peer("dafast, modules", "bfloat16", _dafast("bfloat16", False), ours=True),
    Peer("transformers", "bfloat16", _transformers("bfloat16", False)),
    Peer("transformers, torch.compile", "bfloat16", _transformers("bfloat16", True)),
    Peer("OpenVINO", "bfloat16", _openvino("bf16")),
    Peer("dafast, optimized, bfloat16", "int8", _dafast("bfloat16", True, int8=True), ours=True),
    Peer("dafast, optimized, float32", "int8", _dafast("float32", True, int8=True), ours=True),
    Peer("OpenVINO with NNCF, bfloat16", "int8", _quantised("bfloat16")),
    Peer("OpenVINO with NNCF, float32", "int8", _quantised("float32")),
    Peer("ONNX Runtime, dynamic", "int8", _quantised("onnxruntime")),
    *(
        Peer(f"{name}, torch.compile" if compile else name, dtype,
             _on_cuda(dtype, name == "transformers", compile), name == "dafast", "cuda")
        for dtype in ("float32", "bfloat16")
        for name in ("dafast", "transformers")
        for compile in (False, True)
    ),
)  # fmt: skip


def _work(link: Connection, index: int, folder: Path, image: Path, threads: int) -> None:
    import logging
    import warnings

    import torch

    warnings.simplefilter("ignore")  # exporters and compilers warn
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, for everyone
    try:
        run = PEERS[index].load(folder, np.load(image))
        link.send(("ready", run()))
        while (rounds := link.recv()) is not None:
            seconds = []
            for _ in range(rounds):
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
            link.send(("times", seconds))
    except Exception as error:
        traceback.print_exc()
        link.send(("failed", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"))


class Worker:
    """A peer in its own process.

    Args:
        peer: One of `PEERS`.
        folder: Folder with the model in ``dafast`` and in ``transformers``.
        image: Numpy file with the normalised image.
        threads: Number of threads of the process.
    """

    def __init__(self, peer: Peer, folder: Path, image: Path, threads: int) -> None:
        self.peer = peer
        context = multiprocessing.get_context("spawn")
        self._link, other = context.Pipe()
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # the child reads it at its start
        self._process = context.Process(
            target=_work, args=(other, PEERS.index(peer), folder, image, threads), daemon=True
        )
        self._process.start()
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
        other.close()

    @property
    def process(self) -> int:
        """The id of its process."""
        assert self._process.pid is not None
        return self._process.pid

    def _answer(self, wanted: str) -> Any:
        try:
            kind, value = self._link.recv()
        except EOFError:
            kind, value = "failed", "the process died (out of memory?)"
        if kind != wanted:
            raise RuntimeError(value)
        return value

    def output(self) -> np.ndarray:
        """Waits for the first map and returns it; raises RuntimeError with the reason."""
        return self._answer("ready")

    def times(self, rounds: int) -> list[float]:
        """Seconds of each of `rounds` runs, after one that does not count."""
        self._link.send(rounds + 1)
        return self._answer("times")[1:]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
