"""Model presets: frozen dataclasses, no torch import."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The sky of Depth Anything 3, by its official code.
SKY = 0.5
"""From this value on the sky output means sky, in the mask that is reported."""
SKY_FILLED = 0.3
"""From this value on the depth is filled: another threshold than `SKY`."""
SKY_QUANTILE = 0.99
"""The quantile of the depth without sky that fills the sky."""
SKY_FEWEST = 10
"""With no more pixels of sky, or of the rest, nothing is filled."""

_OLD_NAMES = {"licence": "license"}
# Fields that were added later; at their default they are no part of `ModelConfig.identity`.
_LATER_FIELDS = frozenset(
    (
        "output",
        "kind",
        "focal_length",
        "sky_head",
        "norm_eps",
        "fit",
        "calibration",
        "temporal_frames",
    )
)
_CHOICES = {
    "position_embedding": ("official", "transformers"),
    "bin_centers": ("", "softplus", "normed"),
    "output": ("", "relu", "sigmoid", "exp"),
    "kind": ("", "disparity", "depth", "metric"),
    "fit": ("pad", "official", "upper_bound", "video"),
}


def _is_positive(value: Any) -> bool:
    """Whether a value, as read from a file, is a positive finite number."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and 0 < value < math.inf


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines a Depth Anything network (DINOv2 ViT + DPT head).

    Attributes:
        name: Preset name, or any label for your own configuration.
        embed_dim: Width of the encoder.
        num_layers: Number of transformer blocks.
        num_heads: Attention heads; must divide ``embed_dim``.
        features: Width of the DPT decoder.
        out_channels: Channels of the four reassembled maps.
        out_indices: Encoder blocks (from 0) whose output the decoder reads. V1 takes the last
            four; V2 spreads them over the depth of the encoder.
        image_size: Side in pixels that `infer` resizes photos to: the shorter side, or the longer
            one with ``fit="upper_bound"``.
        grid_size: Side of the square grid of position embeddings.
        patch_size: Side of a patch in pixels.
        max_depth: The largest depth in metres of a metric model; ``None`` for a relative model,
            whose output is disparity.
        bin_centers: Output of a metric model: ``""`` for that of V2, ``sigmoid(.) * max_depth``;
            ``"softplus"`` (unbounded) or ``"normed"`` (within the range) for ZoeDepth's bins,
            `dafast.models.zoedepth.MetricBinsHead`.
        output: Activation of the output: ``"relu"``, ``"sigmoid"`` (times ``max_depth``) or
            ``"exp"``; ``""`` for that of V1 and V2, see `activation`.
        kind: Meaning of the output: ``"disparity"`` (large is near, unknown scale and shift),
            ``"depth"`` (large is far, unknown scale) or ``"metric"`` (metres); ``""`` for that of
            V1 and V2, see `quantity`.
        focal_length: For a metric model whose output depends on the camera: the focal length, in
            pixels of the network's input, at which the output is in metres. Another focal length f
            gives ``output * f / focal_length``. ``None`` if the camera does not matter.
        sky_head: Whether the decoder has a second output that finds the sky, as in Depth
            Anything 3.
        norm_eps: Epsilon of the encoder's final LayerNorm.
        fit: The size rule that `infer` uses by default: ``"pad"``, ``"official"``,
            ``"upper_bound"`` or ``"video"``, see `dafast.geometry.plan_geometry`.
        temporal_frames: The most frames of a clip that attend to each other, in temporal modules
            of the decoder, as in Video-Depth-Anything (32); 0 without these modules.
        calibration: A scale and a shift that `dafast calibrate` fitted: predictions are multiplied
            by the first, then the second is added. Disparity is then in 1/m, depth in metres.
            ``None`` without. The network's own output, which training sees, is without it.
        output_align_corners: How the prediction is resized to the photo; False in V1, True in V2.
        position_embedding: ``"official"`` (bicubic with ``scale_factor`` and the 0.1 offset) or
            ``"transformers"`` (bicubic with ``size``); they differ at every grid but
            ``grid_size`` x ``grid_size``.
        hub_id: Repository on the Hugging Face hub with the official weights, or "".
        hub_file: File name in that repository.
        license: SPDX identifier of the license of the published weights, or "".
        mean: Per-channel mean of the normalisation, on RGB in 0..1.
        std: Per-channel standard deviation.
    """

    name: str = "vits"
    embed_dim: int = 384
    num_layers: int = 12
    num_heads: int = 6
    features: int = 64
    out_channels: tuple[int, int, int, int] = (48, 96, 192, 384)
    out_indices: tuple[int, int, int, int] = (8, 9, 10, 11)
    image_size: int = 518
    grid_size: int = 37
    patch_size: int = 14
    max_depth: float | None = None
    bin_centers: str = ""
    output: str = ""
    kind: str = ""
    focal_length: float | None = None
    sky_head: bool = False
    norm_eps: float = 1e-6
    fit: str = "pad"
    temporal_frames: int = 0
    calibration: tuple[float, float] | None = None
    output_align_corners: bool = False
    position_embedding: str = "official"
    hub_id: str = ""
    hub_file: str = ""
    license: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("out_channels", "out_indices", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON and TOML give lists
        problems = []
        if self.calibration is not None:
            object.__setattr__(self, "calibration", tuple(self.calibration))
            problems += self._why_not_calibrated()
        if self.embed_dim % self.num_heads:
            problems.append(f"embed_dim={self.embed_dim} not divisible by {self.num_heads} heads")
        if len(self.out_channels) != 4 or len(self.out_indices) != 4:
            problems.append("out_channels and out_indices need four entries each")
        if not all(0 <= i < self.num_layers for i in self.out_indices):
            problems.append(f"out_indices={self.out_indices} outside 0..{self.num_layers - 1}")
        if sorted(set(self.out_indices)) != list(self.out_indices):
            problems.append(f"out_indices={self.out_indices} must increase")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                problems.append(f"{name}={getattr(self, name)!r}; use one of {allowed}")
        if self.max_depth is not None and not _is_positive(self.max_depth):
            problems.append(f"max_depth={self.max_depth!r} must be a positive number of metres")
        if self.bin_centers and self.max_depth is None:
            problems.append("bin_centers need a max_depth, as only metric models have them")
        if self.activation == "sigmoid" and self.max_depth is None:
            problems.append("output='sigmoid' needs a max_depth, which it is multiplied by")
        if self.bin_centers and (self.sky_head or self.activation != "relu"):
            problems.append("bin_centers exclude a sky_head and other outputs than 'relu'")
        if self.max_depth is not None and (
            not self.is_metric or (self.activation != "sigmoid" and not self.bin_centers)
        ):
            problems.append("max_depth needs kind='metric', and output='sigmoid' or bin_centers")
        if self.focal_length is not None and not (
            _is_positive(self.focal_length) and self.is_metric
        ):
            problems.append(
                f"focal_length={self.focal_length} must be positive, for kind='metric' only"
            )
        problems += self._why_not_temporal()
        if not 0 < self.norm_eps < 1:
            problems.append(f"norm_eps={self.norm_eps} must be between 0 and 1")
        if self.features % 2:
            problems.append(f"features={self.features} must be even")
        if problems:
            raise ValueError(f"model configuration {self.name!r}: " + "; ".join(problems))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Reads the fields of a configuration from a parsed file, current or older.

        Args:
            values: The fields by name. Missing fields take their defaults; ``licence``, the older
                name of ``license``, is read too.

        Raises:
            ValueError: If a field is unknown or a value is not valid.
        """
        fields = {_OLD_NAMES.get(name, name): value for name, value in values.items()}
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"model configuration with unknown fields: {', '.join(unknown)}")
        return cls(**fields)

    def _why_not_calibrated(self) -> list[str]:
        values = self.calibration or ()
        if len(values) != 2 or not _is_positive(values[0]) or not math.isfinite(values[1]):
            return [f"calibration={self.calibration!r}: a scale above 0 and a shift are needed"]
        if self.focal_length is not None and values[1] != 0:
            return ["calibration: with a focal_length the shift must be 0"]
        return []

    def _why_not_temporal(self) -> list[str]:
        frames = self.temporal_frames
        if frames == 0:
            return []
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 8:
            return [f"temporal_frames={frames!r} must be 0, or 8 frames and more"]
        if self.bin_centers or self.sky_head:
            return ["temporal_frames exclude bin_centers and a sky_head"]
        widths = (*self.out_channels[2:], self.features)
        if any(width % 8 for width in widths):
            return [f"temporal_frames need widths that are multiples of 8, not {widths}"]
        return []

    @property
    def identity(self) -> str:
        """The fields as text, for digests in files: equal in every version of dafast."""
        first_names = {new: old for old, new in _OLD_NAMES.items()}
        values = [
            f"{first_names.get(f.name, f.name)}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.name not in _LATER_FIELDS or getattr(self, f.name) != f.default
        ]
        return f"ModelConfig({', '.join(values)})"

    @property
    def activation(self) -> str:
        """Activation of the decoder's output: ``"relu"``, ``"sigmoid"`` or ``"exp"``."""
        plain = self.max_depth is None or self.bin_centers
        return self.output or ("relu" if plain else "sigmoid")

    @property
    def quantity(self) -> str:
        """Meaning of the output: ``"disparity"``, ``"depth"`` or ``"metric"``."""
        return self.kind or ("disparity" if self.max_depth is None else "metric")

    @property
    def is_metric(self) -> bool:
        """Whether the output is depth in metres."""
        return self.quantity == "metric"

    @property
    def unit(self) -> str:
        """The unit of predictions: ``"m"``, ``"1/m"``, or ``""`` for an unknown scale."""
        if self.is_metric or self.calibration:
            return "1/m" if self.quantity == "disparity" else "m"
        return ""


