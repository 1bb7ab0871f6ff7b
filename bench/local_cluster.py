"""A Ray cluster of several nodes on this machine, whose processes can be killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import ray
from ray.cluster_utils import Cluster

STORE = 80 << 20  # bytes of shared memory of a node, the least that Ray takes


class LocalCluster:
    """A head node without processors and worker nodes; a context manager.

    `dafast --cluster ray` finds it while it is open. All processes end with it.

    Args:
        nodes: Number of worker nodes.
        processors: Of each worker node.
        gpus: That each worker node claims to have. With `--device auto` each gets a model, on its
            processors if the machine has no GPU, and tasks decode for it.
        dashboard: Whether to start Ray's dashboard, which needs ray[default].

    Attributes:
        client: Address for clients: ``ray://HOST:PORT``.
        dashboard: Address of the dashboard: ``http://HOST:PORT``; None without it.
    """

    def __init__(
        self, nodes: int = 2, processors: float = 1, gpus: int = 0, dashboard: bool = False
    ) -> None:
        self.dashboard = f"http://127.0.0.1:{free_port()}" if dashboard else None
        self._options: dict[str, Any] = {
            "num_cpus": processors,
            "num_gpus": gpus,
            "object_store_memory": STORE,
        }
        self._count = nodes

    def __enter__(self) -> LocalCluster:
        self._before = os.environ.get("RAY_ADDRESS")
        head = {
            **self._options,
            "num_cpus": 0,
            "num_gpus": 0,
            "include_dashboard": bool(self.dashboard),
        }
        if self.dashboard:
            head["dashboard_port"] = int(self.dashboard.rpartition(":")[2])
        port = free_port()
        if find_spec("grpc"):  # of ray[client]; without it a cluster has no port for clients
            head["ray_client_server_port"] = port
        self.cluster = _until_in_time(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.client = f"ray://{self.cluster.address.rpartition(':')[0]}:{port}"
        for _ in range(self._count):
            self.add_node()
        os.environ["RAY_ADDRESS"] = self.cluster.address
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is None:
            os.environ.pop("RAY_ADDRESS", None)
        else:
            os.environ["RAY_ADDRESS"] = self._before
        ray.shutdown()
        left = [*self._raylets(), *(p for each in self._raylets() for p in children(each))]
        self.cluster.shutdown()
        for pid in left:
            kill(pid)

    def add_node(self) -> None:
        """Adds a worker node."""
        # Ray handles signals of the process for each node, which other threads cannot.
        self.cluster._shutdown_at_exit = current_thread() is main_thread()
        _until_in_time(lambda: self.cluster.add_node(wait=False, **self._options))

    def processes(self) -> dict[int, str]:
        """The workers of the worker nodes: their titles, "ray::..." by process number."""
        found = {}
        for raylet in self._raylets()[1:]:
            for pid in children(raylet):
                title = title_of(pid)
                if title.startswith("ray::"):
                    found[pid] = title
        return found

    def kill_process(self, title: str, seconds: float = 60.0) -> int:
        """Kills a worker whose title contains a text, with SIGKILL; waits until there is one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for pid, found in self.processes().items():
                if title in found:
                    kill(pid)
                    return pid
            time.sleep(0.02)
        raise TimeoutError(f"no process {title!r} among {list(self.processes().values())}")

    def kill_node(self, replace: bool = True) -> None:
        """Kills all processes of a worker node with SIGKILL, and adds another node."""
        node = next(iter(self.cluster.worker_nodes))
        (raylet,) = _raylets_of(node)
        for pid in [raylet, *children(raylet)]:
            kill(pid)
        self.cluster.remove_node(node, allow_graceful=False)
        if replace:
            self.add_node()

    def memory(self) -> int:
        """Memory of the worker nodes' workers that they do not share, in bytes."""
        return sum(memory_of(pid) for pid in self.processes())

    def seconds(self) -> float:
        """Processor time of all processes of the cluster and of this one, in seconds."""
        return sum(seconds_of(pid) for pid in [os.getpid(), *descendants(os.getpid())])

    def _raylets(self) -> list[int]:
        nodes = [self.cluster.head_node, *self.cluster.worker_nodes]
        return [pid for node in nodes if node for pid in _raylets_of(node)]


def _until_in_time(start: Callable[[], Any], tries: int = 5) -> Any:
    """Starts a node; tries again if it needs more than the 30 seconds that Ray allows."""
    before = children(os.getpid())
    try:
        return start()
    except Exception as error:
        for pid in set(children(os.getpid())) - set(before):
            kill(pid)
        if tries == 1 or "timed out during startup" not in str(error):
            raise
    return _until_in_time(start, tries - 1)


def _raylets_of(node: Any) -> list[int]:
    return [info.process.pid for info in node.all_processes.get("raylet", [])]


def free_port() -> int:
    """A free port between those of Ray's workers and those of outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(24000, 32000)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("", port))
            return port


def kill(pid: int) -> None:
    """Kills a process, if it still runs."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The processes that a process started, with all its threads."""
    found: list[int] = []
    for each in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(number) for number in each.read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    found = children(pid)
    for each in list(found):
        found += descendants(each)
    return found


def seconds_of(pid: int) -> float:
    """Processor time of a process, and of its ended ones, in seconds; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def title_of(pid: int) -> str:
    """A process's title; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""


def memory_of(pid: int) -> int:
    """Memory of a process that no other one shares, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
