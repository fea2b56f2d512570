"""Who works on a run or an ingest: numbered attempts, each claimed by creating its object.

The lease is counted on the store's clock alone (LastModified against the Date of its answer), so
that no two machines need agree on the time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from posedrop import metrics
from posedrop.buckets import layout
from posedrop.buckets.layout import Run
from posedrop.buckets.records.attempts import Attempt, Progress
from posedrop.buckets.records.runs import Artefact, RunError, Task
from posedrop.buckets.storage import Listing, Storage
from posedrop.errors import PosedropError, RecordError, StorageError

log = logging.getLogger(__name__)

#: A run is given up after so many attempts that the store or the machine cut short: it took their
#: claims, and did not give the film, or take what they had made, or started no child; or their
#: workers died, in days of work, but not before they had kept some of it.
MAX_UNLUCKY = 10
#: Where a disk had no room, a machine started no child, or a store did not give what it has, not
#: before so many seconds: each may pass, and a queue of films must not be through with its attempts
#: in minutes.
_GRACE_SECONDS = 3600.0
#: What comes so long after the one before is another cause's; and so many are too many for any.
_APART_SECONDS, _MOST_UNLUCKY = 900.0, 200
_PASSING = frozenset({StorageError.code, "scratch_unwritable", "not_started"})
_ADVICE = (
    "if it is archived or damaged, or denied to the worker's key, mend that in the store; then ask "
    "again"
)


@dataclass(frozen=True, slots=True)
class History:
    """The attempts in a folder so far, the oldest first."""

    attempts: list[Attempt]
    last: int
    """The number of the last one, 0: there is none."""
    silent: float
    """Seconds since the last attempt's last heartbeat."""

    def is_busy(self, lease_seconds: float) -> bool:
        """Tell whether a worker holds the last attempt, or did until less than a lease ago."""
        unfinished = bool(self.attempts) and self.attempts[-1].outcome is None
        return unfinished and self.silent < lease_seconds

    def after(self, number: int) -> History:
        """Return the history without the attempts up to one, which count no more."""
        left = [attempt for attempt in self.attempts if attempt.number > number]
        return replace(self, attempts=left)

    def spent(self, *outcomes: str | None) -> list[Attempt]:
        """Return the attempts with one of these outcomes; None: their worker died unheard."""
        return [attempt for attempt in self.attempts if attempt.outcome in outcomes]


def history(storage: Storage, bucket: str, folder: str, task: Task) -> History:
    """Read the attempts ``<folder>/N.json``; one that can't be read counts as failed."""
    return _history(storage, bucket, folder, task, storage.listing(bucket, f"{folder}/"))


def _history(storage: Storage, bucket: str, folder: str, task: Task, listing: Listing) -> History:
    beaten = {
        number: found.last_modified
        for found in listing.objects
        if (number := layout.number_of(found.key, folder)) is not None
    }
    last = max(beaten, default=0)
    read = (
        _attempt(storage, bucket, folder, task, number, beaten[number]) for number in sorted(beaten)
    )
    return History(
        [attempt for attempt in read if attempt is not None],
        last,
        (listing.now - beaten[last]).total_seconds() if last else 0.0,
    )


def _attempt(
    storage: Storage, bucket: str, folder: str, task: Task, number: int, written: datetime
) -> Attempt | None:
    try:
        return storage.read_record(bucket, _key(folder, number), Attempt)
    except RecordError as error:
        if error.code == "newer_record":
            raise
        # What can't be read today can't be tomorrow: whoever waited for it would wait for ever.
        storage.report(error)
        return Attempt(
            number=number,
            task=task,
            worker="unknown",
            started_at=written,
            progress=Progress(stage="unknown"),
            outcome="failed",
            error=run_error(error, None),
        )


def _key(folder: str, number: int) -> str:
    """Return the key of an attempt in the folder of a run's attempts, or of an ingest's."""
    return f"{folder}/{number}.json"


def begin(
    storage: Storage,
    bucket: str,
    folder: str,
    before: History,
    task: Task,
    worker: str,
    *,
    now: datetime,
    sha256: str | None = None,
    sha1: str | None = None,
) -> Attempt | None:
    """Create the attempt after ``before``; of many callers at the same time all but one get None.

    Args:
        now: this machine's time, for people; no lease is counted by it.
        sha256: of the film, where an ingest knows it; so ``sha1``.
    """
    record = Attempt(
        number=before.last + 1,
        task=task,
        worker=worker,
        started_at=now,
        progress=Progress(stage="claimed"),
        sha256=sha256,
        sha1=sha1,
    )
    created = storage.create(bucket, _key(folder, record.number), record.to_json())
    return record if created else None


@dataclass(frozen=True, slots=True)
class Busy:
    """Another worker holds the run, or did until less than a lease ago."""


