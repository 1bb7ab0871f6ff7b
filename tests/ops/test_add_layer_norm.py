"""Residual add and LayerNorm: every backend against the float64 reference, with all gradients."""

import pytest
import torch
import torch.nn.functional as F

from dafast.ops import BackendError, add_layer_norm, add_layer_norm_reference, use_backend
from tests.instruction_sets import (
    CPP,
    INSTRUCTION_SETS,
    instruction_set,
    limit_instructions,
    needs_extension,
    threads,
)
from tests.ops import parity
from tests.pairwise import grid
from tests.tolerances import TOLERANCES

KERNELS = ["triton", CPP]
BACKENDS = ["reference", *KERNELS]
FLOAT, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
# Of the stream, of the branch, of the parameters, of n (None: that of s).
DTYPES = [
    (FLOAT, FLOAT, FLOAT, None),
    (BRAIN, BRAIN, BRAIN, None),
    (HALF, HALF, HALF, None),
    (FLOAT, BRAIN, FLOAT, BRAIN),  # as under autocast
    (FLOAT, HALF, FLOAT, HALF),
    (BRAIN, BRAIN, FLOAT, None),  # s is float32, as it is in PyTorch
    (BRAIN, BRAIN, BRAIN, FLOAT),
]


SHAPES = [(2, 9, 384), (3, 768), (1, 9, 1024), (7, 192), (2, 3, 50), (5, 17), (9, 3)]
NAMES = ("s", "n", "x", "branch", "gamma", "weight", "bias")

pytestmark = pytest.mark.usefixtures("poisoned")


def _inputs(seed, shape, dtypes=(FLOAT, FLOAT, FLOAT, None)):
    """x, branch, gamma, weight, bias; the rows' means and spreads differ."""
    stream, branch_dtype, parameters, _ = dtypes
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x = random(*shape) * (0.5 + random(*shape[:-1], 1).abs()) + random(*shape[:-1], 1)
    branch = random(*shape)
    gamma, weight, bias = (random(shape[-1]) for _ in range(3))
    if shape[-1] < 16:  # values of so few that lie close together would be lost in rounding
        x = random(*shape).clamp(-1, 1) + 16 * torch.arange(shape[-1])
        branch, gamma = branch.clamp(-2, 2), gamma.clamp(-2, 2)
    vectors = (vector.to(parameters) for vector in (gamma, weight, bias))
    return [x.to(stream), branch.to(branch_dtype), *vectors]


def _gradients_of(seed, s, n):
    generator = torch.Generator().manual_seed(seed + 1)
    return [torch.randn(o.shape, generator=generator).to(o.device, o.dtype) for o in (s, n)]


def _run(backend, inputs, upstream, **options):
    """Outputs, then gradients; ``upstream`` makes the outputs' gradients from the outputs."""
    return parity.run(backend, add_layer_norm, inputs, upstream, **options)


def _check(got, exact, eager):
    """Errors of at most twice eager PyTorch's, over the largest value, and the dtype's floor."""
    for name, value, wanted, usual in zip(NAMES, got, exact, eager, strict=True):
        # What follows from s has its rounding, which few channels make larger.
        coarsest = max(value.dtype, got[0].dtype, key=lambda dtype: TOLERANCES[dtype].op)
        steps = 8 if name in NAMES[4:] else 4  # sums over rows cancel
        parity.assert_within(value, wanted, usual, steps=steps, dtype=coarsest, name=name)


def _eager(x, branch, gamma, weight, bias, dtype):
    """What a block does without this op; the parameters as autocast would have them."""
    s = x + branch * gamma
    compute = torch.promote_types(s.dtype, weight.dtype)
    n = F.layer_norm(s.to(compute), s.shape[-1:], weight.to(compute), bias.to(compute), 1e-6)
    return s, n.to(dtype or s.dtype)


