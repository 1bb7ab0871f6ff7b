"""`resize_bilinear`: every backend against `F.interpolate` in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dafast.ops import _extension, resize_bilinear, resize_bilinear_reference, use_backend
from tests.instruction_sets import CPP, INSTRUCTION_SETS, instruction_set, needs_extension, threads
from tests.ops import parity
from tests.pairwise import grid

BACKENDS = ["reference", CPP]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VARIANTS = [(False, False), (True, False), (False, True), (True, True)]

# (C, H, W) -> (H, W): the decoder's, odd ones, down, one pixel, one axis only.
SHAPES = [
    ((8, 37, 37), (74, 74)),
    ((3, 19, 33), (38, 66)),
    ((16, 23, 40), (7, 11)),
    ((1, 50, 31), (9, 77)),
    ((5, 1, 1), (3, 4)),
    ((2, 7, 9), (1, 1)),
    ((2, 9, 1), (4, 6)),
    ((3, 6, 8), (6, 8)),
    ((2, 64, 5), (3, 5)),
    ((4, 12, 13), (5, 1)),
]
GRID = {
    "shape, size": SHAPES,
    "dtype": DTYPES,
    "align_corners, antialias": VARIANTS,
    "channels_last": [False, True],
}


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned):
    return request.param


def run(backend, x, size, cotangent=None, **options):
    """The result and the gradient of the input."""
    upstream = None if cotangent is None else [cotangent]
    return parity.run(backend, resize_bilinear, [x], upstream, size=size, **options)


def check(backend, shape, size, dtype, channels_last, device="cpu", **options):
    """At most twice the error of PyTorch's own path in this dtype, plus the dtype's floor."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, *shape).to(dtype).contiguous(memory_format=layout)
    cotangent = torch.randn(2, shape[0], *size).to(dtype)
    exact = run("reference", x.double(), size, cotangent, **options)
    eager = run("reference", x, size, cotangent, **options)
    got = run(backend, x.to(device), size, cotangent.to(device), **options)
    parity.assert_all_within([t.cpu() for t in got], exact, eager, names=["result", "gradient"])


@grid({**GRID, "backend": BACKENDS})
def test_matches_float64(
    shape, size, dtype, align_corners, antialias, channels_last, backend, poisoned
):
    options = {"align_corners": align_corners, "antialias": antialias}
    check(backend, shape, size, dtype, channels_last, **options)


@grid(
    {
        "name": INSTRUCTION_SETS,
        "dtype": DTYPES,
        "align_corners, antialias": VARIANTS,
        "channels_last": [False, True],
    },
    strength=3,
)
def test_every_instruction_set(name, dtype, align_corners, antialias, channels_last):
    options = {"align_corners": align_corners, "antialias": antialias}
    with instruction_set(name):
        for shape, size in SHAPES:
            check("cpp", shape, size, dtype, channels_last, **options)


@pytest.mark.parametrize(("align_corners", "antialias"), VARIANTS)
def test_random_sizes_are_pytorchs(backend, align_corners, antialias, rng):
    for _ in range(40):
        height, width, *size = (int(n) for n in rng.integers(2, 60, 4))
        x = torch.from_numpy(rng.standard_normal((1, 2, height, width)))
        options = {"align_corners": align_corners, "antialias": antialias}
        expected = F.interpolate(x, size, mode="bilinear", **options)
        # PyTorch's float32 rounds places to float32; its specification is held in float64.
        got, _ = run(backend, x if backend == "reference" else x.float(), size, **options)
        torch.testing.assert_close(
            got.double(), expected, atol=1e-5, rtol=1e-5, msg=f"{tuple(x.shape)} -> {size}"
        )


@needs_extension
def test_places_are_exact_in_large_images(seed):
    """In float32 a place of several thousand has lost what the weights are made of.

    PyTorch's own last pixel is wrong here even in float64: it takes the floor of a float32.
    """
    x = torch.rand(1, 1, 3, 20011)
    place = (torch.arange(19997, dtype=torch.float64) + 0.5) * (20011 / 19997) - 0.5
    below = place.long()
    share = place - below
    expected = x[..., below] * (1 - share) + x[..., below + 1] * share
    got, _ = run("cpp", x, (3, 19997))
    assert (got.double() - expected).abs().max() < 1e-6
    eager = F.interpolate(x, (3, 19997), mode="bilinear")
    assert (eager.double() - expected).abs().max() > 1e-4, "PyTorch has become exact: say so"


def test_result_one_pixel_wide_is_the_transposed_one(backend, seed):
    """PyTorch's own antialiased result is wrong there on a CPU."""
    x = torch.rand(2, 3, 17, 31)
    wide, _ = run(backend, x, (5, 1), antialias=True)
    tall, _ = run(backend, x.mT.contiguous(), (1, 5), antialias=True)
    torch.testing.assert_close(wide, tall.mT)