_ENCODERS: dict[str, dict] = {
    "vits": dict(embed_dim=384, num_layers=12, num_heads=6, features=64),
    "vitb": dict(embed_dim=768, num_layers=12, num_heads=12, features=128),
    "vitl": dict(embed_dim=1024, num_layers=24, num_heads=16, features=256),
}
_OUT_CHANNELS = {
    "vits": (48, 96, 192, 384),
    "vitb": (96, 192, 384, 768),
    "vitl": (256, 512, 1024, 1024),
}
_V1_TAPS = {"vits": (8, 9, 10, 11), "vitb": (8, 9, 10, 11), "vitl": (20, 21, 22, 23)}
_V2_TAPS = {"vits": (2, 5, 8, 11), "vitb": (2, 5, 8, 11), "vitl": (4, 11, 17, 23)}
_V2_NAMES = {"vits": "Small", "vitb": "Base", "vitl": "Large"}
_MAX_DEPTH = {"hypersim": 20.0, "vkitti": 80.0}


def _presets() -> dict[str, ModelConfig]:
    presets = {}
    for encoder, dims in _ENCODERS.items():
        size = _V2_NAMES[encoder]
        v1 = ModelConfig(
            name=encoder,
            out_channels=_OUT_CHANNELS[encoder],
            out_indices=_V1_TAPS[encoder],
            hub_id=f"LiheYoung/depth_anything_{encoder}14",
            hub_file="pytorch_model.bin",
            license="Apache-2.0",
            **dims,
        )
        v2 = dataclasses.replace(
            v1,
            name=f"v2-{encoder}",
            out_indices=_V2_TAPS[encoder],
            output_align_corners=True,
            hub_id=f"depth-anything/Depth-Anything-V2-{size}",
            hub_file=f"depth_anything_v2_{encoder}.pth",
            license="Apache-2.0" if encoder == "vits" else "CC-BY-NC-4.0",
        )
        presets[v1.name] = v1
        presets[v2.name] = v2
        for data, max_depth in _MAX_DEPTH.items():
            metric = dataclasses.replace(
                v2,
                name=f"v2-metric-{data}-{encoder}",
                max_depth=max_depth,
                hub_id="depth-anything/Depth-Anything-V2-Metric-"
                f"{'Hypersim' if data == 'hypersim' else 'VKITTI'}-{size}",
                hub_file=f"depth_anything_v2_metric_{data}_{encoder}.pth",
            )
            presets[metric.name] = metric
    # V1's metric models: ViT-L with ZoeDepth's bins, fine-tuned on NYUv2 and on KITTI. They are in
    # the files of a space on the hub, one file each.
    for place, max_depth, image_size in (("indoor", 10.0, 392), ("outdoor", 80.0, 378)):
        presets[f"metric-{place}-vitl"] = dataclasses.replace(
            presets["vitl"],
            name=f"metric-{place}-vitl",
            image_size=image_size,
            max_depth=max_depth,
            bin_centers="softplus",
            output_align_corners=True,
            hub_id="spaces/LiheYoung/Depth-Anything",
            hub_file=f"checkpoints_metric_depth/depth_anything_metric_depth_{place}.pt",
        )
    # Depth Anything 3's monocular models. The two have the same network; only the meaning differs.
    for kind, hub_id in (("mono", "DA3MONO-LARGE"), ("metric", "DA3METRIC-LARGE")):
        presets[f"da3{kind}-vitl"] = dataclasses.replace(
            presets["v2-vitl"],
            name=f"da3{kind}-vitl",
            image_size=504,
            output="exp",
            kind="depth" if kind == "mono" else "metric",
            focal_length=None if kind == "mono" else 300.0,
            sky_head=True,
            norm_eps=1e-5,
            fit="upper_bound",
            output_align_corners=False,
            hub_id=f"depth-anything/{hub_id}",
            hub_file="model.safetensors",
            license="Apache-2.0",
        )
    return {**presets, **_video_presets(presets), **_nano_presets()}


