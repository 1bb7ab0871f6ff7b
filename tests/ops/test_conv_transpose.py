"""Transposed convolutions as products: the kernel against the float64 reference."""

import pytest
import torch

from dafast.layers.convolution import enlarge
from dafast.ops import BackendError, conv_transpose, conv_transpose_reference, use_backend
from dafast.ops.conv_transpose import conv_transpose_layer
from tests.ops import parity
from tests.pairwise import grid

BACKENDS = ["reference", "triton"]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),  # as under autocast
]
# Map, output channels, factor: several blocks of pixels, of columns, of channels.
SHAPES = [
    ((2, 24, 3, 5), 12, 4), ((1, 5, 2, 3), 3, 2), ((1, 70, 9, 17), 40, 2), ((2, 16, 1, 1), 8, 3),
    ((1, 32, 4, 4), 1, 1),
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("poisoned")


def _inputs(seed, shape, out_channels, factor, dtypes=DTYPES[0]):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(shape[1], out_channels, factor, factor, generator=generator)
    bias = torch.randn(out_channels, generator=generator)
    return [x.to(dtypes[0]), *(t.to(dtypes[1]) for t in (weight / shape[1] ** 0.5, bias))]


def _upstream(seed):
    def make(out):
        return [torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1))]

    return make


@grid({"backend": BACKENDS, "shape, out_channels, factor": SHAPES, "dtypes": DTYPES})
def test_matches_float64(backend, shape, out_channels, factor, dtypes, seed, device):
    inputs = _inputs(seed, shape, out_channels, factor, dtypes)
    got = parity.run(backend, conv_transpose, inputs, _upstream(seed))
    eager = parity.run("reference", conv_transpose, inputs, _upstream(seed))
    rounded = [t.to(dtypes[0]) for t in inputs]  # the op uses the weights in this dtype
    rounded[1:] = [t.double() for t in (rounded[1], inputs[2])]
    upstream = [_upstream(seed)(got[0])[0].to(got[0].dtype)]
    exact = parity.exact(conv_transpose, rounded, upstream)
    assert [value.dtype for value in got] == [dtypes[0], *(t.dtype for t in inputs)]
    for value, wanted, other, name in zip(got, exact, eager, "oxwb", strict=True):
        step = dtypes[0] if value.dtype == torch.float32 else None
        parity.assert_within(value, wanted, other, steps=2, scale=1, dtype=step, name=name)


@pytest.mark.parametrize("target", [("cuda", 80), ("cuda", 90), ("cuda", 100), ("hip", "gfx942")])
@pytest.mark.parametrize("count", [0, 1000])
def test_tiles_of_every_target(target, count, seed, monkeypatch, tf32):
    """Large and small tiles, several blocks of channels."""
    from dafast.kernels.runtime import assume_target

    monkeypatch.setattr("dafast.kernels.conv_transpose.processors", lambda: count)
    inputs = _inputs(seed, (1, 160, 3, 50), 36, 2, DTYPES[1])
    exact = parity.exact(conv_transpose, inputs)
    with assume_target(*target):
        got = parity.run("triton", conv_transpose, inputs)
    parity.assert_within(got[0], exact[0], steps=2, scale=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides(backend, seed, device):
    x, weight, bias = _inputs(seed, (2, 8, 4, 5), 6, 2)
    views = {
        "contiguous": x.contiguous(),
        "tokens without the first": torch.cat(
            [torch.zeros(2, 1, 8), x.flatten(2).mT], 1
        )[:, 1:].mT.unflatten(2, (4, 5)),
        "batch of stride 0": x[:1].expand(2, -1, -1, -1),
    }  # fmt: skip
    with use_backend(backend), torch.no_grad():
        expected = conv_transpose(x, weight.contiguous(memory_format=torch.channels_last), bias)
        for name, view in views.items():
            got = conv_transpose(view, weight, bias)
            wanted = expected[:1].expand(2, -1, -1, -1) if "batch" in name else expected
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, msg=name)


def test_optimized_weights_are_not_copied(seed, monkeypatch, device):
    inputs = _inputs(seed, (1, 16, 3, 4), 8, 2)
    inputs[1] = inputs[1].contiguous(memory_format=torch.channels_last)
    copied, original = [], torch.Tensor.contiguous

    def contiguous(self, **options):
        out = original(self, **options)
        copied.extend([tuple(self.shape)] * (out.data_ptr() != self.data_ptr()))
        return out

    monkeypatch.setattr(torch.Tensor, "contiguous", contiguous)
    with use_backend("triton"), torch.no_grad():
        conv_transpose(*inputs)
    assert not copied


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_only_wanted_gradients(backend, seed, device):
    x, weight, bias = _inputs(seed, (1, 4, 2, 2), 3, 2)
    with use_backend(backend):
        assert conv_transpose(x[:0], weight, bias).shape == (0, 3, 4, 4)
        out = conv_transpose(x.requires_grad_(), weight, bias)
        (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, weight.sum((1, 2, 3))[:, None, None].expand(1, -1, 2, 2))


