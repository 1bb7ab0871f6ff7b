"""Attention: every backend against the float64 reference, outputs and gradients."""

import pytest
import torch

from dafast.ops import (
    flash_attention,
    flash_attention_qkvpacked,
    flash_attention_reference,
    use_backend,
)

SHAPES = [(1, 1, 1, 64), (2, 193, 3, 64), (1, 77, 2, 32), (3, 50, 6, 80), (0, 5, 2, 64)]


def _error(actual, expected):
    return (actual.double() - expected).abs().max().item() if actual.numel() else 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_matches_float64(backend, shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    qkv = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    cotangent = torch.randn(shape, generator=generator).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in qkv]
    expected = flash_attention_reference(*exact)
    expected_grads = torch.autograd.grad(expected, exact, cotangent.double())
    with use_backend(backend):
        out = flash_attention(*qkv)
    grads = torch.autograd.grad(out, qkv, cotangent)
    assert out.dtype == dtype and out.shape == shape
    # PyTorch's own path in the same dtype sets the scale of the error; the floor is for zeros.
    eager = [t.detach().requires_grad_() for t in qkv]
    q, k, v = (t.transpose(1, 2) for t in eager)
    baseline = ((q @ k.mT * shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2)
    baseline_grads = torch.autograd.grad(baseline, eager, cotangent)
    floor = 3e-6 if dtype == torch.float32 else 2e-2
    assert _error(out, expected) <= 2 * _error(baseline, expected) + floor
    for got, base, want in zip(grads, baseline_grads, expected_grads, strict=True):
        assert _error(got, want) <= 2 * _error(base, want) + floor


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_scale_strides_and_packed(backend, seed):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(2, 41, 3, 2, 64, generator=generator)
    q, k, v = (t.contiguous() for t in qkv.unbind(2))
    with use_backend(backend):
        packed = flash_attention_qkvpacked(qkv, scale=0.3)
        plain = flash_attention(q, k, v, scale=0.3)
        sliced = flash_attention(q[:, ::2], k, v, scale=0.3)
    exact = flash_attention_reference(q.double(), k.double(), v.double(), scale=0.3)
    torch.testing.assert_close(packed.double(), exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.double(), exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(sliced.double(), exact[:, ::2], atol=1e-5, rtol=0)


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
