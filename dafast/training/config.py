"""Typed training configuration: dataclasses, filled from TOML, overridden on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import operator
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dafast.config import PRESETS
from dafast.data.tars import is_list
from dafast.data.transforms import STRONG, AugmentConfig
from dafast.optional import why_no_module


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


@dataclass(frozen=True)
class ModelSection:
    """Which model is trained and what it starts from.

    Attributes:
        preset: Name of a preset (`nano`, `vits`, `vitb`, `vitl`, ...).
        init: Checkpoint to start from (whatever `DepthAnything.from_pretrained` takes, and for
            segmentation a segmentation model too); "" starts from random weights. It starts a new
            run; `resume` goes on with an old one.
        encoder_init: Without `init`, what the encoder starts from: `random`; `mimetic`, which
            imitates the attention of trained ViTs (`dafast.training.initialization`); or a
            pre-trained DINOv2 as the paper has it, `dinov2` from the hub or a file
            (`dafast.models.checkpoint.load_encoder`, which also takes the encoder of a Depth
            Anything). `--encoder-init` is short for it.
        freeze_encoder: Whether the encoder stays as it starts and the decoder alone learns.
    """

    preset: str = "vitl"
    init: str = ""
    encoder_init: str = "random"
    freeze_encoder: bool = False


@dataclass(frozen=True)
class DataSection:
    """Where the data is and how it is read.

    Attributes:
        path: Folder, glob pattern or file of training shards. Or a list of pictures with their
            depth or disparity (.csv, .json, .jsonl; `dafast.data.lists` has the
            columns), which is packed into `data/` of the run first.
        eval_path: The same for held-out pictures; "" evaluates nothing.
        hold_out: Share of the list in `path` that is held out, in the place of `eval_path`.
        eval_samples: How many of the held-out samples are used, evenly spread; 0 takes all.
        eval_max_depth: Held-out pixels farther than this many metres do not count.
        shapes: Output shapes [height, width]; each batch has one of them, drawn by (seed, step).
        workers: Loader processes per rank; 0 reads in the training process.
        prefetch: Batches each worker keeps ready.
        max_bad_fraction: Share of unreadable samples that is put up with.
        sky: What masks of sky beside the training shards do (`dafast data sky`): `missing` gives
            disparity 0, the farthest, to sky without a label, `all` to sky with one too, `off`
            leaves them aside.
    """

    path: str = "data/train"
    eval_path: str = ""
    hold_out: float = 0.0
    eval_samples: int = 100
    eval_max_depth: float = 80.0
    shapes: tuple[tuple[int, int], ...] = ((518, 518),)
    workers: int = 1
    prefetch: int = 3
    max_bad_fraction: float = 0.01
    sky: Literal["missing", "all", "off"] = "missing"


@dataclass(frozen=True)
class UnlabeledSection:
    """What a student learns from beside labeled images (stage 2 of the paper).

    Attributes:
        path: Folder, glob pattern or file of shards; "" trains on labeled images alone.
        ratio: Unlabeled images for each labeled one.
        teacher: The model that labels them in the loop (whatever `DepthAnything.from_pretrained`
            takes); "" reads the labels from the shards (`dafast label` writes them).
        cutmix: Probability that an image is covered in part by the next one of the batch.
        cutmix_area: Range of the covered share.
        cutmix_aspect: Least aspect of the covered box, down to which it is flat or narrow.
        align: The frozen encoder that the student's features stay near: `start`, the encoder that
            the student starts from; whatever `model.encoder_init` takes; "" aligns nothing.
        align_margin: The paper's alpha: tokens with a larger cosine similarity are left alone.
        align_reduction: Divide by `all` tokens, as Eq. 9 is written, or by the `kept` ones.
        align_view: The frozen encoder sees what the `student` sees, or the `clean` images, mixed
            alike.
        augment: Its geometry makes the crop that teacher and student share, its colours disturb
            what the student sees.
    """

    path: str = ""
    ratio: int = 2
    teacher: str = ""
    cutmix: float = 0.5
    cutmix_area: tuple[float, float] = (0.02, 0.4)
    cutmix_aspect: float = 0.3
    align: str = ""
    align_margin: float = 0.85
    align_reduction: Literal["all", "kept"] = "all"
    align_view: Literal["student", "clean"] = "student"
    augment: AugmentConfig = STRONG


@dataclass(frozen=True)
class MetricSection:
    """Depth in metres in place of relative disparity; docs/metric.md. Shards must be in metres.

    Attributes:
        max_depth: Largest depth in metres of the model, and of the labels that count; 0 trains
            relative disparity.
        min_depth: Labels nearer than this many metres do not count.
        head: What gives the metres: ZoeDepth's bins, `softplus` (unbounded) or `normed` (within the
            range); `sigmoid`, as Depth Anything V2 has it.
        beta: Share of the error of the overall scale in the loss (SILog).
        flip: Whether the evaluation averages over a picture and its mirror image.
    """

    max_depth: float = 0.0
    min_depth: float = 1e-3
    head: Literal["softplus", "normed", "sigmoid"] = "softplus"
    beta: float = 0.15
    flip: bool = True


@dataclass(frozen=True)
class SegmentationSection:
    """What a segmentation model learns from, in place of depth.

    Attributes:
        data: What `data.path` and `data.eval_path` are: `cityscapes` or `ade20k` (the data set's
            folder; training and validation splits are told apart), `list` (a list of photos with
            class maps), `synthetic` (shards of `dafast synth`); "" learns depth.
        head: `linear`, over the last block; `linear4`, over the four that the depth decoder reads;
            `dpt`, the depth decoder's layers with another output.
    """

    data: Literal["", "cityscapes", "ade20k", "list", "synthetic"] = ""
    head: Literal["linear", "linear4", "dpt"] = "linear"


@dataclass(frozen=True)
class OptimSection:
    """AdamW and its schedule. The defaults are the paper's where it gives a number.

    Attributes:
        encoder_lr: Peak learning rate of the encoder (`pretrained.*`).
        layer_decay: Factor on the encoder's learning rate from each block to the one before it: the
            last block has `encoder_lr`, the first of n has layer_decay^(n - 1) of it, the
            embeddings layer_decay^n; 1 gives all the same.
        decoder_lr: Peak learning rate of the decoder (`depth_head.*`).
        weight_decay: For matrices and kernels; biases, norms and embeddings have none.
        betas: AdamW's.
        warmup_steps: Steps of linear warm-up.
        schedule: After the warm-up: `linear` falls to 0 at the last step, `cosine` likewise on a
            cosine, `constant` stays.
        grad_clip: Largest gradient norm; 0 does not clip.
        muon: Whether Muon instead of AdamW updates the matrices of the encoder's blocks, at
            `encoder_lr`; not the paper's, for an encoder that starts from noise.
    """

    encoder_lr: float = 5e-6
    layer_decay: float = 1.0
    decoder_lr: float = 5e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    grad_clip: float = 1.0
    muon: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        model: See `ModelSection`.
        data: See `DataSection`.
        augment: Of labeled images; see `dafast.data.transforms.AugmentConfig`.
        unlabeled: See `UnlabeledSection`.
        metric: See `MetricSection`.
        segmentation: See `SegmentationSection`.
        optim: See `OptimSection`.
        out: Run directory: `metrics.jsonl`, `config.json`, `checkpoints/`, `export/`.
        resume: `auto` goes on from the newest whole checkpoint in `out`, a path from that one,
            `none` starts anew (and refuses a run directory that has checkpoints).
        steps: Length of the run in steps; 0 means that `epochs` says it.
        epochs: Length of the run in passes over the unlabeled images, where there are none over
            the labeled ones; used when `steps` is 0.
        max_minutes: Stop, with a checkpoint, after this much wall time; 0 does not.
        batch_size: Labeled images in a step, over all ranks.
        seed: Seed of the weights, the data order and the augmentation.
        precision: `auto` is bfloat16 autocast where the hardware has it, else float32.
        channels_last: Keep images and feature maps channels-last in memory.
        compile: Run the model through torch.compile.
        parallel: What several processes share: `ddp` has the whole model in each, `fsdp` a part of
            it (FSDP2), for models that are large for one device. Checkpoints are the same.
        accumulate: Pieces that each process's share of a step goes through the network in, one
            after the other; the step is that of `batch_size` all the same. Metric training predicts
            each piece twice for that; BatchNorm of segmentation heads normalises by the piece.
        activation_checkpointing: Compute the encoder's blocks a second time in the backward pass
            instead of keeping their activations.
        losses: `auto` takes the fastest implementation of the losses, `reference` the plain one.
        gradient_matching: Weight of MiDaS's multi-scale gradient-matching term beside the
            affine-invariant loss, of labeled and unlabeled images (MiDaS has 0.5); 0 leaves it
            out, as Depth Anything V1 does.
        threads: PyTorch threads; 0 leaves the default.
        ema: Decay of a moving average of the weights, which is then what is evaluated and exported;
            0 keeps none.
        checkpoint_every: Steps between checkpoints; 0 saves at the end only.
        keep: How many checkpoints are kept.
        export_float16: Write the exported weights in half precision.
        log_every: Steps between progress lines where the output is not a terminal.
        eval_every: Steps between evaluations; 0 evaluates at the end only.
        best_by: Number of the evaluation whose best model is kept in `best/`: `abs_rel` or `loss`,
            the smaller the better, or `miou` of segmentation, the larger the better; the loss where
            an evaluation has no such number.
        max_bad_steps: Stop after more than this many steps in a row without a finite gradient.
    """

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    unlabeled: UnlabeledSection = field(default_factory=UnlabeledSection)
    metric: MetricSection = field(default_factory=MetricSection)
    segmentation: SegmentationSection = field(default_factory=SegmentationSection)
    optim: OptimSection = field(default_factory=OptimSection)
    out: str = "runs/default"
    resume: str = "auto"
    steps: int = 0
    epochs: float = 20.0
    max_minutes: float = 0.0
    batch_size: int = 64
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    accumulate: int = 1
    activation_checkpointing: bool = False
    losses: Literal["auto", "reference"] = "auto"
    gradient_matching: float = 0.0
    threads: int = 0
    ema: float = 0.0
    checkpoint_every: int = 1000
    keep: int = 3
    export_float16: bool = False
    log_every: int = 20
    eval_every: int = 1000
    best_by: Literal["abs_rel", "loss", "miou"] = "abs_rel"
    max_bad_steps: int = 20


