"""What is reserved on a cluster always fits, and parts of a job that end as failures."""

from __future__ import annotations

import functools
import socket
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="ray is not installed")

# ruff: noqa: E402
from dafast.cli import main
from dafast.cluster import ClusterError, connected, connection
from dafast.cluster.plan import plan_for
from dafast.cluster.workers import do_part
from dafast.data.jobs import Outcome, Predict
from dafast.data.labeling import LabelJob
from tests import full_disk
from tests.training import tiny


def test_a_model_and_a_task_fit_on_one_node(rng: np.random.Generator) -> None:
    for _ in range(200):
        nodes = [{"CPU": float(n)} for n in rng.integers(1, 65, rng.integers(1, 9))]
        models = int(rng.integers(1, 9)) if rng.random() < 0.7 else None
        plan = plan_for(nodes, models, int(rng.integers(1, 9)), "auto")
        assert plan.models == (models or sum(node["CPU"] for node in nodes))
        largest = max(node["CPU"] for node in nodes)
        assert plan.task_options is None, "models on processors do the parts themselves"
        assert plan.model_options["num_cpus"] == plan.model_threads
        assert plan.model_options["max_concurrency"] == plan.parts
        assert 1 <= plan.model_threads <= largest
        nodes[0]["GPU"] = 1.0
        plan = plan_for(nodes, models, int(rng.integers(1, 9)), "auto")
        assert plan.models == (models or 1)
        assert 1 <= plan.task_options["num_cpus"] + plan.model_options["num_cpus"] <= largest


def test_each_gpu_has_a_model_and_processors_are_shared_out() -> None:
    nodes = [{"CPU": 96.0, "GPU": 8.0}, {"CPU": 32.0}]
    plan = plan_for(nodes, None, 4, "auto")
    assert (plan.models, plan.model_options["num_gpus"], plan.task_options) == (
        8,
        1,
        {"num_cpus": 4},
    )
    assert plan.parts == 4  # 128 processors / 4 threads / 8 models
    assert plan_for(nodes, None, 4, "cpu").models == 128
    assert plan_for([{"CPU": 4.0}], None, 2, "cuda").models == 1  # an autoscaler brings the GPU
    assert plan_for(nodes, 0, 2, "auto").parts == 256


def test_a_full_disk_is_a_failure_of_the_shard(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tiny.write_shards(tmp_path / "in", 1, 9, seed, labeled=False)
    (tmp_path / "out").mkdir()

    class Full(LabelJob):
        def do(self, source: Path, predict: Predict, pool: Executor) -> Outcome:
            def halves(images):
                return [image[..., 0].astype(np.float32) for image in images]

            with full_disk.limited(4000):
                return super().do(source, halves, pool)

    outcome = do_part(Full(tmp_path / "out", "relative"), photos / "00000.tar", 1, "label")
    assert outcome.state == "failed"
    ((name, reason),) = outcome.failures
    assert name == "00000.tar" and "00000.tar" in reason
    assert not list((tmp_path / "out").glob("*.tar"))


def test_errors_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grpc", reason="ray[client] is not installed")

    def fails(reason: Exception, **options) -> None:
        raise reason

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection, "_check_port", lambda cluster, server: None)
    taken: list[bool] = []
    monkeypatch.setattr(connection, "_take_token", lambda: taken.append(True))
    for reason, words in (
        (RuntimeError("Version mismatch:\n    Ray: 2.1"), r"\(Version mismatch: Ray: 2.1\)"),
        (ConnectionError("ray client connection timeout"), "timeout; if the cluster has a token"),
    ):
        monkeypatch.setattr(ray, "init", functools.partial(fails, reason))
        with pytest.raises(ClusterError, match=words) as error, connected("ray://host:10001"):
            pass
        assert "\n" not in str(error.value)
    assert taken == [True, True]
    # Ray's process for a client died while it started.
    unserved = "Initialization failure from server: psutil.ZombieProcess"
    results = [ConnectionError(unserved), None]

    def init(**options: object) -> None:
        if error := results.pop(0):
            raise error

    monkeypatch.setattr(ray, "init", init)
    with connected("ray://host:10001"):
        assert not results
    results[:] = [ConnectionError(unserved)] * connection._TRIES
    with pytest.raises(ClusterError, match="ZombieProcess"), connected("ray://host:10001"):
        pass
    assert not results
    taken.clear()
    monkeypatch.setattr(ray, "init", lambda **options: None)
    with pytest.raises(ClusterError, match="the connection was lost"), connected("ray"):
        raise ConnectionError("already disconnected")
    with pytest.raises(ValueError, match="of the job"), connected("ray"):
        raise ValueError("of the job")
    assert not taken, "a driver with a token fails on a cluster without"


def test_mistakes_are_one_line(tmp_path: Path, seed: int, monkeypatch, capsys) -> None:
    pytest.importorskip("grpc", reason="ray[client] is not installed")
    photos = tiny.write_shards(tmp_path / "in", 1, 1, seed, labeled=False)
    command = ["label", "--model", "nano", "--in", str(photos), "--out", str(tmp_path / "out")]

    def error(cluster: str) -> str:
        assert main([*command, "--cluster", cluster]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    for wrong in ("slurm", "ray://", "ray://host", "ray://host:port", "ray://:10001"):
        assert "give ray, or ray://HOST:PORT" in error(wrong)
    with socket.socket() as server:  # bound, and it does not listen
        server.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{server.getsockname()[1]}"
        assert f"ray://{closed}: {closed} does not answer (" in error(f"ray://{closed}")
        monkeypatch.setenv("RAY_ADDRESS", closed)
        assert "correct RAY_ADDRESS" in error("ray")
        monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "do not use torchrun" in error("ray")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr("dafast.optional._BROKEN", {"ray": "ray is not installed"})
    assert "needs pip install 'dafast[ray]' (ray is not installed)" in error("ray")
