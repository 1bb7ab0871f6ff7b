"""Converts between transformers' Depth Anything and ours, in memory."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, TypeVar

from torch import Tensor, nn

from ..config import ModelConfig
from ..devices import on_meta
from ..files import explain
from ..optional import MissingPackageError, why_no_module
from .configurations import config_from_json, config_to_transformers
from .conversion import (
    LAYOUTS,
    OPTIONAL_KEYS,
    Layout,
    Shape,
    detect_layout,
    from_official,
    to_official,
)
from .identify import some
from .network import DepthNetwork
from .saving import check_layout, check_state

Network = TypeVar("Network", bound=DepthNetwork)

CLASS = "DepthAnythingForDepthEstimation"


def depth_anything_class() -> type[nn.Module]:
    """transformers' class of Depth Anything.

    Raises:
        MissingPackageError: If transformers cannot be imported.
    """
    if why := why_no_module("transformers"):
        raise MissingPackageError(f"{why}: pip install 'dafast[transformers]'")
    import transformers

    return transformers.DepthAnythingForDepthEstimation


def check_is_depth_anything(model: Any) -> None:
    """Checks that an object is transformers' Depth Anything.

    Raises:
        TypeError: If it is something else.
    """
    if not isinstance(model, depth_anything_class()):
        raise TypeError(f"expected transformers' {CLASS}, not {type(model).__name__}")


def config_of(model: Any) -> ModelConfig:
    """The configuration of a transformers model, with transformers' rule for position embeddings.

    Raises:
        ValueError: If the model has settings that dafast does not support.
    """
    data = {**model.config.to_dict(), "backbone_config": model.backbone.config.to_dict()}
    config = config_from_json(data)
    return dataclasses.replace(config, position_embedding="transformers")


def weights_of(
    model: nn.Module, shapes: dict[str, Shape]
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """The weights of a transformers model by official key.

    Args:
        model: transformers' Depth Anything.
        shapes: Shape of every official key.

    Returns:
        The weights, which share the memory of the model's where transformers has them in one
        piece; and for the others (query, key and value) the pieces, which a weight is a copy of.

    Raises:
        ValueError: If the model has other weights than its configuration (LoRA, quantization).
    """
    tensors = {name: weight.detach() for name, weight in model.named_parameters()}
    layout: Layout = detect_layout(tensors) or LAYOUTS["transformers_live"]
    conversion = to_official(tensors, layout, shapes)
    if not conversion.ok:
        wrong = [*conversion.missing, *conversion.unexpected]
        wrong += [name for name, _, _ in conversion.wrong_shapes]
        raise ValueError(
            f"the model has other weights than its configuration ({some(wrong)}): merge adapters, "
            "and load it without quantization"
        )
    names = {key: layout.names(key) for key in shapes if key not in OPTIONAL_KEYS}
    pieces = {key: [tensors[n] for n in parts] for key, parts in names.items() if len(parts) > 1}
    return conversion.state, pieces


def empty_copy(model: Any) -> nn.Module:
    """The modules that a transformers model's configuration builds, on the meta device."""
    with on_meta():
        return depth_anything_class()(copy.deepcopy(model.config))


class Convertible(DepthNetwork):
    """A network that transformers' models are converted to and from."""

    @classmethod
    def from_transformers(
        cls: type[Network], model: Any, *, position_embedding: str = "transformers"
    ) -> Network:
        """Builds a model from one of transformers, without files.

        The weights are copied: neither model sees later changes of the other.

        Args:
            model: A ``DepthAnythingForDepthEstimation``: V1, V2 or metric.
            position_embedding: As in `ModelConfig`. The default predicts what ``model`` predicts;
                `from_pretrained` takes ``"official"``.

        Returns:
            The model, on the device, in the dtype and in the mode (training or evaluation) of the
            other.

        Raises:
            TypeError: If ``model`` is of another class.
            ValueError: If dafast does not support a setting of the model, or its weights are not
                those of its configuration (LoRA, quantization).
            MissingPackageError: If transformers cannot be imported.
        """
        check_is_depth_anything(model)
        config = dataclasses.replace(config_of(model), position_embedding=position_embedding)
        with on_meta():
            built = cls(config)
        shapes = {key: tuple(value.shape) for key, value in built.state_dict().items()}
        state, _ = weights_of(model, shapes)
        first = next(model.parameters())
        state = {
            key: weight.to(first.device, first.dtype, copy=True) for key, weight in state.items()
        }
        built.load_state_dict(state, strict=True, assign=True)
        return built.train(model.training)

    def to_transformers(self) -> Any:
        """Builds transformers' ``DepthAnythingForDepthEstimation`` from the model, without files.

        The weights are copied. transformers resizes position embeddings by its own rule, so its
        predictions differ at other sizes than ``grid_size`` x ``grid_size`` patches unless the
        configuration has ``position_embedding="transformers"``.

        Returns:
            The model, on the same device, in the same dtype and mode.

        Raises:
            ValueError: If transformers has no place for the model (ZoeDepth's bins, Depth
                Anything 3), or its weights are not those of its configuration.
            MissingPackageError: If transformers cannot be imported.
        """
        cls = depth_anything_class()
        check_layout("transformers", self.config)
        with on_meta():
            check_state(self, DepthNetwork(self.config).state_dict())
        data = config_to_transformers(self.config, str(self.dtype).removeprefix("torch."))
        try:
            config = cls.config_class.from_dict(data)  # type: ignore[attr-defined]
        except Exception as error:  # transformers 5 takes only whole metres as max_depth
            raise ValueError(
                f"transformers does not take this configuration: {explain(error)}"
            ) from error
        with on_meta():
            built = cls(config)
        layout = detect_layout(built.state_dict())
        assert layout is not None
        state = {name: weight.detach() for name, weight in self.state_dict().items()}
        renamed = {name: weight.clone() for name, weight in from_official(state, layout).items()}
        built.load_state_dict(renamed, strict=True, assign=True)
        return built.train(self.training)