@grid({"backend": BACKENDS, "shape": SHAPES, "dtypes": DTYPES})
def test_matches_float64(backend, shape, dtypes, seed, device):
    inputs = _inputs(seed, shape, dtypes)
    upstream = _gradients_of(seed, *_eager(*inputs, dtypes[-1]))
    exact = parity.exact(add_layer_norm, inputs, upstream)
    got = _run(backend, inputs, upstream, dtype=dtypes[-1])
    _check(got, exact, parity.evaluate(_eager, inputs, upstream, dtype=dtypes[-1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_formula(backend, seed, device):
    inputs = _inputs(seed, (3, 5, 96))
    x, branch, gamma, weight, bias = (t.double() for t in inputs)
    s = x + branch * gamma
    centered = s - s.mean(-1, keepdim=True)
    n = centered / (centered.square().mean(-1, keepdim=True) + 0.5).sqrt() * weight + bias
    with use_backend(backend):
        got = add_layer_norm(*inputs, 0.5)
    torch.testing.assert_close(got, (s.float(), n.float()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("used", ["s", "n"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_output_without_a_gradient(backend, used, seed, device):
    inputs = _inputs(seed, (2, 9, 40))
    leaves = [x.detach().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    at = "sn".index(used)
    with use_backend(backend):
        output = add_layer_norm(*leaves)[at]
    wanted = add_layer_norm_reference(*exact)[at]
    upstream = torch.randn_like(output)
    options = {"allow_unused": True, "materialize_grads": True}
    got = torch.autograd.grad(output, leaves, upstream, **options)
    expected = torch.autograd.grad(wanted, exact, upstream.double(), **options)
    for grad, value in zip(got, expected, strict=True):
        assert (grad - value).abs().max() <= 1e-5 * value.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_gradients_only(backend, seed, device):
    inputs = _inputs(seed, (2, 9, 40))
    whole = _run(backend, inputs, lambda s, n: _gradients_of(seed, s, n))
    x, *rest = (t.detach() for t in inputs)
    x.requires_grad_()
    with use_backend(backend):
        s, n = add_layer_norm(x, *rest)
    torch.testing.assert_close(
        torch.autograd.grad((s, n), x, _gradients_of(seed, s, n))[0], whole[2]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_n_normalises_s_as_it_is_returned(backend, seed, device):
    inputs = _inputs(seed, (4, 64), (BRAIN, BRAIN, BRAIN, FLOAT))
    with use_backend(backend):
        s, n = add_layer_norm(*inputs, dtype=torch.float32)
    *_, weight, bias = (t.double() for t in inputs)
    expected = F.layer_norm(s.double(), (64,), weight, bias, 1e-6)
    assert (n - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_mean_and_equal_values(backend, seed, device):
    """Variance is taken around the mean: as a difference of squares it would be all rounding."""
    inputs = _inputs(seed, (6, 128))
    inputs[0] += 3000.0
    inputs[0][2], inputs[1][2] = 1.5, 0.0
    with use_backend(backend):
        s, n = add_layer_norm(*inputs)
    *_, weight, bias = (t.double() for t in inputs)
    expected = F.layer_norm(s.double(), (128,), weight, bias, 1e-6)
    assert (n - expected).abs().max() <= 1e-3 * expected.abs().max()
    torch.testing.assert_close(n[2], inputs[-1])


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend, shape, device):
    vectors = [torch.ones(8) for _ in range(3)]
    s, n, *grads = _run(
        backend, [torch.ones(shape), torch.ones(shape), *vectors], lambda *o: [t.clone() for t in o]
    )
    assert s.shape == n.shape == grads[0].shape == grads[1].shape == shape
    assert all((g == 0).all() and g.shape == (8,) for g in grads[2:])


@pytest.mark.parametrize("shape", [(24,), (1, 16), (7, 1)])
@pytest.mark.parametrize("backend", KERNELS)
def test_one_row_and_one_channel(backend, shape, seed, device):
    inputs = _inputs(seed, shape)
    upstream = _gradients_of(seed, inputs[0], inputs[0])
    got, expected = (_run(name, inputs, upstream) for name in (backend, "reference"))
    # One channel: nothing is left of it, and rounding is divided by sqrt(eps).
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3 if shape[-1] == 1 else 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_shows_in_its_row_alone(backend, seed, device):
    inputs = _inputs(seed, (6, 32))
    inputs[1][3, 5] = float("nan")
    s, n, grad_x, *_ = _run(backend, inputs, lambda s, n: _gradients_of(seed, s, n))
    assert s[3, 5].isnan() and n[3].isnan().all() and grad_x[3].isnan().all()
    others = [0, 1, 2, 4, 5]
    assert n[others].isfinite().all() and grad_x[others].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_and_gradients(backend, seed, device):
    x, branch, gamma, weight, bias = _inputs(seed, (2, 12, 96))

    def expanded(s, n):
        grad = _gradients_of(seed, s, n)[1]
        return [torch.full_like(s[:1, :1, :1], 0.3).expand_as(s), grad.mT.contiguous().mT]

    def dense(s, n):
        return [g.contiguous() for g in expanded(s, n)]

    wide = torch.stack([weight, bias], 1)
    got = _run(
        backend,
        [x[:, 1:], branch.mT.contiguous().mT[:, 1:], gamma, wide[:, 0], wide[:, 1]],
        expanded,
    )
    expected = _run(
        backend, [x[:, 1:].contiguous(), branch[:, 1:].contiguous(), gamma, weight, bias], dense
    )
    for value, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_programs_with_many_tiles(seed, monkeypatch, device):
    """More rows than programs times their least number of rows; the last program has fewer."""
    monkeypatch.setattr("dafast.kernels.add_layer_norm._MAX_PROGRAMS", 3)
    inputs = _inputs(seed, (83, 40))
    upstream = _gradients_of(seed, inputs[0], inputs[0])
    got = _run("triton", inputs, upstream)
    expected = _run("reference", inputs, upstream)
    for value, wanted in zip(got, expected, strict=True):
        assert (value - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.slow
def test_triton_is_bit_equal_run_to_run(seed, device):
    inputs = _inputs(seed, (3, 150, 40))
    upstream = _gradients_of(seed, inputs[0], inputs[0])
    parity.assert_equal(*(_run("triton", inputs, upstream) for _ in range(2)))


@needs_extension
def test_cpp_is_bit_equal_for_any_number_of_threads(seed):
    inputs = _inputs(seed, (3, 450, 40))
    upstream = _gradients_of(seed, inputs[0], inputs[0])
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(_run("cpp", inputs, upstream))
    for result in results[1:]:
        parity.assert_equal(result, results[0])


@needs_extension
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_cpp_on_every_instruction_set(name, seed):
    with instruction_set(name):
        for dtypes in DTYPES:
            for shape in ((3, 384), (40, 17), (2, 4096)):
                test_matches_float64("cpp", shape, dtypes, seed, "cpu")


@needs_extension
def test_cpp_keeps_the_digits_of_a_row_far_from_zero(seed):
    """A variance from the mean of squares would be off by a tenth."""
    x, branch, *vectors = _inputs(seed, (4, 96))
    x = x + 1000
    with torch.no_grad(), use_backend("cpp"):
        n = add_layer_norm(x, branch, *vectors)[1]
    exact = add_layer_norm_reference(*(t.double() for t in (x, branch, *vectors)))[1]
    # x itself is rounded to 2^-14 there.
    assert (n.double() - exact).abs().max() < 2e-3


@needs_extension
def test_cpp_is_taken_unasked_where_it_gains():
    from dafast.ops import OPS, _extension

    op = OPS["add_layer_norm"]
    x, vector = torch.zeros(64, 512), torch.zeros(512)
    with torch.no_grad():
        for name in ("", "avx2"):
            limit_instructions(name)
            wide = _extension.load().cpu_capability().startswith("avx512")
            expected = "cpp" if wide else "reference"
            assert op.select(x, x, vector, vector, vector) == expected
            with torch.enable_grad():
                trained = x.clone().requires_grad_()
                assert op.select(trained, x, vector, vector, vector) == expected
                mixed = op.select(trained, x.bfloat16(), vector, vector, vector)
            limit_instructions("")
            assert mixed == "reference"
        small, brain = (op.select(t, t, *3 * [vector]) for t in (x[:2], x.bfloat16()))
    assert small == brain == "reference"
    with use_backend("cpp"):
        assert op.select(x[:2], x[:2], vector, vector, vector) == "cpp"


@needs_extension
def test_cpp_refuses_rows_that_are_too_long():
    x, vector = torch.zeros(2, 4097), torch.zeros(4097)
    with use_backend("cpp"), pytest.raises(BackendError, match="1 to 4096 channels, not 4097"):
        add_layer_norm(x, x, vector, vector, vector)


def test_gradcheck(seed):
    inputs = [x.double().requires_grad_() for x in _inputs(seed, (2, 3, 5))]
    assert torch.autograd.gradcheck(add_layer_norm_reference, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [DTYPES[0], DTYPES[3]])
@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck_and_compile(backend, dtypes, seed, monkeypatch):
    monkeypatch.undo()  # opcheck compares allocations of its own
    inputs = [x.requires_grad_() for x in _inputs(seed, (2, 5, 32), dtypes)]
    out = dtypes[-1] or torch.float32
    upstream = _gradients_of(seed, inputs[0], inputs[0].to(out))
    expected = _run(backend, inputs, upstream, dtype=out)
    with use_backend(backend):
        torch.library.opcheck(
            torch.ops.dafast.add_layer_norm.default,
            (*inputs, 1e-6, torch.float32, out, backend),
        )
        torch._dynamo.reset()  # traced code keeps its backend
        compiled = torch.compile(add_layer_norm, backend="aot_eager", fullgraph=True)
        outputs = compiled(*inputs, dtype=out)
        grads = torch.autograd.grad(outputs, inputs, upstream)
    for value, wanted in zip([*outputs, *grads], expected, strict=True):
        torch.testing.assert_close(value, wanted)


X, V = torch.zeros(2, 3), torch.zeros(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, torch.zeros(3, 3), V, V, V), "one shape"),
        ((torch.zeros(()), torch.zeros(()), V, V, V), "one shape"),
        ((X, X, torch.zeros(2), V, V), r"gamma must be \(3,\)"),
        ((X, X, V, V, torch.zeros(1, 3)), r"bias must be \(3,\)"),
        ((X.int(), X, V, V, V), "floating point"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        add_layer_norm(*arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("dtypes", DTYPES)
def test_gpu_graph_capture_and_streams(dtypes, seed, monkeypatch):
    monkeypatch.undo()
    inputs = [x.cuda() for x in _inputs(seed, (4, 1370, 384), dtypes)]
    leaves = [x.detach().requires_grad_() for x in inputs]
    eager = _eager(*leaves, dtypes[-1])
    upstream = _gradients_of(seed, *(o.detach().cpu() for o in eager))
    upstream = [g.cuda() for g in upstream]
    eager = [*eager, *torch.autograd.grad(eager, leaves, upstream)]
    exact = _run(
        "reference", [x.double() for x in inputs], lambda *_: [g.double() for g in upstream]
    )
    for stream in [torch.cuda.Stream() for _ in range(2)]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                got = _run("triton", inputs, upstream, dtype=dtypes[-1])
        stream.synchronize()
        _check(got, exact, eager)
    graph = torch.cuda.CUDAGraph()
    leaves = [x.clone().requires_grad_() for x in inputs]
    with use_backend("triton"), torch.cuda.graph(graph):
        outputs = add_layer_norm(*leaves, dtype=dtypes[-1])
        captured = [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]
    graph.replay()
    _check(captured, exact, eager)


@pytest.mark.gpu
def test_gpu_offsets_past_31_bits(seed):
    free, _ = torch.cuda.mem_get_info()
    if free < 20 * 2**30:
        pytest.skip(f"needs 20 GiB of GPU memory; {free / 2**30:.0f} are free")
    x = torch.zeros(2**21 + 5, 1024, device="cuda", dtype=torch.bfloat16)
    x[-1] = torch.arange(1024, device="cuda")
    vector = torch.ones(1024, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad(), use_backend("triton"):
        s, n = add_layer_norm(x, x, vector, vector, vector)
    expected = add_layer_norm_reference(x[-1:], x[-1:], vector, vector, vector)
    torch.testing.assert_close((s[-1:], n[-1:]), expected, rtol=2e-2, atol=2e-2)
