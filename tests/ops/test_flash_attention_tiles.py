"""Attention as a GPU calls it: its tiles, rows outside of sequences, autocast, FlashAttention 4."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

import dafast.optional
from dafast.ops import (
    BackendError,
    flash_attention,
    flash_attention_qkvpacked,
    flash_attention_reference,
    flash_attention_varlen,
    use_backend,
)

pytest.importorskip("triton", reason="the kernels are Triton's")
from dafast.kernels import flash_attention as kernels
from dafast.kernels import flash_attention_tiles as tiles
from dafast.kernels.runtime import assume_target

interpreted = pytest.mark.skipif(
    not kernels.INTERPRET, reason="chooses tiles of other GPUs, which the interpreter can run"
)


def _both_passes(inputs, cotangent):
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    with use_backend("triton"):
        out = flash_attention(q, k, v)
    return out, *torch.autograd.grad(out, (q, k, v), cotangent)


def _by_tile(monkeypatch, inputs, cotangent, arch, **changes):
    """Both passes with the tiles of an architecture; ``changes`` by the name of the pass."""
    chosen = []

    def tile_of(kind, *args):
        tile = {**tiles.tile_of(kind, *args), **changes.get(kind, {})}
        chosen.append((kind, tile["BLOCK_M"], tile["BLOCK_N"], tile.get("OVERLAP")))
        return tile

    monkeypatch.setattr(kernels, "tile_of", tile_of)
    with assume_target("cuda", arch):
        return _both_passes(inputs, cotangent), chosen


@pytest.fixture
def fixed_order(monkeypatch):
    """Products of the interpreter sum in one order; a BLAS may choose it by the sizes."""

    def matmul(a, b, dtype=None):
        total = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for i in range(a.shape[1]):
            total += a[:, i : i + 1] * b[i : i + 1]
        return total

    monkeypatch.setattr(np, "matmul", matmul)


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize(("arch", "head_dim"), [(80, 32), (90, 32), (100, 128)])
def test_small_tiles_give_the_same_bits(arch, head_dim, seed, fixed_order, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    *inputs, cotangent = (
        torch.randn(1, 130, 1, head_dim, generator=generator).bfloat16() for _ in range(4)
    )
    monkeypatch.setattr(kernels, "is_small", lambda rows: False)
    expected, large = _by_tile(monkeypatch, inputs, cotangent, arch)
    monkeypatch.setattr(kernels, "is_small", lambda rows: True)
    got, small = _by_tile(monkeypatch, inputs, cotangent, arch)
    assert any(128 in tile for tile in large) and large != small
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@interpreted
@pytest.mark.parametrize("tokens", [33, 64, 130])
def test_a_rotated_loop_gives_the_same_bits(tokens, seed, fixed_order, monkeypatch, poisoned):
    """Values lag one tile behind keys: no tile but the masked one, none at all, several."""
    generator = torch.Generator().manual_seed(seed)
    *inputs, cotangent = (
        torch.randn(1, tokens, 1, 32, generator=generator).half() for _ in range(4)
    )
    rotated, chosen = _by_tile(monkeypatch, inputs, cotangent, 90)
    assert ("fwd", 64, 64, True) in chosen
    plain, chosen = _by_tile(monkeypatch, inputs, cotangent, 90, fwd={"OVERLAP": False})
    assert ("fwd", 64, 64, False) in chosen
    assert all(torch.equal(a, b) for a, b in zip(rotated, plain, strict=True))


@interpreted
@pytest.mark.parametrize(("arch", "head_dim"), [(80, 24), (90, 8), (100, 64)])
def test_short_sequences_have_tiles_of_their_own(arch, head_dim, seed, monkeypatch, poisoned):
    """As in temporal modules: many sequences of at most 32 rows, with small heads."""
    generator = torch.Generator().manual_seed(seed)
    for tokens in (32, 7):
        *inputs, cotangent = (
            torch.randn(2, tokens, 1, head_dim, generator=generator).bfloat16() for _ in range(4)
        )
        got, chosen = _by_tile(monkeypatch, inputs, cotangent, arch)
        assert all(tile[1:3] == (32, 32) for tile in chosen)
        exact = [x.double().requires_grad_() for x in inputs]
        out = flash_attention_reference(*exact)
        wanted = (out, *torch.autograd.grad(out, exact, cotangent.double()))
        for a, b in zip(got, wanted, strict=True):
            assert (a - b).abs().max() <= 2**-6 * b.abs().max()
    problem = kernels._Problem(torch.empty(1, 33, 1, 64), torch.empty(1, 5, 1, 64), None, 0)
    assert not problem.short


@pytest.mark.parametrize(("channels", "extra", "unit"), [(24, 0, 8), (24, 3, 1), (32, 3, 1)])
def test_heads_of_24_channels_say_where_they_start(channels, extra, unit, monkeypatch):
    """Views whose heads start anywhere must not be read 16 bytes at a time."""
    launched = []

    class Launches:
        def __getitem__(self, grid):
            return lambda *args, **options: launched.append(options["UNIT"])

    for name in ("fwd", "bwd_preprocess", "bwd_dkdv", "bwd_dq"):
        monkeypatch.setattr(kernels, f"_flash_attention_{name}_kernel", Launches())
    q, k, v = (torch.zeros(1, 5, 2, channels + extra)[..., :channels] for _ in range(3))
    out, lse = kernels.flash_attention_fwd(q, k, v, 1.0)
    grads = [torch.empty_like(q) for _ in range(3)]
    kernels.flash_attention_bwd(out, q, k, v, out, lse, 1.0, *grads)
    assert launched == [unit] * 4


def test_tiles_by_the_size_of_the_grid(monkeypatch):
    monkeypatch.setattr(tiles, "processors", lambda: 132)
    assert tiles.is_small(6 * 1370) and tiles.is_small(3 * 16 * 1370)
    assert not tiles.is_small(16 * 16 * 1370)


@interpreted
@pytest.mark.parametrize(
    ("ends", "longest", "covered"),
    [
        ([0, 70, 80], 40, [(0, 40), (70, 80)]),
        ([0, 30, 60], 40, [(0, 30), (30, 60)]),
        ([5, 5, 90], 3, [(5, 8)]),
    ],
)
def test_varlen_leaves_no_row_unwritten(ends, longest, covered, seed, poisoned):
    """With wrong arguments on a GPU, where nobody can check them; here the launcher is called."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, grad = (torch.randn(80, 2, 16, generator=generator) for _ in range(4))
    cu_seqlens = torch.tensor(ends, dtype=torch.int32)
    out, lse = kernels.flash_attention_fwd(q, k, v, 0.2, cu_seqlens, longest)
    grads = [torch.empty_like(q) for _ in range(3)]
    kernels.flash_attention_bwd(grad, q, k, v, out, lse, 0.2, *grads, cu_seqlens, longest)
    expected = [torch.zeros(80, 2, 16, dtype=torch.float64) for _ in range(4)]
    for a, b in covered:
        inputs = [x[None, a:b].double().requires_grad_() for x in (q, k, v)]
        part = flash_attention_reference(*inputs, scale=0.2)
        parts = (part, *torch.autograd.grad(part, inputs, grad[None, a:b].double()))
        for whole, one in zip(expected, parts, strict=True):
            whole[a:b] = one[0].detach()
    for got, wanted in zip((out, *grads), expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=0)
        assert not got[wanted == 0].any(), "zeros, exactly"


