"""What all kernels share: how and on which device they are launched, `tl.dot` in every dtype."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl

INTERPRET: bool = triton.knobs.runtime.interpret
"""Whether the kernels run in Triton's interpreter; fixed when Triton's decorators ran."""


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up. Triton's own, meant for kernels, takes the host microseconds."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least ``n``, without Triton's slower function."""
    return 1 << max(n - 1, 0).bit_length()


_assumed: list[tuple[str, int | str]] = []


def target() -> tuple[str, int | str]:
    """Returns what a launch now would compile for; launchers choose their tiles by it.

    Returns:
        ``("cuda", 80)`` and the like, ``("hip", "gfx942")``, or ``("interpreter", 0)``.
    """
    if _assumed:
        return _assumed[-1]
    if INTERPRET:
        return "interpreter", 0
    return _target_of(torch.cuda.current_device() if _several_gpus() else 0)


@functools.cache
def _target_of(device: int) -> tuple[str, int | str]:
    """The target of the current device; the driver is asked once for each."""
    current = triton.runtime.driver.active.get_current_target()
    return current.backend, current.arch


def matrix_units(backend: str, arch: int | str) -> str:
    """Returns how a `target` multiplies matrices.

    ``"wgmma"`` (sm_90) and ``"tcgen05"`` (sm_10x and sm_11x) run while a program goes on, and take
    64 rows or more. ``"mma"`` (sm_8x and sm_12x) does not. The others are ``"mfma"`` (AMD) and
    ``"interpreter"``.
    """
    if backend != "cuda":
        return "mfma" if backend == "hip" else backend
    return {9: "wgmma", 10: "tcgen05", 11: "tcgen05"}.get(int(arch) // 10, "mma")


def processors() -> int:
    """Returns the number of multiprocessors of the current GPU; 0 in Triton's interpreter."""
    if INTERPRET:
        return 0
    return _processors_of(torch.cuda.current_device() if _several_gpus() else 0)


@functools.cache
def _processors_of(device: int) -> int:
    utils = triton.runtime.driver.active.utils
    return utils.get_device_properties(device)["multiprocessor_count"]


@functools.cache
def _several_gpus() -> bool:
    return torch.cuda.device_count() > 1


@contextlib.contextmanager
def assume_target(backend: str, arch: int | str) -> Iterator[None]:
    """Within it launchers choose their tiles as on this target, also where they are interpreted."""
    _assumed.append((backend, arch))
    try:
        yield
    finally:
        _assumed.pop()


def float32_precision() -> str:
    """``input_precision`` of `tl.dot` on float32, as PyTorch's products on CUDA have it."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision in ("tf32", "bf16") else "ieee"


_Launcher = TypeVar("_Launcher", bound=Callable)


def on_its_device(launcher: _Launcher) -> _Launcher:
    """Makes a launcher run with the GPU of its first tensor as the current one.

    Triton launches on the current device and its current stream, wherever the tensors are.
    """

    @functools.wraps(launcher)
    def run(*args, **kwargs):
        if not _several_gpus():
            return launcher(*args, **kwargs)
        with torch.cuda.device_of(next(x for x in args if isinstance(x, torch.Tensor))):
            return launcher(*args, **kwargs)

    return run  # type: ignore[return-value]


_MAX_LAUNCHES = 4096
_INT32 = range(-(2**31), 2**31)


class Kernel:
    """A kernel whose launches find the compiled code without Triton's search.

    Triton binds the arguments of every launch to their names, and derives and formats what the code
    is specialised for: some 20 Python calls. Here a key of the arguments' dtypes, alignments and
    specialised values leads to what Triton launched for them before.

    Args:
        fn: What `triton.jit` made.
    """

    def __init__(self, fn: Any) -> None:
        self.fn = fn
        self._specialized = [not p.do_not_specialize for p in fn.params]
        self._launches: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fn, name)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        hooks = triton.knobs.runtime
        if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # of a profiler
            self.fn[grid](*args, **options)
            return
        device = torch.cuda.current_device() if _several_gpus() else 0
        parts = [device, *options, *options.values()]
        for specialized, x in zip(self._specialized, args, strict=False):
            if isinstance(x, torch.Tensor):
                parts.append(x.dtype)
                parts.append(x.data_ptr() % 16)
            elif type(x) is float:  # one code for all values
                parts.append(float)
            elif specialized or type(x) is not int:
                parts.append(x)
            else:
                parts.append(x in _INT32)
        key = tuple(parts)
        known = self._launches.get(key)
        if known is None:
            compiled = self.fn[grid](*args, **options)
            if len(self._launches) >= _MAX_LAUNCHES:
                self._launches.clear()
            rest = [options.get(p.name, p.default) for p in self.fn.params[len(args) :]]
            stream = triton.runtime.driver.active.get_current_stream
            about = (compiled.run, compiled.function, compiled.packed_metadata)
            self._launches[key] = (*about, stream, rest, compiled)
            return
        run, function, metadata, stream, rest, _ = known
        x, y, z = (*grid, 1, 1)[:3]
        run(x, y, z, stream(device), function, metadata, None, None, None, *args, *rest)


def kernel(fn: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`triton.jit` for what is launched, as a `Kernel` where it is compiled for NVIDIA GPUs.

    On AMD GPUs Triton's launches stay: there the code also depends on the sizes of the tensors.
    """
    if fn is None:
        return functools.partial(kernel, **options)
    jitted = triton.jit(fn, **options)
    return jitted if INTERPRET or torch.version.hip else Kernel(jitted)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """``acc + a @ b`` in float32.

    Triton's interpreter multiplies the bits of bfloat16 operands as integers; there the operands
    are converted first, which changes nothing: the products are exact in float32.
    """
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@kernel(do_not_specialize=["programs"])
def _sum_over_programs_kernel(
    partial_ptr, out_ptr, programs, columns, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < columns
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, programs, BLOCK_P):
        row = start + tl.arange(0, BLOCK_P)
        mask = (row < programs)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(partial_ptr + at, mask=mask, other=0.0)
    tl.store(out_ptr + column, tl.sum(total, 0), mask=inside)


def sum_over_programs(partial: torch.Tensor) -> torch.Tensor:
    """Sums what the programs of a kernel left, always in the same order: (P, K) to (K), float32."""
    programs, columns = partial.shape
    out = torch.empty((columns,), dtype=torch.float32, device=partial.device)
    _sum_over_programs_kernel[(cdiv(columns, 32),)](
        partial, out, programs, columns,
        BLOCK_P=128, BLOCK_C=32, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return out
