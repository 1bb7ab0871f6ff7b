"""A wheel and a checkout hold what they should and work, with and without the extension."""

from __future__ import annotations

import email
import email.message
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
FOLDERS = ("dafast", "kernels", "configs", "csrc", "examples/photos")

# Without `site`, so that an editable install of dafast is not in the way; site-packages by hand.
ISOLATED = [sys.executable, "-S"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def run(command: list[str], cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def python(code: str, cwd: Path, *path: Path) -> str:
    import torch

    packages = Path(torch.__file__).resolve().parent.parent
    return run(
        [*ISOLATED, "-c", code], cwd, PYTHONPATH=os.pathsep.join(map(str, [*path, packages]))
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the sources as a fresh clone has them: nothing built."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    # Stands in for weights, so that this holds with any that the package has.
    probe = folder / "dafast" / "weights" / "probe" / "deep"
    probe.mkdir(parents=True)
    (probe / "model.safetensors").write_bytes(b"probe")
    return folder


def build_wheel(checkout: Path, out: Path, **environment: str) -> tuple[Path, str]:
    log = run(
        [*PIP, "wheel", "--no-build-isolation", "--no-deps", "-v", "-w", str(out), str(checkout)],
        checkout,
        **environment,
    )
    (wheel,) = out.glob("*.whl")
    return wheel, log


INSTALLED = pytest.mark.slow  # pip builds a wheel and installs it; .ci/run does so in every run


@pytest.fixture(scope="module")
def installed(checkout, tmp_path_factory) -> tuple[Path, str]:
    """The wheel without extension, unpacked as pip would, and the log of its build."""
    wheel, log = build_wheel(checkout, tmp_path_factory.mktemp("wheel"), DAFAST_NO_EXTENSION="1")
    target = tmp_path_factory.mktemp("site")
    run(
        [*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)],
        checkout,
    )
    return target, log


PREDICT = """if True:
    import numpy as np, dafast, dafast.kernels
    from dafast.config import ModelConfig
    config = ModelConfig(
        name="tiny", embed_dim=32, num_layers=4, num_heads=2, features=8,
        out_channels=(8, 8, 8, 8), out_indices=(0, 1, 2, 3), image_size=28, grid_size=2,
    )
    model = dafast.DepthAnything(config)
    image = np.random.default_rng().random((40, 50, 3), dtype=np.float32)
    disparity = model.infer(image, fit="official")
    assert disparity.shape == (40, 50) and np.isfinite(disparity).all()
    print(dafast.__file__, dafast.kernels.__file__)
"""


@INSTALLED
def test_wheel_without_extension_holds_everything(installed):
    target, log = installed
    assert "WITHOUT the C++ extension: DAFAST_NO_EXTENSION is set" in log
    for name in ("__init__.py", "cli/__init__.py", "ops/resize_bicubic.py", "py.typed"):
        assert (target / "dafast" / name).is_file(), name
    assert (target / "dafast" / "kernels" / "__init__.py").is_file()
    for path in (ROOT / "configs").rglob("*.toml"):
        assert (target / "dafast" / path.relative_to(ROOT)).is_file(), path
    shipped = sorted(p.relative_to(ROOT) for p in (ROOT / "dafast" / "weights").rglob("*.*"))
    for path in [*shipped, Path("dafast/weights/probe/deep/model.safetensors")]:
        assert (target / path).is_file(), path
    every = {p.relative_to(ROOT) for p in (ROOT / "dafast").rglob("*.py")}
    missing = [p for p in every if not (target / p).is_file()]
    assert not missing, f"a folder without __init__.py is not a package: {missing}"
    top = {p.name for p in target.iterdir() if not p.name.endswith(".dist-info")} - {"bin"}
    assert top == {"dafast"}
    assert not list(target.rglob("_C*"))


@INSTALLED
def test_wheel_without_extension_works(installed, tmp_path):
    target, _ = installed
    (entry_points,) = target.glob("dafast-*.dist-info/entry_points.txt")
    assert "dafast = dafast.cli:main" in entry_points.read_text()
    more = """if True:
        from dafast.ops import _extension as e; print(e.load(), '|', e.why_missing())
        import dafast.cli as c; c.main(['doctor'])
    """
    first, second, doctor = python(PREDICT + more, tmp_path, target).split("\n", 2)
    assert first.split() == [
        str(target / "dafast" / "__init__.py"),
        str(target / "dafast" / "kernels" / "__init__.py"),
    ]
    loaded, _, reason = second.partition(" | ")
    assert loaded == "None"
    assert "not built" in reason
    assert "--no-build-isolation" in reason
    assert "C++ extension" in doctor


@pytest.mark.slow
def test_uninstalled_checkout_works(checkout, tmp_path):
    text = python(PREDICT, tmp_path, checkout)
    assert text.split()[1] == str(checkout / "kernels" / "__init__.py")


def test_kernels_is_no_package_of_its_own(checkout):
    (checkout / "kernels" / "probe.py").touch()
    code = """if True:
        import kernels  # as transformers does, looking for the hub's package of that name
        print("of its own:", hasattr(kernels, "__version__"))
        for name in ("kernels.probe", "dafast.kernels.probe", "dafast.setup"):
            try:
                __import__(name)
                print(name, "imported")
            except ImportError:
                print(name, "refused")
    """
    text = python(code, checkout, checkout)
    (checkout / "kernels" / "probe.py").unlink()
    assert text.splitlines() == [
        "of its own: False",
        "kernels.probe refused",
        "dafast.kernels.probe imported",
        "dafast.setup refused",
    ]


@pytest.mark.slow
def test_source_distribution_holds_the_extension(checkout, tmp_path):
    code = (
        "import setuptools.build_meta as b, tarfile\n"
        f"name = b.build_sdist({str(tmp_path)!r})\n"
        f"print('\\n'.join(tarfile.open({str(tmp_path)!r} + '/' + name).getnames()))"
    )
    names = run([sys.executable, "-c", code], checkout, DAFAST_NO_EXTENSION="1").splitlines()
    files = {name.partition("/")[2] for name in names}
    wanted = {
        str(p.relative_to(checkout))
        for folder in ("csrc", "kernels")
        for p in (checkout / folder).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {"csrc/bindings.cpp", "csrc/cpu/resize_bicubic.cpp"} <= wanted
    assert wanted <= files
    assert "dafast/weights/probe/deep/model.safetensors" in files


@pytest.mark.slow
def test_installs_without_a_compiler(checkout, tmp_path):
    """A compiler that fails is a sentence in the log, not a failed installation."""
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho no compiler today >&2\nexit 1\n")
    broken.chmod(0o755)
    wheel, log = build_wheel(
        checkout, tmp_path / "wheel", CC=str(broken), CXX=str(broken), LDSHARED=str(broken)
    )
    assert "WITHOUT the C++ extension: the build failed" in log
    names = zipfile.ZipFile(wheel).namelist()
    assert [n for n in names if n.endswith("dafast/__init__.py")]
    assert not [n for n in names if "_C." in n]


@pytest.mark.exhaustive  # compiles everything; .ci/run builds a wheel and uses it in every run
def test_wheel_with_extension_works(checkout, tmp_path):
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler on this machine")
    wheel, _ = build_wheel(checkout, tmp_path / "wheel")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        PREDICT
        + """if True:
        import torch
        from dafast.ops import _extension, resize_bicubic as r
        assert _extension.load() is not None, _extension.why_missing()
        print(torch.ops.dafast_C.resize_bicubic(torch.ones(1, 1, 4, 4), 3, 5).shape)
    """
    )
    assert "torch.Size([1, 1, 3, 5])" in python(code, tmp_path, tmp_path / "site")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def metadata(target: Path) -> email.message.Message:
    (path,) = target.glob("dafast-*.dist-info/METADATA")
    return email.message_from_string(path.read_text(encoding="utf-8"))


@INSTALLED
def test_the_description_has_absolute_links(installed, project):
    """As an index shows it, away from the repository; each leads to a file that exists."""
    found = metadata(installed[0])
    source = project["urls"]["Source"]
    assert found["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)\s]+)\)", str(found.get_payload()))
    place = source.partition("github.com")[2]
    ours = [link for link in links if f"{place}/" in link]
    assert len(ours) > 20
    assert not [link for link in links if not link.startswith("https://")]
    for link in ours:
        path = link.partition("/main/")[2].partition("#")[0]
        assert (ROOT / path).exists(), link
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", str(found.get_payload()))
    assert pictures and all(p.startswith("https://raw.githubusercontent.com/") for p in pictures)
    assert [url for url in found.get_all("Project-URL") if url.endswith(source)]


@INSTALLED
def test_the_metadata_is_true(installed, project):
    found = metadata(installed[0])
    assert found["License-Expression"] == "Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE"]
    assert list(installed[0].glob("dafast-*.dist-info/licenses/LICENSE"))
    classifiers = found.get_all("Classifier")
    for name in ("MacOS", "Microsoft :: Windows", "POSIX :: Linux"):
        assert f"Operating System :: {name}" in classifiers
    # The stable ABI needs no upper bound.
    assert [r for r in project["dependencies"] if r.startswith("torch")] == ["torch>=2.11"]


def test_extra_all_is_everything_without_a_gpu(project):
    extras = project["optional-dependencies"]
    gpu = {"triton", "xformers", "flash-attn", "profile"}
    development = {"all", "test", "dev", "docs"}
    (everything,) = extras["all"]
    named = set(re.fullmatch(r"dafast\[(.*)\]", everything)[1].split(","))
    assert named == set(extras) - gpu - development


def test_the_extras_of_messages_and_pages_exist(project):
    places = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "dafast").rglob("*.py")]
    named = {
        extra
        for path in places
        for listed in re.findall(r"dafast\[([a-z,-]+)\]", path.read_text(encoding="utf-8"))
        for extra in listed.split(",")
    }
    assert {"all", "heif"} < named <= set(project["optional-dependencies"])