def test_gradcheck(seed):
    inputs = [t.double().requires_grad_() for t in _inputs(seed, (1, 3, 2, 2), 2, 2)]
    assert torch.autograd.gradcheck(conv_transpose_reference, inputs)


@pytest.mark.slow
def test_opcheck_and_compile(seed, monkeypatch):
    monkeypatch.undo()  # opcheck compares allocations of its own
    inputs = [t.requires_grad_() for t in _inputs(seed, (1, 16, 2, 3), 4, 2)]
    expected = parity.run("triton", conv_transpose, inputs)
    with use_backend("triton"):
        torch.library.opcheck(torch.ops.dafast.conv_transpose.default, (*inputs, "triton"))
        torch._dynamo.reset()  # traced code keeps its backend
        out = torch.compile(conv_transpose, backend="aot_eager", fullgraph=True)(*inputs)
        grads = torch.autograd.grad(out.sum(), inputs)
    for value, wanted in zip([out, *grads], expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)


def test_bad_input(seed):
    x, weight, bias = _inputs(seed, (1, 4, 2, 2), 3, 2)
    for arguments, message in [
        ((x[0], weight, bias), "needs x"), ((x, weight[:3], bias), "needs x"),
        ((x, weight[..., :1], bias), "needs x"), ((x, weight, bias[:2]), "needs x"),
        ((x.int(), weight, bias), "floating point"), ((x[:, :, :0], weight, bias), "empty"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            conv_transpose(*arguments)
    with use_backend("triton"), pytest.raises(BackendError, match="not torch"):
        conv_transpose(x.double(), weight, bias)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_layer_is_replaced_where_it_is_that_function(dtype, seed, monkeypatch, device):
    """Outputs and gradients of `enlarge` are those of the layer; other layers are called."""
    torch.manual_seed(seed)
    calls, x = [], torch.randn(1, 6, 3, 4)
    monkeypatch.setattr(
        "dafast.layers.convolution.conv_transpose_layer",
        lambda *args: calls.append(1) or conv_transpose_layer(*args),
    )
    layer = torch.nn.ConvTranspose2d(6, 5, 2, stride=2)
    others = [
        torch.nn.ConvTranspose2d(6, 5, 2, stride=1), torch.nn.ConvTranspose2d(6, 6, 2, 2, groups=2),
        torch.nn.ConvTranspose2d(6, 5, (2, 1), (2, 1)), torch.nn.ConvTranspose2d(6, 5, 3, 3, 1),
        torch.nn.Identity(), torch.nn.ConvTranspose2d(6, 5, 2, 2, bias=False),
    ]  # fmt: skip
    with use_backend("triton"), torch.autocast("cpu", dtype, enabled=dtype is not None):
        for other in others:
            assert torch.equal(enlarge(other, x), other(x))
        assert not calls
        x = x if dtype is None else x.to(dtype)
        expected = layer(x)
        got = enlarge(layer, x)
        assert type(got.grad_fn).__name__ == "conv_transposeBackward"
        assert calls and got.dtype == expected.dtype
        bound = {None: 1e-5, torch.bfloat16: 3e-2}[dtype]
        torch.testing.assert_close(got, expected, rtol=bound, atol=bound)
    assert torch.equal(enlarge(layer, x.float()), layer(x.float()))  # without a kernel


@pytest.mark.gpu
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("channels", "factor"), [(48, 4), (512, 2), (16, 4)])
def test_gpu_graph_capture(channels, factor, dtypes, seed, monkeypatch):
    monkeypatch.undo()
    inputs = [t.cuda() for t in _inputs(seed, (3, channels, 37, 50), channels, factor, dtypes)]
    rounded = [inputs[0].double(), inputs[1].to(dtypes[0]).double(), inputs[2].double()]
    expected = conv_transpose_reference(*rounded)
    with use_backend("triton"), torch.no_grad():
        parity.assert_within(conv_transpose(*inputs), expected, steps=2, scale=1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = conv_transpose(*inputs)
    captured.fill_(float("nan"))
    graph.replay()
    parity.assert_within(captured, expected, steps=2, scale=1)
