"""dafast: Depth Anything, fast and trainable.

`DepthAnything.from_pretrained("vitl").infer("photo.jpg")` gives the disparity of a photo.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .optional import MissingPackageError

if TYPE_CHECKING:
    from ._warnings import (
        DafastWarning,
        DataWarning,
        LicenseWarning,
        PerformanceWarning,
        WeightsWarning,
    )
    from .config import PRESETS, ModelConfig
    from .models import DepthAnything, FeaturePyramid, SegmentationModel
    from .models.acceleration import accelerate, restore
    from .ops import use_backend
    from .result import DepthResult

logging.getLogger(__name__).addHandler(logging.NullHandler())

# Resolved on first use, so that `import dafast` costs next to nothing.
_LAZY = {
    "DafastWarning": "_warnings",
    "DataWarning": "_warnings",
    "DepthAnything": "models",
    "DepthResult": "result",
    "FeaturePyramid": "models",
    "LicenseWarning": "_warnings",
    "ModelConfig": "config",
    "PRESETS": "config",
    "PerformanceWarning": "_warnings",
    "SegmentationModel": "models",
    "WeightsWarning": "_warnings",
    "accelerate": "models.acceleration",
    "restore": "models.acceleration",
    "use_backend": "ops",
}
_SUBMODULES = (
    "config",
    "data",
    "evaluation",
    "images",
    "inference",
    "losses",
    "models",
    "ops",
    "runtime",
    "synthetic",
    "training",
)

__all__ = [
    "DafastWarning",
    "DataWarning",
    "DepthAnything",
    "DepthResult",
    "FeaturePyramid",
    "LicenseWarning",
    "ModelConfig",
    "PRESETS",
    "PerformanceWarning",
    "SegmentationModel",
    "WeightsWarning",
    "accelerate",
    "restore",
    "use_backend",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY and name not in _SUBMODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_LAZY.get(name, name)}", __name__)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingPackageError(
            f"dafast.{name} needs PyTorch, which is not installed; without PyTorch "
            "dafast.runtime.OnnxModel predicts with files of `dafast export`"
        ) from error
    return getattr(module, name) if name in _LAZY else module


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_SUBMODULES])


def _find_kernels_in_checkout() -> None:
    """Makes `dafast.kernels` importable where dafast runs from a checkout, not installed.

    Installed, `dafast.kernels` is a package of its own (setup.py maps the top folder `kernels`
    to it) and the import system finds it by itself.
    """
    if importlib.util.find_spec("dafast.kernels") is not None:
        return
    folder = Path(__file__).resolve().parent.parent / "kernels"
    spec = importlib.util.spec_from_file_location(
        "dafast.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if not (folder / "__init__.py").is_file() or spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["dafast.kernels"] = globals()["kernels"] = module
    spec.loader.exec_module(module)


_find_kernels_in_checkout()
