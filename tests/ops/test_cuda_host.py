"""The CUDA kernels without a GPU: g++ compiles their source, and threads run one after another.

`tests/cuda_host` replaces the CUDA headers. These tests compare the kernels' indices, masks, packs
and barriers with the references; `test_cuda_build.py` tests what nvcc compiles.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.depth_like import depth_like
from dafast.config import IMAGENET_MEAN, IMAGENET_STD
from dafast.ops import (
    affine_invariant_loss_reference,
    pad_reference,
    plan_geometry,
    postprocess,
    preprocess,
    resize_bilinear_reference,
    use_backend,
)
from dafast.ops.pad import PADDING_CODES
from tests.ops import parity
from tests.pairwise import grid

ROOT = Path(__file__).resolve().parents[2]
CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3, torch.uint16: 4}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LIBRARY = "DAFAST_CUDA_HOST_LIBRARY"  # already built, where the tests run in a sanitizer
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def build(path: Path, *flags: str) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    # With -O1 -g the compiler takes three times as long, and the tests save nothing.
    command = [
        compiler, "-std=c++17", "-O0", "-g1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
        "-Wno-unknown-pragmas", *flags, f"-I{ROOT}/tests/cuda_host", f"-I{ROOT}/csrc/include",
        str(ROOT / "tests" / "cuda_host" / "kernels.cpp"), "-o", str(path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> ctypes.CDLL:
    if not sys.platform.startswith("linux"):
        pytest.skip("the fibers are Linux's")
    given = os.environ.get(LIBRARY)
    return ctypes.CDLL(given or str(build(tmp_path_factory.mktemp("kernels") / "kernels.so")))


def integers(*values: int) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


def pointers(tensors) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def view(x: torch.Tensor) -> tuple[ctypes.c_void_p, ctypes.Array]:
    return ctypes.c_void_p(x.data_ptr()), integers(*x.shape, *x.stride())


def unaligned(x: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides that starts one element past a multiple of 16 bytes."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype)[1:]
    return memory.as_strided(x.shape, x.stride(), memory.storage_offset()).copy_(x)


def like(shape, dtype, channels_last, aligned) -> torch.Tensor:
    """Memory for a kernel to fill, holding NaN."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.full(shape, float("nan"), dtype=dtype).contiguous(memory_format=layout)
    return out if aligned else unaligned(out)


def close(got, expected, dtype, factor=1.0):
    # Half a step of the dtype, and float32 inside.
    slack = 2e-6 * factor * float(expected.abs().max().clamp_min(1))
    parity.assert_within(got, expected, steps=factor, scale=1, slack=slack, dtype=dtype)


# (B, C, H, W) -> (H, W)
RESIZES = [
    ((2, 8, 5, 6), (10, 12)),
    ((1, 3, 9, 40), (4, 70)),
    ((1, 16, 13, 7), (5, 8)),
    ((2, 5, 1, 3), (3, 1)),
    ((1, 9, 4, 4), (4, 4)),
    ((1, 1, 20, 300), (3, 32)),
]


@grid(
    {
        "shape, size": RESIZES,
        "dtype": DTYPES,
        "channels_last": [False, True],
        "aligned": [True, False],
    },
    strength=3,
)
def test_resize_bilinear(kernels, shape, size, dtype, channels_last, aligned, seed):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    y = torch.randn(*shape[:2], *size).to(dtype).contiguous(memory_format=layout)
    if not aligned:
        x, y = unaligned(x), unaligned(y)
    for align_corners, antialias in ((False, False), (True, False), (False, True), (True, True)):
        wide = x.double().requires_grad_()
        expected = resize_bilinear_reference(
            wide, size, align_corners=align_corners, antialias=antialias
        )
        (grad,) = torch.autograd.grad(expected, wide, y.double())
        for source, target_shape, want, backward in (
            (x, y.shape, expected.detach(), 0),
            (y, x.shape, grad, 1),
        ):
            out = like(target_shape, dtype, channels_last, aligned)
            error = kernels.resize_bilinear(
                *view(source), *view(out), CODES[dtype], align_corners, antialias, backward
            )
            assert error == 0
            close(out, want, dtype)


@grid({"channels": [1, 3, 7], "dtype": DTYPES, "backward": [0, 1]})
def test_resize_of_some_channels(kernels, channels, dtype, backward, seed):
    """The strides do not allow images to be merged into channels."""
    whole = torch.randn(3, 9, 6, 10).to(dtype)
    x = whole[:, 1 : 1 + channels]
    size = (11, 7)
    wide = torch.zeros(3, channels, *size).double().requires_grad_() if backward else x.double()
    expected = resize_bilinear_reference(wide, (6, 10) if backward else size)
    if backward:
        (expected,) = torch.autograd.grad(expected, wide, x.double())
    out = like(expected.shape, dtype, False, True)
    assert kernels.resize_bilinear(*view(x), *view(out), CODES[dtype], 0, 0, backward) == 0
    close(out, expected, dtype)


