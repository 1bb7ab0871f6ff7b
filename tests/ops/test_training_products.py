"""Products of training in float32: linear layers and 3x3 convolutions, with every gradient."""

import pytest
import torch
import torch.nn.functional as F

from dafast.layers.convolution import convolve, takes_relu
from dafast.layers.linear import project
from dafast.ops import (
    BackendError,
    conv3x3,
    conv3x3_reference,
    linear,
    linear_reference,
    use_backend,
)
from dafast.ops.conv3x3 import serves_conv3x3
from dafast.ops.linear import linear_layer
from tests.instruction_sets import INSTRUCTION_SETS, instruction_set, needs_extension, threads
from tests.ops import parity

pytestmark = [pytest.mark.usefixtures("poisoned"), needs_extension]

# Shape of x, channels of the result, bias.
MAPS = [
    ((2, 16, 9, 14), 32, True),
    ((1, 48, 7, 7), 16, False),
    ((3, 32, 1, 2), 48, True),
    ((1, 64, 26, 19), 64, True),
]
# Rows, inputs and outputs of a linear layer. The narrower side is packed for the gradient of the
# weights, in parts of 384 rows and blocks of 384 columns.
LAYERS = [(1, 32, 32), (13, 64, 96), (401, 416, 64), (401, 32, 160), (30, 448, 416),
          (30, 416, 448)]  # fmt: skip
CONV_NAMES = ("out", "x", "weight", "add", "other", "bias")


def maps(case):
    """The tensors of `conv3x3` in the order of `convolution`."""
    shape, columns, biased = case
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(columns, shape[1], 3, 3) / (9 * shape[1]) ** 0.5
    add, other = (torch.randn(shape[0], columns, *shape[2:]) for _ in range(2))
    return [x, weight, add, other, *([torch.randn(columns)] if biased else [])]


def convolution(x, weight, add, other, bias=None, relu_input=False):
    return conv3x3(x, weight, bias, add=add, other=other, relu_input=relu_input)


def check(got, exact, eager, names=CONV_NAMES):
    """Errors of at most twice those of PyTorch's products, and two roundings."""
    parity.assert_all_within(got, exact, eager, names=names[: len(got)], steps=2, scale=1)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", MAPS, ids=str)
@pytest.mark.parametrize("relu_input", [False, True])
def test_convolution(case, relu_input, name, seed):
    inputs = maps(case)
    upstream = torch.randn(case[0][0], case[1], *case[0][2:])
    options = {"relu_input": relu_input}
    exact = parity.exact(convolution, inputs, [upstream], **options)
    eager = parity.run("reference", convolution, inputs, [upstream], **options)
    with instruction_set(name):
        got = parity.run("cpp", convolution, inputs, [upstream], **options)
        check(got, exact, eager)
        assert got[0].is_contiguous(memory_format=torch.channels_last)
        for count in (2, 3):
            with threads(count):
                again = parity.run("cpp", convolution, inputs, [upstream], **options)
                parity.assert_equal(again, got)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_linear(case, name, seed):
    rows, depth, columns = case
    layer = [
        torch.randn(1, rows, depth), torch.randn(columns, depth) / depth**0.5, torch.randn(columns)
    ]  # fmt: skip
    for inputs in (layer, layer[:2]):
        upstream = [torch.randn(1, rows, columns)]
        exact = parity.exact(linear, inputs, upstream)
        eager = parity.run("reference", linear, inputs, upstream)
        with instruction_set(name):
            got = parity.run("cpp", linear, inputs, upstream)
            check(got, exact, eager, ("out", "x", "weight", "bias"))
            for count in (2, 3):
                with threads(count):
                    parity.assert_equal(parity.run("cpp", linear, inputs, upstream), got)


