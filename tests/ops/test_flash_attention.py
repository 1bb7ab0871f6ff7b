"""Attention: every backend against the float64 reference, outputs and gradients."""

import pytest
import torch

from dafast.ops import (
    BackendError,
    flash_attention,
    flash_attention_qkvpacked,
    flash_attention_qkvpacked_reference,
    flash_attention_reference,
    flash_attention_varlen,
    flash_attention_varlen_reference,
    use_backend,
)
from tests.ops import parity
from tests.pairwise import grid

SHAPES = [(1, 1, 1, 64), (2, 193, 2, 64), (1, 77, 2, 32), (2, 50, 3, 80), (0, 5, 2, 64)]


NAMES = ("out", "q", "k", "v")
BACKENDS = ["reference", "sdpa", "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _draw(generator, shape, dtype):
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


def _eager(q, k, v, scale):
    """PyTorch's plain path in the dtype of its inputs: its error is the yardstick."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2)


def _compare(function, inputs, cotangent, reference, baseline, dtype):
    """Output and gradients within twice the error of the plain path, plus a floor."""
    got = parity.evaluate(function, inputs, [cotangent])
    assert got[0].dtype == dtype
    parity.assert_all_within(
        got,
        parity.evaluate(reference, [x.double() for x in inputs], [cotangent]),
        parity.evaluate(baseline, inputs, [cotangent]),
        names=NAMES[: len(got)],
        # Where terms of order 1 cancel to 0, as with a single key.
        steps=4, scale=1, slack=1e-5,
    )  # fmt: skip


@grid({"backend": BACKENDS, "shape": SHAPES, "dtype": DTYPES})
def test_matches_float64(backend, shape, dtype, seed, poisoned, device):
    generator = torch.Generator().manual_seed(seed)
    inputs = [_draw(generator, shape, dtype) for _ in range(3)]
    cotangent = torch.randn(shape, generator=generator).to(dtype)
    scale = shape[-1] ** -0.5
    with use_backend(backend):
        _compare(flash_attention, inputs, cotangent, flash_attention_reference,
                 lambda q, k, v: _eager(q, k, v, scale), dtype)  # fmt: skip


HEAD_DIMS = [8, 16, 24, 32, 48, 80, 96, 112, 128]


@pytest.mark.parametrize(
    "head_dim",
    [pytest.param(d, marks=[] if d in (16, 80) else pytest.mark.slow) for d in HEAD_DIMS],
)
@pytest.mark.parametrize(
    ("tokens", "dtype"),
    [((37, 70), dtype) for dtype in DTYPES] + [((64, 32), DTYPES[0]), ((5, 1), DTYPES[0])],
)
def test_triton_head_dims_and_other_keys(tokens, dtype, head_dim, seed, poisoned, device):
    generator = torch.Generator().manual_seed(seed)
    queries, keys = tokens
    inputs = [_draw(generator, (1, n, 2, head_dim), dtype) for n in (queries, keys, keys)]
    cotangent = torch.randn(1, queries, 2, head_dim, generator=generator).to(dtype)
    with use_backend("triton"):
        _compare(
            lambda q, k, v: flash_attention(q, k, v, scale=0.2), inputs, cotangent,
            lambda q, k, v: flash_attention_reference(q, k, v, scale=0.2),
            lambda q, k, v: _eager(q, k, v, 0.2), dtype,
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, *HEAD_DIMS])
def test_gpu_tf32(head_dim, seed, tf32, poisoned):
    """Interpreted, products of float32 are exact."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [_draw(generator, (2, n, 2, head_dim), torch.float32) for n in (150, 170, 170)]
    inputs = [x.detach().cuda().requires_grad_() for x in inputs]
    cotangent = torch.randn(2, 150, 2, head_dim, generator=generator).cuda()
    got = parity.run("triton", flash_attention, inputs, [cotangent])
    exact = parity.exact(flash_attention, inputs, [cotangent])
    # TF32 has float16's ten bits of mantissa; matrix units cut off the rest of them, twice.
    parity.assert_all_within(got, exact, names=NAMES, steps=16, dtype=torch.float16)


@pytest.mark.slow
def test_triton_at_the_models_length(seed):
    dtype = torch.bfloat16
    generator = torch.Generator().manual_seed(seed)
    qkv = _draw(generator, (1, 1370, 3, 1, 64), dtype)
    cotangent = torch.randn(1, 1370, 1, 64, generator=generator).to(dtype)
    from dafast.kernels.runtime import assume_target

    with use_backend("triton"), assume_target("cuda", 90):  # the tiles of a GPU
        _compare(
            flash_attention_qkvpacked, [qkv], cotangent, flash_attention_qkvpacked_reference,
            lambda x: _eager(*x.unbind(2), 0.125), dtype,
        )  # fmt: skip


@pytest.mark.parametrize("sign", [-1, 1])
def test_triton_with_logits_far_from_0(sign, seed, device):
    """Far from the 0 of the keys that are not there, whose probability would overflow."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 45, 1, 32, generator=generator) for _ in range(3))
    q[..., 0], k[..., 0] = 100 * sign, 30 + 0.01 * k[..., 0]
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) * 32**-0.5
    assert (sign * logits > 200).all(), "exp(200) is no float32"
    cotangent = torch.randn(1, 45, 1, 32, generator=generator)
    got = parity.run("triton", flash_attention, [q, k, v], [cotangent])
    wanted = parity.exact(flash_attention, [q, k, v], [cotangent])
    for a, b in zip(got, wanted, strict=True):  # float32 logits of 700 are off by 1e-4
        torch.testing.assert_close(a.double(), b, atol=1e-2 * b.abs().max().item(), rtol=0)


@grid(
    {
        "backend": BACKENDS,
        "lengths": [(17, 40, 1), (0, 33, 0, 5), (64,), (3, 3, 3, 3), (0, 0)],
        "dtype": [torch.float32, torch.bfloat16],
    }
)
def test_varlen_is_attention_within_each_sequence(backend, lengths, dtype, seed, poisoned, device):
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(lengths), 2, 64)
    inputs = [_draw(generator, shape, dtype) for _ in range(3)]
    cotangent = torch.randn(shape, generator=generator).to(dtype)
    ends = torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)

    def each(function):
        def run(q, k, v):
            parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
            return torch.cat([function(*(x[None] for x in part))[0] for part in parts])

        return run

    with use_backend(backend):
        _compare(
            lambda q, k, v: flash_attention_varlen(q, k, v, ends, max(lengths)),
            inputs, cotangent, each(flash_attention_reference),
            each(lambda q, k, v: _eager(q, k, v, 0.125)), dtype,
        )  # fmt: skip
    with use_backend(backend):  # a bound that is too large changes nothing
        loose = flash_attention_varlen(*inputs, ends, max(lengths) + 100)
        assert torch.equal(loose, flash_attention_varlen(*inputs, ends, max(lengths)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_varlen_reads_views(backend, seed, device):
    """Views of a packed projection, and of a longer list of ends."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(1, 40, 3, 2, 32, generator=generator)
    q, k, v = qkv[0].unbind(1)
    ends = torch.tensor([0, -1, 13, -1, 40, -1], dtype=torch.int32)[::2]
    assert not ends.is_contiguous()
    with use_backend(backend):
        out = flash_attention_varlen(q, k, v, ends, 27)
    parts = [qkv[:, a:b].double() for a, b in ((0, 13), (13, 40))]
    exact = torch.cat([flash_attention_qkvpacked_reference(part)[0] for part in parts])
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strides", ["expanded", "one row expanded", "last not 1", "sliced"])
def test_gradients_of_any_strides(backend, strides, seed, device):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 37, 2, 32)
    inputs = [_draw(generator, shape, torch.float32) for _ in range(3)]
    cotangent = {
        "expanded": lambda: torch.randn((), generator=generator).expand(shape),
        "one row expanded": lambda: torch.randn(2, 1, 2, 32, generator=generator).expand(shape),
        "last not 1": lambda: torch.randn(shape[::-1], generator=generator).permute(3, 2, 1, 0),
        "sliced": lambda: torch.randn(2, 74, 2, 40, generator=generator)[:, ::2, :, 3:35],
    }[strides]()
    assert not cotangent.is_contiguous() and cotangent.shape == shape
    with use_backend(backend):
        got = torch.autograd.grad(flash_attention(*inputs), inputs, cotangent)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = torch.autograd.grad(flash_attention_reference(*exact), exact, cotangent.double())
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5 * b.abs().max().item(), rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_keys_and_no_queries(backend, device):
    q, k = torch.ones(2, 3, 1, 32, requires_grad=True), torch.ones(2, 0, 1, 32, requires_grad=True)
    with use_backend(backend):
        out = flash_attention(q, k, k)
        (grad,) = torch.autograd.grad(out.sum(), q)
        assert not out.any() and not grad.any()
        out = flash_attention(k, q, q)
        (grad,) = torch.autograd.grad(out.sum(), q)
        assert out.shape == k.shape and not grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_varlen_without_sequences(backend, device):
    inputs = [torch.ones(0, 2, 32, requires_grad=True) for _ in range(3)]
    with use_backend(backend):
        out = flash_attention_varlen(*inputs, torch.zeros(1, dtype=torch.int32), 0)
    grads = torch.autograd.grad(out.sum(), inputs)
    assert all(x.shape == (0, 2, 32) for x in (out, *grads))


