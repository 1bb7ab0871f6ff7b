"""Reads the names of checkpoints: a published file, V1 or V2, relative or metric."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import PRESETS, ModelConfig
from .hub import WEIGHT_FILES
from .zoo import entries

_SIZES = {"vits": "small", "vitb": "base", "vitl": "large"}
_METRIC_DATA = {"indoor": "hypersim", "outdoor": "vkitti"}
_FOLDERS = 4  # above a file whose names are read

_SUFFIX = re.compile(
    r"(?:-\d{5}-of-\d{5})?(?:\.(?:safetensors|pth|pt|bin|ckpt|tar|index|json))+$", re.IGNORECASE
)
_COPY = re.compile(r"\s*\(\d+\)$|(?:[-_.](?:fp16|fp32|bf16|float16|float32|bfloat16|half))$", re.I)

# All patterns below are matched with names in lower case, with "-" between words.
_DEPTH_ANYTHING = r"(?:depth-?any(?:thing)?|(?<![a-z0-9])da)"
_V2 = re.compile(
    rf"{_DEPTH_ANYTHING}-?v?-?2(?![0-9])"
    r"|depth-?any.*(?<![a-z0-9])v2(?![0-9])"
    r"|(?<![a-z0-9])v2-(?:metric-)?(?:vi-?t-?)?(?:[sbl]|small|base|large)(?![a-z])"
    r"|(?:vi-?t-?[sbl]|small|base|large)-v2(?![0-9])"
    r"|distill-any-depth|depth-?anything-?ac(?![a-z])"  # fine-tunes of V2
)
_V1 = re.compile(
    rf"{_DEPTH_ANYTHING}-?v-?1(?![0-9])"
    r"|depth-?anything-vi-?t-?[sbl]-?14"
    r"|depth-?anything-(?:small|base|large)-hf"
    r"|depth-?anything-metric-depth-(?:indoor|outdoor)"
    r"|lihe-?young"
)
_METRIC = re.compile(
    r"(?<!geo)(?<!oto)(?<!sym)metric"
    r"|(?<![a-z])(?:metres?|meters?|indoor|outdoor|absolute|zoe)(?![a-z])"
    r"|(?<![a-z])(?:rmse|silog|abs-?rel)(?![a-z])"
    r"|max-?depth|(?<![a-z0-9])\d{1,3}-?m(?![a-z0-9])|si-log"
    r"|hypersim|v-?kitti|virtual-kitti|kitti|zoe-?depth"
    r"|(?<![a-z])nyu(?:-?v?2|d|-?depth)?(?![a-z])"
)
_RELATIVE = re.compile(r"(?<![a-z])(?:relative|disparity|affine|non-?metric)(?![a-z])")
# Names of other things that have a version of their own.
_OTHER_VERSIONS = re.compile(r"dino-?v2|nyu-?d?(?:epth)?-?v2|kitti-?2")


@dataclass(frozen=True)
class NameClaim:
    """The facts that the names of a file and its folder give about weights.

    Attributes:
        preset: The published model, if the name is one that was published.
        version: ``"v1"``, ``"v2"``, ``"v1 and v2"``, or "" if no name says it.
        metric: The word that stands for a metric model (``"metric"``, ``"kitti"``, ...), or "".
        data: ``"hypersim"`` or ``"vkitti"`` if the name says that the model is metric and names
            one of the two, else "".
        place: ``"indoor"`` or ``"outdoor"`` if the name has that word, else "".
        relative: Whether a word says that the model is relative.
    """

    preset: ModelConfig | None = None
    version: str = ""
    metric: str = ""
    data: str = ""
    place: str = ""
    relative: bool = False


def _words(name: str) -> str:
    """``"model-DepthAnythingV2.pth"`` to ``"model-depth-anything-v2"``."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", _SUFFIX.sub("", name))
    return re.sub(r"[\W_]+", "-", name).strip("-").lower()


