"""Products for AVX-VNNI and AMX on processors without them; tests/emulated/ has the emulator."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow  # a second to compile


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> ctypes.CDLL:
    compiler, has = shutil.which("g++"), torch.cpu.get_capabilities()
    if compiler is None or not (has.get("avx512_vnni") and has.get("avx512_bf16")):
        pytest.skip("needs g++ and a processor with AVX-512 VNNI and BF16")
    path = tmp_path_factory.mktemp("tiles") / "tiles.so"
    command = [
        compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-DDAFAST_EMULATED",
        f"-I{ROOT}/csrc/cpu", f"-I{ROOT}/csrc/include", f"-I{ROOT}/tests/emulated",
        str(ROOT / "tests" / "emulated" / "tiles.cpp"), "-o", str(path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(path))
    library.instruction.restype = ctypes.c_char_p
    return library


def strides(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Random steps, runs, and distances of runs and rows, in steps."""
    steps, runs = int(rng.choice([1, 5, 15, 16, 17, 32, 43])), int(rng.integers(1, 4))
    run_stride = steps + int(rng.integers(0, 9))
    return steps, runs, run_stride, int(rng.integers(1, runs * run_stride + 9))


def pointer(data: np.ndarray | torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(data.data_ptr() if isinstance(data, torch.Tensor) else data.ctypes.data)


@pytest.mark.parametrize("amx", [False, True], ids=["avx_vnni", "avx512_amx"])
def test_bytes_are_exact(tiles, amx, seed):
    rng = np.random.default_rng(seed)
    for trial in range(12):
        width, (steps, runs, run_stride, row_stride) = 1 + trial % 4, strides(rng)
        left = rng.integers(0, 256, 4 * (16 * row_stride + runs * run_stride), dtype=np.uint8)
        right = rng.integers(-128, 128, (runs, steps, 16 * width, 4), dtype=np.int8)
        if trial >= 8:  # sums of two products saturate in 16 bits
            left[:], right[:] = 255, rng.choice([-128, 127])
        start = rng.integers(-(2**20), 2**20, 16 * width, dtype=np.int32)
        out = np.empty((16, 16 * width), dtype=np.int32)
        rows = tiles.bytes_product(
            amx, width, pointer(left), ctypes.c_int64(4 * row_stride), ctypes.c_int64(runs),
            ctypes.c_int64(4 * run_stride), ctypes.c_int64(steps), pointer(right), pointer(start),
            pointer(out),
        )  # fmt: skip
        wide = right.astype(np.int64)
        for row in range(rows):
            wanted = start.astype(np.int64)
            for run in range(runs):
                first = 4 * (row * row_stride + run * run_stride)
                part = left[first : first + 4 * steps].reshape(steps, 4).astype(np.int64)
                wanted = wanted + np.einsum("si,sni->n", part, wide[run])
            np.testing.assert_array_equal(out[row], wanted)


def test_pairs_of_bfloat16(tiles, seed):
    rng = np.random.default_rng(seed)
    for trial in range(8):
        steps, runs, run_stride, row_stride = strides(rng)
        cells = 16 * row_stride + runs * run_stride
        left = torch.randn(2 * cells).bfloat16()
        right = torch.randn(runs, steps, 32, 2).bfloat16()
        each = trial % 2  # whether each row has a start of its own
        start, out = torch.randn(16 if each else 1, 32), torch.empty(16, 32)
        tiles.pairs_product(
            pointer(left), ctypes.c_int64(row_stride), ctypes.c_int64(runs),
            ctypes.c_int64(run_stride), ctypes.c_int64(steps), pointer(right), pointer(start),
            ctypes.c_int64(32 * each), pointer(out),
        )  # fmt: skip
        first = torch.arange(16)[:, None] * row_stride + torch.arange(runs) * run_stride
        at = 2 * first[..., None] + torch.arange(2 * steps)  # (16, runs, 2 steps)
        a = left.double()[at].reshape(16, -1)
        b = right.double().transpose(2, 3).reshape(-1, 32)
        wanted = start.double() + a @ b
        size = start.abs().double() + a.abs() @ b.abs()
        assert ((out - wanted).abs() <= (2 * runs * steps + 4) * 2.0**-24 * size).all()


class Emulator:
    """The instructions of the emulator, on tiles of numpy arrays."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.run("tilerelease")

    def run(self, name: str, *tiles: int, memory: np.ndarray | None = None) -> str:
        a, b, c = (*tiles, 0, 0, 0)[:3]
        stride = ctypes.c_int64(memory.strides[0] if memory is not None else 0)
        at = pointer(memory) if memory is not None else None
        return self.library.instruction(name.encode(), a, b, c, at, stride).decode()

    def configure(self, *shapes: tuple[int, int], **other: int) -> str:
        """Sets up tiles of these rows and bytes; ``other`` are bytes of the settings."""
        settings = np.zeros(64, dtype=np.uint8)
        settings[0] = 1
        for i, (rows, width) in enumerate(shapes):
            settings[16 + 2 * i], settings[48 + i] = width, rows
        for place, value in other.items():
            settings[int(place[1:])] = value
        return self.run("ldtilecfg", memory=settings)

    def product(self, name: str, c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """What an instruction leaves in a tile of 16 rows of 64 bytes."""
        shapes = [(len(x), x.strides[0]) for x in (c, a, b)]
        assert not self.configure(*shapes)
        for i, x in enumerate((c, a, b)):
            assert not self.run("tileloadd", i, memory=x)
        assert not self.run(name, 0, 1, 2)
        out = np.zeros_like(c)
        assert not self.run("tilestored", 0, memory=out)
        return out


@pytest.fixture
def emulator(tiles) -> Emulator:
    return Emulator(tiles)


def test_the_emulator_refuses_what_a_processor_does(emulator):
    block = np.zeros((16, 64), dtype=np.uint8)
    assert "before they are configured" in emulator.run("tileloadd", 0, memory=block)
    assert "unknown palette" in emulator.configure(_0=2)
    assert "reserved byte" in emulator.configure((1, 4), _5=1)
    assert "reserved byte" in emulator.configure((1, 4), _40=1)
    assert "too large" in emulator.configure((17, 64))
    assert "too large" in emulator.configure((16, 68))
    assert "rows or columns only" in emulator.configure((16, 0))
    shapes = [(16, 64), (16, 64), (16, 64), (8, 64), (16, 32)]
    assert emulator.configure(*shapes) == ""
    assert "no tile 8" in emulator.run("tilezero", 8)
    assert "tile 5 is not configured" in emulator.run("tilestored", 5, memory=block)
    for name in ("tdpbusd", "tdpbssd", "tdpbf16ps"):
        assert emulator.run(name, 0, 1, 2) == ""
        assert "with itself" in emulator.run(name, 0, 1, 1)
        assert "do not fit" in emulator.run(name, 0, 1, 3)
        assert "do not fit" in emulator.run(name, 0, 4, 2)
        assert "do not fit" in emulator.run(name, 4, 1, 2)
    assert emulator.run("tilerelease") == ""
    assert "before they are configured" in emulator.run(name, 0, 1, 2)


@pytest.mark.parametrize("name", ["tdpbusd", "tdpbssd"])
def test_products_of_bytes(emulator, name, seed):
    rng = np.random.default_rng(seed)
    for m, n, k in [(16, 16, 16), (5, 3, 7), (1, 1, 1)]:
        kind = np.uint8 if name == "tdpbusd" else np.int8
        a = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (m, 4 * k), dtype=kind)
        b = rng.integers(-128, 128, (k, 4 * n), dtype=np.int8)
        c = rng.integers(-(2**31), 2**31, (m, n), dtype=np.int32)  # sums wrap around
        wide = b.astype(np.int64).reshape(k, n, 4).transpose(0, 2, 1).reshape(4 * k, n)
        wanted = (c + a.astype(np.int64) @ wide).astype(np.int32)
        np.testing.assert_array_equal(emulator.product(name, c, a, b), wanted)


def bfloat16(*values: float) -> np.ndarray:
    return (np.array([values], dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_rounding_of_bfloat16(emulator):
    def product(c: float, left: np.ndarray, right: np.ndarray) -> float:
        pairs = right.reshape(-1, 2).copy()
        out = emulator.product("tdpbf16ps", np.array([[c]], dtype=np.float32), left, pairs)
        return float(out[0, 0])

    small, big = 2.0**-126, 2.0**127
    # Even and odd products have separate sums: 2^24 + 1 rounds to 2^24 before -2^24 is added.
    assert product(0.0, bfloat16(2.0**12, -(2.0**12), 1, 0), bfloat16(2.0**12, 2.0**12, 1, 1)) == 0
    assert product(0.0, bfloat16(2.0**12, 1, -(2.0**12), 0), bfloat16(2.0**12, 1, 2.0**12, 1)) == 1
    # A product is not rounded before it is added: 2^128 alone is infinite.
    assert product(0.0, bfloat16(-big, 0, big, 0), bfloat16(1, 0, 2, 0)) == big
    # Subnormal inputs, sums and results are zeros.
    assert product(1.0, bfloat16(small / 2, 0), bfloat16(big, 0)) == 1
    assert product(small, bfloat16(small, 0), bfloat16(-0.75, 0)) == small
    assert product(small / 2, bfloat16(0, 0), bfloat16(0, 0)) == 0
    assert product(1.5 * small, bfloat16(small, 0), bfloat16(-1, 0)) == 0
    assert np.isnan(product(0.0, bfloat16(np.inf, 0), bfloat16(0, 0)))
