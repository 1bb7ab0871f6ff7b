"""Builds dafast; everything that is not the C++ extension is in pyproject.toml.

The extension needs PyTorch at build time, and PyTorch is not among the build requirements (pip
would fetch a second copy, of whatever version is newest, into its isolated build): install torch
first and pass --no-build-isolation. Where torch, a compiler or the build itself is missing,
dafast installs without the extension and runs all the same, slower in places; `dafast doctor`
says so. Set DAFAST_NO_EXTENSION=1 to leave it out on purpose, DAFAST_NO_CUDA=1 to leave out the
CUDA kernels alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
MIN_TORCH = "0x020b000000000000"  # 2.11: the oldest stable ABI that the extension speaks
# Ampere to Blackwell, and PTX for what comes after.
CUDA_ARCHITECTURES = ("80", "86", "89", "90", "100", "120")


def without_extension(reason: str) -> None:
    """Says on the terminal that the extension is left out, and why."""
    print(
        "\n"
        f"dafast: installing WITHOUT the C++ extension: {reason}\n"
        "dafast: everything works, some steps are slower; `dafast doctor` tells which.\n",
        file=sys.stderr,
        flush=True,
    )


def extension() -> dict:
    """Returns the setup() arguments that build dafast._C, or none with the reason printed.

    With a CUDA build of PyTorch and its toolkit (`nvcc`) the CUDA kernels are in it.
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
        # Relative to the root, as setuptools wants sources to be.
        sources = sorted(f"csrc/{p.name}" for p in CSRC.glob("*.cpp"))
        sources += sorted(f"csrc/cpu/{p.name}" for p in (CSRC / "cpu").glob("*.cpp"))
        windows = sys.platform == "win32"
        # With traps a select of two floats is a branch, and its loop is not vectorised.
        unix = ["-O3", "-g0", "-fvisibility=hidden", "-fno-trapping-math"]
        flags = {"cxx": ["/O2"] if windows else unix}
        macros = [("TORCH_TARGET_VERSION", MIN_TORCH)]
        if cuda:
            sources += sorted(f"csrc/cuda/{p.name}" for p in (CSRC / "cuda").glob("*.cu"))
            macros.append(("DAFAST_CUDA", None))
            newest = CUDA_ARCHITECTURES[-1]
            flags["nvcc"] = [
                "-O3",
                *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES),
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
        """Goes on without the CUDA kernels, and without the extension, where it does not build."""

        def build_extensions(self) -> None:
            if cuda:
                try:
                    return super().build_extensions()
                except Exception as error:  # an nvcc too old or too new, headers that are missing
                    print(f"\ndafast: WITHOUT the CUDA kernels: {error}\n", file=sys.stderr)
                    vars(self.extensions[0]).update(vars(module(cuda=False)))
            try:
                super().build_extensions()
            except Exception as error:  # whatever the compiler does, dafast still installs
                without_extension(f"the build failed: {error}")
                self.extensions = []
                self.distribution.ext_modules = []

    # DAFAST_NO_CUDA=1 leaves the CUDA kernels out on purpose.
    wanted = os.environ.get("DAFAST_NO_CUDA", "") in ("", "0")
    cuda = bool(wanted and torch.version.cuda and CUDA_HOME)
    return {"ext_modules": [module(cuda)], "cmdclass": {"build_ext": OptionalBuildExtension}}


CSRC = ROOT / "csrc"

setup(
    packages=[
        "dafast",
        *(f"dafast.{name}" for name in find_packages("dafast")),
        "dafast.kernels",
        "dafast.configs",
    ],
    # Kernels and configurations live at the top of the repository and install within the package.
    package_dir={"dafast": "dafast", "dafast.kernels": "kernels", "dafast.configs": "configs"},
    package_data={"dafast": ["py.typed", "weights/**/*"], "dafast.configs": ["**/*.toml"]},
    **extension(),
)
