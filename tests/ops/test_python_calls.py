"""Python calls of an op: what small inputs cost, and a count that no machine's load changes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import dafast
from dafast import ops
from dafast.ops._extension import PORTABLE_FLOAT, cpu_capability
from dafast.ops.linear_int8 import why_slow_int8
from dafast.ops.linear_packed import why_slow_packed
from tests.instruction_sets import needs_extension

PACKAGE = str(Path(dafast.__file__).parent)

# The most calls of dafast's own functions. By op: unasked and with "cpp", then both with a
# backward pass; 0 without a backward pass.
BOUNDS = {
    "add_layer_norm": (17, 17, 20, 27),
    "affine_invariant_loss": (11, 11, 20, 20),
    "attention_int8": (9, 9, 0, 0),
    "bias_gelu": (8, 8, 6, 16),
    "conv3x3": (6, 12, 6, 31),
    "conv3x3_int8": (19, 19, 0, 0),
    "conv3x3_packed": (19, 19, 0, 0),
    "decoder_tail": (13, 13, 9, 0),
    "embed_patches": (13, 13, 0, 0),
    "encoder_rows": (20, 20, 0, 0),
    "encoder_rows_int8": (18, 18, 0, 0),
    "feature_alignment_loss": (9, 9, 16, 16),
    "flash_attention": (15, 15, 30, 30),
    "flash_attention_qkvpacked": (14, 14, 25, 25),
    "flash_attention_varlen": (16, 16, 31, 31),
    "linear": (6, 10, 6, 22),
    "linear_int8": (9, 9, 7, 0),
    "linear_packed": (9, 9, 7, 0),
    "pad": (7, 12, 7, 26),
    "postprocess": (12, 12, 0, 0),
    "preprocess": (35, 35, 0, 0),
    "resize_bicubic": (7, 7, 10, 0),
    "resize_bilinear": (10, 10, 17, 17),
    "transpose_rows": (8, 8, 0, 0),
}

PACKED = ("conv3x3_packed", "embed_patches", "encoder_rows", "linear_packed")


def why_no_bound(op: str, backend: str) -> str:
    """Why the bounds of an op, counted with AVX-512, do not hold on this CPU, or "" if they do."""
    if backend == "auto":
        portable = cpu_capability() in PORTABLE_FLOAT
        return "ops may prefer PyTorch to portable instructions" if portable else ""
    if "int8" in op:
        return why_slow_int8()
    return why_slow_packed(torch.float32) if op in PACKED else ""


def calls(op: str, gradient: bool) -> Callable[[], torch.Tensor]:
    """A call of the op with small inputs, which the kernels of the extension serve."""

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(shape).requires_grad_(gradient)

    x, vector, fixed = new(2, 64, 128), new(128), torch.randn(2, 64, 128)
    images, disparity = new(2, 3, 40, 50), new(2, 40, 40)
    qkv, ends = new(2, 64, 3, 2, 64), torch.tensor([0, 64, 128], dtype=torch.int32)
    tail = (new(1, 32, 10, 12), (20, 24), new(32, 32, 3, 3), new(32), new(1, 32, 1, 1), new(1))
    photo = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8)
    geometry = ops.plan_geometry(60, 80, size=56)
    weight, bias = ops.quantize_weight(torch.randn(64, 128)), new(64)
    square, norm = (
        ops.Int8Linear(ops.quantize_weight(torch.randn(128, 128)), new(128)),
        (vector,) * 2,
    )
    row_norm = ops.RowNorm(*norm, 1e-6)
    rows = ops.EncoderRows(
        square, vector, row_norm, square, square, vector, row_norm, row_norm, square
    )
    kernel = ops.quantize_conv3x3(torch.randn(64, 32, 3, 3))
    packed = ops.pack_linear(torch.randn(128, 128), vector)
    packed_kernel = ops.pack_conv3x3(torch.randn(64, 32, 3, 3), bias)
    layer = (packed.values, vector.detach())
    packed_rows = ops.PackedRows(
        layer, vector, row_norm, layer, layer, vector, row_norm, row_norm, layer
    )
    return {
        "add_layer_norm": lambda: ops.add_layer_norm(x, x, vector, vector, vector)[1],
        "affine_invariant_loss": lambda: ops.affine_invariant_loss(disparity, fixed[:, :40, :40]),
        "attention_int8": lambda: ops.attention_int8(qkv),
        "bias_gelu": lambda: ops.bias_gelu(x, vector),
        "conv3x3": lambda: ops.conv3x3(new(1, 32, 9, 9), new(64, 32, 3, 3), bias),
        "conv3x3_int8": lambda: ops.conv3x3_int8(new(1, 32, 9, 9), kernel, bias),
        "conv3x3_packed": lambda: ops.conv3x3_packed(new(1, 32, 9, 9), packed_kernel),
        "decoder_tail": lambda: ops.decoder_tail(*tail),
        "embed_patches": lambda: ops.embed_patches(
            torch.randn(2, 2, 16, 16), packed, torch.randn(5, 128), row_norm
        )[1],
        "encoder_rows": lambda: ops.encoder_rows(x, x, packed_rows)[0],
        "encoder_rows_int8": lambda: ops.encoder_rows_int8(x, x, rows)[0],
        "feature_alignment_loss": lambda: ops.feature_alignment_loss(x, fixed),
        "flash_attention": lambda: ops.flash_attention(*qkv.unbind(2)),
        "flash_attention_qkvpacked": lambda: ops.flash_attention_qkvpacked(qkv),
        "flash_attention_varlen": lambda: ops.flash_attention_varlen(
            *qkv.flatten(0, 1).unbind(1), ends, 64
        ),
        "linear": lambda: ops.linear(x, new(64, 128), bias),
        "linear_int8": lambda: ops.linear_int8(x, weight, bias),
        "linear_packed": lambda: ops.linear_packed(x, packed),
        "pad": lambda: ops.pad(images, (1, 2, 3, 4)),
        "postprocess": lambda: ops.postprocess(fixed[:1, :56, :84], [geometry])[0],
        "preprocess": lambda: ops.preprocess(photo, size=56)[0],
        "resize_bicubic": lambda: ops.resize_bicubic(images, (30, 60)),
        "resize_bilinear": lambda: ops.resize_bilinear(images, (30, 60), antialias=True),
        "transpose_rows": lambda: ops.transpose_rows(qkv.flatten(3)),
    }[op]


def count(call: Callable[[], Any]) -> int:
    """Calls of Python functions of dafast, once everything is imported and cached."""
    call()
    call()
    seen = 0

    def look(frame: FrameType, event: str, _arg: Any) -> None:
        nonlocal seen
        seen += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(before)
    return seen


CASES = [
    pytest.param(op, backend, gradient, marks=[needs_extension] if backend == "cpp" else [])
    for op in BOUNDS
    for gradient in (False, True)
    for backend in ("auto", "cpp")
    if BOUNDS[op][2 * gradient + (backend == "cpp")]
]


@pytest.mark.parametrize(("op", "backend", "gradient"), CASES)
def test_an_op_makes_few_python_calls(op, backend, gradient, seed):
    if why := why_no_bound(op, backend):
        pytest.skip(why)
    call = calls(op, gradient)
    forced = contextlib.nullcontext() if backend == "auto" else ops.use_backend(backend)
    with forced, torch.set_grad_enabled(gradient):
        made = count((lambda: call().sum().backward()) if gradient else call)
    assert made <= BOUNDS[op][2 * gradient + (backend == "cpp")]
