"""Data: shards of labeled images and training transforms; other modules make shards.

Nothing is imported here before it is asked for: `import dafast.data` stays free of Pillow and
NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dafast.data.shards import Sample as Sample
    from dafast.data.shards import SampleError as SampleError
    from dafast.data.shards import ShardDataset as ShardDataset
    from dafast.data.shards import ShardError as ShardError
    from dafast.data.transforms import AugmentConfig as AugmentConfig
    from dafast.data.transforms import TrainTransform as TrainTransform

_LAZY = {
    "Sample": "dafast.data.shards",
    "SampleError": "dafast.data.shards",
    "ShardDataset": "dafast.data.shards",
    "ShardError": "dafast.data.shards",
    "AugmentConfig": "dafast.data.transforms",
    "TrainTransform": "dafast.data.transforms",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
