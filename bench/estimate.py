"""Estimates the network's time on a GPU from measured kernels: `python bench/estimate.py`.

Every operation of a pass is counted from its shapes (fake tensors: nothing is computed): its
floating-point operations, the bytes that it reads and writes, and one call. Its time is that of
its arithmetic or of its bytes, the longer one, at rates that were measured for single kernels,
times shares that are assumed where nothing was measured. The time of a pass is the sum, or the
time of its calls on the host if that is longer. The shares have a low and a high end, and so has
the result.

`--here` estimates the same for this CPU, measures its rates and the network, and prints both.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench.gpu import first_tables
from bench.timing import machine
from dafast import DepthAnything
from dafast.models.dpt import Scratch
from dafast.ops import OPS, flash_attention_qkvpacked

PICTURE = (518, 700)
"""518 x 690 pixels, padded to multiples of 14."""
CROP = (518, 518)
SIDE = 2048
"""Rows and columns of the matrices whose product gives this machine's FLOP/s."""
RESULTS = Path(__file__).resolve().parent / "results"
LABEL_BATCH = 16  # pictures in a pass of the teacher
TRAIN_BATCH = 24  # a GPU's: 8 labeled and 16 unlabeled

KINDS = ("product", "convolution", "attention", "attention, backward", "tail", "resize", "glue")


class Op(NamedTuple):
    """One operation of a pass: its kind, arithmetic and traffic."""

    kind: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class Rates:
    """What a machine reaches, one end of a range.

    Attributes:
        product: FLOP/s of a large matrix product.
        product_share: Fraction of it that products of the network's shapes reach.
        convolution_share: Fraction of it that the decoder's convolutions reach.
        attention: FLOP/s of attention.
        attention_backward: FLOP/s of its backward only.
        tail: FLOP/s of the decoder's tail as one kernel.
        copy: Bytes/s that a copy moves, read and written.
        copy_share: Fraction of it that memory-bound operations reach.
        resize: Bytes/s of the bilinear resize.
        call: Seconds of the host for an operation of PyTorch's.
        own_call: The same for one of dafast's.
    """

    product: float
    product_share: float
    convolution_share: float
    attention: float
    attention_backward: float
    tail: float
    copy: float
    copy_share: float
    resize: float
    call: float
    own_call: float

    def seconds(self, op: Op) -> float:
        """Time of one operation."""
        rate = {
            "product": self.product * self.product_share,
            "convolution": self.product * self.convolution_share,
            "attention": self.attention,
            "attention, backward": self.attention_backward,
            "tail": self.tail,
        }.get(op.kind, math.inf)
        traffic = self.resize if op.kind == "resize" else self.copy * self.copy_share
        return max(op.flops / rate, op.bytes / traffic)


def _h100() -> tuple[Rates, Rates]:
    """The slow and the fast end, from the records of the first runs; `SOURCES` says how."""
    runs = first_tables.FirstRuns(RESULTS)

    def record(run: str, op: str, case: str, step: str, backend: str) -> dict[str, Any]:
        return runs.get(run, op, case, "bfloat16", step, backend)

    def ends(values: Sequence[float]) -> tuple[float, float]:
        low, high = (float(f"{end:.3g}") for end in (min(values), max(values)))
        return low, high

    attention, backward = [], []
    for case in first_tables.CASES[:2]:
        passes = [record("attention", first_tables.ATTENTION, case, step, "triton")
                  for step in ("forward", first_tables.BOTH)]  # fmt: skip
        flops = passes[0]["gflops"] * passes[0]["ms"]
        first = record("first", first_tables.ATTENTION, case, "forward", "triton")
        attention.append(1e9 * first["gflops"])
        backward.append(2.5e9 * flops / (passes[1]["ms"] - passes[0]["ms"]))
    case = "16x128x296x296 to 518x518"
    tail = 2 * 16 * 518**2 * (9 * 128 * 32 + 32) / record(
        "glue", "decoder_tail", case, "forward", "triton"
    )["ms"]  # fmt: skip
    resize = [
        1e9 * record("resize", "resize_bilinear", "256x148x148 to 296x296", "forward", b)["gbytes"]
        for b in ("reference", "cuda")
    ]
    copy = [1e9 * rate for rate in runs.peaks("copy_gbytes")]
    share = record("printed", "add_layer_norm", "16x1370x1024", "forward", "")
    columns = (
        ends([1e9 * rate for rate in runs.peaks("matmul_bfloat16_gflops")]),
        (0.60, 0.90), (0.30, 0.70), ends(attention), ends(backward), ends([500 * tail, 1e3 * tail]),
        ends(copy), (0.70, share["share"]), ends(resize), (20e-6, 10e-6), (200e-6, 50e-6),
    )  # fmt: skip
    slow, fast = zip(*columns, strict=True)
    return Rates(*slow), Rates(*fast)


