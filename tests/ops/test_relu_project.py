"""ReLU and a 1x1 convolution to one channel, with every gradient."""

import math

import pytest
import torch

from dafast.models.dpt import _output, _run_output
from dafast.ops import BackendError, relu_project, use_backend
from tests.instruction_sets import INSTRUCTION_SETS, instruction_set, needs_extension, threads
from tests.ops import parity
from tests.pairwise import grid

pytestmark = [pytest.mark.usefixtures("poisoned"), needs_extension]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ("out", "x", "weight", "bias")


def _inputs(shape, dtype=torch.float32):
    """x in channels_last, weight, bias, and a gradient of the output."""
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(1, shape[1], 1, 1) / shape[1] ** 0.5
    upstream = torch.randn(shape[0], 1, *shape[2:])
    return [x, weight, torch.randn(1)], [upstream]


@grid(
    {
        "name": INSTRUCTION_SETS,
        "shape": [(2, 32, 9, 14), (1, 96, 1, 1), (3, 64, 5, 40), (1, 32, 61, 47)],
        "dtype": DTYPES,
    }
)
def test_matches_float64(name, shape, dtype, seed):
    inputs, upstream = _inputs(shape, dtype)
    exact = parity.exact(relu_project, inputs, upstream)
    eager = parity.run("reference", relu_project, inputs, upstream)
    with instruction_set(name):
        got = parity.run("cpp", relu_project, inputs, upstream)
        assert [t.dtype for t in got] == [t.dtype for t in eager]
        parity.assert_all_within(got[:2], exact[:2], eager[:2], names=NAMES[:2], scale=1)
        # Sums over the pixels, which can cancel.
        scale = (exact[0].numel()) ** 0.5
        parity.assert_all_within(got[2:], exact[2:], eager[2:], names=NAMES[2:], scale=scale)
        for count in (2, 3):
            with threads(count):
                parity.assert_equal(parity.run("cpp", relu_project, inputs, upstream), got)


def test_not_a_number_and_other_layouts(seed):
    (x, weight, bias), upstream = _inputs((2, 32, 6, 7))
    x[0, 3, 2, 2], x[1, 5, 4, 4] = math.nan, -math.inf
    with use_backend("cpp"):
        got = parity.evaluate(relu_project, [x, weight, bias], upstream)
        same = parity.evaluate(relu_project, [x.contiguous(), weight, bias], upstream)
        empty = parity.evaluate(relu_project, [x[:0], weight, bias])
    parity.assert_equal(same, got)
    assert got[0].isnan().sum() == 1 and got[0][0, 0, 2, 2].isnan()
    assert got[1].isfinite().all() and got[1][1, 5, 4, 4] == 0
    assert empty[0].shape == (0, 1, 6, 7) and not empty[2].any() and not empty[3].any()


@pytest.mark.parametrize("half", [False, True])
def test_the_network_uses_it_in_training(half, seed):
    output = _output(64, "relu")
    x = torch.randn(1, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = _run_output(output, x, (20, 22))
        assert type(out.grad_fn.next_functions[0][0]).__name__ == "relu_projectBackward"
        with use_backend("reference"):
            expected = _run_output(output, x, (20, 22))
        assert out.dtype == expected.dtype == torch.float32
        output[2].register_forward_hook(lambda *_: None)
        hooked = _run_output(output, x, (20, 22))
    for other in (expected, hooked):  # of the same convolution
        torch.testing.assert_close(out, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_registered_ops(seed):
    (x, weight, bias), (upstream,) = _inputs((1, 32, 2, 3))
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    calls = {
        "relu_project": (x.requires_grad_(), weight.requires_grad_(), bias),
        "relu_project_backward": (upstream, x.detach(), weight.detach()),
    }
    for name, arguments in calls.items():
        torch.library.opcheck(getattr(torch.ops.dafast, name).default, arguments, test_utils=tests)


def test_wrong_input(seed):
    (x, weight, bias), _ = _inputs((1, 32, 4, 4))
    with pytest.raises(ValueError, match="relu_project needs"):
        relu_project(x[:, :8], weight, bias)
    with pytest.raises(ValueError, match="floating point"):
        relu_project(x.int(), weight, bias)
    with use_backend("cpp"):
        with pytest.raises(BackendError, match="multiple of 32"):
            relu_project(x[:, :8], weight[:, :8], bias)
        with pytest.raises(BackendError, match="float32"):
            relu_project(x.double(), weight, bias)
