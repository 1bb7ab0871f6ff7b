"""The decoder's tail: every backend against the float64 reference."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dafast.config import PRESETS
from dafast.models.dpt import FeatureFusionBlock, Scratch
from dafast.ops import (
    BackendError,
    bias_relu_add,
    decoder_tail,
    decoder_tail_reference,
    use_backend,
)
from dafast.ops.decoder_tail import _triton_limits
from tests.instruction_sets import CPP, INSTRUCTION_SETS, instruction_set, threads
from tests.ops import parity
from tests.pairwise import grid
from tests.tolerances import TOLERANCES

BACKENDS = ["reference", "triton", CPP]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Shape of the small map (B, C, h, w), size of the output, hidden channels.
SHAPES = [
    ((1, 32, 5, 11), (10, 40), 32),  # more than one tile both ways
    ((2, 12, 4, 5), (9, 8), 32),  # nano's channels: no multiple of a tile
    ((1, 5, 6, 7), (11, 13), 3),
    ((1, 16, 10, 12), (4, 5), 32),  # smaller than the map
    ((1, 48, 3, 6), (3, 6), 32),  # the same size
    ((2, 16, 1, 1), (5, 1), 32),
    ((1, 16, 3, 1), (1, 6), 32),
    ((1, 16, 2, 7), (1, 1), 32),
]


pytestmark = pytest.mark.usefixtures("poisoned")


def _inputs(seed, shape, hidden=32, dtype=torch.float32, device=None):
    """A channels-last map, and weights with outputs of order 1 on both sides of zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator)

    channels = shape[1]
    x = normal(*shape).contiguous(memory_format=torch.channels_last)
    weight1 = normal(hidden, channels, 3, 3) / (9 * channels) ** 0.5
    bias1, weight2 = 0.3 * normal(hidden), normal(1, hidden, 1, 1) / hidden**0.5
    bias2 = -F.conv2d(F.conv2d(x, weight1, bias1, padding=1).relu(), weight2).median().reshape(1)
    return tuple(t.to(device, dtype) for t in (x, weight1, bias1, weight2, bias2 + 0.1))


def _run(backend, size, x, *weights, **options):
    with use_backend(backend), torch.no_grad():
        return decoder_tail(x, size, *weights, **options)


def _exact(size, *inputs, **options):
    return _run("reference", size, *(t.double() for t in inputs), **options)


def _check(got, size, inputs, **options):
    """At most twice the error of PyTorch's own operations in this dtype, plus a floor."""
    expected = _exact(size, *inputs, **options)
    eager = _run("reference", size, *inputs, **options)
    assert got.dtype == torch.float32
    # The outputs are sums with cancellations; their scale is that of the terms, which is 1.
    parity.assert_within(got, expected, eager, scale=1, dtype=inputs[0].dtype)


@grid({"backend": BACKENDS, "shape, size, hidden": SHAPES, "dtype": DTYPES})
def test_matches_float64(backend, shape, size, hidden, dtype, seed, device):
    inputs = _inputs(seed, shape, hidden, dtype)
    if backend == "cpp" and dtype == torch.float16:
        with pytest.raises(BackendError, match="float32 and bfloat16 on a CPU"):
            _run(backend, size, *inputs)
        return
    _check(_run(backend, size, *inputs), size, inputs)


