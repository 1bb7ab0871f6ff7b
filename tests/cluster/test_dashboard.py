"""Ray's dashboard shows the tasks of a run; its metrics have progress, rate and time left."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="ray is not installed")
for name in ("aiohttp_cors", "opencensus", "opentelemetry.exporter.prometheus"):
    pytest.importorskip(name, reason="ray[default] is not installed")

# ruff: noqa: E402
from bench.local_cluster import LocalCluster
from dafast.cli import main
from tests.training import tiny

LIMIT = 300  # seconds


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    monkeypatch.setattr(ray._private.ray_constants, "RAY_DASHBOARD_STARTUP_TIMEOUT_S", LIMIT)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    with LocalCluster(nodes=2, dashboard=True) as cluster:
        yield cluster


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LIMIT) as answer:
        return answer.read().decode()


def states(cluster: LocalCluster) -> dict[str, int]:
    """The number of tasks of the run in each state, as the dashboard's pages show them."""
    answer = json.loads(fetch(f"{cluster.dashboard}/api/v0/tasks/summarize"))
    tasks = answer["data"]["result"]["result"]["node_id_to_summary"]["cluster"]["summary"]
    return tasks.get("dafast label", {}).get("state_counts", {})


def metrics() -> dict[str, float]:
    """The metrics of dafast on all nodes, summed; their agents serve them for Prometheus."""
    found: dict[str, float] = {}
    for node in ray.nodes():
        text = fetch(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")
        for key, value in re.findall(
            r"^ray_dafast_(\w+)\{.*command=\"label\".*\} (\S+)$", text, re.M
        ):
            found[key] = found.get(key, 0.0) + float(value)
    return found


@pytest.mark.exhaustive
def test_progress_rate_and_time_left(cluster: LocalCluster, tmp_path: Path, seed: int) -> None:
    photos = tiny.write_shards(tmp_path / "in", 5, 4, seed, labeled=False)
    command = ["label", "--model", "nano", "--size", "42", "--in", str(photos), "--device", "cpu"]
    ray.init(log_to_driver=False)  # the driver's metrics are gone when it ends
    assert main([*command, "--out", str(tmp_path / "out"), "--cluster", "ray"]) == 0
    done = {"parts_done": 5, "parts_total": 5, "seconds_left": 0}
    done |= {"worker_parts_total": 5, "worker_images_total": 20}
    end, seen, shown = time.monotonic() + LIMIT, {}, {}
    finished = {"FINISHED": 5}
    while time.monotonic() < end and not (done.items() <= seen.items() and shown == finished):
        time.sleep(1)  # Ray reports every few seconds
        seen, shown = metrics(), states(cluster)
    assert done.items() <= seen.items(), seen
    assert seen["images_per_second"] > 0
    assert shown == finished
