"""How many models and tasks a cluster holds, and the processors and GPUs of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_SHARE = 0.5


@dataclass(frozen=True)
class Plan:
    """The division of a cluster.

    Attributes:
        models: Number of actors with a model; 0 for a job without one.
        model_options: Ray's options of an actor.
        model_threads: PyTorch's threads of an actor.
        task_options: Ray's options of a task.
        task_threads: Threads of a task that decode and encode.
        tasks: Tasks at a time for each model; without models, in all.
    """

    models: int
    model_options: dict[str, Any]
    model_threads: int
    task_options: dict[str, Any]
    task_threads: int
    tasks: int


def plan_for(resources: dict[str, float], models: int | None, workers: int, device: str) -> Plan:
    """Divides a cluster.

    With GPUs each model has one, and a task reserves a processor for each of its threads. Without,
    the models and the tasks share the processors: a task waits while its model computes, so each
    of the two reserves half a processor.

    Args:
        resources: Of the whole cluster: "CPU" and "GPU".
        models: Number of models; None for one per GPU, or else one per processor; 0 for none.
        workers: Threads of a task.
        device: The value of ``--device``: "auto" takes GPUs if there are any now.
    """
    processors = max(1, int(resources.get("CPU", 1)))
    gpus = int(resources.get("GPU", 0))
    if models == 0:
        return Plan(0, {}, 0, {"num_cpus": 1}, workers, 2 * processors)
    if device.startswith("cuda") or (device == "auto" and gpus):
        count = models or max(1, gpus)
        tasks = max(2, math.ceil((processors - count) / workers / count))
        return Plan(count, {"num_gpus": 1, "num_cpus": 1}, 1, {"num_cpus": workers}, workers, tasks)
    count = models or processors
    threads = max(1, processors // count)
    return Plan(
        count, {"num_cpus": _SHARE * threads}, threads, {"num_cpus": _SHARE}, workers, tasks=2
    )
