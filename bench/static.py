"""Inspects the compiled kernels on a machine without a GPU.

A driver that only records replaces Triton's: the ops run as on a GPU, Triton's real compiler
compiles every launch for the requested architecture, and nothing is executed. The tools in
Triton's wheel then disassemble the binaries.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler.compiler import CompiledKernel

from bench.registry import Case
from dafast.ops import use_backend

ARCHITECTURES = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet (dense rates, no sparsity).

    Attributes:
        name: Name of the product.
        bandwidth: Bytes per second of its memory.
        matrix: FLOP/s of its matrix units by dtype; float32 is TF32.
        shared: Bytes of shared memory of one program at most, and of one SM.
        registers: 32-bit registers of one SM.
        warps: Warps of one SM at most.
    """

    name: str
    bandwidth: float
    matrix: dict[torch.dtype, float]
    shared: tuple[int, int]
    registers: int = 65536
    warps: int = 64


def _rates(half: float, tf32: float) -> dict[torch.dtype, float]:
    return {torch.float16: half, torch.bfloat16: half, torch.float32: tf32}


CARDS = {
    "sm_80": Card("A100 SXM 80 GB", 2.039e12, _rates(312e12, 156e12), (166912, 167936)),
    "sm_86": Card("A40", 696e9, _rates(149.7e12, 74.8e12), (101376, 102400), warps=48),
    "sm_89": Card("L40S", 864e9, _rates(362e12, 183e12), (101376, 102400), warps=48),
    "sm_90": Card("H100 SXM 80 GB", 3.35e12, _rates(989e12, 494e12), (232448, 233472)),
    "sm_100": Card("B200", 8.0e12, _rates(2250e12, 1125e12), (232448, 233472)),
    "sm_120": Card("RTX 5090", 1.792e12, _rates(209.5e12, 104.8e12), (101376, 102400), warps=48),
    "gfx942": Card("MI300X", 5.3e12, _rates(1307e12, 653e12), (65536, 65536), warps=32),
}

# SASS opcodes by their kind; the first matching pattern counts.
KINDS = {
    "matrix": r"HMMA|HGMMA|IMMA|UTC\w*MMA|QGMMA|v_mfma",
    "load": r"LDG|LDGSTS|UTMALDG|LD\b|global_load|buffer_load",
    "store": r"STG|UTMASTG|RED|ATOM|global_store|buffer_store|global_atomic|buffer_atomic",
    "shared": r"LDS|STS|LDSM|STSM|ATOMS|LDTM|STTM|ds_",
    "exp": r"MUFU|v_exp",
    "float": r"FADD|FMUL|FFMA|FMNMX|FSETP|FSEL|FSET|HADD|HFMA|HMUL|HMNMX|DADD|DFMA"
    r"|v_(pk_)?(add|mul|fma|max|min|sub|mac)\w*_f",
    "convert": r"F2F|F2I|I2F|PRMT|v_cvt|v_perm",
    "shuffle": r"SHFL|ds_bpermute|ds_swizzle",
    "barrier": r"BAR|SYNC|DEPBAR|WARPSYNC|WARPGROUP|CCTL|ERRBAR|MEMBAR|FENCE|s_barrier|s_waitcnt",
    "spill": r"LDL|STL|scratch_",
    "integer": r"U?(IADD|IMAD|LOP|SHF|LEA|ISETP|IMNMX|VIADD|MOV|SEL|PLOP|P2R|R2P|R2UR|S2R|CS2R)"
    r"|[sv]_\w*_(u|i|b)(16|32|64)\w*$",
}


_WORK = ("matrix", "load", "store", "shared", "exp", "float", "convert", "shuffle")
"""Kinds of instructions of a loop that does more than wait."""


@dataclass
class Launch:
    """One launch: the compiled kernel and its launch parameters.

    ``overlap`` counts the exponentials of the main loop that lie between a matrix instruction and
    the wait for it (sm_90 only).
    """

    kernel: str
    grid: tuple[int, int, int]
    num_warps: int
    num_stages: int
    shared: int
    registers: int
    spills: int
    occupancy: float
    instructions: dict[str, int] = field(default_factory=dict)
    loop: dict[str, int] = field(default_factory=dict)
    overlap: int = 0
    loads: dict[str, int] = field(default_factory=dict)
    matrix: list[str] = field(default_factory=list)
    counting: dict[str, int] = field(default_factory=dict)


