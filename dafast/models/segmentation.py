"""Semantic segmentation on the encoder: frozen or fine-tuned, with a linear or a DPT head."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.resize_bilinear import interpolate
from ..profiling import annotate
from ..runtime import resolve_device, resolve_dtype
from .checkpoint import CheckpointError
from .dpt import DPTHead, Scratch
from .network import DepthNetwork
from .segmentation_inference import SegmentationOptions, segment
from .vision_transformer import VisionTransformer
from .weight_files import read_file

HEADS = ("linear", "linear4", "dpt")
"""`linear` reads the last block, `linear4` and `dpt` the four that the depth decoder reads."""

MODEL_TYPE = "dafast_segmentation"
"""What `config.json` of a saved model says it is."""


@dataclass(frozen=True)
class SegmentationConfig:
    """Everything that determines a segmentation network.

    Attributes:
        encoder: The Depth Anything whose encoder it has.
        classes: Their names; class i is channel i of the logits.
        head: One of `HEADS`.
    """

    encoder: ModelConfig
    classes: tuple[str, ...]
    head: str = "linear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))  # JSON gives a list
        if self.head not in HEADS:
            raise ValueError(f"no head {self.head!r}; there are: {', '.join(HEADS)}")
        if not 1 <= len(self.classes) <= 255:
            raise ValueError(
                f"{len(self.classes)} classes; 1 to 255 fit into 8-bit maps, where 255 is 'ignore'"
            )

    @property
    def name(self) -> str:
        """For tables: encoder and head."""
        return f"{self.encoder.name}-{self.head}"

    @property
    def taps(self) -> tuple[int, ...]:
        """The blocks that the head reads, counted from 0."""
        return (self.encoder.num_layers - 1,) if self.head == "linear" else self.encoder.out_indices


class LinearHead(nn.Module):
    """BatchNorm and a 1x1 convolution over the concatenated taps.

    DINOv2's linear evaluation (arXiv 2304.07193, sec. 7.4;
    `dinov2/eval/segmentation/models/decode_heads/linear_head.py`): one tap is its "lin.", four are
    the head of its "+ms", whose scales are a matter of `SegmentationOptions`.

    Args:
        config: The encoder's.
        taps: How many blocks it reads.
        classes: How many there are.
    """

    def __init__(self, config: ModelConfig, taps: int, classes: int) -> None:
        super().__init__()
        channels = taps * config.embed_dim
        self.bn = nn.BatchNorm2d(channels)
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def forward(self, taps: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """Taps (B, rows * columns, C) to logits (B, classes, rows, columns)."""
        grid = torch.cat(list(taps), dim=2).transpose(1, 2).unflatten(2, (rows, columns))
        return self.conv_seg(self.bn(grid))


class _SegmentationScratch(Scratch):
    """The depth decoder's fusion with DPT's segmentation output."""

    def __init__(self, channels: Sequence[int], features: int, classes: int) -> None:
        super().__init__(channels, features, nn.Identity())
        self.output_conv1 = nn.Sequential(  # type: ignore[assignment]
            nn.Conv2d(features, features, 3, padding=1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(features, classes, 1),
        )
        del self.output_conv2

    def _tail(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return interpolate(x, size, align_corners=True)


class DPTSegmentationHead(DPTHead):
    """The depth decoder with another output: conv3x3, BatchNorm, ReLU, dropout 0.1, conv1x1.

    After DPT's segmentation model (arXiv 2103.13413; `DPTSegmentationModel` of its code), on Depth
    Anything's fusion blocks, which have no BatchNorm; DPT's auxiliary loss is left out. Returns
    logits (B, classes, rows * 14, columns * 14).

    Args:
        config: The encoder's, with the widths of the decoder.
        classes: How many there are.
    """

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__(config)
        self.max_depth = None  # the output is no depth, whatever the encoder was trained for
        self.scratch = _SegmentationScratch(config.out_channels, config.features, classes)


class SegmentationModel(nn.Module):
    """An encoder of Depth Anything with a segmentation head.

    Built like this the weights are random; `from_depth` takes a trained encoder, `from_pretrained`
    loads a saved model. The encoder's parameters are named `pretrained.*`, as in `DepthAnything`.

    Args:
        config: See `SegmentationConfig`.
    """

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        self.pretrained = VisionTransformer(config.encoder)
        count = len(config.classes)
        self.head: nn.Module
        if config.head == "dpt":
            self.head = DPTSegmentationHead(config.encoder, count)
        else:
            self.head = LinearHead(config.encoder, len(config.taps), count)

    @classmethod
    def from_depth(
        cls, model: DepthNetwork, classes: Sequence[str], head: str = "linear"
    ) -> SegmentationModel:
        """A model on the encoder of another one, which it shares; the head is random.

        Args:
            model: Whose encoder it gets.
            classes: Names of the classes.
            head: One of `HEADS`.

        Raises:
            ValueError: For an unknown head, or no class or more than 255.
        """
        built = cls(SegmentationConfig(model.config, tuple(classes), head))
        built.pretrained = model.pretrained
        built.head.to(model.device, model.dtype)
        return built.train(model.training)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pretrained.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.pretrained.cls_token.dtype

    @annotate("segmentation")
    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images.

        Args:
            x: RGB normalised with `config.encoder.mean` and `std`, (B, 3, H, W); H and W multiples
                of 14; on the device and in the dtype of the weights.

        Returns:
            (B, classes, H, W), float32 (float64 for float64 weights): those of the head, resized
            bilinearly.

        Raises:
            ValueError: As `VisionTransformer.check_images`.
        """
        taps = self.pretrained.get_intermediate_layers(x, self.config.taps)
        patch = self.config.encoder.patch_size
        rows, columns = x.shape[2] // patch, x.shape[3] // patch
        logits = self.head(taps, rows, columns)
        if logits.dtype != torch.float64:
            logits = logits.float()
        if logits.shape[2:] != x.shape[2:]:
            logits = interpolate(logits, x.shape[2:], align_corners=False)
        return logits

    def segment(self, images: Any, options: SegmentationOptions | None = None) -> Any:
        """The class of every pixel; see `dafast.models.segmentation_inference.segment`."""
        return segment(self, images, options)

    def save_pretrained(
        self, folder: str | Path, *, dtype: str | torch.dtype | None = None
    ) -> None:
        """Writes config.json and model.safetensors into a folder, each whole or not at all.

        Args:
            folder: Made if it is not there.
            dtype: Of the weights in the file; the model's own by default.
        """
        from safetensors.torch import save_file

        from .._version import __version__

        target = self.dtype if dtype is None else resolve_dtype(dtype, self.device)
        state = {
            name: tensor.detach().to("cpu", target if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in self.state_dict().items()
        }
        config = {
            "model_type": MODEL_TYPE,
            "dafast_version": __version__,
            "model": dataclasses.asdict(self.config),
        }
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / f".model.safetensors.{os.getpid()}.tmp"
        text = folder / f".config.json.{os.getpid()}.tmp"
        try:
            weights.touch()  # save_file alone would let only the owner read it
            mode = weights.stat().st_mode
            save_file({k: v.contiguous() for k, v in state.items()}, weights)
            weights.chmod(mode)
            text.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            for path, name in ((weights, "model.safetensors"), (text, "config.json")):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(path, folder / name)
        finally:
            weights.unlink(missing_ok=True)
            text.unlink(missing_ok=True)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> SegmentationModel:
        """Loads what `save_pretrained` wrote, in evaluation mode.

        Args:
            folder: The folder.
            device: ``"auto"`` or as `torch.device` takes it.
            dtype: ``"auto"``, ``"float32"``, ``"bfloat16"``, ``"float16"`` or a `torch.dtype`.

        Raises:
            CheckpointError: If the folder holds no such model, or its weights do not fit.
        """
        target = resolve_device(device)
        folder = Path(folder)
        if not is_segmentation(folder):
            raise CheckpointError(
                f"{folder}: no segmentation model, whose config.json says {MODEL_TYPE!r}; "
                "`SegmentationModel.from_depth` puts a head on a depth model"
            )
        try:
            fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
            config = SegmentationConfig(**{**fields, "encoder": ModelConfig(**fields["encoder"])})
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
        model = cls(config)
        try:
            model.load_state_dict(read_file(folder / "model.safetensors")[0])
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: the weights do not fit: {error}") from error
        return model.to(target, resolve_dtype(dtype, target)).eval()


def is_segmentation(name_or_path: str | Path) -> bool:
    """Whether a folder holds a saved `SegmentationModel`."""
    try:
        text = (Path(name_or_path).expanduser() / "config.json").read_text(encoding="utf-8")
        return json.loads(text).get("model_type") == MODEL_TYPE
    except (OSError, ValueError, AttributeError):
        return False
