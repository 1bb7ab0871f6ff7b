"""The pieces of a training step: model, optimizer, precision, losses, moving average."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dafast.config import PRESETS
from dafast.data.colours import change_colours
from dafast.losses import AffineInvariantLoss, GradientMatchingLoss
from dafast.models.checkpoint import CheckpointError, load_encoder
from dafast.models.conversion import STRUCTURE
from dafast.models.depth_anything import DepthAnything
from dafast.ops import use_backend
from dafast.profiling import annotate
from dafast.training.config import (
    ConfigError,
    ModelSection,
    OptimSection,
    TrainConfig,
)
from dafast.training.data import Batch, TrainingData
from dafast.training.initialization import mimetic_init_
from dafast.training.parallel import spread
from dafast.training.schedules import lr_factor

logger = logging.getLogger(__name__)


def build_model(
    section: ModelSection,
    device: torch.device,
    channels_last: bool,
    start: DepthAnything | None = None,
) -> DepthAnything:
    """Builds the model from what `section` says it starts from, ready to be trained.

    Args:
        section: What it starts from, and of which size it has to be.
        device: Where it is trained.
        channels_last: How its kernels and maps are laid out.
        start: What `section.init` names, where that is loaded already.

    Raises:
        ConfigError: If it cannot start from that.
    """
    if section.init and section.encoder_init != "random":
        raise ConfigError(
            "model.init brings an encoder: leave it empty, or model.encoder_init at 'random'"
        )
    preset = PRESETS[section.preset]
    if section.init:
        try:
            model = start or DepthAnything.from_pretrained(
                section.init, device="cpu", dtype="float32"
            )
        except CheckpointError as error:
            raise ConfigError(f"model.init: {error}") from error
        for name in STRUCTURE:
            if getattr(model.config, name) != getattr(preset, name):
                raise ConfigError(
                    f"model.init: {section.init} has {name} = {getattr(model.config, name)}, but "
                    f"the preset {section.preset} has {getattr(preset, name)}"
                )
    else:
        model = DepthAnything(preset)
        if section.encoder_init == "mimetic":
            mimetic_init_(model.pretrained)
        elif section.encoder_init != "random":
            start_encoder(model, section.encoder_init, "model.encoder_init")
    model = prepare_model(model, device, channels_last)
    if section.freeze_encoder:
        model.pretrained.requires_grad_(False)
    return model


def start_encoder(model: DepthAnything, source: str, key: str) -> None:
    """`load_encoder`, with the setting that it came from in the message."""
    try:
        load_encoder(model, source)
    except CheckpointError as error:
        raise ConfigError(f"{key}: {error}") from error


def prepare_model(model: DepthAnything, device: torch.device, channels_last: bool) -> DepthAnything:
    """Puts a model in the state that training expects."""
    model.to(device=device, dtype=torch.float32).train().requires_grad_(True)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # The deepest fusion block has no skip input, so this unit has weights (the official checkpoints
    # hold them) but never a gradient; DDP would wait for one.
    unused = "depth_head.scratch.refinenet4.resConfUnit1"
    model.get_submodule(unused).requires_grad_(False)
    return model


class Optimizers:
    """Several optimizers that step as one; the interface of one that training uses."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all of them."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """One step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of all of them."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, with whole tensors where parameters are sharded.

        The moments alone: rates and decay are those that the optimizers were built with.

        Raises:
            ValueError: If the parameters were divided into other groups.
        """

        def members(parts: list[dict[str, Any]]) -> list[Any]:
            return [[group["params"] for group in part["param_groups"]] for part in parts]

        own = self.state_dict()["optimizers"]
        if members(own) != members(state["optimizers"]):
            raise ValueError("the parameters were divided into other groups")
        for optimizer, ours, theirs in zip(self.optimizers, own, state["optimizers"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                i: {name: spread(value, parameters[i]) for name, value in values.items()}
                for i, values in theirs["state"].items()
            }
            optimizer.load_state_dict({**ours, "state": moments})


def build_optimizer(model: nn.Module, section: OptimSection) -> Optimizers:
    """AdamW with one learning rate for the encoder and one for the decoder, as in the paper.

    Each group remembers its peak in `peak_lr`. One-dimensional parameters, the position embedding
    and the class token are not decayed: pulling a norm's gain or an embedding to zero regularises
    nothing. With `section.muon` the matrices of the encoder's blocks go to Muon instead, which
    learns from far fewer images where the encoder starts from noise. With `section.layer_decay` the
    encoder's rate falls from block to block towards the image.
    """
    groups: dict[tuple[str, str, int], list[nn.Parameter]] = {}
    blocks = [int(name.split(".")[2]) for name, _ in model.named_parameters() if ".blocks." in name]
    depth = 1 + max(blocks, default=-1)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "encoder" if name.startswith("pretrained.") else "decoder"
        below = 0  # how many blocks from the last
        if part == "encoder" and section.layer_decay < 1 and not name.startswith("pretrained.norm"):
            below = depth - 1 - int(name.split(".")[2]) if ".blocks." in name else depth
        decayed = parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token", "mask_token"))
        kind = "decayed" if decayed else "plain"
        if section.muon and ".blocks." in name and parameter.ndim == 2:
            kind = "muon"
        groups.setdefault((part, kind, below), []).append(parameter)
    peak = {"encoder": section.encoder_lr, "decoder": section.decoder_lr}

    def settings(part: str, kind: str, below: int) -> dict[str, Any]:
        rate = peak[part] * section.layer_decay**below
        return {
            "params": groups[part, kind, below],
            "lr": rate,
            "peak_lr": rate,
            "weight_decay": 0.0 if kind == "plain" else section.weight_decay,
        }

    adamw = [settings(*key) for key in groups if key[1] != "muon"]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(adamw, betas=section.betas, fused=True)
    ]
    if muon := [settings(*key) for key in groups if key[1] == "muon"]:
        optimizers.append(torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw"))
    return Optimizers(*optimizers)


def set_learning_rate(optimizer: Optimizers, section: OptimSection, step: int, total: int) -> float:
    """Sets every group's learning rate for a step; returns the factor on the peaks."""
    factor = lr_factor(step, total, section.warmup_steps, section.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return factor


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """The autocast context of a dtype; none for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


class Normalise(nn.Module):
    """RGB of 0 to 255 to what a network expects.

    Args:
        mean: Per channel, of RGB in 0..1.
        std: Likewise.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # (x / 255 - mean) / std as one multiplication and one addition.
        scale = torch.tensor([1.0 / (255.0 * s) for s in std]).view(3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), 0 to 255 in any dtype, to float32."""
        return torch.addcmul(self.shift, image.float(), self.scale)


class LabeledStep(nn.Module):
    """Loss of a batch of labeled images: change colours, normalise, predict, compare.

    Args:
        network: What predicts (the model, or what wraps it: DDP, torch.compile).
        model: The model itself.
        config: The run.
        dtype: Of autocast.
    """

    def __init__(
        self, network: nn.Module, model: DepthAnything, config: TrainConfig, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.network, self.dtype, self.device = network, dtype, model.device
        self.augment = config.augment
        self.normalise = Normalise(model.config.mean, model.config.std)
        self.depth_loss = AffineInvariantLoss()
        self.gradient_loss = GradientMatchingLoss()
        self.gradient_weight = config.gradient_matching
        self.reference = config.losses == "reference"

    def to_device(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors where the model is."""
        return [tensor.to(self.device, non_blocking=True) for tensor in tensors]

    def seen(self, batch: Batch) -> Tensor:
        """What the network is shown of the labeled images, (B, 3, H, W) float32."""
        (image,) = self.to_device(batch.image)
        return self.normalise(change_colours(image, self.augment, batch.colours))

    def begin(self, batches: Sequence[Batch]) -> list[float]:
        """Looks at the pieces of a step before the first is learned from.

        Returns:
            The share that the loss of each has in the loss of the step: equal ones, for the loss is
            a mean over images and the pieces are of one size.
        """
        return [1 / len(batches)] * len(batches)

    def losses(self) -> contextlib.AbstractContextManager:
        """Within it the losses are computed as the configuration asks."""
        return use_backend("reference") if self.reference else contextlib.nullcontext()

    def compare(
        self,
        name: str,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor,
        regions: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The parts of the loss of disparity maps (B, H, W), weighted: their sum is the loss."""
        parts = {name: self.depth_loss(prediction, target, mask, regions)}
        if self.gradient_weight:
            matching = self.gradient_loss(prediction, target, mask, regions)
            parts[f"{name}_gradient"] = self.gradient_weight * matching
        return parts

    @annotate("labeled_step")
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the parts of the loss by name; `loss` is their total."""
        disparity, mask = self.to_device(batch.disparity, batch.mask)
        image = self.seen(batch)
        with autocast(self.device, self.dtype):
            prediction = self.network(image)
        with self.losses():
            parts = self.compare("labeled", prediction.float(), disparity, mask)
        return {"loss": sum(parts.values(), prediction.new_zeros(())), **parts}


def backward(step_losses: Any, network: nn.Module, batches: Sequence[Any]) -> dict[str, Tensor]:
    """Adds the gradients of a step, whose batches come one after the other (accumulation).

    Args:
        step_losses: Gives the parts of a batch's loss; `loss` is what is minimised. Its `begin`
            says what share each batch has.
        network: What predicts; copies of it (DDP) exchange gradients in the last batch alone.
        batches: Of equal sizes.

    Returns:
        The parts of the step, those of the batches by their shares.
    """
    means: dict[str, Tensor] = {}
    shares = step_losses.begin(batches)
    for i, (batch, share) in enumerate(zip(batches, shares, strict=True), 1):
        alone = isinstance(network, DistributedDataParallel) and i < len(batches)
        with network.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
            parts = step_losses(batch)
            (share * parts["loss"]).backward()
        for name, part in parts.items():
            scaled = share * part.detach()
            means[name] = means[name] + scaled if name in means else scaled
    return means


class Ema:
    """A moving average of the weights, with a shorter memory in the first steps.

    Args:
        model: The model to follow.
        decay: Share of the average that stays at each step.
    """

    def __init__(self, model: DepthAnything, decay: float) -> None:
        self.decay = decay
        self.source = model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after a step (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average, source = (
            [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
            for model in (self.model, self.source)
        )
        torch._foreach_lerp_(average, source, 1.0 - decay)
        for own, buffer in zip(self.model.buffers(), self.source.buffers(), strict=True):
            own.copy_(buffer)  # of BatchNorm: an average already


def total_steps(config: TrainConfig, data: TrainingData) -> int:
    """Length of the run in steps.

    Raises:
        ConfigError: If `epochs` make it so short that the warm-up would never end.
    """
    if config.steps:  # `check` has seen them
        return config.steps
    samples, batch = len(data.shards), config.batch_size
    if data.unlabeled is not None:
        samples, batch = len(data.unlabeled), batch * config.unlabeled.ratio
    total = max(1, round(config.epochs * samples / batch))
    warmup = config.optim.warmup_steps
    if warmup >= total:
        raise ConfigError(
            f"optim.warmup_steps ({warmup}) must be under the length of the run, or the warm-up "
            f"never ends: epochs = {config.epochs:g} of {samples} images, {batch} a step, are "
            f"{total} steps. Lower it (--optim.warmup-steps {total // 10}), or raise epochs"
        )
    return total