@grid(
    {
        "name": INSTRUCTION_SETS,
        "shape, size, hidden": [
            *SHAPES,
            ((2, 64, 20, 9), (41, 37), 32),
            # Several blocks of columns, and many pixels under one column.
            ((2, 16, 6, 60), (11, 205), 32),
            ((1, 16, 30, 200), (7, 9), 5),
        ],
        "dtype": [torch.float32, torch.bfloat16],
    }
)
def test_every_instruction_set(name, shape, size, hidden, dtype, seed):
    inputs = _inputs(seed, shape, hidden, dtype)
    with instruction_set(name):
        _check(_run("cpp", size, *inputs), size, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", [("cuda", 80), ("cuda", 90), ("cuda", 100), ("hip", "gfx942")])
def test_tiles_of_every_target(target, dtype, seed, tf32):
    """Several blocks of channels, in the order in which a GPU takes them."""
    from dafast.kernels.runtime import assume_target

    inputs = _inputs(seed, (1, 128, 2, 5), dtype=dtype)
    with assume_target(*target):
        got = _run("triton", (3, 9), *inputs)
    _check(got, (3, 9), inputs)


HOPPER = ("cuda", 90)  # multiplies before it interpolates, with more than 64 channels in 16 bits


@grid(
    {
        "shape, size": [
            ((1, 128, 2, 5), (3, 9)), ((1, 128, 3, 70), (4, 132)), ((2, 100, 2, 3), (5, 66)),
            ((1, 128, 3, 64), (3, 70)), ((1, 80, 2, 1), (3, 3)), ((1, 128, 3, 90), (4, 70)),
        ],
        "dtype": [torch.bfloat16, torch.float16],
    }
)  # fmt: skip
def test_products_before_the_interpolation(shape, size, dtype, seed, device):
    """Several programs along the width, padded channels, maps of all sizes, also smaller ones."""
    from dafast.kernels.runtime import assume_target

    inputs = _inputs(seed, shape, dtype=dtype)
    with assume_target(*HOPPER):
        got = _run("triton", size, *inputs)
    _check(got, size, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_interpolation_by_a_product_has_no_stripes(dtype, device):
    """The weights of every column sum to 1: a map without detail stays without detail."""
    from dafast.kernels.runtime import assume_target

    x = torch.full((1, 128, 3, 41), 0.7).to(dtype)
    weight1 = torch.zeros(1, 128, 3, 3)
    weight1[0, 0, 1, 1] = 1
    weights = weight1, torch.zeros(1), torch.ones(1, 1, 1, 1), torch.zeros(1)
    with assume_target(*HOPPER):
        got = _run("triton", (5, 71), x, *weights)
    assert torch.equal(got, x[0, 0, 0, 0].float().expand_as(got))


@pytest.mark.slow
def test_nan_shows_with_products_before_the_interpolation(seed, device):
    """It spreads over the columns of a program at most, in the same rows."""
    from dafast.kernels.runtime import assume_target

    x, *weights = _inputs(seed, (1, 128, 6, 70), dtype=torch.bfloat16)
    x[0, 3, 2, 4] = float("nan")
    expected = _run("reference", (12, 140), x, *weights).isnan()
    with assume_target(*HOPPER):
        got = _run("triton", (12, 140), x, *weights).isnan()
    rows = expected.any(3, keepdim=True)
    assert expected.any() and (got | ~expected).all()
    assert not got[..., 64:].any() and not (got & ~rows).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_networks_end(backend, seed, device):
    """Written out with modules, as the official decoder has it."""
    x, *weights = _inputs(seed, (1, 16, 6, 8))
    modules = nn.Sequential(
        nn.Upsample((11, 14), mode="bilinear", align_corners=True),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1), nn.ReLU(),
    )  # fmt: skip
    with torch.no_grad():
        for parameter, value in zip(modules.parameters(), weights, strict=True):
            parameter.copy_(value)
        expected = modules(x)
    got = _run(backend, (11, 14), x, *weights)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert 0 < (got == 0).sum() < got.numel(), "the last ReLU is not tested"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sigmoid(backend, dtype, seed, device):
    inputs = _inputs(seed, (1, 16, 5, 6), dtype=dtype)
    got = _run(backend, (9, 11), *inputs, activation="sigmoid")
    _check(got, (9, 11), inputs, activation="sigmoid")
    assert 0 < got.min() < 0.5 < got.max() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_exp(backend, dtype, seed, device):
    x, weight1, bias1, weight2, bias2 = _inputs(seed, (1, 16, 5, 6), dtype=dtype)
    inputs = (x, weight1, bias1, weight2 / 4, bias2 / 4)  # of order 1 after the exponential
    got = _run(backend, (9, 11), *inputs, activation="exp")
    _check(got, (9, 11), inputs, activation="exp")
    assert 0 < got.min() < 1 < got.max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_border_is_that_of_the_upsampled_map(backend, device):
    """All ones and weights of one: a pixel counts its neighbours within the upsampled map."""
    ones = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), torch.zeros(1), torch.ones(1, 1, 1, 1)
    got = _run(backend, (5, 40), *ones, torch.zeros(1))[0, 0]
    rows, columns = torch.full((5,), 3.0), torch.full((40,), 3.0)
    rows[[0, -1]] = columns[[0, -1]] = 2.0
    torch.testing.assert_close(got, rows[:, None] * columns)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_strides(backend, seed, device):
    x, *weights = _inputs(seed, (2, 16, 4, 5))
    wide = torch.randn(2, 12, 9, 24).permute(0, 3, 1, 2)  # channels last within a larger map
    wide[:, 4:20, 3:7, 1:6] = x
    views = {
        "contiguous": x.contiguous(),
        "a crop": wide[:, 4:20, 3:7, 1:6],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "every other row": x.repeat_interleave(2, dim=2)[:, :, ::2],
        "batch of stride 0": x[:1].expand(2, -1, -1, -1),
    }
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    expected = _run(backend, (6, 9), x, *weights)
    for name, view in views.items():
        assert name == "contiguous" or not view.is_contiguous()
        got = _run(backend, (6, 9), view, *weights)
        wanted = expected[:1].expand(2, -1, -1, -1) if "batch" in name else expected
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, msg=name)


