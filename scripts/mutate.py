"""Mutation test: makes small faults, one at a time, and checks that the tests catch each of them.

    python scripts/mutate.py                       # 40 faults, drawn with seed 0
    python scripts/mutate.py --seed 3 --count 10
    python scripts/mutate.py --first 13            # after an interruption: from the 13th on
    python scripts/mutate.py --only kernels/bias_gelu.py "csrc/cpu/bias_gelu*"

It works in a temporary copy of the checkout, rebuilds the extension there where a fault is in C++,
and runs only the tests of the changed file. The exit code is 1 if a fault was not caught. A
survivor that changes nothing that a caller can see belongs into `EQUIVALENT`, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPS = "tests/ops/test_"

# Area: its files, and how many of ten faults it gets.
AREAS = {
    "kernels": (["kernels/*.py"], 3),
    "csrc": (["csrc/cpu/*.cpp", "csrc/cpu/*.h", "csrc/include/dafast/*.h", "csrc/cuda/*"], 3),
    "losses and ops": (["dafast/losses.py", "dafast/ops/*.py"], 2),
    "resume": (["dafast/training/resume.py", "dafast/training/state.py"], 1),
    "conversion": (["dafast/models/conversion.py"], 1),
}

# The first pattern that matches a path names its tests, the cheapest first.
TESTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"conversion", tuple(f"tests/models/test_{n}.py" for n in
                          ("checkpoint", "weight_files", "zoedepth", "structure", "parity"))),
    (r"training/(resume|state)", tuple(f"tests/training/test_{n}.py" for n in
                                       ("options", "train", "reliability", "student"))),
    (r"losses\.py", ("tests/test_losses.py", "tests/test_gradient_matching.py",
                     "tests/training/test_metric.py")),
    (r"masked_median", (f"{OPS}affine_invariant_loss.py",)),
    (r"csrc/.*(affine_invariant_loss|losses|loss_maps)", tuple(f"{OPS}{n}.py" for n in
                                                   ("affine_invariant_loss_cpu", "cuda_host",
                                                    "affine_invariant_loss"))),
    (r"csrc/(cuda|include)", tuple(f"{OPS}{n}.py" for n in
                                   ("cuda_host", "pad", "resize_bilinear", "preprocess"))),
    (r"csrc/cpu/flash_attention_backward", (f"{OPS}flash_attention_backward_cpu.py",)),
    (r"csrc/cpu/(flash_attention|attention_tiles|sequences)",
     (f"{OPS}flash_attention_cpu.py", f"{OPS}flash_attention_backward_cpu.py")),
    (r"(attention_int8|conv3x3_int8|encoder_rows_int8)",
     (OPS + r"\1.py", f"{OPS}read_bounds.py")),
    (r"(linear_packed|conv3x3_packed|encoder_rows|embed_patches|transpose_rows)",
     (f"{OPS}packed_products.py", f"{OPS}read_bounds.py")),
    (r"ops/(linear|conv3x3)\.py|cpu/(linear|conv3x3)(_kernels)?\.|layers/linear",
     (f"{OPS}training_products.py",)),
    (r"csrc/cpu/(rows_float|tile_float|weights_float|threads|norm_row|gelu_block|parameters)",
     (f"{OPS}packed_products.py", f"{OPS}training_products.py")),
    (r"csrc/cpu/(bytes_int8|int8_layer|tile_int8|rows_int8|gelu_pieces|pieces|vectors16)",
     tuple(f"{OPS}{n}.py" for n in ("linear_int8", "encoder_rows_int8", "conv3x3_int8",
                                    "attention_int8", "bias_gelu"))),
    (r"_attention_packages", (f"{OPS}flash_attention_tiles.py", f"{OPS}flash_attention.py")),
    (r"csrc/cpu/(rows|row_loops)", tuple(f"{OPS}{n}.py" for n in
                                         ("resize_bilinear", "preprocess", "decoder_tail"))),
    (r"csrc/cpu/(lanes|isa|each_isa|tensors)",
     tuple(f"{OPS}{n}.py" for n in ("bias_gelu", "add_layer_norm", "feature_alignment_loss",
                                    "affine_invariant_loss", "flash_attention_cpu",
                                    "decoder_tail", "linear_int8"))),
    (r"flash_attention", (f"{OPS}flash_attention.py", f"{OPS}triton.py",
                          f"{OPS}flash_attention_cpu.py", "tests/models/test_packed.py")),
    (r"(postprocess|preprocess|geometry|_images)", (f"{OPS}preprocess.py",)),
    ((r"(resize_area|resize_bicubic|resize_bilinear|linear_int8|linear_fp8|pad|forward_warp"
      r"|guided_upsample)"), (OPS + r"\1.py",)),
    ((r"(add_layer_norm_fp8|add_layer_norm|affine_invariant_loss|bias_gelu|bias_relu_add"
      r"|conv_transpose|decoder_tail|feature_alignment_loss|quantize_fp8)"),
     (OPS + r"\1.py", f"{OPS}triton.py")),
    (r"", (f"{OPS}dispatch.py", f"{OPS}bias_gelu.py", f"{OPS}triton.py", f"{OPS}add_layer_norm.py",
           f"{OPS}linear_int8.py")),
)  # fmt: skip

# Functions that choose speed, not results, and lines that only build messages.
NOT_MUTATED = re.compile(
    r"prefer|slow|tiles?$|config|warps|stages|blocks$|cost|launch|describe|cuda|gpu|target|__repr__"
)
NOT_MUTATED_LINE = re.compile(
    r"^\s*(#|//|\*|using|template|static_assert|raise|return \"|f?\"|import|from|@|extern)"
    r"|isa\(\) >=|cuda|namespace|operator|_CHECK|->|>>|<<|num_warps|num_stages|grain|prefetch"
    r"|restrict|typename|cdiv|pragma"
)

# Path and line of faults that no caller can see, with the reason.
EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "csrc/cpu/linear_packed_kernels.h",
        "const int64_t stride = (layer.depth + Cells::PER_CELL - 1) / Cells::PER_CELL;",
    ): "the rows of cells are further apart, in the same memory",
    (
        "csrc/cpu/conv3x3_packed_kernels.h",
        "keep_rows<Cells>(call, b, y * stride - 1, (y + rows - 1) * stride + 2, buffer, scratch);",
    ): "more rows are kept and not read; with a stride of 1 there is memory for them",
    (
        "csrc/cpu/resize_bicubic.cpp",
        "const int64_t last = std::min(height, first + (end - begin));",
    ): "rows that the next part also writes, with the same values",
    (
        "csrc/cpu/bias_gelu.cpp",
        "const int64_t size = x.numel(), blocks = (size + block - 1) / block;",
    ): "one block more, which is empty",
    (
        "kernels/affine_invariant_loss.py",
        "return tl.where(valid > 0, share / count, 0.0)",
    ): "without valid pixels the share is 0, and the count at least 1",
}


@dataclass(frozen=True)
class Fault:
    """One change of one place in a file."""

    path: str
    line: int
    kind: str
    start: int
    end: int
    new: str

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]

    def describe(self, text: str) -> str:
        """Path, line, kind, and the line before and after."""
        first = text.rfind("\n", 0, self.start) + 1
        last = text.find("\n", self.end)
        before = " ".join(text[first:last].split())
        after = " ".join((text[first : self.start] + self.new + text[self.end : last]).split())
        return f"{self.path}:{self.line} [{self.kind}]\n    - {before}\n    + {after}"


SIGN = {ast.Add: "-", ast.Sub: "+"}
BOUND = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
LOGIC = {ast.And: "or", ast.Or: "and"}


def python_faults(path: str, text: str) -> Iterator[Fault]:
    """Every fault of a Python file: its operators, found in the syntax tree."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    data = text.encode()

    def place(line: int, column: int) -> int:
        return len(data[: starts[line - 1] + column].decode())

    def between(left: ast.expr, right: ast.expr) -> tuple[int, int]:
        return (
            place(left.end_lineno or 0, left.end_col_offset or 0),
            place(right.lineno, right.col_offset),
        )

    def replaced(left: ast.expr, right: ast.expr, kind: str, old: str, new: str) -> Iterator[Fault]:
        start, end = between(left, right)
        found = [m.span() for m in re.finditer(re.escape(old), text[start:end])]
        if len(found) == 1:
            a, b = found[0]
            yield Fault(path, left.lineno, kind, start + a, start + b, new)

    for node in _code(ast.parse(text)):
        if isinstance(node, ast.BinOp):
            texts = (ast.Constant, ast.JoinedStr)
            if any(isinstance(x, texts) and not isinstance(getattr(x, "value", ""), int | float)
                   for x in (node.left, node.right)):  # fmt: skip
                continue
            one = isinstance(node.right, ast.Constant) and node.right.value == 1
            operator = {ast.Add: "+", ast.Sub: "-", ast.BitAnd: "&", ast.Mult: "*"}.get(
                type(node.op)
            )
            if operator is None:
                continue
            end = place(node.right.end_lineno or 0, node.right.end_col_offset or 0)
            start = between(node.left, node.right)[0]
            rest = text[start:end]
            if node.lineno == node.end_lineno and rest.count("(") == rest.count(")"):
                kind = "off by one" if one else "mask" if operator == "&" else "dropped term"
                yield Fault(path, node.lineno, kind, start, end, "")
            if type(node.op) in SIGN:
                yield from replaced(node.left, node.right, "sign", operator, SIGN[type(node.op)])
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in BOUND:
            new = BOUND[type(node.ops[0])]
            old = new[0] if len(new) == 2 else new + "="
            yield from replaced(node.left, node.comparators[0], "bound", old, new)
        elif isinstance(node, ast.BoolOp):
            old = "and" if isinstance(node.op, ast.And) else "or"
            yield from replaced(*node.values[:2], "mask", old, LOGIC[type(node.op)])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert | ast.USub):
            kind = "mask" if isinstance(node.op, ast.Invert) else "sign"
            start = place(node.lineno, node.col_offset)
            yield Fault(path, node.lineno, kind, start, start + 1, "")


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute: no annotations, messages, assertions, choices of speed."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "exc", "msg"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Assert | ast.JoinedStr):
                continue
            if isinstance(child, ast.FunctionDef) and NOT_MUTATED.search(child.name):
                continue
            yield child
            yield from _code(child)


