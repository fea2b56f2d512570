"""A worker's record of itself, ``_posedrop/workers/<id>.json``, rewritten while the worker lives.

Nothing depends on it for being right: handlers that find none take it that there is one worker.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from importlib import metadata
from typing import Protocol

from posedrop import __version__, analyses
from posedrop.buckets import layout
from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.runs import Task
from posedrop.buckets.records.workers import Speed, Step, WorkerJob, WorkerRecord
from posedrop.buckets.storage import Storage
from posedrop.errors import PosedropError
from posedrop.logs import Formatter
from posedrop.settings import Settings

log = logging.getLogger(__name__)

#: Characters of one line of the log, and of all that is told of it.
MAX_LINE, MAX_TAIL = 400, 4000
#: Of how many models and sizes of frames it is told how fast they are.
MAX_SPEEDS = 64
#: Seconds of frames through a network that say how fast it is; less says how fast it begins.
LEAST_SECONDS = 2.0
#: The same of other steps, which begin at once.
LEAST_OF_OTHERS = 0.005
#: A worker at work is heard of so often in a lease, one with nothing new no less.
BEATS_A_LEASE = 6
#: Seconds that the end of a process waits for the store to remove its record.
STOP_SECONDS = 5.0
_PACKAGES = ("deeplabcut", "torch", "av", "dramatiq", "boto3")


Clock = Callable[[], datetime]


class Attempting(Protocol):
    """An attempt that this worker makes, as far as its record tells of it."""

    @property
    def number(self) -> int:
        """The attempt's number, from 1."""

    @property
    def task(self) -> Task:
        """What is being done."""

    @property
    def now(self) -> Progress:
        """How far the attempt is."""


class OwnRecord:
    """The record of this process; it is written from :meth:`start` to :meth:`stop`."""

    def __init__(self, storage: Storage, settings: Settings, name: str, clock: Clock) -> None:
        """Prepare the record; nothing is written yet.

        Args:
            name: what the attempts call this process.
            clock: tells the time that records have.
        """
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._jobs: dict[int, tuple[Attempting, WorkerJob]] = {}
        self._speeds: dict[tuple[str, ModelRef | None, int, int, Step], Speed] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._tail = _Tail()
        self._record = WorkerRecord(
            worker_id=layout.make_id("worker", name, uuid.uuid4().hex),
            name=name[:300],
            started_at=clock(),
            queues=[],
            device=settings.device,
            versions=_versions(),
        )

    @property
    def key(self) -> str:
        """The record's key in the results bucket."""
        return layout.worker(self._record.worker_id)

    def start(self, queues: Iterable[str]) -> None:
        """Write the record from now on; once for a process."""
        with self._lock:
            if self._thread is not None or self._stopped.is_set():
                return
            self._record = self._record.model_copy(update={"queues": sorted(queues)})
            self._thread = threading.Thread(target=self._run, name="own record", daemon=True)
            logging.getLogger("worker").addHandler(self._tail)
        self._thread.start()

    def stop(self) -> None:
        """Remove the record and write none any more; a store that is away delays this little."""
        self._stopped.set()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            logging.getLogger("worker").removeHandler(self._tail)
            thread.join(timeout=STOP_SECONDS)

    @contextmanager
    def at(self, held: Attempting, key: str, run: str | None = None) -> Iterator[None]:
        """Tell of an attempt at a run, or at the ingest of a video, while the block lasts."""
        task: Task = held.task
        job = WorkerJob(
            task=task,
            key=key[:1024],
            run=run[:1024] if run is not None else None,
            attempt=held.number,
            started_at=self._clock(),
            progress=held.now,
        )
        with self._lock:
            self._jobs[id(held)] = held, job
        self._changed.set()
        try:
            yield
        finally:
            with self._lock:
                self._jobs.pop(id(held), None)
            self._changed.set()

    def runs_on(self, device: str) -> None:
        """Note where a network has run, as its child says."""
        with self._lock:
            self._record = self._record.model_copy(update={"device": device[:200]})

    def measured(
        self,
        analysis: str,
        model: ModelRef | None,
        size: tuple[int, int],
        step: Step,
        frames: int,
        seconds: float,
    ) -> None:
        """Note how long a step took for frames of one size (width, height in pixels)."""
        if frames < 1 or seconds < (LEAST_SECONDS if step == "network" else LEAST_OF_OTHERS):
            return
        width, height = size
        speed = Speed(
            analysis=analysis,
            model=model,
            width=width,
            height=height,
            step=step,
            frames_per_second=frames / seconds,
            frames=frames,
            measured_at=self._clock(),
        )
        name = analysis, model, width, height, step
        with self._lock:
            self._speeds.pop(name, None)
            self._speeds[name] = speed
            for oldest in list(self._speeds)[:-MAX_SPEEDS]:
                del self._speeds[oldest]

    def frames_per_second(
        self, analysis: str, model: ModelRef | None, size: tuple[int, int]
    ) -> float | None:
        """Return how fast this process found a network on frames of one size; None: not yet."""
        with self._lock:
            found = self._speeds.get((analysis, model, *size, "network"))
        return found.frames_per_second if found is not None else None

    def record(self) -> WorkerRecord:
        """Return the record as it is to be written now."""
        with self._lock:
            jobs = [
                job.model_copy(update={"progress": held.now}) for held, job in self._jobs.values()
            ]
            self._record = self._record.model_copy(
                update={
                    "beat": self._record.beat + 1,
                    "jobs": jobs,
                    "speeds": list(self._speeds.values()),
                    "log_tail": self._tail.text(),
                }
            )
            return self._record

    def _run(self) -> None:
        bucket = self._settings.results_bucket
        beat = self._settings.heartbeat_seconds
        pause = max(beat, self._settings.lease_seconds / BEATS_A_LEASE)
        due = 0.0
        while not self._stopped.is_set():
            if self._changed.is_set() or time.monotonic() >= due:
                self._changed.clear()
                due = time.monotonic() + pause
                try:
                    self._storage.write(bucket, self.key, self.record().to_json())
                except PosedropError as error:
                    log.warning("the record of this worker was not written: %s", error)
            self._stopped.wait(beat)
        try:
            self._storage.delete(bucket, [self.key])
        except PosedropError as error:
            log.warning("the record of this worker stays until it is found silent: %s", error)


class _Tail(logging.Handler):
    """Keeps the last lines that the worker's own modules log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(Formatter())
        self._lines: deque[str] = deque(maxlen=MAX_TAIL // 40)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line; of a traceback, its last."""
        try:
            first, *more = self.format(record).splitlines()
        except Exception:
            self.handleError(record)
            return
        line = f"{first[:MAX_LINE]} ... {more[-1][:MAX_LINE]}" if more else first[:MAX_LINE]
        self._lines.append(line)

    def text(self) -> str:
        """Return them, the newest last."""
        text = "\n".join(list(self._lines))[-MAX_TAIL:]
        return text.encode(errors="replace").decode()  # JSON has no half of a character


def _versions() -> dict[str, str]:
    """Return the versions of packages and installed analyses that this worker computes with."""
    return _packages() | {f"analysis {a.name}": a.version for a in analyses.installed().values()}


@cache
def _packages() -> dict[str, str]:
    # Read once a process: each is a file of some hundred lines.
    known = {"posedrop": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            known[package] = metadata.version(package)
    return known
