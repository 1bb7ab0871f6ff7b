"""Estimates of the targets of docs/gpu.md, from counts of what dafast and its peers compute.

Operations, their arithmetic and their bytes are counted with fake tensors, as in
`bench/estimate.py`, whose rates of an H100 they get. The same rate serves both sides of a ratio:
the estimate says what the counts differ by, not which kernels are better.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves

from bench.estimate import H100, RESULTS, Counter, Op, Rates, make_fake
from bench.gpu.first_tables import BOTH, LOSS, FirstRuns
from bench.gpu.networks import sdpa_and_references
from dafast import DepthAnything, use_backend
from dafast.ops import _dispatch, _triton

SIZE = (518, 518)
TEACHER = 8
"""Images of the training step that is estimated."""

FP8_GAIN = (1.4, 1.8)
"""Assumed: rate of products in e4m3 over that in bfloat16."""

_BYTES_A_WEIGHT = 16  # in float32: the weight, its gradient, two moments


class GpuCounter(Counter):
    """Counts the passes in which PyTorch adds the bias of a convolution on a GPU.

    Its convolutions there have no bias: one pass over the output adds it, one over the gradient of
    the output sums its gradient.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.convolution.default and args[2] is not None:
            self._add_pass(2.0 * out.numel() * out.element_size())
        elif func is torch.ops.aten.convolution_backward.default and args[-1][2]:
            self._add_pass(float(args[0].numel() * args[0].element_size()))
        return out

    def _add_pass(self, moved: float) -> None:
        self.calls += 1
        self.ops.append(Op("glue", 0.0, moved))


class OwnCounter(GpuCounter):
    """Counts dafast's kernels, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not name.startswith("dafast::"):
            return super().__torch_dispatch__(func, types, args, kwargs)
        out = func(*args, **(kwargs or {}))
        self.own_calls += 1
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        moved = sum(x.numel() * x.element_size() for x in tensors)
        kind, flops = _arithmetic(name, args, out)
        self.ops.append(Op(kind, flops, moved))
        return out


def _arithmetic(name: str, args: Sequence[Any], out: Any) -> tuple[str, float]:
    """Kind and floating-point operations of one of dafast's kernels."""
    if "attention" in name:
        backward = name.endswith("_backward")
        batch, tokens, _, heads, width = args[1 if backward else 0].shape
        flops = 4.0 * batch * heads * tokens**2 * width
        return ("attention, backward", 2.5 * flops) if backward else ("attention", flops)
    if "conv_transpose" in name:
        x, weight = args[:2]
        return "product", 2.0 * x.numel() * weight[0].numel()
    if "decoder_tail" in name:
        weight = args[3]
        return "tail", 2.0 * out.numel() * (weight.numel() + len(weight))
    return "glue", 0.0


@contextmanager
def _own_kernels() -> Iterator[None]:
    """Ops take their Triton kernels, of which fake tensors need only the shapes."""
    with mock.patch.object(_triton, "_cpu_reason", return_value=""), use_backend("triton"):
        _dispatch.forget_choices()
        try:
            yield
        finally:
            _dispatch.forget_choices()


def _on_meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return make()


@functools.cache
def own_forward(preset: str, images: int) -> Counter:
    """dafast's forward in bfloat16."""
    model = _on_meta(lambda: DepthAnything(preset)).eval()
    counter = OwnCounter()
    with FakeTensorMode(), torch.no_grad(), _own_kernels():
        make_fake(model, torch.bfloat16)
        x = torch.empty(images, 3, *SIZE, dtype=torch.bfloat16)
        with counter:
            model(x)
    return counter


