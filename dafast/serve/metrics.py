"""The metrics of a server, in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .pool import Pool

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "dafast_requests", "Requests by path and status", ["path", "status"], registry=own
        )
        self.seconds = Histogram(
            "dafast_request_seconds",
            "Time from the head of a request to its answer",
            ["path"],
            buckets=_SECONDS,
            registry=own,
        )
        self.batches = Histogram(
            "dafast_batch_size", "Pictures of a batch", buckets=_BATCHES, registry=own
        )
        self.waiting = Gauge("dafast_queue_length", "Requests that no worker has yet", registry=own)
        self.admitted = Gauge(
            "dafast_requests_admitted", "Requests received, waiting or computed", registry=own
        )
        self.restarts = Gauge("dafast_worker_restarts", "Workers that were replaced", registry=own)
        self.ready = Gauge("dafast_ready", "1 if a worker has its model", registry=own)

    def text(self, pool: Pool, admitted: int) -> bytes:
        """The metrics in Prometheus' text format."""
        self.waiting.set(len(pool.queue))
        self.admitted.set(admitted)
        self.restarts.set(pool.restarts)
        self.ready.set(pool.ready)
        return generate_latest(self.registry)