@pytest.mark.parametrize("backend", ["reference", "sdpa", "triton"])
def test_autocast_leaves_attention_alone(backend, seed, device):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(1, 40, 3, 2, 64, generator=generator)
    exact = flash_attention_reference(*qkv.double().unbind(2))
    with use_backend(backend), torch.autocast(torch.device(device).type, torch.bfloat16):
        for out in (flash_attention(*qkv.unbind(2)), flash_attention_qkvpacked(qkv)):
            assert out.dtype == qkv.dtype
            torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=0)


class _OnCuda(torch.Tensor):
    """Says that it lies on a GPU."""

    device = torch.device("cuda", 0)


def _on_cuda(*shape, dtype=torch.bfloat16):
    return torch.ones(shape, dtype=dtype).as_subclass(_OnCuda)


@pytest.fixture
def fake_flash_attn(monkeypatch):
    """A module instead of FlashAttention 4, and the arguments of its calls."""
    calls = []

    def call(q, k, v, **options):
        calls.append((q.shape, options))
        return q + 1, "lse"

    package, module = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.cute")
    module.flash_attn_func = module.flash_attn_varlen_func = call
    package.cute, package.__path__ = module, []
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", module)
    return calls


def test_flash_attn_by_request(fake_flash_attn):
    q = _on_cuda(2, 5, 3, 64)
    packed = _on_cuda(2, 5, 3, 3, 64)
    rows = _on_cuda(9, 3, 64)
    ends = torch.tensor([0, 4, 9], dtype=torch.int32)
    with use_backend("flash_attn"):
        assert torch.equal(flash_attention(q, q, q, scale=0.2), q + 1)
        assert flash_attention_qkvpacked(packed).shape == (2, 5, 3, 64)
        assert flash_attention_varlen(rows, rows, rows, ends, 5).shape == rows.shape
    (shape, options), (_, default), (_, varlen) = fake_flash_attn
    assert shape == (2, 5, 3, 64) and options == {"softmax_scale": 0.2}
    assert default == {"softmax_scale": None}
    assert (varlen["max_seqlen_q"], varlen["max_seqlen_k"]) == (5, 5)
    assert varlen["cu_seqlens_q"] is varlen["cu_seqlens_k"] is ends