CPP = (
    ("sign", re.compile(r"(?<=[\w)\]]) \+ (?=[\w(])"), " - "),
    ("sign", re.compile(r"(?<=[\w)\]]) - (?=[\w(])"), " + "),
    # One round less: one more would read what lies behind, which need not show.
    ("off by one", re.compile(r"(?<=; )(\w+) < ([^;<>?]+);"), r"\1 < \2 - 1;"),
    ("bound", re.compile(r"(?<=[\w)\]]) < (?=[\w(][^;]*$)"), " <= "),
    ("bound", re.compile(r"(?<=[\w)\]]) <= (?=[\w(])"), " < "),
    ("bound", re.compile(r"(?<=[\w)\]]) >= (?=[\w(])"), " > "),
    ("mask", re.compile(r" && "), " || "),
    ("off by one", re.compile(r"(?<=[\w)\]]) [+-] 1(?=[;,)\]])"), ""),
    ("dropped term", re.compile(r"(?<=[\w\]]) \+= (?=[^1])"), " = "),
)


def cpp_faults(path: str, text: str) -> Iterator[Fault]:
    """Faults of a C++ or CUDA file: operators between spaces, outside of declarations."""
    start = 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        code = line.split("//")[0]
        if not NOT_MUTATED_LINE.search(code) and '"' not in code and not code.startswith("#"):
            for kind, pattern, new in CPP:
                for match in pattern.finditer(code.rstrip()):
                    first, last = (start + place for place in match.span())
                    yield Fault(path, number, kind, first, last, match.expand(new))
        start += len(line)


