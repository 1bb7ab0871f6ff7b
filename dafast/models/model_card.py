"""Model cards: the README.md of a repository on the hub."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .._version import __version__
from .._warnings import DataWarning, warn
from ..config import ModelConfig
from ..files import explain
from .checkpoint import DINOV2_HUB_IDS, published_dinov2
from .hub import is_hub_id
from .weight_files import CheckpointError
from .zoo import ZooEntry, find

_SCORES = {
    "abs_rel": "AbsRel (lower is better)",
    "delta_1": "delta_1 (higher is better)",
    "miou": "mean IoU (higher is better)",
    "loss": "loss (lower is better)",
}
_BASELINES = {"constant_": "best constant", "plane_": "best plane"}
_OUTPUTS = {
    "disparity": "disparity: large is near, up to an unknown scale and shift",
    "depth": "depth: large is far, up to an unknown scale",
    "metric": "depth in metres",
}
_SETTINGS = ("preset", "init", "encoder_init", "freeze_encoder")


class TrainingRun:
    """Facts about the training of a model.

    Attributes:
        scores: The numbers of evaluation.json by name; empty without this file.
        config: The settings of the training run; empty if they are not found.
    """

    def __init__(self, folder: str | Path | None) -> None:
        """Reads evaluation.json of a folder and the config.json of the run that it is part of.

        Args:
            folder: For example ``runs/x/best``; a file in it; or None.
        """
        self.scores: dict[str, float] = {}
        self.config: dict[str, Any] = {}
        if not folder:
            return
        path = Path(folder).expanduser().absolute()
        path = path if path.is_dir() else path.parent
        scores = _read(path / "evaluation.json")
        for name, value in scores.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and math.isfinite(value):
                self.scores[name] = value
        for parent in (path, *path.parents[:2]):
            config = _read(parent / "config.json")
            if isinstance(config.get("model"), dict) and "optim" in config:
                self.config = config
                return

    @classmethod
    def named(cls, folder: str | Path) -> TrainingRun:
        """The run that a user named.

        Raises:
            ValueError: If nothing of a run is there.
        """
        run = cls(folder)
        if not run.scores and not run.config:
            raise ValueError(
                f"run={str(folder)!r}: no scores in evaluation.json there and no config.json of "
                "a training run; name a folder such as runs/x/best"
            )
        return run

    def setting(self, name: str) -> Any:
        """A setting, by its dotted name; "" if it is unknown."""
        value: Any = self.config
        for part in name.split("."):
            value = value.get(part, "") if isinstance(value, dict) else ""
        return value


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warn(DataWarning, f"{path}: left out of the model card ({explain(error)})")
        return {}
    return data if isinstance(data, dict) else {}


def model_card(
    model: Any,
    repo_id: str = "",
    *,
    run: str | Path | None = None,
    layout: str = "official",
    base_model: str | None = None,
    license: str | None = None,
) -> str:
    """Writes the model card of a model.

    Args:
        model: A `dafast.DepthAnything` or a `dafast.SegmentationModel`.
        repo_id: The repository that the card is for.
        run: A folder with ``evaluation.json``, the scores of the model, in a training run; for
            example ``runs/x/best``. By default the folder that the model was loaded from.
        layout: Of the weights; with ``"transformers"`` the library is transformers.
        base_model: Hub id of the model that training started from; "" for none. By default that of
            the run, else that of the published model that was loaded.
        license: An identifier of the hub (``"apache-2.0"``) or an SPDX identifier; "" for none. By
            default that of the base model, without a run that of the model that was loaded.

    Returns:
        Text in Markdown, with the metadata that the hub reads at its start.

    Raises:
        ValueError: If ``run`` is given and nothing of a training run is there.
    """
    about = TrainingRun(model.loaded_from) if run is None else TrainingRun.named(run)
    depth: ModelConfig = getattr(model.config, "encoder", model.config)
    classes: tuple[str, ...] = getattr(model.config, "classes", ())
    start, entry = _start(model, depth, about)
    if start == repo_id:  # a model that was loaded from there is not its own base
        start = ""
    base = start if base_model is None else base_model
    if license is None:
        is_known = model.loaded_from and not about.config
        license = _license(base, entry, depth.license if is_known else "")
    task = "image-segmentation" if classes else "depth-estimation"
    library = "transformers" if layout == "transformers" else "dafast"
    metadata = _metadata(repo_id, task, library, base, license, about)
    parts = [
        f"# {repo_id.rpartition('/')[2] or ' '.join(model.config.name.split())}",
        _summary(depth, classes),
        "## Use\n\n" + _usage(repo_id or "OWNER/NAME", layout, depth, classes),
        "## Network\n\n" + _network_table(model, depth, classes),
        _training(about),
        _evaluation(about),
        _origin(base, license, entry if base == start else None),
    ]
    text = "\n\n".join(part for part in parts if part)
    return f"---\n{metadata}\n---\n\n{text}\n"


def _start(model: Any, config: ModelConfig, about: TrainingRun) -> tuple[str, ZooEntry | None]:
    """Hub id of the model that training started from, or "", and its entry of the zoo."""
    if about.config:
        name = str(about.setting("model.init") or about.setting("model.encoder_init"))
        if name in ("random", "mimetic", ""):
            return "", None
        if name == "dinov2":
            try:
                return published_dinov2(config), None
            except CheckpointError:
                return "", None
    else:
        name = model.loaded_from
        if name and Path(name).expanduser().exists():
            name = config.hub_id  # its configuration says which published model it is
    entry = find(name) if name else None
    if entry is not None:
        hub_id = entry.config.hub_id
        return ("" if hub_id.startswith("spaces/") else hub_id), entry
    return (name if is_hub_id(name) else ""), None


def _license(base: str, entry: ZooEntry | None, own: str) -> str:
    if entry is not None:
        return entry.config.license
    if base in DINOV2_HUB_IDS.values():
        return "apache-2.0"
    return own


def _metadata(
    repo_id: str, task: str, library: str, base: str, license: str, about: TrainingRun
) -> str:
    """YAML as the hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    data = _data_name(about) or "held-out data"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=re.sub(r"[^\w-]+", "-", data),
            dataset_name=data,
            metric_type=name,
            metric_value=value,
        )
        for name, value in about.scores.items()
        if name in _SCORES
    ]
    return ModelCardData(
        library_name=library,
        pipeline_tag=task,
        license=license.lower() or None,
        base_model=base or None,
        tags=["depth-anything", "dafast"],
        model_name=repo_id.rpartition("/")[2] or "model" if results else None,
        eval_results=results or None,
    ).to_yaml()


