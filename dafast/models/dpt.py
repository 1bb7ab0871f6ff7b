"""The DPT decoder as Depth Anything uses it (`depth_anything/dpt.py`, `blocks.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..devices import without_autocast
from ..layers.convolution import convolve, enlarge, takes_relu
from ..layers.linear import is_plain
from ..layers.temporal import FrameCache, TemporalModule
from ..ops import decoder_tail, relu_project
from ..ops.bias_relu_add import serves_convolutions
from ..ops.resize_bilinear import interpolate
from ..profiling import annotate

FRAME_GROUP = 4
"""Frames of a clip that share the full resolution, without gradients: it takes the most memory."""

_TAIL_CHANNELS = 32
_Mix = Callable[[int, Tensor], Tensor]  # a temporal module, by number, on a map


class Exp(nn.Module):
    """The exponential function, the last activation of Depth Anything 3."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x.exp()


_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "exp": Exp}
_NAMES = {module: name for name, module in _ACTIVATIONS.items()}


def activation_name(module: nn.Module) -> str:
    """Name of an activation in `ModelConfig.output`."""
    return _NAMES[type(module)]


def _upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size, align_corners=True)


class ResidualConvUnit(nn.Module):
    """x + conv2(relu(conv1(relu(x)))), all with the same number of channels."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, F, h, w) to (B, F, h, w); ``other`` is added, too."""
        within = takes_relu(self.conv2, x)
        hidden = convolve(self.conv1, x, relu_input=True, relu=not within)
        return convolve(self.conv2, hidden, x, other, relu_input=within)


class FeatureFusionBlock(nn.Module):
    """Adds a finer map to a coarser one, refines the sum and enlarges it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.resConfUnit1 = ResidualConvUnit(features)
        self.resConfUnit2 = ResidualConvUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor, size: tuple[int, int], skip: Tensor | None = None) -> Tensor:
        """Fuses x and skip, both (B, F, h, w), into (B, F, *size).

        Without ``skip`` (the deepest block) ``resConfUnit1`` is not used.
        """
        if skip is not None:
            plain = is_plain(self.resConfUnit1, ResidualConvUnit)
            x = self.resConfUnit1(skip, x) if plain else x + self.resConfUnit1(skip)
        # The reference enlarges first. A 1x1 convolution and an interpolation whose weights sum
        # to one commute, and this way the convolution runs on a quarter of the pixels.
        return _upsample(convolve(self.out_conv, self.resConfUnit2(x)), size)


class _Float32Conv2d(nn.Conv2d):
    """A convolution in float32 for any dtype of weights, input and autocast.

    Last in the network: its output in bfloat16 would have 256 steps where people look for
    thousands.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            return super().forward(x)
        with without_autocast(x.device):
            bias = None if self.bias is None else self.bias.float()
            return self._conv_forward(x.float(), self.weight.float(), bias)


