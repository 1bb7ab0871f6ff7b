"""Tables of the first runs on a GPU, from ``bench/results/h100-*.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.tables import figure, span, table

FILES = {
    "first": "h100-first-run.json",
    "attention": "h100-attention-and-loss.json",
    "glue": "h100-glue.json",
    "resize": "h100-resize.json",
    "printed": "h100-printed.json",
}
COPY_GBYTES = 3000.0
"""The measured rate of a copy; the runs differ by less than 1%."""

BOTH = "forward+backward"
ATTENTION = "flash_attention_qkvpacked"
LOSS = "affine_invariant_loss"
ALIGNMENT = "feature_alignment_loss"


class FirstRuns:
    """The records of the first runs.

    Args:
        folder: Of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.reports = {
            run: json.loads((folder / name).read_text(encoding="utf-8"))
            for run, name in FILES.items()
        }

    def get(
        self, run: str, op: str, case: str, dtype: str, step: str, backend: str = ""
    ) -> dict[str, Any]:
        """A record; empty if the run has none."""
        wanted = {"op": op, "case": case, "dtype": dtype, "pass": step}
        if backend:
            wanted["backend"] = backend
        for record in self.reports[run]["records"]:
            if all(record.get(key) == value for key, value in wanted.items()):
                return record
        return {}

    def peaks(self, key: str) -> list[float]:
        """One of the measured peaks of every run."""
        return [report["peaks"][key] for report in self.reports.values() if "peaks" in report]


Blocks = dict[str, Callable[[FirstRuns], str]]

CASES = (
    "16x1370 tokens, 16x64", "8x1814 tokens, 16x64", "4x4552 tokens, 16x64", "1x1370 tokens, 16x64",
    "1x1370 tokens, 6x64",
)  # fmt: skip
BATCHES = CASES[:3]


def _attention_run(step: str) -> str:
    return "attention" if step == BOTH else "first"


def _time(runs: FirstRuns, case: str, step: str, backend: str) -> float:
    return runs.get(_attention_run(step), ATTENTION, case, "bfloat16", step, backend)["ms"]


def machine(runs: FirstRuns) -> str:
    """Where and when the runs were."""
    found = runs.reports["first"]["machine"]
    return (
        f"Measured on an {found['device']} on {found['date']}, with PyTorch {found['torch']} (CUDA "
        f"{found['cuda']}), Triton {found['triton']}, Python {found['python']}.\n"
    )


def peaks(runs: FirstRuns) -> str:
    """The peak rates of the card."""
    rows = [["", "measured"]]
    rows.append(["copy, TB/s", span([x / 1e3 for x in runs.peaks("copy_gbytes")], 1)])
    for dtype in ("bfloat16", "float16", "float32"):
        rates = [x / 1e3 for x in runs.peaks(f"matmul_{dtype}_gflops")]
        rows.append([f"product of 8192x8192 matrices, {dtype}, TFLOP/s", span(rates, 0)])
    return table(rows)


def attention(runs: FirstRuns) -> str:
    """Attention and its peers."""
    peers = ("triton", "sdpa", "sdpa cudnn", "sdpa flash", "xformers", "sdpa efficient")
    rows = [["tokens, heads", "pass", "**dafast**", "SDPA, its own choice", "cuDNN", "flash",
             "xformers", "efficient", "TFLOP/s"]]  # fmt: skip
    for case in CASES:
        shape = case.replace(" tokens", "").replace("x64", "").replace("x", " x ", 1)
        for step in ("forward", BOTH):
            run = _attention_run(step)
            record = runs.get(run, ATTENTION, case, "bfloat16", step, "triton")
            rate = f"{record['gflops'] / 1e3:.0f}" if case in BATCHES else ""
            times = (figure(_time(runs, case, step, peer)) for peer in peers)
            rows.append([shape if step == "forward" else "",
                         "forward" if step == "forward" else "both", *times, rate])  # fmt: skip
    cudnn, flash = (
        [_time(runs, case, step, peer) / _time(runs, case, step, "triton")
         for case in BATCHES for step in ("forward", BOTH)]
        for peer in ("sdpa cudnn", "sdpa flash")
    )  # fmt: skip
    kernels = [runs.get("printed", ATTENTION, CASES[4], "bfloat16", step)["us"]
               for step in ("forward", "backward")]  # fmt: skip
    memory = [
        a["peak_bytes"] / b["peak_bytes"]
        for case in BATCHES
        for a, b in [[runs.get("attention", ATTENTION, case, "bfloat16", BOTH, backend)
                      for backend in ("triton", "sdpa flash")]]
    ]  # fmt: skip
    tiles = [runs.get("attention", ATTENTION, case, "bfloat16", "forward", "triton")["ms"]
             / _time(runs, case, "forward", "triton") for case in BATCHES]  # fmt: skip
    exact = [
        ours / theirs
        for case in CASES[3:]
        for step in ("forward", BOTH)
        for ours, theirs in [[runs.get("attention", ATTENTION, case, "float32", step, backend)["ms"]
                              for backend in ("triton", "sdpa")]]
    ]  # fmt: skip
    return table(rows) + (
        f"\nFor a batch, attention takes {span([1 / x for x in cudnn])} of cuDNN's time and is "
        f"{span(flash, 1)} times as fast as FlashAttention-2 (SDPA's `flash`), with "
        f"{span(memory)} of its memory for both passes (the gradient of a packed qkv is written in "
        f"place). For one image the time is that of the host: the kernels take {kernels[0]} us "
        f"forward and {kernels[1]} backward with 6 heads. Sequences of 1370, 962 and 1814 tokens "
        f"(6 heads) take {_varlen(runs, 'triton')} forward in one launch; SDPA takes "
        f"{_varlen(runs, 'sdpa')} for one after the other (flash {_varlen(runs, 'sdpa flash')}), "
        f"xformers' block-diagonal mask {_varlen(runs, 'xformers')} ([attention]).\n\n"
        f"The forward of [attention] had tiles of 64x64, with which a batch takes {span(tiles)} of "
        "the times above. Float32 without TF32 cannot use tensor cores, and for one image the "
        f"Triton kernel takes {span(exact, 1)} times as long as PyTorch's; dense attention then "
        "uses PyTorch's by default.\n"
    )


