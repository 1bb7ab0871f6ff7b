"""DINOv2's vision transformer: patch 14, LayerScale, no registers."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import ModelConfig
from ..devices import without_autocast
from ..layers import Block, LayerNorm, PatchEmbed
from ..ops.resize_bicubic import cubic_taps

# DINOv2 adds it to the grid before dividing by the trained one, against rounding in the
# interpolation; the published weights were used with it, so it is part of the function.
_OFFICIAL_OFFSET = 0.1

PositionsBySize = dict[tuple[int, int], Tensor]
"""Position embeddings (1, 1 + rows * columns, C) by (rows, columns)."""

_kept: ContextVar[PositionsBySize | None] = ContextVar("kept positions", default=None)


@contextlib.contextmanager
def keep_positions(kept: PositionsBySize) -> Iterator[None]:
    """Takes position embeddings from `kept` within the block, and adds those of new sizes.

    Args:
        kept: Of one encoder, whose weights must not change while it is used.
    """
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


class VisionTransformer(nn.Module):
    """The encoder, with the parameter names of DINOv2 (`dinov2/models/vision_transformer.py`).

    Args:
        config: Sizes and the rule for position embeddings.

    Attributes:
        checkpoint_activations: Whether the backward pass computes the blocks a second time instead
            of finding their activations kept.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.checkpoint_activations = False
        self.patch_size = config.patch_size
        self.grid_size = config.grid_size
        self.position_embedding = config.position_embedding
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid_size**2, dim))
        # Only DINOv2's own pre-training uses it; a buffer, so that no optimizer or DDP waits
        # for its gradient, but the checkpoint's key is kept.
        self.register_buffer("mask_token", torch.zeros(1, dim))
        self.blocks = nn.ModuleList(Block(dim, config.num_heads) for _ in range(config.num_layers))
        self.norm = LayerNorm(dim, config.norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights as DINOv2 draws them."""
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def interpolate_pos_embed(self, rows: int, columns: int) -> Tensor:
        """Position embeddings (1, 1 + rows * columns, C) for a grid of patches.

        Bicubic in float32 without antialiasing, unless the grid is the trained one. A program
        that is traced or compiled gets the same values, within rounding, from matrix products,
        which hold for every size.
        """
        grid = self.grid_size
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self._traceable_pos_embed(rows, columns)
        if (rows, columns) == (grid, grid):
            return self.pos_embed
        kept = _kept.get()
        if kept is None:
            return self._resized_pos_embed(rows, columns)
        if (rows, columns) not in kept:
            kept[rows, columns] = self._resized_pos_embed(rows, columns)
        return kept[rows, columns]

    def _resized_pos_embed(self, rows: int, columns: int) -> Tensor:
        grid = self.grid_size
        cls_pos, patch_pos = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        patch_pos = patch_pos.float().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
        if self.position_embedding == "official":
            offset = _OFFICIAL_OFFSET
            scale = ((rows + offset) / grid, (columns + offset) / grid)
            patch_pos = F.interpolate(patch_pos, scale_factor=scale, mode="bicubic")
        else:
            patch_pos = F.interpolate(patch_pos, size=(rows, columns), mode="bicubic")
        patch_pos = patch_pos.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([cls_pos, patch_pos.to(cls_pos.dtype)], dim=1)

    def _traceable_pos_embed(self, rows: int, columns: int) -> Tensor:
        grid, device = self.grid_size, self.pos_embed.device
        places = [torch.arange(n, dtype=torch.float32, device=device) for n in (rows, columns)]
        counts = [place[-1] + 1 for place in places]  # a Python float would hold for one size only
        offset = torch.zeros((), device=device)
        if self.position_embedding == "official":
            trained = torch.logical_and(counts[0] == grid, counts[1] == grid)
            offset = torch.where(trained, 0.0, _OFFICIAL_OFFSET)
        matrices = []
        for place, count in zip(places, counts, strict=True):
            taps, weights = cubic_taps((place + 0.5) * (grid / (count + offset)) - 0.5, grid)
            chosen = taps[:, :, None] == torch.arange(grid, device=device)
            matrices.append((chosen * weights[:, :, None]).sum(1))
        cls_pos, patch_pos = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        with without_autocast(device):
            square = patch_pos.float().unflatten(1, (grid, grid))
            down = torch.einsum("yi,bijc->byjc", matrices[0], square)
            both = torch.einsum("xj,byjc->byxc", matrices[1], down).flatten(1, 2)
        return torch.cat([cls_pos, both.to(cls_pos.dtype)], dim=1)

    def check_images(self, x: Tensor) -> Tensor:
        """Returns x, if it is a batch of images that the encoder takes.

        Raises:
            ValueError: If it is not (B, 3, H, W) with H and W multiples of the patch size, or not
                on the device and, outside of autocast, in the dtype of the weights.
        """
        if (
            x.ndim != 4
            or x.shape[1] != 3
            or x.shape[2] % self.patch_size
            or x.shape[3] % (self.patch_size)
        ):
            raise ValueError(
                f"the model needs (B, 3, H, W) with H and W multiples of {self.patch_size}; got "
                f"{tuple(x.shape)}. `model.infer` and `dafast.ops.preprocess` take care of that."
            )
        weights = self.cls_token
        if x.device != weights.device or (
            x.dtype != weights.dtype
            and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type))
        ):
            raise ValueError(
                f"the model is {weights.dtype} on {weights.device}, the images are {x.dtype} on "
                f"{x.device}: pass `x.to(model.device, model.dtype)`"
            )
        return x

    def prepare_tokens(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to tokens (B, 1 + N, C): cls token, patches, position embeddings.

        Raises:
            ValueError: As `check_images`.
        """
        self.check_images(x)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        tokens = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        return tokens + self.interpolate_pos_embed(rows, columns)

    def pack_tokens(self, images: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Images (3, H_i, W_i) to one sequence (1, T, C), and the number of tokens of each.

        Every image keeps its own cls token and the position embeddings of its own grid.

        Raises:
            ValueError: If an image has another shape.
        """
        if any(image.ndim != 3 for image in images):
            shapes = [tuple(image.shape) for image in images]
            raise ValueError(f"a list of images has to hold (3, H, W) each; got {shapes}")
        parts = [self.prepare_tokens(image[None]) for image in images]
        return torch.cat(parts, dim=1), [part.shape[1] for part in parts]

    def get_intermediate_layers(
        self,
        x: Tensor | Sequence[Tensor],
        indices: Sequence[int],
        blocks: Sequence[Any] | None = None,
    ) -> list[Any]:
        """Output of the chosen blocks after the final LayerNorm, patch tokens only.

        Args:
            x: Normalised images (B, 3, H, W); H and W multiples of the patch size. Or a list of
                (3, H_i, W_i): they go through the blocks as one sequence without padding, and
                each attends only to itself.
            indices: Blocks, counted from 0.
            blocks: What computes the blocks up to the last index instead of the modules.

        Returns:
            One (B, N, C) per index in increasing order of the blocks, N = H/14 * W/14; for a list
            of images a list of (N_i, C) per index.
        """
        missing = [i for i in indices if not 0 <= i < len(self.blocks)]
        if missing:
            raise ValueError(f"no block {missing}; the encoder has 0..{len(self.blocks) - 1}")
        lengths: list[int] = []
        packing: tuple[Any, ...] = ()  # further arguments of attention
        if isinstance(x, Tensor):
            tokens = self.prepare_tokens(x)
        else:
            tokens, lengths = self.pack_tokens(x)
            ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
            packing = (ends.to(tokens.device, non_blocking=True), max(lengths))
        taps, normed = [], None
        modules: Any = self.blocks if blocks is None else blocks
        for i, module in enumerate(modules[: max(indices) + 1]):
            block: Callable[..., Any] = module
            if self.checkpoint_activations and torch.is_grad_enabled():
                # Nothing in a block is random, so there is no random state to keep.
                block = functools.partial(
                    checkpoint, module, use_reentrant=False, preserve_rng_state=False
                )
            # A tap's norm is computed instead of the next block's, which then computes its own.
            if i in indices:
                tokens, tap = block(tokens, *packing, normed=normed, next_norm=self.norm)
                taps.append(tap)
                normed = None
            else:
                norm = modules[i + 1].norm1
                tokens, normed = block(tokens, *packing, normed=normed, next_norm=norm)
        if lengths:
            return [[part[1:] for part in tap[0].split(lengths)] for tap in taps]
        return [tap[:, 1:] for tap in taps]

    def forward(self, x: Tensor) -> Tensor:
        """Final patch features (B, N, C) of normalised images (B, 3, H, W)."""
        return self.get_intermediate_layers(x, [len(self.blocks) - 1])[0]