def faults_of(path: Path) -> list[Fault]:
    """All faults of a file that are worth trying."""
    text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
    lines = text.splitlines()
    find = python_faults if path.suffix == ".py" else cpp_faults
    return [
        fault
        for fault in find(name, text)
        if not NOT_MUTATED_LINE.search(lines[fault.line - 1])
        and (name, lines[fault.line - 1].strip()) not in EQUIVALENT
    ]


def draw(seed: int, count: int, only: list[str]) -> list[Fault]:
    """Faults of every area, no two in one line; those in Python first."""
    rng = random.Random(seed)
    areas = [
        ([f for pattern in patterns for f in sorted(ROOT.glob(pattern))], share)
        for patterns, share in AREAS.values()
    ]
    if only:
        areas = [([f for pattern in only for f in sorted(ROOT.glob(pattern))], 1)]
    turns = [i for i, (_, share) in enumerate(areas) for _ in range(share)]
    rng.shuffle(turns)
    chosen: dict[tuple[str, int], Fault] = {}
    for turn in range(100 * count):
        if len(chosen) == count:
            break
        # A file first, then a kind: long files and common operators do not crowd out the others.
        found = faults_of(rng.choice(areas[turns[turn % len(turns)]][0]))
        if found:
            kind = rng.choice(sorted({fault.kind for fault in found}))
            fault = rng.choice([f for f in found if f.kind == kind])
            chosen.setdefault((fault.path, fault.line), fault)
    return sorted(chosen.values(), key=lambda f: (f.path.startswith("csrc/"), f.path, f.line))