@dataclass(frozen=True, slots=True)
class Over:
    """The run has its result."""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Too many attempts died or failed; ``last`` is the latest of them."""

    attempts: int
    """All that there were, of both halves."""
    counted: int
    """The attempts that died or failed, for which the run is given up."""
    last: Attempt
    artefacts: list[Artefact]
    """What the last attempt published that has told of any."""

    def error(self, what: str, stage: str) -> RunError:
        """Return why no further attempt is made at something, such as ``this run``."""
        words = f"worker {self.last.worker} was killed or lost while it was at {what}"
        known = self.last.error or RunError(code="worker_died", message=words, stage=stage)
        words = f"given up after {self.counted} attempts; the last: {known.message}"
        if known.code == StorageError.code:
            words += f" ({_ADVICE})"
        return known.model_copy(update={"message": words})


def take(
    storage: Storage,
    bucket: str,
    run: Run,
    task: Task,
    *,
    worker: str,
    lease_seconds: float,
    max_attempts: int,
    now: datetime,
) -> Claim | Busy | Over | Exhausted:
    """Claim the next attempt at a run, if no other worker holds the run.

    Of many callers at the same time exactly one gets the :class:`Claim`.
    """
    listing = storage.listing(bucket, run.folder)
    there = {found.key: found.etag for found in listing.objects}
    if run.result in there:
        return Over()
    before = _history(storage, bucket, run.attempts, task, listing)
    record = begin_unless_spent(
        storage, bucket, run.attempts, before, task, worker, lease_seconds, max_attempts, now
    )
    if not isinstance(record, Attempt):
        return record
    is_last = len(_spent(before, task)) + 1 >= max_attempts
    is_first = not any(a.task == task for a in before.spent(None, "failed"))
    return Claim(
        storage, bucket, run, record, there.get(run.request), is_last=is_last, is_first=is_first
    )


def begin_unless_spent(
    storage: Storage,
    bucket: str,
    folder: str,
    before: History,
    task: Task,
    worker: str,
    lease_seconds: float,
    max_attempts: int,
    now: datetime,
) -> Attempt | Busy | Exhausted:
    """Create the attempt after ``before``, if there is to be one and no other worker has it."""
    if before.is_busy(lease_seconds):
        return Busy()
    its = [a for a in before.attempts if a.task == task]
    spent = _spent(before, task)
    refused = [a for a in its if a.is_unlucky]
    died = [a for a in its if a.was_of_use]
    if len(spent) >= max_attempts or are_too_many(refused) or len(died) >= MAX_UNLUCKY:
        ended = sorted([*spent, *refused, *died], key=lambda a: a.number)
        told = (a.artefacts for a in reversed(ended) if a.artefacts)
        return Exhausted(len(before.attempts), len(ended), ended[-1], next(told, []))
    return begin(storage, bucket, folder, before, task, worker, now=now) or Busy()


def _spent(before: History, task: Task) -> list[Attempt]:
    """Return the attempts at a task that failed, or died and left nothing to go on with."""
    lost = before.spent(None, "failed")
    return [a for a in lost if a.task == task and not a.was_of_use]


def are_too_many(unlucky: list[Attempt]) -> bool:
    """Tell whether there is no use in another attempt after these, which were cut short."""
    if len(unlucky) < MAX_UNLUCKY:
        return False
    last = unlucky[-1]
    may_pass = last.error is not None and last.error.code in _PASSING
    # One that can't publish has had the network, maybe.
    if not may_pass or last.progress.stage == "publish" or len(unlucky) >= _MOST_UNLUCKY:
        return True
    since = last.started_at
    for attempt in reversed(unlucky):
        ended = attempt.ended_at or attempt.started_at
        if (since - ended).total_seconds() > _APART_SECONDS:
            break
        since = attempt.started_at
    return (last.started_at - since).total_seconds() >= _GRACE_SECONDS


class Held:
    """An attempt that this worker holds; :meth:`beating` keeps it alive."""

    def __init__(
        self,
        storage: Storage,
        bucket: str,
        folder: str,
        record: Attempt,
        began: float | None = None,
    ) -> None:
        """Hold what was begun; ``began``: at which ``time.monotonic``, None: now."""
        self._began = time.monotonic() if began is None else began
        self._storage = storage
        self._bucket = bucket
        self._folder = folder
        self._record = record
        self._progress = record.progress
        self._lost = threading.Event()
        self._writing = threading.Lock()
        """Held while the record changes, and until the store has it: heartbeats come from a thread
        of their own, and one that is slow must not write over how the attempt ended."""
        self.log_tail: Callable[[], str | None] = lambda: None
        """Returns the end of the job's log, for the heartbeat to tell."""

    @property
    def number(self) -> int:
        """Which attempt this is, from 1."""
        return self._record.number

    @property
    def task(self) -> Task:
        """Which half of the run was claimed."""
        return self._record.task

    @property
    def at(self) -> str:
        """The stage that the attempt is in."""
        return self._progress.stage

    @property
    def now(self) -> Progress:
        """How far the attempt is."""
        return self._progress

    @property
    def lost(self) -> bool:
        """Whether another worker took over, or there is nothing to do any more: stop."""
        return self._lost.is_set()

    def progress(self, progress: Progress) -> None:
        """Note how far the run is; the next heartbeat says so."""
        self._progress = progress

    def stage(self, stage: str) -> None:
        """Note that a new stage began."""
        self._progress = Progress(stage=stage)

    @contextmanager
    def beating(self, seconds: float) -> Iterator[None]:
        """Rewrite the attempt's object every ``seconds`` while the block runs."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(seconds):
                try:
                    self.look()
                    if not self.lost:
                        self._write()
                except StorageError as error:
                    log.warning("%s: no heartbeat this time: %s", self._folder, error)

        thread = threading.Thread(target=beat, name=f"heartbeat {self._folder[-24:]}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def look(self) -> None:
        """Ask the store whether this attempt is still the last one, and still there."""
        folder = self._folder
        listing = self._storage.listing(self._bucket, f"{folder}/")
        numbers = {layout.number_of(found.key, folder) for found in listing.objects}
        if self.number + 1 in numbers or self.number not in numbers:
            self._lost.set()

    def end(
        self, outcome: Literal["done", "handed_back", "failed"], error: RunError | None = None
    ) -> Attempt:
        """Record how this attempt ended, so that nobody waits for its heartbeat; return that."""
        # By the clock that began it, whose seconds nobody sets.
        lasted = timedelta(seconds=time.monotonic() - self._began)
        self._write(outcome=outcome, error=error, ended_at=self._record.started_at + lasted)
        metrics.ATTEMPTS.labels(self.task, outcome).inc()
        return self._record

    def _write(self, **changes: Any) -> None:
        with self._writing:
            changes |= {"beat": self._record.beat + 1, "progress": self._progress}
            changes["log_tail"] = self.log_tail()
            self._record = self._record.model_copy(update=changes)
            key = _key(self._folder, self.number)
            self._storage.write(self._bucket, key, self._record.to_json())


class Claim(Held):
    """An attempt at a run, which may be cancelled, finished or deleted meanwhile."""

    def __init__(
        self,
        storage: Storage,
        bucket: str,
        run: Run,
        record: Attempt,
        asked: str | None,
        *,
        is_last: bool,
        is_first: bool = True,
    ) -> None:
        super().__init__(storage, bucket, run.attempts, record)
        self.is_last = is_last
        """Whether the run is given up if this attempt fails too."""
        self.is_first = is_first
        """Whether no attempt at this half of the run has failed or was lost."""
        self.asked_back = False
        """Whether another group is to have the network, once this attempt has had it for long."""
        self.gives_way = False
        """Whether this attempt ends for another group's sake."""
        self._run = run
        self._asked = asked
        """The ETag of the request: it is another one where the run was deleted, and asked anew."""
        self._cancelled = threading.Event()

    @property
    def artefacts(self) -> list[Artefact]:
        """The files that this attempt published, or found published by an earlier one."""
        return self._record.artefacts

    def keep(self, checkpoints: int) -> None:
        """Note that so many more checkpoints are in the bucket; the next heartbeat says so."""
        with self._writing:
            kept = self._record.kept + checkpoints
            self._record = self._record.model_copy(update={"kept": kept})

    def published(self, artefacts: Iterable[Artefact]) -> None:
        """Note files of the run, the newest of a name; the next heartbeat says so."""
        by_name = {artefact.plain_name: artefact for artefact in (*self.artefacts, *artefacts)}
        known = {"artefacts": list(by_name.values())}
        with self._writing:
            self._record = self._record.model_copy(update=known)

    def withdraw(self, name: str) -> None:
        """Take back that a file was published, which is of no use."""
        left = [artefact for artefact in self.artefacts if artefact.name != name]
        with self._writing:
            self._record = self._record.model_copy(update={"artefacts": left})

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for the run to stop."""
        return self._cancelled.is_set()

    def look(self) -> None:
        """Ask the store whether the run was cancelled, or is no longer ours."""
        run = self._run
        listing = self._storage.listing(self._bucket, run.folder)
        there = {found.key: found.etag for found in listing.objects}
        if run.cancel in there:
            self._cancelled.set()
        if run.hand_back(self.number) in there:
            self.asked_back = True
        is_asked = run.request in there and there[run.request] == self._asked
        is_ours = is_asked and run.attempt(self.number) in there
        if run.attempt(self.number + 1) in there or run.result in there or not is_ours:
            self._lost.set()


def run_error(error: PosedropError, stage: str | None, log_tail: str | None = None) -> RunError:
    """Return an error as a record tells it."""
    return RunError(
        code=error.code, message=error.message, stage=stage, field=error.field, log_tail=log_tail
    )