def _varlen(runs: FirstRuns, backend: str) -> str:
    case = "1370+962+1814 tokens, 6x64"
    found = runs.get("attention", "flash_attention_varlen", case, "bfloat16", "forward", backend)
    return figure(found["ms"])


def _row(
    runs: FirstRuns, label: str, run: str, op: str, case: str, dtype: str, step: str,
    printed: bool = False,
) -> list[str]:  # fmt: skip
    """Label, pass, eager, compiled, dafast, and kernels only if they were printed."""
    shown = "forward" if step == "forward" else "both"
    cells = [
        runs.get(run, op, case, dtype, step, "reference").get("ms"),
        runs.get("first", op, case, dtype, step, "reference compiled").get("ms"),
        runs.get(run, op, case, dtype, step, "triton").get("ms"),
    ]
    row = [label, shown, *map(figure, cells)]
    if printed:
        us = runs.get("printed", op, case, dtype, step).get("us")
        row.append("" if us is None else f"{us / 1e3:g}")
    return row


def losses(runs: FirstRuns) -> str:
    """Both losses."""
    rows = [["", "pass", "eager", "torch.compile, [first]", "**dafast**", "kernels only"]]
    maps = "518x518, 20% masked"
    for label, case, steps in (
        (f"affine-invariant, 64x{maps}, float32", f"64x{maps}", ("forward", BOTH)),
        ("8x518x518", f"8x{maps}", ("forward", BOTH)),
        ("8x518x518, two regions", f"8x{maps}, 2 regions", (BOTH,)),
    ):
        for step in steps:
            shown = label if step == steps[0] else ""
            rows.append(_row(runs, shown, "attention", LOSS, case, "float32", step, printed=True))
    for case in ("32x1369x1024", "4x1369x384"):
        for step in ("forward", BOTH):
            name = "feature alignment, " if case.startswith("32") else ""
            label = f"{name}{case}, bfloat16" if step == "forward" else ""
            rows.append(_row(runs, label, "glue", ALIGNMENT, case, "bfloat16", step, printed=True))
    return table(rows)


GLUE = (
    ("LayerNorm with the residual add, C = 1024, float32", "add_layer_norm", "16x1370x1024",
     "float32"),
    ("the same, bfloat16", "add_layer_norm", "16x1370x1024", "bfloat16"),
    ("the same under autocast", "add_layer_norm", "16x1370x1024, autocast", "bfloat16"),
    ("bias and GELU, C = 4096, float32", "bias_gelu", "16x1370x4096, added before", "float32"),
    ("the same, bfloat16", "bias_gelu", "16x1370x4096, added before", "bfloat16"),
)  # fmt: skip


def glue(runs: FirstRuns) -> str:
    """LayerNorm and GELU: kernels only."""
    rows = [["", "forward", "backward"]]
    for label, op, case, dtype in GLUE:
        cells = []
        for step in ("forward", "backward"):
            found = runs.get("printed", op, case, dtype, step)
            share = f", {found['share']:.0%}" if "share" in found else ""
            cells.append(f"{found['us']} us{share}")
        rows.append([label, *cells])
    return table(rows)


def glue_calls(runs: FirstRuns) -> str:
    """LayerNorm and GELU: calls."""
    rows = [["", "pass", "eager", "torch.compile, [first]", "**dafast**"]]
    names = ("LayerNorm, float32", "bfloat16", "autocast", "", "GELU, bfloat16")
    for name, (_, op, case, dtype) in zip(names, GLUE, strict=True):
        for step in ("forward", BOTH) if name else ():
            label = name if step == "forward" else ""
            run = "glue" if op == "add_layer_norm" else "first"
            rows.append(_row(runs, label, run, op, case, dtype, step))
    return table(rows)


