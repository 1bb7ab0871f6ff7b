"""Sections that measure the machine and single operations."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import timing
from bench.depth_like import depth_like
from bench.gpu.meter import Meter, attempt, cuda_tool
from bench.gpu.records import Records
from dafast import ops
from dafast.layers.convolution import convolve, enlarge
from dafast.ops import use_backend

CLUSTERS = r"""
#include <cstdio>
#include <cuda_runtime.h>
__global__ void kernel() { extern __shared__ char s[]; if (threadIdx.x == 9999) s[0] = 1; }
int main() {
  for (int smem : {100 * 1024, 200 * 1024}) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    for (int size : {1, 2, 4, 8, 16}) {
      cudaLaunchConfig_t config = {};
      config.gridDim = dim3(64 * size);
      config.blockDim = dim3(512);
      config.dynamicSmemBytes = smem;
      cudaLaunchAttribute attribute[1];
      attribute[0].id = cudaLaunchAttributeClusterDimension;
      attribute[0].val.clusterDim.x = size;
      attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
      config.attrs = attribute;
      config.numAttrs = 1;
      int count = 0;
      cudaError_t error = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
      std::printf("%d %d %d %s\n", smem, size, count, cudaGetErrorName(error));
    }
  }
}
"""
"""Prints shared memory in bytes, cluster size, resident clusters, error."""

ATTENTION_GRIDS = (
    (1, 1370, 6), (1, 1370, 12), (1, 1370, 16), (4, 1370, 6), (16, 1370, 6), (16, 1370, 16),
    (8, 1814, 16), (4, 4552, 16),
)  # fmt: skip
"""(batch, tokens, heads) of the models."""


def machine(meter: Meter, records: Records) -> None:
    """Names and versions, rates of a copy and of products, resident clusters of blocks."""
    records.update("machine", timing.machine(meter.device))
    records.update("peaks", timing.peaks(meter.device))

    def clusters() -> dict[str, Any]:
        if not (nvcc := cuda_tool("nvcc")):
            return {"why": "nvcc is neither on the PATH nor in the CUDA toolkit"}
        major, minor = torch.cuda.get_device_capability()
        with tempfile.TemporaryDirectory() as name:
            source = Path(name, "clusters.cu")
            source.write_text(CLUSTERS)
            binary = source.with_suffix("")
            command = [nvcc, f"-arch=sm_{major}{minor}", str(source), "-o", str(binary)]
            subprocess.run(command, check=True, capture_output=True)
            printed = subprocess.run([str(binary)], check=True, capture_output=True, text=True)
        lines = [line.split() for line in printed.stdout.splitlines()]
        return {
            "resident": [
                {"shared_bytes": int(shared), "cluster": int(size), "clusters": int(count),
                 "error": error}
                for shared, size, count, error in lines
            ]
        }  # fmt: skip

    attempt(records, {"what": "resident clusters"}, clusters)


def _attention_runs(
    meter: Meter, qkv: Tensor
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Contexts and calls of every implementation of attention."""
    found: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}

    def attend() -> Tensor:
        return ops.flash_attention_qkvpacked(qkv)

    found["dafast"] = (lambda: use_backend(meter.size("triton", "cpp")), attend)
    found["SDPA"] = (lambda: use_backend("sdpa"), attend)
    for name in ("CUDNN", "FLASH", "EFFICIENT"):
        variant = f"{name}_ATTENTION"
        found[f"SDPA {name.lower()}"] = (lambda v=variant: timing.sdpa_variant(v), attend)
    found["flash-attn"] = (lambda: use_backend("flash_attn"), attend)
    return found


def attention(meter: Meter, records: Records) -> None:
    """Attention by the size of the grid, in CUDA graphs: the kernels without the host."""
    for batch, tokens, heads in meter.size(ATTENTION_GRIDS, ((1, 20, 2),)):
        shape = (batch, tokens, 3, heads, meter.size(64, 16))
        qkv = torch.randn(shape, device=meter.device, dtype=torch.bfloat16, requires_grad=True)
        forward = 4.0 * batch * heads * tokens**2 * shape[-1]
        cotangent = torch.randn(batch, tokens, heads, shape[-1], device=meter.device).to(qkv)
        with use_backend("reference"):
            exact = ops.flash_attention_qkvpacked(qkv.float())
            exact_grad = torch.autograd.grad(exact, qkv, cotangent.float())[0]
        for backward in (False, True):
            for who, (context, attend) in _attention_runs(meter, qkv).items():

                def run(attend: Any = attend, backward: bool = backward) -> Tensor:
                    if backward:
                        return torch.autograd.grad(attend(), qkv, cotangent)[0]  # noqa: B023
                    with torch.no_grad():
                        return attend()

                def figures(
                    run: Any = run, context: Any = context,
                    expected: Tensor = exact_grad if backward else exact,
                    flops: float = (3.5 if backward else 1.0) * forward,
                ) -> dict[str, Any]:  # fmt: skip
                    with context():
                        error = timing.largest_error(run(), expected)
                        if not error <= 0.05:
                            return {"error": error, "why": "differs from the reference"}
                        replay = meter.capture(run)
                    found = meter.time(replay, 60)
                    return {"error": error, **found, "tflops": flops / found["ms"] / 1e9}

                record = {"batch": batch, "tokens": tokens, "heads": heads, "who": who,
                          "pass": "forward+backward" if backward else "forward"}  # fmt: skip
                attempt(records, record, figures)
            meter.release()