def test_triton_copies_no_channels_last_input(seed, monkeypatch, device):
    x, *weights = _inputs(seed, (1, 16, 4, 5))
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    copied = []
    original = torch.Tensor.contiguous

    def contiguous(self, **options):
        out = original(self, **options)
        if out.data_ptr() != self.data_ptr():
            copied.append(tuple(self.shape))
        return out

    monkeypatch.setattr(torch.Tensor, "contiguous", contiguous)
    _run("triton", (7, 8), x, *weights)
    assert not copied


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_another_dtype(backend, seed, device):
    """Autocast: the map comes in bfloat16, the weights stay in float32."""
    x, *weights = _inputs(seed, (1, 16, 4, 5))
    x = x.bfloat16()
    got = _run(backend, (7, 8), x, *weights)
    _check(got, (7, 8), (x, weights[0].bfloat16(), *weights[1:]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_shows(backend, seed, device):
    x, *weights = _inputs(seed, (1, 16, 6, 6))
    x[0, 3, 2, 4] = float("nan")
    got, expected = (_run(b, (12, 12), x, *weights) for b in (backend, "reference"))
    assert 0 < expected.isnan().sum() < expected.numel()
    assert torch.equal(got.isnan(), expected.isnan())


@pytest.mark.parametrize("backend", ["triton", CPP])
def test_is_bit_equal_run_to_run(backend, seed, device):
    inputs = _inputs(seed, (1, 16, 3, 6), dtype=torch.bfloat16)
    assert torch.equal(_run(backend, (5, 34), *inputs), _run(backend, (5, 34), *inputs))


@pytest.mark.parametrize("backend", ["triton", CPP])
def test_empty_batch(backend, seed, device):
    x, *weights = _inputs(seed, (1, 16, 4, 4))
    assert _run(backend, (7, 7), x[:0], *weights).shape == (0, 1, 7, 7)


def test_cpp_does_not_depend_on_the_threads(seed):
    inputs = _inputs(seed, (3, 16, 9, 6), dtype=torch.bfloat16)
    outputs = []
    for count in (1, 2, 3):
        with threads(count):
            outputs.append(_run("cpp", (40, 34), *inputs))
    assert all(torch.equal(out, outputs[0]) for out in outputs)


def test_gradients_take_the_reference(fixed_seed):
    """The inputs are fixed: of some draws a step of gradcheck crosses a kink."""
    x, *weights = _inputs(fixed_seed, (1, 4, 3, 3), hidden=2, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, *weights)]
    assert torch.autograd.gradcheck(
        lambda x, *w: decoder_tail_reference(x, (5, 4), *w, activation="sigmoid"), inputs
    )
    assert decoder_tail(x, (5, 4), *weights).requires_grad
    with use_backend("triton"), pytest.raises(BackendError, match="has no backward"):
        decoder_tail(x, (5, 4), *weights)


def test_triton_says_why_not(seed):
    x, *weights = _inputs(seed, (1, 16, 3, 3))
    far = torch.empty_strided(x.shape, (1, 1, 2**31, 1), device="meta")
    assert "less than 2^31 apart" in _triton_limits(far, (5, 5), *weights)
    many = [weights[0].repeat(2, 1, 1, 1), weights[1].repeat(2), weights[2].repeat(1, 2, 1, 1)]
    for arguments, message in [
        ((x.double(), *weights), "not torch.float64"),
        ((x, *many, weights[3]), "up to 32 hidden channels, not 64"),
    ]:
        with use_backend("triton"), torch.no_grad(), pytest.raises(BackendError, match=message):
            decoder_tail(arguments[0], (5, 5), *arguments[1:])


def test_bad_input(seed):
    x, weight1, bias1, weight2, bias2 = _inputs(seed, (1, 4, 3, 3))
    good = [x, (5, 5), weight1, bias1, weight2, bias2]
    for position, bad, message in [
        (0, x[0], "B, C, h, w"), (2, weight1[:, :2], "weight1"), (3, bias1[:2], "bias1"),
        (4, weight2[:, :, 0], "weight2"), (0, x.int(), "floating point"), (1, (5, 0), "empty"),
        (0, x[:, :, :0], "empty"), (1, (5,), "height, width"),
    ]:  # fmt: skip
        arguments = [*good]
        arguments[position] = bad
        with pytest.raises(ValueError, match=message):
            decoder_tail(*arguments)
    with pytest.raises(ValueError, match="relu, sigmoid, exp"):
        decoder_tail(*good, activation="tanh")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", CPP])
def test_opcheck_and_compile(backend, seed, monkeypatch):
    monkeypatch.undo()  # opcheck compares allocations of its own
    x, *weights = _inputs(seed, (1, 16, 4, 5))
    with use_backend(backend), torch.no_grad():
        torch.compiler.reset()
        torch.library.opcheck(
            torch.ops.dafast.decoder_tail.default, (x, 7, 8, *weights, False, backend)
        )
        compiled = torch.compile(decoder_tail, backend="aot_eager", fullgraph=True)
        got = compiled(x, (7, 8), *weights)
    torch.testing.assert_close(got, _run(backend, (7, 8), x, *weights))


def _scratch(seed, activation, dtype=torch.float32):
    """A decoder of 32 channels with maps for it; the output ends on both sides of its bias."""
    torch.manual_seed(seed)
    scratch = Scratch((8, 8, 8, 8), 32, activation).to(dtype)
    maps = [torch.randn(1, 8, n, n + 1).to(dtype) for n in (8, 4, 2, 1)]
    return scratch, maps


def _calls(monkeypatch):
    import dafast.kernels.decoder_tail as kernels

    calls = []
    original = kernels.decoder_tail_fwd
    monkeypatch.setattr(
        kernels, "decoder_tail_fwd", lambda *args: calls.append(args) or original(*args)
    )
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_decoder_takes_the_kernel_in_inference_alone(activation, dtype, seed, monkeypatch):
    calls = _calls(monkeypatch)
    scratch, maps = _scratch(seed, activation, dtype)
    with use_backend("triton"):
        trained = scratch(maps, (18, 19))
        assert not calls and trained.requires_grad
        with torch.inference_mode():
            got = scratch(maps, (18, 19))
            assert len(calls) == 1 and got.dtype == torch.float32
            handle = scratch.output_conv2[0].register_forward_hook(lambda *_: None)
            watched = scratch(maps, (18, 19))
            handle.remove()
            assert len(calls) == 1
    with torch.no_grad(), use_backend("reference"):
        expected = scratch(maps, (18, 19))
        assert len(calls) == 1
    for value in (got, trained, watched):
        error = (value - expected).abs().max() / expected.abs().max()
        assert error <= TOLERANCES[dtype].model


def test_training_adds_the_bias_of_the_tail_with_the_relu(seed, monkeypatch):
    """In one pass over a map of the photo's size, forward and backward, with the same gradients."""
    scratch, maps = _scratch(seed, "sigmoid", torch.float64)
    parameters, fused = list(scratch.output_conv2.parameters()), []

    def gradients():
        return torch.autograd.grad(scratch(maps, (18, 19)).square().sum(), parameters)

    with use_backend("reference"):
        expected = gradients()
    scratch, maps = scratch.float(), [x.float() for x in maps]
    parameters = list(scratch.output_conv2.parameters())

    def counted(x, *args, **options):
        fused.append((tuple(x.shape[2:]), options))
        return bias_relu_add(x, *args, **options)

    monkeypatch.setattr("dafast.layers.convolution.bias_relu_add", counted)
    with use_backend("triton"):
        got = gradients()
    assert ((18, 19), {"relu": True}) in fused
    # A sum near 0 may pass the ReLU or not: one of thousands of terms of the first two gradients.
    for value, wanted, bound in zip(got, expected, (0.05, 0.05, 1e-4, 1e-4), strict=True):
        assert (value - wanted).norm() <= bound * wanted.norm()


@pytest.mark.slow
def test_decoder_compiles_and_autocasts_with_the_kernel(seed, monkeypatch):
    scratch, maps = _scratch(seed, "relu")
    compiled = torch.compile(scratch, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = scratch(maps, (18, 19))
        with use_backend("triton"):
            torch.testing.assert_close(compiled(maps, (18, 19)), expected, rtol=1e-4, atol=1e-5)
            calls = _calls(monkeypatch)
            with torch.autocast("cpu", torch.bfloat16):
                got = scratch(maps, (18, 19))
    assert len(calls) == 1 and calls[0][0].dtype == torch.bfloat16
    assert (got - expected).abs().max() <= TOLERANCES[torch.bfloat16].model * expected.abs().max()


def test_convolution_1x1_and_resize_commute(seed):
    """On every backend `out_conv` runs on the small map, for the same function."""
    torch.manual_seed(seed)
    block = FeatureFusionBlock(6).double()
    x, seen = torch.randn(2, 6, 5, 7, dtype=torch.float64), []
    block.out_conv.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    got = block(x, (11, 9))
    assert [tuple(t.shape) for t in seen] == [(2, 6, 5, 7)]
    large = F.interpolate(block.resConfUnit2(x), (11, 9), mode="bilinear", align_corners=True)
    torch.testing.assert_close(got, block.out_conv(large), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("features", sorted({p.features for p in PRESETS.values()}))
def test_channels_of_every_model_are_served(features, seed, device):
    inputs = _inputs(seed, (1, features // 2, 3, 4), dtype=torch.bfloat16)
    _check(_run("triton", (4, 7), *inputs), (4, 7), inputs)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "size", "hidden"), SHAPES)
def test_gpu_tf32(shape, size, hidden, seed, tf32):
    inputs = _inputs(seed, shape, hidden, device="cuda")
    # TF32 has float16's ten bits of mantissa; pixels and weights are rounded to it.
    bound = 8 * TOLERANCES[torch.float16].op
    exact = _exact(size, *inputs)
    error = (_run("triton", size, *inputs) - exact).abs().max()
    assert error <= bound * max(1.0, exact.abs().max().item())


@pytest.mark.gpu
@grid(
    {
        "channels": [12, 32, 64, 128],
        "dtype": DTYPES,
        "memory_format": [torch.channels_last, torch.contiguous_format],
    }
)
def test_gpu_graph_capture_and_streams(channels, dtype, memory_format, seed, monkeypatch):
    monkeypatch.undo()
    inputs = _inputs(seed, (2, channels, 148, 100), dtype=dtype, device="cuda")
    inputs = (inputs[0].contiguous(memory_format=memory_format), *inputs[1:])
    size = (259, 175)
    for stream in [torch.cuda.Stream() for _ in range(2)]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = [_run("triton", size, *inputs) for _ in range(3)]
        stream.synchronize()
        for out in outputs:
            _check(out, size, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _run("triton", size, *inputs)
    captured.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    _check(captured, size, inputs)
