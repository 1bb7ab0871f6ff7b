"""Self-supervised pre-training of a small encoder, in the place of DINOv2's.

Like DINOv2 (arXiv 2304.07193) it learns from class tokens across views and from masked patches,
with its own moving average as the teacher; unlike it the comparison is contrastive, which cannot
collapse and needs no large batch to be balanced over:

- the class token of a view finds, among those of all pictures of the batch, the teacher's class
  token of another view of its picture (MoCo v3, arXiv 2104.02057);
- the token of a masked patch finds the teacher's token of that patch, which sees it, among those
  of other masked patches;
- the token of a masked patch predicts its pixels (MAE, arXiv 2111.06377; SimMIM, 2111.09886),
  which is there to be learned before the teacher knows anything.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dafast.config import PRESETS
from dafast.data.colours import change_colours
from dafast.data.resident import (
    ResidentSet,
    crop,
    epoch_batch,
    random_boxes,
    random_colours,
)
from dafast.data.transforms import AugmentConfig
from dafast.models.vision_transformer import VisionTransformer
from dafast.training.initialization import mimetic_init_
from dafast.training.steps import Normalise, autocast


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pre-training.

    Attributes:
        preset: The model whose encoder is trained.
        batch_size: Pictures in a step; each gives two large and `local_views` small views.
        large: Side of the large views, pixels.
        small: Side of the small views.
        local_views: How many small views.
        mask: Range of the share of a large view's patches that are masked.
        lr: Peak learning rate; up for a tenth of the time, then down on a cosine.
        weight_decay: AdamW's.
        momentum: The teacher's at the start; it rises to 1 on a cosine.
        temperature: Of the comparisons.
        patches: How many masked patches are compared with each other, at most.
        seed: Of weights, order and views.
    """

    preset: str = "nano"
    batch_size: int = 128
    large: int = 168
    small: int = 84
    local_views: int = 4
    mask: tuple[float, float] = (0.1, 0.5)
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.99
    temperature: float = 0.2
    patches: int = 2048
    seed: int = 0


_LARGE = AugmentConfig(
    crop="resized", area=(0.3, 1.0), aspect_jitter=1.2, flip=0.5, jitter=0.8, brightness=0.4,
    contrast=0.4, saturation=0.2, hue=0.1, gamma=0.0, grayscale=0.2, blur=0.5,
)  # fmt: skip
_SMALL = AugmentConfig(
    crop="resized", area=(0.08, 0.35), aspect_jitter=1.2, flip=0.5, jitter=0.8, brightness=0.4,
    contrast=0.4, saturation=0.2, hue=0.1, gamma=0.0, grayscale=0.2, blur=0.5,
)  # fmt: skip