def parse_args(argv: Sequence[str] | None = None) -> TrainConfig:
    """Reads `--config FILE` and then every other option through tyro, which wins over the file."""
    import tyro

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    early.add_argument("--encoder-init")
    known, rest = early.parse_known_args(argv)
    if known.encoder_init is not None:
        rest.append(f"--model.encoder-init={known.encoder_init}")
    default = load_toml(known.config) if known.config else TrainConfig()
    config = tyro.cli(
        TrainConfig,
        default=default,
        args=rest,
        prog="train.py",
        description="Train Depth Anything on labeled shards, and a student on unlabeled ones too. "
        "--config FILE reads a TOML file; every option below then overrides it.",
    )
    check(config)
    return config


def load_toml(path: str | Path) -> TrainConfig:
    """Reads a TOML file; an unknown key or a wrong type is a `ConfigError`.

    A file may start from another: `extends = "other.toml"`, a path relative to its own folder.
    """
    return from_mapping(TrainConfig, _read_toml(Path(path), ()), str(path))


def _read_toml(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file, over those of the file that it extends."""
    if path.resolve() in below:
        raise ConfigError(f"{path} extends itself, through {below[-1]}")
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror or error}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends must be the path of a file, not {base!r}")
    return _merge(_read_toml(path.parent / base, (*below, path.resolve())), values)


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` over `base`, table by table."""
    merged = dict(base)
    for key, value in values.items():
        both_tables = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both_tables else value
    return merged


def from_mapping(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Builds a dataclass from nested mappings, strictly."""
    hints = typing.get_type_hints(cls)
    unknown = [prefix + key for key in values if key not in hints]
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {', '.join(unknown)}. "
            f"{'[' + prefix[:-1] + ']' if prefix else 'The top level'} knows: {', '.join(hints)}"
        )
    return cls(
        **{key: _convert(hints[key], value, where, prefix + key) for key, value in values.items()}
    )


def _convert(kind: Any, value: Any, where: str, key: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {key} must be a table, not {value!r}")
        return from_mapping(kind, value, where, key + ".")
    if origin is Literal:
        if value not in typing.get_args(kind):
            choices = ", ".join(map(repr, typing.get_args(kind)))
            raise ConfigError(f"{where}: {key} must be one of {choices}, not {value!r}")
        return value
    if origin is tuple:
        items = typing.get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: {key} must be an array, not {value!r}")
        if items[-1] is Ellipsis:
            items = items[:1] * len(value)
        if len(items) != len(value):
            raise ConfigError(f"{where}: {key} must have {len(items)} entries, not {len(value)}")
        return tuple(
            _convert(item, entry, where, f"{key}[{i}]")
            for i, (item, entry) in enumerate(zip(items, value, strict=True))
        )
    assert not isinstance(origin, types.UnionType), "a configuration has no union types"
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # not isinstance: True is no number of steps
        raise ConfigError(f"{where}: {key} must be {kind.__name__}, not {value!r}")
    return value


_NOT_NEGATIVE = (
    *("steps", "epochs", "max_minutes", "seed", "threads", "checkpoint_every", "eval_every"),
    *("max_bad_steps", "data.eval_samples", "data.workers", "optim.encoder_lr", "optim.decoder_lr"),
    *("optim.weight_decay", "optim.warmup_steps", "optim.grad_clip", "gradient_matching"),
    *("metric.max_depth", "metric.min_depth"),
)
_SHARES = ("data.max_bad_fraction", "unlabeled.cutmix", "metric.beta")


def image_size(config: TrainConfig) -> int:
    """The shorter side at which `infer` is to show pictures to what a run trains: that of the
    largest that it is trained on."""
    return max(min(shape) for shape in config.data.shapes)


def check(config: TrainConfig) -> None:
    """Raises a `ConfigError` for values that cannot work, before anything is loaded."""

    def need(ok: bool, message: str) -> None:
        if not ok:
            raise ConfigError(message)

    need(
        config.model.preset in PRESETS,
        f"model.preset: no preset {config.model.preset!r}; there are: {', '.join(PRESETS)}",
    )
    preset = PRESETS[config.model.preset]
    metric = config.metric
    need(
        not preset.is_metric or metric.max_depth > 0,
        f"model.preset: {preset.name} is metric; this trains relative disparity, metres with "
        "metric.max_depth",
    )
    need(
        metric.max_depth <= 0 or metric.min_depth < metric.max_depth,
        f"metric.min_depth must be under metric.max_depth ({metric.max_depth})",
    )
    need(
        metric.max_depth == 0 or not config.unlabeled.path,
        "metric.max_depth and unlabeled.path exclude each other: a student learns disparity",
    )
    need(bool(config.data.shapes), "data.shapes: at least one shape is needed")
    for shape in config.data.shapes:
        need(
            all(side > 0 and side % preset.patch_size == 0 for side in shape),
            f"data.shapes: {list(shape)} is not made of positive multiples of {preset.patch_size}",
        )
    for key in _NOT_NEGATIVE:
        need(operator.attrgetter(key)(config) >= 0, f"{key} must not be negative")
    for key in _SHARES:
        need(0 <= operator.attrgetter(key)(config) <= 1, f"{key} must be in [0, 1]")
    need(config.seed < 2**63, "seed must be under 2**63")
    need(config.batch_size > 0, "batch_size must be positive")
    need(config.steps > 0 or config.epochs > 0, "steps or epochs must say how long to train")
    need(
        config.steps == 0 or config.optim.warmup_steps < config.steps,
        f"optim.warmup_steps must be under steps ({config.steps}), or the warm-up never ends",
    )
    need(all(0 <= beta < 1 for beta in config.optim.betas), "optim.betas must be in [0, 1)")
    need(0 <= config.ema < 1, "ema must be in [0, 1); 0 keeps no average")
    need(config.keep >= 1, "keep must be at least 1")
    need(config.accumulate >= 1, "accumulate must be at least 1")
    need(
        config.batch_size % config.accumulate == 0,
        f"accumulate must divide batch_size ({config.batch_size})",
    )
    need(0 < config.optim.layer_decay <= 1, "optim.layer_decay must be in (0, 1]")
    need(
        not (config.model.freeze_encoder and config.unlabeled.align),
        "model.freeze_encoder leaves no features to align: set unlabeled.align to an empty string",
    )
    need(
        not config.model.freeze_encoder
        or bool(config.model.init or config.segmentation.data)  # there a probe's baseline
        or config.model.encoder_init not in ("random", "mimetic"),
        "model.freeze_encoder would keep an encoder that has learned nothing: set model.init, or "
        "model.encoder_init to dinov2 or a file",
    )
    for key in ("compile", "optim.muon"):
        need(
            config.parallel == "ddp" or not operator.attrgetter(key)(config),
            f"{key} does not work with parallel = fsdp: use ddp, or leave it out",
        )
    need(config.log_every >= 1, "log_every must be at least 1")
    need(0 <= config.data.hold_out < 1, "data.hold_out must be in [0, 1)")
    need(
        not config.data.hold_out or (is_list(config.data.path) and not config.data.eval_path),
        "data.hold_out divides a list: data.path must name one (.csv, .json, .jsonl), and "
        "data.eval_path nothing",
    )
    need(config.data.eval_max_depth > 0, "data.eval_max_depth must be positive")
    need(config.data.prefetch >= 1, "data.prefetch must be at least 1")
    unlabeled = config.unlabeled
    need(unlabeled.ratio >= 1, "unlabeled.ratio must be at least 1")
    low, high = unlabeled.cutmix_area
    need(0 < low <= high <= 1, "unlabeled.cutmix_area must be a range within (0, 1]")
    need(0 < unlabeled.cutmix_aspect <= 1, "unlabeled.cutmix_aspect must be in (0, 1]")
    need(-1 <= unlabeled.align_margin <= 1, "unlabeled.align_margin is a cosine, in [-1, 1]")
    need(
        unlabeled.align != "start"
        or bool(config.model.init)
        or config.model.encoder_init not in ("random", "mimetic"),
        "unlabeled.align = start needs an encoder that has learned something to start from: set "
        "model.encoder_init (to dinov2, or a file)",
    )
    need(
        not (config.segmentation.data and unlabeled.path),
        "segmentation.data and unlabeled.path exclude each other: a student learns depth",
    )
    need(
        config.best_by != "miou" or bool(config.segmentation.data),
        "best_by = miou is of segmentation (segmentation.data): take abs_rel or loss",
    )
    task = "metric.max_depth" if metric.max_depth else "segmentation.data"
    if metric.max_depth or config.segmentation.data:
        need(
            not (metric.max_depth and config.segmentation.data),
            "metric.max_depth and segmentation.data exclude each other: a run learns one of them",
        )
        need(not config.gradient_matching, f"gradient_matching does not go with {task}")
    need(
        not (config.data.hold_out and config.segmentation.data),
        "data.hold_out does not divide lists of segmentation.data: name a second list in "
        "data.eval_path",
    )
    need(
        not metric.max_depth or len({min(shape) for shape in config.data.shapes}) == 1,
        "data.shapes: with metric.max_depth all need the same shorter side, for the size at which "
        "a scene is shown is part of what metres mean",
    )
    _check_augment("augment", config.augment, need)
    _check_augment("unlabeled.augment", unlabeled.augment, need)
    for name, used in (("augment", True), ("unlabeled.augment", bool(unlabeled.path))):
        changes = used and operator.attrgetter(name)(config).changes_colours
        why = why_no_module("kornia") if changes else ""
        need(
            not why,
            f"{name} changes colours, which takes kornia: pip install 'dafast[train]' ({why}); or "
            f"set jitter, grayscale, blur and noise of {name} to 0",
        )


def _check_augment(name: str, augment: AugmentConfig, need: Callable[[bool, str], None]) -> None:
    # Probabilities, and strengths that would turn a factor negative.
    for key in ("flip", "jitter", "brightness", "contrast", "saturation", "grayscale", "blur"):
        need(0 <= getattr(augment, key) <= 1, f"{name}.{key} must be in [0, 1]")
    need(0 <= augment.noise <= 1, f"{name}.noise must be in [0, 1]")
    for key in ("gamma", "noise_sigma"):
        need(getattr(augment, key) >= 0, f"{name}.{key} must not be negative")
    low, high = augment.area
    need(0 < low <= high <= 1, f"{name}.area must be a range within (0, 1]")
    need(augment.aspect_jitter >= 1, f"{name}.aspect_jitter must be at least 1")
    need(0 <= augment.rotate <= 180, f"{name}.rotate must be in [0, 180]")
    low, high = augment.blur_sigma
    need(0 <= low <= high, f"{name}.blur_sigma must be a range of numbers that are not negative")
    need(0 <= augment.hue <= 0.5, f"{name}.hue must be in [0, 0.5]")