def _kind(opcode: str) -> str:
    for kind, pattern in KINDS.items():
        if re.match(pattern, opcode):
            return kind
    return "other"


def _tool(name: str, binary: bytes, *options: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tool), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _sass(cubin: bytes) -> tuple[list[str], list[tuple[int, int]]]:
    """Opcodes in order, and the (first, last) index of every backward branch's body."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    for line in _tool("nvdisasm", cubin, "-c").splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(opcodes)
        found = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);", line)
        if found:
            if found[1].startswith("BRA") and (goal := re.search(r"\.L_\w+", found[2])):
                branches.append((len(opcodes), goal[0]))
            opcodes.append(found[1])
    loops = [(labels[goal], at) for at, goal in branches if labels.get(goal, at + 1) < at]
    return opcodes, loops


def _gcn(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The same from AMD assembly."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    for line in text.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(opcodes)
        elif found := re.match(r"\s+([sv]_\w+|ds_\w+|global_\w+|buffer_\w+|scratch_\w+)(.*)", line):
            if "branch" in found[1] and (goal := re.search(r"\.L\w+", found[2])):
                branches.append((len(opcodes), goal[0]))
            opcodes.append(found[1])
    loops = [(labels[goal], at) for at, goal in branches if labels.get(goal, at + 1) < at]
    return opcodes, loops


def _overlap(body: list[str]) -> int:
    """The most exponentials of a loop between a matrix instruction and the wait for it."""
    most = since = 0
    running = False
    for opcode in body:
        if _kind(opcode) == "matrix":
            running = True
        elif opcode.startswith("WARPGROUP.DEPBAR"):
            most, since, running = max(most, since), 0, False
        elif running and opcode.startswith("MUFU.EX2"):
            since += 1
    return most


@functools.cache
def _analyse(kernel: CompiledKernel) -> dict[str, Any]:
    """Registers, spills and instructions of a compiled kernel."""
    if "cubin" in kernel.asm:
        usage = _tool("cuobjdump", kernel.asm["cubin"], "--dump-resource-usage")
        registers = int(re.search(r"REG:(\d+)", usage)[1])  # type: ignore[index]
        opcodes, loops = _sass(kernel.asm["cubin"])
        wide = r"(LDG|LDGSTS|UTMALDG)\b.*"
    else:
        text = kernel.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])  # type: ignore[index]
        opcodes, loops = _gcn(text)
        wide = r"(global|buffer)_load.*"
    innermost = [
        body for body in loops
        if not any(o != body and body[0] <= o[0] and o[1] <= body[1] for o in loops)
    ]  # fmt: skip
    # The main loop has the most matrix instructions; without any it is the longest.
    bodies = [opcodes[first : last + 1] for first, last in innermost]
    mixes = [Counter(map(_kind, body)) for body in bodies]
    # Not those that only wait, as on sm_100 for each product that is not in a loop.
    working = [i for i, mix in enumerate(mixes) if any(mix[kind] for kind in _WORK)]
    order = sorted(working, key=lambda i: (mixes[i]["matrix"], mixes[i].total()))
    main = mixes[order[-1]] if order else Counter()
    kinds = Counter(map(_kind, opcodes))
    return {
        "registers": registers,
        "spills": kinds["spill"],
        "instructions": dict(kinds),
        "loop": dict(main),
        "overlap": _overlap(bodies[order[-1]]) if order else 0,
        "loads": dict(Counter(o for o in opcodes if re.match(wide, o))),
        # How a histogram counts: with shared atomics, or with ballots for each bin.
        "counting": dict(Counter(o for o in opcodes if re.match(r"ATOMS|VOTE|MATCH", o))),
        "matrix": sorted({o.split(".")[0] for o in opcodes if _kind(o) == "matrix"}),
    }


def _occupancy(card: Card, registers: int, shared: int, num_warps: int) -> float:
    """Fraction of an SM's warps that can be resident, from registers and shared memory."""
    granules = -(-registers // 8) * 8 * 32 * num_warps
    programs = min(card.warps // num_warps, card.registers // max(granules, 1), 32)
    if shared:
        programs = min(programs, card.shared[1] // (shared + 1024))
    return programs * num_warps / card.warps


class _Utils:
    def __init__(self, card: Card) -> None:
        self.card = card

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.card.shared[0], "max_num_regs": self.card.registers,
            "multiprocessor_count": 132, "warpSize": 32, "sm_clock_rate": 1_000_000,
            "mem_clock_rate": 1_000_000, "mem_bus_width": 5120,
        }  # fmt: skip

    def load_binary(self, *args: Any) -> tuple[Any, ...]:
        return object(), object(), 0, 0, 1024

    def unload_module(self, *args: Any) -> None:
        pass


class RecordingDriver(DriverBase):
    """A Triton driver without a GPU: launches are compiled and recorded, not run."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.card = CARDS[arch]
        self.utils = _Utils(self.card)
        self.launches: list[Launch] = []

    @classmethod
    def is_active(cls) -> bool:
        return True

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        def launch(gx: int, gy: int, gz: int, stream: int, kernel: Any, *args: Any) -> None:
            self.launches.append(self._record(kernel, (gx, gy, gz)))

        return launch

    def _record(self, kernel: CompiledKernel, grid: tuple[int, int, int]) -> Launch:
        about = _analyse(kernel)
        meta = kernel.metadata
        return Launch(
            kernel=kernel.name, grid=grid, num_warps=meta.num_warps, num_stages=meta.num_stages,
            shared=meta.shared,
            occupancy=_occupancy(self.card, about["registers"], meta.shared, meta.num_warps),
            **about,
        )  # fmt: skip

    def get_current_target(self) -> GPUTarget:
        return ARCHITECTURES[self.arch]

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing is timed here")

    def get_empty_cache_for_benchmark(self) -> Any:
        raise RuntimeError("nothing is timed here")

    def clear_cache(self, cache: Any) -> None:
        pass


@functools.cache
def _driver(arch: str) -> RecordingDriver:
    """One per process: a compiled kernel keeps its first launcher."""
    return RecordingDriver(arch)


@contextmanager
def recording(arch: str) -> Iterator[list[Launch]]:
    """Compiles the launches inside for ``arch`` and yields them; results are undefined.

    Only one architecture per process: Triton keeps compiled kernels per device.

    Raises:
        RuntimeError: If Triton's interpreter is on, which compiles nothing.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: nothing would be compiled; unset it")
    driver = _driver(arch)
    driver.launches = launches = []
    before = triton.runtime.driver._active
    original = CompiledKernel._init_handles

    def init_handles(self: CompiledKernel) -> None:
        original(self)
        self.function = self  # the launcher gets the kernel itself

    CompiledKernel._init_handles = init_handles
    triton.runtime.driver.set_active(driver)
    try:
        with use_backend("triton"):
            yield launches
    finally:
        CompiledKernel._init_handles = original
        triton.runtime.driver.set_active(before)


class _CountKernels(TorchDispatchMode):
    """Counts the operations that are not views: each is at least one launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        view = func.is_view or func._schema.name in ("aten::detach", "aten::_unsafe_view")
        self.count += not view
        return func(*args, **(kwargs or {}))


def eager_operations(case: Case, dtype: torch.dtype) -> int:
    """Operations that the reference's forward and backward dispatch; each is a launch or more."""
    arguments = case.make(0, dtype, torch.device("cpu"))
    with use_backend("reference"), _CountKernels() as counter:
        case.run(arguments)
    return counter.count


def inspect(case: Case, dtype: torch.dtype, arch: str) -> dict[str, Any]:
    """Compiles the forward and backward of a case.

    Returns:
        The bytes and FLOPs that the op needs at least, the card's bound on its forward in
        microseconds, and all launches.
    """
    arguments = case.make(0, dtype, torch.device("cpu"))
    with recording(arch) as launches:
        case.run(arguments)
    card = CARDS[arch]
    size = dtype.itemsize
    bound = max(case.bytes(size) / card.bandwidth, case.flops / card.matrix[dtype])
    return {
        "op": case.op, "case": case.label, "dtype": str(dtype).removeprefix("torch."),
        "arch": arch, "card": card.name, "flops": case.flops, "bytes": case.bytes(size),
        "forward_bound_us": 1e6 * bound,
        "launches": [asdict(launch) for launch in launches],
    }  # fmt: skip