@pytest.mark.filterwarnings("ignore:.*(invalid value|All-NaN).*:RuntimeWarning")
def test_triton_lets_nan_through(seed, device):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 40, 1, 32, generator=generator) for _ in range(3))
    q[0, 5, 0, 3] = float("nan")
    with use_backend("triton"):
        out = flash_attention(q, k, v)
        assert out[0, 5].isnan().all() and out.isnan().sum() == 32, "the row that holds it"
        k[0, 39, 0, 0] = float("nan")  # in the masked tile
        assert flash_attention(q, k, v).isnan().all()


@pytest.mark.slow
def test_triton_is_bit_equal_run_to_run(seed, device):
    generator = torch.Generator().manual_seed(seed)
    qkv = _draw(generator, (2, 70, 3, 2, 64), torch.float32)
    cotangent = torch.randn(2, 70, 2, 64, generator=generator)
    runs = []
    with use_backend("triton"):
        for _ in range(2):
            out = flash_attention_qkvpacked(qkv)
            runs.append((out, torch.autograd.grad(out, qkv, cotangent)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.slow
def test_triton_reads_packed_in_place_and_writes_its_gradient_packed(seed, monkeypatch, device):
    generator = torch.Generator().manual_seed(seed)
    qkv = _draw(generator, (2, 40, 3, 2, 64), torch.float32)
    cotangent = torch.randn(2, 40, 2, 64, generator=generator)
    for name in ("contiguous", "clone"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("a copy was made"))
    for name in ("cat", "stack"):
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("a copy was made"))
    with use_backend("triton"):
        out = flash_attention_qkvpacked(qkv)
    (grad,) = torch.autograd.grad(out, qkv, cotangent)
    assert out.is_contiguous() and grad.is_contiguous() and grad.shape == qkv.shape


@pytest.mark.slow
@pytest.mark.parametrize("op", ["varlen", "dense", "packed"])
def test_triton_opcheck_and_compile(op, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (_draw(generator, (2, 20, 2, 32), torch.float32) for _ in range(3))
    ends = torch.tensor([0, 13, 20], dtype=torch.int32)
    ops = torch.ops.dafast
    packed = torch.stack((q, k, v), 2).detach().requires_grad_()
    rows = tuple(x[0].detach().requires_grad_() for x in (q, k, v))
    name, arguments, function, inputs = {
        "dense": (
            ops.flash_attention, (q, k, v, None, 0, 0.3, "triton"), flash_attention, (q, k, v),
        ),
        "packed": (
            ops.flash_attention_qkvpacked, (packed, 0.3), flash_attention_qkvpacked, (packed,),
        ),
        "varlen": (
            ops.flash_attention,
            (*rows, ends, 13, 0.3, "triton"),
            lambda q, k, v: flash_attention_varlen(q, k, v, ends, 13),
            rows,
        ),
    }[op]  # fmt: skip
    with use_backend("triton"):
        torch.library.opcheck(name.default, arguments)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        got = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
        expected = torch.autograd.grad(function(*inputs).square().sum(), inputs)
    torch.testing.assert_close(got, expected)


def test_triton_refuses_what_it_cannot_serve():
    odd, double = torch.zeros(1, 3, 1, 20), torch.zeros(1, 3, 1, 64, dtype=torch.float64)
    with use_backend("triton"):
        with pytest.raises(BackendError, match="not 20"):
            flash_attention(odd, odd, odd)
        with pytest.raises(BackendError, match="float64"):
            flash_attention(double, double, double)
        for scale in (-0.1, 0.0, float("nan"), float("inf")):
            with pytest.raises(BackendError, match="positive scale"):
                flash_attention(*3 * [torch.zeros(1, 3, 1, 32)], scale=scale)
    with use_backend("xformers"), pytest.raises(BackendError, match="no operator for tensors"):
        flash_attention(odd, odd, odd)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_strides_and_packed(backend, seed, device):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(2, 41, 3, 2, 64, generator=generator)
    q, k, v = (t.contiguous() for t in qkv.unbind(2))
    transposed = v.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    with use_backend(backend):
        packed = flash_attention_qkvpacked(qkv, scale=0.3)
        plain = flash_attention(q, k, v, scale=0.3)
        sliced = flash_attention(q[:, ::2], k, transposed, scale=0.3)
    exact = flash_attention_reference(q.double(), k.double(), v.double(), scale=0.3)
    torch.testing.assert_close(packed.double(), exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.double(), exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(sliced.double(), exact[:, ::2], atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1370, 1814, 2443])
def test_gpu_parity_graph_capture_and_streams(tokens, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    qkv = _draw(generator, (2, tokens, 3, 6, 64), dtype).detach().cuda().requires_grad_()
    cotangent = torch.randn(2, tokens, 6, 64, generator=generator).to("cuda", dtype)
    compared = (
        [qkv], cotangent, flash_attention_qkvpacked_reference,
        lambda x: _eager(*x.unbind(2), 0.125), dtype,
    )  # fmt: skip
    with use_backend("triton"):
        for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                _compare(flash_attention_qkvpacked, *compared)
            stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = flash_attention_qkvpacked(qkv)
            (grad,) = torch.autograd.grad(out, qkv, cotangent)
        graph.replay()
        expected = flash_attention_qkvpacked(qkv)
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    assert torch.equal(grad, torch.autograd.grad(expected, qkv, cotangent)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_varlen_graph_capture_and_streams(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = (1370, 1, 962, 1814)
    inputs = [
        torch.randn(sum(lengths), 2, 64, generator=generator).to("cuda", dtype).requires_grad_()
        for _ in range(3)
    ]
    cotangent = torch.randn(sum(lengths), 2, 64, generator=generator).to("cuda", dtype)
    ends = torch.tensor((0, *lengths)).cumsum(0).to("cuda", torch.int32)

    def run(q, k, v):
        return flash_attention_varlen(q, k, v, ends, max(lengths))

    def eager(q, k, v):
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat([_eager(*(x[None] for x in part), 0.125)[0] for part in parts])

    def reference(q, k, v):
        return flash_attention_varlen_reference(q, k, v, ends, max(lengths))

    with use_backend("triton"):
        for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                _compare(run, inputs, cotangent, reference, eager, dtype)
            stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(*inputs)
            grads = torch.autograd.grad(out, inputs, cotangent)
        graph.replay()
        expected = run(*inputs)
        wanted = torch.autograd.grad(expected, inputs, cotangent)
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, wanted, strict=True))


def test_reference_gradcheck(seed):
    generator = torch.Generator().manual_seed(seed)
    qkv = [
        torch.randn(1, 4, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    ]
    assert torch.autograd.gradcheck(flash_attention_reference, qkv)


@pytest.mark.parametrize(
    ("shapes", "dtypes", "message"),
    [
        (((2, 5, 64),) * 3, (torch.float32,) * 3, "needs q"),
        (((2, 5, 2, 64), (2, 5, 2, 32), (2, 5, 2, 32)), (torch.float32,) * 3, "differ in batch"),
        (((2, 5, 2, 8), (2, 5, 2, 8), (2, 6, 2, 8)), (torch.float32,) * 3, "needs q"),
        (((2, 5, 2, 8),) * 3, (torch.float32, torch.float32, torch.bfloat16), "one floating"),
    ],
)
def test_bad_input(shapes, dtypes, message):
    q, k, v = (torch.zeros(s, dtype=d) for s, d in zip(shapes, dtypes, strict=True))
    with pytest.raises(ValueError, match=message):
        flash_attention(q, k, v)
    with pytest.raises(ValueError, match="qkvpacked needs"):
        flash_attention_qkvpacked(q)


@pytest.mark.parametrize(
    ("shape", "ends", "message"),
    [
        ((2, 5, 2, 64), torch.zeros(2, dtype=torch.int32), "of one shape"),
        ((5, 2, 64), torch.zeros(2, dtype=torch.int64), "must be int32"),
        ((5, 2, 64), torch.zeros(1, 2, dtype=torch.int32), "must be int32"),
    ],
)
def test_bad_varlen_input(shape, ends, message):
    x = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        flash_attention_varlen(x, x, x, ends, 5)


@pytest.mark.parametrize(
    ("ends", "max_seqlen", "message"),
    [
        ([0, 3, 5], 2, "cannot hold"),
        ([0, 5], -1, "cannot hold"),
        ([0], 5, "cannot hold"),
        ([1, 3, 5], 5, "must rise from 0"),
        ([0, 3, 6], 5, "must rise from 0"),
        ([0, 3], 5, "must rise from 0"),
        ([0, 4, 2, 5], 5, "must rise from 0"),
        ([0, 1, 5], 3, "a sequence has 4"),
    ],
)
def test_bad_seqlens(ends, max_seqlen, message):
    x = torch.zeros(5, 2, 64)
    with pytest.raises(ValueError, match=message):
        flash_attention_varlen(x, x, x, torch.tensor(ends, dtype=torch.int32), max_seqlen)
