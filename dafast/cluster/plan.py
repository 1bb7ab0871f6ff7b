"""How many models and tasks a cluster holds, and the processors and GPUs of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_TOGETHER = 2  # parts that a model on processors does at a time: one is read, one is computed


@dataclass(frozen=True)
class Division:
    """The division of a cluster.

    Attributes:
        models: Number of actors with a model; 0 for a job without one.
        model_options: Ray's options of an actor.
        model_threads: PyTorch's threads of an actor.
        task_options: Ray's options of a task; None if the actors do the parts themselves.
        threads: Threads that decode and encode a part.
        parts: Parts at a time for each model; without models, in all.
    """

    models: int
    model_options: dict[str, Any]
    model_threads: int
    task_options: dict[str, Any] | None
    threads: int
    parts: int


def plan_for(
    nodes: Sequence[dict[str, float]], models: int | None, workers: int, device: str
) -> Division:
    """Divides a cluster.

    With GPUs each model has one, and tasks on the processors of all nodes decode and encode for it;
    a task reserves a processor for each of its threads. Without GPUs the models share the
    processors, and each does whole parts: no image leaves its process. A model and a task fit
    together on one node: the job finishes even if only one node is left.

    Args:
        nodes: Resources of each node: "CPU" and "GPU".
        models: Number of models; None for one per GPU, or else one per processor; 0 for none.
        workers: Threads that decode and encode a part.
        device: The value of ``--device``: "auto" takes GPUs if there are any now.
    """
    processors = max(1, int(sum(node.get("CPU", 0) for node in nodes)))
    largest = max(1, int(max((node.get("CPU", 0) for node in nodes), default=1)))
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if models == 0:
        return Division(0, {}, 0, {"num_cpus": 1}, workers, 2 * processors)
    if device.startswith("cuda") or (device == "auto" and gpus):
        count, workers = models or max(1, gpus), min(workers, largest)
        parts = max(2, math.ceil(processors / workers / count))
        on_gpu = {"num_gpus": 1, "num_cpus": 0}
        return Division(count, on_gpu, 1, {"num_cpus": workers}, workers, parts)
    count = models or processors
    threads = min(max(1, processors // count), largest)
    on_cpu = {"num_cpus": threads, "max_concurrency": _TOGETHER}
    return Division(count, on_cpu, threads, None, workers, _TOGETHER)
