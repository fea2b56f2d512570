"""The handlers' Context: what each of them works with, wired once in app.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from dramatiq import Broker

from handlers.metrics import Metrics
from handlers.workers import Workers
from posedrop.buckets import layout
from posedrop.buckets.records.videos import VideoRecord
from posedrop.buckets.storage import Storage
from posedrop.errors import BusyError
from posedrop.index.index import Index
from posedrop.settings import Settings
from posedrop.transport import queue

#: A store under load takes tens of milliseconds to answer, nearly all of them spent waiting.
_LOOKERS = 16
#: Callers have threads of their own: however many files they ask about, events don't wait for them.
_LOOKERS_OF_CALLERS = 8
#: How long a caller's look-up waits for the store, in seconds, each of two times; then it is 503.
LOOK_SECONDS = 5.0


class Turn:
    """A lock with a bound on the wait for it: its holder may be waiting for a slow store."""

    def __init__(self, lock: threading.Lock | Turn, seconds: float) -> None:
        self._lock = lock
        self._seconds = seconds

    def acquire(self, *, timeout: float) -> bool:
        """Take the lock within ``timeout`` seconds; return whether that was possible."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=self._seconds):
            raise BusyError("the object store is slow, and others are being served: ask again")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@dataclass
class Choosing:
    """State of the gpu queue that is not in the index: one a process, for handlers/gpu_queue.py."""

    workers: Workers = field(default_factory=Workers)
    wanted: threading.Event = field(default_factory=threading.Event)
    maybe_over: set[str] = field(default_factory=set)
    """Keys of predictions and results that an event tells of, each to be looked for."""
    woken: threading.Event = field(default_factory=threading.Event)
    """Set when there is something in ``maybe_over``."""
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    looked_at: datetime | None = None


def _lookers(threads: int = _LOOKERS) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "look")


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Context:
    """Settings, store, index, broker and clock of the handlers, and the locks that they share."""

    settings: Settings
    storage: Storage
    index: Index
    broker: Broker
    creating: threading.Lock | Turn = field(default_factory=threading.Lock)
    """Held while a run is looked up and created: one request, one run, under whatever key."""
    following: threading.Lock | Turn = field(default_factory=threading.Lock)
    """Held while a video is planned, so that of two versions of a rule it follows one."""
    choosing: Choosing = field(default_factory=Choosing)
    """Whose run is sent next to the gpu workers."""
    copying: threading.RLock = field(default_factory=threading.RLock)
    """Held while a run's results are copied, and while a film is deleted."""
    to_copy: threading.Event = field(default_factory=threading.Event)
    """Set when there may be results to copy to another name of their content."""
    to_batch: threading.Event = field(default_factory=threading.Event)
    """Set when a batch was asked for."""
    lacking: dict[str, tuple[frozenset[str], datetime]] = field(default_factory=dict)
    """Files that were not there to be copied, by the folder they were for, and since when."""
    notices: dict[str, str] = field(default_factory=dict)
    """What a person is to see to, in words, by what it is about; the page shows them."""
    lookers: ThreadPoolExecutor = field(default_factory=_lookers)
    """Threads that ask the store about many objects at once; they end with the context."""
    clock: Callable[[], datetime] = _now
    """Returns the time, as records have it."""
    metrics: Metrics = field(default_factory=lambda: Metrics(_now()))
    """Who gives another clock gives metrics that begin by it, too."""

    def __post_init__(self) -> None:
        """Count in the metrics which runs and videos the index learns of."""
        self.index.on_result = self.metrics.run_ended
        self.index.on_video = self.metrics.video_ingested

    def for_callers(self) -> Context:
        """Return the context for calls that a person waits for: with a slow store they end soon."""
        return replace(
            self,
            storage=Storage(self.settings, read_seconds=LOOK_SECONDS, attempts=2),
            lookers=_lookers(_LOOKERS_OF_CALLERS),
            creating=Turn(self.creating, LOOK_SECONDS),
            following=Turn(self.following, LOOK_SECONDS),
        )

    def video_record(self, bucket: str, key: str) -> VideoRecord | None:
        """Return what ingest wrote of an object of the videos bucket, None if nothing that is true.

        Raises:
            StorageError: the store is away, or what stands there is no such record.
        """
        record = layout.video_record(self.video_prefix(bucket, key))
        found = self.storage.read_record(self.settings.results_bucket, record, VideoRecord)
        return found if found is None or found.has_its_id else None

    def file_id(self, key: str) -> str:
        """Return the file_id of an object of the videos bucket.

        Raises:
            StorageError: the store is away; it is asked only of what the index does not know.
        """
        bucket = self.settings.videos_bucket
        plain, former = layout.file_id_of(bucket, key), layout.former_file_id(key)
        if former is None:
            return plain
        if (row := self.index.file(plain)) is not None and row.key == key:
            return plain
        row = self.index.file(former)
        if row is not None and row.key == key and row.state in {"ready", "refused", "film gone"}:
            return former
        return self.storage.file_id(self.settings.results_bucket, bucket, key)

    def file_id_of_prefix(self, prefix: str) -> str:
        """Return the file_id of the video whose folder of the results bucket is ``prefix``."""
        return layout.file_id_in_prefix(prefix) or self.file_id(prefix)

    def video_prefix(self, bucket: str, key: str) -> str:
        """Return the folder of the results bucket for a video's results."""
        return self.storage.video_prefix(self.settings.results_bucket, bucket, key)

    def ingest_attempts(self, file_id: str) -> list[str]:
        """Return the keys of all attempts to ingest a file."""
        below = f"{layout.ingests(file_id)}/"
        return [found.key for found in self.storage.objects(self.settings.results_bucket, below)]

    def enqueue_ingest(self, file_id: str, bucket: str, key: str, etag: str) -> None:
        """Send an ``ingest`` message for an object of the videos bucket."""
        queue.send(self.broker, "ingest", bucket=bucket, key=key, etag=etag)
        self.index.file_enqueued(file_id, self.clock())

    def enqueue_infer(self, analysis_id: str, run: str) -> None:
        """Send an ``infer`` message for a run whose turn it is."""
        queue.send(self.broker, "infer", run=run)
        with self.index.together():
            self.index.analysis_enqueued(analysis_id, self.clock())
            self.index.gpu_sent(analysis_id, self.clock())

    def enqueue_finish(self, analysis_id: str, run: str) -> None:
        """Send a ``finish`` message for a run that is made of predictions which are there."""
        queue.send(self.broker, "finish", run=run)
        self.index.analysis_enqueued(analysis_id, self.clock())

    def enqueue_render(self, analysis_id: str, run: str) -> None:
        """Send a ``render`` message for a run whose poses are there."""
        queue.send(self.broker, "render", run=run)
        self.index.analysis_enqueued(analysis_id, self.clock())
