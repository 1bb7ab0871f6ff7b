"""Attention's C++ kernels on the CPU, with every instruction set of this machine."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dafast.ops import (
    OPS,
    BackendError,
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

CSRC = Path(__file__).parents[2] / "csrc"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.skipif(
    _extension.why_not("cpp", "flash_attention") != "",
    reason=_extension.why_not("cpp", "flash_attention"),
)


@pytest.fixture(params=INSTRUCTION_SETS)
def capability(request):
    """Each instruction set in turn, as the best available."""
    with instruction_set(request.param):
        yield request.param


def _draw(seed, shape, dtype=torch.float32, factor=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (factor * torch.randn(shape, generator=generator)).to(dtype)


def _eager(q, k, v, scale):
    """PyTorch's plain path in the dtype of its inputs: its error is the yardstick."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2)


def _check(q, k, v, scale=None, out=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if out is None:
        with use_backend("cpp"):
            out = flash_attention(q, k, v, scale=scale)
    assert out.shape == q.shape and out.dtype == q.dtype and out.is_contiguous()
    exact = flash_attention_reference(*(x.double() for x in (q, k, v)), scale=scale)
    parity.assert_within(out, exact, _eager(q, k, v, scale), steps=2, slack=1e-6)


@grid(
    {
        "name": INSTRUCTION_SETS,
        "shape": [(1, 1, 1, 64), (2, 193, 3, 64), (1, 77, 2, 32), (3, 50, 6, 80), (0, 5, 2, 64)],
        "dtype": DTYPES,
    }
)
def test_matches_float64(name, shape, dtype, seed, poisoned):
    with instruction_set(name):
        _check(*(_draw(seed + i, shape, dtype) for i in range(3)))


@grid({"name": INSTRUCTION_SETS, "head_dim": range(16, 129, 16), "dtype": DTYPES[:2]})
def test_head_dims_and_other_keys(name, head_dim, dtype, seed, poisoned):
    with instruction_set(name):
        for queries, keys in ((37, 70), (13, 1), (1, 33), (6, 64)):
            q = _draw(seed, (2, queries, 2, head_dim), dtype)
            k, v = (_draw(seed + i, (2, keys, 2, head_dim), dtype) for i in (1, 2))
            _check(q, k, v, scale=0.2)


@grid(
    {
        "name": INSTRUCTION_SETS,
        "tokens": [(97, 767), (96, 768), (95, 769), (193, 1537), (1370, 1370)],
        "dtype": DTYPES[:2],
    }
)
def test_around_the_ends_of_blocks(name, tokens, dtype, seed, poisoned):
    with instruction_set(name):
        q = _draw(seed, (1, tokens[0], 1, 64), dtype, factor=3)
        k, v = (_draw(seed + i, (1, tokens[1], 1, 64), dtype) for i in (1, 2))
        _check(q, k, v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_and_other_strides_are_read_in_place(dtype, capability, seed, monkeypatch):
    qkv = _draw(seed, (2, 41, 3, 2, 64), dtype)
    q, k, v = qkv.unbind(2)
    odd = _draw(seed + 1, (2, 41, 2, 83), dtype)[..., 3:67]  # rows begin at any 2 or 4 bytes
    expanded = _draw(seed + 2, (1, 41, 1, 64), dtype).expand(2, 41, 2, 64)  # keys of all heads
    # Nothing is copied, except where the last stride is not 1.
    for name in ("contiguous", "clone"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("a copy was made"))
    with use_backend("cpp"):
        packed = flash_attention_qkvpacked(qkv, scale=0.3)
        odder = flash_attention(odd[:, ::2], odd, odd)
        expand = flash_attention(q, expanded, v)
    monkeypatch.undo()
    _check(q, k, v, 0.3, packed)
    _check(odd[:, ::2], odd, odd, None, odder)
    _check(q, expanded, v, None, expand)
    _check(q, k, _draw(seed + 3, (64, 41, 2, 2), dtype).permute(3, 1, 2, 0))


@grid(
    {
        "name": INSTRUCTION_SETS,
        "lengths": [(17, 140, 1), (0, 33, 0, 5), (64,), (3, 3, 3, 3), (), (0,)],
        "dtype": DTYPES[:2],
    }
)
def test_varlen_is_attention_within_each_sequence(name, lengths, dtype, seed, poisoned):
    rows = sum(lengths)
    q, k, v = _draw(seed, (rows, 3, 2, 48), dtype).unbind(1)
    ends = torch.full((len(lengths) + 1, 2), -1, dtype=torch.int32)[:, 0]  # strided
    ends.copy_(torch.tensor((0, *lengths)).cumsum(0))
    with instruction_set(name), use_backend("cpp"):
        out = flash_attention_varlen(q, k, v, ends, max(lengths, default=0))
    assert out.shape == q.shape
    for a, b in itertools.pairwise(ends.tolist()):
        part = [x[None, a:b] for x in (q, k, v)]
        _check(*part, None, out[None, a:b])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(dtype, seed):
    """However the blocks of queries are divided, and so who packs which head."""
    qkv = _draw(seed, (1, 300, 3, 3, 64), dtype)
    results = []
    for count in (1, 2, 3, 5):
        with threads(count), use_backend("cpp"):
            results.append(flash_attention_qkvpacked(qkv))
    assert all(torch.equal(results[0], x) for x in results)


def test_no_keys_and_no_queries(capability, poisoned):
    q, k = torch.ones(2, 3, 1, 32), torch.ones(2, 0, 1, 32)
    with use_backend("cpp"):
        out = flash_attention(q, k, k)
        assert out.shape == q.shape and not out.any()
        assert flash_attention(k, q, q).shape == k.shape


def test_ratios_of_probabilities(capability, seed):
    """Of two keys, over all of the exponential's range: exp2 in float32, and its end."""
    logits = torch.rand(500, generator=torch.Generator().manual_seed(seed)) * -80
    q = torch.zeros(1, 500, 1, 16)
    q[0, :, 0, 0] = logits
    k, v = torch.zeros(1, 2, 1, 16), torch.zeros(1, 2, 1, 16)
    k[0, 1, 0, 0] = 1
    v[0, :, 0, :2] = torch.eye(2)
    with use_backend("cpp"):
        out = flash_attention(q, k, v, scale=1.0)[0, :, 0]
        far = flash_attention(100 * q[:, logits < -2], k, v, scale=1.0)[0, :, 0]
    ratio = out[:, 1].double() / out[:, 0].double()
    # The logit times log2(e) is rounded, at up to 115.
    torch.testing.assert_close(ratio, logits.double().exp(), rtol=1e-5, atol=0)
    assert (far[:, 0] == 1).all() and (far[:, 1] < 1e-37).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinite_and_large_logits(dtype, capability, seed):
    q, k, v = (_draw(seed + i, (1, 1000, 1, 32), dtype) for i in range(3))
    q[..., 0] = q[..., 0].abs() + 1
    k[:, :900, :, 0] = -float("inf")  # the first blocks hold nothing else
    _check(q, k, v)
    k[:, :900, :, 0] = -3e4
    _check(q, k, v)
    k[..., 0] = 3e4
    _check(q, k, v)
    k[..., 0] = -float("inf")
    with use_backend("cpp"):
        assert flash_attention(q, k, v).isnan().all(), "softmax is not defined"


@pytest.mark.parametrize("dtype", DTYPES)
def test_lets_nan_through(dtype, capability, seed):
    nan = float("nan")
    q, k, v = (_draw(seed + i, (1, 41, 1, 32), dtype) for i in range(3))
    q[0, 5, 0, 3] = nan
    with use_backend("cpp"):
        out = flash_attention(q, k, v)
        assert out[0, 5].isnan().all() and out.isnan().sum() == 32, "the row that holds it"
        v[0, 40, 0, 7] = nan
        out = flash_attention(q, k, v)
        assert out[..., 7].isnan().all() and out.isnan().sum() == 41 + 31
        v[0, 40, 0, 9] = float("inf")  # the last of an odd number, which has no partner in a pair
        out = flash_attention(q, k, v)
        assert out[0, 6:, 0, 9].isposinf().all() and out.isnan().sum() == 41 + 31
        k[0, 40, 0, 0] = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
        assert flash_attention(q, k, v).isnan().all()


def _selected(*inputs, op="flash_attention", scale=None):
    return OPS[op].select(*inputs, scale)


def test_is_chosen_where_it_is_faster():
    x, short = torch.zeros(1, 128, 2, 64), torch.zeros(1, 20, 2, 64)
    packed, rows = torch.zeros(1, 128, 3, 2, 64), torch.zeros(20, 2, 64)
    ends = torch.tensor([0, 8, 20], dtype=torch.int32)
    leaf = torch.zeros(1, 128, 2, 64, requires_grad=True)
    if _extension.load().cpu_capability() != "portable":
        assert _selected(x, x, x) == "cpp"
        assert _selected(packed, op="flash_attention_qkvpacked") == "cpp"
        assert _selected(rows, rows, rows, ends, 12, op="flash_attention_varlen") == "cpp"
        with torch.no_grad():
            assert _selected(x, leaf, x) == "cpp"
        assert _selected(x, leaf, x) == "cpp"
        medium = torch.zeros(1, 64, 2, 64)
        assert _selected(medium, medium, medium.clone().requires_grad_()) == "cpp"
        assert _selected(medium, medium, medium) == "cpp"
    assert _selected(short, short, short) == "sdpa"
    assert _selected(short, short, short.clone().requires_grad_()) == "sdpa"
    assert _selected(x.double(), x.double(), x.double()) == "sdpa"
    assert _selected(x, x, x, scale=-1.0) == "sdpa"
    with instruction_set("portable"):
        assert _selected(x, x, x) == "sdpa"
        with use_backend("cpp"):
            assert _selected(x, x, x) == _selected(short, short, short) == "cpp"


def test_refuses_what_it_cannot_serve():
    def refused(x, message, **options):
        with use_backend("cpp"), pytest.raises(BackendError, match=message):
            flash_attention(x, x, x, **options)

    refused(torch.zeros(1, 3, 1, 24), "not 24")
    refused(torch.zeros(1, 3, 1, 144), "not 144")
    refused(torch.zeros(1, 3, 1, 32, dtype=torch.float64), "float64")
    refused(torch.zeros(1, 3, 1, 32, device="meta"), "on meta")
    for scale in (-0.1, 0.0, float("nan"), float("inf")):
        refused(torch.zeros(1, 3, 1, 32), "positive scale", scale=scale)


def test_the_extension_checks_what_it_is_given():
    _extension.load()
    x, out = torch.zeros(1, 6, 2, 32), torch.empty(1, 6, 2, 32)

    def call(q=x, k=x, v=x, out=out, ends=None, scale=1.0):
        ends = None if ends is None else torch.tensor(ends, dtype=torch.int32)
        torch.ops.dafast_C.flash_attention(q, k, v, out, ends, scale)

    call()
    for bad in (
        {"q": x[0]}, {"k": x.half()}, {"v": x[:, :5]}, {"k": x[:, :, :1]}, {"out": out[:, :5]},
        {"q": x.mT.contiguous().mT}, {"out": torch.empty(1, 6, 4, 32)[:, :, ::2]},
        {name: torch.zeros(1, 6, 2, 24) for name in ("q", "k", "v", "out")},
        {name: torch.zeros(1, 6, 2, 32).double() for name in ("q", "k", "v", "out")},
        {"scale": 0.0}, {"scale": float("nan")},
        {"ends": [0, 5]}, {"ends": [1, 6]}, {"ends": [0, 4, 3, 6]}, {"ends": []},
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="flash_attention: "):
            call(**bad)


@pytest.mark.parametrize("op", ["dense", "packed", "varlen"])
def test_opcheck_and_compile(op, seed):
    q, k, v = (_draw(seed + i, (2, 20, 2, 32)) for i in range(3))
    ends = torch.tensor([0, 13, 20], dtype=torch.int32)
    ops = torch.ops.dafast
    custom = ops.flash_attention.default
    function, inputs = {
        "dense": (flash_attention, (q, k, v)),
        "packed": (flash_attention_qkvpacked, (torch.stack((q, k, v), 2),)),
        "varlen": (flash_attention_varlen, (q[0], k[0], v[0], ends, 13)),
    }[op]
    if op == "varlen":
        torch.library.opcheck(custom, (q[0], k[0], v[0], ends, 13, 0.3, "cpp"))
    else:
        torch.library.opcheck(custom, (q.requires_grad_(), k, v, None, 0, 0.3, "cpp"))
        packed = torch.stack((q, k, v), 2).detach().requires_grad_()
        torch.library.opcheck(ops.flash_attention_qkvpacked.default, (packed, 0.3, "cpp"))
    with use_backend("cpp"):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(*inputs), function(*inputs))


@pytest.mark.slow
def test_accuracy_of_the_exponential(tmp_path):
    """The polynomials, as they are evaluated: what the comments and the docs say of them."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    text = (CSRC / "cpu/flash_attention.cpp").read_text()
    types = re.search(r"namespace dafast::cpu \{\n(.*?)\n\}  // namespace", text, re.DOTALL)[1]
    source = tmp_path / "exponential.cpp"
    source.write_text(
        "#include <cmath>\n#include <cstdint>\n#include <cstdio>\n#include <cstring>\n"
        f'{types}\nnamespace {{\n#include "{CSRC}/cpu/flash_attention_kernels.h"\n}}\n'
        """
template <int DEGREE>
double worst() {
  double most = 0;
  for (float x = -125.0f; x <= 0.0f; x += 0x1p-13f) {
    float got[LANES];
    store(got, power_of_two<DEGREE>(Floats{} + x));
    most = std::fmax(most, std::fabs(got[0] / std::exp2(static_cast<double>(x)) - 1));
  }
  return most;
}
int main() { std::printf("%.3e %.3e", worst<3>(), worst<5>()); }
"""
    )
    program = tmp_path / "exponential"
    subprocess.run([compiler, "-std=c++17", "-O2", source, "-o", program], check=True)
    run = subprocess.run([program], check=True, capture_output=True, text=True)
    third, fifth = map(float, run.stdout.split())
    assert third <= 7.6e-5 and fifth <= 2e-7, run.stdout