def tests_of(path: str) -> tuple[str, ...]:
    """The files of tests that are to catch a fault in a file."""
    for pattern, tests in TESTS:
        if match := re.search(pattern, path):
            named = [t.replace(r"\1", match.group(match.lastindex or 0)) for t in tests]
            return tuple(t for t in named if (ROOT / t).exists())
    raise AssertionError("the last pattern matches every path")


class Copy:
    """A copy of the checkout, in which faults are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
        for name in [*filter(None, files), *(f"dafast/{p.name}" for p in ROOT.glob("dafast/_C*"))]:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    def run(self, *command: str, timeout: float) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def build(self) -> str:
        """Builds the extension with what changed; an empty string, or the compiler's complaint."""
        done = self.run("setup.py", "build_ext", "--inplace", timeout=1800)
        failed = done.returncode or "WITHOUT the C++ extension" in done.stdout + done.stderr
        return (done.stdout + done.stderr)[-2000:] if failed else ""

    def failure(self, tests: tuple[str, ...], seed: int, timeout: float) -> str:
        """The first test that fails, or an empty string; slow tests last."""
        for slow in ("not slow", "slow"):
            try:
                done = self.run(
                    "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--seed={seed}",
                    "-m", f"{slow} and not gpu and not exhaustive and not cluster", *tests,
                    timeout=timeout,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return f"no end within {timeout:.0f} s"
            if done.returncode not in (0, 5):  # 5: no test is selected
                found = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
                return found[0] if found else f"exit code {done.returncode}"
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults (default 0)")
    parser.add_argument("--count", type=int, default=40, help="number of faults (default 40)")
    parser.add_argument("--first", type=int, default=1, help="number of the first to make")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PATTERN", help="only faults in these files"
    )
    parser.add_argument("--list", action="store_true", help="print the faults and make none")
    options = parser.parse_args()
    faults = draw(options.seed, options.count, options.only)
    if options.list:
        for fault in faults:
            print(fault.describe((ROOT / fault.path).read_text(encoding="utf-8")))
        return 0
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy = Copy(Path(folder))
        compiled = any(f.path.startswith("csrc/cpu") or "include" in f.path for f in faults)
        if compiled and (complaint := copy.build()):
            sys.exit(f"the extension does not build without a fault:\n{complaint}")
        limits: dict[tuple[str, ...], float] = {}
        built = False  # the extension holds the fault before
        for i, fault in list(enumerate(faults, 1))[options.first - 1 :]:
            tests = tests_of(fault.path)
            if tests not in limits:
                if built:
                    built = bool(copy.build())
                start = time.monotonic()
                if failed := copy.failure(tests, options.seed, 3600):
                    sys.exit(f"{failed} fails without a fault")
                limits[tests] = 60 + 5 * (time.monotonic() - start)
            target = copy.folder / fault.path
            text = target.read_text(encoding="utf-8")
            target.write_text(fault.apply(text), encoding="utf-8")
            needs_build = fault.path.startswith("csrc/") and "/cuda/" not in fault.path
            caught = "the compiler" if (needs_build or built) and copy.build() else ""
            built = needs_build
            caught = caught or copy.failure(tests, options.seed, limits[tests])
            target.write_text(text, encoding="utf-8")
            if not caught:
                survivors.append(fault)
            verdict = f"caught by {caught}" if caught else "SURVIVED"
            if not caught and fault.kind == "bound":
                verdict += " (equivalent if both sides are never equal)"
            print(f"[{i}/{len(faults)}] {fault.describe(text)}\n    {verdict}", flush=True)
    made = len(faults) - options.first + 1
    print(f"{made - len(survivors)} of {made} faults caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
