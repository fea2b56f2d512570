"""GET /metrics: how much waits and for how long, how runs end, what the reconciler mended."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from posedrop import analyses, metrics
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import RunState
from posedrop.buckets.records.videos import FileState, VideoRecord
from posedrop.errors import PosedropError
from posedrop.metrics import LONG_BUCKETS, Few, one_of

if TYPE_CHECKING:
    from posedrop.index.index import Index

#: More than a run can have had; whatever a record says.
_MAX_ATTEMPTS = 1000
_STATES: Mapping[str, Collection[str]] = {
    "files": get_args(FileState),
    "analyses": get_args(RunState),
    "events": ("unhandled",),
    "pending": ("waiting",),
    "dead_letters": ("kept",),
}


class Metrics:
    """The metrics of one handlers process, in a registry of their own.

    What ended is counted from this process' start on: what a reindex or a late event tells of the
    time before is not.
    """

    def __init__(self, since: datetime) -> None:
        self._since = since
        self._codes = Few()
        self._reasons = Few()
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
        self.repairs = Counter(
            "posedrop_repairs_total",
            "What the reconciler found and mended, by kind",
            ["kind"],
            registry=self.registry,
        )
        self.rounds = Counter(
            "posedrop_reconciler_rounds_total",
            "Rounds of the reconciler: succeeded or failed",
            ["outcome"],
            registry=self.registry,
        )
        self.last_success = Gauge(
            "posedrop_reconciler_last_success_timestamp_seconds",
            "When the reconciler last came through a round; 0: not since the start",
            registry=self.registry,
        )
        self._runs = Counter(
            "posedrop_runs_total",
            "Runs that ended, by how, and by the code of the error",
            ["analysis", "state", "code"],
            registry=self.registry,
        )
        self._run_seconds = Histogram(
            "posedrop_run_seconds",
            "Time from asking for a run to its end",
            ["analysis"],
            buckets=LONG_BUCKETS,
            registry=self.registry,
        )
        self._run_attempts = Histogram(
            "posedrop_run_attempts",
            "How many attempts a run took",
            buckets=(0, 1, 2, 3, 5, 10, 20),
            registry=self.registry,
        )
        self._run_quality = Histogram(
            "posedrop_run_quality",
            "The scores of runs that have one: how good their poses are, 0 to 100",
            ["analysis"],
            buckets=range(10, 101, 10),
            registry=self.registry,
        )
        self._ingests = Counter(
            "posedrop_ingests_total",
            "Videos that were looked at: ready, or the reason of the refusal",
            ["outcome"],
            registry=self.registry,
        )
        self._ingest_seconds = Histogram(
            "posedrop_ingest_seconds",
            "Time from a video's upload to the end of its ingest",
            buckets=LONG_BUCKETS,
            registry=self.registry,
        )

    def run_ended(self, result: Result) -> None:
        """Count a run whose result is news."""
        ended = result.finished_at.astimezone(UTC)
        if ended < self._since:
            return
        analysis = one_of(result.analysis, analyses.installed())
        code = self._codes.of(result.error.code) if result.error is not None else ""
        self._runs.labels(analysis, result.state, code).inc()
        took = (ended - result.created_at.astimezone(UTC)).total_seconds()
        self._run_seconds.labels(analysis).observe(max(0.0, took))
        self._run_attempts.observe(max(0, min(result.attempts, _MAX_ATTEMPTS)))
        if result.quality is not None:
            self._run_quality.labels(analysis).observe(result.quality.score)

    def video_ingested(self, record: VideoRecord) -> None:
        """Count a video whose record is news."""
        ended = record.ingested_at.astimezone(UTC)
        if ended < self._since:
            return
        refusal = record.refusal
        self._ingests.labels("ready" if refusal is None else self._reasons.of(refusal.reason)).inc()
        took = (ended - record.last_modified.astimezone(UTC)).total_seconds()
        self._ingest_seconds.observe(max(0.0, took))

    def reconciled(self, repairs: Mapping[str, int], moment: datetime) -> None:
        """Count a round of the reconciler that came through."""
        self.rounds.labels("succeeded").inc()
        self.last_success.set(moment.timestamp())
        for kind, count in repairs.items():
            self.repairs.labels(kind).inc(max(0, count))

    def render(self, index: Index, now: datetime, *more: Metric) -> bytes:
        """Return all metrics as Prometheus reads them; an index that can't be read is left out.

        Args:
            index: asked what waits.
            now: ages are told by it.
            more: what else was found at this scrape.
        """
        scraped = CollectorRegistry()
        scraped.register(_Found([*_of_index(index, now), *more]))
        return metrics.render(self.registry, scraped)


class _Found(Collector):
    """A collector of metrics that were computed beforehand."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        yield from self._found


def _of_index(index: Index, now: datetime) -> Iterator[Metric]:
    try:
        counts, oldest = index.counts(), index.oldest()
    except PosedropError:
        return
    rows = GaugeMetricFamily(
        "posedrop_index_rows", "Rows of the index by table and state", labels=["table", "state"]
    )
    for table, states in _STATES.items():
        for state in states:
            rows.add_metric([table, state], counts[table].get(state, 0))
    yield rows
    ages = GaugeMetricFamily(
        "posedrop_oldest_seconds",
        "Age of the oldest event not handled, video not ingested, run that no worker has; "
        "0: there is none",
        labels=["waiting"],
    )
    for what, since in oldest.items():
        age = (now - since).total_seconds() if since is not None else 0.0
        ages.add_metric([what], max(0.0, age))
    yield ages
