"""The tokens of images: patches times packed weights, position embeddings, and the first norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp
from .encoder_rows_int8 import RowNorm
from .linear_packed import PackedWeight, why_not_these


def _side(image: Tensor, weight: PackedWeight) -> int:
    return round((weight.values.shape[1] / image.shape[1]) ** 0.5)


def embed_patches_reference(
    image: Tensor, weight: PackedWeight, positions: Tensor, norm: RowNorm
) -> tuple[Tensor, Tensor]:
    """Specification of `embed_patches`."""
    side = _side(image, weight)
    patches = image.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    tokens = positions.float().repeat(len(image), 1, 1)
    layer = (weight.values.float(), weight.bias.float())
    tokens[:, 1:] += F.linear(patches.float(), *layer)
    weights = (norm.weight.float(), norm.bias.float())
    return tokens, F.layer_norm(tokens, tokens.shape[-1:], *weights, norm.eps).to(image.dtype)


def _empty_results(image: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    positions = args[2]
    assert isinstance(positions, Tensor)
    tokens = image.new_empty((len(image), *positions.shape), dtype=torch.float32)
    return tokens, image.new_empty(tokens.shape)


def _cpp_forward(image: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    results = _empty_results(image, *args)
    torch.ops.dafast_C.embed_patches(image, *args, *results)
    return results


_op = KernelOp(
    "embed_patches(Tensor image, Tensor packed, Tensor layer_bias, Tensor positions, Tensor weight,"
    " Tensor bias, float eps, int side) -> (Tensor, Tensor)",
    fake=_empty_results,
    cpp=_cpp_forward,
)


def _cpp_backend(
    image: Tensor, weight: PackedWeight, positions: Tensor, norm: RowNorm
) -> tuple[Tensor, Tensor]:
    return _op(
        image.contiguous(), weight.packed, weight.padded, positions.float().contiguous(),
        norm.weight, norm.bias, norm.eps, _side(image, weight),
    )  # fmt: skip


def _cpp_limits(image: Tensor, weight: PackedWeight, *_: object) -> str:
    return why_not_these(image, weight)


_embed_patches = Op(
    "embed_patches",
    embed_patches_reference,
    {"cpp": _extension.backend("cpp", "embed_patches", _cpp_backend, _cpp_limits, backward=False)},
)


def embed_patches(
    image: Tensor, weight: PackedWeight, positions: Tensor, norm: RowNorm
) -> tuple[Tensor, Tensor]:
    """Images to tokens and their norm; for inference.

    Args:
        image: (B, c, H, W), floating point, of whole patches.
        weight: From `pack_linear`, (C, c * side * side): a convolution whose stride is its kernel.
        positions: (1 + N, C) for N patches, in the order of the rows. The first is the first token;
            the others are added to the patches.
        norm: Of the tokens.

    Returns:
        The tokens (B, 1 + N, C), float32, and their norm in the dtype of ``image``.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    columns, depth = weight.values.shape
    if image.ndim != 4 or not image.is_floating_point():
        raise ValueError(
            "embed_patches needs floating-point images (B, c, H, W); got "
            f"{image.dtype} {tuple(image.shape)}"
        )
    side = _side(image, weight)
    patches = image.shape[2] // side * (image.shape[3] // side)
    if (
        side**2 * image.shape[1] != depth
        or image.shape[2] % side
        or image.shape[3] % side
        or positions.shape != (1 + patches, columns)
        or norm.weight.shape != (columns,)
        or norm.bias.shape != (columns,)
    ):
        raise ValueError(
            f"embed_patches needs images of whole patches of {depth} values, positions and a norm "
            f"of {columns} channels; got {tuple(image.shape)}, {tuple(positions.shape)} and "
            f"{tuple(norm.weight.shape)}"
        )
    return _embed_patches(image, weight, positions, norm)
