"""int8 convolutions: the kernel against the specification, and how far they are from float32."""

import pytest
import torch
import torch.nn.functional as F

from dafast.ops import (
    BackendError,
    conv3x3_int8,
    conv3x3_int8_reference,
    quantize_conv3x3,
    use_backend,
)
from dafast.ops.linear_int8 import why_slow_int8
from tests.instruction_sets import INT8_SETS, instruction_set, threads
from tests.tolerances import TOLERANCES

# Shapes of maps, channels of the result, stride.
CASES = [
    ((1, 4, 1, 1), 3, 1),
    ((2, 16, 9, 14), 32, 1),
    ((1, 12, 6, 25), 40, 2),
    ((1, 64, 5, 30), 64, 1),
    ((1, 8, 10, 3), 17, 2),
]
fast = pytest.mark.skipif(bool(why_slow_int8()), reason=why_slow_int8() or "it is there")


def inputs(shape, columns, stride=1, dtype=torch.float32):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(columns, shape[1], 3, 3) / (9 * shape[1]) ** 0.5
    size = [(n - 1) // stride + 1 for n in shape[2:]]
    add, other = (torch.randn(shape[0], columns, *size).to(dtype) for _ in range(2))
    return x, weight, torch.randn(columns), add, other


@fast
@pytest.mark.parametrize("name", INT8_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_is_the_specification(case, dtype, name, seed):
    shape, columns, stride = case
    x, weight, bias, add, other = inputs(shape, columns, stride, dtype)
    quantised = quantize_conv3x3(weight)
    for more in ((None, None), (add, None), (add, other)):
        for relu_input, relu in ((False, True), (True, False)):
            with instruction_set(name), use_backend("cpp"):
                got = conv3x3_int8(
                    x, quantised, bias, add=more[0], other=more[1], stride=stride,
                    relu_input=relu_input, relu=relu,
                )  # fmt: skip
            wanted = conv3x3_int8_reference(
                x, quantised, bias, *more, stride, relu_input, relu
            )  # fmt: skip
            assert got.dtype == dtype and got.shape == wanted.shape == add.shape
            assert got.is_contiguous(memory_format=torch.channels_last)
            bound = TOLERANCES[dtype].op * wanted.abs().max()
            assert (got.double() - wanted.double()).abs().max() <= bound


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=fast)])
@pytest.mark.parametrize("stride", [1, 2])
def test_close_to_float32(backend, stride, seed):
    x, weight, bias, add, other = inputs((1, 32, 11, 15), 24, stride)
    with use_backend(backend):
        got = conv3x3_int8(
            x, quantize_conv3x3(weight), bias, add=add, other=other, stride=stride, relu_input=True
        )
    exact = F.conv2d(x.relu().double(), weight.double(), bias.double(), stride, 1) + add + other
    # Half a step of 1 / 255 of the range of x, and of 1 / 254 of a channel's weights, at random.
    noise = (x.amax() / 255 * weight.square().sum((1, 2, 3)).sqrt().max()) ** 2 / 12
    noise += (weight.abs().amax() / 127) ** 2 / 12 * 32 * 9 * x.relu().square().max()
    assert (got - exact).abs().max() <= 6 * noise.sqrt()
    assert (got - exact).abs().max() > 0


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=fast)])
def test_small_integers_and_borders_are_exact(backend, seed):
    x = torch.randint(0, 256, (1, 8, 6, 7)).float()
    x[:, :, ::4], x[:, 0, :, 0] = 255, 0
    weight = torch.randint(-127, 128, (5, 8, 3, 3)).float()
    weight[:, 0, 0, 0] = 127
    bias = torch.zeros(5)
    with use_backend(backend):
        got = conv3x3_int8(x, quantize_conv3x3(weight), bias)
    torch.testing.assert_close(got, F.conv2d(x, weight, padding=1), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=fast)])
def test_values_that_are_not_finite_reach_the_rows_near_them(backend, seed):
    x, weight, bias, _, _ = inputs((1, 8, 12, 5), 4)
    x[0, 3, 5, 2] = float("nan")
    with use_backend(backend):
        got = conv3x3_int8(x, quantize_conv3x3(weight), bias, relu=True)
        assert got[:, :, 4:7, 1:4].isnan().all() and got[:, :, 8:].isfinite().all()
        assert conv3x3_int8(x[:0], quantize_conv3x3(weight), bias).shape == (0, 4, 12, 5)
        zeros = conv3x3_int8(torch.zeros_like(x), quantize_conv3x3(weight), bias)
    torch.testing.assert_close(zeros, bias[:, None, None].expand(1, 4, 12, 5))


@fast
def test_threads_and_strides(seed):
    x, weight, bias, _, _ = inputs((2, 16, 20, 13), 33, dtype=torch.bfloat16)
    quantised = quantize_conv3x3(weight)
    outputs = []
    for count in (1, 3):
        with threads(count):
            outputs.append(conv3x3_int8(x, quantised, bias))
    assert torch.equal(*outputs)
    assert torch.equal(conv3x3_int8(x.contiguous(), quantised, bias), outputs[0])


def test_limits(seed):
    x, weight, bias, add, _ = inputs((1, 8, 5, 6), 3)
    quantised = quantize_conv3x3(weight)
    with (
        instruction_set("portable"),
        use_backend("cpp"),
        pytest.raises(BackendError, match="needs AVX2"),
    ):
        conv3x3_int8(x, quantised, bias)
    odd = inputs((1, 6, 5, 6), 3)
    with use_backend("cpp"), pytest.raises(BackendError, match="multiple of 4 channels"):
        conv3x3_int8(odd[0], quantize_conv3x3(odd[1]), odd[2])
    for wrong in ((x[:, :4], bias), (x[0], bias), (x, bias[:2])):
        with pytest.raises(ValueError, match="conv3x3_int8 needs x"):
            conv3x3_int8(wrong[0], quantised, wrong[1])
    with pytest.raises(ValueError, match="maps to add"):
        conv3x3_int8(x, quantised, bias, add=add[..., 1:])
    with pytest.raises(ValueError, match="floating point"):
        conv3x3_int8(x.int(), quantised, bias)
    with pytest.raises(ValueError, match="quantize_conv3x3 needs"):
        quantize_conv3x3(weight[..., :2])


@fast
def test_custom_op(seed):
    x, weight, bias, add, _ = inputs((1, 8, 5, 6), 3)
    quantised = quantize_conv3x3(weight)
    rows = (t.permute(0, 2, 3, 1).contiguous() for t in (x, add))
    image, more = rows
    arguments = (
        image, quantised.packed, quantised.sums, quantised.scale, bias, more, None, 1, False, True,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.dafast.conv3x3_int8.default, arguments)
