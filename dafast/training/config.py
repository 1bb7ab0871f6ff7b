"""Typed configuration of a training run: a dataclass for each section, with its checks.

`dafast.training.config_files` reads it from TOML, `dafast.training.command` from the command line.
Each section's `problems` checks it before anything is loaded; the task of a run
(`dafast.training.tasks`) checks the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from dafast.config import PRESETS
from dafast.data.tars import is_list
from dafast.data.transforms import STRONG, AugmentConfig
from dafast.optional import why_no_module

LEARNED_NOTHING = ("random", "mimetic")
"""Values of `model.encoder_init` that are not a trained encoder."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


def _negative(section: Any, prefix: str, *keys: str) -> Iterator[str]:
    """Returns the keys with negative or NaN values."""
    return (f"{prefix}{key} must not be negative" for key in keys if not getattr(section, key) >= 0)


def _no_fraction(section: Any, prefix: str, *keys: str) -> Iterator[str]:
    """Returns the keys with values outside of [0, 1]."""
    outside = (key for key in keys if not 0 <= getattr(section, key) <= 1)
    return (f"{prefix}{key} must be in [0, 1]" for key in outside)


@dataclass(frozen=True)
class ModelSection:
    """The model, and the weights that its training starts from.

    Attributes:
        preset: Name of a preset (`nano`, `vits`, `vitb`, `vitl`, ...).
        init: Checkpoint to start from: anything `DepthAnything.from_pretrained` takes, and for
            segmentation a segmentation model too. Bare weights are read as the preset describes
            them. "" starts from random weights. It starts a new run; `resume` continues an old one.
        encoder_init: Without `init`, what the encoder starts from: `random`; `mimetic`, which
            imitates the attention of trained ViTs (`dafast.training.starts`); or a pre-trained
            DINOv2 as in the paper, `dinov2` from the hub or a file
            (`dafast.models.checkpoint.load_encoder`, which also takes the encoder of a Depth
            Anything). `--encoder-init` is short for it.
        freeze_encoder: Whether the encoder stays as it starts and only the decoder learns.
    """

    preset: str = "vitl"
    init: str = ""
    encoder_init: str = "random"
    freeze_encoder: bool = False

    def problems(self) -> Iterator[str]:
        """Yields a message for each invalid setting of this section."""
        if self.preset not in PRESETS:
            yield f"model.preset: no preset {self.preset!r}; there are: {', '.join(PRESETS)}"
        if self.init and self.encoder_init != "random":
            yield "model.init brings an encoder: leave it empty, or model.encoder_init at 'random'"


