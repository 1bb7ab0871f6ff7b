"""Builds dafast; everything that is not the C++ extension is in pyproject.toml.

The extension needs PyTorch at build time, and PyTorch is not among the build requirements (pip
would fetch a second copy, of whatever version is newest, into its isolated build): install torch
first and pass --no-build-isolation. Where torch, a compiler or the build itself is missing,
dafast installs without the extension and runs all the same, slower in places; `dafast doctor`
says so. Set DAFAST_NO_EXTENSION=1 to leave it out on purpose.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
MIN_TORCH = "0x020d000000000000"  # 2.13: the oldest stable ABI that the extension speaks


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
    """Returns the setup() arguments that build dafast._C, or none with the reason printed."""
    if os.environ.get("DAFAST_NO_EXTENSION", "") not in ("", "0"):
        without_extension("DAFAST_NO_EXTENSION is set")
        return {}
    try:
        import pybind11
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        without_extension(
            f"{error} (install torch, pybind11 and ninja first and use --no-build-isolation)"
        )
        return {}

    class OptionalBuildExtension(BuildExtension):
        """Goes on without the extension where it does not build."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:  # whatever the compiler does, dafast still installs
                without_extension(f"the build failed: {error}")
                self.extensions = []
                self.distribution.ext_modules = []

    # Relative to the root, as setuptools wants sources to be.
    sources = ["csrc/bindings.cpp", *sorted(f"csrc/cpu/{p.name}" for p in CPU.glob("*.cpp"))]
    windows = sys.platform == "win32"
    module = CppExtension(
        "dafast._C",
        sources,
        depends=[str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h")],
        include_dirs=[str(ROOT / "csrc" / "include"), pybind11.get_include()],
        define_macros=[("TORCH_TARGET_VERSION", MIN_TORCH)],
        extra_compile_args=["/O2"] if windows else ["-O3", "-g0", "-fvisibility=hidden"],
        optional=True,
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": OptionalBuildExtension}}


CPU = ROOT / "csrc" / "cpu"

setup(
    packages=[
        "dafast",
        *(f"dafast.{name}" for name in find_packages("dafast")),
        "dafast.kernels",
    ],
    # The kernels live at the top of the repository and install within the package.
    package_dir={"dafast": "dafast", "dafast.kernels": "kernels"},
    package_data={"dafast": ["py.typed", "weights/**/*"]},
    **extension(),
)
