"""The encoder as a backbone for other heads: four maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..ops.resize_bilinear import interpolate
from .network import DepthNetwork

REDUCTIONS = (4, 8, 16, 32)
"""Stride of each map: pixels of the image per pixel of the map."""


class FeatureInfo:
    """Describes the maps, with the interface of timm's `features_only` models.

    Args:
        channels: Channels of each map.
        modules: Name of the module that each map comes from.
    """

    def __init__(self, channels: Sequence[int], modules: Sequence[str]) -> None:
        self.info = [
            {"num_chs": c, "reduction": r, "module": m, "index": i}
            for i, (c, r, m) in enumerate(zip(channels, REDUCTIONS, modules, strict=True))
        ]
        self.out_indices = tuple(range(len(self.info)))

    def _get(self, key: str, index: int | Sequence[int] | None) -> Any:
        if index is None:
            return [entry[key] for entry in self.info]
        if isinstance(index, int):
            return self.info[index][key]
        return [self.info[i][key] for i in index]

    def channels(self, index: int | Sequence[int] | None = None) -> Any:
        """Channels of all maps, of some, or of one."""
        return self._get("num_chs", index)

    def reduction(self, index: int | Sequence[int] | None = None) -> Any:
        """Stride of all maps, of some, or of one."""
        return self._get("reduction", index)

    def module_name(self, index: int | Sequence[int] | None = None) -> Any:
        """Name of the block that each map comes from."""
        return self._get("module", index)

    def get_dicts(self) -> list[dict[str, Any]]:
        """One mapping for each map."""
        return [dict(entry) for entry in self.info]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)


class FeaturePyramid(nn.Module):
    """Feature maps of an image at strides 4, 8, 16 and 32, for Mask2Former and similar heads.

    The maps come from the four blocks that the depth decoder reads, the shallowest for the finest
    map, rescaled by 4, 2, 1 and 1/2. Depth Anything's published Mask2Former configurations do the
    same (`semseg/` of its code: `Feature2Pyramid`, with transposed convolutions and BatchNorm),
    with strides of 3.5, 7, 14 and 28. Here the image is first resized by 14/16, which gives the
    strides that these heads expect: for a crop of 1024 pixels the encoder sees 896, the published
    crop.

    `feature_info` has channels and strides, as in timm. The rescaling is learned and starts random.

    Args:
        model: The model whose encoder is shared.
        frozen: Whether the encoder's weights are not trained.
    """

    def __init__(self, model: DepthNetwork, *, frozen: bool = False) -> None:
        super().__init__()
        config = model.config
        dim = config.embed_dim
        self.config = config
        self.pretrained = model.pretrained
        if frozen:
            self.pretrained.requires_grad_(False)
        self.rescale = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(dim, dim, 2, stride=2),
                    nn.BatchNorm2d(dim),
                    nn.GELU(),
                    nn.ConvTranspose2d(dim, dim, 2, stride=2),
                ),
                nn.ConvTranspose2d(dim, dim, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        ).to(model.device, model.dtype)
        modules = [f"pretrained.blocks.{i}" for i in config.out_indices]
        self.feature_info = FeatureInfo([dim] * 4, modules)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps of normalised images.

        Args:
            x: RGB normalised with `config.mean` and `config.std`, (B, 3, H, W); H and W multiples
                of 32; on the device and in the dtype of the weights.

        Returns:
            (B, C, H/4, W/4), (B, C, H/8, W/8), (B, C, H/16, W/16) and (B, C, H/32, W/32), where C
            is the encoder's width.

        Raises:
            ValueError: If the images do not fit; see also `VisionTransformer.check_images`.
        """
        if x.ndim != 4 or x.shape[2] % 32 or x.shape[3] % 32 or 0 in x.shape:
            raise ValueError(
                f"the pyramid needs (B, 3, H, W) with H and W multiples of 32; got "
                f"{tuple(x.shape)}: pad the images (a size divisor of 32)"
            )
        rows, columns = x.shape[2] // 16, x.shape[3] // 16
        patch = self.config.patch_size
        small = interpolate(x, (rows * patch, columns * patch), align_corners=False, antialias=True)
        taps = self.pretrained.get_intermediate_layers(small, self.config.out_indices)
        return [
            rescale(tap.transpose(1, 2).reshape(tap.shape[0], -1, rows, columns))
            for tap, rescale in zip(taps, self.rescale, strict=True)
        ]
