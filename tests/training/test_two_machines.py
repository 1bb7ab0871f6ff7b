"""torchrun on two machines: two network namespaces, one of which is killed during the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training import runs, tiny
from tests.training.test_parallel import start_config

LIMIT = 400  # seconds
HEAD = "10.213.7.1"


def ip(*arguments: str) -> int:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two namespaces that reach each other through a pair of virtual devices."""
    if os.name != "posix" or not Path("/sbin/ip").exists() or ip("netns", "add", "dafast-a"):
        pytest.skip("needs the right to make network namespaces")
    names = ["dafast-a", "dafast-b"]
    ip("netns", "add", names[1])
    ip("link", "add", "dafast0", "type", "veth", "peer", "name", "dafast1")
    for number, name in enumerate(names):
        ip("link", "set", f"dafast{number}", "netns", name)
        ip("-n", name, "addr", "add", f"10.213.7.{number + 1}/24", "dev", f"dafast{number}")
        ip("-n", name, "link", "set", f"dafast{number}", "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield names
    for name in names:
        ip("netns", "del", name)


class Machine:
    """torchrun on one machine."""

    def __init__(self, number: int, name: str, command: list[str], log: Path) -> None:
        environment = {
            **os.environ,
            "GLOO_SOCKET_IFNAME": f"dafast{number}",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        torchrun += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "run"]
        torchrun += ["--rdzv-endpoint", f"{HEAD}:29500", "--max-restarts", "3"]
        torchrun += ["--local-addr", f"10.213.7.{number + 1}"]
        # Both have the name of this machine, by which torchrun would find out who is the host.
        torchrun += ["--rdzv-conf", f"is_host={int(number == 0)}"]
        self.log = log
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", name, *torchrun, *command],
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kills every process of the machine, as a machine that is taken away."""
        for text in subprocess.run(
            ["ip", "netns", "pids", "dafast-b"], capture_output=True, text=True, check=False
        ).stdout.split():
            os.kill(int(text), signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Ends what still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.mark.exhaustive  # minutes: torchrun notices a lost machine after a time
def test_a_run_goes_on_when_one_machine_is_killed_and_comes_back(
    machines: list[str], shards: Path, tmp_path: Path, seed: int
) -> None:
    config = start_config(shards, tmp_path, seed, steps=40, checkpoint_every=2)
    command, out = runs.command(config), Path(config.out)
    logs = [tmp_path / f"{name}.log" for name in machines]
    both = [Machine(i, name, command, logs[i]) for i, name in enumerate(machines)]
    end = time.monotonic() + LIMIT
    try:
        while len(tiny.losses(out)) < 5:
            assert time.monotonic() < end, logs[0].read_text()[-3000:]
            time.sleep(0.05)
        both[1].kill()
        both[1] = Machine(1, machines[1], command, logs[1])
        for machine in both:
            assert machine.process.wait(max(1, end - time.monotonic())) == 0, "".join(
                log.read_text()[-3000:] for log in logs
            )
    finally:
        for machine in both:
            machine.end()
    assert sorted(tiny.losses(out)) == list(range(1, 41)), "no step is lost or done twice"
