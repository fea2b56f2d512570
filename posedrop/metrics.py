"""Prometheus metrics that every posedrop process has: the store's answers, attempts, disks.

A label's values are few, whatever comes from outside: a code that posedrop does not know, an
analysis that is not installed and the like count as ``other``.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from posedrop import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
# A second series for each, that says when it began: nobody asks for these.
disable_created_metrics()  # type: ignore[no-untyped-call]
#: Of the whole process: its store, its jobs, its disks.
REGISTRY = CollectorRegistry()

_CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")
_STORE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
#: Seconds, from a moment to days: jobs and runs are as long as films.
LONG_BUCKETS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 12 * 3600, 86400)

Gauge("posedrop_build_info", "Which posedrop this is", ["version"], registry=REGISTRY).labels(
    __version__
).set(1)
STORE_SECONDS = Histogram(
    "posedrop_store_seconds",
    "Time until the object store answered a call, its retries among it",
    ["operation"],
    buckets=_STORE_BUCKETS,
    registry=REGISTRY,
)
STORE_ERRORS = Counter(
    "posedrop_store_errors_total",
    "Calls that the object store did not do: unreachable, server, denied, client",
    ["operation", "kind"],
    registry=REGISTRY,
)
JOBS_RUNNING = Gauge(
    "posedrop_jobs_running",
    "Messages that this worker is at",
    ["task"],
    registry=REGISTRY,
)
JOB_SECONDS = Histogram(
    "posedrop_job_seconds",
    "Time that this worker was at a message; failed: it is tried again",
    ["task", "outcome"],
    buckets=LONG_BUCKETS,
    registry=REGISTRY,
)
ATTEMPTS = Counter(
    "posedrop_attempts_total",
    "Attempts of this worker at an ingest or a run: done, failed, handed_back",
    ["task", "outcome"],
    registry=REGISTRY,
)


def one_of(value: str | None, known: Collection[str]) -> str:
    """Return a label's value, ``other`` for one that is not known beforehand."""
    return value if value is not None and value in known else OTHER


class Few:
    """Label values that come from outside, such as an error's code: so many, the rest as ``other``.

    The first that are seen have a name of their own; a plug-in's codes can't be known beforehand.
    """

    def __init__(self, most: int = 60) -> None:
        self._most = most
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def of(self, value: str) -> str:
        """Return a value that came from outside as a label may have it."""
        if _CODE.fullmatch(value) is None:
            return OTHER
        with self._lock:
            if value not in self._seen and len(self._seen) >= self._most:
                return OTHER
            self._seen.add(value)
        return value


class Disks(Collector):
    """Free and total bytes of the folders that this process writes to, asked at each scrape."""

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}

    def watch(self, name: str, folder: Path) -> None:
        """Have a folder's file system told under a name."""
        self._folders[name] = folder

    def describe(self) -> list[Metric]:
        """Return nothing: no folder is asked about when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what the file systems say; one that is gone is left out."""
        free = GaugeMetricFamily("posedrop_disk_free_bytes", "Room on a disk", labels=["disk"])
        size = GaugeMetricFamily("posedrop_disk_size_bytes", "Size of a disk", labels=["disk"])
        for name, folder in sorted(self._folders.items()):
            with suppress(OSError):
                usage = shutil.disk_usage(folder)
                free.add_metric([name], usage.free)
                size.add_metric([name], usage.total)
        yield free
        yield size


DISKS = Disks()
REGISTRY.register(DISKS)


def render(*registries: CollectorRegistry) -> bytes:
    """Return metrics as Prometheus reads them: those of some registries, and of the process."""
    return b"".join(generate_latest(each) for each in (*registries, REGISTRY))


# -- the object store ------------------------------------------------------------------------------

_STARTED = "posedrop_started"
#: What a store answers in the ordinary course: there is none, it exists already, nothing changed.
_ORDINARY = frozenset({304, 404, 409, 412})


def watch_store(client: Any) -> None:
    """Count and time the calls of a boto3 client; presigning makes none."""
    events = client.meta.events
    events.register("before-call.s3", _began)
    events.register("after-call.s3", _ended)
    events.register("after-call-error.s3", _broke)


def _began(context: dict[str, Any], **_: object) -> None:
    context[_STARTED] = time.perf_counter()


def _ended(context: dict[str, Any], model: Any, parsed: Mapping[str, Any], **_: object) -> None:
    _took(context, model.name)
    status = int(parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # A copy or the end of a multipart upload may fail under a 200.
    if "Error" not in parsed and status < 400:
        return
    if status in _ORDINARY:
        return
    kind = "denied" if status in {401, 403} else "client" if 400 <= status < 500 else "server"
    STORE_ERRORS.labels(model.name, kind).inc()


def _broke(context: dict[str, Any], event_name: str = "", **_: object) -> None:
    operation = event_name.rpartition(".")[2]
    _took(context, operation)
    STORE_ERRORS.labels(operation, "unreachable").inc()


def _took(context: Mapping[str, Any], operation: str) -> None:
    if _STARTED in context:
        STORE_SECONDS.labels(operation).observe(time.perf_counter() - context[_STARTED])


# -- jobs ------------------------------------------------------------------------------------------


@contextmanager
def job(task: str) -> Iterator[None]:
    """Count and time one message of a worker within the block."""
    started = time.perf_counter()
    outcome = "failed"
    JOBS_RUNNING.labels(task).inc()
    try:
        yield
        outcome = "ended"
    finally:
        JOBS_RUNNING.labels(task).dec()
        JOB_SECONDS.labels(task, outcome).observe(time.perf_counter() - started)
