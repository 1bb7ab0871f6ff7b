"""Rows in e4m3: the kernel against the specification, to the bit, and the specification itself."""

import math

import pytest
import torch
import torch.nn.functional as F

from dafast.ops import BackendError, quantize_fp8, use_backend
from dafast.ops.quantize_fp8 import why_no_fp8
from tests.pairwise import grid

BACKENDS = ["reference", "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(3, 384), (2, 5, 96), (7, 50), (4, 1), (9,)]

pytestmark = pytest.mark.usefixtures("poisoned")


def inputs(seed, shape, dtype=torch.float32):
    """Rows with magnitudes over some six powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(3 * torch.randn(shape, generator=generator))
    return (torch.randn(shape, generator=generator) * spread).clamp(-1e4, 1e4).to(dtype)


def run(backend, x, **options):
    with use_backend(backend):
        return quantize_fp8(x, **options)


def bits(values):
    """Codes of e4m3, without the sign of zero, which the interpreter of Triton 3.6 loses."""
    codes = values.view(torch.uint8)
    return torch.where(codes == 128, 0, codes)


def half_steps(exact, scale):
    """Half the distance of neighbours in e4m3 at a value, in float64: 3 digits, down to 2^-9."""
    scaled = (exact / scale.clamp_min(1e-300)[..., None]).abs().clamp_min(2**-6)
    return scale[..., None] * 2.0 ** (scaled.log2().floor() - 4)


@grid({"backend": BACKENDS, "shape": SHAPES, "dtype": DTYPES, "gelu": [False, True]})
def test_rounds_to_the_nearest(backend, shape, dtype, gelu, seed, device):
    x = inputs(seed, shape, dtype)
    rows = run(backend, x, gelu=gelu)
    exact = F.gelu(x.double()) if gelu else x.double()
    assert rows.values.dtype == torch.float8_e4m3fn and rows.values.shape == shape
    assert rows.scale.dtype == torch.float32 and rows.scale.shape == shape[:-1]
    most = exact.abs().amax(-1)
    # GELU in float32 is off by some 1e-7 of x, and a row's scale with it.
    slack = 1e-6 * (x.double().abs().amax(-1) + most)[..., None]
    assert ((rows.scale.double() - most / 448).abs() <= slack[..., 0] / 448).all()
    assert ((rows.dequantize() - exact).abs() <= half_steps(exact, most / 448) + slack).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_has_the_bits_of_the_reference(dtype, seed, device):
    x = inputs(seed, (6, 300), dtype)
    got, expected = (run(backend, x) for backend in ("triton", "reference"))
    assert torch.equal(bits(got.values), bits(expected.values))
    assert torch.equal(got.scale, expected.scale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_e4m3_holds_is_exact(backend, seed, device):
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    assert every.max() == 448
    factors = torch.tensor([[1.0], [0.125], [2.0**40]])
    rows = run(backend, every * factors)
    assert torch.equal(rows.dequantize(), every * factors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extremes(backend, seed, device):
    x = inputs(seed, (6, 40)).clamp(-9, 9)
    x[0], x[1, 3], x[2, 7], x[3] = 0, math.nan, math.inf, 1e-40
    x[4] *= 1e37
    rows = run(backend, x)
    found = rows.dequantize()
    assert rows.scale[0] == 0 and (found[0] == 0).all() and found[3].abs().max() <= 1e-40
    # What a product makes of a row is the sum of its values, times the scale.
    products = rows.values.float().sum(1) * rows.scale
    assert not products[1:3].isfinite().any() and found[4:].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)])
def test_empty(backend, shape, device):
    rows = run(backend, torch.ones(shape))
    assert rows.values.shape == shape and rows.scale.shape == shape[:-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_rows(backend, seed, device):
    x = inputs(seed, (4, 30, 20)).mT
    got, expected = run(backend, x), run(backend, x.contiguous())
    assert torch.equal(got.dequantize(), expected.dequantize())


def test_limits():
    for wrong in (torch.zeros(()), torch.zeros(3, 0), torch.zeros(3, 4, dtype=torch.int32)):
        with pytest.raises(ValueError, match="quantize_fp8 needs"):
            quantize_fp8(wrong)
    with pytest.raises(BackendError, match="no backward"):
        run("triton", torch.zeros(2, 8, requires_grad=True))
    with pytest.raises(BackendError, match="up to 8192 channels"):
        run("triton", torch.zeros(1, 8193))


def test_why_a_device_has_no_e4m3(monkeypatch):
    assert "NVIDIA GPU, not 'cpu'" in why_no_fp8(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    gpu = torch.device("cuda", 0)
    assert why_no_fp8(gpu) == "fp8 needs compute capability 8.9 or later; the GPU has 8.6"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert why_no_fp8(gpu) == ""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "AMD" in why_no_fp8(gpu)


def test_opcheck(seed, monkeypatch, device):
    monkeypatch.undo()  # opcheck compares allocations of its own
    x = inputs(seed, (3, 32))
    torch.library.opcheck(
        torch.ops.dafast.quantize_fp8.default, (x, True),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


@pytest.mark.gpu
def test_gpu_graph_capture(seed):
    if why := why_no_fp8(torch.device("cuda")):
        pytest.skip(why)
    x = inputs(seed, (1370, 1536), torch.bfloat16).cuda()
    run("triton", x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows = run("triton", x)
    graph.replay()
    expected = run("reference", x)
    assert torch.equal(rows.values.view(torch.uint8), expected.values.view(torch.uint8))
    assert torch.equal(rows.scale, expected.scale)
