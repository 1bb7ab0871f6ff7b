"""The published models of the family: their files, predictions and licenses."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import PRESETS, ModelConfig

_SIZES = {"vits": "small", "vitb": "base", "vitl": "large"}
# Bytes and SHA-256 of published files, each as public programs state them
# (docs/models.md). The size of the last one is that of the repository's page, in 0.1 MB.
_FILES: dict[str, tuple[int | None, str]] = {
    "v2-vits": (99218434, "715fade13be8f229f8a70cc02066f656f2423a59effd0579197bbf57860e1378"),
    "v2-vitb": (389961218, "0d2b7002e62d39d655571c371333340bd88f67ab95050c03591555aa05645328"),
    "v2-vitl": (1341395338, "a7ea19fa0ed99244e67b624c72b8580b7e9553043245905be58796a608eb9345"),
    "v2-metric-hypersim-vits": (
        99222290,
        "b782898d8a3e8be1f639de33837ed85e9b4b73e40f8f5e5cd99067588d722545",
    ),
    "v2-metric-hypersim-vitb": (
        389965138,
        "9dc9e274c5eff55c6daf27b660c0ced0eca4e8593a6da90cdcb04d2b4d3f3fa2",
    ),
    "v2-metric-hypersim-vitl": (
        1341401882,
        "6f82ff2bc543ac02ddff4aa31fa363676a8305dd3ccf04e80e2af115a044cb6d",
    ),
    "v2-metric-vkitti-vits": (
        99221808,
        "9203e538d35255c90dda4b7fedb47ff33fe725497bcca3b1e53b3a65ee63f0cb",
    ),
    "v2-metric-vkitti-vitb": (
        389964656,
        "4dad67a7cc10b462bca48e6b8569c762b8eb3c1adada170a3851a6d3ba37bb3e",
    ),
    "v2-metric-vkitti-vitl": (
        1341401064,
        "239b1054a369e66da2576e9a118d6d7c12d90dc8ebe609579a9a09cd8e05fe38",
    ),
    "da3mono-vitl": (None, "7a799a7f95eb8d4c404c2ca8be3dc3276b350a417ddc4420db72ba850cc0e960"),
    "da3metric-vitl": (
        1336734448,
        "bbea5b0b3ee389849cffa7ddae89de064a90abd2b055fc5aa99aac68db324776",
    ),
    "depth-anything-ac-vits": (99200000, ""),
}

_V2_METRIC = (
    "V2's README: Small Apache-2.0, Base and Large CC-BY-NC-4.0, without a word on metric models; "
    "the README of metric_depth: nothing; a maintainer's comment in V1's issue 191: Apache-2.0 for "
    "the metric models, as V2's issue 245 quotes it; that issue asks to confirm it and is open; a "
    "program that lists the files: the model cards state Apache-2.0"
)
_VDA = "README of the repository: Small Apache-2.0, Base and Large CC-BY-NC-4.0"
_VDA_METRIC = (
    f"{_VDA}, without a word on metric models; the hub page of the metric Small: Apache-2.0; "
    "those of Base and Large were not seen"
)
_DISTILL = (
    "README and LICENSE of the repository: MIT, for the code; a maintainer (issue 32): MIT for all "
    "weights; the hub page: Apache-2.0"
)
_DISTILL_LARGE = (
    f"{_DISTILL}. Training started from the weights of V2-Large, which are under CC-BY-NC-4.0 "
    "(issue 32)"
)

_NOTES = {"v2-metric-": _V2_METRIC, "vda-metric-": _VDA_METRIC, "vda-": _VDA}


@dataclass(frozen=True)
class ZooEntry:
    """One published model.

    Attributes:
        id: Its name here; `DepthAnything.from_pretrained` takes it.
        config: Its network, with repository, file and license in `hub_id`, `hub_file`, `license`.
        aliases: Other names that `DepthAnything.from_pretrained` takes, in lower case.
        license_note: What the sources say about the license, if they disagree or leave it open.
        size: Bytes of the file; None if it is not known.
        sha256: Digest of the file; "" if it is not known.
    """

    id: str
    config: ModelConfig
    aliases: tuple[str, ...] = ()
    license_note: str = ""
    size: int | None = None
    sha256: str = ""

    @property
    def unit(self) -> str:
        """Unit of the output."""
        if self.config.focal_length is not None:
            return f"metres, times focal length in pixels / {self.config.focal_length:g}"
        return {"disparity": "none (scale and shift unknown)", "depth": "none (scale unknown)"}.get(
            self.config.quantity, "metres"
        )

    def as_dict(self) -> dict[str, Any]:
        """The entry for JSON."""
        config = self.config
        return {
            "id": self.id,
            "aliases": list(self.aliases),
            "repository": config.hub_id,
            "file": config.hub_file,
            "output": config.quantity,
            "unit": self.unit,
            "max_depth": config.max_depth,
            "license": config.license,
            "license_note": self.license_note,
            "size": self.size,
            "sha256": self.sha256,
            "configuration": dataclasses.asdict(config),
        }


def _aliases(config: ModelConfig) -> list[str]:
    """Names of a preset that people type."""
    name, encoder = config.name, config.name.split("-")[-1]
    size = _SIZES.get(encoder, "")
    if config.sky_head:
        kind = name.split("-")[0].removeprefix("da3")
        return [f"da3{kind}-large", f"da3-{kind}-large", f"depth-anything-3-{kind}-large"]
    if config.temporal_frames:
        prefix = "metric-" if config.is_metric else ""
        file = config.hub_file.removesuffix(".pth")
        return [f"{prefix}video-depth-anything-{size}", file, f"{name.removesuffix(encoder)}{size}"]
    if name.startswith("v2-metric-"):
        data = name.split("-")[2]
        place = {"hypersim": "indoor", "vkitti": "outdoor"}[data]
        return [
            f"depth-anything-v2-metric-{data}-{size}",
            f"depth-anything-v2-metric-{place}-{size}",
            f"depth_anything_v2_metric_{data}_{encoder}",
        ]
    if name.startswith("v2-"):
        return [f"depth-anything-v2-{size}", f"depth_anything_v2_{encoder}", f"v2-{size}"]
    if name.startswith("metric-"):
        return [f"depth-anything-{name}", f"depth_anything_{name.rsplit('-', 1)[0]}"]
    if name == encoder:
        return [
            f"depth-anything-{size}",
            f"depth-anything-v1-{size}",
            f"depth_anything_{encoder}14",
            f"v1-{size}",
            f"v1-{encoder}",
        ]
    return []


def _fine_tune(name: str, repository: str, file: str, license: str, note: str = "") -> ZooEntry:
    """An entry with a network of V2 that is no preset."""
    encoder = name.split("-")[-1]
    config = dataclasses.replace(
        PRESETS[f"v2-{encoder}"], name=name, hub_id=repository, hub_file=file, license=license
    )
    alias = f"{name.removesuffix(encoder)}{_SIZES[encoder]}"
    return ZooEntry(name, config, (alias,), note, *_FILES.get(name, (None, "")))


def entries() -> dict[str, ZooEntry]:
    """Every published model by id: the presets with weights, then fine-tunes of V2."""
    found = []
    for name, config in PRESETS.items():
        packaged = name == "nano"
        if not packaged and not config.hub_id:
            continue
        aliases = _aliases(config)
        if not config.hub_id.startswith("spaces/") and config.hub_id:
            aliases.append(config.hub_id.lower())
        note = next((text for start, text in _NOTES.items() if name.startswith(start)), "")
        known = _FILES.get(name, (None, ""))
        found.append(ZooEntry(name, config, tuple(aliases), note, *known))
    distill = "xingyang1/Distill-Any-Depth"
    for encoder, size in _SIZES.items():
        note = _DISTILL_LARGE if encoder == "vitl" else _DISTILL
        file = f"{size}/model.safetensors"
        license = "Apache-2.0"
        found.append(_fine_tune(f"distill-any-depth-{encoder}", distill, file, license, note))
    found.append(
        _fine_tune(
            "depth-anything-ac-vits",
            "ghost233lism/DepthAnything-AC",
            "checkpoints/depth_anything_AC_vits.pth",
            "CC-BY-NC-4.0",
        )
    )
    return {entry.id: entry for entry in found}


def _by_name() -> dict[str, ZooEntry]:
    names = {name: entry for entry in entries().values() for name in entry.aliases}
    names["ghost233lism/depthanything-ac"] = names["depth-anything-ac"] = entries()[
        "depth-anything-ac-vits"
    ]
    return names | {name.lower(): entry for name, entry in entries().items()}


def by_content(path: Path) -> ZooEntry | None:
    """The entry whose published file this is, under any name; None if no known digest fits.

    Only files of a published size are read.
    """
    size = path.stat().st_size
    candidates = [e for e in entries().values() if e.sha256 and e.size in (size, None)]
    if all(entry.size is None for entry in candidates):
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((entry for entry in candidates if entry.sha256 == digest), None)


def find(name: str) -> ZooEntry | None:
    """The entry with this id or alias, in any case of letters, or None."""
    return _by_name().get(name.lower())
