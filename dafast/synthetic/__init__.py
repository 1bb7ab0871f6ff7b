"""Procedurally generated scenes with exact depth.

``render_scene(seed)`` gives one image with its depth; ``write_shards`` writes a data set. Needs the
extra ``dafast[synth]`` (embreex, scikit-image).
"""

from dafast.synthetic.sample import (
    HELD_OUT_SEED,
    KINDS,
    SyntheticSample,
    plane_fit,
    render_scene,
)
from dafast.synthetic.scene import CLASSES
from dafast.synthetic.shards import write_shards

__all__ = [
    "CLASSES",
    "HELD_OUT_SEED",
    "KINDS",
    "SyntheticSample",
    "plane_fit",
    "render_scene",
    "write_shards",
]
