"""Layers from packed weights in float32 and bfloat16: kernels against specifications."""

import concurrent.futures
import gc
import os
import weakref

import pytest
import torch
import torch.nn.functional as F

from dafast.ops import (
    BackendError,
    PackedRows,
    RowNorm,
    _extension,
    conv3x3_packed,
    conv3x3_packed_reference,
    embed_patches,
    embed_patches_reference,
    encoder_rows,
    encoder_rows_reference,
    linear_packed,
    linear_packed_reference,
    pack_conv3x3,
    pack_linear,
    transpose_rows,
    use_backend,
)
from dafast.ops.linear_packed import why_slow_packed
from tests.instruction_sets import CPP, instruction_set, threads
from tests.tolerances import TOLERANCES

DTYPES = (torch.float32, torch.bfloat16)
SETS = [
    (name, dtype) for name in ("avx2", "avx512", "avx512_bf16", "avx512_amx") for dtype in DTYPES
    if name == "avx512_bf16" or (dtype == torch.bfloat16) == (name == "avx512_amx")
]  # fmt: skip
fast = pytest.mark.skipif(
    bool(why_slow_packed(torch.float32)), reason=why_slow_packed(torch.float32) or "it is there"
)
# Rows, inputs and outputs of a linear layer.
LAYERS = [(1, 3, 1), (13, 64, 33), (61, 35, 96), (50, 129, 47)]
# Shapes of maps, channels of the result, stride.
MAPS = [
    ((1, 2, 1, 1), 3, 1),
    ((2, 16, 9, 14), 32, 1),
    ((1, 12, 6, 25), 40, 2),
    ((1, 64, 5, 30), 64, 1),
    ((3, 6, 10, 3), 17, 2),
]
PARTS = [(False, True), (True, True), (True, False)]  # whether there are a tap and a next block


def near(got, wanted, dtype, terms):
    """Within the rounding of the result, and of float32 sums of ``terms`` products of order 1."""
    assert got.dtype == dtype and got.shape == wanted.shape
    bound = TOLERANCES[dtype].copy * wanted.abs() + 1e-6 * terms**0.5 * wanted.abs().max()
    assert ((got.double() - wanted.double()).abs() <= bound + 1e-6).all()


def random_layer(columns, depth, dtype):
    return torch.randn(columns, depth).div(depth**0.5).to(dtype), torch.randn(columns).to(dtype)


@fast
@pytest.mark.parametrize("case", LAYERS, ids=str)
@pytest.mark.parametrize(("name", "dtype"), SETS, ids=str)
def test_linear(case, name, dtype, seed):
    rows, depth, columns = case
    with instruction_set(name), use_backend("cpp"):
        weight = pack_linear(*random_layer(columns, depth, dtype))
        x = torch.randn(2, rows, depth).to(dtype)
        got = linear_packed(x, weight)
        exact = F.linear(x.double(), weight.values.double(), weight.bias.double())
        near(got, exact, dtype, depth)
        near(linear_packed_reference(x, weight), exact, dtype, depth)
        for count in range(2, 6):
            with threads(count):
                assert torch.equal(linear_packed(x, weight), got)
        assert torch.equal(linear_packed(x.mT.contiguous().mT, weight), got)
        assert linear_packed(x[:, :0], weight).shape == (2, 0, columns)


