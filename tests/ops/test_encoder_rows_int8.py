"""The rows of a block in int8: the kernel against the specification and against float64."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from dafast.ops import (
    BackendError,
    EncoderRows,
    Int8Linear,
    RowNorm,
    encoder_rows_int8,
    encoder_rows_int8_reference,
    quantize_weight,
    use_backend,
)
from dafast.ops.linear_int8 import why_slow_int8
from tests.instruction_sets import INT8_SETS, instruction_set, threads

fast = pytest.mark.skipif(bool(why_slow_int8()), reason=why_slow_int8() or "it is there")
PARTS = [(False, True), (True, True), (True, False)]  # whether there are a tap and a next block


def inputs(shape, hidden, parts=(True, True), dtype=torch.float32):
    """x, mixed, parameters, and a function that computes the same in float64."""
    channels = shape[-1]
    weights = {}

    def layer(name, depth, columns):
        weight, bias = torch.randn(columns, depth) / depth**0.5, torch.randn(columns)
        weights[name] = weight.double(), bias.double()
        return Int8Linear(quantize_weight(weight), bias)

    def norm(eps):
        return RowNorm(1 + 0.3 * torch.randn(channels), 0.3 * torch.randn(channels), eps)

    tap, after = parts
    rows = EncoderRows(
        layer("proj", channels, channels), torch.randn(channels), norm(1e-6),
        layer("fc1", channels, hidden), layer("fc2", hidden, channels), torch.randn(channels),
        norm(1e-2) if tap else None, norm(1e-6) if after else None,
        layer("qkv", channels, 3 * channels) if after else None,
    )  # fmt: skip

    def exact(x, mixed):
        def normed(x, norm):
            return F.layer_norm(x, (channels,), norm.weight.double(), norm.bias.double(), norm.eps)

        x = x.double() + rows.ls1 * F.linear(mixed.double(), *weights["proj"])
        hidden = F.gelu(F.linear(normed(x, rows.norm2), *weights["fc1"]))
        x = x + rows.ls2 * F.linear(hidden, *weights["fc2"])
        outs = [x, normed(x, rows.tap) if tap else None]
        return [*outs, F.linear(normed(x, rows.next_norm), *weights["qkv"]) if after else None]

    mixed = (torch.randn(shape) * torch.rand(*shape[:-1], 1).exp()).to(dtype)
    return torch.randn(shape), mixed, rows, exact


def error(got, wanted):
    return float((got.double() - wanted.double()).square().mean().sqrt() / wanted.double().std())


@fast
@pytest.mark.parametrize("name", INT8_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize(("shape", "hidden"), [((2, 35, 48), 96), ((1, 1, 16), 16)], ids=str)
def test_kernel_is_the_specification(shape, hidden, parts, dtype, name, seed):
    """A value between two steps may be rounded either way, which is rare."""
    x, mixed, rows, exact = inputs(shape, hidden, parts, dtype)
    with instruction_set(name), use_backend("cpp"):
        got = encoder_rows_int8(x, mixed, rows)
    wanted = encoder_rows_int8_reference(x, mixed, rows)
    for out, like, truth in zip(got, wanted, exact(x, mixed), strict=True):
        assert (out is None) == (like is None) == (truth is None)
        if out is None:
            continue
        assert out.dtype == like.dtype and out.shape == like.shape
        assert error(out, like) < 5e-3
        if shape[-1] > 16:
            assert error(out, truth) < 0.03


@fast
def test_threads_and_strides(seed):
    x, mixed, rows, _ = inputs((3, 50, 32), 64, dtype=torch.bfloat16)
    outputs = []
    for count in (1, 3):
        with threads(count):
            outputs.append(encoder_rows_int8(x, mixed, rows))
    outputs.append(encoder_rows_int8(x.mT.contiguous().mT, mixed.mT.contiguous().mT, rows))
    assert all(map(torch.equal, outputs[0], outputs[1]))
    assert all(map(torch.equal, outputs[0], outputs[2]))


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=fast)])
def test_a_token_with_nan_stays_alone(backend, seed):
    x, mixed, rows, _ = inputs((1, 5, 32), 32)
    mixed[0, 2, 7] = float("nan")
    with use_backend(backend):
        for out in encoder_rows_int8(x, mixed, rows):
            assert out[0, 2].isnan().all() and out[0, [0, 1, 3, 4]].isfinite().all()
        assert encoder_rows_int8(x[:, :0], mixed[:, :0], rows)[2].shape == (1, 0, 96)


def test_limits(seed):
    x, mixed, rows, _ = inputs((1, 3, 32), 48)
    with (
        instruction_set("portable"),
        use_backend("cpp"),
        pytest.raises(BackendError, match="needs AVX2"),
    ):
        encoder_rows_int8(x, mixed, rows)
    odd = inputs((1, 3, 32), 40)
    with use_backend("cpp"), pytest.raises(BackendError, match="multiples of 16 channels"):
        encoder_rows_int8(*odd[:3])
    with use_backend("cpp"), pytest.raises(BackendError, match="takes float32 x"):
        encoder_rows_int8(x.double(), mixed, rows)
    for wrong in ((x, mixed[:, :2]), (x[..., :16], mixed[..., :16]), (x[0, 0], mixed[0, 0])):
        with pytest.raises(ValueError, match="encoder_rows_int8 needs x"):
            encoder_rows_int8(*wrong, rows)


def test_nothing_keeps_weights(seed):
    x, mixed, rows, _ = inputs((1, 3, 32), 32)
    encoder_rows_int8(x, mixed, rows)
    gone = weakref.ref(rows)
    del rows, _
    gc.collect()
    assert gone() is None


@fast
def test_custom_op(seed):
    x, mixed, rows, _ = inputs((4, 32), 48)
    arguments = (x, mixed, rows.packed, rows.sums, rows.vectors, 48, True, 96)
    torch.library.opcheck(torch.ops.dafast.encoder_rows_int8.default, arguments)


@fast
def test_packed_weights_are_kept_once(seed):
    *_, rows, _ = inputs((1, 3, 32), 48)
    storage = rows.packed.untyped_storage().data_ptr()
    for layer in (rows.proj, rows.fc1, rows.fc2, rows.qkv):
        same = quantize_weight(layer.weight.values.float() * layer.weight.scale[:, None])
        assert torch.equal(layer.weight.packed, same.packed)
        assert layer.weight.packed.untyped_storage().data_ptr() == storage
