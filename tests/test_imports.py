"""Imports go one way, cost little, and name only what the package declares."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What each part may import besides itself and the ground: the arrows of docs/architecture.md.
# Every import counts, also one within a function or for type checkers only.
GROUND = {"_version", "_warnings", "camera", "config", "devices", "distributed", "files"}
GROUND |= {"geometry", "images", "optional", "palettes", "picture_formats", "picture_sources"}
GROUND |= {"picture_values", "pointcloud", "profiling", "result"}
GROUND |= {"alignment", "formats", "known_points", "panorama", "surface"}
BACKENDS = {"_C", "kernels"}
OPS = {"ops"}
NETWORK = {"layers", "losses", *OPS}
VIDEO = {"video", "views", *NETWORK}
MODELS = {"models", *VIDEO}
DATA = {"data", "synthetic"}
EVALUATION = {"evaluation", *MODELS, *DATA}
TRAINING = {"training", *EVALUATION}
MAY_IMPORT = {
    "ops": BACKENDS,
    "layers": OPS,
    "losses": OPS,
    "models": VIDEO,
    "inference": MODELS,
    "synthetic": set(),
    "data": {"synthetic"},
    "views": NETWORK,
    "video": {"views", *NETWORK},
    "runtime": set(),
    "export": {"runtime", *MODELS},
    "serve": MODELS,
    "evaluation": MODELS | DATA,
    "training": EVALUATION,
    "cluster": EVALUATION,
    "cli": {"cluster", "export", "runtime", "serve", *TRAINING},
    "__main__": {"cli"},
    "train": {"cli"},
    "kernels": set(),
}


def modules() -> Iterator[tuple[str, Path]]:
    for base, prefix in ((ROOT / "dafast", "dafast"), (ROOT / "kernels", "dafast.kernels")):
        for path in sorted(base.rglob("*.py")):
            parts = [prefix, *path.relative_to(base).with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.pop()
            yield ".".join(parts), path


@functools.cache
def imports(module: str, path: Path) -> list[str]:
    """Absolute names of what a file imports, anywhere in it."""
    found: list[str] = []
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            # `from .. import x`: x may be a module
            found += (f"{base}.{alias.name}" for alias in node.names)
    return found


def graph() -> dict[str, set[str]]:
    """The modules of dafast that each of them imports."""
    files = dict(modules())

    def module_of(name: str) -> str:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    return {
        module: {module_of(name) for name in imports(module, path)} - {"", module}
        for module, path in files.items()
    }


def part_of(module: str) -> str | None:
    """The second component of a name within dafast: "ops" of "dafast.ops._dispatch"."""
    names = module.split(".")
    return names[1] if names[0] == "dafast" and len(names) > 1 else None


def test_every_part_has_its_arrows():
    parts = {part_of(name) for name in graph()} - {None}
    unknown = parts - GROUND - set(MAY_IMPORT)
    assert not unknown, f"add these to GROUND or MAY_IMPORT of this test: {sorted(unknown)}"


def test_imports_go_one_way():
    wrong = []
    for module, targets in graph().items():
        part = part_of(module)
        if part is None:
            continue  # dafast/__init__.py resolves its names lazily
        allowed = GROUND | {part} | MAY_IMPORT.get(part, set())
        wrong += [f"{module} imports {t}" for t in targets if part_of(t) not in allowed]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_module_imports_itself_through_others():
    edges = graph()
    # The package's own file resolves its public names lazily; its arrows would go everywhere.
    edges["dafast"] = set()
    finished: set[str] = set()
    circles = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in finished:
            for target in sorted(edges[module]):
                visit(target, [*path, module])
            finished.add(module)

    for module in sorted(edges):
        visit(module, [])
    assert not circles, "\n".join(circles)


def test_kernels_import_only_torch_triton_and_themselves():
    wrong = [
        f"{module} imports {name}"
        for module, path in modules()
        if module.startswith("dafast.kernels")
        for name in imports(module, path)
        if name.split(".")[0] not in {"torch", "triton", *sys.stdlib_module_names}
        and not name.startswith("dafast.kernels")
    ]
    assert not wrong, "\n".join(wrong)


def test_third_party_imports_are_declared():
    """What dafast imports is a dependency or belongs to an extra; torchvision and timm never."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(r for rs in extras.values() for r in rs)]
    declared = {re.match(r"[\w.-]+", r)[0].lower().replace("-", "_") for r in requirements}
    providers = {"flash_attn": ["flash-attn-4"], **packages_distributions()}
    wrong = []
    for module, path in [*modules(), ("train", ROOT / "train.py")]:
        if not path.is_file():
            continue
        for name in imports(module, path):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top == "dafast":
                continue
            names = {d.lower().replace("-", "_") for d in providers.get(top, [top])}
            if not names & declared:
                wrong.append(f"{module} imports {name}, which pyproject.toml does not declare")
    assert not wrong, "\n".join(wrong)
    assert not declared & {"torchvision", "timm"}


def run_python(code: str, *options: str) -> str:
    result = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_quick_and_brings_neither_triton_nor_transformers():
    # What torch itself brings along is not ours to answer for.
    code = """if True:
        import json, sys, time, torch
        brought = set(sys.modules)
        start = time.process_time()
        import dafast
        seconds = time.process_time() - start
        bare = set(sys.modules) - brought
        dafast.DepthAnything, dafast.use_backend
        import dafast.losses
        print(json.dumps([seconds, sorted(bare), sorted(set(sys.modules) - brought)]))
    """
    for _ in range(4):  # other work on the machine only ever adds to the time
        seconds, *modules = json.loads(run_python(code))
        if seconds < 0.2:
            break
    assert seconds < 0.2, f"import dafast took {seconds:.2f} s on top of torch"
    bare, public = map(set, modules)
    heavy = {"triton", "transformers", "matplotlib", "cv2", "skimage", "PIL", "dafast._C"}
    heavy.add("torch._dynamo")  # seconds
    assert "dafast" in bare
    assert "dafast.models" not in bare
    assert "dafast.models" in public
    assert not heavy & public


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom dafast.cli import build_parser\nbuild_parser().format_help()\n"
        "print('torch' in sys.modules)"
    )
    assert run_python(code).strip() == "False"
