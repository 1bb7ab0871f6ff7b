"""nvcc compiles the CUDA kernels for every architecture, within budgets of registers and memory.

The tests need no GPU and no PyTorch with CUDA: the .cu files include no torch headers.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOSS = "affine_invariant_loss.cu"
SOURCES = sorted(p.name for p in (ROOT / "csrc" / "cuda").glob("*.cu"))
# Parsed from setup.py, because importing it would start a build.
ARCHITECTURES = re.search(r"CUDA_ARCHITECTURES = \(([^)]*)\)", (ROOT / "setup.py").read_text())[1]
ARCHITECTURES = re.findall(r"\d+", ARCHITECTURES)
OLDEST = ARCHITECTURES[0]

# Limits that allow two blocks of 256 threads on a multiprocessor (registers), and eight (shared
# memory).
MAX_REGISTERS = 128
MAX_SHARED = 12 * 1024


def compile_one(source: str, arch: str, out: Path) -> dict[str, dict[str, int]]:
    """Compiles to a cubin; returns registers, stack, spills and shared memory of each kernel."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("needs nvcc")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    if f"sm_{arch}" not in known.split():
        pytest.skip(f"this nvcc does not know sm_{arch}")
    command = [
        nvcc, "-std=c++17", "-O3", "-Werror", "all-warnings", f"-arch=sm_{arch}", "-Xptxas", "-v",
        f"-I{ROOT}/csrc/include", "-cubin", str(ROOT / "csrc" / "cuda" / source), "-o", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for part in done.stderr.split("Compiling entry function '")[1:]:
        numbers = {
            "registers": r"Used (\d+) registers", "stack": r"(\d+) bytes stack frame",
            "stores": r"(\d+) bytes spill stores", "loads": r"(\d+) bytes spill loads",
            "shared": r"(\d+) bytes smem",
        }  # fmt: skip
        found[part.split("'")[0]] = {
            name: int(match[1]) if (match := re.search(pattern, part)) else 0
            for name, pattern in numbers.items()
        }
    return found


def over_budget(kernels: dict[str, dict[str, int]]) -> list[str]:
    return [
        f"{name}: {used}"
        for name, used in kernels.items()
        if used["stack"] or used["stores"] or used["loads"]
        or not 0 < used["registers"] <= MAX_REGISTERS or used["shared"] > MAX_SHARED
    ]  # fmt: skip


def opcodes(cubin: Path) -> str:
    tools = [shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump"]
    if triton := importlib.util.find_spec("triton"):  # its wheel has one
        tools.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"))
    tool = next((t for t in tools if Path(t).exists()), None)
    if tool is None:
        pytest.skip("needs cuobjdump")
    return subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True).stdout


def check(source: str, arch: str, tmp_path: Path) -> None:
    kernels = compile_one(source, arch, tmp_path / "kernels.cubin")
    assert kernels
    assert not over_budget(kernels)


@pytest.mark.slow
@pytest.mark.parametrize("source", [s for s in SOURCES if s != LOSS])
def test_the_oldest_architecture_stores_lines_and_spills_nothing(source, tmp_path):
    check(source, OLDEST, tmp_path)
    check_stores(tmp_path / "kernels.cubin")


@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_compiles_for_every_architecture(source, arch, tmp_path):
    check(source, arch, tmp_path)


@pytest.mark.slow
def test_the_loss_counts_with_shared_atomics_and_keeps_its_threads(tmp_path):
    """For Hopper: one atomic for each pixel and digit, and registers for 1024 threads."""
    kernels = compile_one(LOSS, "90", tmp_path / "kernels.cubin")
    forward = {k: used for k, used in kernels.items() if "affine_invariant_loss_kernel" in k}
    assert len(forward) == 2 and not over_budget(kernels)
    assert all(used["registers"] <= 64 for used in forward.values())
    functions = opcodes(tmp_path / "kernels.cubin").split("Function : ")[1:]
    for function in functions:
        if "affine_invariant_loss_kernel" in function.split()[0]:
            for opcode in ("ATOMS.POPC.INC", "UCGABAR_ARV", "LDG.E.128"):
                assert opcode in function, (opcode, function[:200])
        else:  # four pixels of a thread
            assert re.search(r"STG\.E\.(128|64)", function), function[:200]


def check_stores(cubin: Path) -> None:
    """Every kernel that writes images stores 16 bytes per thread, or neighbouring words of 4 bytes
    in the lanes of a warp, which fill lines of 128 bytes."""
    functions = opcodes(cubin).split("Function : ")[1:]
    writing = [f for f in functions if not re.match(r"\S*(taps|range)_kernel", f)]
    assert writing
    for function in writing:
        if re.match(r"\S*resize_bilinear_(pairs|planes)_kernel", function):
            assert re.search(r"STG\.E\s", function), function[:200]
            continue
        assert "STG.E.128" in function, function[:200]
        if re.match(
            r"\S*(Lb1E|channels_kernel)", function
        ):  # by channels, where loads are wide too
            assert "LDG.E.128" in function, function[:200]


def test_a_spill_is_over_budget():
    good = {"registers": 64, "stack": 0, "stores": 0, "loads": 0, "shared": 4096}
    assert not over_budget({"kernel": good})
    for name, value in (("stores", 4), ("stack", 8), ("registers", 129), ("shared", 13000)):
        assert over_budget({"kernel": {**good, name: value}})


def test_device_code_is_free_of_torch():
    """nvcc or g++ compile it without PyTorch."""
    files = [*(ROOT / "csrc" / "include").rglob("*.h"), *(ROOT / "csrc" / "cuda").iterdir()]
    for path in files:
        includes = re.findall(r"#include\s+[<\"]([^>\"]+)", path.read_text())
        assert not [i for i in includes if re.match(r"(torch|ATen|c10|pybind11)\b", i)], path