def _video_presets(presets: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
    # Video-Depth-Anything: V2 with temporal modules. The relative and the metric model of a size
    # have the same network; only the meaning differs.
    made = {}
    for encoder in _ENCODERS:
        for kind, prefix in (("", ""), ("metric", "Metric-")):
            name = f"vda-metric-{encoder}" if kind else f"vda-{encoder}"
            made[name] = dataclasses.replace(
                presets[f"v2-{encoder}"],
                name=name,
                output="relu",
                kind=kind,
                fit="video",
                temporal_frames=32,
                hub_id=f"depth-anything/{prefix}Video-Depth-Anything-{_V2_NAMES[encoder]}",
                hub_file=f"{prefix.lower().replace('-', '_')}video_depth_anything_{encoder}.pth",
            )
    return made


def _nano_presets() -> dict[str, ModelConfig]:
    # The demonstration model that this project trains itself and ships in the package.
    nano = ModelConfig(
        name="nano",
        embed_dim=192,
        num_layers=6,
        num_heads=3,
        features=32,
        out_channels=(32, 48, 64, 96),
        out_indices=(1, 2, 4, 5),
        image_size=336,
        grid_size=16,
        license="Apache-2.0",
    )
    # Its form for video, to be trained on clips: no weights are published.
    clips = dataclasses.replace(nano, name="vda-nano", temporal_frames=16, license="")
    # Its form with a wider encoder, which experiments/widen.py makes: no weights are published.
    wide = dataclasses.replace(nano, name="nano-384", embed_dim=384, num_heads=6, license="")
    return {nano.name: nano, clips.name: clips, wide.name: wide}


PRESETS: dict[str, ModelConfig] = _presets()
"""Every preset by name: `vits`, `vitb`, `vitl`, their `v2-` forms, `v2-metric-*`,
`metric-indoor-vitl`, `metric-outdoor-vitl`, `da3mono-vitl`, `da3metric-vitl`, `vda-vits`,
`vda-vitb`, `vda-vitl`, their `vda-metric-` forms, `nano`, `nano-384`, `vda-nano`."""


def get_preset(name: str) -> ModelConfig:
    """Returns the preset called ``name``.

    Raises:
        ValueError: If it is unknown; the message lists all presets.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
