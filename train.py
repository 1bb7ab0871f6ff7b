"""Train Depth Anything on labeled shards (stage 1 of the paper), from top to bottom.

    python train.py --config configs/nano-teacher.toml
    torchrun --nproc-per-node 8 train.py --config configs/teacher-vitl.toml
    python train.py --config configs/nano-teacher.toml --steps 500 --optim.encoder-lr 5e-4

A run lives in its directory (`out`): `config.json`, `metrics.jsonl`, `checkpoints/`, `export/`
(what `DepthAnything.from_pretrained` loads). Started again it goes on where it stopped; Ctrl-C and
SIGTERM save a checkpoint first.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from dafast.data.shards import ShardDataset, ShardError, check_bad_share
from dafast.data.transforms import TrainTransform
from dafast.training.config import ConfigError, TrainConfig, parse_args
from dafast.training.data import StreamSampler, TrainingData, make_loader
from dafast.training.distributed import World, distributed_session
from dafast.training.evaluation import periodic_evaluation
from dafast.training.progress import RunLog, Stopwatch
from dafast.training.state import (
    CheckpointError,
    checkpoint_folder,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    random_state,
    save_checkpoint,
    set_random_state,
)
from dafast.training.steps import (
    Ema,
    LabeledStep,
    build_model,
    build_optimizer,
    pick_precision,
    set_learning_rate,
    total_steps,
)


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

    if config.batch_size % world.size:
        raise ConfigError(
            f"batch_size {config.batch_size} does not divide by {world.size} processes"
        )

    # Data.
    shards = ShardDataset(config.data.path, max_bad_fraction=config.data.max_bad_fraction)
    held_out = None
    if config.data.eval_path and world.is_main:
        held_out = ShardDataset(config.data.eval_path, labels="physical")
    total = total_steps(config, len(shards))

    # Model and optimizer.
    model = build_model(config.model, world.device, config.channels_last)
    optimizer = build_optimizer(model, config.optim)
    ema = Ema(model, config.ema) if config.ema else None
    best = ema.model if ema else model  # what is evaluated and exported
    dtype = pick_precision(config.precision, world.device)
    network: torch.nn.Module = model
    if config.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    if world.size > 1:
        ids = [world.device.index] if world.device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=ids)
    labeled_step = LabeledStep(network, model.config.mean, model.config.std, dtype).to(world.device)

    # Resume.
    step, position, skipped_steps, bad_samples = 0, 0, 0, set()
    checkpoint = find_checkpoint(config, world)
    if checkpoint is not None:
        path, state = checkpoint
        try:
            model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} is of another model ({json.loads(state['config'])['model']['preset']}, "
                f"not {config.model.preset}). Choose another `out` or the model of that run."
            ) from error
        optimizer.load_state_dict(state["optimizer"])
        if ema:
            ema.model.load_state_dict(state["ema"] or state["model"])
        set_random_state(state["random"])
        step, position, skipped_steps = state["step"], state["position"], state["skipped_steps"]
        bad_samples = set(state["bad_samples"])

    log = RunLog(out, total, step, config.log_every, world.is_main)
    if world.is_main:
        (out / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        parameters = sum(p.numel() for p in model.parameters())
        log.say(
            f"{config.model.preset}, {parameters / 1e6:.2f}M parameters, from "
            f"{config.model.init or 'random weights'}; {len(shards)} images; {total} steps of "
            f"{config.batch_size} on {world.size} x {world.device}, "
            f"{str(dtype).removeprefix('torch.')}"
        )
        if checkpoint is not None:
            log.say(f"resumed from {path} at step {step}")
            for line in changed_settings(state["config"], config):
                log.say(f"  differs from the checkpoint's run: {line}")

    def save() -> None:
        if not world.is_main:
            return
        state = {
            "model": model.state_dict(),
            "ema": ema.model.state_dict() if ema else None,
            "optimizer": optimizer.state_dict(),
            "random": random_state(),
            "step": step,
            "position": position,
            "skipped_steps": skipped_steps,
            "bad_samples": sorted(bad_samples),
            "config": json.dumps(dataclasses.asdict(config)),
        }
        save_checkpoint(checkpoint_folder(out), step, state, config.keep)
        export_dtype = torch.float16 if config.export_float16 else None
        best.save_pretrained(out / "export", **({"dtype": export_dtype} if export_dtype else {}))

    def evaluate() -> None:
        if held_out is not None:
            data = config.data
            log.evaluation(
                step,
                periodic_evaluation(best, held_out, data.eval_samples, data.eval_max_depth),
            )

    sampler = StreamSampler(
        len(shards),
        config.batch_size,
        config.data.shapes,
        config.seed,
        rank=world.rank,
        world_size=world.size,
        start_step=step,
        start_position=position,
        stop_step=max(total, step),
    )
    data = TrainingData(shards, TrainTransform(config.augment), config.seed)
    loader = make_loader(
        data, sampler, config.data.workers, config.data.prefetch, world.device.type == "cuda"
    )

    # The loop.
    saved_step, bad_in_a_row = step, 0
    stop = StopRequest()
    watch = Stopwatch()
    for batch in loader:
        factor = set_learning_rate(optimizer, config.optim, step, total)
        parts = labeled_step(batch)
        parts["loss"].backward()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in model.parameters() if p.grad is not None], foreach=True
        )

        # One look at the device per step; the mean over ranks makes all of them see the same.
        out_of_time = config.max_minutes and time.monotonic() - started > 60 * config.max_minutes
        flags = torch.stack([value.detach() for value in parts.values()])
        flags = torch.cat([flags, flags.new_tensor([float(stop.requested or bool(out_of_time))])])
        *losses, stop_votes = world.mean(flags).tolist()
        gradient_norm = float(norm)
        finite = all(map(is_finite, (*losses, gradient_norm)))

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
            print(
                f"\nstep {step + 1} skipped: loss {losses[0]}, gradient norm {gradient_norm}; rank "
                f"{world.rank} samples: {', '.join(batch.keys)}",
                file=sys.stderr,
                flush=True,
            )
        optimizer.zero_grad(set_to_none=True)
        step, position = step + 1, position + config.batch_size

        bad_samples.update(batch.skipped)
        check_bad_share(bad_samples, len(shards), config.data.max_bad_fraction)
        values = dict(zip(parts, losses, strict=True))
        values |= {
            "lr": config.optim.decoder_lr * factor,
            "encoder_lr": config.optim.encoder_lr * factor,
        }
        values |= {"grad_norm": gradient_norm, "skipped_steps": skipped_steps}
        log.step(step, watch.lap(), config.batch_size, values)

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
        if config.checkpoint_every and step % config.checkpoint_every == 0:
            save()
            saved_step = step
        if config.eval_every and step % config.eval_every == 0:
            evaluate()
        watch.skip()
    else:
        if saved_step != step or not list_checkpoints(checkpoint_folder(out)):
            save()
        if not (config.eval_every and step % config.eval_every == 0):
            evaluate()
        log.say(f"done: {step} steps in {out}; the model is in {out / 'export'}")
    stop.restore()
    log.close()
    world.barrier()


def find_checkpoint(config: TrainConfig, world: World) -> tuple[Path, dict] | None:
    """What `resume` points to. Every rank reads the file that the main one chose."""
    folder = checkpoint_folder(config.out)
    if config.resume == "none":
        if list_checkpoints(folder):
            raise ConfigError(
                f"resume = none, but {folder} has checkpoints. Choose another `out`, remove the "
                f"folder, or go on with --resume auto."
            )
        return None
    if config.resume != "auto":
        return Path(config.resume), load_checkpoint(config.resume)
    found = load_newest(folder) if world.is_main else None
    path = world.broadcast(found[0] if found else None)
    if path is None:
        return None
    return found or (path, load_checkpoint(path))


def changed_settings(before: str, config: TrainConfig) -> list[str]:
    """Settings that change how a checkpoint's run goes on, as "key: old -> new"."""

    def flat(values: dict, prefix: str = "") -> dict:
        result = {}
        for key, value in values.items():
            result |= (
                flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
            )
        return result

    old = flat(json.loads(before))
    new = flat(json.loads(json.dumps(dataclasses.asdict(config))))
    quiet = ("out", "resume", "max_minutes", "checkpoint_every", "keep", "log_every", "eval_every")
    return [
        f"{key}: {old.get(key)} -> {new[key]}"
        for key in new
        if key not in quiet and old.get(key) != new[key]
    ]


def is_finite(value: float) -> bool:
    """Neither NaN nor infinite."""
    return value - value == 0.0


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame: object) -> None:
        self.requested = True
        self.restore()

    def restore(self) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def main() -> None:
    """Parses the command line and trains; what a user can mend is a message, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        config = parse_args()
        with distributed_session() as world:
            train(config, world)
    except (ConfigError, ShardError, CheckpointError, TooManyBadStepsError) as error:
        raise SystemExit(f"train.py: {error}") from None


if __name__ == "__main__":
    main()