def test_flash_attn_says_what_it_cannot_serve(fake_flash_attn, monkeypatch):
    q = _on_cuda(2, 5, 3, 64)
    with use_backend("flash_attn"):
        for x, message in (
            (torch.ones(2, 5, 3, 64), "no kernels for tensors on cpu"),
            (_on_cuda(2, 5, 3, 64, dtype=torch.float32), "float16 and bfloat16, not torch.float32"),
            (_on_cuda(2, 5, 3, 20), "a multiple of 8, not 20"),
        ):
            with pytest.raises(BackendError, match=message):
                flash_attention(x, x, x)

        def refuse(*_, **__):
            raise AssertionError("Unsupported compute capability")

        monkeypatch.setattr(sys.modules["flash_attn.cute"], "flash_attn_func", refuse)
        with pytest.raises(BackendError, match="flash_attn: Unsupported compute capability"):
            flash_attention(q, q, q)
        monkeypatch.setattr(dafast.optional, "_BROKEN", {})
        monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
        monkeypatch.setitem(sys.modules, "flash_attn", None)
        with pytest.raises(BackendError, match=r"pip install 'dafast\[flash-attn\]'"):
            flash_attention(q, q, q)


@pytest.fixture
def fake_xformers(monkeypatch):
    """A module instead of xformers, and the arguments of its calls."""
    calls = []

    def call(q, k, v, *, scale, attn_bias):
        calls.append((q.shape, scale, attn_bias))
        if scale == 0.5:
            raise NotImplementedError("No operator found\nfor this card")
        return q + 1

    names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["xformers"].ops = sys.modules["xformers.ops"]
    sys.modules["xformers.ops"].memory_efficient_attention = call
    sys.modules["xformers.ops.fmha.attn_bias"].BlockDiagonalMask = types.SimpleNamespace(
        from_seqlens=lambda lengths, device: lengths
    )
    return calls


def test_xformers_by_request(fake_xformers):
    q, rows = _on_cuda(2, 5, 3, 64), _on_cuda(9, 3, 64)
    ends = torch.tensor([0, 4, 9], dtype=torch.int32)
    with use_backend("xformers"):
        assert torch.equal(flash_attention(q, q, q, scale=0.2), q + 1)
        assert flash_attention_varlen(rows, rows, rows, ends, 5).shape == rows.shape
        with pytest.raises(BackendError, match="No operator found"):
            flash_attention(q, q, q, scale=0.5)
        with pytest.raises(BackendError, match="no operator for tensors on cpu"):
            flash_attention(*torch.ones(3, 2, 5, 3, 64))
    assert fake_xformers[:2] == [((2, 5, 3, 64), 0.2, None), ((1, 9, 3, 64), None, [4, 5])]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kind", ["fwd", "dq", "dkdv"])
def test_float32_has_smaller_tiles_than_bfloat16(kind, head_dim):
    """With and without TF32, on NVIDIA's and AMD's GPUs."""

    def area(dtype, tf32, target):
        tile = tiles._tile_of(kind, dtype, head_dim, False, False, tf32, *target)
        assert tile["BLOCK_M"] >= 16 and tile["BLOCK_N"] >= 16
        return tile["BLOCK_M"] * tile["BLOCK_N"]

    for target in (("cuda", 80), ("cuda", 90), ("cuda", 100), ("hip", "gfx942")):
        half = area(torch.bfloat16, False, target)
        assert area(torch.float32, True, target) <= half
        assert area(torch.float32, False, target) <= area(torch.float32, True, target)
