"""dafast's forward in a transformers model; `dafast.accelerate` and `dafast.restore`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..devices import on_meta
from ..ops.linear_int8 import why_slow_int8
from .network import DepthNetwork
from .packed_cpu import OptimizedForward, why_not_packed
from .snapshot import Snapshot, settings
from .transformers_bridge import (
    CLASS,
    check_is_depth_anything,
    config_of,
    depth_anything_class,
    empty_copy,
    weights_of,
)

logger = logging.getLogger("dafast")

Accelerated = TypeVar("Accelerated")

_NO_EFFECT = ("gradient_checkpointing", "name_or_path")
"""Settings of transformers' modules without an effect on inference."""

_HOOKS_OF_TRANSFORMERS = "transformers.utils.output_capturing"
"""Module of the hooks that record hidden states; they stay on a model and do nothing unasked."""


def accelerate(model_or_pipeline: Accelerated, int8: bool = False) -> Accelerated:
    """Gives a transformers model the forward of dafast, in place.

    Only the forward changes: configuration, processor, weights, hooks on the model,
    ``save_pretrained`` and the outputs stay. On a CPU the weights are packed once, as
    `DepthAnything.optimize` does, which takes a second copy of their memory; on a GPU the network
    runs with dafast's kernels. A call checks the weights first, so it sees every change of them.

    A call uses the original forward if it needs more than a prediction or cannot be served:

    - gradients (call the model under `torch.no_grad` or `torch.inference_mode`; a pipeline does)
      and training mode;
    - ``labels``, ``output_hidden_states``, ``output_attentions`` and other keywords;
    - autocast, `torch.compile`, tracing, `torch.func`;
    - hooks on a part of the model, and parts or weights that were replaced (LoRA, quantization);
    - weights on several devices or of several dtypes, and float16 and float64 on a CPU.

    The logger ``dafast`` says once at level INFO why it does.

    Args:
        model_or_pipeline: A ``DepthAnythingForDepthEstimation`` (V1, V2 or metric) or a pipeline
            ``"depth-estimation"`` with one.
        int8: Whether the encoder's linear layers multiply in int8, on a CPU: faster and less exact,
            see `DepthAnything.optimize`.

    Returns:
        The argument. A second call changes only ``int8``; `restore` undoes it.

    Raises:
        TypeError: If the model is another one, or of a class derived from transformers'.
        ValueError: If dafast does not support a setting of the model, the model's weights are not
            those of its configuration, or its forward was replaced.
        RuntimeError: If ``int8`` is requested and this machine has no fast kernel for it.
        MissingPackageError: If transformers cannot be imported.
    """
    model = _model_of(model_or_pipeline)
    from .accelerated import DepthAnythingForDepthEstimation as Fast

    if type(model) not in (Fast, depth_anything_class()):
        raise TypeError(
            f"{type(model).__name__} is derived from {CLASS} and may compute something else; only "
            f"{CLASS} itself is accelerated"
        )
    if "forward" in vars(model):
        raise ValueError(
            "the model's forward was replaced (device_map, hooks of accelerate): load the model "
            "without it"
        )
    _network(model)  # raises what makes the model unfit for ever
    if int8 and (slow := why_slow_int8()):
        raise RuntimeError(f"accelerate(int8=True): {slow}")
    if int8 and model.device.type != "cpu":
        raise ValueError(f"int8=True is for a CPU; the model is on {model.device}")
    model.__class__ = Fast
    if "_dafast" not in vars(model) or model._dafast.int8 != int8:
        model._dafast = FastForward(int8)
    return model_or_pipeline


def restore(model_or_pipeline: Accelerated) -> Accelerated:
    """Undoes `accelerate`: restores the model's own forward and frees the packed weights.

    Args:
        model_or_pipeline: As for `accelerate`; one that is not accelerated stays as it is.

    Returns:
        The argument.

    Raises:
        TypeError: If the model is another one.
        MissingPackageError: If transformers cannot be imported.
    """
    model = _model_of(model_or_pipeline)
    from .accelerated import DepthAnythingForDepthEstimation as Fast

    if type(model) is Fast:
        model.__class__ = depth_anything_class()  # type: ignore[assignment]
        vars(model).pop("_dafast", None)
    return model_or_pipeline


def _model_of(model_or_pipeline: Any) -> Any:
    is_pipeline = not isinstance(model_or_pipeline, nn.Module)
    model = getattr(model_or_pipeline, "model", None) if is_pipeline else model_or_pipeline
    check_is_depth_anything(model_or_pipeline if model is None else model)
    return model


