"""One process or many: the process group that torchrun describes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

# The main process may pack a list or evaluate for longer than NCCL's default of ten minutes, while
# the others wait.
_TIMEOUT = timedelta(hours=3)


@dataclass(frozen=True)
class Processes:
    """This process and the number of all processes; of one process also without PyTorch.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
    """

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, on every process."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


@dataclass(frozen=True)
class World(Processes):
    """The processes of a run that computes with PyTorch.

    Attributes:
        device: Device of this process.
    """

    device: torch.device

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes; NaN anywhere is NaN everywhere."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
            values /= self.size
        return values


def _store_of_this_start() -> dist.Store | None:
    """The store in which the processes find one another; None is torchrun's default.

    torchrun keeps its store when it restarts the processes (`--max-restarts`), with the addresses
    of the dead ones. So each start on one machine uses its own prefix. Several machines count their
    restarts separately and cannot agree on a prefix: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    there, so that torchrun opens a new store.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        return None
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return dist.PrefixStore(f"restart-{restarts}", store)


@contextmanager
def distributed_session() -> Iterator[World]:
    """Joins the process group that torchrun's environment describes, and leaves it at the end."""
    import torch
    import torch.distributed as dist

    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size > 1:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=_store_of_this_start(),
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
        )
    try:
        yield World(rank, size, device)
    finally:
        if size > 1:
            dist.destroy_process_group()
