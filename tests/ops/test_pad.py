"""`pad`: every backend against `F.pad`, values to the bit, and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dafast.ops import _extension, pad, pad_reference, use_backend
from tests.instruction_sets import CPP, needs_extension
from tests.ops import parity
from tests.pairwise import grid

BACKENDS = ["reference", CPP]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODES = ["constant", "replicate", "reflect"]

# (C, H, W) and (left, right, top, bottom); negative crops.
CASES = [
    ((3, 9, 12), (1, 2, 3, 4)),
    ((8, 16, 32), (8, 8, 0, 1)),
    ((1, 5, 7), (6, 0, 0, 4)),
    ((4, 8, 8), (0, 0, 0, 0)),
    ((2, 6, 9), (-2, 3, 1, -3)),
    ((16, 4, 5), (-1, -1, -2, -1)),
    ((5, 10, 40), (13, -8, -9, 5)),
    ((3, 2, 2), (1, 1, 1, 1)),
    ((1, 1, 1), (0, 0, 0, 0)),
]


GRID = {
    "dtype": DTYPES,
    "mode": MODES,
    "channels_last": [False, True],
    "shape, padding": CASES,
}


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned):
    return request.param


def run(backend, x, padding, cotangent=None, **options):
    """The result and the gradient of the input."""
    upstream = None if cotangent is None else [cotangent]
    return parity.run(backend, pad, [x], upstream, padding=padding, **options)


def check(got, x, padding, mode, value, cotangent):
    exact, exact_grad = run("reference", x.double(), padding, cotangent, mode=mode, value=value)
    out, grad = got
    stored = torch.tensor(value).to(x.dtype).double()
    shown = exact if mode != "constant" else torch.where(exact == value, stored, exact)
    assert out.dtype == grad.dtype == x.dtype
    assert torch.equal(out.double(), shown)
    # A border pixel's gradient is a sum of some hundred terms.
    parity.assert_within(grad, exact_grad, steps=4, scale=1)


def random_inputs(shape, padding, dtype, channels_last):
    left, right, top, bottom = padding
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, *shape).to(dtype).contiguous(memory_format=layout)
    size = (shape[1] + top + bottom, shape[2] + left + right)
    return x, torch.randn(2, shape[0], *size).to(dtype)


@grid({"backend": BACKENDS, **GRID}, strength=3)
def test_matches_pytorch(backend, dtype, mode, channels_last, shape, padding, poisoned):
    x, cotangent = random_inputs(shape, padding, dtype, channels_last)
    value = 0.3 if mode == "constant" else 0.0
    got = run(backend, x, padding, cotangent, mode=mode, value=value)
    check(got, x, padding, mode, value, cotangent)


@pytest.mark.parametrize("mode", MODES)
def test_random_paddings(backend, mode, rng):
    for _ in range(60):
        height, width = (int(n) for n in rng.integers(1, 24, 2))
        padding = tuple(
            int(rng.integers(-(size // 3), size)) for size in (width, width, height, height)
        )
        if width + sum(padding[:2]) < 1 or height + sum(padding[2:]) < 1:
            continue
        x = torch.from_numpy(rng.standard_normal((1, 2, height, width)).astype("float32"))
        out = F.pad(x, padding, mode=mode)
        cotangent = torch.from_numpy(rng.standard_normal(out.shape).astype("float32"))
        got = run(backend, x, padding, cotangent, mode=mode)
        assert torch.equal(got[0], out), (tuple(x.shape), padding)
        check(got, x, padding, mode, 0.0, cotangent)


def test_three_dimensions_and_wide_replication(backend, seed):
    x = torch.randn(3, 4, 5)
    out, grad = run(backend, x, (20, 30, 40, 1), mode="replicate")
    assert torch.equal(out, F.pad(x[None], (20, 30, 40, 1), mode="replicate")[0])
    assert grad.shape == x.shape and grad[0, 0, 0].item() == 21 * 41


def test_memory_format_is_kept(backend, seed):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 8, 6, 7).contiguous(memory_format=layout)
        assert run(backend, x, (1, 2, 3, 4))[0].is_contiguous(memory_format=layout)


def test_strides(backend, seed):
    base = torch.randn(2, 20, 24, 6)
    views = {
        "channels_last slice": base.permute(0, 3, 1, 2)[:, :4],
        "crop": base[:, :3, 2:, 1:-1],
        "every other": base[:, :, ::2, ::3],
        "transposed": base.mT,
        "expanded": base[:1, :1].expand(3, 5, -1, -1),
    }
    for name, view in views.items():
        got, _ = run(backend, view, (1, 0, 1, 1), mode="reflect")
        assert torch.equal(got, F.pad(view, (1, 0, 1, 1), mode="reflect")), name


def test_empty_batch(backend):
    out, grad = run(backend, torch.zeros(0, 3, 4, 5), (1, 2, 3, 4))
    assert out.shape == (0, 3, 11, 8) and grad.shape == (0, 3, 4, 5)


def test_special_values_are_copied(backend):
    x = torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0, 1e-40, 3.0]).view(1, 1, 2, 3)
    for dtype in DTYPES:
        out, _ = run(backend, x.to(dtype), (0, 1, 0, 0), mode="replicate")
        want = F.pad(x.to(dtype), (0, 1, 0, 0), mode="replicate")
        torch.testing.assert_close(out, want, equal_nan=True, rtol=0, atol=0)
        assert torch.equal(out.signbit(), want.signbit())


def test_gradcheck(seed):
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    for mode in MODES:
        assert torch.autograd.gradcheck(lambda x, m=mode: pad_reference(x, (2, 1, 3, 0), m), [x])


@pytest.mark.slow
@needs_extension
def test_opcheck_compile_and_second_derivative(seed):
    x = torch.randn(2, 3, 6, 7, requires_grad=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs = x.detach().contiguous(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.dafast.pad.default, (inputs, 1, 2, 3, 4, 2, 0.0))
        torch.library.opcheck(torch.ops.dafast.pad_backward.default, (inputs, 1, 1, 1, 0, 1))

    def squares(x):
        return pad(x, (3, 1, 2, 0), mode="reflect").square().sum()

    with use_backend("cpp"):
        compiled = torch.compile(squares, backend="aot_eager", fullgraph=True)
        (got,) = torch.autograd.grad(compiled(x), x)
        (grad,) = torch.autograd.grad(squares(x), x, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), x)
    # Each pixel counts as often as it is shown.
    shown = torch.autograd.grad(pad(x, (3, 1, 2, 0), mode="reflect").sum(), x)[0]
    torch.testing.assert_close(got, 2 * shown * x.detach())
    torch.testing.assert_close(second, 8 * shown**2 * x.detach())


@pytest.mark.parametrize(
    ("shape", "padding", "mode", "message"),
    [
        ((4, 4), (1, 1, 1, 1), "constant", r"\(4, 4\)"),
        ((1, 0, 4), (1, 1, 1, 1), "constant", "H and W > 0"),
        ((1, 4, 4), (1, 1, 1, 1), "edge", "use one of replicate"),
        ((1, 4, 4), (4, 0, 0, 0), "reflect", "use mode='replicate'"),
        ((1, 4, 4), (-2, -2, 0, 0), "replicate", "leaves nothing"),
    ],
)
def test_errors_name_what_was_given(shape, padding, mode, message):
    with pytest.raises(ValueError, match=message):
        pad(torch.zeros(shape), padding, mode=mode)


@needs_extension
def test_extension_refuses_what_it_cannot_do():
    op = torch.ops.dafast_C.pad
    x = torch.zeros(1, 2, 4, 4)
    with pytest.raises(RuntimeError, match="reflection is wider"):
        op(x, torch.zeros(1, 2, 4, 8), 4, 0, 2, 0.0)
    with pytest.raises(RuntimeError, match="unknown padding"):
        op(x, torch.zeros(1, 2, 4, 8), 4, 0, 3, 0.0)


@pytest.mark.gpu
@grid(GRID)
def test_gpu_matches_pytorch(dtype, mode, channels_last, shape, padding):
    if why := _extension.why_not("cuda"):
        pytest.skip(why)
    x, cotangent = random_inputs(shape, padding, dtype, channels_last)
    got = run("cuda", x.cuda(), padding, cotangent.cuda(), mode=mode)
    check([t.cpu() for t in got], x, padding, mode, 0.0, cotangent)


@pytest.mark.gpu
def test_gpu_graph_capture(seed):
    if why := _extension.why_not("cuda"):
        pytest.skip(why)
    x = torch.randn(2, 16, 37, 37, device="cuda")
    expected = run("cuda", x, (3, 4, 5, 6), mode="reflect")
    graph = torch.cuda.CUDAGraph()
    static = x.clone()
    with torch.cuda.graph(graph):
        captured = run("cuda", static, (3, 4, 5, 6), mode="reflect")
    graph.replay()
    for a, b in zip(expected, captured, strict=True):
        assert torch.equal(a, b)


@needs_extension
def test_layout_of_the_result():
    """That of the input; a slice, which has neither layout, gives contiguous memory."""
    x = torch.randn(2, 3, 8, 9)
    inputs = {"contiguous": x, "slice": x[..., ::2], "channels_last": x[:, :, 1:].contiguous()}
    inputs["channels_last"] = inputs["channels_last"].to(memory_format=torch.channels_last)
    with use_backend("cpp"):
        for name, image in inputs.items():
            out = pad(image, (1, 2, 0, 1))
            assert out.is_contiguous() == (name != "channels_last"), name
