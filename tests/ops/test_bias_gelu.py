"""Bias and GELU: every backend against the float64 reference, outputs and gradients."""

import math
import os

import pytest
import torch
import torch.nn.functional as F

from dafast.layers.mlp import Mlp
from dafast.ops import bias_gelu, bias_gelu_reference, use_backend
from tests.instruction_sets import (
    CPP,
    INSTRUCTION_SETS,
    instruction_set,
    needs_extension,
    threads,
)
from tests.ops import parity
from tests.pairwise import grid

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"  # see conftest
KERNELS = ["triton", CPP]
BACKENDS = ["reference", *KERNELS]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),  # as under autocast
    (torch.float32, torch.float16),
]


SHAPES = [(2, 19, 1536), (1, 40, 768), (3, 256), (2, 5, 50), (33, 1), (7,)]

pytestmark = pytest.mark.usefixtures("poisoned")


def _inputs(seed, shape, dtypes=DTYPES[0]):
    """x, bias, and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    x, bias, upstream = (
        torch.randn(size, generator=generator) for size in (shape, shape[-1:], shape)
    )
    return 2 * x.to(dtypes[0]), bias.to(dtypes[1]), upstream.to(dtypes[0])


def _run(backend, x, bias, upstream, **options):
    return parity.run(backend, bias_gelu, [x, bias], [upstream], **options)


def _check(got, exact, dtypes):
    """Errors of at most two roundings to the value's dtype, over the largest value."""
    assert [value.dtype for value in got] == [dtypes[0], *dtypes]
    # Where all of x is far below 0 the results are small differences of terms of order 1.
    parity.assert_all_within(got[:2], exact[:2], names=["out", "x"], steps=2, scale=1)
    # The bias gets a sum of gradients of x, which can cancel.
    scale = exact[1].abs().max().clamp_min(1)
    parity.assert_within(got[2], exact[2], name="bias", steps=2, scale=scale)