def _stem(name: str) -> str:
    """Removes suffixes from a name, and words that only describe the storage."""
    name = _SUFFIX.sub("", name)
    while (shorter := _COPY.sub("", name)) != name:
        name = shorter
    return re.sub(r"[\W_]+", "-", name).strip("-").lower()


def _published() -> dict[str, ModelConfig]:
    """Published models by the stems of files and by the names of repositories."""
    published: dict[str, ModelConfig] = {}
    for preset in PRESETS.values():
        if not preset.hub_id:
            continue
        stems = [preset.hub_file.split("/")[-1]]
        if preset.sky_head or preset.temporal_frames:  # Depth Anything 3 or for video
            stems += [preset.hub_id.split("/")[-1], preset.name]
        elif not preset.hub_id.startswith("spaces/"):
            stems.append(preset.hub_id.split("/")[-1])
            place = next((p for p, d in _METRIC_DATA.items() if f"-{d}-" in preset.name), "")
            parts = [
                "depth-anything",
                "v2" if preset.name.startswith("v2-") else "",
                f"metric-{place}" if place else "",
                _SIZES[preset.name.split("-")[-1]],
                "hf",
            ]
            stems.append("-".join(part for part in parts if part))
        published.update({_stem(s): preset for s in stems if s not in WEIGHT_FILES})
    for entry in entries().values():
        if entry.id not in PRESETS:
            repository = entry.config.hub_id.split("/")[-1]
            folder, file = entry.config.hub_file.split("/")
            name = f"{repository}-{folder}" if file in WEIGHT_FILES else file
            published[_stem(name)] = entry.config
    return published


def preset_from_name(name: str) -> ModelConfig | None:
    """The configuration that a published file name or hub id stands for, or None.

    For instance ``depth_anything_v2_metric_vkitti_vitl.pth``, ``LiheYoung/depth_anything_vits14``
    or ``depth-anything/Depth-Anything-V2-Small-hf``. Suffixes that say how the weights are stored
    (``.safetensors``, ``_fp16``, ``(1)``) may differ; a name with any other word is not published.
    """
    return _published().get(_stem(name.split("/")[-1]))


def _version(words: str) -> str:
    words = _OTHER_VERSIONS.sub("", words)
    found = [name for name, rule in (("v1", _V1), ("v2", _V2)) if rule.search(words)]
    return " and ".join(found)


def read_names(names: Sequence[str]) -> NameClaim:
    """Reads the name of a file and of the folders (or the hub repository) it is in.

    A published name counts if it is that of the file, or that of the folder where the file has one
    of the names that all repositories use. Otherwise the nearest name that says a version counts,
    with all names from the file up to it.

    Args:
        names: The file's first, then outward.
    """
    names = names[: 1 + _FOLDERS]
    if not names:
        return NameClaim()
    telling = 1 if names[0] in WEIGHT_FILES and len(names) > 1 else 0
    preset = preset_from_name(names[telling])
    if preset is None and telling and len(names) > 2:
        preset = preset_from_name(f"{names[2]}-{names[1]}")  # a repository with several models
    words, version = [_words(name) for name in names], ""
    text = words[0]
    for depth, word in enumerate(words, 1):
        version = _version(word)
        if version:
            text = " ".join(words[:depth])
            break
    relative = _RELATIVE.search(text)
    text = _RELATIVE.sub("", text)
    metric = _METRIC.search(text)
    places = {place for place in _METRIC_DATA if re.search(rf"(?<![a-z]){place}", text)}
    data = {_METRIC_DATA[place] for place in places}
    data |= {"hypersim"} if "hypersim" in text else set()
    data |= {"vkitti"} if re.search("v-?kitti|virtual-kitti", text) else set()
    return NameClaim(
        preset=preset,
        version=version,
        metric=metric[0] if metric else "",
        data=data.pop() if "metric" in text and len(data) == 1 else "",
        place=places.pop() if len(places) == 1 else "",
        relative=relative is not None,
    )