@dataclass(frozen=True)
class DataSection:
    """The training data, and options for reading it.

    Attributes:
        path: Folder, glob pattern or file of training shards. Or a list of pictures with their
            depth or disparity (.csv, .txt, .json, .jsonl; `dafast.data.lists` has the
            columns), which is packed into `data/` of the run first.
        eval_path: The same for held-out pictures; "" evaluates nothing.
        hold_out: Fraction of the list in `path` that is held out, instead of `eval_path`.
        eval_samples: How many of the held-out samples are used, evenly spread; 0 takes all.
        eval_max_depth: Held-out pixels farther than this many metres do not count.
        shapes: Output shapes [height, width]; each batch has one of them, drawn by (seed, step).
        workers: Loader processes per rank; 0 reads in the training process.
        prefetch: Batches each worker keeps ready.
        max_bad_fraction: Largest tolerated fraction of unreadable samples.
        sky: What sky masks next to the training shards do (`dafast data sky`): `missing` gives
            disparity 0, the farthest, to sky without a label, `all` also to sky with a label,
            `off` ignores them.
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

    @property
    def image_size(self) -> int:
        """The shorter side at which `infer` shows pictures to the trained model: that of the
        largest training shape."""
        return max(min(shape) for shape in self.shapes)

    def problems(self) -> Iterator[str]:
        """Yields a message for each invalid setting of this section."""
        if not self.shapes:
            yield "data.shapes: at least one shape is needed"
        yield from _negative(self, "data.", "eval_samples", "workers")
        yield from _no_fraction(self, "data.", "max_bad_fraction")
        if not 0 <= self.hold_out < 1:
            yield "data.hold_out must be in [0, 1)"
        elif self.hold_out and (not is_list(self.path) or self.eval_path):
            yield (
                "data.hold_out divides a list: data.path must name one (.csv, .txt, .json, "
                ".jsonl), and data.eval_path must be empty; for shards set --data.hold-out 0, and "
                "--data.eval-path to held-out ones"
            )
        if not self.eval_max_depth > 0:
            yield "data.eval_max_depth must be positive"
        if self.prefetch < 1:
            yield "data.prefetch must be at least 1"


@dataclass(frozen=True)
class UnlabeledSection:
    """Unlabeled images, from which a student learns in addition (stage 2 of the paper).

    Attributes:
        path: Folder, glob pattern or file of shards; "" trains on labeled images only.
        ratio: Unlabeled images for each labeled one.
        teacher: The model that labels them in the loop (anything `DepthAnything.from_pretrained`
            takes); "" reads the labels from the shards (`dafast label` writes them).
        cutmix: Probability that a box of an image is covered by the next image of the batch.
        cutmix_area: Range of the covered fraction.
        cutmix_aspect: Smallest aspect ratio of the covered box.
        align: The frozen encoder that the student's features stay near: `start`, the encoder that
            the student starts from; anything `model.encoder_init` takes; "" aligns nothing.
        align_margin: The paper's alpha: tokens with a larger cosine similarity are ignored.
        align_reduction: Divide by `all` tokens, as Eq. 9 is written, or by the `kept` ones.
        align_view: The frozen encoder sees what the `student` sees, or the `clean` images, mixed
            the same way.
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

    def problems(self) -> Iterator[str]:
        """Yields a message for each invalid setting of this section."""
        if self.ratio < 1:
            yield "unlabeled.ratio must be at least 1"
        yield from _no_fraction(self, "unlabeled.", "cutmix")
        low, high = self.cutmix_area
        if not 0 < low <= high <= 1:
            yield "unlabeled.cutmix_area must be a range within (0, 1]"
        if not 0 < self.cutmix_aspect <= 1:
            yield "unlabeled.cutmix_aspect must be in (0, 1]"
        if not -1 <= self.align_margin <= 1:
            yield "unlabeled.align_margin is a cosine, in [-1, 1]"
        yield from augment_problems(self.augment, "unlabeled.augment", used=bool(self.path))


@dataclass(frozen=True)
class MetricSection:
    """Depth in metres instead of relative disparity; docs/metric.md. Shards must be in metres.

    Attributes:
        max_depth: Largest depth in metres of the model, and of the labels that count; 0 trains
            relative disparity.
        min_depth: Labels nearer than this many metres do not count.
        head: Output layer: ZoeDepth's bins, `softplus` (unbounded) or `normed` (within the
            range); `sigmoid`, as in Depth Anything V2.
        beta: Weight of the error of the overall scale in the loss (SILog).
        flip: Whether the evaluation averages over a picture and its mirror image.
    """

    max_depth: float = 0.0
    min_depth: float = 1e-3
    head: Literal["softplus", "normed", "sigmoid"] = "softplus"
    beta: float = 0.15
    flip: bool = True

    def problems(self) -> Iterator[str]:
        """Yields a message for each invalid setting of this section."""
        yield from _negative(self, "metric.", "max_depth", "min_depth")
        yield from _no_fraction(self, "metric.", "beta")


@dataclass(frozen=True)
class SegmentationSection:
    """Class maps, from which a segmentation model learns instead of depth.

    Attributes:
        data: What `data.path` and `data.eval_path` are: `cityscapes` or `ade20k` (the data set's
            folder; training and validation splits are found in it), `list` (a list of photos with
            class maps), `synthetic` (shards of `dafast synth`); "" learns depth.
        head: `linear`, over the last block; `linear4`, over the four that the depth decoder reads;
            `dpt`, the depth decoder's layers with another output.
    """

    data: Literal["", "cityscapes", "ade20k", "list", "synthetic"] = ""
    head: Literal["linear", "linear4", "dpt"] = "linear"


@dataclass(frozen=True)
class VideoSection:
    """Clips instead of single pictures, for a model with temporal modules; docs/video.md.

    `data.path` and `data.eval_path` are then folders of `dafast synth --clip`, and `batch_size`
    counts clips.

    Attributes:
        frames: Length of the clips that the network sees; 0 trains on pictures.
        temporal: Weight of the temporal gradient matching next to the losses of each frame, as
            published.
    """

    frames: int = 0
    temporal: float = 10.0

    def problems(self) -> Iterator[str]:
        """Yields a message for each invalid setting of this section."""
        yield from _negative(self, "video.", "frames", "temporal")


