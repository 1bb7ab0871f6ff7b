"""The tasks of the ablation; each runs as a process of experiments/ablation_in_miniature.py.

    nano          the model in the package, without training; also labels the unlabeled pictures
    teacher-S     only labeled pictures, from nano's encoder; labels the unlabeled ones
    scratch-S     the same from a mimetic start, which shows the effect of the encoder
    ROW-S         a student, see `ROWS`

S is the seed. A task writes into its folder: `metrics.jsonl`, `export/`, and at its end
`result.json`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from ablation_batches import Batches
from torch import Tensor

from dafast.data.resident import ResidentSet, random_colours
from dafast.data.shards import ShardDataset
from dafast.devices import resolve_device, resolve_dtype
from dafast.evaluation.benchmarks import open_benchmark, score
from dafast.evaluation.samples import DataMissingError, EvaluationSample, Samples
from dafast.models.depth_anything import DepthAnything
from dafast.ops import use_backend
from dafast.training.config import TrainConfig
from dafast.training.config_files import load_toml
from dafast.training.data import Batch, UnlabeledBatch
from dafast.training.optimizers import Ema, build_optimizer, set_learning_rate
from dafast.training.starts import build_model
from dafast.training.task import Normalise, autocast
from dafast.training.tasks import task_of

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "configs/nano-ablation.toml"

ROWS = {
    "labeled": ("labeled-only", 1),
    "labeled-x3": ("labeled-only", 3),
    "naive": ("naive", 1),
    "cutmix": ("cutmix", 1),
    "alignment": ("alignment", 1),
    "naive-nano": ("naive", 1),
    "cutmix-nano": ("cutmix", 1),
    "alignment-nano": ("alignment", 1),
}
"""For each row the file in configs/ablation with its switches, and the factor of its labeled batch:
`labeled` sees as many labeled pictures as the rows with unlabeled ones, `labeled-x3` as many
pictures in all. A row that ends in `-nano` has labels of the `nano` in the package, which knows
more than the seed's teacher."""

HELD_OUT = ("held-out-labeled", "held-out-unlabeled", "held-out-unseen")
PHOTOS = ("motorcycle", "aloe")
MAX_DEPTH = 80.0
MEASURED = 10
"""Steps between measurements of the speed."""
ENDLESS = 10**6


@dataclass(frozen=True)
class Settings:
    """Settings that all tasks of a run share, in `settings-BACKEND.json` of its folder.

    Attributes:
        data: The folder that experiments/ablation_data.py wrote.
        work: The run's folder.
        device: For `resolve_device`.
        backend: Backend of dafast.ops: "auto", or "reference" if the fast ones failed.
        batch_size: Labeled pictures in a step; there are twice as many unlabeled ones.
        side: Side of the training crops, pixels.
        limit: Number of samples of each set that are used; 0 for all.
    """

    data: str
    work: str
    device: str = "auto"
    backend: str = "auto"
    batch_size: int = 24
    side: int = 168
    limit: int = 0


class StepsKnownError(Exception):
    """Ends a run that only measures the speed."""


