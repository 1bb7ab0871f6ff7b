"""Semantic segmentation on the encoder: the network, photos and files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..config import ModelConfig
from ..devices import on_meta, resolve_device, resolve_dtype, warn_if_slow
from ..files import explain, whole_files
from .hub import HubError, HubOptions, fetch_model, hub_config, is_hub_id
from .network import DepthNetwork
from .publishing import Publishable
from .saving import check_state
from .segmentation_inference import SegmentationOptions, segment
from .segmentation_network import HEADS, LinearHead, SegmentationConfig, SegmentationNetwork
from .weight_files import CheckpointError, read_file
from .zoo import find

__all__ = [
    "HEADS",
    "MODEL_TYPE",
    "LinearHead",
    "SegmentationConfig",
    "SegmentationModel",
    "is_segmentation",
]

MODEL_TYPE = "dafast_segmentation"
"""The `model_type` in the `config.json` of a saved model."""


class SegmentationModel(Publishable, SegmentationNetwork):
    """An encoder of Depth Anything with a segmentation head.

    The weights are random; `from_depth` takes a trained encoder, `from_pretrained` loads a saved
    model. The network, its forward and its parameters are those of `SegmentationNetwork`.

    Args:
        config: See `SegmentationConfig`.
    """

    @classmethod
    def from_depth(
        cls, model: DepthNetwork, classes: Sequence[str], head: str = "linear"
    ) -> SegmentationModel:
        """Builds a model that shares the encoder of a depth model; the head is random.

        Args:
            model: The model whose encoder is shared.
            classes: Names of the classes.
            head: One of `HEADS`.

        Raises:
            ValueError: If the head is unknown, or there are no classes or more than 255.
        """
        built = cls(SegmentationConfig(model.config, tuple(classes), head))
        built.pretrained = model.pretrained
        built.head.to(model.device, model.dtype)
        return built.train(model.training)

    def segment(self, images: Any, options: SegmentationOptions | None = None) -> Any:
        """The class of every pixel of photos, at their own resolution.

        Args:
            images: One image or a list, as for `DepthAnything.infer`.
            options: Size, scales, windows.

        Returns:
            uint8 (H, W), indices into `model.config.classes`; a list of them for a list.

        Raises:
            ImageError: If an image cannot be used; the message names it.
            ValueError: If an option is out of range, or the model is in training mode.
        """
        return segment(self, images, options)

    def save_pretrained(
        self, folder: str | Path, *, dtype: str | torch.dtype | None = None
    ) -> None:
        """Writes config.json and model.safetensors into a folder.

        An interrupted call never leaves a partial file.

        Args:
            folder: Created if missing.
            dtype: Data type of the weights in the file; the model's own by default.

        Raises:
            ValueError: If the weights are not those of the configuration (weight_norm, LoRA).
            DiskFullError: If there is no room for the files; the earlier ones stay.
        """
        from safetensors.torch import save_file

        target = self.dtype if dtype is None else resolve_dtype(dtype, self.device)
        with on_meta():
            expected = SegmentationModel(self.config).state_dict()
        check_state(self, expected)
        state = {
            name: tensor.detach()
            .to("cpu", target if tensor.is_floating_point() else tensor.dtype)
            .contiguous()
            for name, tensor in self.state_dict().items()
        }
        config = {
            "model_type": MODEL_TYPE,
            "dafast_version": __version__,
            "model": dataclasses.asdict(self.config),
        }
        with whole_files(folder) as temporary:
            save_file(state, temporary / "model.safetensors")
            text = json.dumps(config, indent=2) + "\n"
            (temporary / "config.json").write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        force_download: bool = False,
    ) -> SegmentationModel:
        """Loads a model that `save_pretrained` or `push_to_hub` wrote, in evaluation mode.

        Args:
            folder: A folder, or a hub id (``"owner/name"``).
            device: ``"auto"``, or anything that `torch.device` takes.
            dtype: ``"auto"``, ``"float32"``, ``"bfloat16"``, ``"float16"`` or a `torch.dtype`.
            revision: As for `DepthAnything.from_pretrained`, as are the following.
            cache_dir: Replaces the hub's own cache.
            local_files_only: Whether to load only from the cache.
            token: Token of the hub.
            force_download: Whether to download files that are in the cache again.

        Raises:
            CheckpointError: If the folder or repository holds no segmentation model, or its weights
                do not fit.
        """
        target = resolve_device(device)
        name = str(folder)
        if is_hub_id(folder):
            options = HubOptions(revision, cache_dir, local_files_only, token, force_download)
            try:
                folder = fetch_model(name, options)[1][0].parent
            except HubError as error:
                raise CheckpointError(f"{error} (There is no local folder {name!r}.)") from error
        folder = Path(folder).expanduser()
        if not is_segmentation(folder):
            raise CheckpointError(
                f"{name}: not a saved segmentation model (its config.json would have the "
                f"model_type {MODEL_TYPE!r}); to put a head on a depth model, use "
                "`SegmentationModel.from_depth`"
            )
        try:
            fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
            config = SegmentationConfig(
                **{**fields, "encoder": ModelConfig.from_dict(fields["encoder"])}
            )
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {explain(error)}") from error
        model = cls(config)
        try:
            model.load_state_dict(read_file(folder / "model.safetensors")[0])
        except RuntimeError as error:
            raise CheckpointError(f"{name}: the weights do not fit: {explain(error)}") from error
        target_dtype = resolve_dtype(dtype, target)
        warn_if_slow(target_dtype, target)
        model.loaded_from = name
        return model.to(target, target_dtype).eval()


def is_segmentation(name_or_path: str | Path) -> bool:
    """Whether a folder or a repository of the hub holds a saved `SegmentationModel`.

    Of a repository that `dafast.models.zoo` does not list, config.json is taken from the cache or
    downloaded.
    """
    path: Path | None = Path(name_or_path).expanduser() / "config.json"
    if is_hub_id(name_or_path) and find(str(name_or_path)) is None:
        path = hub_config(str(name_or_path))
    if path is None:
        return False
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text).get("model_type") == MODEL_TYPE
    except (OSError, ValueError, AttributeError):
        return False