def tail(runs: FirstRuns) -> str:
    """The decoder's tail."""
    rows = [["", "eager", "torch.compile, [first]", "**dafast**", "memory: eager, dafast"]]
    exact = []
    for shape in ("1x64x296x296", "1x128x296x296", "16x128x296x296"):
        case = f"{shape} to 518x518"
        eager, ours = (
            runs.get("glue", "decoder_tail", case, "bfloat16", "forward", backend)
            for backend in ("reference", "triton")
        )
        compiled = runs.get(
            "first", "decoder_tail", case, "bfloat16", "forward", "reference compiled"
        )
        memory = ", ".join(f"{r['peak_bytes'] / 1e6:.0f} MB" for r in (eager, ours))
        rows.append([case, *(figure(r["ms"]) for r in (eager, compiled, ours)), memory])
        theirs, triton = (
            runs.get("glue", "decoder_tail", case, "float32", "forward", backend)["ms"]
            for backend in ("reference", "triton")
        )
        exact.append(theirs / triton)
    return table(rows) + (
        "\nIn float32 PyTorch's convolutions are used: without TF32 they take "
        f"{span(exact)} of the Triton kernel's time.\n"
    )


RESIZE = (
    ("resize_bilinear", "64x148x148 to 296x296"), ("resize_bilinear", "32x296x296 to 518x518"),
    ("resize_bilinear", "256x148x148 to 296x296"),
    ("resize_bilinear", "3x1920x1080 to 921x518, antialiased"),
    ("pad", "3x921x518 by (1, 2, 0, 0)"), ("preprocess", "1920x1080 to 924x518, pad"),
    ("preprocess", "1920x1080 to 924x518, official"), ("postprocess", "1920x1080"),
    ("postprocess", "1920x1080, 16 bits"),
)  # fmt: skip


def resize(runs: FirstRuns) -> str:
    """The ops on images: float32, bfloat16."""
    rows = [["", "pass", "eager, [first]", "torch.compile, [first]", "eager", "**dafast**"]]
    for op, case in RESIZE:
        for step in ("forward", BOTH):

            def pair(run: str, backend: str, op: str = op, case: str = case,
                     step: str = step) -> str:  # fmt: skip
                times = [runs.get(run, op, case, dtype, step, backend).get("ms")
                         for dtype in ("float32", "bfloat16")]  # fmt: skip
                return "" if None in times else ", ".join(map(figure, times))

            cells = [pair("first", "reference"), pair("first", "reference compiled"),
                     pair("resize", "reference"), pair("resize", "cuda")]  # fmt: skip
            if cells[-1]:
                shown = step == "forward"
                rows.append([f"{op}, {case}" if shown else "", "forward" if shown else "both",
                             *cells])  # fmt: skip
    return table(rows)


def targets(runs: FirstRuns) -> str:
    """The targets of these runs."""
    best = max(runs.peaks("matmul_bfloat16_gflops"))
    least = min(runs.peaks("matmul_bfloat16_gflops"))
    record = runs.get("first", ATTENTION, CASES[0], "bfloat16", "forward", "triton")
    shares = [record["gflops"] / best, record["gflops"] / least]
    rows: list[Sequence[str]] = [["target", "measured", "met"]]
    rows.append([
        "attention at 60% of the measured bfloat16 product, 1370 tokens, batch 16",
        f"{shares[0]:.0%} to {shares[1]:.0%} forward ({record['gflops'] / 1e3:.0f} TFLOP/s)",
        "yes" if shares[0] >= 0.6 else "no",
    ])  # fmt: skip
    for maps in (64, 8):
        case = f"{maps}x518x518, 20% masked"
        eager, ours = ([runs.get(run, LOSS, case, "float32", BOTH, backend)["ms"]
                        for run in ("first", "attention")]
                       for backend in ("reference", "triton"))  # fmt: skip
        us = runs.get("printed", LOSS, case, "float32", BOTH)["us"]
        ratio = eager[1] / ours[1]
        rows.append([
            f"affine-invariant loss, {maps} maps, both passes, 20 times as fast as eager",
            f"{ratio:.0f} times; its kernels: {1e3 * eager[1] / us:.0f} times",
            "yes" if ratio >= 20 else "only in a CUDA graph",
        ])  # fmt: skip
        floor = 1e6 * maps * 518**2 * 13 / (COPY_GBYTES * 1e9)
        rows.append([
            f"the same, {maps} maps, in at most 3 times the time to move its bytes once",
            f"{us / 1e3:g} ms of kernels, {us / floor:.1f} times {floor / 1e3:.3f} ms",
            "yes" if us <= 3 * floor else "no",
        ])  # fmt: skip
    return table(rows)


BLOCKS: Blocks = {
    "first machine": machine, "first peaks": peaks,
    "first attention": attention, "first losses": losses,
    "first memory-bound": glue, "first memory-bound calls": glue_calls, "first tail": tail,
    "first resize": resize, "first targets": targets,
}  # fmt: skip
