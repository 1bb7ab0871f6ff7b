"""The update of the weights: gradients, optimizers, learning rates, moving average."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dafast.devices import device_has_bfloat16
from dafast.training.config import OptimSection
from dafast.training.muon import Muon
from dafast.training.parallel import spread
from dafast.training.schedules import lr_factor
from dafast.training.task import Step


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
        """Restores only the moments; learning rates and weight decay stay as configured.

        Takes the result of `state_dict`, with whole tensors where parameters are sharded.

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
        if section.temporal_lr and ".motion_modules." in name:
            part = "temporal"
        below = 0  # how many blocks from the last
        if part == "encoder" and section.layer_decay < 1 and not name.startswith("pretrained.norm"):
            below = depth - 1 - int(name.split(".")[2]) if ".blocks." in name else depth
        decayed = parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token", "mask_token"))
        kind = "decayed" if decayed else "plain"
        if section.muon and ".blocks." in name and parameter.ndim == 2:
            kind = "muon"
        groups.setdefault((part, kind, below), []).append(parameter)
    peak = {
        "encoder": section.encoder_lr,
        "decoder": section.decoder_lr,
        "temporal": section.temporal_lr,
    }

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
        device = muon[0]["params"][0].device
        if device.type == "cpu" and not device_has_bfloat16(device):
            optimizers.append(Muon(muon))
        else:
            optimizers.append(torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw"))
    return Optimizers(*optimizers)


def set_learning_rate(optimizer: Optimizers, section: OptimSection, step: int, total: int) -> float:
    """Sets every group's learning rate for a step; returns the factor on the peaks."""
    factor = lr_factor(step, total, section.warmup_steps, section.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return factor


def backward(step_losses: Step, network: nn.Module, batches: Sequence[Any]) -> dict[str, Tensor]:
    """Adds the gradients of a step, whose batches come one after the other (accumulation).

    Args:
        step_losses: Gives the parts of a batch's loss; `loss` is what is minimised. Its `begin`
            gives the weight of each batch.
        network: What predicts; copies of it (DDP) exchange gradients only in the last batch.
        batches: Of equal sizes.

    Returns:
        The parts of the step: the weighted sums of those of the batches.
    """
    means: dict[str, Tensor] = {}
    weights = step_losses.begin(batches)
    for i, (batch, weight) in enumerate(zip(batches, weights, strict=True), 1):
        local = isinstance(network, DistributedDataParallel) and i < len(batches)
        with network.no_sync() if local else contextlib.nullcontext():  # type: ignore[operator]
            parts = step_losses(batch)
            (weight * parts["loss"]).backward()
        for name, part in parts.items():
            scaled = weight * part.detach()
            means[name] = means[name] + scaled if name in means else scaled
    return means


class Ema:
    """A moving average of the weights, with a shorter memory in the first steps.

    Args:
        model: The model to follow.
        decay: Fraction of the average that stays at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.source = model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average with the weights after a step (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average, source = (
            [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
            for model in (self.model, self.source)
        )
        torch._foreach_lerp_(average, source, 1.0 - decay)
        for own, buffer in zip(self.model.buffers(), self.source.buffers(), strict=True):
            own.copy_(buffer)  # of BatchNorm: an average already