def test_layouts_and_empty_inputs(seed):
    x, weight, add, other, bias = maps(MAPS[0])
    with use_backend("cpp"):
        whole = parity.evaluate(convolution, [x, weight, add, other, bias])
        # Weights as `channels_last` stores them, maps as PyTorch does by default.
        layout = {"memory_format": torch.channels_last}
        same = parity.evaluate(
            convolution, [x.contiguous(), weight.contiguous(**layout), add, other, bias]
        )
        parity.assert_equal(same, whole)
        assert conv3x3(x[:0], weight).shape == (0, 32, 9, 14)
        empty = parity.evaluate(conv3x3, [x[:0], weight, bias])
        assert not empty[2].any() and not empty[3].any()
        rows, matrix = torch.randn(5, 64), torch.randn(32, 64)
        parity.assert_equal(
            parity.evaluate(linear, [rows.t().contiguous().t(), matrix.t().contiguous().t()]),
            parity.evaluate(linear, [rows, matrix]),
        )
        empty = parity.evaluate(linear, [rows[:0], matrix])
        assert empty[0].shape == (0, 32) and not empty[2].any()


def test_only_wanted_gradients(seed):
    x, weight, *_, bias = maps(MAPS[0])
    matrix, vector = torch.randn(32, 14 * 16), torch.randn(32)
    calls = (
        (conv3x3, (x, weight, bias)),
        (linear, (x.flatten(1).view(2, 9, -1), matrix, vector)),
    )
    for op, inputs in calls:
        with use_backend("cpp"):
            everything = parity.evaluate(op, inputs)[1:]
            for wanted in range(3):
                leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(inputs)]
                op(*leaves).sum().backward()
                for i, leaf in enumerate(leaves):
                    assert (leaf.grad is not None) == (i == wanted)
                torch.testing.assert_close(leaves[wanted].grad, everything[wanted])


def test_not_a_number_stays_in_its_window(seed):
    """Of the results; its tile of the gradient of the weights becomes NaN as a whole."""
    x, weight, *_, bias = maps(((1, 16, 10, 10), 16, True))
    x[0, 3, 4, 4] = float("nan")
    with use_backend("cpp"):
        got = conv3x3(x, weight, bias, relu_input=True)
    assert got[:, :, 3:6, 3:6].isnan().all()
    assert not got[:, :, :2].isnan().any() and not got[:, :, 8:].isnan().any()


@pytest.mark.slow
def test_registered_ops(seed):
    x, weight, add, _, bias = (t[:1] if t.ndim == 4 else t for t in maps(MAPS[2]))
    weight = torch.randn(48, 32, 3, 3)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    grad = torch.randn(1, 48, 1, 2)
    calls = {
        "conv3x3": (x, weight, bias, add, None, True),
        "conv3x3_input_gradient": (grad, weight.detach(), x.detach()),
        "conv3x3_weight_gradient": (grad, x.detach(), weight.detach(), False),
        "linear": (torch.randn(2, 5, 32).requires_grad_(), torch.randn(64, 32), None),
        "linear_input_gradient": (torch.randn(2, 5, 64), torch.randn(64, 32)),
        "linear_weight_gradient": (torch.randn(2, 5, 64), torch.randn(2, 5, 32)),
    }
    for name, arguments in calls.items():
        torch.library.opcheck(getattr(torch.ops.dafast, name).default, arguments, test_utils=tests)


