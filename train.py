"""Train Depth Anything, teacher, student or metric model, or segmentation on its encoder.

    python train.py --config configs/nano-teacher.toml
    torchrun --nproc-per-node 8 train.py --config configs/student-vits.toml
    python train.py --config configs/nano-teacher.toml --steps 500 --optim.encoder-lr 5e-4

A run lives in its directory (`out`): `config.json`, `metrics.jsonl`, `checkpoints/`, `export/`
(what `DepthAnything.from_pretrained` loads). Started again it goes on where it stopped; Ctrl-C and
SIGTERM save a checkpoint first.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import multiprocessing
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dafast.data.remote import write_text
from dafast.data.shards import ShardError
from dafast.distributed import World, distributed_session
from dafast.files import DiskFullError
from dafast.runtime import resolve_dtype
from dafast.training.config import ConfigError, TrainConfig, parse_args
from dafast.training.data import make_loader
from dafast.training.own_pictures import pack_lists
from dafast.training.parallel import WholeModel, gather, load_weights, replicate, shard, whole
from dafast.training.progress import RunLog, Stopwatch, is_evaluated
from dafast.training.resume import (
    StopRequest,
    changed_data,
    changed_settings,
    data_state,
    find_checkpoint,
    is_finished,
    other_model,
    same_evaluation,
)
from dafast.training.state import (
    CheckpointError,
    checkpoint_folder,
    random_state,
    save_checkpoint,
    set_aside,
    set_random_state,
)
from dafast.training.steps import (
    Ema,
    backward,
    build_optimizer,
    set_learning_rate,
    total_steps,
)
from dafast.training.student import build_step
from dafast.training.tasks import open_data, open_evaluation, open_model
from dafast.training.unreadable import Unreadable


class TooManyBadStepsError(RuntimeError):
    """Training has stopped making finite gradients."""


def train(config: TrainConfig, world: World) -> None:
    """Runs the training that a configuration describes."""
    started = time.monotonic()
    out = Path(config.out)
    if config.threads:
        torch.set_num_threads(config.threads)
    random.seed(config.seed)
    torch.manual_seed(config.seed)

    if config.batch_size % (world.size * config.accumulate):
        parts = f" x {config.accumulate} (accumulate)" if config.accumulate > 1 else ""
        raise ConfigError(
            f"batch_size {config.batch_size} does not divide by {world.size} processes{parts}"
        )

    # Data.
    config = pack_lists(config, world)
    data = open_data(config)
    held_out = None
    if config.data.eval_path and world.is_main:
        held_out = open_evaluation(config)
    unlabeled_batch_size = config.unlabeled.ratio * config.batch_size if data.unlabeled else 0
    total = total_steps(config, data)

    # Model and optimizer.
    model = open_model(config, data, world.device)
    model.pretrained.checkpoint_activations = config.activation_checkpointing
    ema = Ema(model, config.ema) if config.ema else None
    sharded = config.parallel == "fsdp" and world.size > 1
    result = WholeModel(ema.model if ema else model, sharded, world)  # to evaluate and export
    dtype = resolve_dtype(config.precision, world.device)  # of autocast
    network: torch.nn.Module = model
    if config.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    if not sharded:
        network = replicate(network, world)
    step_losses = build_step(network, model, config, dtype)
    if sharded:  # after all that copies the model
        for part in (model, ema.model) if ema else (model,):
            shard(part, world)
    optimizer = build_optimizer(model, config.optim)

    # Resume.
    step, position, unlabeled_position, skipped_steps = 0, 0, 0, 0
    unreadable = Unreadable(data, config.data.max_bad_fraction)
    best_score, evaluated_step = math.inf, -1
    checkpoint = find_checkpoint(config, world)
    if checkpoint is not None:
        path, state = checkpoint
        if other := other_model(state["config"], config):
            raise CheckpointError(
                f"{path} is of another model ({'; '.join(other)}). Choose another `out`, or the "
                "settings of that run."
            )
        try:
            load_weights(model, state["model"])
        except RuntimeError as error:  # other classes, or weights of another version
            raise CheckpointError(
                f"{path} is of another model, though of the same settings: {error}. Choose another "
                "`out`."
            ) from error
        try:
            optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise CheckpointError(
                f"{path}: {error}: optim.layer_decay, optim.muon and model.freeze_encoder cannot "
                f"change within a run. Choose another `out`, and {out / 'export'} as model.init."
            ) from error
        if ema:
            load_weights(ema.model, state["ema"] or state["model"])
        set_random_state(state["random"])
        step, position, skipped_steps = state["step"], state["position"], state["skipped_steps"]
        unlabeled_position = state.get("unlabeled_position", 0)
        unreadable.load_state_dict(state["bad_samples"])
        compared = same_evaluation(state["config"], config)
        evaluated = world.broadcast(compared and is_evaluated(out, step))
        if world.broadcast(is_finished(config, step, total, evaluated)):
            if world.is_main:
                print(
                    f"{out} is finished: {step} steps of {total}; the model is in {out / 'export'}."
                    " Nothing was changed; more steps (--steps, --epochs) go on from here"
                )
            return
        evaluated_step = step if evaluated else -1
        if world.is_main and (aside := set_aside(out, step)):
            print(f"what {out} had beyond step {step} is in {aside}")
        if compared and (out / "best").is_dir():
            best_score = state.get("best_score", math.inf)

    log = RunLog(out, total, step, config.log_every, world.is_main)
    if world.is_main:
        write_text(out / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        parameters = sum(p.numel() for p in model.parameters())
        log.say(
            f"{config.model.preset}, {parameters / 1e6:.2f}M parameters, from "
            f"{config.model.init or config.model.encoder_init}; {data.size} images; {total} steps "
            f"of {config.batch_size} labeled and {unlabeled_batch_size} unlabeled on "
            f"{world.size} x {world.device}, "
            f"{str(dtype).removeprefix('torch.')}"
        )
        if checkpoint is not None:
            log.say(f"resumed from {path} at step {step}")
            for line in (
                *changed_settings(state["config"], config),
                *changed_data(state.get("data", {}), data),
            ):
                log.say(f"  differs from the checkpoint's run: {line}")

    def export(whole_model: Any, folder: Path) -> None:
        try:
            whole_model.save_pretrained(
                folder, **({"dtype": torch.float16} if config.export_float16 else {})
            )
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot write the model {folder}: {error}. Free some space or choose another disk;"
                " the checkpoints are untouched, and the same command goes on from them."
            ) from error

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "ema": ema.model.state_dict() if ema else None,
            "optimizer": optimizer.state_dict(),
            "random": random_state(),
            "step": step,
            "position": position,
            "unlabeled_position": unlabeled_position,
            "skipped_steps": skipped_steps,
            "bad_samples": unreadable.state_dict(),
            "data": data_state(data),
            "best_score": best_score,
            "config": json.dumps(dataclasses.asdict(config)),
        }
        state, whole_model = gather(state, world), result()
        if world.is_main:
            save_checkpoint(checkpoint_folder(out), step, state, config.keep)
            export(whole_model, out / "export")

    def evaluate() -> None:
        nonlocal best_score, evaluated_step
        if not config.data.eval_path:
            return
        evaluated_step = step
        whole_model = result()
        if held_out is None:  # not the main process
            return
        try:
            values = held_out(whole_model)
        except Exception:
            if not sharded:  # else the others would have to take part
                save()
            raise
        score = values.get(config.best_by, values["loss"])
        score = -score if config.best_by == "miou" else score  # the larger, the better
        if score < best_score:
            best_score = score
            export(whole_model, out / "best")
            text = json.dumps({"step": step, **values}, indent=2)
            write_text(out / "best" / "evaluation.json", text + "\n")
        log.evaluation(step, values)  # last: it says that the evaluation is done

    # The loop.
    loader = make_loader(
        config,
        data,
        world,
        step=step,
        stop_step=max(total, step),
        position=position,
        unlabeled_position=unlabeled_position,
    )
    first_step, bad_in_a_row = step, 0
    stop = StopRequest()
    watch = Stopwatch()

    def steps() -> Iterator[tuple[Any, ...]]:
        try:
            yield from zip(*[iter(loader)] * config.accumulate, strict=True)
        except ShardError:
            if step > first_step and not sharded:  # else the others would have to take part
                save()
            raise

    due = config.eval_every and 0 < step < total and step % config.eval_every == 0
    if due and evaluated_step != step:  # the run was stopped before it
        evaluate()
    for batches in steps():
        factor = set_learning_rate(optimizer, config.optim, step, total)
        parts = backward(step_losses, network, batches)
        norm = whole(
            torch.nn.utils.get_total_norm(
                [p.grad for p in model.parameters() if p.grad is not None], foreach=True
            )
        )

        # One look at the device per step; the mean over ranks makes all of them see the same.
        out_of_time = config.max_minutes and time.monotonic() - started > 60 * config.max_minutes
        flags = torch.stack(list(parts.values()))
        found = unreadable.found(batches)
        votes = [float(stop.requested or bool(out_of_time)), float(bool(found))]
        *losses, stop_votes, found_votes = world.mean(
            torch.cat([flags, flags.new_tensor(votes)])
        ).tolist()
        gradient_norm = float(norm)
        finite = all(map(math.isfinite, (*losses, gradient_norm)))

        if finite:
            bad_in_a_row = 0
            if config.optim.grad_clip:
                torch.nn.utils.clip_grads_with_norm_(
                    model.parameters(), config.optim.grad_clip, norm, foreach=True
                )
            optimizer.step()
            if ema:
                ema.update(step)
        else:
            bad_in_a_row, skipped_steps = bad_in_a_row + 1, skipped_steps + 1
            keys = [key for batch in batches for key in batch.keys]
            print(
                f"\nstep {step + 1} skipped: loss {losses[0]}, gradient norm {gradient_norm}; rank "
                f"{world.rank} samples: {', '.join(keys)}",
                file=sys.stderr,
                flush=True,
            )
        optimizer.zero_grad(set_to_none=True)
        step, position = step + 1, position + config.batch_size
        unlabeled_position += unlabeled_batch_size

        values = dict(zip(parts, losses, strict=True))
        values |= {
            "lr": config.optim.decoder_lr * factor,
            "encoder_lr": config.optim.encoder_lr * factor,
        }
        values |= {"grad_norm": gradient_norm, "skipped_steps": skipped_steps}
        log.step(step, watch.lap(), config.batch_size + unlabeled_batch_size, values)

        if found_votes > 0:
            try:
                unreadable.add(found, world)
            except ShardError:
                save()
                raise
        if bad_in_a_row > config.max_bad_steps:
            raise TooManyBadStepsError(
                f"{bad_in_a_row} steps in a row without a finite loss and gradient (the last: step "
                f"{step}). Lower the learning rates, or look at the samples named above; the last "
                f"good checkpoint is in {checkpoint_folder(out)}."
            )
        if stop_votes > 0:
            why = (
                "stopped by a signal" if stop.requested else "stopped: max_minutes, or another rank"
            )
            save()
            log.say(f"{why}; checkpoint at step {step}; the same command goes on from here")
            break
        # An evaluation first: the checkpoint then knows the best score so far.
        if config.eval_every and step % config.eval_every == 0:
            evaluate()
        if config.checkpoint_every and step % config.checkpoint_every == 0 and step < total:
            save()
        watch.skip()
    else:
        if evaluated_step != step:
            evaluate()
        save()
        log.say(f"done: {step} steps in {out}; the model is in {out / 'export'}")
    stop.restore()
    log.close()
    world.barrier()


def plain(error: Exception) -> str:
    """The message of an error; where a process of the loader raised it, without the traceback."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rpartition(f"{type(error).__name__}: ")[2].strip()
    return text


def main() -> None:
    """Parses the command line and trains; what a user can mend is a message, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        config = parse_args()
        with distributed_session() as world:
            train(config, world)
    except (
        ConfigError, ShardError, CheckpointError, DiskFullError, TooManyBadStepsError
    ) as error:  # fmt: skip
        raise SystemExit(f"train.py: {plain(error)}") from None
    finally:
        # The loader's processes leave SIGTERM to this one. After an error Python would send them
        # that at its exit and wait for ever.
        if left := multiprocessing.active_children():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's would complain of the dead
            for process in left:
                process.kill()


if __name__ == "__main__":
    main()