class Task:
    """One process of a run.

    Args:
        settings: The settings of the run.
        name: Name of the task; see the docstring of this module.
        stop_at: Clock time at which training stops.
    """

    def __init__(self, settings: Settings, name: str, stop_at: float) -> None:
        self.settings, self.name, self.stop_at = settings, name, stop_at
        self.work, self.data = Path(settings.work), Path(settings.data)
        self.folder = self.work / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = resolve_device(settings.device)
        self.dtype = resolve_dtype("auto", self.device)
        self.kind, _, seed = name.rpartition("-") if name[-1].isdigit() else (name, "", "0")
        self.seed = int(seed)

    # -------------------------------------------------------------------------------- plumbing

    def write(self, path: Path, value: Any) -> None:
        """Writes JSON; an interrupted run never leaves a partial file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(value, indent=1) + "\n")
        os.replace(temporary, path)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Appends a line to `metrics.jsonl`."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")

    def chosen(self, data: ShardDataset) -> list[int]:
        """Indices of the samples that are used: all, or `limit` of them, evenly spaced."""
        count = min(self.settings.limit or len(data), len(data))
        return np.linspace(0, len(data) - 1, count).round().astype(int).tolist()

    def resident(self, name: str, labels: Literal["minmax", "none"]) -> ResidentSet:
        """A set of the data folder, on the device."""
        data = ShardDataset(self.data / name, labels=labels)
        return ResidentSet(data, self.device, indices=self.chosen(data))

    def run(self) -> None:
        """Runs the task and writes `result.json`."""
        began = time.time()
        if self.kind == "nano":
            model = self.load("nano")
            self.write_labels(model, self.resident("unlabeled", "none"))
            result = {"scores": self.evaluate(model)}
        else:
            result = self.network()
        seconds = time.time() - began
        self.write(self.folder / "result.json", {"task": self.name, "seconds": seconds, **result})

    def load(self, name: str) -> DepthAnything:
        """A trained model."""
        return DepthAnything.from_pretrained(name, device=self.device, dtype="float32").eval()

    # ---------------------------------------------------------------------------------- training

    def config(self) -> TrainConfig:
        """The configuration of the task: the base with the switches of its row."""
        settings = self.settings
        # A student must not repeat its teacher's run.
        seed = self.seed + (1000 if self.kind in ("teacher", "scratch") else 0)
        config = dataclasses.replace(load_toml(BASE), seed=seed)
        file, times = ROWS.get(self.kind, ("labeled-only", 1))
        with open(ROOT / f"configs/ablation/{file}.toml", "rb") as opened:
            section = tomllib.load(opened).get("unlabeled", {})
        augment = dataclasses.replace(config.unlabeled.augment, **section.pop("augment", {}))
        optim, start = config.optim, config.model.encoder_init
        if self.kind == "scratch":  # an untrained encoder: it learns as fast as the decoder
            optim, start = dataclasses.replace(optim, encoder_lr=optim.decoder_lr / 2), "mimetic"
        return dataclasses.replace(
            config,
            batch_size=settings.batch_size * times,
            optim=optim,
            model=dataclasses.replace(config.model, encoder_init=start),
            data=dataclasses.replace(config.data, shapes=((settings.side, settings.side),)),
            unlabeled=dataclasses.replace(config.unlabeled, **section, augment=augment),
        )

    def network(self) -> dict[str, Any]:
        """Trains a teacher or a student and scores it; a teacher also labels."""
        done = self.folder / "trained.json"
        if not done.exists():
            self.write(done, self.trained())
        # The exported model is scored.
        model, result = self.load(str(self.folder / "export")), json.loads(done.read_text())
        return {**result, "scores": self.evaluate(model, result)}

    def trained(self) -> dict[str, Any]:
        """Trains, exports and labels; returns the facts of the run."""
        config = self.config()
        labeled = self.resident("labeled", "minmax")
        unlabeled = None
        if config.unlabeled.path or self.kind == "teacher":
            unlabeled = self.resident("unlabeled", "none")
        if config.unlabeled.path and unlabeled is not None:
            teacher = "nano" if self.kind.endswith("-nano") else f"teacher-{self.seed}"
            labels = np.load(self.work / teacher / "labels.npy")
            unlabeled.disparity = torch.from_numpy(labels).to(self.device)
            unlabeled.mask = torch.ones_like(unlabeled.disparity, dtype=torch.bool)
        batches = Batches(config, labeled, unlabeled if config.unlabeled.path else None)
        steps = self.agree_on_steps(config, batches)
        began = time.time()
        model, done = self.train(config, batches, steps, self.stop_at, self.log)
        seconds = time.time() - began
        # Evaluation shows pictures as large as training did.
        model.config = dataclasses.replace(model.config, image_size=self.settings.side)
        model.save_pretrained(self.folder / "export", dtype=torch.float16)
        if self.kind == "teacher" and unlabeled is not None:
            self.write_labels(model, unlabeled)
        return {
            "steps": done,
            "complete": done == steps,
            "training_seconds": seconds,
            "pictures_per_second": done * batches.pictures / max(seconds, 1e-9),
        }

    def train(
        self,
        config: TrainConfig,
        batches: Callable[[int], Batch],
        steps: int,
        stop_at: float,
        log: Callable[[int, dict[str, float]], None],
    ) -> tuple[DepthAnything, int]:
        """The training loop without resume; returns the averaged model and the steps."""
        torch.manual_seed(config.seed)
        model = build_model(config.model, self.device, config.channels_last)
        optimizer = build_optimizer(model, config.optim)
        ema = Ema(model, config.ema)
        step_losses = task_of(config).step(model, model, config, self.dtype)
        warm_up = min(config.optim.warmup_steps, steps // 10)
        optim = dataclasses.replace(config.optim, warmup_steps=warm_up)
        skipped, step = 0, 0
        for step in range(steps):
            if time.time() > stop_at:
                break
            set_learning_rate(optimizer, optim, step, steps)
            parts = step_losses(batches(step))
            parts["loss"].backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
            if np.isfinite(float(norm)):
                torch.nn.utils.clip_grads_with_norm_(
                    model.parameters(), optim.grad_clip, norm, foreach=True
                )
                optimizer.step()
                ema.update(step)
            else:
                skipped += 1
            optimizer.zero_grad(set_to_none=True)
            if step % 20 == 0 or step + 1 == steps:
                values = {k: float(v.detach()) for k, v in parts.items()}
                log(step, {**values, "grad_norm": float(norm), "skipped": skipped})
        else:
            step = steps
        return ema.model, step

    def agree_on_steps(self, config: TrainConfig, batches: Batches) -> int:
        """The steps that all tasks of a stage take.

        Until `STAGE.steps.json` exists, the task runs a training that it discards, at the same time
        as the others, and writes its speed.
        """
        stage = "teachers" if self.kind in ("teacher", "scratch") else "students"
        word = self.work / f"{stage}.steps.json"
        began = time.time()

        def timed(step: int) -> Batch:
            """Batches of the discarded run; ends it when the steps are known."""
            nonlocal began
            if step and step % MEASURED == 0:
                speed = (time.time() - began) / MEASURED
                self.write(self.folder / "speed.json", {"seconds_per_step": speed})
                began = time.time()
            if word.exists():
                raise StepsKnownError
            return batches(step)

        if not word.exists():
            with suppress(StepsKnownError):
                self.train(config, timed, ENDLESS, self.stop_at, lambda *_: None)
        if not word.exists():
            raise SystemExit(f"{self.name}: {word} is missing, so the number of steps is unknown")
        return int(json.loads(word.read_text())["steps"])

    def write_labels(self, teacher: DepthAnything, unlabeled: ResidentSet) -> None:
        """Writes the teacher's labels of all unlabeled pictures to the task's folder."""
        with open(self.folder / "labels.part", "wb") as file:
            np.save(file, self.label(teacher, unlabeled.image))
        os.replace(self.folder / "labels.part", self.folder / "labels.npy")

    @torch.no_grad()
    def label(self, teacher: DepthAnything, images: Tensor, batch: int = 64) -> np.ndarray:
        """The teacher's disparity of whole pictures, in [0, 1]: float32 (N, H, W)."""
        height, width = images.shape[-2:]
        patch, side = teacher.config.patch_size, teacher.config.image_size
        scale = side / min(height, width)
        shape = [max(patch, round(n * scale / patch) * patch) for n in (height, width)]
        normalise = Normalise(teacher.config.mean, teacher.config.std).to(self.device)
        labels = []
        for part in images.split(batch):
            resized = F.interpolate(part.float(), size=shape, mode="bilinear", antialias=True)
            with autocast(self.device, self.dtype):
                disparity = teacher(normalise(resized)).float()
            disparity = F.interpolate(disparity[:, None], size=(height, width), mode="bilinear")
            low, high = disparity.amin((1, 2, 3), True), disparity.amax((1, 2, 3), True)
            labels.append(((disparity - low) / (high - low).clamp(min=1e-6))[:, 0].cpu().numpy())
        return np.concatenate(labels)

    # -------------------------------------------------------------------------------- evaluation

    def evaluate(
        self, model: DepthAnything, result: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Scores by data set and predictor; missing data sets are named and skipped.

        `partial.json` has the result so far and the scores as they come.
        """
        model.eval()
        scores: dict[str, Any] = {}
        os.environ.setdefault("DAFAST_OPENCV_SAMPLES", str(self.data / "aloe"))
        for name in (*PHOTOS, *HELD_OUT):
            try:
                samples = open_benchmark(name) if name in PHOTOS else self.held_out(name)
                results, _ = score(model, samples, name)
            except (DataMissingError, ValueError) as error:
                print(f"{name} is skipped: {error}", file=sys.stderr)
                continue
            scores[name] = {
                "model" if i == 0 else r.predictor: {"count": r.count, **r.metrics}
                for i, r in enumerate(results)
            }
            partial = {"task": self.name, **(result or {}), "scores": scores}
            self.write(self.folder / "partial.json", partial)
        return scores

    def held_out(self, name: str) -> Samples:
        """Held-out scenes with their depth."""
        data = ShardDataset(self.data / name, labels="physical")

        def load(index: int) -> EvaluationSample:
            sample = data.read(index)
            with np.errstate(divide="ignore"):
                depth = 1.0 / sample.disparity
            return EvaluationSample(sample.key, sample.image, depth, MAX_DEPTH, sharp=True)

        return Samples(self.chosen(data), load)


def check_backends(settings: Settings) -> dict[str, Any]:
    """Compares the losses and gradients of the fast ops with the reference on this device.

    It runs forward and backward of a student's step with all its parts on random pictures. In
    float32 both must agree; in lower precision the error of the fast ops against the float32
    reference may be twice that of the reference in that precision.

    Returns:
        `ok`, and the compared values.
    """
    device = resolve_device(settings.device)
    dtype = resolve_dtype("auto", device)
    base = load_toml(BASE)
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, init="nano", encoder_init="random"),
        batch_size=4,
    )
    torch.manual_seed(0)
    model = build_model(config.model, device, config.channels_last)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    noise = {k: 0.05 * torch.randn_like(v) for k, v in model.pretrained.named_parameters()}
    side = settings.side
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        coarse = torch.rand(*shape[:-2], 6, 6, generator=generator).reshape(-1, 1, 6, 6)
        smooth = F.interpolate(coarse, size=shape[-2:], mode="bilinear").reshape(shape)
        return (smooth + 0.05 * torch.rand(shape, generator=generator)).to(device)

    every = torch.ones(8, side, side, dtype=torch.bool, device=device)
    region = every.clone()
    region[::2, 10:60, 20:90] = False
    images, colours = zip(
        *((255 * random(n, 3, side, side), random_colours(n, generator)) for n in (4, 8)),
        strict=True,
    )
    batch = Batch(
        *(images[0], colours[0], random(4, side, side), every[:4], [], []),
        UnlabeledBatch(images[1], colours[1], random(8, side, side), every, region),
    )
    found = {}
    for precision in {torch.float32, dtype}:
        # The frozen encoder is a copy of the model at this point; then the model changes.
        model.load_state_dict(start)
        step = task_of(config).step(model, model, config, precision)
        with torch.no_grad():
            for name, parameter in model.pretrained.named_parameters():
                parameter.add_(noise[name])
        for backend in ("fast", "reference"):
            forced = use_backend("reference") if backend == "reference" else nullcontext()
            model.zero_grad(set_to_none=True)
            with forced:
                parts = step(batch)
                parts["loss"].backward()
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            found[backend, precision] = (
                {k: float(v.detach()) for k, v in parts.items()},
                torch.cat(gradients).double(),
            )
    truth_losses, truth = found["reference", torch.float32]
    errors = {
        f"{backend} {str(precision).removeprefix('torch.')}": {
            "loss": max(abs(losses[k] - truth_losses[k]) for k in truth_losses),
            "gradient": float((gradient - truth).norm() / truth.norm()),
        }
        for (backend, precision), (losses, gradient) in found.items()
    }
    low = str(dtype).removeprefix("torch.")
    ok = errors["fast float32"]["gradient"] < 0.05 and errors["fast float32"]["loss"] < 1e-3
    for key in ("loss", "gradient"):
        bound = 2 * errors[f"reference {low}"][key] + 0.01
        ok = ok and errors[f"fast {low}"][key] < bound
    # Evaluation runs in float32, on photos of several sizes.
    model.load_state_dict(start)
    model.eval()
    photos = [255 * random(3, *size).cpu() for size in ((160, 208), (180, 168), (160, 208))]
    arrays = [p.clamp(0, 255).byte().permute(1, 2, 0).numpy() for p in photos]
    ours = model.infer(arrays)
    with use_backend("reference"):
        theirs = model.infer(arrays)
    worst = max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True)
    )
    ok = ok and worst < 0.01
    return {"ok": bool(ok), "losses": truth_losses, "errors": errors, "infer": worst}


def main(settings_file: str, name: str, stop_at: float) -> None:
    """Runs one task."""
    settings = Settings(**json.loads(Path(settings_file).read_text()))
    torch.set_num_threads(1)
    slow = settings.backend == "reference"
    with use_backend("reference") if slow else nullcontext():
        if name == "check":
            print(json.dumps(check_backends(settings)))
        else:
            Task(settings, name, stop_at).run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