class Scratch(nn.Module):
    """The decoder after the reassembly; a module of its own for the checkpoint's names.

    Args:
        channels: Of the four reassembled maps.
        features: Width of the decoder.
        activation: Of the output, as `ModelConfig.output`.
        sky: Whether there is a second output, the sky of Depth Anything 3.
    """

    def __init__(
        self, channels: Sequence[int], features: int, activation: str, sky: bool = False
    ) -> None:
        super().__init__()
        self.layer1_rn = nn.Conv2d(channels[0], features, 3, padding=1, bias=False)
        self.layer2_rn = nn.Conv2d(channels[1], features, 3, padding=1, bias=False)
        self.layer3_rn = nn.Conv2d(channels[2], features, 3, padding=1, bias=False)
        self.layer4_rn = nn.Conv2d(channels[3], features, 3, padding=1, bias=False)
        self.refinenet1 = FeatureFusionBlock(features)
        self.refinenet2 = FeatureFusionBlock(features)
        self.refinenet3 = FeatureFusionBlock(features)
        self.refinenet4 = FeatureFusionBlock(features)
        # The deepest block has no skip: the unit has weights in every checkpoint but never a
        # gradient, which DDP would wait for.
        self.refinenet4.resConfUnit1.requires_grad_(False)
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = _output(features, activation)
        if sky:
            self.sky_output_conv2 = _output(features, "relu")

    def forward(
        self, maps: Sequence[Tensor], size: tuple[int, int], mix: _Mix | None = None
    ) -> Tensor:
        """Four maps (B, channels[i], h_i, w_i), the finest first, to (B, 1, *size).

        With a sky there are two channels: the depth, and the sky, about 1 where there is sky.
        ``mix`` applies temporal modules; see `DPTHead.mixing`.
        """
        return self.tail(self.fuse(maps, mix)[-1], size)

    def activations(
        self, maps: Sequence[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """As `forward`, with the intermediate maps that other heads read.

        Returns:
            The map (B, 1, *size); the features (B, 32, *size) that it was made of; and those of
            `fuse`.
        """
        fused = self.fuse(maps)
        features = self.output_conv2[:2](_upsample(self.output_conv1(fused[-1]), size))
        return self.output_conv2[2:](features), features, fused

    def fuse(self, maps: Sequence[Tensor], mix: _Mix | None = None) -> list[Tensor]:
        """The deepest map and the four fused ones, the coarsest first, (B, features, h, w) each."""
        height, width = maps[1].shape[2:]
        coarse = self.fuse_coarse(maps[2], maps[3], (height, width), mix)
        return [*coarse, *self.fuse_fine(maps[0], maps[1], coarse[-1])]

    def fuse_coarse(
        self, map3: Tensor, map4: Tensor, size: tuple[int, int], mix: _Mix | None = None
    ) -> list[Tensor]:
        """The first three maps of `fuse`, the last one of this size."""
        mix = mix or (lambda number, x: x)
        layer3 = convolve(self.layer3_rn, mix(0, map3))
        layer4 = convolve(self.layer4_rn, mix(1, map4))
        path4 = mix(2, self.refinenet4(layer4, layer3.shape[2:]))
        path3 = mix(3, self.refinenet3(path4, size, layer3))
        return [layer4, path4, path3]

    def fuse_fine(self, map1: Tensor, map2: Tensor, path3: Tensor) -> list[Tensor]:
        """The last two maps of `fuse`."""
        layer1, layer2 = convolve(self.layer1_rn, map1), convolve(self.layer2_rn, map2)
        path2 = self.refinenet2(path3, layer1.shape[2:], layer2)
        path1 = self.refinenet1(path2, (2 * layer1.shape[2], 2 * layer1.shape[3]), layer1)
        return [path2, path1]

    def tail(self, path1: Tensor, size: tuple[int, int]) -> Tensor:
        """The last map of `fuse` to the outputs (B, 1 or 2, *size)."""
        return self._tail(convolve(self.output_conv1, path1), size)

    def _tail(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The outputs of the upsampled map."""
        out = _run_output(self.output_conv2, x, size)
        if not hasattr(self, "sky_output_conv2"):
            return out
        return torch.cat([out, _run_output(self.sky_output_conv2, x, size)], dim=1)


def _output(features: int, activation: str) -> nn.Sequential:
    """The end of the decoder: conv3x3, ReLU, conv1x1 to one channel, activation."""
    last = _Float32Conv2d(_TAIL_CHANNELS, 1, 1)
    # A random head must start above zero: where the last ReLU is flat nothing is learned.
    nn.init.constant_(last.bias, 0.5)  # type: ignore[arg-type]
    first = nn.Conv2d(features // 2, _TAIL_CHANNELS, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), last, _ACTIVATIONS[activation]())


def _run_output(output: nn.Sequential, x: Tensor, size: tuple[int, int]) -> Tensor:
    """One output of the upsampled map; in inference in one kernel, where one serves.

    The modules run where a gradient is wanted, a module was replaced (LoRA, a quantised layer) or
    has hooks.
    """
    conv, relu, last, activation = output
    plain = (
        is_plain(output, nn.Sequential)
        and is_plain(conv, nn.Conv2d) and is_plain(relu, nn.ReLU)
        and is_plain(last, _Float32Conv2d) and is_plain(activation, type(activation))
    )  # fmt: skip
    if not torch.is_grad_enabled() and plain and type(activation) in _NAMES:
        name = activation_name(activation)
        parameters = (conv.weight, conv.bias, last.weight, last.bias)
        return decoder_tail(x, size, *parameters, activation=name)  # type: ignore[arg-type]
    x = _upsample(x, size)
    if not plain:
        return output(x)
    if x.is_cpu and not serves_convolutions(x, conv.bias):  # type: ignore[arg-type]
        out = relu_project(convolve(conv, x), last.weight, last.bias)  # type: ignore[arg-type]
        return activation(out)
    return activation(last(convolve(conv, x, relu=True)))


class DPTHead(nn.Module):
    """Four encoder taps to one map at the resolution of the image.

    Args:
        config: Widths, patch size, and whether the map is V2's metric depth; with ``bin_centers``
            it is the relative one that the bins are conditioned on.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, channels = config.embed_dim, config.out_channels
        self.patch_size = config.patch_size
        self.max_depth = None if config.bin_centers else config.max_depth
        self.projects = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(channels, config.features, config.activation, config.sky_head)
        self.temporal_frames = config.temporal_frames
        if config.temporal_frames:
            widths = (channels[2], channels[3], config.features, config.features)
            self.motion_modules = nn.ModuleList(map(TemporalModule, widths))

    @annotate("head")
    def forward(
        self,
        taps: Sequence[Tensor],
        rows: int,
        columns: int,
        frames: int = 1,
        cache: FrameCache | None = None,
    ) -> Tensor:
        """Predicts disparity, or depth in metres for a metric model.

        Args:
            taps: Four (B, rows * columns, C), the shallowest first.
            rows: Height of the image in patches.
            columns: Width of the image in patches.
            frames: As for `mixing`.
            cache: As for `mixing`.

        Returns:
            (B, 1, rows * 14, columns * 14), float32 for any dtype of the weights (float64 for
            float64 weights); with a sky (B, 2, ...), as `Scratch.forward`.
        """
        mix = self.mixing(frames, cache)
        if frames > 1 and not torch.is_grad_enabled() and not torch.jit.is_tracing():
            out = self._in_groups(taps, rows, columns, mix)
        else:
            maps = self.reassemble(taps, rows, columns)
            out = self.scratch(maps, self.size(rows, columns), mix)
        return out if self.max_depth is None else out * self.max_depth

    def _in_groups(
        self, taps: Sequence[Tensor], rows: int, columns: int, mix: _Mix | None
    ) -> Tensor:
        """As `forward` of `Scratch`; the frames share only the coarse maps at one time."""
        scratch, size = self.scratch, self.size(rows, columns)
        map3, map4 = (self._reassemble_one(i, taps[i], rows, columns) for i in (2, 3))
        path3 = scratch.fuse_coarse(map3, map4, (2 * rows, 2 * columns), mix)[-1]
        outs = []
        for part1, part2, path in zip(
            *(x.split(FRAME_GROUP) for x in (*taps[:2], path3)), strict=True
        ):
            map1 = self._reassemble_one(0, part1, rows, columns)
            map2 = self._reassemble_one(1, part2, rows, columns)
            outs.append(scratch.tail(scratch.fuse_fine(map1, map2, path)[-1], size))
        return torch.cat(outs)

    def mixing(self, frames: int = 1, cache: FrameCache | None = None) -> _Mix | None:
        """The modules that exchange information between frames, for `Scratch.fuse`.

        Args:
            frames: Length of the clips that the batch consists of.
            cache: Earlier frames, for a batch of one frame.

        Returns:
            The temporal modules: of the third and the fourth reassembled map and of the two
            coarsest fused ones. None for a network without them.

        Raises:
            ValueError: If a clip is longer than the position codes of the modules.
        """
        if not self.temporal_frames:
            return None
        if frames > self.temporal_frames:
            raise ValueError(
                f"a clip of {frames} frames; the model takes {self.temporal_frames}: use "
                "`infer_video`, which cuts a video into windows"
            )
        return lambda number, x: self.motion_modules[number](x, frames, cache)

    def activations(
        self, taps: Sequence[Tensor], rows: int, columns: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """`Scratch.activations` of the taps."""
        maps = self.reassemble(taps, rows, columns)
        return self.scratch.activations(maps, self.size(rows, columns))

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        """Height and width in pixels of a grid of patches."""
        return rows * self.patch_size, columns * self.patch_size

    def reassemble(self, taps: Sequence[Tensor], rows: int, columns: int) -> list[Tensor]:
        """The taps as maps of four resolutions, the finest first."""
        return [self._reassemble_one(i, tap, rows, columns) for i, tap in enumerate(taps)]

    def _reassemble_one(self, number: int, tap: Tensor, rows: int, columns: int) -> Tensor:
        # Not `unflatten`, whose sizes torch.onnx.export(dynamo=False) fixes.
        grid = tap.transpose(1, 2).reshape(tap.shape[0], -1, rows, columns)
        return enlarge(self.resize_layers[number], convolve(self.projects[number], grid))
