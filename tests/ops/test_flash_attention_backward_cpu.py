"""Attention's C++ backward on the CPU, with every instruction set of this machine."""

import itertools

import pytest
import torch

from dafast.ops import (
    _extension,
    flash_attention,
    flash_attention_qkvpacked,
    flash_attention_reference,
    flash_attention_varlen,
    use_backend,
)
from tests.instruction_sets import INSTRUCTION_SETS, instruction_set, threads
from tests.ops import parity
from tests.pairwise import grid

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ("out", "q", "k", "v")

pytestmark = pytest.mark.skipif(
    _extension.why_not("cpp", "flash_attention_backward") != "",
    reason=_extension.why_not("cpp", "flash_attention_backward"),
)


def _draw(seed, shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _eager(q, k, v, scale):
    """PyTorch's plain path in the dtype of its inputs: its error is the yardstick."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2)


def _check(got, inputs, cotangent, scale):
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = parity.evaluate(
        lambda *x: flash_attention_reference(*x, scale=scale),
        [x.double() for x in inputs],
        [cotangent],
    )
    plain = parity.evaluate(lambda *x: _eager(*x, scale), inputs, [cotangent])
    # Where terms of order 1 cancel to 0, as with a single key.
    parity.assert_all_within(got, exact, plain, names=NAMES, steps=4, scale=1, slack=1e-5)


@grid(
    {
        "name": INSTRUCTION_SETS,
        "head_dim": range(16, 129, 16),
        "tokens": [(37, 70), (13, 1), (1, 33), (24, 64), (25, 16), (49, 97)],
        "dtype": DTYPES,
    }
)
def test_matches_float64(name, head_dim, tokens, dtype, seed, poisoned):
    inputs = [
        _draw(seed + i, (2, n, 2, head_dim), dtype).requires_grad_()
        for i, n in enumerate((tokens[0], tokens[1], tokens[1]))
    ]
    cotangent = _draw(seed + 3, (2, tokens[0], 2, head_dim), dtype)
    with instruction_set(name), use_backend("cpp"):
        got = parity.evaluate(lambda *x: flash_attention(*x, scale=0.2), inputs, [cotangent])
    _check(got, inputs, cotangent, 0.2)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_each_sequence_on_its_own(name, seed, poisoned):
    lengths = (17, 0, 40, 1)
    inputs = [_draw(seed + i, (58, 2, 48)).requires_grad_() for i in range(3)]
    cotangent = _draw(seed + 3, (58, 2, 48))
    ends = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    with instruction_set(name), use_backend("cpp"):
        got = parity.evaluate(
            lambda *x: flash_attention_varlen(*x, ends, 40, scale=0.3), inputs, [cotangent]
        )
    for a, b in itertools.pairwise(ends.tolist()):
        if b > a:
            parts = [x[None, a:b] for x in inputs]
            _check([x[None, a:b] for x in got], parts, cotangent[None, a:b], 0.3)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_packed_gradient_and_threads(dtype, seed, poisoned):
    """The packed gradient has the bits of the three, for any number of threads."""
    qkv = _draw(seed, (3, 41, 3, 2, 64), dtype).requires_grad_()
    cotangent = _draw(seed + 1, (2, 64, 3, 41), dtype).permute(2, 3, 0, 1)  # of any strides
    with use_backend("cpp"):
        out = flash_attention(*qkv.unbind(2))
        (expected,) = torch.autograd.grad(out, qkv, cotangent)
        for count in (1, 2, 5):
            with threads(count):
                out = flash_attention_qkvpacked(qkv)
                (got,) = torch.autograd.grad(out, qkv, cotangent)
            assert torch.equal(got, expected)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_large_logits(name, seed):
    """Far from 0, where an exponential without its maximum would overflow."""
    q, k, v = (_draw(seed + i, (1, 50, 1, 32)) for i in range(3))
    q[..., 0], k[..., 0] = 100, 30 + 0.01 * k[..., 0]
    inputs = [x.requires_grad_() for x in (q, k, v)]
    cotangent = _draw(seed + 3, (1, 50, 1, 32))
    with instruction_set(name), use_backend("cpp"):
        got = parity.evaluate(flash_attention, inputs, [cotangent])
    exact = parity.evaluate(flash_attention_reference, [x.double() for x in inputs], [cotangent])
    plain = parity.evaluate(lambda *x: _eager(*x, 32**-0.5), inputs, [cotangent])
    parity.assert_all_within(got, exact, plain, names=NAMES, steps=4, scale=1, slack=1e-3)


def test_no_keys_and_no_queries(poisoned):
    few, none = torch.ones(2, 3, 1, 32), torch.ones(2, 0, 1, 32)
    with use_backend("cpp"):
        for shapes in ((few, none, none), (none, few, few)):
            inputs = [x.clone().requires_grad_() for x in shapes]
            flash_attention(*inputs).sum().backward()
            assert not any(x.grad.any() for x in inputs)


def test_the_extension_checks_what_it_is_given():
    _extension.load()
    x = torch.zeros(1, 6, 2, 32)
    names = ("grad", "q", "k", "v", "grad_q", "grad_k", "grad_v")

    def call(ends=None, scale=1.0, **changed):
        tensors = [changed.get(name, x.clone()) for name in names]
        ends = None if ends is None else torch.tensor(ends, dtype=torch.int32)
        torch.ops.dafast_C.flash_attention_backward(*tensors[:4], ends, scale, *tensors[4:])

    call()
    for bad in (
        {"q": x[0]}, {"k": x.half()}, {"v": x[:, :5]}, {"grad": x[:, :, :1]}, {"grad_q": x[:, :5]},
        {"grad_k": torch.zeros(1, 6, 32, 2).mT}, {"grad_v": x.double()},
        {name: torch.zeros(1, 6, 2, 24) for name in names},
        {"scale": 0.0}, {"scale": float("nan")}, {"ends": [0, 5]}, {"ends": [0, 4, 3, 6]},
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="flash_attention_backward: "):
            call(**bad)
