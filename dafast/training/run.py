"""One training run: its parts, its steps, and the files that it writes."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from dafast.data.remote import write_text
from dafast.data.shards import ShardError
from dafast.devices import keep_freed_memory, resolve_dtype
from dafast.distributed import World
from dafast.training.config import ConfigError, TrainConfig
from dafast.training.config_files import to_json
from dafast.training.data import make_loader, total_steps
from dafast.training.optimizers import Ema, backward, build_optimizer, set_learning_rate
from dafast.training.parallel import WholeModel, gather, load_weights, replicate, shard, whole
from dafast.training.progress import RunLog, is_evaluated
from dafast.training.resume import (
    changed_data,
    changed_settings,
    data_state,
    find_checkpoint,
    is_finished,
    other_model,
    same_evaluation,
)
from dafast.training.state import (
    RunState,
    TrainingStateError,
    checkpoint_folder,
    list_checkpoints,
    random_state,
    save_checkpoint,
    set_aside,
    set_random_state,
)
from dafast.training.task import StepBatch, TrainedModel, autocast
from dafast.training.tasks import task_of
from dafast.training.unreadable import Unreadable

QUIET_STEPS = 10
"""This number of steps in a row with a gradient of exactly 0 gives a warning."""


class TooManyBadStepsError(RuntimeError):
    """Training no longer gives finite gradients."""


class StepResult(NamedTuple):
    """Result of a step.

    Attributes:
        values: To log, by name.
        stop: Whether any process asks to stop.
        unreadable: Samples that this process could not read, where any process had some.
    """

    values: dict[str, float]
    stop: bool
    unreadable: dict[str, list[str]] | None


class Run:
    """A training run in this process: data, model, optimizer, and how far it is.

    Args:
        config: What to train.
        world: The processes.

    Raises:
        ConfigError: If the configuration cannot be used.
        ShardError: If the data cannot be read.
    """

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.started = time.monotonic()
        self.world, self.out = world, Path(config.out)
        if config.threads:
            torch.set_num_threads(config.threads)
        if world.device.type == "cpu":
            keep_freed_memory()  # a step takes the same memory as the one before
        random.seed(config.seed)
        torch.manual_seed(config.seed)
        if config.batch_size % (world.size * config.accumulate):
            parts = f" x {config.accumulate} (accumulate)" if config.accumulate > 1 else ""
            raise ConfigError(
                f"batch_size {config.batch_size} does not divide by {world.size} processes{parts}"
            )
        self.task = task_of(config)
        self.config, self.data = self.task.data(config, world)
        self.score = None  # of a model on held-out data
        if self.config.data.eval_path and world.is_main:
            self.score = self.task.evaluation(self.config)
        has_unlabeled = self.data.unlabeled is not None
        self.unlabeled_batch = config.unlabeled.ratio * config.batch_size if has_unlabeled else 0
        self.images_per_step = config.batch_size + self.unlabeled_batch
        self.total = total_steps(self.config, self.data)
        self.unreadable = Unreadable(self.data, config.data.max_bad_fraction)
        self.state = RunState()
        self.bad_in_a_row = self.quiet_in_a_row = 0
        self.evaluated_step = -1
        self._build_model()

    def _build_model(self) -> None:
        config, world = self.config, self.world
        self.model: TrainedModel = self.task.model(config, self.data, world.device)
        self.model.pretrained.checkpoint_activations = config.activation_checkpointing
        self.ema = Ema(self.model, config.ema) if config.ema else None
        self.sharded = config.parallel == "fsdp" and world.size > 1
        averaged = self.ema.model if self.ema else self.model
        self.result = WholeModel(averaged, self.sharded, world)  # to evaluate and export
        self.dtype = resolve_dtype(config.precision, world.device)  # of autocast
        self.network: nn.Module = self.model
        if config.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        if not self.sharded:
            self.network = replicate(self.network, world)
        self.losses = self.task.step(self.network, self.model, config, self.dtype)
        if self.sharded:  # after everything that copies the model
            for part in (self.model, self.ema.model) if self.ema else (self.model,):
                shard(part, world)
        self.optimizer = build_optimizer(self.model, config.optim)

    # ---------------------------------------------------------------------------------- resume

    def resume(self) -> bool:
        """Continues from the checkpoint that `resume` points to, if there is one.

        Returns:
            Whether anything is left to do.

        Raises:
            TrainingStateError: If the checkpoint cannot be used.
        """
        config, world, state = self.config, self.world, self.state
        checkpoint = find_checkpoint(config, world)
        if checkpoint is None:
            if world.is_main and (aside := set_aside(self.out, 0)):
                print(f"{self.out} has no checkpoints; the files of the earlier run are in {aside}")
            self._open_log(None)
            return True
        path, saved = checkpoint
        self._load(path, saved)
        compared = same_evaluation(saved["config"], config)
        evaluated = world.broadcast(compared and is_evaluated(self.out, state.step))
        if world.broadcast(is_finished(config, state.step, self.total, evaluated)):
            if world.is_main:
                print(
                    f"{self.out} is finished: {state.step} steps of {self.total}; the model is in "
                    f"{self.out / 'export'}. Nothing was changed; more steps (--steps, --epochs) "
                    "continue from here"
                )
            return False
        self.evaluated_step = state.step if evaluated else -1
        if world.is_main and (aside := set_aside(self.out, state.step)):
            print(f"the files of {self.out} beyond step {state.step} are in {aside}")
        if not (compared and (self.out / "best").is_dir()):
            state.best_score = math.inf
        self._open_log(checkpoint)
        return True

    def _load(self, path: Path, saved: dict[str, Any]) -> None:
        if other := other_model(saved["config"], self.config):
            raise TrainingStateError(
                f"{path} is of another model ({'; '.join(other)}). Choose another `out`, or the "
                "settings of that run."
            )
        try:
            load_weights(self.model, saved["model"])
        except RuntimeError as error:  # other classes, or weights of another version
            raise TrainingStateError(
                f"{path} is of another model, though its settings are the same: {error}. Choose "
                "another `out`."
            ) from error
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise TrainingStateError(
                f"{path}: {error}: optim.layer_decay, optim.muon and model.freeze_encoder cannot "
                f"change within a run. Choose another `out`, and {self.out / 'export'} as "
                "model.init."
            ) from error
        if self.ema:
            load_weights(self.ema.model, saved["ema"] or saved["model"])
        set_random_state(saved["random"])
        self.state.load_state_dict(saved)
        self.unreadable.load_state_dict(saved["bad_samples"])

    def _open_log(self, checkpoint: tuple[Path, dict] | None) -> None:
        config, step = self.config, self.state.step
        self.log = RunLog(self.out, self.total, step, config.log_every, self.world.is_main)
        if not self.world.is_main:
            return
        write_text(self.out / "config.json", to_json(config, indent=2) + "\n")
        parameters = sum(p.numel() for p in self.model.parameters())
        images = sum(len(s) for s in (self.data.labeled, self.data.unlabeled) if s is not None)
        self.log.say(
            f"{config.model.preset}, {parameters / 1e6:.2f}M parameters, from "
            f"{config.model.init or config.model.encoder_init}; {images} images; {self.total} "
            f"steps of {config.batch_size} labeled and {self.unlabeled_batch} unlabeled on "
            f"{self.world.size} x {self.world.device}, {str(self.dtype).removeprefix('torch.')}"
        )
        if checkpoint is not None:
            path, saved = checkpoint
            self.log.say(f"resumed from {path} at step {step}")
            for line in (
                *changed_settings(saved["config"], config),
                *changed_data(saved.get("data", {}), self.data),
            ):
                self.log.say(f"  differs from the checkpoint's run: {line}")

    # ----------------------------------------------------------------------------------- steps

    def batches(self) -> Iterator[tuple[StepBatch, ...]]:
        """The batches of each step from here to the end of the run, `accumulate` of them each."""
        loader = make_loader(
            self.config,
            self.data,
            self.world,
            step=self.state.step,
            stop_step=max(self.total, self.state.step),
            position=self.state.position,
            unlabeled_position=self.state.unlabeled_position,
        )
        first_step = self.state.step
        try:
            yield from zip(*[iter(loader)] * self.config.accumulate, strict=True)
        except ShardError:
            # This process may be the only one here, and all have to take part in a sharded save.
            if self.state.step > first_step and not self.sharded:
                self.save()
            raise

    def step(self, batches: Sequence[StepBatch], stop: bool) -> StepResult:
        """Takes a step: losses, gradients, and, where they are finite, new weights.

        Args:
            batches: The pieces of this process's part of the step.
            stop: Whether this process asks to stop.
        """
        config, state, world = self.config, self.state, self.world
        factor = set_learning_rate(self.optimizer, config.optim, state.step, self.total)
        parts = backward(self.losses, self.network, batches)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients, foreach=True))

        # One synchronisation with the device per step; the mean over ranks is the same on all.
        found = self.unreadable.found(batches)
        values = torch.stack(list(parts.values()))
        votes = values.new_tensor([float(stop), float(bool(found))])
        *losses, stop_votes, found_votes = world.mean(torch.cat([values, votes])).tolist()
        gradient_norm = float(norm)

        finite = all(map(math.isfinite, (*losses, gradient_norm)))
        if finite:
            self.bad_in_a_row = 0
            if config.optim.grad_clip:
                torch.nn.utils.clip_grads_with_norm_(
                    self.model.parameters(), config.optim.grad_clip, norm, foreach=True
                )
            self.optimizer.step()
            if self.ema:
                self.ema.update(state.step)
        else:
            self.bad_in_a_row += 1
            keys = [key for batch in batches for key in batch.keys]
            self.log.warn(
                f"step {state.step + 1} skipped: loss {losses[0]}, gradient norm {gradient_norm}; "
                f"rank {world.rank} samples: {', '.join(keys)}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        state.advance(config.batch_size, self.unlabeled_batch, skipped=not finite)
        self._watch_gradient(gradient_norm)
        logged = {
            **dict(zip(parts, losses, strict=True)),
            "lr": config.optim.decoder_lr * factor,
            "encoder_lr": config.optim.encoder_lr * factor,
            "grad_norm": gradient_norm,
            "skipped_steps": state.skipped_steps,
        }
        return StepResult(logged, stop_votes > 0, found if found_votes > 0 else None)

    def _watch_gradient(self, norm: float) -> None:
        """Warns of a run that has stopped learning: its gradient is exactly 0."""
        self.quiet_in_a_row = self.quiet_in_a_row + 1 if norm == 0 else 0
        if self.quiet_in_a_row == QUIET_STEPS and self.world.is_main:
            self.log.warn(
                f"the gradient has been exactly 0 for {QUIET_STEPS} steps, up to step "
                f"{self.state.step}: the model does not learn. Its output may be 0 everywhere (a "
                "dead ReLU after too high a learning rate), or no pixel of the labels is valid"
            )

    def check(self, result: StepResult) -> None:
        """Counts unreadable samples and steps without a finite gradient, and stops at too many.

        Raises:
            ShardError: For samples, on all processes.
            TooManyBadStepsError: For steps.
        """
        if result.unreadable is not None:
            try:
                self.unreadable.add(result.unreadable, self.world)
            except ShardError:
                self.save()
                raise
        if self.bad_in_a_row > self.config.max_bad_steps:
            raise TooManyBadStepsError(
                f"{self.bad_in_a_row} steps in a row without a finite loss and gradient (the last: "
                f"step {self.state.step}). Lower the learning rates, or look at the samples named "
                f"above. {self._last_checkpoint()}"
            )

    def _last_checkpoint(self) -> str:
        found = list_checkpoints(checkpoint_folder(self.out))
        if not found:
            return "There is no checkpoint yet."
        step = int(found[0].stem.removeprefix("step-"))
        return f"The last good checkpoint is of step {step}: {found[0]}"

    # ------------------------------------------------------------------------------- what is kept

    def stop(self, cause: str) -> None:
        """Saves before the end of the run, so that the same command continues from here."""
        where = f"checkpoint at step {self.state.step}; the same command continues from here"
        if not self.save():
            where = "the same command continues from the last checkpoint"
        self.log.say(f"stopped by {cause}; {where}")

    def finish(self) -> None:
        """Evaluates and saves after the last step.

        Raises:
            TooManyBadStepsError: If the model is not finite.
        """
        self.evaluate()
        if not self.world.broadcast(self.save()):
            raise TooManyBadStepsError(
                f"the run ended at step {self.state.step} with a model that is not finite. Lower "
                f"the learning rates. {self._last_checkpoint()}"
            )
        self.log.say(
            f"done: {self.state.step} steps in {self.out}; the model is in {self.out / 'export'}"
        )
        if self.quiet_in_a_row >= QUIET_STEPS:
            self.log.warn(
                f"the gradient was exactly 0 in the last {self.quiet_in_a_row} steps: the model "
                "did not learn in them"
            )

    def healthy(self) -> bool:
        """Whether the model is finite: its steps, its weights, and its output for a picture.

        One bad step may be the fault of its samples; several in a row are the model's. Only the
        main process checks weights and output. It sends the result only to the processes of a
        sharded model, which save together.
        """
        finite = self.bad_in_a_row <= 1
        models: list[nn.Module] = [self.result()]  # every process must call it
        if self.ema and not self.sharded:
            models.append(self.model)
        if finite and self.world.is_main:
            finite = all(self._is_finite(model) for model in models)
        return self.world.broadcast(finite) if self.sharded else finite

    def _is_finite(self, model: nn.Module) -> bool:
        weights = [t for t in model.state_dict().values() if t.is_floating_point()]
        norms = torch.stack(torch._foreach_norm(weights, ord=math.inf))
        if not bool(norms.isfinite().all()):
            return False
        height, width = self.config.data.shapes[0]
        ramp = torch.linspace(-2, 2, 3 * height * width, device=weights[0].device)
        was_training = model.training
        model.eval()
        # With gradients enabled no packed copy of the weights is made.
        with torch.enable_grad(), autocast(ramp.device, self.dtype):
            output = model(ramp.view(1, 3, height, width))
        model.train(was_training)
        return bool(output.isfinite().all())

    def save(self) -> bool:
        """Writes a checkpoint and the exported model, unless the model is not finite.

        Returns:
            Whether they were written.
        """
        if not self.healthy():
            self.log.say(
                f"step {self.state.step}: no checkpoint and no export, the model is not finite. "
                f"{self._last_checkpoint()}"
            )
            return False
        model, ema = self.model, self.ema
        state = {
            "model": model.state_dict(),
            "ema": ema.model.state_dict() if ema else None,
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
            **self.state.state_dict(),
            "bad_samples": self.unreadable.state_dict(),
            "data": data_state(self.data),
            "config": to_json(self.config),
        }
        state, whole_model = gather(state, self.world), self.result()
        if self.world.is_main:
            folder = checkpoint_folder(self.out)
            save_checkpoint(folder, self.state.step, state, self.config.keep)
            self._export(whole_model, self.out / "export")
        return True

    def _export(self, model: Any, folder: Path) -> None:
        try:
            model.save_pretrained(
                folder, **({"dtype": torch.float16} if self.config.export_float16 else {})
            )
        except (OSError, SafetensorError) as error:
            raise TrainingStateError(
                f"cannot write the model {folder}: {error}. Free some space or choose another disk;"
                " the checkpoints are untouched, and the same command continues from them."
            ) from error

    def evaluate(self) -> None:
        """Scores the model on held-out data and keeps it in `best/` if it is the best so far."""
        step, state = self.state.step, self.state
        if not self.config.data.eval_path or self.evaluated_step == step:
            return
        if not self.healthy():
            self.log.say(f"step {step}: no evaluation, the model is not finite")
            return
        self.evaluated_step = step
        whole_model = self.result()
        if self.score is None:  # not the main process
            return
        try:
            values = self.score(whole_model)
        except Exception:
            if not self.sharded:  # else the other processes would have to take part
                self.save()
            raise
        score = values.get(self.config.best_by, values["loss"])
        score = -score if self.config.best_by == "miou" else score  # larger is better
        if score < state.best_score:
            state.best_score = score
            self._export(whole_model, self.out / "best")
            text = json.dumps({"step": step, **values}, indent=2)
            write_text(self.out / "best" / "evaluation.json", text + "\n")
        self.log.evaluation(step, values)  # last: it says that the evaluation is done