def loss(meter: Meter, records: Records) -> None:
    """The affine-invariant loss, on noise and on maps like those of photos: times, then launches.

    The profiler comes last: it may slow down later launches of its process.
    """
    for profiled in (False, True):
        for maps in meter.size((8, 16, 64), (2,)):
            for kind, arguments in _loss_inputs(meter, maps).items():
                _loss(meter, records, kind, arguments, profiled)
            meter.release()


def _loss_inputs(meter: Meter, maps: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    side = meter.size(518, 20)
    shape = (maps, side, side)
    generator = torch.Generator().manual_seed(maps)
    prediction, target = depth_like(generator, shape)
    mask = (torch.rand(shape, generator=generator) < 0.8).to(meter.device)
    pairs = {"noise": torch.rand(2, *shape, generator=generator),
             "depth-like": torch.stack([prediction, target])}  # fmt: skip
    found = {}
    for kind, pair in pairs.items():
        on_device = pair.to(meter.device)
        found[kind] = on_device[0].clone().requires_grad_(), on_device[1].clone(), mask
    return found


def _loss(
    meter: Meter, records: Records, kind: str, arguments: tuple[Tensor, Tensor, Tensor],
    profiled: bool,
) -> None:  # fmt: skip
    prediction = arguments[0]
    maps, pixels = len(prediction), prediction[0].numel()

    def run() -> Tensor:
        return torch.autograd.grad(ops.affine_invariant_loss(*arguments), prediction)[0]

    with use_backend("reference"):
        expected = run()

    def times(backend: str) -> dict[str, Any]:
        with use_backend(backend):
            # Rounding changes the sign of some residuals, and with it that of their gradient.
            error = timing.largest_error(run(), expected, outliers=1e-5)
            if not error <= 1e-3:
                return {"error": error, "why": "differs from the reference"}
            call = meter.time(run, 60)
            found = {"error": error, "call_ms": call["wall_ms"]}
            if backend == "reference":  # its launches wait for the host
                return {**found, "ms": call["ms"]}
            replay = meter.capture(run)
        return {**found, **meter.time(replay, 60)}

    def launches(backend: str) -> dict[str, Any]:
        with use_backend(backend):
            found = meter.kernels(run)
        return {"kernels_us": found, "kernels_ms": sum(found.values()) / 1e3}

    # Prediction and target in float32, the mask, the gradient: each once.
    record = {"maps": maps, "pixels": pixels, "kind": kind, "bytes": 13 * maps * pixels}
    own = meter.size("triton", "cpp")
    for backend in (own, "cuda") if profiled else (own, "cuda", "reference"):
        figures = launches if profiled else times
        attempt(records, {**record, "backend": backend}, lambda b=backend, f=figures: f(b))


def _linear_runs(x: Tensor, w: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    x8, w8 = ops.quantize_fp8(x), ops.quantize_fp8(w)
    return {
        "bfloat16": lambda: F.linear(x, w, b),
        "bfloat16, tanh GELU": lambda: torch._addmm_activation(b, x, w.T, use_gelu=True),
        "e4m3, scales by row": lambda: ops.linear_fp8(x8, w8, b),
    }


def products(meter: Meter, records: Records) -> None:
    """The encoder's products, the decoder's convolutions, and the host's time for a call."""
    width = meter.size(1024, 32)
    shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    with torch.no_grad():
        for rows in meter.size((16 * 1370, 1370), (16,)):
            for depth, columns in shapes:
                x = torch.randn(rows, depth, device=meter.device, dtype=torch.bfloat16)
                w = torch.randn(columns, depth, device=meter.device) / depth**0.5
                b = torch.randn(columns, device=meter.device, dtype=torch.bfloat16)
                for who, run in _linear_runs(x, w.bfloat16(), b).items():

                    def figures(run: Any = run, flops: float = 2.0 * rows * depth * columns) -> Any:
                        found = meter.time(meter.capture(run), 40)
                        return {**found, "tflops": flops / found["ms"] / 1e9}

                    record = {"product": [rows, depth, columns], "who": who}
                    attempt(records, record, figures)
            _rows_in_e4m3(meter, records, rows, width)
        _convolutions(meter, records)
        _host(meter, records)


def _rows_in_e4m3(meter: Meter, records: Records, rows: int, width: int) -> None:
    """What comes before the products, in bfloat16 and in e4m3, and the bytes a second."""
    x = torch.randn(rows, width, device=meter.device, dtype=torch.bfloat16)
    hidden = torch.randn(rows, 4 * width, device=meter.device, dtype=torch.bfloat16)
    gamma, weight, bias, wide = (
        torch.ones(n, device=meter.device, dtype=torch.bfloat16)
        for n in (width, width, width, 4 * width)
    )
    norm = (x, x, gamma, weight, bias)
    runs: dict[str, tuple[Tensor, float, Callable[[], Any]]] = {
        "LayerNorm to bfloat16": (x, 8.0, lambda: ops.add_layer_norm(*norm)),
        "LayerNorm to e4m3": (x, 7.0, lambda: ops.add_layer_norm_fp8(*norm)),
        "GELU to bfloat16": (hidden, 4.0, lambda: ops.bias_gelu(hidden, wide, added=True)),
        "GELU to e4m3": (hidden, 3.0, lambda: ops.quantize_fp8(hidden, gelu=True)),
        "bfloat16 to e4m3": (x, 3.0, lambda: ops.quantize_fp8(x)),
    }
    for who, (given, size, run) in runs.items():

        def figures(run: Any = run, moved: float = size * given.numel()) -> dict[str, Any]:
            found = meter.time(meter.capture(run), 40)
            return {**found, "gbytes_s": moved / found["ms"] / 1e6}

        attempt(records, {"rows": list(given.shape), "who": who}, figures)


def _convolutions(meter: Meter, records: Records) -> None:
    channels, side = meter.size((256, 148), (8, 6))
    for batch in meter.size((1, 16), (1,)):
        x = torch.randn(batch, channels, side, side, device=meter.device, dtype=torch.bfloat16)
        conv = torch.nn.Conv2d(channels, channels, 3, padding=1).to(x)
        last = torch.channels_last
        y, nhwc = x.to(memory_format=last), torch.nn.Conv2d(channels, channels, 3, padding=1)
        nhwc = nhwc.to(x).to(memory_format=last)
        runs: dict[str, Callable[[], Tensor]] = {
            "contiguous": lambda x=x, conv=conv: conv(x),
            "maps channels-last": lambda y=y, conv=conv: conv(y),
            "both channels-last": lambda y=y, conv=nhwc: conv(y),
            "both, cudnn_convolution_relu": lambda y=y, c=nhwc: torch.cudnn_convolution_relu(
                y, c.weight, c.bias, (1, 1), (1, 1), (1, 1), 1
            ),
        }
        runs["both, then ReLU"] = lambda y=y, conv=nhwc: F.relu(conv(y))
        runs["both, ReLU by bias_relu_add"] = lambda y=y, c=nhwc: convolve(c, y, relu=True)
        shape = [batch, channels, side, side]
        _in_graphs(meter, records, shape, runs, 2.0 * y.numel() * channels * 9)
        small = y[..., : side // 4, : side // 4].contiguous(memory_format=last)
        larger = torch.nn.ConvTranspose2d(channels, channels, 4, stride=4).to(y)
        larger = larger.to(memory_format=last)
        runs = {
            "transposed, 4x4, PyTorch": lambda z=small, layer=larger: layer(z),
            "transposed, 4x4, conv_transpose": lambda z=small, layer=larger: enlarge(layer, z),
        }
        shape = list(small.shape)
        _in_graphs(meter, records, shape, runs, 2.0 * small.numel() * channels * 16)


def _in_graphs(
    meter: Meter, records: Records, shape: list[int], runs: dict[str, Callable[[], Tensor]],
    flops: float,
) -> None:  # fmt: skip
    """Records convolutions of maps of one shape."""
    for who, run in runs.items():

        def figures(run: Any = run) -> dict[str, Any]:
            found = meter.time(meter.capture(run), 40)
            return {**found, "tflops": flops / found["ms"] / 1e9}

        attempt(records, {"convolution": shape, "who": who}, figures)


def _host(meter: Meter, records: Records) -> None:
    """Microseconds until a call returns, without waiting for the device."""
    x = torch.randn(64, 384, device=meter.device, dtype=torch.bfloat16)
    bias = torch.zeros(384, device=meter.device, dtype=torch.bfloat16)
    qkv = torch.randn(1, 64, 3, 6, 64, device=meter.device, dtype=torch.bfloat16)
    calls: dict[str, tuple[str, Callable[[], Any]]] = {
        "PyTorch's gelu": ("", lambda: F.gelu(x)),
        "bias_gelu": (meter.size("triton", "reference"), lambda: ops.bias_gelu(x, bias)),
        "attention": (meter.size("triton", "cpp"), lambda: ops.flash_attention_qkvpacked(qkv)),
        "attention, SDPA": ("sdpa", lambda: ops.flash_attention_qkvpacked(qkv)),
    }
    for what, (backend, call) in calls.items():

        def figures(backend: str = backend, call: Any = call) -> dict[str, Any]:
            with use_backend(backend) if backend else contextlib.nullcontext():
                for _ in range(3):
                    call()
                meter.wait()
                count = meter.size(200, 2)
                start = time.perf_counter()
                for _ in range(count):
                    call()
                seconds = time.perf_counter() - start
                meter.wait()
            return {"call_us": 1e6 * seconds / count}

        attempt(records, {"host": what}, figures)
