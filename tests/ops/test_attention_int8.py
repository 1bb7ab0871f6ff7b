"""int8 attention: the kernel against the specification and against attention in float64."""

import pytest
import torch

from dafast.ops import BackendError, attention_int8, attention_int8_reference, use_backend
from dafast.ops.linear_int8 import why_slow_int8
from tests.instruction_sets import INT8_SETS, instruction_set, threads

SHAPES = [(1, 70, 2, 64), (2, 37, 1, 32), (1, 1, 3, 16), (1, 17, 1, 128), (1, 801, 1, 80)]
fast = pytest.mark.skipif(bool(why_slow_int8()), reason=why_slow_int8() or "it is there")


def inputs(batch, tokens, heads, dims, dtype=torch.float32):
    return (1.5 * torch.randn(batch, tokens, 3, heads, dims)).to(dtype)


def exact(qkv):
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    return ((q @ k.mT * qkv.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2)


def error(got, wanted):
    """Root mean square of the difference over that of the largest channels' values."""
    return float((got.double() - wanted).square().mean().sqrt() / wanted.abs().amax())


@fast
@pytest.mark.parametrize("name", INT8_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_is_the_specification(shape, dtype, name, seed):
    """To within the rounding of the probabilities: 1 / 254 of the largest one of a row."""
    qkv = inputs(*shape, dtype)
    with instruction_set(name), use_backend("cpp"):
        got = attention_int8(qkv)
    wanted = attention_int8_reference(qkv.float(), qkv.shape[-1] ** -0.5).double()
    assert got.dtype == dtype and got.shape == (*shape[:3], shape[3])
    assert error(got, wanted) < 6e-3
    assert error(got, exact(qkv)) < 1.5e-2


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=fast)])
def test_what_all_keys_share_costs_no_digits(backend, seed):
    qkv = inputs(1, 64, 2, 32)
    qkv[:, :, 1] += 50 * torch.randn(2, 32)
    with use_backend(backend):
        assert error(attention_int8(qkv), exact(qkv)) < 2e-2


@fast
def test_many_small_probabilities_keep_their_sum():
    """Each is under half a step of 8 bits; together they are a third of the sum."""
    qkv = torch.zeros(1, 1024, 3, 1, 16)
    qkv[:, :, 0, :, 0] = 4
    qkv[:, 3, 1, :, 0] = 7.6
    qkv[:, :, 2] = 1
    qkv[:, 3, 2] = 0
    wanted = exact(qkv).mean()
    assert 0.25 < wanted < 0.45
    with use_backend("cpp"):
        got = attention_int8(qkv)
    assert abs(got.mean() - wanted) < 0.03 * wanted


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=fast)])
def test_zeros_and_values_that_are_not_finite(backend, seed):
    qkv = inputs(1, 20, 2, 16)
    with use_backend(backend):
        torch.testing.assert_close(
            attention_int8(torch.zeros(1, 5, 3, 2, 16)), torch.zeros(1, 5, 2, 16)
        )
        assert attention_int8(qkv[:, :0]).shape == (1, 0, 2, 16)
        for part, seen in ((0, (slice(None), 4, 0)), (1, (slice(None), slice(None), 0))):
            wrong = qkv.clone()
            wrong[0, 4, part, 0, 3] = float("nan")
            got = attention_int8(wrong)
            assert got[seen].isnan().all() and got[:, :, 1].isfinite().all()
        wrong = qkv.clone()
        wrong[0, 4, 2, 0, 3] = float("inf")
        got = attention_int8(wrong)
        assert not got[:, :, 0, 3].isfinite().any() and got[..., 4:].isfinite().all()


@fast
def test_threads_and_strides(seed):
    qkv = inputs(2, 200, 3, 32, torch.bfloat16)
    outputs = []
    for count in (1, 3):
        with threads(count):
            outputs.append(attention_int8(qkv))
    assert torch.equal(*outputs)
    other = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(attention_int8(other), outputs[0])


def test_limits(seed):
    qkv = inputs(1, 8, 2, 16)
    with instruction_set("portable"):
        with use_backend("cpp"), pytest.raises(BackendError, match="needs AVX2"):
            attention_int8(qkv)
        assert torch.equal(attention_int8(qkv), attention_int8_reference(qkv, 0.25))
    with use_backend("cpp"), pytest.raises(BackendError, match="head_dim of 16"):
        attention_int8(inputs(1, 8, 2, 24))
    for wrong in (qkv[:, :, 0], qkv[:, :, :2], qkv.int()):
        with pytest.raises(ValueError, match="attention_int8 needs"):
            attention_int8(wrong)


@fast
def test_custom_op(seed):
    qkv = inputs(1, 9, 2, 16)
    torch.library.opcheck(torch.ops.dafast.attention_int8.default, (qkv, 0.25))