@grid({"backend": BACKENDS, "shape": SHAPES, "dtypes": DTYPES, "added": [False, True]})
def test_matches_float64(backend, shape, dtypes, added, seed, device):
    inputs = _inputs(seed, shape, dtypes)
    exact = _run("reference", *(x.double() for x in inputs), added=added)
    _check(_run(backend, *inputs, added=added), exact, dtypes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_formula(backend, seed, device):
    x, bias, upstream = _inputs(seed, (4, 30))
    z = x.double() + bias
    below = torch.special.ndtr(z)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    out, grad_x, grad_bias = _run(backend, x, bias, upstream)
    # Below -4, z times the error of erf is more than what remains of the value.
    torch.testing.assert_close(out.double(), z * below, rtol=1e-5, atol=4e-6)
    expected = upstream * (below + z * density)
    torch.testing.assert_close(grad_x.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_bias.double(), expected.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_that_was_added_counts_once(backend, seed, device):
    x, bias, upstream = _inputs(seed, (9, 40))
    expected = _run(backend, x, bias, upstream)
    got = _run(backend, x + bias, bias, upstream, added=True)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rounds_once(backend, dtype, seed, device):
    """Half a unit in the last place is all that is lost: x + bias is not rounded on its own."""
    x, bias, _ = _inputs(seed, (50, 64), (dtype, dtype))
    with use_backend(backend):
        out = bias_gelu(x, bias).double()
    exact = F.gelu(x.double() + bias.double())
    unit = torch.finfo(dtype).eps * 2.0 ** exact.abs().log2().floor()
    # Triton's interpreter drops the digits that do not fit in bfloat16.
    truncated = backend == "triton" and dtype == torch.bfloat16 and INTERPRET
    error = ((out - exact).abs() / unit)[exact > 0.1]  # away from where erf cancels
    assert error.max() <= (1.001 if truncated else 0.501)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extremes(backend, device):
    x = torch.tensor([[-1e4, -30.0, -0.0, 0.0, 30.0, 1e4, math.nan]])
    out, grad_x, grad_bias = _run(backend, x, torch.zeros(7), torch.ones(1, 7))
    assert out[0, :6].tolist() == [0.0, 0.0, 0.0, 0.0, 30.0, 1e4] and out[0, 6].isnan()
    assert grad_x[0, :6].tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0] and grad_x[0, 6].isnan()
    torch.testing.assert_close(grad_bias, grad_x[0], equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend, shape, device):
    out, grad_x, grad_bias = _run(
        backend, torch.ones(shape), torch.ones(shape[-1]), torch.ones(shape)
    )
    assert out.shape == grad_x.shape == shape
    assert grad_bias.shape == shape[-1:] and (grad_bias == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_and_gradients(backend, seed, device):
    x, bias, upstream = _inputs(seed, (2, 12, 96))
    columns = x.mT.contiguous().mT[:, 1:]
    every_other = torch.stack([bias, bias], 1)[:, 0]
    row = upstream[:1, :1]
    got = _run(backend, columns, every_other, row.expand(2, 11, -1))
    expected = _run(backend, columns.contiguous(), bias, row.repeat(2, 11, 1))
    torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_chunks_with_many_tiles(seed, monkeypatch, device):
    """More rows than chunks times their least number of rows; the last chunk has fewer."""
    monkeypatch.setattr("dafast.kernels.bias_gelu._MAX_CHUNKS", 2)
    inputs = _inputs(seed, (131, 300))
    exact = _run("reference", *(x.double() for x in inputs))
    _check(_run("triton", *inputs), exact, DTYPES[0])


@pytest.mark.slow
def test_triton_is_bit_equal_run_to_run(seed, device):
    inputs = _inputs(seed, (3, 100, 40))
    parity.assert_equal(*(_run("triton", *inputs) for _ in range(2)))


@needs_extension
def test_cpp_is_bit_equal_for_any_number_of_threads(seed):
    inputs = _inputs(seed, (3, 450, 40))
    for added in (False, True):
        results = []
        for count in (1, 2, 5):
            with threads(count):
                results.append(_run("cpp", *inputs, added=added))
        for result in results[1:]:
            parity.assert_equal(result, results[0])


@needs_extension
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_cpp_on_every_instruction_set(name, seed):
    with instruction_set(name):
        test_extremes("cpp", "cpu")
        for dtypes in DTYPES:
            for added in (False, True):
                test_matches_float64("cpp", (5, 1536), dtypes, added, seed, "cpu")
                test_matches_float64("cpp", (9, 50), dtypes, added, seed, "cpu")
        for dtype in (torch.bfloat16, torch.float16):
            test_rounds_once("cpp", dtype, seed, "cpu")


@needs_extension
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_cpp_error_function_is_accurate(name, seed):
    """GELU(z) is z (1 + erf) / 2: an erf off by at most 4e-7, and two roundings."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.cat([
        torch.linspace(-6, 6, 200_001), 2 * torch.randn(100_000, generator=generator),
        10 ** torch.linspace(-8, 0, 10_001), -(10 ** torch.linspace(-8, 0, 10_001)),
    ])  # fmt: skip
    with instruction_set(name), torch.no_grad(), use_backend("cpp"):
        out = bias_gelu(z[:, None], torch.zeros(1), added=True)[:, 0].double()
    exact = z.double() * torch.special.ndtr(z.double())
    error = (out - exact).abs() / z.double().abs().clamp_min(1e-30)
    assert error.max() <= 4e-7 / 2 + 2**-23


@needs_extension
def test_cpp_is_taken_unasked_where_it_gains():
    from dafast.ops import OPS, _extension

    op = OPS["bias_gelu"]
    x, bias = torch.zeros(64, 512), torch.zeros(512)
    with torch.no_grad():
        wide = _extension.load().cpu_capability().startswith("avx512")
        assert op.select(x, bias) == ("cpp" if wide else "reference")
        with instruction_set("avx2"):
            assert op.select(x, bias) == "reference"
        assert op.select(x[:2], bias) == "reference"
    assert op.select(x.clone().requires_grad_(), bias) == "reference"
    with use_backend("cpp"):
        assert op.select(x[:2], bias) == "cpp"


def test_gradcheck(seed):
    x, bias, _ = (t.double().requires_grad_() for t in _inputs(seed, (3, 5)))
    assert torch.autograd.gradcheck(bias_gelu_reference, (x, bias))


@pytest.mark.slow
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck_and_compile(backend, added, seed, monkeypatch):
    monkeypatch.undo()  # opcheck compares allocations of its own
    x, bias, upstream = _inputs(seed, (2, 5, 32))
    expected = _run(backend, x, bias, upstream, added=added)
    leaves = (x.requires_grad_(), bias.requires_grad_())
    with use_backend(backend):
        torch.library.opcheck(torch.ops.dafast.bias_gelu.default, (*leaves, added, backend))
        torch._dynamo.reset()  # traced code keeps its backend
        compiled = torch.compile(bias_gelu, backend="aot_eager", fullgraph=True)
        out = compiled(*leaves, added=added)
        grads = torch.autograd.grad(out, leaves, upstream)
    for value, wanted in zip([out, *grads], expected, strict=True):
        torch.testing.assert_close(value, wanted)


def _mlp(seed, dtype=torch.float32):
    """An MLP of 20 channels with 150 hidden ones, its input, and a gradient of its output."""
    generator = torch.Generator().manual_seed(seed)
    mlp = Mlp(20, 150)
    for parameter in mlp.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    x, upstream = (torch.randn(2, 9, 20, generator=generator, dtype=dtype) for _ in range(2))
    return mlp.to(dtype), x.requires_grad_(), upstream


def _mlp_results(mlp, x, upstream, function=None, **autocast):
    """Output and gradients; the sizes of the tensors with hidden values that autograd keeps."""
    leaves, kept = [x, *mlp.parameters()], {}

    def keep(tensor):
        if tensor.shape[-1] == 150 and tensor.ndim > 1 and tensor.numel() == 18 * 150:
            kept[tensor.data_ptr()] = tensor
        return tensor

    enabled = torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast.get("autocast")))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), enabled:
        out = (mlp if function is None else function)(x)
    return [out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))], len(kept)


@pytest.mark.parametrize("autocast", [False, True])
def test_training_keeps_one_hidden_tensor_of_an_mlp(autocast, seed, device):
    mlp, x, upstream = _mlp(seed)
    with use_backend("reference"):
        exact, _ = _mlp_results(mlp.double(), x.double(), upstream.double())
        mlp.float()
        plain, kept = _mlp_results(mlp, x, upstream, autocast=autocast)
        assert kept == 2
    with use_backend("triton"):
        got, kept = _mlp_results(mlp, x, upstream, autocast=autocast)
        assert kept == 1
    for value, usual, wanted in zip(got, plain, exact, strict=True):
        assert value.dtype == usual.dtype
        error = (value.double() - wanted).norm() / wanted.norm()
        assert error <= (0.02 if autocast else 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backward_computes_the_output_again_to_the_bit(dtype, seed, device):
    from dafast.kernels.bias_gelu import bias_gelu_bwd, bias_gelu_bwd_with_output, bias_gelu_fwd

    for shape in SHAPES:
        for added in (False, True):
            x, bias, upstream = _inputs(seed, shape, (dtype, torch.float32))
            *grads, out = bias_gelu_bwd_with_output(upstream, x, bias, added)
            parity.assert_equal([out], [bias_gelu_fwd(x, bias, added)])
            parity.assert_equal(grads, bias_gelu_bwd(upstream, x, bias, added))


def test_an_mlp_under_checkpointing_keeps_nothing(seed, device):
    mlp, x, upstream = _mlp(seed)
    with use_backend("triton"):
        expected, _ = _mlp_results(mlp, x, upstream)
        checkpoint = torch.utils.checkpoint.checkpoint
        got, kept = _mlp_results(
            mlp, x, upstream, lambda x: checkpoint(mlp, x, use_reentrant=False)
        )
    assert kept == 0
    parity.assert_equal(got, expected)


def test_an_mlp_with_frozen_weights(seed, device):
    mlp, x, upstream = _mlp(seed)
    with use_backend("triton"):
        expected, _ = _mlp_results(mlp, x, upstream)
        for frozen in mlp.parameters():  # one at a time
            frozen.requires_grad_(False)
            leaves = [p for p in mlp.parameters() if p is not frozen]
            got = torch.autograd.grad(mlp(x), leaves, upstream)
            frozen.requires_grad_()
            wanted = [g for p, g in zip(mlp.parameters(), expected[2:], strict=True)
                      if p is not frozen]  # fmt: skip
            torch.testing.assert_close(got, tuple(wanted))
        empty = x[:0]
        grads = torch.autograd.grad(mlp(empty).sum(), tuple(mlp.parameters()))
        assert all((g == 0).all() for g in grads)


@pytest.mark.slow
def test_an_mlp_compiles(seed, monkeypatch, device):
    monkeypatch.undo()
    mlp, x, upstream = _mlp(seed)
    with use_backend("triton"):
        expected, _ = _mlp_results(mlp, x, upstream)
        torch._dynamo.reset()
        compiled = torch.compile(mlp, backend="aot_eager", fullgraph=True)
        got, kept = _mlp_results(mlp, x, upstream, compiled)
        assert kept <= 1
        torch.testing.assert_close(got, expected)
        (gradient,) = torch.autograd.grad(mlp(x).sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative"):
            gradient.sum().backward()


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4), "needs x"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "needs x"),
        (torch.zeros(()), torch.zeros(()), "needs x"),
        (torch.zeros(2, 3).int(), torch.zeros(3), "floating point"),
    ],
)
def test_bad_input(x, bias, message):
    with pytest.raises(ValueError, match=message):
        bias_gelu(x, bias)


@pytest.mark.gpu
@pytest.mark.parametrize("dtypes", DTYPES)
def test_gpu_graph_capture_and_streams(dtypes, seed, monkeypatch):
    monkeypatch.undo()
    inputs = [x.cuda() for x in _inputs(seed, (4, 1370, 1536), dtypes)]
    exact = _run("reference", *(x.double() for x in inputs))
    for stream in [torch.cuda.Stream() for _ in range(2)]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                got = _run("triton", *inputs)
        stream.synchronize()
        _check(got, exact, dtypes)
    graph = torch.cuda.CUDAGraph()
    leaves = [x.clone().requires_grad_() for x in inputs[:2]]
    with use_backend("triton"), torch.cuda.graph(graph):
        out = bias_gelu(*leaves)
        captured = [out, *torch.autograd.grad(out, leaves, inputs[2])]
    graph.replay()
    _check(captured, exact, dtypes)