H100 = _h100()
"""The slow and the fast end of an H100 in bfloat16."""

SOURCES = (
    ("product", "TFLOP/s", 1e12, "measured: 8192 x 8192, from run to run"),
    ("product_share", "", 1, "assumed; rows of 1,000 to 4,000 columns, not 8,192"),
    ("convolution_share", "", 1, "assumed; the decoder's tail was measured at 0.3"),
    ("attention", "TFLOP/s", 1e12, "measured: 8 x 1814 and 16 x 1370 tokens, 16 heads"),
    ("attention_backward", "TFLOP/s", 1e12, "measured: both passes less the forward, the same"),
    ("tail", "TFLOP/s", 1e12, "measured: 16 x 128 x 296 x 296 (fast); assumed half of it (slow)"),
    ("copy", "TB/s", 1e12, "measured"),
    ("copy_share", "", 1, "measured: LayerNorm and GELU (fast); assumed for others (slow)"),
    ("resize", "TB/s", 1e12, "measured: 256 x 148 x 148 to 296 x 296, PyTorch's and dafast's"),
    ("call", "us", 1e-6, "assumed: an operation of PyTorch's on the host"),
    ("own_call", "us", 1e-6, "measured: an operation that dafast has a kernel for, on the host"),
)
"""The sources of the figures of `H100`: field, unit, size of the unit, source."""


class Counter(TorchDispatchMode):
    """Collects the operations that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.calls = self.own_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, packet = func._schema.name, func._overloadpacket
        free = name.startswith("prim::") or name.split("::")[1] in _FREE
        if free or any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns):
            return out  # a view, or a query of a tensor
        own = any(part in name for part in _OWN)
        self.calls, self.own_calls = self.calls + (not own), self.own_calls + own
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in tensors)
        flops = 0.0
        kind = "glue"
        if "attention" in name:
            q = args[1] if "backward" in name else args[0]
            batch, heads, tokens, width = q.shape
            flops = 4.0 * batch * heads * tokens**2 * width
            kind = "attention"
            if "backward" in name:
                kind, flops = "attention, backward", 2.5 * flops
        elif packet in flop_registry:
            flops = float(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
            kind = "convolution" if "convolution" in name else "product"
        elif "upsample_bilinear" in name:
            kind = "resize"
        self.ops.append(Op(kind, flops, moved))
        return out

    def tail(self, scratch: Scratch, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The decoder's tail as one kernel, as in inference on a GPU."""
        self.own_calls += 1
        out = torch.empty(len(x), 1, *size, dtype=torch.float32)
        weight = scratch.output_conv2[0].weight
        flops = 2.0 * out.numel() * (weight.numel() + len(weight))
        self.ops.append(Op("tail", flops, x.numel() * x.element_size() + 4 * out.numel()))
        return out


_OWN = ("attention", "layer_norm", "gelu", "upsample_bilinear")
"""PyTorch's names of the operations that dafast has kernels for."""

_FREE = {"detach", "promote_types", "empty", "new_empty", "new_empty_strided", "empty_like",
         "_unsafe_view"}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """The operations of a pass over a batch.

    Attributes:
        images: In the batch.
        ops: The operations that compute.
        calls: Number of PyTorch's operations, without views.
        own_calls: Number of operations that dafast has kernels for.
    """

    images: int
    ops: tuple[Op, ...]
    calls: int
    own_calls: int

    def __add__(self, other: Work) -> Work:
        return Work(
            self.images,
            self.ops + other.ops,
            self.calls + other.calls,
            self.own_calls + other.own_calls,
        )

    def seconds(self, rates: Rates) -> float:
        """Seconds per image."""
        device = sum(map(rates.seconds, self.ops))
        host = self.calls * rates.call + self.own_calls * rates.own_call
        return max(device, host) / self.images

    def by_kind(self, rates: Rates) -> dict[str, float]:
        """Seconds per image by kind; those of the host have a kind of their own."""
        parts = dict.fromkeys(KINDS, 0.0)
        for op in self.ops:
            parts[op.kind] += rates.seconds(op) / self.images
        parts["host"] = (self.calls * rates.call + self.own_calls * rates.own_call) / self.images
        return parts