@pytest.mark.parametrize("backward", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_resize_beyond_32_bits(kernels, dtype, backward, seed):
    """The stride of rows makes an offset in a plane exceed 32 bits."""
    far = 2**32 // dtype.itemsize + 5
    size = (far + 64) * dtype.itemsize
    reserve_nothing = getattr(mmap, "MAP_NORESERVE", 0x4000)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve_nothing
    try:
        memory = torch.frombuffer(mmap.mmap(-1, size, flags), dtype=dtype)
    except OSError as error:
        pytest.skip(f"no {size} bytes of addresses: {error}")
    x = memory.as_strided((1, 5, 2, 8), (5, 8, far, 1)).copy_(torch.randn(1, 5, 2, 8).to(dtype))
    shape = (4, 12)
    wide = torch.zeros(1, 5, *shape).double().requires_grad_() if backward else x.double()
    expected = resize_bilinear_reference(wide, (2, 8) if backward else shape, align_corners=True)
    if backward:
        (expected,) = torch.autograd.grad(expected, wide, x.double())
    out = like(expected.shape, dtype, False, True)
    assert kernels.resize_bilinear(*view(x), *view(out), CODES[dtype], 1, 0, backward) == 0
    close(out, expected, dtype)


def test_resize_keeps_infinity_to_its_neighbours(kernels, seed):
    """A weight of zero does not spread infinity or NaN from a neighbouring pixel."""
    x = torch.randn(1, 1, 4, 4)
    x[0, 0, 0, 0] = float("inf")
    out = like((1, 1, 8, 8), torch.float32, False, True)
    assert kernels.resize_bilinear(*view(x), *view(out), 0, 0, 0, 0) == 0
    reached = torch.zeros(8, 8, dtype=torch.bool)
    reached[:3, :3] = True
    assert torch.equal(out[0, 0] == float("inf"), reached)
    assert out[0, 0][~reached].isfinite().all()


PADDINGS = [
    ((2, 8, 5, 16), (8, 0, 1, 2)),
    ((1, 3, 6, 20), (3, 5, 4, 1)),
    ((1, 16, 7, 40), (-3, 6, 2, -2)),
    ((2, 5, 3, 9), (-1, -2, -1, 0)),
    ((1, 1, 1, 300), (0, 0, 0, 0)),
]


@grid(
    {
        "shape, padding": PADDINGS,
        "dtype": DTYPES,
        "mode": ["constant", "replicate", "reflect"],
        "channels_last": [False, True],
        "aligned": [True, False],
    },
    strength=3,
)
def test_pad(kernels, shape, padding, dtype, mode, channels_last, aligned, seed):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    wide = x.double().requires_grad_()
    value = torch.tensor(0.3).to(dtype).item() if mode == "constant" else 0.0
    expected = pad_reference(wide, padding, mode, value)
    y = torch.randn(expected.shape).to(dtype).contiguous(memory_format=layout)
    (grad,) = torch.autograd.grad(expected, wide, y.double())
    if not aligned:
        x, y = unaligned(x), unaligned(y)
    options = (CODES[dtype], PADDING_CODES[mode], ctypes.c_int64(padding[0]))
    options = (*options, ctypes.c_int64(padding[2]), ctypes.c_float(value))
    out = like(y.shape, dtype, channels_last, aligned)
    assert kernels.pad(*view(x), *view(out), *options, 0) == 0
    assert torch.equal(out.double(), expected.detach())
    out = like(x.shape, dtype, channels_last, aligned)
    assert kernels.pad(*view(y), *view(out), *options, 1) == 0
    close(out, grad, dtype, 4)


SIZES = [(80, 115), (20, 29), (28, 42), (150, 212), (9, 13)]


@grid(
    {
        "kind": ["uint8", "planar"],
        "fit": ["pad", "plain", "official"],
        "dtype": DTYPES,
        "channels_last": [False, True],
        "aligned": [True, False],
    },
    keep=[("uint8", "plain", torch.float32, False, True)],
)
def test_preprocess(kernels, kind, fit, dtype, channels_last, aligned, rng):
    many = fit == "plain" and kind == "uint8" and dtype == torch.float32 and aligned
    sizes = SIZES * (7 if many else 1)  # 35 photos: more than one launch takes
    photos = [torch.from_numpy(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]
    wide = [photo.permute(2, 0, 1).double() / 255 for photo in photos]
    images = [p.permute(2, 0, 1) if kind == "uint8" else w.float().contiguous()
              for p, w in zip(photos, wide, strict=True)]  # fmt: skip
    for padding, code in PADDING_CODES.items():
        options = {
            "size": 28, "padding": padding, "antialias": fit == "pad",
            "fit": "official" if fit == "official" else "pad",
        }  # fmt: skip
        with use_backend("reference"):
            expected, geometries = preprocess(wide, dtype=torch.float64, **options)
        places = [
            n
            for image, g in zip(images, geometries, strict=True)
            for n in (
                *(image.stride(1), image.stride(2), image.stride(0)), *image.shape[1:],
                *g.resized, g.padding[0], g.padding[2],
            )
        ]  # fmt: skip
        unit = 255 if kind == "uint8" else 1
        scale = (ctypes.c_float * 3)(*(1 / (unit * s) for s in IMAGENET_STD))
        shift = (ctypes.c_float * 3)(
            *(-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
        )
        out = like(expected.shape, dtype, channels_last, aligned)
        error = kernels.preprocess(
            pointers(images), integers(*places), CODES[images[0].dtype], *view(out), CODES[dtype],
            scale, shift, code, fit == "official", fit == "pad",
        )  # fmt: skip
        assert error == 0
        close(out, expected, dtype, 4)


@grid({"align_corners": [False, True], "dtype": DTYPES})
def test_postprocess(kernels, align_corners, dtype, rng):
    sizes = [size for size in SIZES if size[0] < 100]
    if align_corners and dtype == torch.float32:
        sizes.append((182, 260))  # wider than a block of threads
    geometries = [plan_geometry(*size, size=28) for size in sizes]
    disparity = torch.from_numpy(rng.random((len(sizes), *geometries[0].network))).to(dtype)
    with use_backend("reference"):
        expected = postprocess(disparity.double(), geometries, align_corners=align_corners)
    crops, maps = [], []
    for prediction, g in zip(disparity, geometries, strict=True):
        crops.append(prediction[g.padding[2] :, g.padding[0] :])
        maps += [*g.resized, *g.original]
    for out_dtype in (torch.float32, torch.uint16):
        outs = [torch.full(g.original, 77, dtype=out_dtype) for g in geometries]
        error = kernels.postprocess(
            pointers(crops), pointers(outs), integers(*maps), ctypes.c_int64(len(outs)),
            CODES[dtype], CODES[out_dtype], *map(ctypes.c_int64, disparity.stride()[1:]),
            align_corners,
        )  # fmt: skip
        assert error == 0
        for out, want in zip(outs, expected, strict=True):
            if out_dtype == torch.uint16:
                least, greatest = want.aminmax()
                want = (want - least) / (greatest - least) * 65535
                assert (out.double() - want).abs().max() <= 1.1
                assert out.to(torch.int32).aminmax() == (0, 65535)
            else:
                close(out, want, torch.float32)


def test_shim_finds_an_empty_launch(kernels):
    """An empty batch is an invalid launch, as in CUDA; callers must check for it."""
    x = torch.empty(0, 1, 4, 4)
    assert kernels.resize_bilinear(*view(x), *view(x), 0, 0, 0, 0) == 9


def run_loss(kernels, tensors, cluster, order=0, factor=1.7):
    """Loss, gradient and coefficients by a cluster of blocks and threads."""
    prediction, target, _, regions = tensors
    maps, pixels = len(prediction), prediction[0].numel()
    present = [torch.empty(0) if x is None else x for x in tensors]
    addresses = (ctypes.c_void_p * 4)(*(x.data_ptr() or None for x in present))
    dtypes = (ctypes.c_int * 2)(CODES[prediction.dtype], CODES[target.dtype])
    strides = integers(*(x.stride(0) for x in present))
    loss = torch.full((), float("nan"))
    coefficients = torch.full((maps, 1 if regions is None else 2, 8), float("nan"))
    grad = torch.full(prediction.shape, float("nan"), dtype=prediction.dtype)

    def call(scalar, out):
        error = kernels.affine_invariant_loss(
            addresses, dtypes, strides, ctypes.c_int64(maps), ctypes.c_int64(pixels),
            ctypes.c_float(1e-6), ctypes.c_void_p(scalar.data_ptr()),
            ctypes.c_void_p(coefficients.data_ptr()),
            None if out is None else ctypes.c_void_p(out.data_ptr()), *cluster,
        )  # fmt: skip
        assert error == 0

    kernels.set_order(order)
    call(loss, None)
    call(torch.tensor(factor), grad)
    kernels.set_order(0)
    return loss, grad, coefficients


def check_loss(kernels, tensors, cluster):
    loss, grad, coefficients = run_loss(kernels, tensors, cluster)
    wide = tensors[0].double().requires_grad_()
    expected = affine_invariant_loss_reference(wide, *tensors[1:])
    (expected_grad,) = torch.autograd.grad(1.7 * expected, wide)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6, nan_ok=True)
    assert torch.equal(grad.isnan(), expected_grad.isnan())
    floor = 2**-25 if grad.dtype == torch.float16 else 1e-12  # half of the smallest float16
    parity.assert_within(grad.nan_to_num(0), expected_grad.nan_to_num(0), steps=2, slack=floor)
    return loss, grad, coefficients


def loss_inputs(seed, shape, kind, masks):
    generator = torch.Generator().manual_seed(seed)
    if kind == "depth-like":
        prediction, target = depth_like(generator, shape)
    else:
        prediction, target = torch.rand(2, *shape, generator=generator) - 0.3
    if kind == "constant":
        prediction = torch.full(shape, -0.25)
    mask, regions = torch.rand(2, *shape, generator=generator) < 0.6
    if len(mask) > 2:
        mask[0] = False  # a map without a valid pixel
        regions[1] = True  # no second region
    return [prediction, target, mask if "m" in masks else None, regions if "r" in masks else None]


@grid(
    {
        "kind": ["noise", "depth-like", "constant"],
        "shape": [(3, 16, 24), (1, 17, 23), (2, 1, 1), (3, 2, 150)],
        "dtypes": [
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.bfloat16),
        ],
        "masks": ["", "m", "r", "mr"],
        "cluster": [(1, 32), (2, 64), (4, 64), (8, 32)],
    }
)
def test_affine_invariant_loss(kernels, kind, shape, dtypes, masks, cluster, seed):
    tensors = loss_inputs(seed, shape, kind, masks)
    tensors[:2] = [x.to(dtype) for x, dtype in zip(tensors, dtypes, strict=False)]
    results = check_loss(kernels, tensors, cluster)
    # Neither the order of the threads changes a bit, nor that of the blocks.
    for order in (1, 2 + seed % 1000):
        again = run_loss(kernels, tensors, cluster, order)
        parity.assert_equal([x.nan_to_num(9) for x in again], [x.nan_to_num(9) for x in results])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_affine_invariant_loss_of_values_that_are_not_finite(kernels, where, value, seed):
    tensors = loss_inputs(seed, (2, 12, 11), "noise", "mr")
    clean = run_loss(kernels, tensors, (4, 32))
    dirty = [x.masked_fill(~tensors[2], value) for x in tensors[:2]] + tensors[2:]
    parity.assert_equal(run_loss(kernels, dirty, (4, 32)), clean)
    tensors[2][1, 3, 5] = True
    tensors[where][1, 3, 5] = value
    assert check_loss(kernels, tensors, (4, 32))[0].isnan()


def test_affine_invariant_loss_of_unaligned_and_distant_maps(kernels, seed):
    tensors = loss_inputs(seed, (4, 8, 15), "depth-like", "mr")
    expected = run_loss(kernels, [x[::2].contiguous() for x in tensors], (4, 32))
    parity.assert_equal(run_loss(kernels, [unaligned(x)[::2] for x in tensors], (4, 32)), expected)


def test_the_cluster_is_chosen_by_the_size_of_the_map_and_the_device(kernels):
    size = kernels.affine_invariant_loss_cluster
    try:
        for most, cluster, pixels, expected in (
            (232448, 16, 30 * 30, 8),
            (232448, 16, 518 * 518, 16),
            (232448, 8, 518 * 518, 0),
            (232448, 8, 300 * 300, 8),
            (232448, 16, 1024 * 1024, 0),
            (101376, 8, 518 * 518, 0),  # sm_120
            (101376, 8, 224 * 224, 8),
            (232448, 0, 30 * 30, 0),  # clusters are refused
            (232448, 16, 2**31, 0),
        ):
            kernels.set_device(most, cluster)
            assert size(ctypes.c_int64(pixels), 1) == expected
        kernels.set_device(232448, 16)
        assert size(ctypes.c_int64(518 * 518), 2) == 16
    finally:
        kernels.set_device(232448, 16)


@pytest.mark.skipif(LIBRARY in os.environ, reason="this is the run in the sanitizers")
@pytest.mark.parametrize(
    "cases",
    [
        pytest.param("not slow", marks=pytest.mark.slow),
        pytest.param("slow", marks=pytest.mark.exhaustive),
    ],
)
def test_sanitizers(cases, tmp_path):
    """Runs the tests above with AddressSanitizer and UndefinedBehaviorSanitizer.

    By default the cases of `make quick`: each shape, type and option at least once.
    """
    library = build(tmp_path / "kernels.so", *SANITIZE)
    runtime = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        LIBRARY: str(library),
        "LD_PRELOAD": runtime,
        # Python and torch leak by design, and are not what is tested.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:alloc_dealloc_mismatch=0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", cases, __file__],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"\b[1-9]\d* passed", done.stdout)