def _summary(config: ModelConfig, classes: tuple[str, ...]) -> str:
    name = " ".join(config.name.split())
    if classes:
        return (
            f"Semantic segmentation into {len(classes)} classes with an encoder of Depth Anything "
            f"(`{name}`), written by dafast {__version__}."
        )
    return (
        f"A Depth Anything network (`{name}`) that predicts {_OUTPUTS[config.quantity]}. "
        f"Written by dafast {__version__}."
    )


def _usage(name: str, layout: str, config: ModelConfig, classes: tuple[str, ...]) -> str:
    if classes:
        lines = [
            "from dafast import SegmentationModel",
            "",
            f'model = SegmentationModel.from_pretrained("{name}")',
            'classes = model.segment("photo.jpg")',
        ]
    else:
        method = "infer_metric" if config.is_metric else "infer"
        camera = ", fov=60" if config.focal_length is not None else ""
        lines = [
            "from dafast import DepthAnything",
            "",
            f'model = DepthAnything.from_pretrained("{name}")',
            f'depth = model.{method}("photo.jpg"{camera})',
        ]
    if layout == "transformers":
        lines += [
            "",
            "from transformers import pipeline",
            "",
            f'depth = pipeline("depth-estimation", model="{name}")("photo.jpg")["predicted_depth"]',
        ]
    return "\n".join(["```python", *lines, "```"])


def _network_table(model: nn.Module, config: ModelConfig, classes: tuple[str, ...]) -> str:
    parameters = sum(weight.numel() for weight in model.parameters())
    rows = {
        "parameters": f"{parameters / 1e6:.2f}M",
        "encoder": f"DINOv2 ViT, {config.num_layers} blocks of width {config.embed_dim}",
        "blocks that the decoder reads": ", ".join(map(str, config.out_indices)),
        "size of photos": f"{config.image_size} pixels",
    }
    if classes:
        del rows["blocks that the decoder reads"]
        rows["head"] = str(model.config.head)  # type: ignore[union-attr]
        rows["classes"] = ", ".join(classes)
    elif config.max_depth is not None:
        rows["largest depth"] = f"{config.max_depth:g} m"
    return _table(["", ""], [[key, value] for key, value in rows.items()])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _training(about: TrainingRun) -> str:
    """The settings of the run; of paths only the last part, as a card is public."""
    if not about.config:
        return ""
    names = [f"model.{name}" for name in _SETTINGS]
    names += ["data.path", "data.eval_path", "unlabeled.path", "unlabeled.teacher"]
    names += ["metric.max_depth", "segmentation.data", "steps", "epochs", "batch_size", "seed"]
    names += ["optim.encoder_lr", "optim.decoder_lr"]
    if about.setting("steps"):
        names.remove("epochs")
    rows = [
        [f"`{name}`", value] for name in names if (value := _shown(name, about.setting(name))) != ""
    ]
    step = about.scores.get("step")
    if step is not None:
        rows.append(["step of these weights", f"{step:g}"])
    return "## Training\n\n" + _table(["setting", "value"], rows)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(name, each) for each in value)
    if value in ("", None, 0, False):
        return "" if name != "seed" else str(value)
    text = str(value)
    is_path = name.endswith(("path", "data")) or Path(text).is_absolute()
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if is_path else text


def _data_name(about: TrainingRun) -> str:
    return _shown("data.eval_path", about.setting("data.eval_path"))


def _evaluation(about: TrainingRun) -> str:
    scores: Mapping[str, float] = {k: v for k, v in about.scores.items() if k != "step"}
    if not scores:
        return ""
    baselines = {p: t for p, t in _BASELINES.items() if any(name.startswith(p) for name in scores)}
    rows = [
        [_SCORES.get(name, name), f"{value:.4g}"]
        + [f"{scores[p + name]:.4g}" if p + name in scores else "" for p in baselines]
        for name, value in scores.items()
        if not name.startswith(tuple(_BASELINES))
    ]
    data = _data_name(about)
    where = f" on {data}" if data else ""
    return f"## Evaluation\n\nScores{where} during training, not used for it:\n\n" + _table(
        ["score", "model", *baselines.values()], rows
    )


def _origin(base: str, license: str, entry: ZooEntry | None) -> str:
    lines = []
    if base:
        lines.append(f"Base model: [{base}](https://huggingface.co/{base}).")
    if license:
        lines.append(f"License: {license}.")
    if entry is not None and entry.license_note:
        lines.append(f"About the license of the base model: {entry.license_note}.")
    return "## Origin and license\n\n" + " ".join(lines) if lines else ""
