"""What is in the built extension: its ops, and which functions use which instruction set."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict

import pytest
import torch

from dafast.ops import _extension
from tests.instruction_sets import INSTRUCTION_SETS, needs_extension

pytestmark = needs_extension

INSTRUCTION = re.compile(r"\s+[0-9a-f]+:\s+((?:\{vex\} )?\w+)\s*(.*)")
SETS = (*INSTRUCTION_SETS, "avx_vnni", "avx512_amx")
# AVX-512 only: registers of 512 bits, masks, registers from 16 on, broadcasts from memory.
WIDE = re.compile(r"%zmm|%k[1-7]|%[xy]mm(1[6-9]|2\d|3[01])|\{1to")


@pytest.fixture(scope="module")
def instructions() -> dict[str, list[tuple[str, str]]]:
    """Mnemonics and operands of every function of the built extension."""
    tool, path = shutil.which("objdump"), _extension.load().__file__
    if tool is None or "x86_64" not in path:
        pytest.skip("needs objdump and an extension for x86-64")
    command = [tool, "--disassemble", "--demangle", "--no-show-raw-insn", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    functions, current = defaultdict(list), ""
    for line in done.stdout.splitlines():
        if start := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            current = start[1]
        elif found := INSTRUCTION.match(line):
            functions[current].append((found[1], found[2]))
    if not any("dafast::cpu" in name for name in functions):
        pytest.skip("the extension has no symbols")
    return functions


def set_of(function: str) -> str:
    """The instruction set whose namespace a function is in; "" if it is in none."""
    found = re.search(rf"\(anonymous namespace\)::({'|'.join(SETS)})::", function)
    return found[1] if found else ""


@pytest.mark.slow
def test_only_kernels_of_a_set_use_it(instructions):
    """Of an inline function in several files the linker keeps one copy, for every caller."""
    for function, body in instructions.items():
        # The names of AVX's own encoding, and of nothing older, start with v.
        vectors = [i for i in body if re.match(r"v(?!er[rw])|\{vex\}", i[0])]
        tiles = [i for i in body if re.match("tile|ldtile|sttile|tdp", i[0])]
        if set_of(function) in ("", "portable"):
            assert not vectors, function
        if set_of(function) != "avx512_amx":
            assert not tiles, function
        if set_of(function) == "avx2":
            assert not [i for i in body if "vpdpbusd" in i[0]], function
        if set_of(function) in ("avx2", "avx_vnni"):
            assert not [i for i in body if WIDE.search(i[1])], function
        if set_of(function) == "avx_vnni":  # without a prefix the encoding is that of AVX-512
            assert "vpdpbusd" not in [i[0] for i in body], function
        if set_of(function) == "avx512":
            assert not [i for i in body if "bf16" in i[0]], function


def test_every_set_is_compiled(instructions):
    used = defaultdict(str)
    for function, body in instructions.items():
        used[set_of(function)] += " ".join(f"{name} {operands}" for name, operands in body)
    assert set(SETS) <= used.keys()
    assert "%ymm" in used["avx2"] and "vfmadd" in used["avx2"]
    assert "%zmm" in used["avx512"] and "vpdpbusd" in used["avx512"]
    assert "vdpbf16ps" in used["avx512_bf16"]
    assert "{vex} vpdpbusd" in used["avx_vnni"]
    assert "tdpbusd" in used["avx512_amx"] and "tdpbf16ps" in used["avx512_amx"]


def test_ops_are_those_of_the_dispatcher():
    """The names that ops register next to their schemas, against what PyTorch knows of them."""
    ops = _extension.load().ops
    assert ops == sorted(set(ops)) and len(ops) >= 12
    names = {
        name.removeprefix("dafast_C::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("dafast_C::")
    }
    helpers = {"pack_int8", "pack_linear"}  # of linear_int8 and linear_packed
    forwards = {name.removesuffix("_backward") for name in ops}
    assert {name.removesuffix("_backward") for name in names} - helpers == forwards
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dafast_C::{name}", "CPU"), name
