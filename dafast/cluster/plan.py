"""How many models and tasks a cluster holds, and the processors and GPUs of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Of a processor, without GPUs: a model with one thread and its two tasks fill one exactly. A task
# waits while its model computes.
_MODEL, _TASK = 0.9, 0.05


@dataclass(frozen=True)
class Division:
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


def plan_for(
    nodes: Sequence[dict[str, float]], models: int | None, workers: int, device: str
) -> Division:
    """Divides a cluster.

    With GPUs each model has one, and a task reserves a processor for each of its threads. Without,
    models have the processors, and a task runs next to them. What a model or a task reserves fits
    on one node, next to each other: the job finishes even if only one node is left.

    Args:
        nodes: Resources of each node: "CPU" and "GPU".
        models: Number of models; None for one per GPU, or else one per processor; 0 for none.
        workers: Threads of a task.
        device: The value of ``--device``: "auto" takes GPUs if there are any now.
    """
    processors = max(1, int(sum(node.get("CPU", 0) for node in nodes)))
    largest = max(1, int(max((node.get("CPU", 0) for node in nodes), default=1)))
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if models == 0:
        return Division(0, {}, 0, {"num_cpus": 1}, workers, 2 * processors)
    if device.startswith("cuda") or (device == "auto" and gpus):
        count, workers = models or max(1, gpus), min(workers, largest)
        tasks = max(2, math.ceil(processors / workers / count))
        on_gpu = {"num_gpus": 1, "num_cpus": 0}
        return Division(count, on_gpu, 1, {"num_cpus": workers}, workers, tasks)
    count = models or processors
    threads = min(max(1, processors // count), largest)
    on_cpu = {"num_cpus": round(_MODEL * threads, 1)}
    return Division(count, on_cpu, threads, {"num_cpus": _TASK}, workers, tasks=2)
