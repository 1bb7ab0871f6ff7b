"""Budgets of the compiled kernels, for GPUs that need not be there.

Every configuration that a call can choose is compiled by Triton's real back end and held to: no
spills, shared memory within the card's limit, matrix instructions where there is a product, wide
loads. The default run takes a sample of six ops; ``-m exhaustive`` takes all, with a test for each
op and architecture. ``-n 2 -v`` runs two at a time and prints each as it ends, ``-k "sm_90 and
loss"`` selects, ``-s`` (without ``-n``) shows each case. Triton keeps what it compiled: a second
run only inspects it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("triton", reason="the kernels are compiled with Triton, which is missing")

from dafast.kernels.flash_attention_tiles import SHORT  # noqa: E402
from dafast.kernels.masked_median import SHARED_ATOMICS, counting  # noqa: E402

from bench.kernels import WITHOUT_E4M3  # noqa: E402
from bench.registry import STATIC_CASES  # noqa: E402

MATRIX = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_120"), "HMMA"),
    "sm_90": "HGMMA", "sm_100": "UTC", "gfx942": "v_mfma",
}  # fmt: skip
SHARED = {
    "sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536,
    **dict.fromkeys(("sm_86", "sm_89", "sm_120"), 101376),
}  # fmt: skip
WIDE = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89"), ("LDG.E.128", "LDGSTS")),
    **dict.fromkeys(("sm_90", "sm_100", "sm_120"), ("LDG.E.128", "LDGSTS", "UTMALDG")),
    "gfx942": ("dwordx4",),
}  # fmt: skip
# On sm_90 products run while exponentials are computed: the fewest exponentials of a tile that lie
# between a product and the wait for it, heads of 64 in 16 bits. A tile has 34, 16 and 32.
OVERLAP = {
    "_flash_attention_fwd_kernel": 20, "_flash_attention_bwd_dkdv_kernel": 10,
    "_flash_attention_bwd_dq_kernel": 15,
}  # fmt: skip
# Sequences of at most 32 rows: the fewest programs whose registers a multiprocessor holds, heads of
# at most 32, 64 and 128 channels in 16 bits.
SHORT_PROGRAMS = {
    "_flash_attention_fwd_kernel": (12, 6, 2), "_flash_attention_bwd_dkdv_kernel": (7, 4, 1),
    "_flash_attention_bwd_dq_kernel": (9, 4, 2),
}  # fmt: skip
# The kernels that multiply matrices; each must do it with the matrix units.
WITH_PRODUCTS = (
    "_flash_attention_fwd_kernel", "_flash_attention_bwd_dkdv_kernel",
    "_flash_attention_bwd_dq_kernel", "_decoder_tail_kernel", "_conv_transpose_kernel",
)  # fmt: skip
# It counts with one atomic for each pixel from Triton 3.8 on, and with ballots before.
HISTOGRAM = "_affine_invariant_loss_histogram_kernel"
COUNTS_WITH_ATOMICS = counting(importlib.metadata.version("triton"), "cuda") is SHARED_ATOMICS
# Kernels that wide loads do not fit, and why.
NARROW = {
    "_flash_attention_gaps_kernel": "reads the ends of one sequence",
    "_affine_invariant_loss_reduce_kernel": "reads a few numbers per map",
    "_feature_alignment_loss_reduce_kernel": "reads one number per program",
}
# Cases that they do not fit.
NARROW_CASES = {
    "1x12x96x96 to 168x168": "pixels of 12 channels do not start at multiples of 16 bytes",
    "1x24x148x148, ReLU": "sums of 24 channels do not start at multiples of 64 bytes",
}
# 4 bytes that are stored before the loop and read after it (instructions 41 and 1709 of 1760): with
# `--regAllocOptLevel=2`, which Triton 3.9 passes, ptxas keeps to 128 registers, with which four
# programs fit instead of three. Without this option it needs 128 and spills nothing.
SPILLED_ONCE = {("sm_90", HISTOGRAM): 2}
# ptxas serialises wgmma where it cannot prove that nobody touches their registers: then two waits
# go with each. A pipelined loop has this many at most that do not grow with its products.
_OTHER_BARRIERS = 12
# One case in one dtype of each op with a budget of its own, and of a row-wise one. The kernels of
# dense attention are those of sequences of many lengths.
SAMPLE = ("--dtype", "bfloat16", "--sample")
SAMPLED = (
    "flash_attention_varlen", "affine_invariant_loss", "feature_alignment_loss", "decoder_tail",
    "conv_transpose", "add_layer_norm",
)  # fmt: skip


def report(arch: str, tmp_path: Path, *options: str) -> list[dict]:
    """What ``bench/kernels.py --static`` writes, from a process outside of the interpreter."""
    path = tmp_path / "static.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "bench/kernels.py", "--static", "--no-traffic", "--arch", arch]
    # It writes a line for each case to its standard error, which pytest shows if it fails.
    done = subprocess.run(
        [*command, "--json", str(path), *options],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0
    return json.loads(path.read_text())["records"]


def _short_heads(record: dict) -> int:
    """Channels of a head in an attention of at most `SHORT` rows, 0 for other cases."""
    found = re.fullmatch(r"(?:\d+x)?([\d+]+) tokens, \d+x(\d+)", record["case"])
    short = found and max(map(int, found[1].split("+"))) <= SHORT
    return int(found[2]) if short else 0


def _programs(launch: dict) -> int:
    """Programs whose registers a multiprocessor of an NVIDIA GPU holds."""
    granules = -(-launch["registers"] // 8) * 8 * 32 * launch["num_warps"]
    return 65536 // granules


def broken_budgets(record: dict, arch: str) -> list[str]:
    """What is over budget among the launches of one case."""
    found = []
    short = _short_heads(record) if arch != "gfx942" else 0
    wide = WIDE[arch]
    if arch == "gfx942" and 0 < _short_heads(record) <= 8:
        wide = ("dwordx2", "dwordx4")  # a tile of 32 rows has four values for each of its threads
    for launch in record["launches"]:
        name = launch["kernel"]
        what = f"{record['case']} {record['dtype']} {record['precision']} {name}"
        once = 0 if launch["loop"].get("spill") else SPILLED_ONCE.get((arch, name), 0)
        if launch["spills"] > once:
            found.append(f"{what}: {launch['spills']} instructions that spill")
        if launch["shared"] > SHARED[arch]:
            found.append(f"{what}: {launch['shared']} bytes of shared memory")
        exact = record["dtype"] == "float32" and record["precision"] == "highest"
        narrow = name in NARROW or record["case"] in NARROW_CASES
        if not narrow and not any(w in load for w in wide for load in launch["loads"]):
            found.append(f"{what}: no wide load, only {launch['loads']}")
        waits = launch["loop"].get("barrier", 0)
        serial = waits > launch["loop"].get("matrix", 0) + _OTHER_BARRIERS
        counting = launch["counting"]
        slow = any(not opcode.startswith("ATOMS.POPC.INC") for opcode in counting)
        if (
            name == HISTOGRAM
            and COUNTS_WITH_ATOMICS
            and arch != "gfx942"
            and (slow or not counting)
        ):
            found.append(f"{what}: counts with {counting}, not with shared atomics")
        if short and name in SHORT_PROGRAMS and record["dtype"] != "float32":
            least = SHORT_PROGRAMS[name][(short > 32) + (short > 64)]
            if _programs(launch) < least:
                found.append(f"{what}: registers of {_programs(launch)} programs, not {least}")
        if name in WITH_PRODUCTS and not exact:
            # Asynchronous products take 64 rows or more, those of short sequences have 32.
            units = (MATRIX[arch], "HMMA") if short else (MATRIX[arch],)
            if not any(unit.startswith(units) for unit in launch["matrix"]):
                found.append(f"{what}: no {MATRIX[arch]} but {launch['matrix']}")
            elif launch["loop"] and not launch["loop"].get("matrix"):
                found.append(f"{what}: no matrix instruction in its main loop")
            elif arch == "sm_90" and serial:
                found.append(f"{what}: {waits} barriers in its main loop: wgmma is serialised")
        halves_of_64 = record["dtype"] != "float32" and record["case"].endswith("x64")
        if (
            arch == "sm_90"
            and halves_of_64
            and not short
            and launch["overlap"] < OVERLAP.get(name, 0)
        ):
            found.append(f"{what}: only {launch['overlap']} exponentials overlap products")
    return found


def check(records: list[dict], arch: str) -> None:
    assert records and all(record["launches"] for record in records)
    seen = {launch["kernel"] for record in records for launch in record["launches"]}
    assert set(WITH_PRODUCTS) | set(NARROW) | {HISTOGRAM} <= seen, "a kernel was renamed"
    found = [line for record in records for line in broken_budgets(record, arch)]
    assert not found, "\n".join(found)


@pytest.mark.exhaustive
def test_sample_keeps_its_budget_on_sm_120(tmp_path):
    """Only products: the other kernels hardly differ from those of sm_90."""
    records = report("sm_120", tmp_path, *SAMPLE, "--op", "flash_attention", "--op", "decoder_tail")
    assert {r["op"] for r in records} == {"flash_attention", "decoder_tail"}
    found = [line for record in records for line in broken_budgets(record, "sm_120")]
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_90"])
def test_sample_keeps_its_budget(arch, tmp_path):
    records = report(arch, tmp_path, *SAMPLE, *(f"--op={op}" for op in SAMPLED))
    assert {r["op"] for r in records} == set(SAMPLED)
    check(records, arch)
    # Counted in full by `--static` without `--no-traffic`; launches are the same everywhere.
    loss = [r for r in records if r["op"] == "affine_invariant_loss"]
    most = 6 if COUNTS_WITH_ATOMICS else 7
    assert all(len(r["launches"]) <= most for r in loss), "and a memset"


@pytest.mark.exhaustive
@pytest.mark.parametrize("op", list(dict.fromkeys(case.op for case in STATIC_CASES)))
@pytest.mark.parametrize("arch", list(MATRIX))
def test_every_configuration_keeps_its_budget(arch, op, tmp_path):
    cases = [case for case in STATIC_CASES if case.op == op]
    if arch in WITHOUT_E4M3 and all(case.e4m3 for case in cases):
        pytest.skip(f"{arch} has no e4m3")
    records = report(arch, tmp_path, "--op", op)
    assert records and all(record["launches"] for record in records)
    found = [line for record in records for line in broken_budgets(record, arch)]
    assert not found, "\n".join(found)
