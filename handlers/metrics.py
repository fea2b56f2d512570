"""Prometheus metrics: what is waiting, running and done, and how events come in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from posedrop.index import Index


class Metrics:
    """The metrics of one handlers process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter(
            "posedrop_events_total",
            "Bucket events received, new or not",
            ["outcome"],
            registry=self.registry,
        )
        self.event_seconds = Histogram(
            "posedrop_event_seconds",
            "Time to record a notification",
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
            registry=self.registry,
        )
        self._rows = Gauge(
            "posedrop_index_rows",
            "Rows of the index by table and state",
            ["table", "state"],
            registry=self.registry,
        )

    def render(self, index: Index) -> bytes:
        """Return all metrics as Prometheus reads them."""
        for table, states in index.counts().items():
            for state, count in states.items():
                self._rows.labels(table, state).set(count)
        return generate_latest(self.registry)
