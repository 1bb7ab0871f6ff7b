"""Linear layers in e4m3: PyTorch's product against the specification."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from dafast.ops import BackendError, Fp8Rows, linear_fp8, quantize_fp8, use_backend
from tests.tolerances import TOLERANCES

BACKENDS = ["reference", "scaled_mm"] if torch.__version__ >= "2.13" else ["reference"]
SHAPES = [((5, 32), 48), ((2, 33, 64), 16), ((1, 16), 32)]


def inputs(seed, shape, columns):
    generator = torch.Generator().manual_seed(seed)
    sizes = (shape, (columns, shape[-1]), (columns,))
    x, weight, bias = (torch.randn(size, generator=generator) for size in sizes)
    return quantize_fp8(x), quantize_fp8(weight), bias.bfloat16()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "columns"), SHAPES)
def test_is_the_product_of_the_rows(backend, shape, columns, seed):
    x, weight, bias = inputs(seed, shape, columns)
    with use_backend(backend), torch.no_grad():
        got = linear_fp8(x, weight, bias)
    left, right = x.dequantize().double(), weight.dequantize().double()
    exact = F.linear(left, right, bias.double())
    # Of the terms, which may cancel: one rounding at the end, and on a CPU one of the sum.
    terms = F.linear(left.abs(), right.abs(), bias.double().abs())
    assert got.dtype == torch.bfloat16 and got.shape == (*shape[:-1], columns)
    assert ((got.double() - exact).abs() <= 2 * TOLERANCES[torch.bfloat16].op * terms).all()


def test_other_dtypes_and_sizes_take_the_reference(seed):
    x, weight, bias = inputs(seed, (3, 20), 7)
    out = linear_fp8(x, weight, bias, dtype=torch.float32)
    left, right = x.dequantize().double(), weight.dequantize().double()
    exact = F.linear(left, right, bias.double())
    terms = F.linear(left.abs(), right.abs(), bias.double().abs())
    assert out.dtype == torch.float32 and ((out - exact).abs() <= 1e-5 * terms).all()
    with use_backend("scaled_mm"), torch.no_grad():
        with pytest.raises(BackendError, match="gives bfloat16"):
            linear_fp8(x, weight, bias, dtype=torch.float32)
        with pytest.raises(BackendError, match="multiples of 16"):
            linear_fp8(x, weight, bias)


def test_degenerate_rows():
    x = torch.ones(4, 32)
    x[0], x[1, 3], x[2, 5] = 0, float("nan"), float("inf")
    weight, bias = quantize_fp8(torch.ones(16, 32)), torch.arange(16).bfloat16()
    for backend in BACKENDS:
        with use_backend(backend), torch.no_grad():
            got = linear_fp8(quantize_fp8(x), weight, bias)
            assert linear_fp8(quantize_fp8(x[:0]), weight, bias).shape == (0, 16)
        assert torch.equal(got[0], bias) and got[1:3].isnan().all()
        assert torch.equal(got[3], 32 + bias)


def test_on_a_gpu_pytorch_accepts_the_layout(monkeypatch):
    """The checks of sizes, strides and scales that PyTorch makes of tensors on a GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with FakeTensorMode(), torch.no_grad(), use_backend("scaled_mm"):
        rows = [
            Fp8Rows(
                torch.empty(shape, dtype=torch.float8_e4m3fn, device="cuda"),
                torch.empty(shape[:-1], device="cuda"),
            )
            for shape in ((2, 1370, 384), (1536, 384))
        ]
        out = linear_fp8(*rows, torch.empty(1536, dtype=torch.bfloat16, device="cuda"))
        assert out.shape == (2, 1370, 1536) and out.device.type == "cuda"
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        with pytest.raises(BackendError, match=r"8\.9 or later; the GPU has 8\.0"):
            linear_fp8(*rows, torch.empty(1536, device="cuda"))


def test_bad_input():
    x, weight = quantize_fp8(torch.ones(2, 8)), quantize_fp8(torch.ones(3, 8))
    bias = torch.zeros(3)
    for wrong in ((x, quantize_fp8(torch.ones(3, 7)), bias), (x, weight, bias[:2])):
        with pytest.raises(ValueError, match="linear_fp8 needs x"):
            linear_fp8(*wrong)
    with pytest.raises(ValueError, match="float8_e4m3fn expected"):
        linear_fp8(Fp8Rows(torch.ones(2, 8), x.scale), weight, bias)
    with pytest.raises(ValueError, match="floating point expected"):
        linear_fp8(x, weight, bias.int())


@pytest.mark.gpu
def test_gpu_matches_the_reference(seed):
    from dafast.ops.quantize_fp8 import why_no_fp8

    if why := why_no_fp8(torch.device("cuda")):
        pytest.skip(why)
    x, weight, bias = inputs(seed, (1370, 384), 1536)
    x, weight = (Fp8Rows(*(each.cuda() for each in rows)) for rows in (x, weight))
    with torch.no_grad():
        with use_backend("scaled_mm"):
            got = linear_fp8(x, weight, bias.cuda())
        with use_backend("reference"):
            expected = linear_fp8(x, weight, bias.cuda())
    # Hopper adds up the products of e4m3 with 13 digits.
    error = (got.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= 2 * TOLERANCES[torch.bfloat16].op
