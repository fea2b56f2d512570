"""The index: what the buckets hold, in SQLite, so that it can be listed, searched and counted.

It is a projection. It may be deleted and is filled again from the buckets: of films, runs and
batches nothing is known here alone. (Events that were not carried out yet, and dead letters, are;
what they told of, the sweep finds.) Everything told to it may be told twice, late and in any order:
rows only ever move on (an older version of a video never follows a newer one, a finished run never
runs again). What the index can't know by itself, that an object is gone, it has to be told by
``file_removed`` and ``analysis_removed``.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from datetime import datetime
from pathlib import Path

from posedrop.errors import ConfigurationError, PosedropError
from posedrop.index import schema
from posedrop.index.analyses import Analyses
from posedrop.index.batches import Batches
from posedrop.index.events import Events
from posedrop.index.files import Files
from posedrop.index.gpu_queue import GpuQueue
from posedrop.index.listing import Page
from posedrop.index.pending import UNRESOLVED, Pending
from posedrop.index.rows import (
    AnalysisRow,
    DeadLetterRow,
    EventRow,
    FileRow,
    GpuRow,
    PendingRow,
    RuleRow,
)
from posedrop.index.rules import Rules
from posedrop.index.schema import IndexBusyError
from posedrop.index.telling import Telling

__all__ = [
    "AnalysisRow",
    "DeadLetterRow",
    "EventRow",
    "FileRow",
    "GpuRow",
    "Index",
    "IndexBusyError",
    "Page",
    "PendingRow",
    "RuleRow",
]

#: What waits, by the name that metrics have for it; each is the first row of an index.
_OLDEST = {
    "event": "SELECT received_at FROM event WHERE handled_at IS NULL ORDER BY id LIMIT 1",
    "file": "SELECT created_at FROM uploaded_file WHERE state = 'received' ORDER BY number LIMIT 1",
    "run": "SELECT created_at FROM analysis WHERE state = 'queued' ORDER BY number LIMIT 1",
}
#: How many rows of an older posedrop become searchable at a time, while nobody else can write.
_SPELLED_AT_ONCE = 1000

log = logging.getLogger(__name__)


class Index(Events, Files, Analyses, GpuQueue, Pending, Rules, Batches, Telling):
    """The index in one SQLite file; safe to use from any number of threads and processes."""

    def __init__(self, path: Path, *, timeout: float = 30) -> None:
        schema.check_sqlite()
        super().__init__(path, timeout)
        self.on_result = lambda _: None
        self.on_video = lambda _: None
        self.on_change = lambda _: None
        self._closed = threading.Event()
        self._speller = threading.Thread(target=self._go_on_spelling, name="spelling", daemon=True)
        with schema.translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            schema.enable_wal(self._db, timeout)
            if schema.is_newer(self._db):
                self.close()
                raise ConfigurationError(
                    f"a newer posedrop has had the index {path}: remove it, with the files beside "
                    "it that begin with its name; it comes back from the buckets"
                )
            if not schema.is_current(self._db):
                with self._write():
                    schema.migrate(self._db)
            self._is_made = True
            schema.tell_changes(self._db, self._local.connection.changes)
            if not schema.is_spelled(self._db):
                self._speller.start()

    def close(self) -> None:
        """Close the connections of all threads."""
        self._closed.set()
        if self._speller.is_alive():
            self._speller.join()
        super().close()

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many files, analyses, events, pending requests and dead letters there are."""
        by_state: dict[str, dict[str, int]] = {"files": {}, "analyses": {}}
        named = {"uploaded_file": "files", "analysis": "analyses"}
        with self._read() as db:
            for table, state, count in db.conn.execute("SELECT * FROM tally WHERE n > 0"):
                by_state[named[table]][state] = count
            unhandled = db["event"].count_where("handled_at IS NULL")
            waiting = db["pending"].count_where(UNRESOLVED)
            letters = db["dead_letter"].count
        others = {"events": {"unhandled": unhandled}, "pending": {"waiting": waiting}}
        return by_state | others | {"dead_letters": {"kept": letters}}

    def oldest(self) -> dict[str, datetime | None]:
        """Return since when the oldest waits: an event, a received file, a queued run."""
        found: dict[str, datetime | None] = {}
        with self._read() as db:
            for what, sql in _OLDEST.items():
                row = db.conn.execute(sql).fetchone()
                found[what] = schema.from_text(row[0]) if row is not None else None
        return found

    def reset(self) -> None:
        """Empty what the buckets fill again.

        What they don't know stays: events not yet handled, dead letters, which runs were removed.
        """
        with self._write() as db:
            for table in (
                *("batch", "batch_film", "telling"),
                *("uploaded_file", "analysis", "place", "taken", "pending", "rule"),
            ):
                db.execute(f"DELETE FROM {table}")  # noqa: S608
            db.execute("DELETE FROM gpu_group")
            db.execute("DELETE FROM event WHERE handled_at IS NOT NULL")

    def _go_on_spelling(self) -> None:
        """Make searchable what an older posedrop left; others write and read in between."""
        took = 0.0
        while not self._closed.wait(took):
            try:
                with self._write() as db:
                    began = time.monotonic()
                    if schema.go_on_spelling(db, _SPELLED_AT_ONCE):
                        return
                    took = time.monotonic() - began
            except (PosedropError, sqlite3.Error) as error:
                took = 5.0
                if not self._closed.is_set():
                    log.warning("names become searchable later: %s", error)