class FastForward:
    """The forward of dafast with the weights of a transformers model.

    A copy or a pickle of it starts without packed weights, as their layout depends on the machine.

    Args:
        int8: As for `accelerate`.
    """

    def __init__(self, int8: bool) -> None:
        self.int8 = int8
        # One attribute: another thread sees a state and the forward that belongs to it.
        self._current: tuple[_State, Callable[[Tensor], Tensor] | None] | None = None
        self._logged: set[str] = set()

    def __reduce__(self) -> tuple[type[FastForward], tuple[bool]]:
        return FastForward, (self.int8,)

    def __call__(self, model: Any, images: Tensor) -> Tensor | None:
        """Predicts as the model does.

        Args:
            model: The transformers model.
            images: (B, 3, H, W), any floating-point type; rows and columns beyond the last whole
                patch are ignored, as transformers does.

        Returns:
            (B, H', W') in the dtype of the weights, H' and W' multiples of 14; None if the original
            forward has to serve the call.
        """
        if torch.compiler.is_compiling():  # before what cannot be compiled
            return None
        why = _why_not_now(model, images)
        if why:
            self._decline(why)
            return None
        if self._current is None or not self._current[0].is_of(model):
            self._current = _State(model), self._build(model)
        run = self._current[1]
        if run is None:
            return None
        patch = model.config.patch_size
        height, width = (side // patch * patch for side in images.shape[-2:])
        with torch.no_grad():
            return run(images[..., :height, :width].to(model.dtype)).to(model.dtype)

    def _decline(self, why: str) -> None:
        if why not in self._logged:
            self._logged.add(why)
            logger.info("dafast: the original forward serves an accelerated model: %s", why)

    def _build(self, model: Any) -> Callable[[Tensor], Tensor] | None:
        """The forward for the weights as they are; None without a fast one."""
        why = _why_not_modules(model)
        if why:
            self._decline(why)
            return None
        # Outside of inference mode: its tensors could not be written to in a later call.
        with torch.inference_mode(False), torch.no_grad():
            try:
                network, pieces = _network(model)
            except ValueError as error:  # the configuration was changed since
                self._decline(str(error))
                return None
            if model.device.type != "cpu":
                return _OnModules(network, pieces)
            why = why_not_packed(network)
            if why:
                self._decline(why)
                return None
            packed = OptimizedForward(network, self.int8)
            return lambda images: packed(images).squeeze(1)


class _State:
    """The weights, modules and configurations of a model at one time."""

    def __init__(self, model: Any) -> None:
        self.snapshot = Snapshot(model)
        self.configs = copy.deepcopy(_configs(model))

    def is_of(self, model: Any) -> bool:
        """Whether nothing has changed since that affects the results of a model."""
        return _configs(model) == self.configs and self.snapshot.is_of(model)


def _configs(model: Any) -> list[dict[str, Any]]:
    """The settings that transformers' forward reads in each call."""
    configs = (model.config, getattr(model.backbone, "config", None))
    return [vars(config) for config in configs if config is not None]


class _OnModules:
    """The modules of dafast with the memory of a transformers model's weights.

    Query, key and value are one weight here; they are joined in each call, which costs 1% of it
    and sees every change.
    """

    def __init__(self, network: DepthNetwork, pieces: dict[str, list[Tensor]]) -> None:
        self.network = network
        joined = dict(network.named_parameters())
        self.pieces = [(joined[key], parts) for key, parts in pieces.items()]

    def __call__(self, images: Tensor) -> Tensor:
        """As `DepthNetwork.forward`."""
        for joined, parts in self.pieces:
            torch.cat(parts, out=joined)
        return self.network(images)


def _network(model: Any) -> tuple[DepthNetwork, dict[str, list[Tensor]]]:
    """Our modules with the weights of a model, and the pieces of those that share no memory.

    Raises:
        ValueError: If dafast does not support the model.
    """
    with on_meta():
        # Inference tensors, which a model made in inference mode has, take no gradients.
        network = DepthNetwork(config_of(model)).requires_grad_(False).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    state, pieces = weights_of(model, shapes)
    mask = "pretrained.mask_token"  # takes no part in a prediction, and may be missing
    state[mask] = state[mask].to(model.device, model.dtype)
    network.load_state_dict(state, strict=True, assign=True)
    return network, pieces


def _why_not_now(model: Any, images: Any) -> str:
    """Why the original forward has to serve a call, or ""."""
    if not isinstance(images, Tensor) or images.ndim != 4 or 0 in images.shape:
        return "the input is no tensor (B, 3, H, W)"
    if torch.jit.is_tracing():
        return "it is traced"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func is active"
    weights = list(model.parameters())
    if type(images) is not Tensor or any(type(w) is not nn.Parameter for w in weights):
        return "weights or input are of a tensor subclass"
    if len({(w.device, w.dtype) for w in weights}) != 1:
        return "the weights are on several devices or of several dtypes"
    device = weights[0].device
    if images.device != device or device.type == "meta":
        return f"the input is on {images.device}, the weights are on {device}"
    if torch.is_grad_enabled() and (images.requires_grad or any(w.requires_grad for w in weights)):
        return "gradients are enabled: use torch.no_grad() or torch.inference_mode()"
    if model.training:
        return "the model is in training mode: call model.eval()"
    if torch.is_autocast_enabled(device.type):
        return "autocast is enabled"
    if min(images.shape[-2:]) < model.config.patch_size or images.shape[1] != 3:
        return "the input is no RGB image of at least one patch"
    if nn.modules.module._has_any_global_hook() or any(
        "forward" in vars(part) or _has_hooks(part) for part in model.modules() if part is not model
    ):
        return "a part of the model has hooks or another forward"
    return ""


def _has_hooks(module: nn.Module) -> bool:
    if module._forward_pre_hooks:
        return True
    hooks = module._forward_hooks
    return any(getattr(hook, "__module__", "") != _HOOKS_OF_TRANSFORMERS for hook in hooks.values())


def _why_not_modules(model: nn.Module) -> str:
    """Names a part that the configuration does not build: it may compute something else."""

    def parts(of: nn.Module) -> dict[str, dict[str, Any]]:
        named = of.named_modules(remove_duplicate=False)
        return {name: settings(part) for name, part in named if part is not of}

    found, expected = parts(model), parts(empty_copy(model))
    if found.keys() != expected.keys():
        return f"{min(found.keys() ^ expected.keys())} is a part that was added or removed"
    for name, now in found.items():
        built = expected[name]
        for key in now | built:
            if key not in _NO_EFFECT and now.get(key) != built.get(key):
                return f"{name}: {key} is {now.get(key)}, not {built.get(key)}"
    return ""