def maps(case, dtype):
    shape, columns, stride = case
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(columns, shape[1], 3, 3) / (9 * shape[1]) ** 0.5
    size = [(n - 1) // stride + 1 for n in shape[2:]]
    add, other = (torch.randn(shape[0], columns, *size).to(dtype) for _ in range(2))
    return x, weight.to(dtype), torch.randn(columns).to(dtype), add, other


@fast
@pytest.mark.parametrize("case", MAPS, ids=str)
@pytest.mark.parametrize(("name", "dtype"), SETS, ids=str)
def test_convolution(case, name, dtype, seed):
    x, weight, bias, add, other = maps(case, dtype)
    stride = case[2]
    with instruction_set(name), use_backend("cpp"):
        packed = pack_conv3x3(weight, bias)
        for more in ((None, None), (add, None), (add, other)):
            for relu_input, relu in ((False, True), (True, False)):
                options = dict(stride=stride, relu_input=relu_input, relu=relu)
                got = conv3x3_packed(x, packed, add=more[0], other=more[1], **options)
                inner = x.double().relu() if relu_input else x.double()
                exact = F.conv2d(inner, weight.double(), bias.double(), stride, 1)
                exact = exact.relu() if relu else exact
                for m in more:
                    exact = exact if m is None else exact + m
                near(got, exact, dtype, 9 * x.shape[1])
                same = conv3x3_packed_reference(x, packed, *more, stride, relu_input, relu)
                near(same, exact, dtype, 9 * x.shape[1])
                assert got.is_contiguous(memory_format=torch.channels_last)
        for count in range(2, 6):
            with threads(count):
                again = conv3x3_packed(x.contiguous(), packed, add=add, other=other, **options)
                assert torch.equal(again, got)


@fast
def test_not_a_number_stays_in_its_window(seed):
    x, weight, bias, _, _ = maps(((1, 8, 9, 9), 4, 1), torch.float32)
    x[0, 3, 4, 4] = float("nan")
    for backend in ("cpp", "reference"):
        with use_backend(backend):
            got = conv3x3_packed(x, pack_conv3x3(weight, bias), relu_input=True, relu=True)
        assert got[:, :, 3:6, 3:6].isnan().all() and got.isnan().sum() == 9 * 4


def block(shape, hidden, parts, dtype):
    """x, mixed, parameters, and a function that computes the same in float64."""
    channels = shape[-1]

    def norm(eps):
        values = (1 + 0.3 * torch.randn(channels), 0.3 * torch.randn(channels))
        return RowNorm(*(v.to(dtype) for v in values), eps)

    tap, after = parts
    rows = PackedRows(
        random_layer(channels, channels, dtype), torch.randn(channels).to(dtype), norm(1e-6),
        random_layer(hidden, channels, dtype), random_layer(channels, hidden, dtype),
        torch.randn(channels).to(dtype), norm(1e-2) if tap else None,
        norm(1e-6) if after else None,
        random_layer(3 * channels, channels, dtype) if after else None,
    )  # fmt: skip

    def exact(x, mixed):
        def normed(x, norm):
            return F.layer_norm(x, (channels,), norm.weight.double(), norm.bias.double(), norm.eps)

        def linear(x, layer):
            return F.linear(x, *(v.double() for v in layer))

        x = x.double() + rows.ls1 * linear(mixed.double(), rows.proj)
        hidden = F.gelu(linear(normed(x, rows.norm2), rows.fc1))
        x = x + rows.ls2 * linear(hidden, rows.fc2)
        outs = [x, normed(x, rows.tap) if tap else None]
        return [*outs, linear(normed(x, rows.next_norm), rows.qkv) if after else None]

    return torch.randn(shape), torch.randn(shape).to(dtype), rows, exact


@fast
@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize(("shape", "hidden"), [((2, 35, 64), 416), ((1, 1, 32), 32)], ids=str)
@pytest.mark.parametrize(("name", "dtype"), SETS, ids=str)
def test_rows_of_a_block(shape, hidden, parts, name, dtype, seed):
    with instruction_set(name), use_backend("cpp"):
        x, mixed, rows, exact = block(shape, hidden, parts, dtype)
        got = encoder_rows(x, mixed, rows)
        same = encoder_rows_reference(x, mixed, rows)
        for i, (out, like, truth) in enumerate(zip(got, same, exact(x, mixed), strict=True)):
            assert (out is None) == (like is None) == (truth is None)
            if out is None:
                continue
            assert out.dtype == like.dtype == (dtype if i else torch.float32)
            # Up to four products in turn, whose inputs are rounded.
            bound = (1e-5 if dtype == torch.float32 else 2**-6) * truth.abs().max()
            assert (out - truth).abs().max() <= bound and (like - truth).abs().max() <= bound
        for count in range(2, 6):
            with threads(count):
                again = encoder_rows(x, mixed.mT.contiguous().mT, rows)
                assert all(
                    a is b is None or torch.equal(a, b) for a, b in zip(again, got, strict=True)
                )


@fast
def test_a_token_with_nan_stays_alone(seed):
    x, mixed, rows, _ = block((1, 5, 32), 32, (True, True), torch.float32)
    mixed[0, 2, 7] = float("nan")
    for backend in ("cpp", "reference"):
        with use_backend(backend):
            for out in encoder_rows(x, mixed, rows):
                assert out[0, 2].isnan().all() and out[0, [0, 1, 3, 4]].isfinite().all()
            assert encoder_rows(x[:, :0], mixed[:, :0], rows)[2].shape == (1, 0, 96)


def test_limits(seed):
    x = torch.randn(4, 32)
    weight = pack_linear(*random_layer(8, 32, torch.float32))
    with instruction_set("portable"), use_backend("cpp"):
        with pytest.raises(BackendError, match="needs AVX2"):
            linear_packed(x, weight)
        with pytest.raises(BackendError, match="needs AVX2"):
            conv3x3_packed(torch.randn(1, 4, 3, 3), pack_conv3x3(torch.randn(2, 4, 3, 3), None))
    with instruction_set("avx512"), use_backend("cpp"):
        with pytest.raises(BackendError, match="AVX-512 with BF16"):
            linear_packed(x, pack_linear(*random_layer(8, 32, torch.bfloat16)))
    with instruction_set("portable"):
        other = pack_linear(weight.values, weight.bias)
        torch.testing.assert_close(linear_packed(x, other), linear_packed(x, weight))
    with use_backend("cpp"), pytest.raises(BackendError, match="float32 and bfloat16"):
        linear_packed(x.double(), weight)
    odd = block((1, 3, 48), 64, (True, True), torch.float32)
    with use_backend("cpp"), pytest.raises(BackendError, match="multiples of 32 channels"):
        encoder_rows(*odd[:3])


def test_wrong_arguments(seed):
    weight, bias = random_layer(8, 32, torch.float32)
    packed, kernel = pack_linear(weight, bias), pack_conv3x3(torch.randn(2, 4, 3, 3), None)
    for wrong in ((weight[0], bias), (weight, bias[:2]), (weight.int(), bias)):
        with pytest.raises(ValueError, match="pack_linear needs"):
            pack_linear(*wrong)
    with pytest.raises(ValueError, match="pack_conv3x3 needs"):
        pack_conv3x3(torch.randn(2, 4, 3, 2), None)
    for x in (torch.randn(3, 31), torch.randn(32), torch.ones(3, 32).int()):
        with pytest.raises(ValueError, match="linear_packed needs"):
            linear_packed(x, packed)
    image = torch.randn(1, 4, 5, 6)
    for x in (image[:, :3], image[0], image.int()):
        with pytest.raises(ValueError, match="conv3x3_packed needs"):
            conv3x3_packed(x, kernel)
    with pytest.raises(ValueError, match="maps to add"):
        conv3x3_packed(image, kernel, add=image)
    norm, positions = RowNorm(bias, bias, 1e-6), torch.randn(7, 8)
    image = torch.randn(1, 2, 8, 12)  # six patches of 4 x 4
    for wrong in (
        (image[0], positions, norm), (image.int(), positions, norm),
        (image[:, :, 1:], positions, norm), (image, positions[1:], norm),
        (image, positions, RowNorm(bias[1:], bias[1:], 1e-6)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="embed_patches needs"):
            embed_patches(wrong[0], packed, *wrong[1:])
    with pytest.raises(ValueError, match="transpose_rows needs"):
        transpose_rows(weight)
    x, mixed, rows, _ = block((1, 3, 32), 32, (True, True), torch.float32)
    for wrong in ((x, mixed[:, :2]), (x[..., :16], mixed[..., :16]), (x[0, 0], mixed[0, 0])):
        with pytest.raises(ValueError, match="encoder_rows needs x"):
            encoder_rows(*wrong, rows)


def test_nothing_keeps_weights(seed):
    x, mixed, rows, _ = block((1, 3, 32), 32, (True, True), torch.float32)
    encoder_rows(x, mixed, rows)
    gone = weakref.ref(rows)
    del rows, _
    gc.collect()
    assert gone() is None


@fast
def test_custom_ops(seed):
    x, mixed, rows, _ = block((4, 32), 64, (True, True), torch.float32)
    ops = torch.ops.dafast
    arguments = (x, mixed, rows.packed, rows.vectors, 64, True, 96)
    torch.library.opcheck(ops.encoder_rows.default, arguments)
    weight = pack_linear(*random_layer(8, 32, torch.float32))
    torch.library.opcheck(ops.linear_packed.default, (x, weight.packed, weight.padded, 8))
    kernel = pack_conv3x3(torch.randn(3, 8, 3, 3), None)
    image, add = torch.randn(1, 5, 6, 8), torch.randn(1, 5, 6, 3)
    arguments = (image, kernel.packed, kernel.padded, 3, add, None, 1, False, True)
    torch.library.opcheck(ops.conv3x3_packed.default, arguments)
    vector = torch.randn(8)
    arguments = (torch.randn(2, 2, 4, 8), weight.packed, weight.padded, torch.randn(3, 8))
    torch.library.opcheck(ops.embed_patches.default, (*arguments, vector, vector, 1e-6, 4))
    torch.library.opcheck(ops.transpose_rows.default, (image,))


def test_calls_on_several_threads_and_after_a_fork(seed):
    """One region has the threads at a time; other callers and forked processes run their own."""
    weight = pack_linear(*random_layer(64, 48, torch.float32))
    inputs = [torch.randn(200, 48) for _ in range(8)]
    with threads(1):
        wanted = [linear_packed(x, weight) for x in inputs]
    with threads(3), concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = list(pool.map(lambda x: linear_packed(x, weight), inputs))
            assert all(map(torch.equal, got, wanted))
        if hasattr(os, "fork"):
            child = os.fork()
            if child == 0:  # no test's code may run on in the child
                try:
                    os._exit(not torch.equal(linear_packed(inputs[0], weight), wanted[0]))
                finally:
                    os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_extension_of_an_older_version_packs_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_extension, "why_not", lambda *_: "of an older version")
    weight, bias = torch.randn(32, 16), torch.randn(32)
    packed = pack_linear(weight, bias)
    x = torch.randn(3, 16)
    assert not packed.packed.numel() and why_slow_packed(torch.float32) == "of an older version"
    torch.testing.assert_close(linear_packed(x, packed), x @ weight.T + bias)


# Batch, channels, rows and columns of patches, their side, channels of a token.
IMAGES = [(1, 3, 5, 7, 14, 64), (2, 3, 4, 3, 5, 33), (3, 1, 1, 1, 3, 7)]


@fast
@pytest.mark.parametrize("case", IMAGES, ids=str)
@pytest.mark.parametrize(("name", "dtype"), SETS, ids=str)
def test_tokens_of_images(case, name, dtype, seed):
    batch, channels, rows, columns, side, width = case
    image = torch.randn(batch, channels, rows * side, columns * side).to(dtype)
    positions = torch.randn(1 + rows * columns, width)
    norm = RowNorm((1 + 0.3 * torch.randn(width)).to(dtype), torch.randn(width).to(dtype), 1e-6)
    with instruction_set(name), use_backend("cpp"):
        weight = pack_linear(*random_layer(width, channels * side**2, dtype))
        got = embed_patches(image, weight, positions, norm)
        kernel = weight.values.double().unflatten(1, (channels, side, side))
        patches = F.conv2d(image.double(), kernel, weight.bias.double(), side).flatten(2).mT
        exact = positions.double().repeat(batch, 1, 1)
        exact[:, 1:] += patches
        same = embed_patches_reference(image, weight, positions, norm)
        for tokens, normed in (got, same):
            near(tokens, exact, torch.float32, kernel[0].numel())
            inner, scale, shift = (x.double() for x in (tokens, norm.weight, norm.bias))
            wanted = F.layer_norm(inner, (width,), scale, shift, norm.eps)
            # The mean is rounded to the size of the largest channel.
            lost = inner.abs().amax(-1, True) / inner.std(-1, correction=0, keepdim=True) + 1
            bound = TOLERANCES[dtype].copy * wanted.abs() + 1e-5 * lost
            assert normed.dtype == dtype and ((normed - wanted).abs() <= bound).all()
        for count in range(2, 6):
            with threads(count):
                again = embed_patches(image.mT.contiguous().mT, weight, positions, norm)
                assert all(map(torch.equal, again, got))


@pytest.mark.parametrize("backend", ["reference", CPP])
def test_transposed_rows(backend, seed):
    with use_backend(backend):
        for shape in ((2, 3, 5, 7), (1, 1, 4, 1), (6, 2, 1, 9), (2, 0, 3, 4), (2, 70, 4, 300)):
            for dtype in (torch.float32, torch.bfloat16, torch.uint8):
                x = torch.randint(0, 255, shape).to(dtype)
                got = transpose_rows(x)
                assert got.is_contiguous() and torch.equal(got, x.transpose(1, 2))
                assert torch.equal(transpose_rows(x.mT.contiguous().mT), got)
