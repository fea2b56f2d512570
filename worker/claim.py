"""Who works on a run: numbered attempts, each claimed by creating its object, and their heartbeat.

The lease is counted on the store's clock alone (LastModified against the Date of its answer), so
that no two machines need agree on the time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from posedrop import layout
from posedrop.errors import PosedropError, StorageError
from posedrop.records import Artefact, Attempt, Progress, RunError, Task
from posedrop.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Busy:
    """Another worker is at it, or was until less than a lease ago."""


@dataclass(frozen=True, slots=True)
class Over:
    """The run has its result."""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Too many attempts died or failed; ``last`` is the latest of them."""

    attempts: int
    last: Attempt
    artefacts: list[Artefact]
    """What the last attempt published that has told of any."""


def take(
    storage: Storage,
    bucket: str,
    run: str,
    task: Task,
    *,
    worker: str,
    lease_seconds: float,
    max_attempts: int,
) -> Claim | Busy | Over | Exhausted:
    """Claim the next attempt at a run, if nobody else is at it.

    Of many callers at the same time exactly one gets the :class:`Claim`.
    """
    listing = storage.listing(bucket, f"{run}/")
    names = {found.key.removeprefix(f"{run}/"): found for found in listing.objects}
    if layout.RESULT in names:
        return Over()
    numbers = sorted(n for name in names if (n := layout.attempt_number(name)) is not None)
    attempts = [
        record
        for n in numbers
        if (record := storage.read_record(bucket, layout.attempt(run, n), Attempt)) is not None
    ]
    if attempts and attempts[-1].outcome is None:
        beaten = names[f"attempts/{numbers[-1]}.json"].last_modified
        if (listing.now - beaten).total_seconds() < lease_seconds:
            return Busy()
    spent = [a for a in attempts if a.task == task and a.outcome in {None, "failed"}]
    if len(spent) >= max_attempts:
        told = (a.artefacts for a in reversed(spent) if a.artefacts)
        return Exhausted(len(attempts), spent[-1], next(told, []))
    number = (numbers[-1] if numbers else 0) + 1
    record = Attempt(
        number=number,
        task=task,
        worker=worker,
        started_at=datetime.now(UTC),
        progress=Progress(stage="claimed"),
    )
    if not storage.create(bucket, layout.attempt(run, number), record.to_json()):
        return Busy()
    return Claim(storage, bucket, run, record, is_last=len(spent) + 1 >= max_attempts)


class Claim:
    """An attempt that this worker holds; :meth:`beating` keeps it alive."""

    def __init__(
        self, storage: Storage, bucket: str, run: str, record: Attempt, *, is_last: bool
    ) -> None:
        self.is_last = is_last
        """Whether the run is given up if this attempt fails too."""
        self._storage = storage
        self._bucket = bucket
        self._run = run
        self._record = record
        self._progress = record.progress
        self._cancelled = threading.Event()
        self._lost = threading.Event()
        self._writing = threading.Lock()
        """Held while the record changes: heartbeats come from a thread of their own."""

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
        """The stage that it is in."""
        return self._progress.stage

    @property
    def artefacts(self) -> list[Artefact]:
        """What it has published, or found published by an attempt before it."""
        return self._record.artefacts

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for the run to stop."""
        return self._cancelled.is_set()

    @property
    def lost(self) -> bool:
        """Whether another worker took over, or the run is over or gone: stop, and write nothing."""
        return self._lost.is_set()

    def progress(self, progress: Progress) -> None:
        """Note how far the run is; the next heartbeat says so."""
        self._progress = progress

    def stage(self, stage: str) -> None:
        """Note that a new stage began."""
        self._progress = Progress(stage=stage)

    def published(self, artefacts: Iterable[Artefact]) -> None:
        """Note files of the run, the newest of a name; the next heartbeat says so."""
        by_name = {artefact.name: artefact for artefact in (*self.artefacts, *artefacts)}
        known = {"artefacts": list(by_name.values())}
        with self._writing:
            self._record = self._record.model_copy(update=known)

    def withdraw(self, name: str) -> None:
        """Forget a file that is of no use."""
        left = [artefact for artefact in self.artefacts if artefact.name != name]
        with self._writing:
            self._record = self._record.model_copy(update={"artefacts": left})

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
                    log.warning("%s: no heartbeat this time: %s", self._run, error)

        thread = threading.Thread(target=beat, name=f"heartbeat {self._run[-24:]}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def look(self) -> None:
        """See whether the run was cancelled, or is no longer ours."""
        names = {
            found.key.removeprefix(f"{self._run}/")
            for found in self._storage.listing(self._bucket, f"{self._run}/").objects
        }
        if layout.CANCEL in names:
            self._cancelled.set()
        taken_over = f"attempts/{self.number + 1}.json" in names
        if taken_over or layout.RESULT in names or layout.REQUEST not in names:
            self._lost.set()

    def end(
        self, outcome: Literal["done", "handed_back", "failed"], error: RunError | None = None
    ) -> None:
        """Say that nobody need wait for this attempt's heartbeat any more."""
        with self._writing:
            self._record = self._record.model_copy(update={"outcome": outcome, "error": error})
        self._write()

    def _write(self) -> None:
        with self._writing:
            self._record = self._record.model_copy(
                update={"beat": self._record.beat + 1, "progress": self._progress}
            )
        self._storage.write(
            self._bucket, layout.attempt(self._run, self.number), self._record.to_json()
        )


def run_error(error: PosedropError, stage: str | None, log_tail: str | None = None) -> RunError:
    """Return an error as a record tells it."""
    return RunError(
        code=error.code, message=error.message, stage=stage, field=error.field, log_tail=log_tail
    )