@functools.cache
def transformers_forward(images: int) -> Counter:
    """The forward of transformers' ViT-L with SDPA in bfloat16, without torch.compile."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518,
        patch_size=14, out_indices=[5, 12, 18, 24], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=1024, fusion_hidden_size=256,
        neck_hidden_sizes=[256, 512, 1024, 1024],
    )  # fmt: skip
    model = _on_meta(lambda: DepthAnythingForDepthEstimation(config)).eval()
    model.backbone.set_attn_implementation("sdpa")
    counter = GpuCounter()
    with FakeTensorMode(), torch.no_grad():
        make_fake(model, torch.bfloat16)
        x = torch.empty(images, 3, *SIZE, dtype=torch.bfloat16)
        with counter:
            model(x)
    return counter


@functools.cache
def training_step(preset: str, own: bool) -> tuple[Counter, int]:
    """Both passes of a teacher's network under autocast, without the loss.

    Returns:
        The counts, and the bytes of the activations that the backward needs.
    """
    model = _on_meta(lambda: DepthAnything(preset)).train()
    counter, kept = OwnCounter() if own else GpuCounter(), dict[int, int]()

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with FakeTensorMode(), _own_kernels() if own else sdpa_and_references(), counter, saved:
        make_fake(model, torch.float32)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        x = torch.empty(TEACHER, 3, *SIZE)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        out.backward(torch.empty_like(out))
    return counter, sum(size for at, size in kept.items() if at not in weights)


def _milliseconds(ops: Sequence[Op], rates: Rates, *kinds: str) -> float:
    return 1e3 * sum(rates.seconds(op) for op in ops if not kinds or op.kind in kinds)


def _span(values: Sequence[float], digits: int = 2) -> str:
    low, high = (f"{end:.{digits}f}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _photo(preset: str) -> tuple[str, str]:
    """Of one photo: the time of its kernels; and what the limit leaves for each launch."""
    counter = own_forward(preset, 1)
    kernels = [_milliseconds(counter.ops, rates) for rates in H100]
    launches = counter.calls + counter.own_calls
    gaps = [0.3e3 * ms / launches for ms in kernels]
    return (
        f"kernels {_span(kernels, 1)} ms",
        f"{launches} launches; met if each takes {_span(gaps, 1)} us beyond its kernel at most",
    )


def _batch() -> tuple[str, str]:
    """ViT-L, batch 16, over transformers: in bfloat16, and with products in e4m3.

    torch.compile joins passes over memory: transformers then has dafast's at least, and those
    that PyTorch runs one by one at most.
    """
    own, theirs = own_forward("vitl", 16).ops, transformers_forward(16).ops
    plain, quantized = [], []
    for rates in H100:
        ms = _milliseconds(own, rates)
        products = _milliseconds(own, rates, "product")
        others = _milliseconds(theirs, rates, "product", "convolution", "attention", "resize")
        for passes in (own, theirs):
            peer = others + _milliseconds(passes, rates, "glue")
            plain.append(ms / peer)
            quantized += [(ms - products + products / gain) / peer for gain in FP8_GAIN]
    assumed = f"products {' to '.join(map(str, FP8_GAIN))} times as fast (assumed)"
    return _span(plain), f"{_span(quantized)}, {assumed}"


def _step() -> tuple[str, str]:
    """A teacher's training step over SDPA and reference ops: its time and its memory."""
    runs = FirstRuns(RESULTS)
    case = "8x518x518, 20% masked"
    eager = runs.get("attention", LOSS, case, "float32", BOTH, "reference")["ms"]
    kernels = runs.get("printed", LOSS, case, "float32", BOTH)["us"] / 1e3
    own, own_bytes = training_step("vitl", True)
    theirs, their_bytes = training_step("vitl", False)
    times = [
        (_milliseconds(own.ops, rates) + kernels) / (_milliseconds(theirs.ops, rates) + eager)
        for rates in H100
    ]
    model = _on_meta(lambda: DepthAnything("vitl"))
    weights = _BYTES_A_WEIGHT * sum(p.numel() for p in model.parameters())
    own_gb, their_gb = ((weights + kept) / 1e9 for kept in (own_bytes, their_bytes))
    memory = (
        f"{own_gb / their_gb:.2f}: weights, moments and kept activations take {own_gb:.1f} and "
        f"{their_gb:.1f} GB"
    )
    return f"{_span(times)} for a teacher; {eager:.1f} ms of it the eager loss, measured", memory


def estimated() -> dict[str, str]:
    """The estimate of every target, by its name in `run_tables.targets`."""
    found = {}
    for preset in ("vits", "vitl"):
        found[preset], found[f"{preset} over kernels"] = _photo(preset)
    found["batch"], found["batch, fp8"] = _batch()
    found["step"], found["step, memory"] = _step()
    # Both sides have the same counts; what differs is how much of them runs at the same time.
    found["attention"] = "none: both sides have the same counts, and differ in their overlap"
    # Forward reads of prediction, target and mask: 9 bytes a pixel; both passes once: 13.
    for backend, reads in (("triton", 4), ("cuda", 1)):
        found[backend] = f"≥ {(9 * reads + 13) / 13:.1f} by bytes ({reads} forward reads)"
    return found
