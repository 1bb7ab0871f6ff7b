"""The network of semantic segmentation: the encoder with a linear or a DPT head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.resize_bilinear import interpolate
from ..profiling import annotate
from .dpt import DPTHead, Scratch
from .vision_transformer import VisionTransformer

HEADS = ("linear", "linear4", "dpt")
"""`linear` reads the last block, `linear4` and `dpt` the four that the depth decoder reads."""


@dataclass(frozen=True)
class SegmentationConfig:
    """Everything that determines a segmentation network.

    Attributes:
        encoder: Configuration of the Depth Anything model that the encoder belongs to.
        classes: Names of the classes; class i is channel i of the logits.
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
        """Encoder and head, for tables."""
        return f"{self.encoder.name}-{self.head}"

    @property
    def taps(self) -> tuple[int, ...]:
        """The blocks that the head reads, counted from 0."""
        return (self.encoder.num_layers - 1,) if self.head == "linear" else self.encoder.out_indices


class LinearHead(nn.Module):
    """BatchNorm and a 1x1 convolution over the concatenated taps.

    DINOv2's linear evaluation (arXiv 2304.07193, sec. 7.4;
    `dinov2/eval/segmentation/models/decode_heads/linear_head.py`): one tap is its "lin."; four are
    the head of its "+ms", whose scales are set in `SegmentationOptions`.

    Args:
        config: Configuration of the encoder.
        taps: Number of blocks that the head reads.
        classes: Number of classes.
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
        tokens = torch.cat(list(taps), dim=2).transpose(1, 2)
        grid = tokens.reshape(tokens.shape[0], -1, rows, columns)
        return self.conv_seg(self.bn(grid))


class _SegmentationScratch(Scratch):
    """The depth decoder's fusion with DPT's segmentation output."""

    def __init__(self, channels: Sequence[int], features: int, classes: int) -> None:
        super().__init__(channels, features, "relu")
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
    Anything's fusion blocks, which have no BatchNorm, and without DPT's auxiliary loss. Returns
    logits (B, classes, rows * 14, columns * 14).

    Args:
        config: Configuration of the encoder, with the widths of the decoder.
        classes: Number of classes.
    """

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__(config)
        self.max_depth = None  # logits are not scaled to a range of depth
        self.scratch = _SegmentationScratch(config.out_channels, config.features, classes)


class SegmentationNetwork(nn.Module):
    """An encoder of Depth Anything with a segmentation head; the weights are random.

    The encoder's parameters are named `pretrained.*`, as in `DepthNetwork`.

    Args:
        config: See `SegmentationConfig`.

    Attributes:
        loaded_from: The name or path that `from_pretrained` loaded the weights from; "" for none.
    """

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.loaded_from = ""
        self.config = config
        self.pretrained = VisionTransformer(config.encoder)
        count = len(config.classes)
        self.head: nn.Module
        if config.head == "dpt":
            self.head = DPTSegmentationHead(config.encoder, count)
        else:
            self.head = LinearHead(config.encoder, len(config.taps), count)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
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
            (B, classes, H, W), float32 (float64 for float64 weights): the logits of the head,
            resized bilinearly.

        Raises:
            ValueError: If the images do not fit; see `VisionTransformer.check_images`.
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