@INSTALLED
def test_the_source_distribution_builds_the_same_wheel(checkout, installed, tmp_path):
    code = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    run([sys.executable, "-c", code], checkout, DAFAST_NO_EXTENSION="1")
    (archive,) = tmp_path.glob("dafast-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (source,) = (p for p in tmp_path.glob("dafast-*") if p.is_dir())
    assert (source / "LICENSE").is_file()
    assert {p.name for p in (source / "configs").rglob("*.toml")} >= {
        p.name for p in (ROOT / "configs").rglob("*.toml")
    }
    wheel, _ = build_wheel(source, tmp_path / "wheel", DAFAST_NO_EXTENSION="1")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    ours = {p.relative_to(tmp_path / "site") for p in (tmp_path / "site").rglob("*.*")}
    theirs = {p.relative_to(installed[0]) for p in installed[0].rglob("*.*")}
    same = [p for p in theirs if "dist-info" not in p.parts[0] and p.suffix != ".pyc"]
    for path in same:
        if (installed[0] / path).is_file():
            assert (installed[0] / path).read_bytes() == (tmp_path / "site" / path).read_bytes()
    assert {p for p in ours if "dist-info" not in p.parts[0]} <= set(same)


def test_the_extension_uses_only_stable_symbols():
    """Only the C API of torch, no C++: it loads with every PyTorch from 2.11 on."""
    from dafast.ops import _extension

    tool = shutil.which("nm")
    if _extension.load() is None or tool is None or not sys.platform.startswith("linux"):
        pytest.skip("needs nm and the extension, on Linux")
    text = run([tool, "-D", "--undefined-only", _extension.load().__file__], ROOT)
    names = [line.split()[-1] for line in text.splitlines()]
    assert [n for n in names if n.startswith("aoti_torch_")]
    mangled = [n for n in names if re.match(r"_Z\w*?(3c10|2at|5torch|6caffe2)", n)]
    assert not mangled


@pytest.mark.parametrize("name", ["ci", "release"])
def test_workflows_can_be_read(name):
    import yaml

    path = ROOT / ".github" / "workflows" / f"{name}.yml"
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["name"] and workflow["jobs"] and True in workflow  # `on`, as YAML 1.1 reads it
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    if name == "release":
        publish = workflow["jobs"]["publish"]
        assert publish["permissions"]["id-token"] == "write"
        assert "refs/tags/v" in publish["if"]
        assert set(publish["needs"]) == set(workflow["jobs"]) - {"publish"}


SCRIPTS = [".ci/run", *sorted(f"scripts/{p.name}" for p in (ROOT / "scripts").glob("*.sh"))]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid(script):
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    run(["bash", "-n", str(ROOT / script)], ROOT)
