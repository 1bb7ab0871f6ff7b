"""Builds the C++ extension of dafast; all other settings are in pyproject.toml.

The extension needs PyTorch at build time. PyTorch is not a build requirement, because pip would
download a second copy of the newest version into its isolated build: install torch first and pass
--no-build-isolation. If torch or a compiler is missing, or the build fails, dafast installs
without the extension and works, but some steps are slower; `dafast doctor` lists them. Set
DAFAST_NO_EXTENSION=1 to build without the extension, DAFAST_NO_CUDA=1 to build it without the CUDA
kernels, DAFAST_CUDA_ARCHITECTURES="90 100" to build them only for these compute capabilities.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
MIN_TORCH = "0x020b000000000000"  # 2.11: the oldest PyTorch that can load the extension
# Ampere to Blackwell, and PTX for later architectures.
CUDA_ARCHITECTURES = ("80", "86", "89", "90", "100", "120")


def cuda_architectures() -> list[str]:
    """Returns the compute capabilities to build for, without their dot, the newest one last."""
    text = os.environ.get("DAFAST_CUDA_ARCHITECTURES", "")
    chosen = text.replace(",", " ").replace(";", " ").replace(".", "").split()
    unknown = [a for a in chosen if not (a.isdigit() and int(a) >= 80)]
    if unknown:
        sys.exit(
            f"DAFAST_CUDA_ARCHITECTURES={text!r}: {unknown[0]!r} is not a compute capability of "
            '8.0 or later; examples: "90", "8.0 9.0"'
        )
    return sorted(set(chosen), key=int) or list(CUDA_ARCHITECTURES)


def without_extension(reason: str) -> None:
    """Prints that dafast is installed without the extension, and the reason."""
    print(
        "\n"
        f"dafast: installing WITHOUT the C++ extension: {reason}\n"
        "dafast: everything works, but some steps are slower; `dafast doctor` lists them.\n",
        file=sys.stderr,
        flush=True,
    )


def long_description() -> str:
    """Returns README.md with absolute links and pictures, for pages outside of the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = project["urls"]["Source"]
    raw = source.replace("https://github.com/", "https://raw.githubusercontent.com/")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^]]*\]\()(?![a-z]+:)", rf"\1{raw}/main/", text)
    return re.sub(r"(\]\()(?![a-z]+:|#)", rf"\1{source}/blob/main/", text)


def extension() -> dict:
    """Returns the arguments of setup() that build dafast._C; none if it cannot be built.

    The CUDA kernels are included with a CUDA build of PyTorch and its toolkit (`nvcc`).
    """
    if os.environ.get("DAFAST_NO_EXTENSION", "") not in ("", "0"):
        without_extension("DAFAST_NO_EXTENSION is set")
        return {}
    try:
        import pybind11
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        without_extension(
            f"{error} (install torch, pybind11 and ninja first and use --no-build-isolation)"
        )
        return {}

    def module(cuda: bool) -> Extension:
        # setuptools wants paths relative to the root.
        sources = sorted(f"csrc/{p.name}" for p in CSRC.glob("*.cpp"))
        sources += sorted(f"csrc/cpu/{p.name}" for p in (CSRC / "cpu").glob("*.cpp"))
        windows = sys.platform == "win32"
        # -fno-trapping-math: otherwise a select of two floats is a branch, and GCC does not
        # vectorise its loop.
        unix = ["-O3", "-g0", "-fvisibility=hidden", "-fno-trapping-math"]
        flags = {"cxx": ["/O2"] if windows else unix}
        macros = [("TORCH_TARGET_VERSION", MIN_TORCH)]
        if cuda:
            sources += sorted(f"csrc/cuda/{p.name}" for p in (CSRC / "cuda").glob("*.cu"))
            macros.append(("DAFAST_CUDA", None))
            architectures = cuda_architectures()
            newest = architectures[-1]
            flags["nvcc"] = [
                "-O3",
                *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures),
                f"-gencode=arch=compute_{newest},code=compute_{newest}",
            ]
        return (CUDAExtension if cuda else CppExtension)(
            "dafast._C",
            sources,
            depends=[str(p.relative_to(ROOT)) for p in CSRC.rglob("*.h")],
            include_dirs=[str(CSRC / "include"), pybind11.get_include()],
            define_macros=macros,
            extra_compile_args=flags,
            optional=True,
        )

    class OptionalBuildExtension(BuildExtension):
        """Continues without the CUDA kernels, or without the extension, if they do not build."""

        def build_extensions(self) -> None:
            if cuda:
                try:
                    return super().build_extensions()
                except Exception as error:  # an unsupported nvcc, missing headers
                    print(f"\ndafast: WITHOUT the CUDA kernels: {error}\n", file=sys.stderr)
                    vars(self.extensions[0]).update(vars(module(cuda=False)))
            try:
                super().build_extensions()
            except Exception as error:  # dafast installs without it
                without_extension(f"the build failed: {error}")
                self.extensions = []
                self.distribution.ext_modules = []

    wanted = os.environ.get("DAFAST_NO_CUDA", "") in ("", "0")
    cuda = bool(wanted and torch.version.cuda and CUDA_HOME)
    return {"ext_modules": [module(cuda)], "cmdclass": {"build_ext": OptionalBuildExtension}}


CSRC = ROOT / "csrc"

setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    # Only package_data: setuptools would take the folders of the weights for packages.
    include_package_data=False,
    packages=[
        "dafast",
        *(f"dafast.{name}" for name in find_packages("dafast")),
        "dafast.kernels",
        "dafast.configs",
        "dafast.photos",
    ],
    # Folders of the checkout that are installed as a part of the package.
    package_dir={
        "dafast": "dafast",
        "dafast.kernels": "kernels",
        "dafast.configs": "configs",
        "dafast.photos": "examples/photos",
    },
    package_data={
        "dafast": ["py.typed", "weights/**/*", "serve/page/*"],
        "dafast.configs": ["**/*.toml"],
        "dafast.photos": ["*.jpg", "README.md"],
    },
    **extension(),
)
