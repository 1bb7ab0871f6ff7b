"""The processes of a run: two of them, of which this is the main one."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from dafast import distributed
from dafast.distributed import Processes, World, distributed_session
from tests.forks import Fork


def meet() -> tuple[bool, list[int], object, float]:
    with distributed_session() as world:
        gathered = world.gather(10 + world.rank)
        given = world.broadcast({"of": world.rank})
        world.barrier()
        mean = world.mean(torch.tensor([2.0 * world.rank])).item()
        return world.is_main, gathered, given, mean


def test_two_processes_share_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_TIMEOUT", timedelta(seconds=120))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "1",  # after a restart they meet under another prefix
    }

    def other() -> int:
        return int(meet() != (False, [10, 11], {"of": 0}, 1.0))

    process = Fork(other, {**group, "RANK": "1"})
    for name, value in {**group, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert meet() == (True, [10, 11], {"of": 0}, 1.0)
    assert process.wait(120) == 0, process.stderr
    assert not dist.is_initialized()


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert meet() == (True, [10], {"of": 0}, 0.0)
    alone = Processes(0, 1)
    alone.barrier()
    assert alone.gather("x") == ["x"] and alone.broadcast("y") == "y"


def test_each_process_takes_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with distributed_session() as world:
        assert isinstance(world, World) and world.device == torch.device("cuda", 3)
    assert taken == [torch.device("cuda", 3)]