def test_gradient_is_the_transpose(backend, seed):
    """<resize(x), y> = <x, backward(y)>."""
    x, y = torch.randn(1, 2, 21, 34), torch.randn(1, 2, 50, 13)
    for align_corners, antialias in VARIANTS:
        options = {"align_corners": align_corners, "antialias": antialias}
        out, grad = run(backend, x, (50, 13), y, **options)
        left, right = (out.double() * y).sum(), (grad.double() * x).sum()
        assert abs(left - right) < 1e-4 * out.norm() * y.norm()


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_is_kept(backend, channels_last, seed):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 8, 6, 7).contiguous(memory_format=layout)
    out, _ = run(backend, x, (9, 10))
    assert out.is_contiguous(memory_format=layout)


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
        expected = run(backend, view.contiguous(), (13, 11))
        for got, want in zip(run(backend, view, (13, 11)), expected, strict=True):
            torch.testing.assert_close(got, want, msg=name)


def test_empty_batch(backend):
    out, grad = run(backend, torch.zeros(0, 3, 4, 5), (7, 3))
    assert out.shape == (0, 3, 7, 3) and grad.shape == (0, 3, 4, 5)


@needs_extension
def test_nan_stays_where_it_has_weight(seed):
    x = torch.rand(1, 1, 8, 8)
    cotangent = torch.rand(1, 1, 16, 16)
    cotangent[0, 0, 0, 0] = float("nan")
    _, grad = run("cpp", x, (16, 16), cotangent)
    assert grad[0, 0, 0, 0].isnan() and grad.isnan().sum() == 1


@needs_extension
def test_threads_and_runs_agree(seed):
    x = torch.randn(1, 4, 150, 170)
    results = []
    for count in (1, 2, 3, 7):
        with threads(count):
            results.append(run("cpp", x, (301, 99), antialias=True))
    for result in results[1:]:
        parity.assert_equal(result, results[0])


def test_gradcheck(seed):
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    for align_corners, antialias in VARIANTS:
        assert torch.autograd.gradcheck(
            lambda x, a=align_corners, b=antialias: resize_bilinear_reference(
                x, (3, 7), align_corners=a, antialias=b
            ),
            [x],
        )


@pytest.mark.slow
@needs_extension
def test_opcheck_compile_and_second_derivative(seed):
    x = torch.randn(2, 3, 6, 7, requires_grad=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs = x.detach().contiguous(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.dafast.resize_bilinear.default, (inputs, 9, 5, False, True))
        torch.library.opcheck(
            torch.ops.dafast.resize_bilinear_backward.default, (inputs, 9, 5, True, False)
        )
    with use_backend("cpp"):
        compiled = torch.compile(
            lambda x: resize_bilinear(x, (9, 5)), backend="aot_eager", fullgraph=True
        )
        (got,) = torch.autograd.grad(compiled(x).square().sum(), x)
        (grad,) = torch.autograd.grad(
            resize_bilinear(x, (9, 5)).square().sum(), x, create_graph=True
        )
        (second,) = torch.autograd.grad(grad.square().sum(), x)
    torch.testing.assert_close(got, grad.detach())
    wide = x.detach().double().requires_grad_()
    (grad,) = torch.autograd.grad(
        resize_bilinear_reference(wide, (9, 5)).square().sum(), wide, create_graph=True
    )
    (expected,) = torch.autograd.grad(grad.square().sum(), wide)
    torch.testing.assert_close(second.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "size", "message"),
    [
        (torch.zeros(3, 4, 4), (2, 2), r"\(3, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4), (2, 2), "H and W > 0"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int32), (2, 2), "int32"),
        (torch.zeros(1, 3, 4, 4), (0, 2), r"\(0, 2\)"),
    ],
)
def test_errors_name_what_was_given(x, size, message):
    with pytest.raises(ValueError, match=message):
        resize_bilinear(x, size)


@needs_extension
def test_extension_refuses_what_it_cannot_do():
    op = torch.ops.dafast_C.resize_bilinear
    x = torch.zeros(1, 2, 4, 4)
    for source, out, message in (
        (x.double(), x.double(), "no kernel for this dtype"),
        (x, x.half(), "the same for input and output"),
        (x, torch.zeros(1, 3, 8, 8), "channels differ"),
        (x[..., ::2], torch.zeros(1, 2, 8, 8), "strides"),
        (x, torch.zeros(1, 2, 8, 16)[..., ::2], "strides"),
        (x[0], torch.zeros(1, 2, 8, 8), "B, C, H, W"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(source, out, False, False)


@pytest.mark.gpu
@grid(GRID)
def test_gpu_matches_float64(shape, size, dtype, align_corners, antialias, channels_last):
    if why := _extension.why_not("cuda"):
        pytest.skip(why)
    options = {"align_corners": align_corners, "antialias": antialias}
    check("cuda", shape, size, dtype, channels_last, "cuda", **options)


@pytest.mark.gpu
def test_gpu_graph_capture_and_streams(seed):
    if why := _extension.why_not("cuda"):
        pytest.skip(why)
    x = torch.randn(2, 16, 37, 37, device="cuda")
    expected = run("cuda", x, (74, 74), align_corners=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        on_side = run("cuda", x, (74, 74), align_corners=True)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    static = x.clone()
    with torch.cuda.graph(graph):
        captured = run("cuda", static, (74, 74), align_corners=True)
    static.copy_(x)
    graph.replay()
    for a, b, c in zip(expected, on_side, captured, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
