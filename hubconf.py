"""Entry points of `torch.hub`: `torch.hub.load("dafast/dafast", "depth_anything", "vits")`."""

from __future__ import annotations

from typing import Any

from dafast import DepthAnything, SegmentationModel

dependencies = [
    "filelock",
    "huggingface_hub",
    "numpy",
    "PIL",
    "platformdirs",
    "safetensors",
    "torch",
    "tqdm",
]


def depth_anything(name: str = "vits", pretrained: bool = True, **options: Any) -> DepthAnything:
    """Depth Anything.

    Args:
        name: A preset; with ``pretrained`` anything that `DepthAnything.from_pretrained` takes.
        pretrained: Whether to load trained weights; otherwise they are random.
        **options: Of `DepthAnything.from_pretrained`, such as ``device``.
    """
    if pretrained:
        return DepthAnything.from_pretrained(name, **options)
    if options:
        raise TypeError(f"without pretrained weights there is no {', '.join(options)}")
    return DepthAnything(name).eval()


def segmentation(name: str, **options: Any) -> SegmentationModel:
    """A segmentation model that dafast trained.

    Args:
        name: Folder or hub id.
        **options: Of `SegmentationModel.from_pretrained`, such as ``device``.
    """
    return SegmentationModel.from_pretrained(name, **options)