def test_no_second_derivative(seed):
    x, weight, *_ = (t.requires_grad_() for t in maps(MAPS[0]))
    matrix = torch.randn(32, 14 * 32).requires_grad_()
    for op, inputs in ((conv3x3, (x, weight)), (linear, (torch.randn(5, 448), matrix))):
        with use_backend("cpp"):
            (grad,) = torch.autograd.grad(op(*inputs).square().sum(), inputs[1], create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative"):
            grad.sum().backward()


def serves_linear(*tensors):
    return type(linear_layer(*tensors).grad_fn).__name__ == "linearBackward"


def test_chosen_only_for_training_in_float32(seed):
    x, weight, *_, bias = maps(((3, 64, 26, 28), 64, True))
    rows, matrix, vector = torch.randn(600, 64), torch.randn(96, 64), torch.randn(96)
    assert not serves_conv3x3(x, weight, bias) and not serves_linear(rows, matrix, vector)
    weight.requires_grad_(), matrix.requires_grad_()
    with instruction_set("avx512_bf16"):
        assert serves_conv3x3(x, weight, bias) and serves_linear(rows, matrix, vector)
        with torch.no_grad():
            assert not serves_conv3x3(x, weight, bias) and not serves_linear(rows, matrix, vector)
        with torch.autocast("cpu", torch.bfloat16):
            assert not serves_conv3x3(x, weight, bias) and not serves_linear(rows, matrix, vector)
        assert not serves_linear(rows[:100], matrix, vector)
        assert not serves_conv3x3(x.contiguous(), weight, bias)
        assert not serves_conv3x3(x[:1], weight, bias)
    with instruction_set("portable"):
        assert not serves_conv3x3(x, weight, bias) and not serves_linear(rows, matrix, vector)


def test_layers_use_them_and_respect_hooks(seed):
    conv = torch.nn.Conv2d(32, 32, 3, padding=1)
    x = torch.randn(1, 32, 46, 46).contiguous(memory_format=torch.channels_last)
    layer, rows = torch.nn.Linear(64, 32), torch.randn(1, 700, 64)
    exact = conv3x3_reference(x, conv.weight, conv.bias, x, None, True)
    with instruction_set("avx512_bf16"):
        assert takes_relu(conv, x)
        torch.testing.assert_close(convolve(conv, x, x, relu_input=True), exact)
        assert type(convolve(conv, x).grad_fn).__name__ == "conv3x3Backward"
        out = project(layer, rows)
        assert type(out.grad_fn).__name__ == "linearBackward"
        torch.testing.assert_close(out, linear_reference(rows, layer.weight, layer.bias))
        seen = []
        for module in (conv, layer):
            module.register_forward_hook(lambda *_: seen.append(1))
        assert not takes_relu(conv, x)
        torch.testing.assert_close(convolve(conv, x, x, relu_input=True), exact)
        torch.testing.assert_close(project(layer, rows), out)
        assert len(seen) == 2
    strided = torch.nn.Conv2d(32, 32, 3, stride=2, padding=1)
    assert not takes_relu(strided, x)
    torch.testing.assert_close(
        convolve(strided, x), F.conv2d(x, strided.weight, strided.bias, 2, 1)
    )


def test_wrong_input(seed):
    x, weight = torch.randn(1, 16, 4, 4), torch.randn(16, 16, 3, 3)
    with pytest.raises(ValueError, match=r"weights \(N, C, 3, 3\)"):
        conv3x3(x, weight[:, :8])
    with pytest.raises(ValueError, match="maps to add"):
        conv3x3(x, weight, add=x[:, :8])
    with pytest.raises(ValueError, match="bias"):
        conv3x3(x, weight, torch.randn(3))
    with pytest.raises(ValueError, match="floating point"):
        conv3x3(x.int(), weight)
    with pytest.raises(ValueError, match="linear needs"):
        linear(torch.randn(3, 16), torch.randn(16, 8))
    with pytest.raises(ValueError, match="floating point"):
        linear(torch.ones(3, 8).int(), torch.randn(16, 8))
    with use_backend("cpp"):
        with pytest.raises(BackendError, match="multiples of 16"):
            conv3x3(x[:, :8], weight[:, :8])
        with pytest.raises(BackendError, match="float32"):
            conv3x3(x.double(), weight.double())
        with pytest.raises(BackendError, match="multiples of 32"):
            linear(torch.randn(3, 16), torch.randn(32, 16))
        with pytest.raises(BackendError, match="float32"):
            linear(torch.randn(3, 32).half(), torch.randn(32, 32).half())