def make_fake(model: nn.Module, dtype: torch.dtype) -> None:
    """Gives a model on the meta device fake tensors as weights; within a `FakeTensorMode`."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = torch.empty(parameter.shape, dtype=dtype)
                module._parameters[name] = nn.Parameter(value)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


@contextmanager
def _counted(
    preset: str, dtype: torch.dtype, train: bool
) -> Iterator[tuple[DepthAnything, Counter]]:
    """A model of fake tensors, and a counter of its operations."""
    with torch.device("meta"):
        model = DepthAnything(preset)
    with FakeTensorMode():
        make_fake(model, dtype)
        model.train(train)
        counter = Counter()
        with ExitStack() as stack:
            for op in OPS.values():  # PyTorch's operations, independent of this machine's kernels
                known = {k: v for k, v in op.backends.items() if k in ("sdpa", "reference")}
                stack.enter_context(mock.patch.object(op, "backends", known))
            if not train:
                stack.enter_context(mock.patch.object(
                    Scratch, "_tail", lambda scratch, x, size: counter.tail(scratch, x, size)
                ))  # fmt: skip
            yield model, counter


def forward_work(
    preset: str, size: tuple[int, int], images: int, dtype: torch.dtype = torch.bfloat16
) -> Work:
    """A forward pass in inference."""
    with _counted(preset, dtype, train=False) as (model, counter), torch.no_grad():
        x = torch.empty(images, 3, *size, dtype=dtype)
        with counter:
            model(x)
    return Work(images, tuple(counter.ops), counter.calls, counter.own_calls)


def student_work(preset: str, size: tuple[int, int], images: int) -> Work:
    """A step of a student's training: a third of the images labeled, aligned with an encoder.

    Forward and backward under autocast, the frozen encoder on two thirds, AdamW; not the losses
    (0.03 ms an image, measured) nor the exchange of gradients, which overlaps with the backward.
    """
    with _counted(preset, torch.float32, train=True) as (model, counter):
        x = torch.empty(images, 3, *size)
        with counter, torch.autocast("cpu", torch.bfloat16):
            prediction, features = model(x, features=True)
        with counter:
            torch.autograd.backward(
                [prediction, features],
                [torch.empty_like(prediction), torch.empty_like(features)],
            )
        weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    step = Work(images, tuple(counter.ops), counter.calls, counter.own_calls)
    with _counted(preset, torch.bfloat16, train=False) as (model, frozen), torch.no_grad():
        with frozen:
            model.pretrained(torch.empty(images * 2 // 3, 3, *size, dtype=torch.bfloat16))
    # AdamW reads weight, gradient and two moments and writes weight and moments.
    adam = Work(images, (Op("glue", 0.0, 28.0 * weights),), 0, 0)
    return step + Work(images, tuple(frozen.ops), frozen.calls, frozen.own_calls) + adam


@functools.cache
def plan() -> dict[str, Work]:
    """The work of each estimated rate of the plan, by the name of the input."""
    return {
        "teacher_rate": forward_work("vitl", PICTURE, LABEL_BATCH),
        "small_teacher_rate": forward_work("vits", PICTURE, LABEL_BATCH),
        "student_rate": student_work("vitl", CROP, TRAIN_BATCH),
    }


def images_per_second(name: str) -> tuple[float, float]:
    """The slow and the fast end of one of `plan` on an H100, to two digits."""
    slow, fast = (float(f"{1 / plan()[name].seconds(rates):.2g}") for rates in H100)
    return slow, fast


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def report() -> str:
    """The tables of rates and parts in docs/scale.md."""
    rows = [["rate", "slow", "fast", "unit", "from"]]
    for name, unit, size, source in SOURCES:
        slow, fast = (getattr(rates, name) / size for rates in H100)
        rows.append([f"`{name}`", f"{slow:g}", f"{fast:g}", unit, source])
    names = {"teacher_rate": "ViT-L forward", "small_teacher_rate": "ViT-S forward",
             "student_rate": "ViT-L student's step"}  # fmt: skip
    parts = [["an image", *(f"{label}: counted | ms, slow to fast" for label in names.values())]]
    for kind in (*KINDS, "host"):
        cells = []
        for name in names:
            work = plan()[name]
            slow, fast = (1e3 * work.by_kind(rates)[kind] for rates in H100)
            cells.append(f"{_counted_text(work, kind)} | {slow:.2f} to {fast:.2f}")
        parts.append([kind, *cells])
    totals = []
    for name in names:
        slow, fast = (1e3 * plan()[name].seconds(rates) for rates in H100)
        totals.append(f" | {slow:.2f} to {fast:.2f}")
    parts.append(["all, with the host in parallel", *totals])
    head = parts[0]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (2 * len(names))]
    lines += [f"| {' | '.join(row)} |" for row in parts[1:]]
    rates_rule = "|---|---:|---:|---|---|"
    table = [f"| {' | '.join(rows[0])} |", rates_rule, *(f"| {' | '.join(r)} |" for r in rows[1:])]
    return "\n".join(table) + "\n\n" + "\n".join(lines) + "\n"


def _counted_text(work: Work, kind: str) -> str:
    if kind == "host":
        return f"{work.calls + work.own_calls} calls a batch of {work.images}"
    ops = [op for op in work.ops if op.kind == kind]
    flops, moved = (sum(getattr(op, f) for op in ops) / work.images for f in ("flops", "bytes"))
    if not ops:
        return "none"
    return f"{flops / 1e9:,.0f} GFLOP" if flops else f"{moved / 1e9:.2f} GB"


def here(
    preset: str, size: tuple[int, int], dtype: torch.dtype, rounds: int
) -> dict[str, dict[str, float]]:
    """Estimates the network on this CPU from rates measured now, and measures the network.

    Rates and network are measured in turn, on one thread, in processor time, so that other work on
    the machine has little effect and the same effect on each.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = DepthAnything(preset).config
    tokens = size[0] * size[1] // config.patch_size**2 + 1
    shape = (1, tokens, 3, config.num_heads, config.embed_dim // config.num_heads)
    qkv = torch.randn(shape, dtype=dtype)
    a, b = torch.randn(2, SIDE, SIDE, dtype=dtype)
    x = torch.randn(1, 3, *size, dtype=dtype)
    big = torch.empty(1 << 27, dtype=torch.uint8)
    model = DepthAnything(preset).to(dtype).eval()
    fast = DepthAnything(preset).to(dtype).eval().optimize()
    attention = 4.0 * tokens**2 * config.embed_dim
    runs = {
        "product": lambda: a @ b,
        "copy": lambda: big.clone(),
        "attention": lambda: flash_attention_qkvpacked(qkv),
        "modules": lambda: model(x),
        "optimized": lambda: fast(x),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, run in runs.items():
                began = time.process_time()
                run()
                if turn:
                    times[name].append(time.process_time() - began)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    product, copy = 2 * SIDE**3 / seconds["product"], 2.0 * big.numel() / seconds["copy"]
    work = forward_work(preset, size, 1, dtype)
    whole = replace(H100[1], product_share=1.0, convolution_share=1.0, copy_share=1.0)
    ends = {}
    for end, rates in zip(("slow", "fast", "whole"), (*H100, whole), strict=True):
        own = replace(
            rates,
            product=product,
            attention=attention / seconds["attention"],
            tail=product * rates.convolution_share,
            copy=copy,
            resize=copy * rates.copy_share,
            call=0.0,
            own_call=0.0,
        )
        ends[end] = work.seconds(own)
    return {
        "rates": {"product": product, "copy": copy, "attention": attention / seconds["attention"]},
        "estimate": ends,
        "measured": {name: seconds[name] for name in ("modules", "optimized")},
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | str:
    """Command line; returns what it prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--here", action="store_true", help="compare the estimate with this CPU")
    parser.add_argument("--preset", default="vits", help="with --here")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each run with --here")
    parser.add_argument(
        "--json", type=Path, help="with --here, also write the figures to this file"
    )
    options = parser.parse_args(argv)
    if not options.here:
        text = report()
        print(text, end="")
        return text
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(torch.device("cpu"))}
    rows = [["", "product, GFLOP/s", "attention, GFLOP/s", "copy, GB/s", "estimated, ms",
             "with shares of 1, ms", "modules, ms", "optimized, ms"]]  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        seen = result[name] = here(options.preset, CROP, dtype, options.rounds)
        rates, ends, measured = seen["rates"], seen["estimate"], seen["measured"]
        rows.append([
            f"{options.preset}, {CROP[0]} x {CROP[1]}, {name}",
            *(f"{rates[key] / 1e9:,.0f}" for key in ("product", "attention", "copy")),
            f"{1e3 * ends['slow']:,.0f} to {1e3 * ends['fast']:,.0f}",
            f"{1e3 * ends['whole']:,.0f}",
            *(f"{1e3 * measured[key]:,.0f}" for key in ("modules", "optimized")),
        ])  # fmt: skip
    print(", ".join(f"{k} {v}" for k, v in result["machine"].items()) + "\n")
    print(markdown(rows))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
