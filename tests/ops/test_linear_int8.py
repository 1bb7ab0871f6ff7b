"""int8 linear layers: the kernel against the specification, and how far they are from float32."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from dafast.ops import (
    BackendError,
    linear_int8,
    linear_int8_reference,
    quantize_weight,
    use_backend,
)
from dafast.ops.linear_int8 import why_slow_int8
from tests.instruction_sets import INT8_SETS, instruction_set, threads
from tests.tolerances import TOLERANCES

SHAPES = [((5, 7), 3), ((1, 64), 32), ((2, 50, 33), 40), ((97, 384), 65), ((3, 4, 1), 1)]
fast = pytest.mark.skipif(bool(why_slow_int8()), reason=why_slow_int8() or "it is there")


def inputs(shape, columns, dtype=torch.float32):
    x = torch.randn(shape) * torch.rand(*shape[:-1], 1).exp()
    weight = torch.randn(columns, shape[-1]) / shape[-1] ** 0.5
    return x.to(dtype), weight, torch.randn(columns)


@fast
@pytest.mark.parametrize("name", INT8_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "columns"), SHAPES)
def test_kernel_is_the_specification(shape, columns, dtype, name, seed):
    x, weight, bias = inputs(shape, columns, dtype)
    quantised = quantize_weight(weight)
    with instruction_set(name), use_backend("cpp"):
        got = linear_int8(x, quantised, bias)
    expected = linear_int8_reference(x, quantised, bias)
    assert got.dtype == dtype and got.shape == expected.shape == (*shape[:-1], columns)
    bound = TOLERANCES[dtype].op * expected.abs().max()
    assert (got.double() - expected.double()).abs().max() <= bound


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=fast)])
def test_close_to_float32(backend, seed):
    x, weight, bias = inputs((70, 256), 48)
    with use_backend(backend):
        got = linear_int8(x, quantize_weight(weight), bias)
    exact = F.linear(x.double(), weight.double(), bias.double())
    # Two roundings, each off by at most half a step, of random sign.
    size = x.amax(1, keepdim=True).clamp_min(0) - x.amin(1, keepdim=True).clamp_max(0)
    step = (size / 255, weight.abs().amax(1) / 127)
    noise = (
        step[0] ** 2 * weight.pow(2).sum(1) + step[1] ** 2 * x.pow(2).sum(1, keepdim=True)
    ) / 12
    assert (got - exact).abs().le(6 * noise.sqrt() + 1e-6).all()
    assert (got - exact).abs().max() > 0


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=fast)])
def test_small_integers_are_exact(backend, seed):
    x = torch.randint(-100, 156, (9, 20)).float()
    weight = torch.randint(-127, 128, (6, 20)).float()
    x[:, 0], x[:, 1], weight[:, 0] = -100, 155, -127
    bias = torch.randint(-5, 6, (6,)).float()
    with use_backend(backend):
        got = linear_int8(x, quantize_weight(weight), bias)
    torch.testing.assert_close(got, F.linear(x, weight, bias), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=fast)])
def test_degenerate_rows(backend, seed):
    x, weight, bias = inputs((4, 18), 5)
    x[0], x[1, 3], x[2, 17] = 0, float("nan"), float("inf")
    tiny = torch.tensor([1e-40, 5e-37])[:, None].expand(2, 18)  # 255 / x overflows
    weight[2] = 0
    with use_backend(backend):
        got = linear_int8(x, quantize_weight(weight), bias)
        assert linear_int8(x[:0], quantize_weight(weight), bias).shape == (0, 5)
        assert torch.equal(linear_int8(tiny, quantize_weight(weight), bias), bias.expand(2, 5))
    assert torch.equal(got[0], bias)
    assert got[1:3].isnan().all()
    assert got[3].isfinite().all() and got[3, 2] == bias[2]


@fast
@pytest.mark.parametrize("sign", [1, -1])
def test_longest_sums(sign):
    for depth in (2**16, 2**16 + 1):
        x, weight, bias = torch.ones(1, depth), torch.full((2, depth), float(sign)), torch.ones(2)
        quantised = quantize_weight(weight)
        got = linear_int8(x, quantised, bias)
        torch.testing.assert_close(got, torch.full((1, 2), sign * depth + 1.0))
    with use_backend("cpp"), pytest.raises(BackendError, match="up to 65536 inputs"):
        linear_int8(x, quantised, bias)


@fast
def test_strides_and_threads(seed):
    x, weight, bias = inputs((3, 100, 40), 35, torch.bfloat16)
    quantised = quantize_weight(weight)
    outputs = []
    for count in (1, 3):
        with threads(count):
            outputs.append(linear_int8(x, quantised, bias))
    assert torch.equal(*outputs)
    assert torch.equal(linear_int8(x.mT.contiguous().mT, quantised, bias), outputs[0])


def test_without_the_instructions(seed):
    x, weight, bias = inputs((4, 8), 3)
    quantised = quantize_weight(weight)
    with instruction_set("portable"):
        with use_backend("cpp"), pytest.raises(BackendError, match="needs AVX2"):
            linear_int8(x, quantised, bias)
        assert torch.equal(
            linear_int8(x, quantised, bias), linear_int8_reference(x, quantised, bias)
        )


def test_bad_input():
    quantised, bias = quantize_weight(torch.randn(3, 8)), torch.zeros(3)
    for x, b in ((torch.randn(2, 7), bias), (torch.randn(8), bias), (torch.randn(2, 8), bias[:2])):
        with pytest.raises(ValueError, match="linear_int8 needs x"):
            linear_int8(x, quantised, b)
    with pytest.raises(ValueError, match="floating point"):
        linear_int8(torch.ones(2, 8, dtype=torch.int32), quantised, bias)
    for wrong in (torch.randn(3), torch.randn(3, 0), torch.ones(3, 8, dtype=torch.int32)):
        with pytest.raises(ValueError, match="quantize_weight needs"):
            quantize_weight(wrong)


@pytest.mark.slow
@fast
def test_custom_op(seed):
    x, weight, bias = inputs((4, 64), 33)
    quantised = quantize_weight(weight)
    arguments = (x, quantised.packed, quantised.sums, quantised.scale, bias)
    torch.library.opcheck(torch.ops.dafast.linear_int8.default, arguments)
    torch._dynamo.reset()
    with use_backend("cpp"):
        compiled = torch.compile(
            lambda x: linear_int8(x, quantised, bias), fullgraph=True, backend="aot_eager"
        )
        assert torch.equal(compiled(x), linear_int8(x, quantised, bias))


def test_nothing_keeps_weights(seed):
    """The choice of a backend is kept by the properties of its arguments, not by themselves."""
    x, weight, bias = inputs((4, 8), 3)
    quantised = quantize_weight(weight)
    linear_int8(x, quantised, bias)
    gone = weakref.ref(quantised.values)
    del quantised
    gc.collect()
    assert gone() is None
