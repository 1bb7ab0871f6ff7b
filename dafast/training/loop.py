"""The training loop."""

from __future__ import annotations

import time

from dafast.distributed import World
from dafast.training.config import TrainConfig
from dafast.training.progress import Stopwatch
from dafast.training.resume import StopRequest
from dafast.training.run import Run


def train(config: TrainConfig, world: World) -> None:
    """Runs the training that a configuration describes, from its start or its last checkpoint.

    Args:
        config: What to train.
        world: The processes that share it.

    Raises:
        ConfigError: If the configuration cannot be used.
        ShardError: If the data cannot be read.
        TrainingStateError: If a checkpoint or a model cannot be written or read.
        TooManyBadStepsError: If training no longer gives finite gradients.
    """
    run = Run(config, world)
    if not run.resume():
        return

    def is_due(every: int) -> bool:
        return every > 0 and run.state.step % every == 0

    if is_due(config.eval_every) and 0 < run.state.step < run.total:
        run.evaluate()  # unless the run was stopped after this evaluation

    stop, watch = StopRequest(), Stopwatch()
    for batches in run.batches():
        out_of_time = 0 < 60 * config.max_minutes < time.monotonic() - run.started
        result = run.step(batches, stop.requested or out_of_time)
        run.log.step(run.state.step, watch.lap(), run.images_per_step, result.values)
        run.check(result)
        if result.stop:
            run.stop("a signal" if stop.requested else "max_minutes, or another rank")
            break
        # The evaluation first: the checkpoint then has the best score so far.
        if is_due(config.eval_every):
            run.evaluate()
        if is_due(config.checkpoint_every) and run.state.step < run.total:
            run.save()
        watch.skip()
    else:
        run.finish()
    stop.restore()
    run.log.close()
    world.barrier()
