"""What follows a convolution: the kernel against the float64 reference, outputs and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dafast.layers.convolution import convolve
from dafast.ops import bias_relu_add, bias_relu_add_reference, use_backend
from dafast.ops.bias_relu_add import serves_convolutions
from tests.ops import parity
from tests.pairwise import grid
from tests.tolerances import TOLERANCES

BACKENDS = ["reference", "triton"]
DTYPES = [  # of the map, the bias, and the residuals
    (torch.float32,) * 3,
    (torch.bfloat16,) * 3,
    (torch.float16,) * 3,
    (torch.bfloat16, torch.float32, torch.bfloat16),  # as under autocast
    (torch.bfloat16, torch.bfloat16, torch.float32),
]
SHAPES = [(2, 24, 5, 7), (1, 300, 3, 2), (3, 1, 4, 5), (1, 64, 9, 1), (2, 8, 1, 1)]

pytestmark = pytest.mark.usefixtures("poisoned")


def _inputs(seed, shape, dtypes=DTYPES[0], residuals=2):
    """The map, the bias and the residuals; the map and the second residual are channels last."""
    generator = torch.Generator().manual_seed(seed)
    x, *rest = (torch.randn(shape, generator=generator) for _ in range(1 + residuals))
    x = x.to(dtypes[0]).contiguous(memory_format=torch.channels_last)
    rest = [t.to(dtypes[2]) for t in rest]
    if len(rest) == 2:
        rest[1] = rest[1].contiguous(memory_format=torch.channels_last)
    return [x, torch.randn(shape[1], generator=generator).to(dtypes[1]), *rest]


def _upstream(seed, dtype=torch.float32):
    """A gradient of any strides; it is 1, and not random, where a ReLU rounds to 0."""

    def make(out):
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1))
        return [grad.to(dtype)]

    return make


def _run(backend, inputs, upstream, **options):
    return parity.run(backend, bias_relu_add, inputs, upstream, **options)


@grid(
    {
        "backend": BACKENDS,
        "shape": SHAPES,
        "dtypes": DTYPES,
        "residuals": [0, 1, 2],
        "relu": [False, True],
    }
)
def test_matches_float64(backend, shape, dtypes, residuals, relu, seed, device):
    inputs = _inputs(seed, shape, dtypes, residuals)
    got = _run(backend, inputs, _upstream(seed, dtypes[0]), relu=relu)
    # The sum is 0 or next to 0 only by rounding: the exact gradients are those of the same mask.
    exact = [t.double() for t in inputs]
    out = bias_relu_add_reference(*exact, relu=relu)
    upstream = _upstream(seed, dtypes[0])(out)[0].to(got[0].dtype).double()
    grad = torch.where(got[0] <= 0, 0.0, upstream) if relu else upstream
    widest = torch.promote_types(dtypes[0], dtypes[2]) if residuals else dtypes[0]
    assert got[0].dtype == widest
    assert [g.dtype for g in got[1:]] == [t.dtype for t in inputs]
    # Triton's interpreter drops the digits that do not fit in bfloat16: two steps.
    parity.assert_within(got[0], out, steps=2, scale=1, name="out")
    parity.assert_within(got[1], grad, name="x", scale=1)
    total = grad.abs().sum((0, 2, 3)).max()
    parity.assert_within(got[2], grad.sum((0, 2, 3)), name="bias", scale=total)
    for value in got[3:]:
        parity.assert_within(value, grad, name="residual", scale=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extremes(backend, device):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([-1.0, 0.0, 1.0, nan, inf, -inf]).reshape(1, 6, 1, 1)
    out, grad, bias = _run(backend, [x, torch.zeros(6)], None, relu=True)
    wanted = torch.tensor([0.0, 0.0, 1.0, nan, inf, 0.0])
    parity.assert_equal([out.flatten()], [wanted])
    assert grad.flatten().tolist() == bias.tolist() == [0, 0, 1, 1, 1, 0]


def test_rounds_once(seed, device):
    """The sum is taken in float32, where separate operations round after each term."""
    inputs = _inputs(seed, (1, 64, 6, 5), DTYPES[1])
    with use_backend("triton"):
        out = bias_relu_add(*inputs)
    exact = bias_relu_add_reference(*(t.double() for t in inputs))
    # Triton's interpreter drops the digits that do not fit in bfloat16.
    unit = 2.0**-7 * 2.0 ** exact.abs().log2().floor()
    error = ((out.double() - exact).abs() / unit)[exact.abs() > 0.1]  # away from cancellation
    assert error.max() <= 1.001


def test_chunks_with_many_tiles(seed, monkeypatch, device):
    monkeypatch.setattr("dafast.kernels.bias_relu_add._MAX_CHUNKS", 2)
    inputs = _inputs(seed, (1, 256, 15, 11), residuals=0)
    got, expected = (_run(b, inputs, _upstream(seed), relu=True) for b in ("triton", "reference"))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_is_bit_equal_run_to_run(seed, device):
    inputs = _inputs(seed, (2, 24, 9, 7))
    parity.assert_equal(*(_run("triton", inputs, _upstream(seed), relu=True) for _ in range(2)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend, device):
    inputs = _inputs(0, (0, 8, 3, 3))
    out, grad, bias, *_ = _run(backend, inputs, None, relu=True)
    assert out.shape == grad.shape == (0, 8, 3, 3) and (bias == 0).all()


def test_gradcheck(fixed_seed):
    """The inputs are fixed: of some draws a step of gradcheck crosses a kink."""
    inputs = [t.double().requires_grad_() for t in _inputs(fixed_seed, (1, 2, 2, 3))]
    assert torch.autograd.gradcheck(bias_relu_add_reference, inputs)


def test_only_wanted_gradients(seed, device):
    x, bias, residual, _ = _inputs(seed, (1, 8, 3, 3))
    residual.requires_grad_()
    with use_backend("triton"):
        for relu in (False, True):
            out = bias_relu_add(x, bias, residual, relu=relu)
            (grad,) = torch.autograd.grad(out.sum(), residual)
            assert torch.equal(grad, (out > 0).float() if relu else torch.ones_like(grad))
        out = bias_relu_add(x, bias, residual, relu=True)
        (grad,) = torch.autograd.grad(out.square().sum(), residual, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative"):
            grad.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("relu", [False, True])
def test_opcheck_and_compile(relu, seed, monkeypatch):
    monkeypatch.undo()  # opcheck compares allocations of its own
    inputs = [t.requires_grad_() for t in _inputs(seed, (2, 8, 3, 4))]
    grad = _upstream(seed)(inputs[0])[0]
    expected = _run("triton", inputs, [grad], relu=relu)
    with use_backend("triton"):
        torch.library.opcheck(torch.ops.dafast.bias_relu_add.default, (*inputs, relu, "triton"))
        torch._dynamo.reset()  # traced code keeps its backend
        compiled = torch.compile(bias_relu_add, backend="aot_eager", fullgraph=True)
        out = compiled(*inputs, relu=relu)
        grads = torch.autograd.grad(out, inputs, grad)
    for value, wanted in zip([out, *grads], expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_bad_input():
    x, bias = torch.zeros(1, 3, 2, 2), torch.zeros(3)
    for arguments, message in [
        ((x[0], bias), "needs x"), ((x, bias[:2]), "needs x"), ((x, bias, None, x), "together"),
        ((x, bias, x[:, :2]), "shape of x"), ((x.int(), bias), "floating point"),
        ((x, bias, x.int()), "floating point"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            bias_relu_add(*arguments)


def test_is_not_taken_unasked_on_a_cpu_or_by_the_compiler():
    x = torch.zeros(1, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    assert not serves_convolutions(x, torch.zeros(3))
    with use_backend("triton"):
        assert serves_convolutions(x, torch.zeros(3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_with_all_that_follows(kernel, backend, seed, device):
    """Outputs and gradients of `convolve` are those of PyTorch's layers one after the other."""
    torch.manual_seed(seed)
    conv = torch.nn.Conv2d(6, 5, kernel, padding=kernel // 2)
    x, residual, other = torch.randn(2, 6, 4, 5), *torch.randn(2, 2, 5, 4, 5)
    for terms, relu in [((), False), ((), True), ((residual,), False), ((residual, other), True)]:
        leaves = [t.clone().requires_grad_() for t in (x, *terms)]
        expected = conv(leaves[0])
        for term in leaves[1:]:
            expected = term + expected
        expected = F.relu(expected) if relu else expected
        leaves += list(conv.parameters())
        grad = torch.randn_like(expected)
        wanted = [expected, *torch.autograd.grad(expected, leaves, grad)]
        with use_backend(backend):
            out = convolve(conv, leaves[0], *leaves[1 : 1 + len(terms)], relu=relu)
            got = [out, *torch.autograd.grad(out, leaves, grad)]
        if backend == "reference":
            parity.assert_equal(got, wanted)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


class _Products(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "mm" in func._schema.name or "add" in func._schema.name:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("tokens", [False, True])
@torch.no_grad()
def test_16_bit_1x1_convolutions_are_products(batch, tokens, seed, monkeypatch, device):
    torch.manual_seed(seed)
    conv = torch.nn.Conv2d(6, 5, 1).bfloat16()
    x = torch.randn(batch, 6, 4, 5).bfloat16().contiguous(memory_format=torch.channels_last)
    if tokens:  # patch tokens, each image's after its cls token
        x = torch.randn(batch, 21, 6).bfloat16()[:, 1:].mT.reshape(batch, 6, 4, 5)
    expected = conv.double()(x.double())
    conv = conv.bfloat16()
    monkeypatch.setattr(
        torch.nn.Conv2d, "_conv_forward", lambda *_: pytest.fail("ran as a convolution")
    )
    with use_backend("triton"), _Products() as seen:
        got = convolve(conv, x)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert seen.names == ["aten::addmm"], "the bias has no launch of its own"
    assert got.shape == expected.shape
    if batch:
        bound = 2 * TOLERANCES[torch.bfloat16].op * expected.abs().max()
        assert (got.double() - expected).abs().max() <= bound


def test_replaced_and_watched_convolutions_are_called(seed, device):
    class Other(torch.nn.Conv2d):
        pass

    x = torch.randn(1, 3, 4, 4)
    hooked, seen = torch.nn.Conv2d(3, 3, 1), []
    hooked.register_forward_hook(lambda *_: seen.append(1))
    with use_backend("triton"):
        for conv in (Other(3, 3, 1), hooked, torch.nn.Conv2d(3, 3, 1, bias=False)):
            expected = F.relu(x + conv(x))
            seen.clear()
            assert torch.equal(convolve(conv, x, x, relu=True), expected)
            assert len(seen) == (conv is hooked)


@pytest.mark.gpu
@pytest.mark.parametrize("dtypes", DTYPES)
def test_gpu_graph_capture_and_streams(dtypes, seed, monkeypatch):
    monkeypatch.undo()
    inputs = [t.cuda() for t in _inputs(seed, (2, 256, 148, 148), dtypes)]
    expected = bias_relu_add_reference(*inputs, relu=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), use_backend("triton"):
        for _ in range(3):
            got = bias_relu_add(*inputs, relu=True)
    stream.synchronize()
    torch.testing.assert_close(got, expected)
    graph = torch.cuda.CUDAGraph()
    leaves = [t.clone().requires_grad_() for t in inputs]
    with use_backend("triton"), torch.cuda.graph(graph):
        out = bias_relu_add(*leaves, relu=True)
        captured = torch.autograd.grad(out, leaves, torch.ones_like(out))
    graph.replay()
    torch.testing.assert_close(out.detach(), expected)
    assert torch.equal(captured[2] != 0, expected > 0)