class SelfDistillation(nn.Module):
    """An encoder with the mask token and the head that its pre-training needs.

    Args:
        encoder: What is trained.
    """

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        dim = encoder.cls_token.shape[-1]
        self.encoder = encoder
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.head = nn.Sequential(
            nn.Linear(dim, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 128)
        )
        self.pixels = nn.Linear(dim, 3 * encoder.patch_size**2)
        for module in self.head:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def tokens(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised images (B, 3, H, W) to tokens (B, 1 + N, C) after the final LayerNorm.

        Args:
            x: Images.
            mask: (B, N) bool, patches that the encoder does not see.
        """
        encoder = self.encoder
        patch = encoder.patch_size
        tokens = encoder.patch_embed(x)
        if mask is not None:
            tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat([encoder.cls_token.expand(len(x), -1, -1).to(tokens.dtype), tokens], 1)
        tokens = tokens + encoder.interpolate_pos_embed(x.shape[-2] // patch, x.shape[-1] // patch)
        for block in encoder.blocks:
            tokens = block(tokens)
        return encoder.norm(tokens)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (..., C) to what is compared, (..., 128) of length 1, float32."""
        return F.normalize(self.head(tokens).float(), dim=-1)


def patch_pixels(x: Tensor, patch: int) -> Tensor:
    """The pixels of each patch, of mean 0 and variance 1: (B, 3, H, W) to (B, N, 3 * patch^2)."""
    pixels = F.unfold(x.float(), patch, stride=patch).transpose(1, 2)
    mean = pixels.mean(-1, keepdim=True)
    return (pixels - mean) / (pixels.var(-1, keepdim=True) + 1e-2).sqrt()


def contrast(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How well row i of the student finds row i of the teacher among all of its rows (InfoNCE).

    Args:
        student: (M, D), rows of length 1.
        teacher: Likewise.
        temperature: Divides the cosines.

    Returns:
        The mean cross-entropy, log M where they have nothing to do with each other.
    """
    with torch.autocast(student.device.type, enabled=False):
        cosines = student @ teacher.T
    return F.cross_entropy(cosines / temperature, torch.arange(len(student), device=student.device))


@torch.no_grad()
def spread(features: Tensor) -> float:
    """Effective rank of features (M, C): exp of the entropy of the variance over directions.

    Near 1 the features have collapsed.
    """
    centred = features.float() - features.float().mean(0)
    variance = torch.linalg.svdvals(centred).square()
    share = variance / variance.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


class Pretrainer:
    """Student, teacher and optimizer of a pre-training.

    Args:
        data: The pictures.
        config: How.
        device: Where the pictures are.
        dtype: Of autocast.
    """

    def __init__(
        self, data: ResidentSet, config: PretrainConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(config.seed)
        preset = PRESETS[config.preset]
        encoder = VisionTransformer(preset)
        mimetic_init_(encoder)
        self.data, self.config, self.device, self.dtype = data, config, device, dtype
        self.student = SelfDistillation(encoder).to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.normalise = Normalise(preset.mean, preset.std).to(device)
        plain: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        for name, parameter in self.student.named_parameters():
            flat = parameter.ndim < 2 or name.endswith(("pos_embed", "cls_token"))
            (plain if flat else decayed).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay},
             {"params": plain, "weight_decay": 0.0}],
            lr=config.lr,
            fused=True,
        )  # fmt: skip

    def views(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Large views (2B, 3, L, L), small ones (vB, 3, S, S), normalised; and the mask (2B, N)."""
        config = self.config
        generator = torch.Generator(self.device).manual_seed(config.seed * 1_000_003 + step)
        index = epoch_batch(len(self.data), config.batch_size, step, config.seed).to(self.device)
        image = self.data.image[index]

        def cut(count: int, side: int, augment: AugmentConfig) -> Tensor:
            source, shape = image.shape[-2:], (side, side)
            boxes = random_boxes(count * len(image), augment, source, shape, generator)
            views = crop(image.repeat(count, 1, 1, 1), boxes, shape)
            return self.normalise(
                change_colours(views, augment, random_colours(len(views), generator))
            )

        large = cut(2, config.large, _LARGE)
        small = cut(config.local_views, config.small, _SMALL)
        grid = config.large // PRESETS[config.preset].patch_size
        low, high = config.mask
        share = low + (high - low) * torch.rand(
            len(large), 1, generator=generator, device=self.device
        )
        # Half of the large views are seen whole.
        share[torch.rand(len(large), 1, generator=generator, device=self.device) < 0.5] = 0
        # Blocks rather than single patches, which their neighbours would give away.
        coarse = (len(large), 1, grid // 2, grid // 2)
        noise = torch.rand(coarse, generator=generator, device=self.device)
        mask = F.interpolate(noise, size=(grid, grid)).flatten(1) < share
        return large, small, mask

    def losses(self, step: int) -> dict[str, Tensor]:
        """`loss` and its parts, `class`, `patch` and `pixels`, of a step."""
        config = self.config
        large, small, mask = self.views(step)
        with autocast(self.device, self.dtype):
            with torch.no_grad():
                tokens = self.teacher.tokens(large)
                first, second = self.teacher.embed(tokens[:, 0]).chunk(2)
            seen = self.student.tokens(large, mask)
            one, two = self.student.embed(seen[:, 0]).chunk(2)
            local = self.student.embed(self.student.tokens(small)[:, 0])
        pairs = [(one, second), (two, first)]
        for view in local.chunk(config.local_views):
            pairs += [(view, first), (view, second)]
        of_class = sum(contrast(*pair, config.temperature) for pair in pairs) / len(pairs)
        assert isinstance(of_class, Tensor)
        parts = {"class": of_class}
        if bool(mask.any()):
            pixels = patch_pixels(large, self.student.encoder.patch_size)[mask]
            masked, target = seen[:, 1:][mask], tokens[:, 1:][mask]
            thin = -(-len(masked) // config.patches)
            with autocast(self.device, self.dtype):
                predicted = self.student.pixels(masked)
                ours, theirs = (
                    self.student.embed(masked[::thin]),
                    self.teacher.embed(target[::thin]),
                )
            parts["patch"] = contrast(ours, theirs, config.temperature)
            parts["pixels"] = F.mse_loss(predicted.float(), pixels)
        return {"loss": sum(parts.values(), torch.zeros_like(of_class)), **parts}

    def step(self, step: int, done: float) -> dict[str, Tensor]:
        """One step; `done` in 0..1 is how much of the pre-training is over."""
        config = self.config
        warm = min(1.0, done / 0.1)
        factor = warm * (0.5 * (1 + math.cos(math.pi * done)) * 0.99 + 0.01)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        parts = self.losses(step)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        momentum = 1 - (1 - config.momentum) * 0.5 * (1 + math.cos(math.pi * done))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum
            )
        return parts

    @torch.no_grad()
    def effective_rank(self, pictures: int = 64) -> float:
        """`spread` of the teacher's patch tokens of a few pictures, as they are."""
        side = self.config.large
        image = self.data.image[:pictures].float()
        image = F.interpolate(image, size=(side, side), mode="bilinear", antialias=True)
        with autocast(self.device, self.dtype):
            tokens = self.teacher.tokens(self.normalise(image))
        return spread(tokens[:, 1:].flatten(0, 1)[:8192])


def pretrain(
    data: ResidentSet,
    config: PretrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    done: Callable[[int], float],
    log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    log_every: int = 50,
) -> VisionTransformer:
    """Pre-trains an encoder from a mimetic start.

    Args:
        data: Pictures; nothing else is used of it.
        config: How.
        device: Where the pictures are.
        dtype: Of autocast.
        done: How much of the pre-training is over before a step, 0 to 1; at 1 it ends. By steps,
            or by the clock.
        log: Takes step and losses now and then.
        log_every: Steps between that.

    Returns:
        The teacher's encoder, its state dict in DINOv2's names (`load_encoder` takes it).
    """
    trainer = Pretrainer(data, config, device, dtype)
    step = 0
    while (share := done(step)) < 1:
        parts = trainer.step(step, share)
        if step % log_every == 0:
            values = {name: float(value.detach()) for name, value in parts.items()}
            log(step, {**values, "effective_rank": trainer.effective_rank()})
        step += 1
    log(step, {"effective_rank": trainer.effective_rank()})
    encoder = trainer.teacher.encoder
    encoder.register_buffer("mask_token", trainer.teacher.mask_token.detach()[None].clone())
    return encoder