@dataclass(frozen=True)
class OptimSection:
    """AdamW and its schedule. The defaults are the paper's where it gives a number.

    Attributes:
        encoder_lr: Peak learning rate of the encoder (`pretrained.*`).
        layer_decay: Factor on the encoder's learning rate from each block to the one before it: the
            last block has `encoder_lr`, the first of n has layer_decay^(n - 1) of it, the
            embeddings layer_decay^n; 1 gives all blocks the same rate.
        decoder_lr: Peak learning rate of the decoder (`depth_head.*`).
        temporal_lr: Peak learning rate of the temporal modules in it; 0 takes `decoder_lr`.
        weight_decay: For matrices and kernels; biases, norms and embeddings have none.
        betas: AdamW's.
        warmup_steps: Steps of linear warm-up.
        schedule: After the warm-up: `linear` falls to 0 at the last step, `cosine` does so along a
            cosine, `constant` stays.
        grad_clip: Largest gradient norm; 0 does not clip.
        muon: Whether Muon instead of AdamW updates the matrices of the encoder's blocks, at
            `encoder_lr`; not the paper's, for an encoder that starts from noise.
    """

    encoder_lr: float = 5e-6
    layer_decay: float = 1.0
    decoder_lr: float = 5e-5
    temporal_lr: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    grad_clip: float = 1.0
    muon: bool = False

    def problems(self) -> Iterator[str]:
        """Yields a message for each invalid setting of this section."""
        keys = ("encoder_lr", "decoder_lr", "temporal_lr", "weight_decay", "warmup_steps")
        yield from _negative(self, "optim.", *keys, "grad_clip")
        if not all(0 <= beta < 1 for beta in self.betas):
            yield "optim.betas must be in [0, 1)"
        if not 0 < self.layer_decay <= 1:
            yield "optim.layer_decay must be in (0, 1]"


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        model: The model, and the weights that its training starts from.
        data: The training data, and options for reading it.
        augment: How labeled images are cropped and disturbed.
        unlabeled: What a student learns from in addition to labeled images.
        metric: Depth in metres instead of relative disparity.
        segmentation: What a segmentation model learns from, instead of depth.
        video: Clips instead of single pictures.
        optim: AdamW and its schedule.
        out: Run directory: `metrics.jsonl`, `config.json`, `checkpoints/`, `export/`.
        resume: `auto` continues from the newest whole checkpoint in `out`, a path from that one,
            `none` starts a new run (and refuses a run directory that has checkpoints).
        steps: Length of the run in steps; 0 means that `epochs` gives it.
        epochs: Length of the run in passes over the unlabeled images, or over the labeled ones
            where there are no unlabeled ones; used when `steps` is 0.
        max_minutes: Stop, with a checkpoint, after this much wall time; 0 does not.
        batch_size: Labeled images in a step, over all ranks.
        seed: Seed of the weights, the data order and the augmentation.
        precision: `auto` is bfloat16 autocast where the hardware has it, else float32.
        channels_last: Keep images and feature maps channels-last in memory.
        compile: Run the model through torch.compile.
        parallel: How several processes hold the model: `ddp` keeps all of it in each, `fsdp`
            (FSDP2) a part of it, for models that are too large for one device. Checkpoints are the
            same.
        accumulate: Number of pieces that each process's part of a step is divided into. They go
            through the network one after the other, which saves memory; the step is still that of
            `batch_size`. Metric training predicts each piece twice for that; BatchNorm of
            segmentation heads normalises by the piece.
        activation_checkpointing: Compute the encoder's blocks a second time in the backward pass
            instead of keeping their activations.
        losses: `auto` takes the fastest implementation of the losses, `reference` the plain one.
        gradient_matching: Weight of MiDaS's multi-scale gradient-matching term next to the
            affine-invariant loss, for labeled and unlabeled images (MiDaS: 0.5); 0 leaves it
            out, as Depth Anything V1 does.
        threads: PyTorch threads; 0 leaves the default.
        ema: Decay of a moving average of the weights, which is evaluated and exported instead of
            them; 0 keeps no average.
        checkpoint_every: Steps between checkpoints; 0 saves only at the end.
        keep: How many checkpoints are kept.
        export_float16: Write the exported weights in half precision.
        log_every: Steps between progress lines where the output is not a terminal.
        eval_every: Steps between evaluations; 0 evaluates only at the end.
        best_by: Score of the evaluation whose best model is kept in `best/`: `abs_rel` or `loss`,
            where smaller is better, or `miou` of segmentation, where larger is better; the loss
            where an evaluation has no such score.
        max_bad_steps: Stop after more than this many steps in a row without a finite gradient.
    """

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    unlabeled: UnlabeledSection = field(default_factory=UnlabeledSection)
    metric: MetricSection = field(default_factory=MetricSection)
    segmentation: SegmentationSection = field(default_factory=SegmentationSection)
    video: VideoSection = field(default_factory=VideoSection)
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

    def problems(self) -> Iterator[str]:
        """Yields a message for each invalid setting, and for settings that exclude each other."""
        sections = (self.model, self.data, self.unlabeled, self.metric, self.video, self.optim)
        for section in sections:
            yield from section.problems()
        yield from augment_problems(self.augment, "augment")
        keys = ("steps", "epochs", "max_minutes", "seed", "threads", "checkpoint_every")
        yield from _negative(self, "", *keys, "eval_every", "max_bad_steps", "gradient_matching")
        if self.seed >= 2**63:
            yield "seed must be under 2**63"
        for key in ("batch_size", "keep", "accumulate", "log_every"):
            if getattr(self, key) < 1:
                yield f"{key} must be at least 1"
        if self.accumulate >= 1 and self.batch_size % self.accumulate:
            yield f"accumulate must divide batch_size ({self.batch_size})"
        if not (self.steps > 0 or self.epochs > 0):
            yield "steps or epochs must say how long to train"
        if 0 < self.steps <= self.optim.warmup_steps:
            yield f"optim.warmup_steps must be under steps ({self.steps}): the warm-up has to end"
        if not 0 <= self.ema < 1:
            yield "ema must be in [0, 1); 0 keeps no average"
        yield from self._shape_problems()
        yield from self._encoder_problems()
        for key, used in (("compile", self.compile), ("optim.muon", self.optim.muon)):
            if used and self.parallel == "fsdp":
                yield f"{key} does not work with parallel = fsdp: use ddp, or leave it out"

    def _shape_problems(self) -> Iterator[str]:
        if self.model.preset in PRESETS:
            patch = PRESETS[self.model.preset].patch_size
            for shape in self.data.shapes:
                if not all(side > 0 and side % patch == 0 for side in shape):
                    yield f"data.shapes: {list(shape)} must hold positive multiples of {patch}"

    def _encoder_problems(self) -> Iterator[str]:
        learned = bool(self.model.init) or self.model.encoder_init not in LEARNED_NOTHING
        if self.model.freeze_encoder and self.unlabeled.align:
            yield (
                "model.freeze_encoder leaves no features to align: set unlabeled.align to an empty "
                "string"
            )
        if self.unlabeled.align == "start" and not learned:
            yield (
                "unlabeled.align = start needs a trained encoder to start from: set "
                "model.encoder_init (to dinov2, or a file)"
            )


def augment_problems(augment: AugmentConfig, name: str, used: bool = True) -> Iterator[str]:
    """Yields a message for each invalid setting of the augmentation `name`."""
    # Probabilities, and strengths that would turn a factor negative.
    keys = ("flip", "jitter", "brightness", "contrast", "saturation", "grayscale", "blur", "noise")
    yield from _no_fraction(augment, f"{name}.", *keys)
    yield from _negative(augment, f"{name}.", "gamma", "noise_sigma")
    low, high = augment.area
    if not 0 < low <= high <= 1:
        yield f"{name}.area must be a range within (0, 1]"
    if not augment.aspect_jitter >= 1:
        yield f"{name}.aspect_jitter must be at least 1"
    if not 0 <= augment.rotate <= 180:
        yield f"{name}.rotate must be in [0, 180]"
    low, high = augment.blur_sigma
    if not 0 <= low <= high:
        yield f"{name}.blur_sigma must be a range of numbers that are not negative"
    if not 0 <= augment.hue <= 0.5:
        yield f"{name}.hue must be in [0, 0.5]"
    why = why_no_module("kornia") if used and augment.changes_colours else ""
    if why:
        yield (
            f"{name} changes colours, which needs kornia: pip install 'dafast[train]' ({why}); or "
            f"set jitter, grayscale, blur and noise of {name} to 0"
        )
