"""Procedurally generated scenes with exact depth.

``render_scene(seed)`` gives one image with its depth; ``write_shards`` writes a data set.
``render_clip(seed, frames)`` and ``write_clips`` do this for short videos, with poses and optical
flow too; ``read_clip`` reads what they wrote. Rendering needs the extra ``dafast[synth]`` (embreex,
scikit-image).
"""

from dafast.synthetic.clip_files import Clip, clip_folders, read_clip
from dafast.synthetic.clips import MOTIONS, render_clip, write_clips
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
    "MOTIONS",
    "Clip",
    "SyntheticSample",
    "clip_folders",
    "plane_fit",
    "read_clip",
    "render_clip",
    "render_scene",
    "write_clips",
    "write_shards",
]
