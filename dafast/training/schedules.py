"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no state."""

from __future__ import annotations

import math


def lr_factor(
    step: int, total_steps: int, warmup_steps: int = 0, schedule: str = "linear"
) -> float:
    """Factor on the peak learning rate at a step (counted from 0).

    Linear warm-up, then `linear` or `cosine` decay that reaches 0 after the last step, or
    `constant`.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "linear":
        return 1.0 - done
    raise ValueError(f"no schedule {schedule!r}; there are linear, cosine and constant")
